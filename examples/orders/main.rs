//! An application with three queues: see its README.

mod app;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::time::Duration;

use app::Settings;
use leveret::{Connection, ConnectionOptions, Workers};

/// How long running handlers have to finish.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::init();
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let settings = Settings::from_environment()?;
    let options = ConnectionOptions::from_uri(&uri)?.retry_open_for(Duration::from_secs(60));
    let connection = Connection::open_with(options)?;
    let workers = Workers::new(&connection);
    let stopping = workers.clone();
    // Before the first message: without a handler, the signal would end the program at once.
    ctrlc::set_handler(move || {
        println!("stopping");
        if let Err(error) = stopping.shutdown(PATIENCE) {
            eprintln!("{error}");
            std::process::exit(1);
        }
    })?;
    match app::start(&connection, &workers, &settings) {
        Err(error) if !workers.status().stopped => return Err(error.into()),
        _ => println!(
            "handling {:?} in {}",
            app::QUEUES,
            settings.directory.display()
        ),
    }
    workers.join()?;
    Ok(connection.close()?)
}
