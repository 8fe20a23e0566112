//! Measures each path through a connection, with a fast server in this process:
//! `cargo bench -p leveret-benches --bench connection`. `perf_test` measures whole runs.

// Reads the clock, and stops at the first error.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing
)]

#[allow(dead_code)] // Other programs use the rest.
#[path = "support/frames.rs"]
mod frames;
#[path = "support/sink.rs"]
mod sink;

use std::time::Instant;

use criterion::{Criterion, Throughput};
use leveret::broker::Broker;
use leveret::{Channel, Connection, ConsumeOptions, PublisherOptions, QueueDeclareOptions};

use sink::Sink;

const BODY: &[u8] = &[b'x'; 16];

fn channel() -> Channel {
    let sink = Sink::start().unwrap();
    let connection = Connection::open(sink.uri()).unwrap();
    connection.open_channel().unwrap()
}

fn publish(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("publish");
    group.throughput(Throughput::Elements(1));
    let plain = channel();
    group.bench_function("without confirms", |bencher| {
        bencher.iter(|| plain.basic_publish("", "q", BODY).unwrap());
    });
    let confirmed = channel();
    confirmed.confirm_select().unwrap();
    let mut published = 0;
    group.bench_function("confirms, waiting after every 256", |bencher| {
        bencher.iter(|| {
            confirmed.basic_publish("", "q", BODY).unwrap();
            published += 1;
            if published % 256 == 0 {
                confirmed.wait_for_confirms().unwrap();
            }
        });
    });
    let window = PublisherOptions::default().window(256);
    let publisher = channel().publisher_with(window).unwrap();
    group.bench_function("publisher with a window of 256", |bencher| {
        bencher.iter(|| publisher.publish("", "q", BODY).unwrap());
    });
    group.bench_function("publisher, waiting for each confirm", |bencher| {
        bencher.iter(|| publisher.publish("", "q", BODY).unwrap().wait().unwrap());
    });
}

fn consume(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("consume");
    group.throughput(Throughput::Elements(1));
    for (name, acknowledges) in [("no_ack", false), ("each acknowledged", true)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                let channel = channel();
                channel.basic_qos(200).unwrap();
                let options = match acknowledges {
                    true => ConsumeOptions::default(),
                    false => ConsumeOptions::default().no_ack(true),
                };
                let queue = format!("gen-16-{count}");
                let begin = Instant::now();
                let consumer = channel.basic_consume(&queue, options).unwrap();
                for _ in 0..count {
                    let delivery = consumer.recv().unwrap().unwrap();
                    if acknowledges {
                        delivery.ack().unwrap();
                    }
                }
                begin.elapsed()
            });
        });
    }
}

fn call(criterion: &mut Criterion) {
    let channel = channel();
    criterion.bench_function("call", |bencher| {
        bencher.iter(|| channel.queue_declare_passive("q").unwrap());
    });
}

/// Measures what a test pays to start its own broker.
fn broker(criterion: &mut Criterion) {
    criterion.bench_function(
        "an in-memory broker, from its start to its end after one message",
        |bencher| {
            bencher.iter(|| {
                let broker = Broker::start().unwrap();
                let connection = Connection::open(broker.uri()).unwrap();
                let channel = connection.open_channel().unwrap();
                let queue = channel
                    .queue_declare("q", QueueDeclareOptions::temporary())
                    .unwrap();
                let consumer = queue.consume().unwrap();
                queue.publish(BODY).unwrap();
                consumer.recv().unwrap().unwrap().ack().unwrap();
                connection.close().unwrap();
            });
        },
    );
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    publish(&mut criterion);
    consume(&mut criterion);
    call(&mut criterion);
    broker(&mut criterion);
    criterion.final_summary();
}
