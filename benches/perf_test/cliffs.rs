//! Cases where throughput could collapse: many channels, calls beside a busy publisher, a consumer
//! that does not read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use leveret::{Channel, Connection, ConsumeOptions, Result};

use crate::bench::{Latencies, Run};
use crate::client::{declare_passively, in_threads, PREFETCH, ROUTING_KEY};

/// Publishes on all channels in turn, with one thread.
pub(crate) fn publish_in_turn(connection: &Connection, run: &Run) -> Result<()> {
    let channels: Vec<_> = (0..run.threads)
        .map(|_| connection.open_channel())
        .collect::<Result<_>>()?;
    let body = vec![b'x'; run.size];
    let turns = channels.iter().cycle();
    for (channel, _) in turns.zip(0..run.count) {
        channel.basic_publish("", ROUTING_KEY, &body)?;
    }
    channels.iter().try_for_each(declare_passively)
}

/// Makes calls in one thread while the others publish as fast as they can, each on its own channel.
pub(crate) fn call_beside_publishers(
    connection: &Connection,
    run: &Run,
    latencies: &mut Latencies,
) -> Result<()> {
    let channel = connection.open_channel()?;
    let is_over = AtomicBool::new(false);
    let publish = |channel: &Channel| -> Result<()> {
        let body = vec![b'x'; run.size];
        while !is_over.load(Ordering::Relaxed) {
            channel.basic_publish("", ROUTING_KEY, &body)?;
        }
        declare_passively(channel)
    };
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..run.threads)
            .map(|_| {
                let channel = connection.open_channel()?;
                Ok(scope.spawn(move || publish(&channel)))
            })
            .collect::<Result<_>>()?;
        let called =
            (0..run.count).try_for_each(|_| latencies.time(|| declare_passively(&channel)));
        is_over.store(true, Ordering::Relaxed);
        let mut ended = publishers
            .into_iter()
            .map(|it| it.join().expect("a publisher panicked"));
        called.and_then(|()| ended.try_for_each(|it| it))
    })
}

/// Consumes and acknowledges in all threads, beside a consumer that does not read.
pub(crate) fn consume_beside_one_that_does_not(connection: &Connection, run: &Run) -> Result<()> {
    let slow = connection.open_channel()?;
    slow.basic_qos(PREFETCH)?;
    let reads_nothing = slow.basic_consume(&run.queue(), ConsumeOptions::default())?;
    in_threads(connection, run)?;
    assert!(reads_nothing.unread() > 0);
    Ok(())
}
