//! Raft for every group of the node: the only place that names openraft.
//!
//! `types` are the type parameters and their wire forms, `log_storage` and `state_machine` adapt the shared
//! log and the engine, `peers` and `network` carry messages, `snapshot` streams a replica, `group` is one
//! running replica, `confirm` asks whether it still leads, `commits` tells followers what is committed, `content_hash` tells what it holds, and `groups` all of them.

mod commits;
mod confirm;
mod contact;
mod content_hash;
pub mod group;
pub mod groups;
mod hearing;
pub mod log_storage;
pub mod network;
mod pace;
pub mod peers;
pub mod snapshot;
pub mod state_machine;
#[cfg(test)]
pub mod tests;
pub mod types;

pub use content_hash::ContentHashError;
pub use group::{CATCHING_UP, Group, GroupView, ProposeError, ReadError};
pub use groups::{Groups, OpenError};
pub use peers::{AddressBook, Peers};
pub use state_machine::{Machine, ReplicaState};
pub use types::{Reply, proposal};
