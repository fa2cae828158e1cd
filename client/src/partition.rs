//! Transactions: several documents of one id, in any collections, changed all or not at all.

use std::time::Duration;

use borough_proto::error::{Outcome, ProblemType};
use borough_proto::http_api::TransactOp;
use serde::Serialize;

use crate::batch::{raw, ttl_text, written};
use crate::client::Core;
use crate::document::{Etag, Json, Written};
use crate::error::{Error, Result};
use crate::request::{call_options, write_options};
use crate::transport::{Call, check_collection};

/// Everything of one id; made by [`Client::partition`](crate::Client::partition).
#[derive(Debug, Clone)]
pub struct Partition {
    core: Core,
    id: String,
}

impl Partition {
    pub(crate) fn new(core: Core, id: String) -> Self {
        Self { core, id }
    }

    /// Changes several documents of this id at once:
    ///
    /// ```no_run
    /// # async fn run(client: borough_client::Client, ann: serde_json::Value, post: serde_json::Value)
    /// # -> Result<(), borough_client::Error> {
    /// client
    ///     .partition("ann")
    ///     .transact()
    ///     .put(("posts", "2026-01-02"), &post).if_absent()
    ///     .patch("users", &serde_json::json!({"posts": 7})).if_match("\"1f\"")
    ///     .commit()
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn transact(&self) -> Transact {
        let call = self.core.write(format!("transact on {}", self.id));
        Transact { core: self.core.clone(), call, id: self.id.clone(), ops: Vec::new(), fault: None }
    }
}

/// Names a document within a partition: a collection, or a sorted collection and a sort key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    collection: String,
    sort: Option<String>,
}

impl From<&str> for Target {
    fn from(collection: &str) -> Self {
        Self { collection: collection.to_owned(), sort: None }
    }
}

impl From<String> for Target {
    fn from(collection: String) -> Self {
        Self { collection, sort: None }
    }
}

impl<C: Into<String>, S: Into<String>> From<(C, S)> for Target {
    fn from((collection, sort): (C, S)) -> Self {
        Self { collection: collection.into(), sort: Some(sort.into()) }
    }
}

/// Operations that are applied all or not at all. `if_match`, `if_absent` and `ttl` belong to the
/// operation added last.
#[derive(Debug)]
#[must_use = "nothing happens until it is committed"]
pub struct Transact {
    core: Core,
    call: Call,
    id: String,
    ops: Vec<TransactOp>,
    /// The first fault of the caller's, told at commit.
    fault: Option<Error>,
}

impl Transact {
    call_options!();
    write_options!();

    /// Replaces a document, or makes it.
    pub fn put<T: Serialize + ?Sized>(self, target: impl Into<Target>, value: &T) -> Self {
        let json = raw(&self.call, value);
        self.add(target.into(), json, |op, json| op.put = Some(json))
    }

    /// Changes parts of a document by a merge patch (RFC 7396); it must exist.
    pub fn patch<P: Serialize + ?Sized>(self, target: impl Into<Target>, merge: &P) -> Self {
        let json = raw(&self.call, merge);
        self.add(target.into(), json, |op, json| op.patch = Some(json))
    }

    /// Removes a document; it must exist.
    pub fn delete(self, target: impl Into<Target>) -> Self {
        self.add(target.into(), Ok(()), |op, ()| op.delete = true)
    }

    /// Changes nothing, and stops the transaction unless its `if_match` or `if_absent` holds.
    pub fn check(self, target: impl Into<Target>) -> Self {
        self.add(target.into(), Ok(()), |op, ()| op.check = true)
    }

    fn add<A>(mut self, target: Target, action: Result<A>, set: impl FnOnce(&mut TransactOp, A)) -> Self {
        let Target { collection, sort } = target;
        match check_collection(&self.call.operation, &collection).and(action) {
            Ok(action) => {
                let mut op = TransactOp { collection, sort, ..Default::default() };
                set(&mut op, action);
                self.ops.push(op);
            }
            Err(error) => self.fault = self.fault.or(Some(error)),
        }
        self
    }

    fn last(mut self, option: &str, set: impl FnOnce(&mut TransactOp)) -> Self {
        match self.ops.last_mut() {
            Some(op) => set(op),
            None => {
                let detail = format!("{option} follows an operation");
                let error = Error::refused(&self.call.operation, ProblemType::BadRequest, detail);
                self.fault = self.fault.or(Some(error));
            }
        }
        self
    }

    /// The document must be at this version.
    pub fn if_match(self, etag: impl Into<Etag>) -> Self {
        self.last("if_match", |op| op.if_match = Some(etag.into().as_str().to_owned()))
    }

    /// The document must not exist.
    pub fn if_absent(self) -> Self {
        self.last("if_absent", |op| op.if_absent = true)
    }

    /// What is written vanishes after this long.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.last("ttl", |op| op.ttl = Some(ttl_text(ttl)))
    }

    /// Applies all of it, or nothing.
    ///
    /// # Errors
    /// [`Error::PreconditionFailed`] names the operation that failed; nothing was applied then.
    pub async fn commit(self) -> Result<Vec<Written>> {
        let Self { core, call, id, ops, fault } = self;
        if let Some(fault) = fault {
            return Err(fault);
        }
        if ops.is_empty() {
            return Ok(Vec::new());
        }
        let reply = core.data().transact(&call, &id, ops).await?;
        let receipts: Result<Vec<_>> =
            reply.items.into_iter().map(|item| written(&call, item, false)).collect();
        receipts.map_err(|error| contradiction(&call, &error))
    }
}

/// A transaction that succeeded has no failed operations.
fn contradiction(call: &Call, error: &Error) -> Error {
    let source =
        serde::de::Error::custom(format_args!("a committed transaction with a failed operation: {error}"));
    Error::decode::<Json>(&call.operation, Outcome::Unknown, source)
}
