//! Runs producers and consumers against a broker, as PerfTest does.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use leveret::{
    Channel, Confirm, Connection, ConnectionOptions, ConsumeOptions, Delivery, ErrorKind, Message,
    Properties, PublisherOptions, QueueDeclareOptions, QueueDeleteOptions, Result,
};

use crate::bench::{Client, Figure, Latencies};
use crate::options::{Flag, Options};
use crate::tally::{count, percentiles, Counts, Tally};
use crate::usage::{cpu_of, usage};

/// The bytes of a body with the time of its publish in nanoseconds. In the four bytes before them,
/// PerfTest has a number.
const SENT_AT: std::ops::Range<usize> = 4..12;
/// How often a thread adds its latencies to the tally.
const HAND_OVER: Duration = Duration::from_millis(200);
/// How often a thread checks whether the run is over.
const LOOK: Duration = Duration::from_millis(100);

struct Load<'a> {
    options: &'a Options,
    queue: String,
    tally: Tally,
    begin: Instant,
    is_over: AtomicBool,
    server_cpu_before: Option<Duration>,
}

pub(crate) fn run(options: &Options) -> std::result::Result<(), Box<dyn Error>> {
    let connect = |name: &str| {
        let uri = ConnectionOptions::from_uri(&options.uri)?;
        Connection::open_with(uri.connection_name(format!("perf_test {name}")))
    };
    let first = connect("queue")?;
    let declaring = first.open_channel()?;
    let queue = declare(&declaring, options)?;
    let load = Load {
        options,
        queue,
        tally: Tally::default(),
        begin: Instant::now(),
        is_over: AtomicBool::new(false),
        server_cpu_before: options.server_pid.and_then(cpu_of),
    };
    let connection = |name: &str| match options.shared_connection {
        true => Ok(first.clone()),
        false => connect(name),
    };
    thread::scope(|scope| -> Result<()> {
        let mut threads = Vec::new();
        for number in 0..options.consumers {
            let connection = connection(&format!("consumer {number}"))?;
            for _ in 0..options.consumer_channel_count {
                let channel = connection.open_channel()?;
                let load = &load;
                threads.push(scope.spawn(move || load.consume(&channel)));
            }
        }
        for number in 0..options.producers {
            let connection = connection(&format!("producer {number}"))?;
            for _ in 0..options.producer_channel_count {
                let channel = connection.open_channel()?;
                let load = &load;
                threads.push(scope.spawn(move || load.produce(&channel)));
            }
        }
        load.tell_until(|| threads.iter().all(|it| it.is_finished()));
        load.is_over.store(true, Ordering::Relaxed);
        let mut ended = threads.into_iter().map(|it| it.join().unwrap());
        ended.try_for_each(|it| it)
    })?;
    load.summarize();
    if options.queue.is_none() {
        // The queue is auto-delete, but that takes a consumer.
        declaring.queue_delete(&load.queue, QueueDeleteOptions::default())?;
    }
    Ok(())
}

fn declare(channel: &Channel, options: &Options) -> Result<String> {
    let (name, declare) = match &options.queue {
        Some(name) if channel.connection().queue_exists(name)? => {
            (name.as_str(), QueueDeclareOptions::default().passive(true))
        }
        Some(name) => (name.as_str(), QueueDeclareOptions::default()),
        None => ("", QueueDeclareOptions::default().auto_delete(true)),
    };
    let queue = channel.queue_declare(name, declare)?;
    Ok(queue.name().to_owned())
}

impl Load<'_> {
    fn server_cpu(&self) -> Option<Duration> {
        self.options.server_pid.and_then(cpu_of)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Prints the rates once per interval, until the time is up or `has_ended` returns true.
    fn tell_until(&self, has_ended: impl Fn() -> bool) {
        let limit = self.options.time.map_or(Duration::MAX, Duration::from_secs);
        let interval = Duration::from_secs(self.options.interval.max(1));
        let (mut before, mut told_at) = (Counts::default(), self.begin);
        while !has_ended() && self.begin.elapsed() < limit {
            thread::sleep(LOOK / 2);
            let took = told_at.elapsed();
            if took < interval {
                continue;
            }
            let counts = self.tally.counts();
            let rates = counts.rates(&before, took, self.options.confirm.is_some());
            let latency = self.tally.recent_latency();
            let latency = latency.map_or(String::new(), |it| format!(", {it}"));
            let time = self.begin.elapsed().as_secs_f64();
            println!("time {time:.1} s, {rates}{latency}");
            (before, told_at) = (counts, Instant::now());
        }
    }

    fn summarize(&self) {
        let Options {
            size,
            confirm,
            json,
            ..
        } = self.options;
        let wall = self.begin.elapsed();
        let counts = self.tally.counts();
        let latencies = self.tally.take_latencies();
        let rates = counts.rates(&Counts::default(), wall, confirm.is_some());
        let latency = percentiles(&latencies).map_or(String::new(), |it| format!(", {it}"));
        println!(
            "on average over {:.1} s, {rates}{latency}",
            wall.as_secs_f64()
        );
        if !json {
            return;
        }
        let used = usage();
        let server_cpu = self
            .server_cpu()
            .zip(self.server_cpu_before)
            .map(|(after, before)| after - before);
        let threads = self.options.producer_channels() + self.options.consumer_channels();
        let figure = Figure {
            client: Client::Leveret,
            mode: "load".to_owned(),
            size: *size,
            threads: threads.into(),
            count: counts.published.max(counts.received),
            wall,
            cpu: used.cpu,
            max_rss_kb: used.max_rss_kb,
            latencies: (!latencies.0.is_empty()).then_some(&latencies),
            rss_each: None,
            server_cpu,
        };
        println!("{}", figure.line());
    }

    // ---- producers ----

    fn produce(&self, channel: &Channel) -> Result<()> {
        let mut body = vec![0; self.options.size];
        let mut properties = Properties::default();
        if self.options.has(Flag::Persistent) {
            properties = properties.persistent(true);
        }
        let window = self.options.confirm.map(|it| it.max(1));
        let publisher = window
            .map(|window| channel.publisher_with(PublisherOptions::default().window(window)))
            .transpose()?;
        let mut confirms = VecDeque::new();
        let limit = self.options.pmessages.unwrap_or(u64::MAX);
        let mut due = self.begin;
        for _ in 0..limit {
            if self.is_over() {
                break;
            }
            if let Some(pause) = self.options.pause() {
                due += pause;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            if let Some(place) = body.get_mut(SENT_AT) {
                let nanoseconds = self.begin.elapsed().as_nanos() as u64;
                place.copy_from_slice(&nanoseconds.to_be_bytes());
            }
            let mut message = Message::new(&body).with_properties(properties.clone());
            if self.options.has(Flag::Mandatory) {
                message = message.mandatory(true);
            }
            count(&self.tally.published);
            match &publisher {
                Some(publisher) => {
                    confirms.push_back(publisher.publish("", &self.queue, message)?);
                    self.take_confirmed(&mut confirms, window)?;
                }
                None => drop(channel.basic_publish("", &self.queue, message)?),
            }
        }
        self.take_confirmed(&mut confirms, Some(0))?;
        // When the broker answers this, it has all messages.
        channel.connection().queue_exists(&self.queue).map(drop)
    }

    /// Counts outcomes, and waits until at most `most` messages are unconfirmed.
    fn take_confirmed(&self, confirms: &mut VecDeque<Confirm>, most: Option<u32>) -> Result<()> {
        let most = most.unwrap_or_default() as usize;
        while let Some(oldest) = confirms.front() {
            let answered = match oldest.try_wait() {
                Ok(None) if confirms.len() > most => oldest.wait(),
                Ok(None) => return Ok(()),
                answered => answered.map(drop),
            };
            confirms.pop_front();
            match answered {
                Ok(()) => count(&self.tally.confirmed),
                Err(error) => match error.kind() {
                    ErrorKind::Nacked { .. } => count(&self.tally.nacked),
                    ErrorKind::Returned(_) => count(&self.tally.returned),
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    // ---- consumers ----

    fn consume(&self, channel: &Channel) -> Result<()> {
        let options = match self.options.autoack {
            true => ConsumeOptions::default().no_ack(true),
            false => ConsumeOptions::default(),
        };
        if self.options.qos > 0 {
            channel.basic_qos(self.options.qos)?;
        }
        let consumer = channel.basic_consume(&self.queue, options)?;
        let (mut latencies, mut handed_over) = (Latencies::default(), Instant::now());
        let (mut taken, mut unacknowledged) = (0, Vec::new());
        let limit = self.options.cmessages.unwrap_or(u64::MAX);
        let all_published = self
            .options
            .pmessages
            .map(|it| it * u64::from(self.options.producer_channels()));
        while taken < limit && !self.is_over() {
            if handed_over.elapsed() > HAND_OVER {
                self.tally.add(&mut latencies);
                handed_over = Instant::now();
            }
            let Some(delivery) = consumer.recv_timeout(LOOK)? else {
                let received = self.tally.received.load(Ordering::Relaxed);
                // No more messages will arrive.
                if consumer.has_ended() || all_published.is_some_and(|all| received >= all) {
                    break;
                }
                continue;
            };
            taken += 1;
            count(&self.tally.received);
            if let Some(sent_at) = delivery.body().get(SENT_AT) {
                let sent_at = u64::from_be_bytes(sent_at.try_into().unwrap());
                let now = self.begin.elapsed().as_nanos() as u64;
                latencies.record(Duration::from_nanos(now.saturating_sub(sent_at)));
            }
            if self.options.autoack {
                continue;
            }
            if self.options.multi_ack_every <= 1 {
                delivery.ack()?;
                continue;
            }
            unacknowledged.push(delivery);
            if unacknowledged.len() >= self.options.multi_ack_every as usize {
                acknowledge_all(&mut unacknowledged)?;
            }
        }
        acknowledge_all(&mut unacknowledged)?;
        self.tally.add(&mut latencies);
        consumer.cancel()
    }
}

fn acknowledge_all(deliveries: &mut Vec<Delivery>) -> Result<()> {
    if let Some(last) = deliveries.pop() {
        last.ack_multiple()?;
    }
    deliveries.clear();
    Ok(())
}
