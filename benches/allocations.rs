//! How often memory is asked for, a message: `cargo bench --bench allocations`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[allow(dead_code)] // Other programs need more of it.
#[path = "support/frames.rs"]
mod frames;
#[path = "support/sink.rs"]
mod sink;

use std::alloc::System;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use leveret::{Channel, Connection, ConsumeOptions, PublisherOptions};
use stats_alloc::{Region, StatsAlloc, INSTRUMENTED_SYSTEM};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const COUNT: usize = 200_000;
const BODY: [u8; 16] = [b'x'; 16];

fn main() {
    // The server in another process: its memory is not of interest.
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
    drop(server.stdin.take());
    server.wait().unwrap();
}

fn measure_all(uri: &str) {
    let connection = Connection::open(uri).unwrap();
    let open = || connection.open_channel().unwrap();
    let plain = open();
    measure("publish", || {
        for _ in 0..COUNT {
            plain.basic_publish("", "q", &BODY).unwrap();
        }
    });
    let window = PublisherOptions::default().window(256);
    let publisher = open().publisher_with(window).unwrap();
    measure("publisher, with a copy for a recovery", || {
        for _ in 0..COUNT {
            publisher.publish("", "q", &BODY).unwrap();
        }
        publisher.wait_for_confirms().unwrap();
    });
    let no_ack = ConsumeOptions::default().no_ack();
    measure("consume, no_ack", || {
        consume(&open(), no_ack.clone(), false)
    });
    measure("consume, each acknowledged", || {
        let channel = open();
        channel.basic_qos(200).unwrap();
        consume(&channel, ConsumeOptions::default(), true);
    });
}

fn consume(channel: &Channel, options: ConsumeOptions, acknowledges: bool) {
    let queue = format!("gen-16-{COUNT}");
    let consumer = channel.basic_consume(&queue, options).unwrap();
    for _ in 0..COUNT {
        let delivery = consumer.recv().unwrap().unwrap();
        if acknowledges {
            delivery.ack().unwrap();
        }
    }
}

fn measure(what: &str, act: impl Fn()) {
    // Once before, so that buffers have grown.
    act();
    let region = Region::new(ALLOCATOR);
    act();
    let change = region.change();
    let each = (change.allocations + change.reallocations) as f64 / COUNT as f64;
    println!("{what}: {each:.4} allocations a message");
}
