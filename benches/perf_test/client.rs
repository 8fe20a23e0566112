//! `perf_test bench`: runs each mode with this crate.

use std::thread;

use leveret::{
    Channel, Connection, ConnectionOptions, ConsumeOptions, PublisherOptions, Result, TlsOptions,
};

use crate::bench::{Latencies, Mode, Run};
use crate::cliffs;

const WINDOW: u32 = 256;
pub(crate) const PREFETCH: u16 = 200;
pub(crate) const ROUTING_KEY: &str = "q";
/// The environment variable with the path of a PEM file that clients trust for `amqps`.
pub(crate) const CA: &str = "PERF_TEST_CA";

/// Handles that stay open until the run is measured.
#[derive(Default)]
#[allow(dead_code)] // Only kept.
pub(crate) struct Kept {
    connections: Vec<Connection>,
    channels: Vec<Channel>,
}

pub(crate) fn run(run: &Run, latencies: &mut Latencies) -> Result<Kept> {
    let mut kept = Kept::default();
    // The same for all connections, as in a program.
    let options = options(&run.uri)?;
    let open = || Connection::open_with(&options);
    match run.mode {
        Mode::Connect => {
            for _ in 0..run.count {
                latencies.time(|| open()?.close())?;
            }
        }
        Mode::Connections => {
            for _ in 0..run.count {
                kept.connections.push(open()?);
            }
        }
        Mode::Channels => {
            let connection = open()?;
            for _ in 0..run.count {
                kept.channels.push(connection.open_channel()?);
            }
            kept.connections.push(connection);
        }
        Mode::Rpc | Mode::RpcHandOver | Mode::Confirm1 => {
            let connection = open()?;
            call(&connection.open_channel()?, run, latencies)?;
            connection.close()?;
        }
        _ => {
            let connection = open()?;
            match run.mode {
                Mode::PublishInTurn => cliffs::publish_in_turn(&connection, run)?,
                Mode::RpcBusy => cliffs::call_beside_publishers(&connection, run, latencies)?,
                Mode::ConsumeSlow => cliffs::consume_beside_one_that_does_not(&connection, run)?,
                _ => in_threads(&connection, run)?,
            }
            connection.close()?;
        }
    }
    Ok(kept)
}

fn options(uri: &str) -> Result<ConnectionOptions> {
    let options = ConnectionOptions::from_uri(uri)?;
    let authority = std::env::var_os(CA).filter(|_| uri.starts_with("amqps:"));
    Ok(match authority {
        Some(authority) => options.tls(TlsOptions::default().ca_certificate_file(authority)),
        None => options,
    })
}

pub(crate) fn in_threads(connection: &Connection, run: &Run) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..run.threads)
            .map(|_| {
                let channel = connection.open_channel()?;
                Ok(scope.spawn(move || one_thread(&channel, run)))
            })
            .collect::<Result<_>>()?;
        let mut ended = threads
            .into_iter()
            .map(|it| it.join().expect("a thread panicked"));
        ended.try_for_each(|it| it)
    })
}

fn one_thread(channel: &Channel, run: &Run) -> Result<()> {
    match run.mode {
        Mode::Confirm => confirm(channel, run),
        Mode::Publisher => publisher(channel, run),
        Mode::Consume | Mode::ConsumeAck | Mode::ConsumeSlow => consume(channel, run),
        _ => publish(channel, run),
    }
}

pub(crate) fn declare_passively(channel: &Channel) -> Result<()> {
    channel.queue_declare_passive(ROUTING_KEY).map(drop)
}

fn call(channel: &Channel, run: &Run, latencies: &mut Latencies) -> Result<()> {
    if run.mode != Mode::Confirm1 {
        return (0..run.count).try_for_each(|_| latencies.time(|| declare_passively(channel)));
    }
    let publisher = channel.publisher()?;
    let body = vec![b'x'; run.size];
    (0..run.count)
        .try_for_each(|_| latencies.time(|| publisher.publish("", ROUTING_KEY, &body)?.wait()))
}

fn publish(channel: &Channel, run: &Run) -> Result<()> {
    let body = vec![b'x'; run.size];
    for _ in 0..run.count_per_thread() {
        channel.basic_publish("", ROUTING_KEY, &body)?;
    }
    declare_passively(channel)
}

fn confirm(channel: &Channel, run: &Run) -> Result<()> {
    let body = vec![b'x'; run.size];
    channel.confirm_select()?;
    let confirmations = channel.confirmations();
    let (mut published, mut confirmed) = (0, 0);
    while confirmed < run.count_per_thread() {
        if published < run.count_per_thread() && published - confirmed < u64::from(WINDOW) {
            channel.basic_publish("", ROUTING_KEY, &body)?;
            published += 1;
            continue;
        }
        let Ok(confirmation) = confirmations.recv() else {
            return channel.wait_for_confirms();
        };
        confirmed = match confirmation.multiple {
            true => confirmation.sequence_number,
            false => confirmed + 1,
        };
    }
    Ok(())
}

fn publisher(channel: &Channel, run: &Run) -> Result<()> {
    let body = vec![b'x'; run.size];
    let publisher = channel.publisher_with(PublisherOptions::default().window(WINDOW))?;
    let mut confirms = std::collections::VecDeque::new();
    for _ in 0..run.count_per_thread() {
        confirms.push_back(publisher.publish("", ROUTING_KEY, &body)?);
        if confirms.len() > WINDOW as usize {
            if let Some(oldest) = confirms.pop_front() {
                oldest.wait()?;
            }
        }
    }
    confirms.iter().try_for_each(|confirm| confirm.wait())
}

fn consume(channel: &Channel, run: &Run) -> Result<()> {
    let acknowledges = run.mode != Mode::Consume;
    let options = match acknowledges {
        true => ConsumeOptions::default(),
        false => ConsumeOptions::default().no_ack(true),
    };
    if acknowledges {
        channel.basic_qos(PREFETCH)?;
    }
    let consumer = channel.basic_consume(&run.queue(), options)?;
    let mut left = run.count_per_thread();
    while left > 0 {
        let Some(delivery) = consumer.recv()? else {
            break;
        };
        assert_eq!(delivery.body().len(), run.size);
        if acknowledges {
            delivery.ack()?;
        }
        left -= 1;
    }
    Ok(())
}
