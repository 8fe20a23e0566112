//! Brings a lost connection back, on a thread of its own: connects again, then does with calls that
//! wait what any thread of the program could do. The outbox lets it pass while all others wait.

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
