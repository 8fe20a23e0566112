//! Workers with an HTTP port for Prometheus (`/metrics`) and for health checks (`/health`).
//!
//!     tests/with-rabbitmq cargo run --example metrics [ADDRESS [QUEUE]]
//!     curl http://127.0.0.1:9000/metrics
//!
//! ADDRESS is 127.0.0.1:9000 by default, and QUEUE is `task_queue`, which the example
//! `tutorial_2_new_task` fills. A message that is not text fails, is retried, and is parked. Uses
//! the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::str;
use std::time::Duration;

use leveret::{Connection, QueueDeclareOptions, QueueWorkers, Retry, WorkerOptions, Workers};

/// The longest request in bytes.
const LONGEST_REQUEST: u64 = 16 << 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    env_logger::init();
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let (address, queue) = (next("127.0.0.1:9000"), next("task_queue"));
    let listener = TcpListener::bind(address)?;
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(uri)?;
    let channel = connection.open_channel()?;
    channel.queue_declare(&queue, QueueDeclareOptions::default())?;
    let workers = Workers::new(&connection);
    let retry = Retry::after([1, 10].map(Duration::from_secs));
    let options = WorkerOptions::default().threads(2).retry(retry);
    workers.consume_with(&queue, options, |delivery| {
        str::from_utf8(delivery.body()).map(|text| println!("received {text:?}"))
    })?;
    println!("listening at {}", listener.local_addr()?);
    for client in listener.incoming() {
        // A client that hangs up costs nothing but its own answer.
        if let Err(error) = client.and_then(|client| answer(client, &workers)) {
            eprintln!("{error}");
        }
    }
    Ok(())
}

fn answer(mut client: TcpStream, workers: &Workers) -> io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = BufReader::new(&client).take(LONGEST_REQUEST).lines();
    let first = request.next().transpose()?.unwrap_or_default();
    // Input that is left unread would cut the answer short.
    for line in request {
        if line?.is_empty() {
            break;
        }
    }
    let status = workers.status();
    let (code, body) = match first.split_ascii_whitespace().nth(1) {
        Some("/metrics") => ("200 OK", metrics(&status.queues)),
        Some("/health") if status.is_healthy() => ("200 OK", "healthy\n".to_owned()),
        Some("/health") => ("503 Service Unavailable", format!("{status:#?}\n")),
        _ => ("404 Not Found", String::new()),
    };
    let length = body.len();
    write!(
        client,
        "HTTP/1.1 {code}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

/// One number of a queue.
type Metric = fn(&QueueWorkers) -> f64;

/// Name, type and value of each metric. Prometheus computes the mean time of a handler from the
/// total time and the number of messages.
const METRICS: &[(&str, &str, Metric)] = &[
    ("threads", "gauge", |it| it.threads as f64),
    ("threads_consuming", "gauge", |it| it.consuming as f64),
    ("threads_busy", "gauge", |it| it.busy as f64),
    ("threads_blocked", "gauge", |it| it.blocked as f64),
    ("handlers_late", "gauge", |it| it.late.len() as f64),
    ("paused", "gauge", |it| f64::from(it.pause.is_some())),
    ("messages_handled_total", "counter", |it| it.handled as f64),
    ("messages_failed_total", "counter", |it| it.failed as f64),
    ("messages_panicked_total", "counter", |it| {
        it.panicked as f64
    }),
    ("messages_retried_total", "counter", |it| it.retried as f64),
    ("messages_parked_total", "counter", |it| it.parked as f64),
    ("handler_seconds_total", "counter", |it| {
        it.handler_time.as_secs_f64()
    }),
];

fn metrics(queues: &[QueueWorkers]) -> String {
    let mut text = String::new();
    for (name, kind, value) in METRICS {
        let _ = writeln!(text, "# TYPE workers_{name} {kind}");
        for queue in queues {
            // A label's value escapes backslashes, quotes and line breaks, as Rust's Debug does.
            let _ = writeln!(
                text,
                "workers_{name}{{queue={:?}}} {}",
                queue.queue,
                value(queue)
            );
        }
    }
    text
}
