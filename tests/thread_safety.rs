//! Many threads on one connection and on one channel.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::thread;

use leveret::{Channel, ConsumeOptions};

use crate::support::{channel, exclusive_queue, SOON};

const THREADS: usize = 8;
const MESSAGES: u32 = 100_000;

/// 8 threads publish 100,000 messages each through these channels; all arrive once, in the order of
/// each thread.
fn publish_and_count(channels: Vec<Channel>) {
    let receiving = channel();
    let queue = receiving
        .queue_declare(
            &crate::support::unique("q"),
            leveret::QueueDeclareOptions::default().auto_delete(true),
        )
        .unwrap();
    let consumer = queue
        .consume_with(ConsumeOptions::default().no_ack(true))
        .unwrap();
    let publishers: Vec<_> = channels
        .into_iter()
        .enumerate()
        .map(|(thread, channel)| {
            let name = queue.name().to_owned();
            thread::spawn(move || {
                for number in 0..MESSAGES {
                    let mut body = [0; 8];
                    body[..4].copy_from_slice(&(thread as u32).to_be_bytes());
                    body[4..].copy_from_slice(&number.to_be_bytes());
                    channel.basic_publish("", &name, body).unwrap();
                }
            })
        })
        .collect();
    let mut next = [0_u32; THREADS];
    for _ in 0..THREADS as u32 * MESSAGES {
        let delivery = consumer
            .recv_timeout(SOON)
            .unwrap()
            .expect("all messages come");
        let body: [u8; 8] = delivery.body().try_into().unwrap();
        let thread = u32::from_be_bytes([body[0], body[1], body[2], body[3]]) as usize;
        let number = u32::from_be_bytes([body[4], body[5], body[6], body[7]]);
        assert_eq!(number, next[thread], "thread {thread} keeps its order");
        next[thread] += 1;
    }
    assert_eq!(next, [MESSAGES; THREADS]);
    assert!(consumer.try_recv().unwrap().is_none());
    for publisher in publishers {
        publisher.join().unwrap();
    }
}

#[test]
fn eight_threads_publish_on_their_own_channels_and_on_a_shared_one() {
    let first = channel();
    let connection = first.connection();
    let own = (0..THREADS)
        .map(|_| connection.open_channel().unwrap())
        .collect();
    publish_and_count(own);
    publish_and_count(vec![first.clone(); THREADS]);
}

#[test]
fn concurrent_publishing_keeps_sequence_numbers_correct() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_select().unwrap();
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let queue = queue.clone();
            thread::spawn(move || {
                let numbers = (0..1000).map(|_| queue.publish("m").unwrap().unwrap());
                numbers.collect::<Vec<_>>()
            })
        })
        .collect();
    let mut numbers: Vec<_> = threads
        .into_iter()
        .flat_map(|it| it.join().unwrap())
        .collect();
    channel.wait_for_confirms().unwrap();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=8000).collect::<Vec<_>>());
}

#[test]
fn calls_of_many_threads_on_one_channel_get_their_own_replies() {
    let channel = channel();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let channel = channel.clone();
            thread::spawn(move || {
                for round in 0..100 {
                    let name = crate::support::unique(&format!("q{thread}-{round}"));
                    let options = leveret::QueueDeclareOptions::temporary();
                    assert_eq!(channel.queue_declare(&name, options).unwrap().name(), name);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn handles_can_be_shared_and_outlive_a_panic() {
    fn check<T: Send + Sync + UnwindSafe + RefUnwindSafe + 'static>() {}
    check::<leveret::Connection>();
    check::<Channel>();
    check::<leveret::Exchange>();
    check::<leveret::Queue>();
    check::<leveret::Consumer>();
    check::<leveret::consumer::IntoIter>();
    check::<leveret::Delivery>();
    check::<leveret::Publisher>();
    check::<leveret::Confirm>();
    check::<leveret::Workers>();
    check::<leveret::RpcClient>();
    check::<leveret::RpcServer>();
    check::<leveret::broker::Broker>();
    // Data.
    check::<leveret::Error>();
    check::<leveret::ReturnedMessage>();
    check::<leveret::ConnectionEvent>();
    check::<leveret::PublishOutcome>();
    check::<leveret::WorkersStatus>();
    check::<leveret::Message>();
    check::<leveret::ConnectionOptions>();
    check::<leveret::RecoveryOptions>();
    check::<leveret::TlsOptions>();
    check::<leveret::WorkerOptions>();
}
