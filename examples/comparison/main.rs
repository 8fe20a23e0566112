//! A worker for the quorum queue `orders`: four threads, delayed retries, parking, graceful stop.
//! The same worker stands beside this file in Python and in Ruby: see the README.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use leveret::{Connection, ConnectionOptions, Delivery, QueueDeclareOptions};
use leveret::{Retry, WorkerOptions, Workers};

#[derive(serde::Deserialize)]
struct Order {
    id: u64,
    fails: u64,
}

/// Stands for a client that must not be shared by threads.
struct Database(File);

impl Database {
    fn connect() -> io::Result<Self> {
        static THREAD: AtomicU32 = AtomicU32::new(0);
        let thread = THREAD.fetch_add(1, Ordering::Relaxed);
        let mut options = File::options();
        let file = options
            .create(true)
            .append(true)
            .open(format!("handled.{thread}"))?;
        Ok(Self(file))
    }

    fn insert(&mut self, row: u64) -> io::Result<()> {
        writeln!(self.0, "{row}")
    }
}

#[allow(clippy::disallowed_methods)] // The sleep stands for work.
fn handle(database: &mut Database, delivery: &Delivery) -> Result<(), Box<dyn Error>> {
    let order: Order = delivery.json()?;
    thread::sleep(Duration::from_millis(150));
    if delivery.attempts() <= order.fails {
        return Err(format!("order {} fails", order.id).into());
    }
    Ok(database.insert(order.id)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::init();
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let delays = std::env::var("DELAYS_MS").unwrap_or_else(|_| "1000,10000,60000".to_owned());
    let delays = delays
        .split(',')
        .map(|it| Ok(Duration::from_millis(it.parse()?)));
    let delays: Vec<_> = delays.collect::<Result<_, std::num::ParseIntError>>()?;
    let options = ConnectionOptions::from_uri(&uri)?.retry_open_for(Duration::MAX);
    let connection = Connection::open_with(options)?;
    let channel = connection.open_channel()?;
    channel.queue_declare("orders", QueueDeclareOptions::quorum())?;
    let workers = Workers::new(&connection);
    let stopping = workers.clone();
    ctrlc::set_handler(move || drop(stopping.shutdown(Duration::from_secs(30))))?;
    let options = WorkerOptions::default()
        .threads(4)
        .prefetch(10)
        .retry(Retry::after(delays));
    workers.consume_per_thread("orders", options, || {
        let mut database = Database::connect()?;
        Ok::<_, io::Error>(move |order: &Delivery| handle(&mut database, order))
    })?;
    workers.join()?;
    Ok(connection.close()?)
}
