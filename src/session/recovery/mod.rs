//! Recovery: reconnects after a loss and replays what was lost with the connection.
//!
//! One thread per connection does this, with blocking calls like any thread of the program. The
//! outbox admits its calls while all other callers wait. The folder knows channels, consumers and
//! recorded declarations, but no handle. `Recovery::lost` starts the thread.
//!
//! - `thread.rs`: the thread's loop; `outage.rs`: delays and limits of the attempts
//! - `replay.rs`: replays on the new connection, in order. Its steps: `topology.rs` (exchanges,
//!   queues, bindings), `channels.rs` (channels, consumers), `messages.rs` (unconfirmed messages)
//! - `requester.rs`: sends the requests of a replay and waits for the replies
//! - `unrecovered.rs`: what is missing; `retry.rs`: retries it; `trial.rs`: on a separate
//!   connection
//! - `blame.rs`: finds a message that costs the connection; `secret_renewal.rs`: renews the secret;
//!   `state.rs`: what all of these share

mod blame;
mod channels;
mod messages;
mod outage;
mod replay;
mod requester;
mod retry;
mod secret_renewal;
mod state;
mod thread;
mod topology;
mod trial;
mod unrecovered;

pub(crate) use state::Recovery;
