//! Calls on one document, as builders: set what differs from the default, then `.await`.

use std::future::IntoFuture;
use std::marker::PhantomData;
use std::time::Duration;

use borough_proto::error::Outcome;
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::Core;
use crate::document::{Doc, Etag, Written};
use crate::error::{Error, Result};
use crate::transport::{Action, Call, Condition, Key, RawWritten, WriteRule};

/// The caller's value as JSON. A failure is kept for when the call is awaited.
pub(crate) fn encode<B: Serialize + ?Sized>(operation: &str, value: &B) -> Result<Bytes> {
    let json = serde_json::to_vec(value);
    json.map(Bytes::from).map_err(|source| Error::Encode { operation: operation.to_owned(), source })
}

/// Options of every call.
macro_rules! call_options {
    () => {
        /// Time for this call, all attempts included.
        pub fn deadline(mut self, deadline: std::time::Duration) -> Self {
            self.call.deadline = deadline;
            self
        }
    };
}

/// Options of every read.
macro_rules! read_options {
    () => {
        /// Lets any replica answer that was complete at most this long ago. Reads are linearizable otherwise.
        pub fn max_stale(mut self, age: std::time::Duration) -> Self {
            self.call.max_stale = Some(age);
            self
        }
    };
}

/// Options of every write.
macro_rules! write_options {
    () => {
        /// Sends the write under this key instead of one of its own: a later call with the same key and the
        /// same content gets the first outcome again and changes nothing.
        pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
            self.call.idempotency_key = Some(key.into());
            self
        }
    };
}

/// Preconditions of a write to one document.
macro_rules! conditions {
    () => {
        /// Writes only when the document is at this version (compare-and-set), else [`Error::PreconditionFailed`].
        pub fn if_match(mut self, etag: impl Into<Etag>) -> Self {
            self.rule.condition = Condition::Match(etag.into());
            self
        }

        /// Writes only when the document exists, whatever its version.
        pub fn if_present(mut self) -> Self {
            self.rule.condition = Condition::Present;
            self
        }
    };
}

/// Time to live of what is written.
macro_rules! ttl {
    () => {
        /// The document vanishes after this long. A put without it stays for ever, or for the collection's default;
        /// a patch without it changes nothing about that.
        pub fn ttl(mut self, ttl: Duration) -> Self {
            self.rule.ttl = Some(ttl);
            self
        }
    };
}

pub(crate) use {call_options, read_options, write_options};

/// Reads a document; `None` when there is none.
#[derive(Debug, Clone)]
#[must_use = "nothing happens until it is awaited"]
pub struct Get<T> {
    core: Core,
    call: Call,
    key: Key,
    kind: PhantomData<fn() -> T>,
}

impl<T> Get<T> {
    pub(crate) fn new(core: Core, key: Key) -> Self {
        let call = core.read(named("get", &key));
        Self { core, call, key, kind: PhantomData }
    }

    call_options!();
    read_options!();
}

impl<T: DeserializeOwned + Send + 'static> IntoFuture for Get<T> {
    type Output = Result<Option<Doc<T>>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { core, call, key, .. } = self;
        Box::pin(async move {
            let Some(raw) = core.data().get(&call, &key).await? else { return Ok(None) };
            raw.typed(&call.operation, key.id, key.sort, Outcome::NotApplied).map(Some)
        })
    }
}

/// Replaces a document, or makes it when there is none.
#[derive(Debug)]
#[must_use = "nothing happens until it is awaited"]
pub struct Put {
    core: Core,
    call: Call,
    key: Key,
    body: Result<Bytes>,
    rule: WriteRule,
}

impl Put {
    pub(crate) fn new<T: Serialize + ?Sized>(core: Core, key: Key, value: &T) -> Self {
        let call = core.write(named("put", &key));
        let body = encode(&call.operation, value);
        Self { core, call, key, body, rule: WriteRule::default() }
    }

    call_options!();
    write_options!();
    conditions!();
    ttl!();

    /// Writes only when there is no such document, else [`Error::AlreadyExists`].
    pub fn if_absent(mut self) -> Self {
        self.rule.condition = Condition::Absent;
        self
    }
}

impl IntoFuture for Put {
    type Output = Result<Written>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { core, call, key, body, rule } = self;
        Box::pin(async move {
            let written = core.data().write(&call, &key, &Action::Put(body?), &rule).await;
            match written {
                Ok(raw) => Ok(receipt(raw, key)),
                Err(error) if rule.condition == Condition::Absent => Err(error.of_if_absent()),
                Err(error) => Err(error),
            }
        })
    }
}

/// Makes a document that must not exist yet.
#[derive(Debug)]
#[must_use = "nothing happens until it is awaited"]
pub struct Create {
    core: Core,
    call: Call,
    collection: String,
    body: Result<Bytes>,
    ttl: Option<Duration>,
}

impl Create {
    pub(crate) fn new<T: Serialize + ?Sized>(core: Core, collection: String, value: &T) -> Self {
        let call = core.write(format!("create in {collection}"));
        let body = encode(&call.operation, value);
        Self { core, call, collection, body, ttl: None }
    }

    call_options!();
    write_options!();

    /// Makes it under this id. Without, the document's own `id` counts, and one without any gets a new one.
    pub fn id(self, id: impl Into<String>) -> Put {
        let key = Key { collection: self.collection, id: id.into(), sort: None };
        let call = Call { operation: named("create", &key), ..self.call };
        let rule = WriteRule { condition: Condition::Absent, ttl: self.ttl };
        Put { core: self.core, call, key, body: self.body, rule }
    }

    /// The document vanishes after this long.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }
}

impl IntoFuture for Create {
    type Output = Result<Written>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { core, call, collection, body, ttl } = self;
        Box::pin(async move {
            let raw = core.data().create(&call, &collection, &body?, ttl).await?;
            // Both transports name the id of what they created.
            let id = raw.id.clone().unwrap_or_default();
            Ok(receipt(raw, Key { collection, id, sort: None }))
        })
    }
}

/// Changes parts of a document by a merge patch (RFC 7396); answers the whole.
#[derive(Debug)]
#[must_use = "nothing happens until it is awaited"]
pub struct Patch<T> {
    core: Core,
    call: Call,
    key: Key,
    merge: Result<Bytes>,
    rule: WriteRule,
    kind: PhantomData<fn() -> T>,
}

impl<T> Patch<T> {
    pub(crate) fn new<P: Serialize + ?Sized>(core: Core, key: Key, merge: &P) -> Self {
        let call = core.write(named("patch", &key));
        let merge = encode(&call.operation, merge);
        Self { core, call, key, merge, rule: WriteRule::default(), kind: PhantomData }
    }

    call_options!();
    write_options!();
    conditions!();
    ttl!();
}

impl<T: DeserializeOwned + Send + 'static> IntoFuture for Patch<T> {
    type Output = Result<Doc<T>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { core, call, key, merge, rule, .. } = self;
        Box::pin(async move {
            let written = core.data().write(&call, &key, &Action::Patch(merge?), &rule).await?;
            let raw = crate::document::RawDoc {
                json: written.document.unwrap_or_default(),
                etag: written.etag,
                expires: written.expires,
                cache_hit: None,
            };
            raw.typed(&call.operation, key.id, key.sort, Outcome::Applied)
        })
    }
}

/// Removes a document; answers whether there was one.
#[derive(Debug)]
#[must_use = "nothing happens until it is awaited"]
pub struct Delete {
    core: Core,
    call: Call,
    key: Key,
    rule: WriteRule,
}

impl Delete {
    pub(crate) fn new(core: Core, key: Key) -> Self {
        let call = core.write(named("delete", &key));
        Self { core, call, key, rule: WriteRule::default() }
    }

    call_options!();
    write_options!();
    conditions!();
}

impl IntoFuture for Delete {
    type Output = Result<bool>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { core, call, key, rule } = self;
        Box::pin(async move {
            match core.data().write(&call, &key, &Action::Delete, &rule).await {
                Ok(_) => Ok(true),
                Err(Error::NotFound(_)) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }
}

fn receipt(raw: RawWritten, key: Key) -> Written {
    Written { id: key.id, sort: key.sort, etag: raw.etag, expires: raw.expires, created: raw.created }
}

/// `get users/1`, for errors and logs.
fn named(verb: &str, key: &Key) -> String {
    let Key { collection, id, sort } = key;
    match sort {
        None => format!("{verb} {collection}/{id}"),
        Some(sort) => format!("{verb} {collection}/{id}/{sort}"),
    }
}
