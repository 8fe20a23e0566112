//! Moves messages from one queue to another: all of them, or at most COUNT.
//!
//!     cargo run --example move SOURCE TARGET [COUNT]
//!
//! The broker confirms each copy before the original is acknowledged. So no message is lost, even
//! if the broker is killed and restarted. After a lost connection, the target can have some
//! messages twice.
//!
//! Ends when the source has had no ready message for a second. If the target is missing or refuses
//! a message, the program fails. All messages that were not moved stay in the source, which must
//! not be a stream.
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.

use std::time::Duration;

use leveret::{
    Confirm, Connection, ConnectionOptions, Consumer, Delivery, Message, NackOptions,
    PublisherOptions, Result,
};

/// Largest number of messages in flight.
const BATCH: usize = 500;
/// How long to wait for messages before asking the broker whether the source is empty.
const IDLE: Duration = Duration::from_secs(1);
/// How long the program waits for a broker that is down.
const OUTAGE: Duration = Duration::from_secs(600);

fn main() -> Result<()> {
    env_logger::init();
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let count = arguments.get(2).map_or(Ok(usize::MAX), |it| it.parse());
    let (source, target, count) = match (&arguments[..], count) {
        ([source, target] | [source, target, _], Ok(count @ 1..)) if source != target => {
            (source, target, count)
        }
        _ => {
            eprintln!("usage: move SOURCE TARGET [COUNT]");
            std::process::exit(1);
        }
    };
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let options = ConnectionOptions::from_uri(&uri)?;
    let options = options.request_timeout(OUTAGE).publish_timeout(OUTAGE);
    let connection = Connection::open_with(options)?;
    let mut moved = 0;
    let result = move_messages(&connection, source, target, count, &mut moved);
    println!("moved {moved} messages from {source:?} to {target:?}");
    if connection.loss_count() > 0 {
        println!("the connection was lost: {target:?} may have some messages twice");
    }
    let closed = connection.close();
    result.and(closed)
}

fn move_messages(
    connection: &Connection,
    source: &str,
    target: &str,
    count: usize,
    moved: &mut usize,
) -> Result<()> {
    // A copy can make the broker close its channel. The originals need another channel.
    let channel = connection.open_channel()?;
    channel.queue_declare_passive(target)?;
    let options = PublisherOptions::default().mandatory(true);
    let publisher = channel.publisher_with(options.confirm_timeout(OUTAGE))?;
    let channel = connection.open_channel()?;
    // The broker sends up to one batch ahead. Batches of equal size end at COUNT. Otherwise, the
    // broker would send more messages, and a quorum queue can count each as a failed delivery.
    let size = count.div_ceil(count.div_ceil(BATCH));
    channel.basic_qos(size as u16)?;
    let consumer = channel.queue(source).consume()?;
    let mut result = Ok(());
    while *moved < count && result.is_ok() {
        let batch = consumer.recv_batch(size.min(count - *moved), IDLE)?;
        if batch.is_empty() {
            if is_empty(&consumer, source)? {
                break;
            }
            eprintln!("waiting for the messages of {source:?}");
        }
        let publish = |original| publisher.publish("", target, copy(original)?);
        let copies: Vec<_> = batch.iter().map(publish).collect();
        // Each copy reports its own failure below, without a further wait.
        let _ = publisher.wait_for_confirms_timeout(OUTAGE);
        let outcome = |it: Result<Confirm>| it?.wait_timeout(Duration::ZERO);
        let outcomes: Vec<_> = copies.into_iter().map(outcome).collect();
        if *moved + batch.len() == count || outcomes.iter().any(Result::is_err) {
            consumer.cancel()?; // otherwise, the broker sends more messages
        }
        // One acknowledgement for many messages. Many acknowledgements can be lost in RabbitMQ when
        // the channel closes after them: with a prefetch above 32, a quorum queue gets them late.
        let settled: Vec<_> = batch.iter().zip(outcomes).collect();
        for run in settled.chunk_by(|one, next| one.1.is_ok() == next.1.is_ok()) {
            match run.last() {
                Some((original, Ok(()))) => {
                    original.ack_multiple()?;
                    *moved += run.len();
                }
                Some((original, Err(error))) => {
                    eprintln!("{target:?} refused {} messages: is it full?", run.len());
                    original.nack(NackOptions::requeue().multiple(true))?;
                    result = result.and(Err(error.clone()));
                }
                None => {}
            }
        }
    }
    result
}

/// Asks the broker whether the source is empty: a lost connection brings no messages, either.
fn is_empty(consumer: &Consumer, source: &str) -> Result<bool> {
    let channel = consumer.channel();
    match channel.queue_declare_passive(source) {
        // A quorum queue without a leader has "no messages", but then not even this consumer.
        Ok(queue) if queue.consumer_count() == Some(0) => Ok(false),
        // Messages that the broker sent before its reply are now unread.
        Ok(queue) => Ok(queue.message_count() == Some(0) && consumer.unread() == 0),
        Err(error) if error.is_connection_end() && channel.connection().is_open() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The copy is persistent, and its time until `expiration` begins anew. It has no `CC` and `BCC`,
/// which would route it to other queues, no `user_id`, which must be the connection's user, and no
/// delivery counts of the source.
fn copy(original: &Delivery) -> Result<Message<'_>> {
    let mut properties = original.properties()?.clone().persistent(true);
    properties.user_id = None;
    if let Some(headers) = &mut properties.headers {
        for name in ["CC", "BCC", "x-delivery-count", "x-acquired-count"] {
            headers.remove(name);
        }
    }
    Ok(Message::new(original.body()).with_properties(properties))
}
