//! The caller's side of the data plane: what the router and a direct client share.
//!
//! [`mux`] carries many calls over one stream, [`pool`] keeps one such stream for each node,
//! [`watch`] keeps the cluster map current, [`forward`] sends a request to the right node until it has
//! an answer or the caller's deadline passes. It knows no HTTP and no JSON.

pub mod backoff;
pub mod channel;
mod data;
pub mod forward;
pub mod mux;
pub mod pool;
mod route;
mod sequence;
pub mod topology;
mod tries;
pub mod turn;
pub mod watch;

#[cfg(test)]
mod scripted;

pub use data::DataProtocol;
pub use forward::{Answer, ForwardError, ForwardSettings, Forwarder, Why};
