//! Brings a lost connection back, on a thread of its own: connects again, then does with calls that
//! wait what any thread of the program could do. The outbox lets it pass while all others wait.

mod aside;
mod blame;
mod channels;
mod desk;
mod messages;
mod missing;
mod outage;
mod replay;
mod retry;
mod secret_renewal;
mod state;
mod thread;
mod topology;

pub(crate) use state::Recovery;
