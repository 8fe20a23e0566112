//! Consumers that do not keep up: how much memory the program takes, and what still works
//! meanwhile.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use leveret::{
    AckMode, Connection, ConnectionOptions, ConsumeOptions, PublisherOptions, QueueDeclareOptions,
};

use crate::support::{
    connect, content_frames, eventually, exclusive_queue, method_frame, options, ready,
    resident_kib, scripted_server, short, unique, url, Script, SOON,
};

const MIB: usize = 1 << 20;
const BODY: usize = 120 << 10;
/// In seconds.
const HEARTBEAT: u8 = 2;
/// Quiet and calling take six intervals in all. A broker drops a client after two without a
/// heartbeat.
const QUIET_FOR: Duration = Duration::from_secs(6);
const CALLING_FOR: Duration = Duration::from_secs(6);
/// The limit of unread bytes, what exceeds it while calls wait for replies, and the program itself.
const MAX_MEMORY: usize = (64 + 20 + 16) * MIB;

#[test]
fn a_slow_consumer_of_a_gigabyte_takes_little_memory_and_stays_connected() {
    const COUNT: usize = (1 << 30) / BODY;
    let channel = connect().open_channel().unwrap();
    let name = unique("gigabyte");
    // A lazy queue, so that the broker needs no gigabyte of memory.
    let queue = channel
        .queue_declare(&name, QueueDeclareOptions::default().lazy(true))
        .unwrap();
    let publisher = channel.publisher().unwrap();
    for number in 0..COUNT {
        publisher.publish("", &name, body(number)).unwrap();
    }
    publisher.wait_for_confirms().unwrap();
    watch_slow_consumer(&url(), &name, COUNT);
    queue.delete().unwrap();
}

#[test]
fn a_slow_consumer_of_a_server_that_sends_ten_gigabytes_takes_little_memory() {
    const COUNT: usize = (10 << 30) / BODY;
    let (address, server) = scripted_server(|server| send_without_end(server, COUNT));
    watch_slow_consumer(&format!("amqp://{address}"), "endless", COUNT);
    server.join().unwrap();
}

/// Sends this many messages as fast as the socket takes them, with replies to the client's calls in
/// between. Fails if the client is silent for two heartbeat intervals.
fn send_without_end(server: &mut Script, count: usize) {
    server.handshake(HEARTBEAT);
    server.open_channel();
    server.open_channel();
    let mut reading = server.another();
    reading.set_patience(2 * Duration::from_secs(HEARTBEAT.into()));
    let (answers, to_be_sent) = unbounded();
    let reader = thread::spawn(move || loop {
        let frame = reading.next_frame();
        let answer = match frame.method() {
            None => continue,
            Some((50, 10)) => {
                let answer = [&short("endless")[..], &[0; 8]].concat();
                method_frame(frame.channel, 50, 11, &answer)
            }
            Some((20, 40)) => method_frame(frame.channel, 20, 41, b""),
            Some((60, 20)) => method_frame(frame.channel, 60, 21, &short("slow")),
            Some((10, 50)) => return reading.send_method(0, 10, 51, b""),
            Some(other) => panic!("{other:?}"),
        };
        answers.send(answer).unwrap();
    });
    server.send(&to_be_sent.recv().unwrap());
    for number in 0..count {
        let tag = (number as u64 + 1).to_be_bytes();
        let deliver = [
            &short("slow")[..],
            &tag,
            &[0],
            &short(""),
            &short("endless"),
        ]
        .concat();
        server.send(&method_frame(1, 60, 60, &deliver));
        server.send(&content_frames(1, &body(number)));
        for answer in to_be_sent.try_iter() {
            server.send(&answer);
        }
    }
    for answer in to_be_sent {
        server.send(&answer);
    }
    reader.join().unwrap();
}

fn body(number: usize) -> Vec<u8> {
    let mut body = vec![0; BODY];
    body[..8].copy_from_slice(&number.to_be_bytes());
    body
}

/// Runs [`slow_consumer`] in its own process, and measures how much memory that process takes.
fn watch_slow_consumer(url: &str, queue: &str, count: usize) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "memory_use::slow_consumer",
            "--ignored",
            "--nocapture",
        ])
        .env("SLOW_CONSUMER", format!("{url} {queue} {count}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id().to_string();
    let mut most = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        most = most.max(resident_kib(&pid).unwrap_or(0) << 10);
        thread::sleep(Duration::from_millis(20));
    };
    let mut said = String::new();
    child.stdout.unwrap().read_to_string(&mut said).unwrap();
    assert!(status.success(), "{said}");
    println!("{said}at most {} MiB", most / MIB);
    assert!(most > 32 * MIB, "{most} bytes cannot be right");
    assert!(most < MAX_MEMORY, "{} MiB", most / MIB);
}

/// Takes one message and is quiet for a while. Then takes few messages, and makes one call after
/// the other. Then takes the rest.
#[test]
#[ignore = "run by other tests of this module, in its own process"]
fn slow_consumer() {
    let task = std::env::var("SLOW_CONSUMER").unwrap();
    let [url, queue, count] = task.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{task}");
    };
    let options = ConnectionOptions::from_uri(url)
        .unwrap()
        .heartbeat(Duration::from_secs(HEARTBEAT.into()));
    let connection = Connection::open_with(&options).unwrap();
    let consuming = connection.open_channel().unwrap();
    let calling = connection.open_channel().unwrap();
    let options = ConsumeOptions::default().no_ack(true).consumer_tag("slow");
    let consumer = consuming.basic_consume(queue, options).unwrap();
    let mut next = 0;
    let mut take = || {
        let delivery = consumer.recv().unwrap().unwrap();
        assert_eq!(delivery.body(), body(next), "all messages come in order");
        next += 1;
        next
    };
    take();
    thread::sleep(QUIET_FOR);
    let begin = Instant::now();
    let calls = thread::spawn({
        let queue = queue.to_owned();
        move || {
            let mut latencies = Vec::new();
            while begin.elapsed() < CALLING_FOR {
                let begin = Instant::now();
                calling.queue_declare_passive(&queue).unwrap();
                latencies.push(begin.elapsed());
                thread::sleep(Duration::from_millis(100));
            }
            latencies
        }
    });
    while begin.elapsed() < CALLING_FOR {
        take();
        thread::sleep(Duration::from_millis(50));
    }
    let latencies = calls.join().unwrap();
    println!("calls were answered in {latencies:.1?}");
    assert!(connection.is_open());
    while take() < count.parse().unwrap() {}
    connection.close().unwrap();
}

#[test]
fn calls_are_answered_while_consumers_do_not_read() {
    const COUNT: u32 = 1000;
    let options = options().max_unread_bytes(1 << 20);
    let connection = Connection::open_with(&options).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    for number in 0..COUNT {
        queue.publish(body(number as usize)).unwrap();
    }
    eventually("all messages are in the queue", || {
        ready(&channel, queue.name()) == COUNT
    });
    let consumer = queue
        .consume_with(ConsumeOptions::default().no_ack(true))
        .unwrap();
    let mut others = connection.open_channel().unwrap();
    let other = exclusive_queue(&others);
    // Waits for a confirm, room in the window, all confirms, a message, and a close.
    let publisher = others
        .publisher_with(PublisherOptions::default().window(1))
        .unwrap();
    publisher
        .publish("", other.name(), "1")
        .unwrap()
        .wait()
        .unwrap();
    publisher.publish("", other.name(), "2").unwrap();
    publisher.publish("", other.name(), "3").unwrap();
    publisher.wait_for_confirms().unwrap();
    others.wait_for_confirms().unwrap();
    assert_eq!(
        other.get_with(AckMode::Automatic).unwrap().unwrap().body(),
        b"1"
    );
    others.close().unwrap();
    others = connection.open_channel().unwrap();
    assert!(others.is_open());
    let unread = consumer.unread();
    assert!(
        (1..COUNT as usize).contains(&unread),
        "{unread} messages are unread"
    );
    for number in 0..COUNT {
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(delivery.body(), body(number as usize));
    }
    connection.close().unwrap();
}

/// Runs in its own process, whose allocator returns large free blocks to the system.
#[cfg(target_os = "linux")]
#[test]
fn memory_of_a_burst_is_released_when_the_connection_is_idle() {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory_use::a_burst", "--ignored"])
        .env("AMQP_URL", url())
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "run by the test above, in its own process"]
fn a_burst() {
    const CONNECTIONS: usize = 10;
    let options = options().heartbeat(Duration::from_secs(2));
    let open = || {
        let connection = Connection::open_with(&options).unwrap();
        connection.open_channel().unwrap()
    };
    let channels: Vec<_> = (0..CONNECTIONS).map(|_| open()).collect();
    let grown_by = {
        let resident = || resident_kib("self").unwrap();
        let before = resident();
        move || resident().saturating_sub(before) / CONNECTIONS
    };
    for channel in &channels {
        for _ in 0..2_000 {
            // No queue is bound, and the bodies are so large that the outbox fills faster than a
            // socket drains.
            channel.basic_publish("amq.fanout", "", [0; 4_000]).unwrap();
        }
    }
    let burst = grown_by();
    assert!(
        burst > 500,
        "{burst} KiB a connection is not much of a burst"
    );
    for channel in &channels {
        channel.basic_qos(1).unwrap();
    }
    eventually("the memory is given back", || grown_by() < 100);
}
