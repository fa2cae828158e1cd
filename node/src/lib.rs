//! The storage-and-cache node of Borough.
//!
//! Dependencies point one way: `rpc → raft → {wal, state → store}`, `placement → raft`; the `cache`
//! is read by `rpc` and written by apply. Only `raft` names openraft and only `store/sled.rs` names sled.

pub mod state;
pub mod store;
pub mod wal;
