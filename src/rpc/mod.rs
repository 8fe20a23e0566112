//! Remote procedure calls (RPC) over the broker: a client and a server.
//!
//! - `client`: `RpcClient`; `line`: one channel of a client, for requests and replies
//! - `server`: `RpcServer`; `output`: what its handlers return; `caller`: whether a request's
//!   client still exists

mod caller;
mod client;
mod line;
mod output;
mod server;

pub use client::RpcClient;
pub use output::RpcOutput;
pub use server::RpcServer;

/// The header of a reply that says why the server failed.
const ERROR_HEADER: &str = "x-rpc-error";
