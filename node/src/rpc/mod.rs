//! The node's gRPC services and admin pages: bytes from the network become calls on groups and shards.

pub mod admin;
pub mod cluster;
pub mod data;
pub mod raft;
mod replicas;
