//! Many documents in one request. Batches are not atomic: each item has a result of its own
//! ([`Partition::transact`](crate::Partition::transact) is atomic).

use std::future::IntoFuture;
use std::marker::PhantomData;
use std::time::Duration;

use borough_proto::error::{Outcome, Problem, ProblemType};
use borough_proto::http_api::{self, BatchDelete, BatchItem, BatchKey, BatchPatch, BatchPut, format_ttl};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::Core;
use crate::document::{Doc, Etag, Json, RawDoc, Written};
use crate::error::{Error, Refusal, Result};
use crate::request::{call_options, read_options, write_options};
use crate::transport::Call;

/// Reads up to 100 documents; answers a result for each, in the order asked.
#[derive(Debug, Clone)]
#[must_use = "nothing happens until it is awaited"]
pub struct BatchGet<T> {
    core: Core,
    call: Call,
    collection: String,
    keys: Vec<BatchKey>,
    kind: PhantomData<fn() -> T>,
}

impl<T> BatchGet<T> {
    pub(crate) fn new(core: Core, collection: String, keys: Vec<BatchKey>) -> Self {
        let call = core.read(format!("batch get {collection}"));
        Self { core, call, collection, keys, kind: PhantomData }
    }

    call_options!();
    read_options!();
}

impl<T: DeserializeOwned + Send + 'static> IntoFuture for BatchGet<T> {
    /// `Ok(None)`: there is no such document.
    type Output = Result<Vec<Result<Option<Doc<T>>>>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { core, call, collection, keys, .. } = self;
        Box::pin(async move {
            let reply = core.data().batch_get(&call, &collection, keys).await?;
            Ok(reply.items.into_iter().map(|item| read_item(&call, item)).collect())
        })
    }
}

fn read_item<T: DeserializeOwned>(call: &Call, item: BatchItem) -> Result<Option<Doc<T>>> {
    if let (200, Some(document)) = (item.status, item.document) {
        let json = Bytes::from(String::from(Box::<str>::from(document)));
        let etag = item.etag.map_or_else(|| Etag::from_version(0), Etag::from);
        let raw = RawDoc { json, etag, expires: None, cache_hit: None };
        return raw.typed(&call.operation, item.id, item.sort, Outcome::NotApplied).map(Some);
    }
    match failed(call, item.status, item.etag, item.problem) {
        Error::NotFound(_) => Ok(None),
        error => Err(error),
    }
}

/// The error of one item; nothing about it was an error of the whole request.
pub(crate) fn failed(call: &Call, status: u16, etag: Option<String>, problem: Option<Box<Problem>>) -> Error {
    let problem = problem.map_or_else(|| bare_problem(status), |problem| *problem);
    Error::from_refusal(Refusal {
        current: etag.map(Etag::from),
        idempotency_key: call.idempotency_key.clone(),
        ..Refusal::new(&call.operation, problem)
    })
}

/// For an item that says its status and no more.
fn bare_problem(status: u16) -> Problem {
    let kind = match status {
        404 => ProblemType::DocumentNotFound,
        412 => ProblemType::PreconditionFailed,
        _ => ProblemType::Internal,
    };
    let outcome = if (400..500).contains(&status) { Outcome::NotApplied } else { Outcome::Unknown };
    let mut problem = Problem::new(kind, "the answer gives no details").with_outcome(outcome);
    if problem.status != status {
        (problem.status, problem.kind) = (status, "about:blank".to_owned());
    }
    problem
}

/// One write, until it is sent.
#[derive(Debug)]
struct Item {
    id: String,
    sort: Option<String>,
    action: ItemAction,
    if_match: Option<Etag>,
    if_absent: bool,
    ttl: Option<Duration>,
}

#[derive(Debug)]
enum ItemAction {
    Put(Json),
    Patch(Json),
    Delete,
}

/// Up to 100 writes, each applied or refused by itself; answers a result for each, in order.
///
/// ```no_run
/// # async fn run(users: borough_client::Collection<serde_json::Value>) -> Result<(), borough_client::Error> {
/// # let (ann, ben) = (serde_json::json!({}), serde_json::json!({}));
/// let results = users
///     .batch_write()
///     .put("ann", &ann).if_absent()
///     .put("ben", &ben).ttl(std::time::Duration::from_secs(3600))
///     .delete("eve")
///     .await?;
/// for result in results {
///     println!("{:?}", result?);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing happens until it is awaited"]
pub struct BatchWrite<T> {
    core: Core,
    call: Call,
    collection: String,
    items: Vec<Item>,
    /// The first fault of the caller's, told when awaited.
    fault: Option<Error>,
    kind: PhantomData<fn(&T)>,
}

/// Names an item of a batch: an id, or an id and a sort key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ItemKey {
    id: String,
    sort: Option<String>,
}

impl From<&str> for ItemKey {
    fn from(id: &str) -> Self {
        Self { id: id.to_owned(), sort: None }
    }
}

impl From<String> for ItemKey {
    fn from(id: String) -> Self {
        Self { id, sort: None }
    }
}

impl<I: Into<String>, S: Into<String>> From<(I, S)> for ItemKey {
    fn from((id, sort): (I, S)) -> Self {
        Self { id: id.into(), sort: Some(sort.into()) }
    }
}

impl<T> BatchWrite<T> {
    pub(crate) fn new(core: Core, collection: String) -> Self {
        let call = core.write(format!("batch write {collection}"));
        Self { core, call, collection, items: Vec::new(), fault: None, kind: PhantomData }
    }

    call_options!();
    write_options!();

    /// Replaces a document, or makes it. The key is an id, or (id, sort) in a sorted collection.
    pub fn put(self, key: impl Into<ItemKey>, value: &T) -> Self
    where
        T: Serialize,
    {
        let json = raw(&self.call, value);
        self.add(key.into(), json.map(ItemAction::Put))
    }

    /// Changes parts of a document by a merge patch (RFC 7396).
    pub fn patch<P: Serialize + ?Sized>(self, key: impl Into<ItemKey>, merge: &P) -> Self {
        let json = raw(&self.call, merge);
        self.add(key.into(), json.map(ItemAction::Patch))
    }

    /// Removes a document; [`Error::NotFound`] is its result when there is none.
    pub fn delete(self, key: impl Into<ItemKey>) -> Self {
        self.add(key.into(), Ok(ItemAction::Delete))
    }

    fn add(mut self, key: ItemKey, action: Result<ItemAction>) -> Self {
        let ItemKey { id, sort } = key;
        match action {
            Ok(action) => {
                self.items.push(Item { id, sort, action, if_match: None, if_absent: false, ttl: None });
            }
            Err(error) => self.fault = self.fault.or(Some(error)),
        }
        self
    }

    /// The write added last takes place only at this version.
    pub fn if_match(mut self, etag: impl Into<Etag>) -> Self {
        if let Some(item) = self.items.last_mut() {
            item.if_match = Some(etag.into());
        }
        self
    }

    /// The put added last takes place only when there is no such document.
    pub fn if_absent(mut self) -> Self {
        match self.items.last_mut() {
            Some(item) if matches!(item.action, ItemAction::Put(_)) => item.if_absent = true,
            Some(_) | None => self.misused("if_absent", "a put"),
        }
        self
    }

    /// What the write added last leaves vanishes after this long.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        match self.items.last_mut() {
            Some(item) if !matches!(item.action, ItemAction::Delete) => item.ttl = Some(ttl),
            Some(_) | None => self.misused("ttl", "a put or patch"),
        }
        self
    }

    fn misused(&mut self, option: &str, place: &str) {
        let error = Error::refused(
            &self.call.operation,
            ProblemType::BadRequest,
            format!("{option} follows {place}"),
        );
        self.fault.get_or_insert(error);
    }

    /// Writes added so far.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

impl<T> IntoFuture for BatchWrite<T> {
    type Output = Result<Vec<Result<Written>>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { core, call, collection, items, fault, .. } = self;
        Box::pin(async move {
            if let Some(fault) = fault {
                return Err(fault);
            }
            if items.is_empty() {
                return Ok(Vec::new());
            }
            let absent: Vec<bool> = items.iter().map(|item| item.if_absent).collect();
            let writes = items.into_iter().map(wire).collect();
            let reply = core.data().batch_write(&call, &collection, writes).await?;
            Ok(reply
                .items
                .into_iter()
                .zip(absent)
                .map(|(item, absent)| written(&call, item, absent))
                .collect())
        })
    }
}

/// The receipt or error of one item.
pub(crate) fn written(call: &Call, item: BatchItem, if_absent: bool) -> Result<Written> {
    if (200..300).contains(&item.status) {
        let etag = item.etag.map_or_else(|| Etag::from_version(0), Etag::from);
        let created = item.status == 201;
        return Ok(Written { id: item.id, sort: item.sort, etag, expires: None, created });
    }
    let error = failed(call, item.status, item.etag, item.problem);
    Err(if if_absent { error.of_if_absent() } else { error })
}

/// The value as JSON, kept as it is written.
pub(crate) fn raw<B: Serialize + ?Sized>(call: &Call, value: &B) -> Result<Json> {
    let json = serde_json::value::to_raw_value(value);
    json.map_err(|source| Error::Encode { operation: call.operation.clone(), source })
}

pub(crate) fn ttl_text(ttl: Duration) -> String {
    format_ttl(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}

fn wire(item: Item) -> http_api::BatchWrite {
    let Item { id, sort, action, if_match, if_absent, ttl } = item;
    let (if_match, ttl) = (if_match.map(|etag| etag.as_str().to_owned()), ttl.map(ttl_text));
    match action {
        ItemAction::Put(document) => {
            http_api::BatchWrite::Put(BatchPut { id, sort, document, if_match, if_absent, ttl })
        }
        ItemAction::Patch(merge) => {
            http_api::BatchWrite::Patch(BatchPatch { id, sort, merge, if_match, ttl })
        }
        ItemAction::Delete => http_api::BatchWrite::Delete(BatchDelete { id, sort, if_match }),
    }
}
