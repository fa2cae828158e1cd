//! The seam between the typed API and the two ways to the cluster: through routers (REST), or
//! straight to the shards' leaders (feature `direct`). Nothing above knows which one is used.

#[cfg(feature = "direct")]
pub(crate) mod direct;
pub(crate) mod rest;

use std::sync::Arc;
use std::time::Duration;

use borough_proto::error::ProblemType;
use borough_proto::http_api::{self, BatchKey, BatchReply, BatchWrite, TransactOp};
use borough_proto::limits;
use bytes::Bytes;

use crate::document::{Etag, RawDoc};
use crate::error::{Error, Result};
use crate::session::SessionState;

/// What belongs to one call of the caller's, however many attempts it takes.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// For errors and logs, for example `put users/1`.
    pub operation: String,
    /// The whole call's time, all attempts included.
    pub deadline: Duration,
    /// The same on every attempt of a write, so that none of them applies it twice.
    pub idempotency_key: Option<String>,
    pub max_stale: Option<Duration>,
    pub session: Option<Arc<SessionState>>,
}

/// Names a document.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub collection: String,
    pub id: String,
    pub sort: Option<String>,
}

impl Key {
    /// Refuses what no transport could send without meaning something else.
    pub fn check(&self, operation: &str) -> Result<()> {
        check_collection(operation, &self.collection)?;
        check_id(operation, &self.id)?;
        let refused = |detail: String| Err(Error::refused(operation, ProblemType::BadId, detail));
        match &self.sort {
            Some(sort) if sort.is_empty() || sort.len() > limits::SORT_BYTES_MAX => {
                refused(format!("a sort key has 1 to {} bytes, not {}", limits::SORT_BYTES_MAX, sort.len()))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// An id has 1 to 256 bytes.
pub(crate) fn check_id(operation: &str, id: &str) -> Result<()> {
    if id.is_empty() || id.len() > limits::ID_BYTES_MAX {
        let detail = format!("an id has 1 to {} bytes, not {}", limits::ID_BYTES_MAX, id.len());
        return Err(Error::refused(operation, ProblemType::BadId, detail));
    }
    Ok(())
}

/// A name that could not be a collection's would be another path of the API.
pub(crate) fn check_collection(operation: &str, name: &str) -> Result<()> {
    if http_api::valid_collection_name(name) {
        return Ok(());
    }
    let detail = format!("{name:?} cannot be the name of a collection");
    Err(Error::refused(operation, ProblemType::BadRequest, detail))
}

#[derive(Debug, Clone)]
pub(crate) enum Action {
    Put(Bytes),
    Patch(Bytes),
    Delete,
}

/// Under which condition a write takes place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Condition {
    #[default]
    None,
    Match(Etag),
    Absent,
    Present,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct WriteRule {
    pub condition: Condition,
    pub ttl: Option<Duration>,
}

/// What a write of one document answers.
#[derive(Debug)]
pub(crate) struct RawWritten {
    /// Set when the cluster chose or confirmed it.
    pub id: Option<String>,
    pub created: bool,
    pub etag: Etag,
    pub expires: Option<std::time::SystemTime>,
    /// Patches only: the whole document.
    pub document: Option<Bytes>,
}

/// Which documents of a collection.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListQuery {
    pub collection: String,
    /// Only the partition of this id.
    pub partition: Option<String>,
    /// Sort keys from here, inclusive.
    pub start: Option<String>,
    /// Sort keys up to here, exclusive.
    pub end: Option<String>,
    pub reverse: bool,
    pub page_size: Option<u32>,
    pub page_token: Option<String>,
    /// Documents as they were sent, without the `id` and `sort` that are added when shown.
    pub stored: bool,
    /// Each with its key: `{"id", "sort", "document"}`.
    pub keys: bool,
}

/// One of the two ways to the cluster.
#[derive(Debug)]
pub(crate) enum Transport {
    Rest(rest::Rest),
    #[cfg(feature = "direct")]
    Direct(direct::Direct),
}

/// Sends a call the way that the client was built for.
macro_rules! either {
    ($self:ident . $method:ident ( $($argument:expr),* )) => {
        match $self {
            Self::Rest(rest) => rest.$method($($argument),*).await,
            #[cfg(feature = "direct")]
            Self::Direct(direct) => direct.$method($($argument),*).await,
        }
    };
}

impl Transport {
    /// The document, or `None`.
    pub async fn get(&self, call: &Call, key: &Key) -> Result<Option<RawDoc>> {
        key.check(&call.operation)?;
        either!(self.get(call, key))
    }

    /// One put, patch or delete. A delete of what isn't there is [`Error::NotFound`].
    pub async fn write(
        &self,
        call: &Call,
        key: &Key,
        action: &Action,
        rule: &WriteRule,
    ) -> Result<RawWritten> {
        key.check(&call.operation)?;
        either!(self.write(call, key, action, rule))
    }

    /// A new document under the id in its body, or a new one.
    pub async fn create(
        &self,
        call: &Call,
        collection: &str,
        body: &Bytes,
        ttl: Option<Duration>,
    ) -> Result<RawWritten> {
        check_collection(&call.operation, collection)?;
        either!(self.create(call, collection, body, ttl))
    }

    pub async fn list(&self, call: &Call, query: &ListQuery) -> Result<http_api::Page> {
        check_collection(&call.operation, &query.collection)?;
        if let Some(partition) = &query.partition {
            check_id(&call.operation, partition)?;
        }
        either!(self.list(call, query))
    }

    pub async fn batch_get(&self, call: &Call, collection: &str, keys: Vec<BatchKey>) -> Result<BatchReply> {
        check_collection(&call.operation, collection)?;
        check_items(call, keys.len())?;
        let asked = keys.len();
        let reply = either!(self.batch_get(call, collection, keys))?;
        check_reply(call, asked, reply)
    }

    pub async fn batch_write(
        &self,
        call: &Call,
        collection: &str,
        writes: Vec<BatchWrite>,
    ) -> Result<BatchReply> {
        check_collection(&call.operation, collection)?;
        check_items(call, writes.len())?;
        let asked = writes.len();
        let reply = either!(self.batch_write(call, collection, writes))?;
        check_reply(call, asked, reply)
    }

    pub async fn transact(&self, call: &Call, id: &str, ops: Vec<TransactOp>) -> Result<BatchReply> {
        check_id(&call.operation, id)?;
        check_items(call, ops.len())?;
        let asked = ops.len();
        let reply = either!(self.transact(call, id, ops))?;
        check_reply(call, asked, reply)
    }
}

/// Refuses too large a batch before it is sent (I8).
fn check_items(call: &Call, items: usize) -> Result<()> {
    if items > limits::BATCH_ITEMS_MAX {
        let detail = format!("{items} operations in one request; the limit is {}", limits::BATCH_ITEMS_MAX);
        return Err(Error::refused(&call.operation, ProblemType::TooLarge, detail));
    }
    Ok(())
}

/// Answers are told apart by position, so their number must be right.
fn check_reply(call: &Call, asked: usize, reply: BatchReply) -> Result<BatchReply> {
    if reply.items.len() == asked {
        return Ok(reply);
    }
    let source = serde::de::Error::custom(format_args!("{} items for {asked} asked", reply.items.len()));
    Err(Error::decode::<BatchReply>(&call.operation, borough_proto::error::Outcome::Unknown, source))
}
