//! A typed client for Borough, the sharded store for user data.
//!
//! ```no_run
//! use borough_client::Client;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct User {
//!     name: String,
//!     visits: u32,
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder().router("http://127.0.0.1:8080").build()?;
//! let users = client.collection::<User>("users");
//!
//! users.put("ann", &User { name: "Ann".into(), visits: 0 }).await?;
//! if let Some(mut ann) = users.get("ann").await? {
//!     ann.visits += 1;
//!     // Compare-and-set: fails with `Error::PreconditionFailed` when somebody was faster.
//!     users.put("ann", &ann).if_match(&ann).await?;
//! }
//! # Ok(()) }
//! ```
//!
//! # What it does for you
//!
//! - **One deadline per call**, all attempts included; routers and nodes are told what is left of it (I8).
//! - **Retries that cannot apply twice.** Each logical write has an idempotency key, and every attempt carries it.
//!   Reads are retried always; writes when nothing was applied, or under that key.
//! - **Outcomes.** [`Error::outcome`] says whether a write was applied, was not, or that nobody knows yet (I9);
//!   [`Error::idempotency_key`] is what finds out.
//! - **Several routers**, in turn, those that don't answer left out for a while.
//! - **Sessions** that read their own writes from any replica, and reads of bounded staleness.
//! - **Bearer tokens** where routers ask for them ([`ClientBuilder::bearer_token`]); [`Error::Unauthorized`] and
//!   [`Error::Forbidden`] when they do not do.
//! - With the feature `direct`, the same API **straight to the shards' leaders**: inside the cluster's own network, where
//!   nobody is asked for a token.

mod admin;
mod batch;
mod builder;
mod client;
mod collection;
mod document;
mod error;
mod listing;
mod partition;
mod request;
mod session;
mod transport;

pub use admin::Admin;
pub use batch::{BatchGet, BatchWrite, ItemKey};
pub use borough_proto::error::{Outcome, Problem, ProblemType};
pub use borough_proto::http_api;
pub use borough_proto::session::BadToken;
pub use builder::{BuildError, ClientBuilder};
pub use client::{Client, Session};
pub use collection::{Collection, Sorted};
pub use document::{Doc, Etag, Json, Written};
pub use error::{Cause, Error, Refusal, Result};
pub use listing::{Keyed, Listing, Page};
pub use partition::{Partition, Target, Transact};
pub use request::{Create, Delete, Get, Patch, Put};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
