//! The three queues and their handlers.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str;
use std::time::Duration;

use leveret::{Connection, Delivery, QueueDeclareOptions, Retry, WorkerOptions, Workers};

pub(crate) const QUEUES: [&str; 3] = ["orders", "measurements", "mails"];

type Handled = Result<(), Box<dyn Error>>;

pub(crate) struct Settings {
    /// The tables of the database, and the mail server's directory `mails`.
    pub(crate) directory: PathBuf,
    /// How long a failed message waits before each further attempt.
    pub(crate) delays: Vec<Duration>,
    /// How long the mails wait if the mail server is down.
    pub(crate) mail_pause: Duration,
}

impl Settings {
    pub(crate) fn from_environment() -> io::Result<Self> {
        let directory = std::env::var("ORDERS_DIR").unwrap_or_else(|_| "target/orders".to_owned());
        let directory = PathBuf::from(directory);
        fs::create_dir_all(directory.join("mails"))?;
        Ok(Self {
            directory,
            delays: [1, 10, 60].map(Duration::from_secs).to_vec(),
            mail_pause: Duration::from_secs(10),
        })
    }
}

pub(crate) fn start(
    connection: &Connection,
    workers: &Workers,
    settings: &Settings,
) -> leveret::Result<()> {
    let channel = connection.open_channel()?;
    for queue in QUEUES {
        channel.queue_declare(queue, QueueDeclareOptions::quorum())?;
    }
    channel.close()?;
    let retry = Retry::after(settings.delays.iter().copied());
    let options = WorkerOptions::default().prefetch(50).retry(retry);

    // Each thread has its own client of the database.
    let directory = settings.directory.clone();
    workers.consume_per_thread("orders", options.clone().threads(4), move || {
        let mut orders = Table::open(&directory, "orders")?;
        Ok::<_, io::Error>(move |order: &Delivery| add_order(&mut orders, order))
    })?;

    // Many rows with one statement.
    let directory = settings.directory.clone();
    let batches = options.clone().batch_size(200);
    workers.consume_batches_per_thread("measurements", batches, move || {
        let mut measurements = Table::open(&directory, "measurements")?;
        Ok::<_, io::Error>(move |batch: &[Delivery]| measurements.insert(batch))
    })?;

    // If the mail server is down, the queue pauses, instead of moving all mails to retry queues.
    let directory = settings.directory.clone();
    let mails = options.threads(2).circuit_breaker(3, settings.mail_pause);
    workers.consume_with("mails", mails, move |mail| send(&directory, mail))
}

/// An order is a number of pieces. Anything else fails, is retried, and ends in `orders.parked`.
fn add_order(orders: &mut Table, order: &Delivery) -> Handled {
    let pieces: u32 = str::from_utf8(order.body())?.parse()?;
    assert!(pieces > 0, "an order of nothing"); // A panic is treated like an error.
    Ok(orders.insert([order])?)
}

/// Sending twice is worse than once, so the name of the file is the message's id.
fn send(directory: &Path, mail: &Delivery) -> Handled {
    let id = mail.message_id().ok_or("a mail without an id")?;
    Ok(fs::write(directory.join("mails").join(id), mail.body())?)
}

/// Stands for a client of a database.
struct Table(File);

impl Table {
    fn open(directory: &Path, name: &str) -> io::Result<Self> {
        let path = directory.join(name);
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self(file))
    }

    /// Adds a row for each message: its id, and whether it may have been handled before.
    fn insert<'a>(&mut self, messages: impl IntoIterator<Item = &'a Delivery>) -> io::Result<()> {
        let mut rows = Vec::new();
        for message in messages {
            let id = message.message_id().unwrap_or("-");
            writeln!(rows, "{id} {}", message.redelivered())?;
        }
        self.0.write_all(&rows)
    }
}
