//! Borough's stateless router: REST in, coalesced streams to the shard leaders out.
//!
//! It watches the cluster map, turns an id into a shard and a request into a call of [`borough_proto::exchange`], and what
//! comes back into JSON. It keeps nothing that another router would miss.

mod api;
mod app;
mod auth;
mod bare;
mod catalog;
mod cluster_calls;
mod config;
mod connections;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod http;
mod listener;
mod metrics;
mod openapi;
mod rate;
mod serve;
#[cfg(test)]
mod tests;

pub use config::{AuthConfig, Config, LimitsConfig, RateLimitConfig, TokenConfig};
pub use serve::{RunError, run, run_with};
