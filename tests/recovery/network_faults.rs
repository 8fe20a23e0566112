//! Network faults of every kind, at every step of a handshake and a recovery.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use leveret::{
    AckMode, Connection, ConnectionEvent, ConsumeOptions, ErrorKind, FieldTable, PublisherOptions,
    QueueDeclareOptions,
};

use crate::support::proxy::{Direction, Fault, Plan, Proxy};
use crate::support::{channel, eventually, unique, url, SOON};

const SEEDS: u64 = 100;
const THREADS: u64 = 10;
const MESSAGES: usize = 30;
/// More bytes than the handshake, the declarations and the republished messages have together.
const STEPS: u64 = 1500;

/// Pseudo-random numbers that depend only on the seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn plan(&mut self) -> Plan {
        let faults = [
            Fault::Cut,
            Fault::Stall,
            Fault::HalfClose,
            Fault::Drop,
            Fault::Corrupt,
            Fault::Delay,
        ];
        let directions = [Direction::ToBroker, Direction::ToClient];
        Plan {
            fault: faults[self.below(faults.len() as u64) as usize],
            direction: directions[self.below(2) as usize],
            after: self.below(STEPS) as usize,
        }
    }
}

#[test]
fn no_fault_at_any_step_loses_messages_or_blocks_forever() {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= SEEDS {
                    return;
                }
                break_connection(seed);
            });
        }
    });
}

/// Loses a connection, and breaks the next one.
fn break_connection(seed: u64) {
    let plan = Random(seed).plan();
    let begin = Instant::now();
    let told = format!("seed {seed}: {plan:?}");
    let proxy = Proxy::start(&url());
    // Within this timeout, an intact broker must answer, while nine other threads work.
    let short = Duration::from_secs(3);
    let options = proxy
        .options()
        .heartbeat(Duration::from_secs(1))
        .connect_timeout(short)
        .request_timeout(short)
        .publish_timeout(SOON);
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    // The queue survives all connections, and expires soon afterwards.
    let options = QueueDeclareOptions::default().expires(Duration::from_secs(60));
    let declaring = connection.open_channel().unwrap();
    let queue = declaring.queue_declare(&unique("q"), options).unwrap();
    declaring
        .queue_bind(queue.name(), "amq.direct", queue.name(), FieldTable::new())
        .unwrap();
    let consuming = connection.open_channel().unwrap();
    consuming.basic_qos(5).unwrap();
    let consumer = consuming
        .basic_consume(queue.name(), ConsumeOptions::default())
        .unwrap();
    let publisher = declaring
        .publisher_with(PublisherOptions::default().window(10))
        .unwrap();

    proxy.plan(plan);
    let publishing = thread::spawn({
        let exchange = "amq.direct";
        let routing_key = queue.name().to_owned();
        move || {
            let mut confirmed = 0;
            let publish = |number: usize| {
                let body = number.to_string();
                let confirm = publisher.publish(exchange, &routing_key, body)?;
                confirm.wait_timeout(SOON)?;
                confirmed += 1;
                Ok::<_, leveret::Error>(())
            };
            let published = (0..MESSAGES).try_for_each(publish);
            (confirmed, published)
        }
    });
    proxy.cut();
    let mut missing: Vec<_> = (0..MESSAGES)
        .map(|number| number.to_string().into_bytes())
        .collect();
    let mut changed = 0;
    let consumed = loop {
        match consumer.recv_timeout(Duration::from_millis(50)) {
            Ok(Some(delivery)) => {
                changed += usize::from(number_of(delivery.body()).is_none());
                missing.retain(|it| it != delivery.body());
                if let Err(error) = delivery.ack() {
                    break Err(error);
                }
            }
            Ok(None) if missing.is_empty() => break Ok(()),
            Ok(None) => assert!(
                begin.elapsed() < 2 * SOON,
                "{told}: {missing:?} are missing, {:?}",
                events.try_iter().collect::<Vec<_>>()
            ),
            Err(error) => break Err(error),
        }
        // A changed byte may belong to a message or a prefetch: then the message never comes.
        if plan.fault == Fault::Corrupt && begin.elapsed() > SOON / 4 {
            break Ok(());
        }
    };
    let (confirmed, published) = publishing.join().unwrap();
    if plan.fault != Fault::Corrupt {
        published.unwrap_or_else(|error| panic!("{told}: {error}"));
        consumed.unwrap_or_else(|error| panic!("{told}: {error}"));
        assert!(connection.stats().recoveries > 0, "{told}");
    }
    let lost = events
        .try_iter()
        .filter(|it| matches!(it, ConnectionEvent::Lost { .. }));
    assert!(lost.count() > 0, "{told}");
    // Closing ends soon, whatever the fault was.
    let closing = Instant::now();
    let closed = connection.close();
    let closed_well = match &closed {
        Ok(()) => true,
        // The changed byte may belong to the password.
        Err(error) => matches!(
            error.kind(),
            ErrorKind::TimedOut { .. } | ErrorKind::RecoveryGivenUp { .. }
        ),
    };
    assert!(
        closed_well && closing.elapsed() < SOON / 2,
        "{told}: {closed:?}"
    );
    // Confirmed messages that have not come are still in the queue. The exceptions are messages
    // whose body, routing key or acknowledgement contained the changed byte.
    let may_lack = usize::from(plan.fault == Fault::Corrupt);
    let watching = channel();
    missing.retain(|it| number_of(it) < Some(confirmed));
    eventually(&told, || {
        while let Some(message) = watching
            .basic_get(queue.name(), AckMode::Automatic)
            .unwrap()
        {
            changed += usize::from(number_of(message.body()).is_none());
            missing.retain(|it| it != message.body());
        }
        missing.len() <= changed.max(may_lack)
    });
    assert!(changed == 0 || plan.fault == Fault::Corrupt, "{told}");
    watching
        .queue_delete(queue.name(), Default::default())
        .unwrap();
}

/// The number of the message with this body, if it is one.
fn number_of(body: &[u8]) -> Option<usize> {
    let number = std::str::from_utf8(body).ok()?.parse().ok();
    number.filter(|it| *it < MESSAGES)
}
