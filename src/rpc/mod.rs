//! Remote procedure calls (RPC) over the broker: a client and a server.

mod client;
mod server;

pub use client::RpcClient;
pub use server::RpcServer;
