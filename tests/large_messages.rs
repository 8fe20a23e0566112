//! Messages of many frames: they arrive whole and in order, and do not hold up other channels.

use std::thread;

use crossbeam_channel::bounded;
use leveret::{AckMode, Connection, ConsumeOptions, ErrorKind, ReplyCode};

use crate::support::{at, connect, exclusive_queue, options, scripted_server, SOON};

const MIB: usize = 1 << 20;

#[test]
fn a_huge_message_does_not_hold_up_other_channels() {
    const HUGE: usize = 64 * MIB;
    let (go_on, may_go_on) = bounded(0);
    let (address, server) = scripted_server(move |server| {
        server.handshake(0);
        server.open_channel();
        server.open_channel();
        may_go_on.recv().unwrap();
        // The body comes on channel 1, and the small message on channel 2 between its frames.
        let mut body = 0;
        loop {
            let frame = server.next_frame();
            match (frame.channel, frame.kind) {
                (1, 3) => body += frame.payload.len(),
                (2, _) => break assert_eq!(frame.method(), Some((60, 40))),
                (channel, _) => assert_eq!(channel, 1),
            }
        }
        assert!(
            body < HUGE / 2,
            "{body} bytes of the body came before the small message"
        );
        for kind in [2, 3] {
            let frame = server.next_frame();
            assert_eq!((frame.channel, frame.kind), (2, kind));
        }
        // The next method on channel 1 follows the whole body.
        while body < HUGE {
            let frame = server.next_frame();
            assert_eq!(frame.channel, 1);
            assert_ne!(frame.method(), Some((60, 10)));
            body += if frame.kind == 3 {
                frame.payload.len()
            } else {
                0
            };
        }
        let frame = server.next_frame();
        assert_eq!((frame.channel, frame.method()), (1, Some((60, 10))));
        server.send_method(1, 60, 11, b"");
    });
    let options = at(address);
    let connection = Connection::open_with(&options).unwrap();
    let publishing = connection.open_channel().unwrap();
    let other = connection.open_channel().unwrap();
    publishing.basic_publish("", "q", vec![1; HUGE]).unwrap();
    other.basic_publish("", "q", "small").unwrap();
    go_on.send(()).unwrap();
    publishing.basic_qos(1).unwrap();
    drop((other, publishing, connection));
    server.join().unwrap();
}

#[test]
fn messages_of_all_sizes_keep_their_order_on_a_channel() {
    const SIZES: [usize; 8] = [1, 300_000, 2, 5 * MIB, 0, 200_000, 3 * MIB, 3];
    let connection = connect();
    // Two channels at once, so that their large messages interleave.
    let threads = [3_u8, 5].map(|seed| {
        let channel = connection.open_channel().unwrap();
        let queue = exclusive_queue(&channel);
        thread::spawn(move || {
            let consumer = queue
                .consume_with(ConsumeOptions::default().no_ack(true))
                .unwrap();
            let bodies = SIZES.map(|size| {
                let body: Vec<u8> = (0..size).map(|at| (at % 251) as u8 ^ seed).collect();
                queue.publish(&body).unwrap();
                body
            });
            for body in bodies {
                let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
                assert!(delivery.body() == body, "{} bytes", body.len());
            }
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn messages_of_threads_that_share_a_channel_do_not_mix() {
    const THREADS: usize = 4;
    const MESSAGES: usize = 60;
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consuming = connection.open_channel().unwrap();
    let consumer = consuming
        .basic_consume(queue.name(), ConsumeOptions::default().no_ack(true))
        .unwrap();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let queue = queue.clone();
            thread::spawn(move || {
                for number in 0..MESSAGES {
                    let mut body = vec![thread as u8; 2 + number * 37_777 % 900_000];
                    body[1] = number as u8;
                    queue.publish(body).unwrap();
                }
            })
        })
        .collect();
    let mut next = [0; THREADS];
    for _ in 0..THREADS * MESSAGES {
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        let body = delivery.body();
        let thread = usize::from(body[0]);
        let number = next[thread];
        assert_eq!(usize::from(body[1]), number, "thread {thread}");
        assert_eq!(body.len(), 2 + number * 37_777 % 900_000);
        assert!(body[2..].iter().all(|&byte| byte == body[0]));
        next[thread] += 1;
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn closing_waits_until_a_large_message_is_sent() {
    let keeper = connect().open_channel().unwrap();
    for whole_connection in [false, true] {
        let name = crate::support::unique("large");
        let auto_delete = leveret::QueueDeclareOptions::default().auto_delete(true);
        let queue = keeper.queue_declare(&name, auto_delete).unwrap();
        let consumer = queue
            .consume_with(ConsumeOptions::default().no_ack(true))
            .unwrap();
        let connection = connect();
        let channel = connection.open_channel().unwrap();
        channel.basic_publish("", &name, vec![9; 12 * MIB]).unwrap();
        if whole_connection {
            connection.close().unwrap();
        } else {
            channel.close().unwrap();
        }
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(delivery.body().len(), 12 * MIB);
    }
}

#[test]
fn the_largest_message_arrives_and_a_larger_one_gets_the_brokers_error() {
    let connection = Connection::open_with(options().max_message_size(1 << 40)).unwrap();
    // RabbitMQ's defaults.
    let properties = connection.server_properties();
    let version = properties.get("version");
    let limit = match version.and_then(|version| version.as_str()) {
        Some(version) if version.starts_with('3') => 128 * MIB,
        _ => 16 * MIB,
    };
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.confirm_select().unwrap();
    queue.publish(vec![7; limit]).unwrap();
    channel.wait_for_confirms().unwrap();
    let message = queue.get_with(AckMode::Automatic).unwrap().unwrap();
    assert!(message.body().len() == limit && message.body().iter().all(|&byte| byte == 7));
    drop(message);

    queue.publish(vec![7; limit + 1]).unwrap();
    let error = channel.wait_for_confirms().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ChannelClosed { .. }),
        "{error}"
    );
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
    let text = format!(
        "message size {} is larger than configured max size {limit}",
        limit + 1
    );
    assert!(error.to_string().contains(&text), "{error}");
    // Only the channel was closed.
    exclusive_queue(&connection.open_channel().unwrap());
}
