//! The storage-and-cache node of Borough.
//!
//! Dependencies point one way: `rpc → raft → {wal, state → store}`, `placement → raft`; the `cache`
//! is read by `shard` and written by apply. Only `raft` names openraft and only `store/sled.rs` names sled.

pub mod blocking;
pub mod cache;
pub mod clock;
pub mod config;
mod crash;
mod defect;
pub mod environment;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod identity;
pub mod lifecycle;
pub mod loops;
pub mod meta_leader;
pub mod node;
pub mod placement;
pub mod raft;
pub mod registry;
mod reorder;
pub mod rpc;
pub mod shard;
pub mod state;
pub mod store;
pub mod wal;

pub use config::Config;
pub use environment::Environment;
pub use lifecycle::{RunError, run, run_in};
