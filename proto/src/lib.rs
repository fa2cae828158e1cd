//! Borough's contract: what routers, nodes, clients and people agree on.
//!
//! The `.proto` services (`wire`), distinct id types, the hash that places a document, the
//! cluster map, documents as they are stored and shown, session tokens, errors with what the
//! caller may do about them, and the JSON types of the REST API. It knows no sockets and no disks.

pub mod cluster_map;
pub mod document;
pub mod error;
#[cfg(feature = "exchange")]
pub mod exchange;
pub mod http_api;
pub mod id;
pub mod idempotency;
pub mod key;
pub mod limits;
#[cfg(feature = "openapi")]
pub mod openapi;
pub mod place;
pub mod replicas;
pub mod session;

/// The generated protobuf messages and gRPC services of `proto/borough/v1`.
pub mod wire {
    #![allow(clippy::all, clippy::indexing_slicing, clippy::unwrap_used, missing_docs)]
    tonic::include_proto!("borough.v1");
}

pub use cluster_map::ClusterMap;
pub use id::{CollectionId, GroupId, NodeId, ReplicaId, ShardId};
