//! Counts allocations per message, and the memory that stays in use after a burst:
//! `cargo bench -p leveret-benches --bench allocations`.

// Sleeps until the connection has freed its buffers.
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

use std::alloc::System;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use leveret::{Channel, Connection, ConnectionOptions, ConsumeOptions, PublisherOptions};
use stats_alloc::{Region, StatsAlloc, INSTRUMENTED_SYSTEM};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const COUNT: usize = 200_000;
/// The connection frees its buffers after half of this without traffic.
const HEARTBEAT: Duration = Duration::from_secs(2);
const BODY: &[u8] = &[b'x'; 16];

fn main() {
    // The server runs in another process, so that its allocations are not counted.
    if std::env::args().any(|argument| argument == "sink") {
        println!("{}", sink::Sink::start().unwrap().uri());
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
        return;
    }
    let mut server = Command::new(std::env::current_exe().unwrap())
        .arg("sink")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut uri = String::new();
    let mut output = BufReader::new(server.stdout.take().unwrap());
    output.read_line(&mut uri).unwrap();
    measure_all(uri.trim());
    measure_what_is_kept(uri.trim());
    drop(server.stdin.take());
    server.wait().unwrap();
}

fn measure_all(uri: &str) {
    let connection = Connection::open(uri).unwrap();
    let open = || connection.open_channel().unwrap();
    let plain = open();
    measure("publish", || {
        for _ in 0..COUNT {
            plain.basic_publish("", "q", BODY).unwrap();
        }
    });
    let window = PublisherOptions::default().window(256);
    let publisher = open().publisher_with(window).unwrap();
    measure("publisher, with a copy for recovery", || {
        for _ in 0..COUNT {
            publisher.publish("", "q", BODY).unwrap();
        }
        publisher.wait_for_confirms().unwrap();
    });
    let no_ack = ConsumeOptions::default().no_ack(true);
    measure("consume, no_ack", || {
        consume(&open(), 16, COUNT, no_ack.clone(), false);
    });
    measure("consume, each acknowledged", || {
        let channel = open();
        channel.basic_qos(200).unwrap();
        consume(&channel, 16, COUNT, ConsumeOptions::default(), true);
    });
    connection.close().unwrap();
    connection.wait_closed(HEARTBEAT).unwrap();
}

fn consume(
    channel: &Channel,
    size: usize,
    count: usize,
    options: ConsumeOptions,
    acknowledges: bool,
) {
    let queue = format!("gen-{size}-{count}");
    let consumer = channel.basic_consume(&queue, options).unwrap();
    for _ in 0..count {
        let delivery = consumer.recv().unwrap().unwrap();
        if acknowledges {
            delivery.ack().unwrap();
        }
    }
}

/// Prints the memory of an idle connection before and after a burst of small and large messages.
fn measure_what_is_kept(uri: &str) {
    let region = Region::new(ALLOCATOR);
    let in_use = || {
        let change = region.change();
        change.bytes_allocated as isize - change.bytes_deallocated as isize
    };
    let options = ConnectionOptions::from_uri(uri).unwrap();
    let connection = Connection::open_with(options.heartbeat(HEARTBEAT)).unwrap();
    let channel = connection.open_channel().unwrap();
    let before = in_use();
    let publisher = channel.publisher().unwrap();
    for (size, count) in [(16, 200_000), (64 << 10, 2_000), (16 << 20, 4)] {
        let body = vec![b'x'; size];
        for _ in 0..count {
            publisher.publish("", "q", &body).unwrap();
        }
        publisher.wait_for_confirms().unwrap();
        let consuming = connection.open_channel().unwrap();
        let no_ack = ConsumeOptions::default().no_ack(true);
        consume(&consuming, size, count, no_ack, false);
        consuming.close().unwrap();
    }
    let after = in_use();
    thread::sleep(HEARTBEAT);
    let later = in_use();
    println!(
        "bytes in use by a connection: {before} at first, {after} after a burst, {later} when idle"
    );
}

fn measure(what: &str, act: impl Fn()) {
    // A first run lets the buffers grow.
    act();
    let region = Region::new(ALLOCATOR);
    act();
    let change = region.change();
    let each = (change.allocations + change.reallocations) as f64 / COUNT as f64;
    println!("{what}: {each:.4} allocations per message");
}
