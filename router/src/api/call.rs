//! One request: its headers, its deadline, and what it needs of the cluster map.

use std::sync::Arc;

use axum::body::Body;
use borough_proto::ClusterMap;
use borough_proto::error::ProblemType;
use borough_proto::http_api::{headers as names, valid_collection_name};
use borough_proto::idempotency::CLAIM;
use borough_proto::session::Session;
use borough_proto::wire::{CollectionInfo, Freshness, Idempotency};
use borough_proto::{ShardId, error::Outcome};
use bytes::Bytes;
use http::request::Parts;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use super::settle::{Named, settle};
use crate::app::App;
use crate::auth::{Caller, Right};
use crate::http::answer::Trace;
use crate::http::body;
use crate::http::headers::{self, CacheControl};
use crate::http::refusal::Refusal;

/// A request whose common headers were read.
pub struct Call<'a> {
    pub app: &'a App,
    pub head: &'a Parts,
    pub arrived: Instant,
    pub caller: Caller<'a>,
    /// When the caller must have its answer; the same for every hop (I8).
    pub deadline: Instant,
    session: Option<Session>,
    cache: CacheControl,
}

impl<'a> Call<'a> {
    /// # Errors
    /// 400 for a malformed header.
    pub fn new(app: &'a App, head: &'a Parts, arrived: Instant, caller: Caller<'a>) -> Result<Self, Refusal> {
        let timeout = headers::timeout(&head.headers, app.config.request_timeout)?;
        let session = headers::session(&head.headers)?;
        let cache = CacheControl::read(&head.headers)?;
        Ok(Self { app, head, arrived, caller, deadline: arrived + timeout, session, cache })
    }

    /// Whether the caller may use `right` on a collection that its path does not name.
    ///
    /// # Errors
    /// 403.
    pub fn may(&self, right: Right, collection: &str) -> Result<(), Refusal> {
        self.caller.may(right, Some(collection)).map_err(|denied| self.app.deny(denied))
    }

    /// The cluster map, waiting for the first one if need be.
    ///
    /// # Errors
    /// 503 when there is none within the deadline.
    pub async fn map(&self) -> Result<Arc<ClusterMap>, Refusal> {
        let watch = self.app.forwarder.watch();
        let map = watch.map();
        if !map.shards().is_empty() {
            return Ok(map);
        }
        watch.reached(1, self.deadline).await;
        let map = watch.map();
        if map.shards().is_empty() {
            let refusal =
                Refusal::new(ProblemType::Unavailable, "no cluster was found among the configured nodes");
            return Err(refusal.retry_after(std::time::Duration::from_secs(1)));
        }
        Ok(map)
    }

    /// The collection of that name, also when another router has made it just now.
    ///
    /// # Errors
    /// 404; 503 when it is not known here and the cluster cannot be asked.
    pub async fn collection(&self, name: &str) -> Result<Arc<CollectionInfo>, Refusal> {
        let known = collection(&*self.map().await?, name);
        if known.is_ok() || !valid_collection_name(name) {
            return known;
        }
        Box::pin(self.app.catalog.catch_up(self)).await?;
        collection(&*self.map().await?, name)
    }

    /// How fresh a read of `shard` must be; `None` is linearizable.
    pub fn freshness(&self, shard: ShardId) -> Option<Freshness> {
        if self.cache.no_cache {
            return None;
        }
        let max_stale_ms = self.cache.max_stale_ms.filter(|&ms| ms > 0);
        let min_index = match &self.session {
            // A token that saw "everything" is only satisfied by the leader.
            Some(session) => Some(session.min_index(shard)?).filter(|&index| index > 0),
            None => None,
        };
        // A token that never saw the shard says nothing about it: without leave to be stale the read is linearizable.
        (max_stale_ms.is_some() || min_index.is_some()).then_some(Freshness { max_stale_ms, min_index })
    }

    /// What the answer will tell of the nodes that took part.
    pub fn trace(&self) -> Trace {
        Trace::new(self.session.as_ref())
    }

    /// Reads the body as JSON of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// 413, 415, 400.
    pub async fn body(&self, body: Body, bytes_max: usize, accepted: &[&str]) -> Result<Bytes, Refusal> {
        headers::content_type(&self.head.headers, accepted)?;
        body::read(&self.head.headers, body, bytes_max, self.deadline).await
    }

    /// The caller's `Idempotency-Key` with the fingerprint of what it is used for.
    ///
    /// # Errors
    /// 400 for a malformed key.
    pub fn idempotency(&self, position: u32, parts: &[&[u8]]) -> Result<Option<Idempotency>, Refusal> {
        let Some(key) = headers::idempotency_key(&self.head.headers)? else { return Ok(None) };
        let fingerprint = fingerprint(self.head.method.as_str(), parts);
        Ok(Some(Idempotency { key: key.to_owned(), position, fingerprint, note: None }))
    }

    /// Claims the caller's `Idempotency-Key`, if there is one, for this request, whatever shards its body names. Answers
    /// the note of the first claim.
    ///
    /// # Errors
    /// 422 when the key was claimed for another request; 503 when nobody can tell. Nothing was applied.
    pub async fn claim(
        &self,
        info: &CollectionInfo,
        parts: &[&[u8]],
        note: Option<Bytes>,
    ) -> Result<Option<Bytes>, Refusal> {
        let Some(key) = self.idempotency(CLAIM, parts)? else { return Ok(note) };
        let shard = shard_of(&*self.map().await?, &key.key)?;
        let key = Idempotency { note, ..key };
        let claimed = self.app.forwarder.claim(shard, info.id, key, self.deadline).await?;
        let reply = claimed.body.ops.first().cloned().unwrap_or_default();
        let named = Named { collection: &info.name, id: "", sort: None, create: false };
        match settle(&reply, named) {
            Ok(_) => Ok(claimed.body.note),
            Err(refusal) => {
                let mut refusal = refusal.outcome(Outcome::NotApplied);
                let mut trace = self.trace();
                trace.note(&claimed);
                trace.write(refusal.headers_mut());
                Err(refusal)
            }
        }
    }
}

/// `xxh3_64` over the method and `parts`, each with its length before it so that none runs into the next.
fn fingerprint(method: &str, parts: &[&[u8]]) -> u64 {
    let mut hash = Xxh3::new();
    for part in std::iter::once(&method.as_bytes()).chain(parts) {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.digest()
}

/// The collection of that name.
///
/// # Errors
/// 404.
pub fn collection(map: &ClusterMap, name: &str) -> Result<Arc<CollectionInfo>, Refusal> {
    map.collection(name).cloned().ok_or_else(|| {
        Refusal::new(ProblemType::CollectionNotFound, format!("there is no collection {name:?}"))
    })
}

/// The shard of a document's id.
///
/// # Errors
/// 503 for a map without shards, which [`Call::map`] never gives.
pub fn shard_of(map: &ClusterMap, id: &str) -> Result<ShardId, Refusal> {
    let shard = map.shard_of_id(id).map(|shard| ShardId(shard.id));
    shard.ok_or_else(|| Refusal::new(ProblemType::Unavailable, "the cluster has no shards yet"))
}

/// Checks that a sort key is given exactly for sorted collections.
///
/// # Errors
/// 400 naming the field.
pub fn check_sort(info: &CollectionInfo, sort: Option<&str>) -> Result<(), Refusal> {
    let detail = match (info.sort_key, sort) {
        (true, None) => format!("collection {:?} is sorted: \"sort\" is missing", info.name),
        (false, Some(_)) => format!("collection {:?} is not sorted: it takes no \"sort\"", info.name),
        (true, Some(_)) | (false, None) => return Ok(()),
    };
    Err(Refusal::new(ProblemType::BadRequest, detail).field("sort"))
}

/// 428 when the collection asks for a precondition and there is none; `field` is where it could be given.
///
/// # Errors
/// 428.
pub fn require_precondition(info: &CollectionInfo, given: bool, field: &str) -> Result<(), Refusal> {
    if info.require_preconditions && !given {
        let detail =
            format!("writes to collection {:?} need a precondition (If-Match or If-None-Match)", info.name);
        return Err(Refusal::new(ProblemType::PreconditionRequired, detail).field(field));
    }
    Ok(())
}

/// What a panic is answered with: nobody knows how far the request was (I9).
pub fn panicked() -> Refusal {
    Refusal::new(ProblemType::Internal, "the router failed while it handled the request")
        .outcome(Outcome::Unknown)
}

/// The name of the request-id header.
pub const REQUEST_ID: http::HeaderName = http::HeaderName::from_static(names::REQUEST_ID);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_tell_parts_apart() {
        let base = fingerprint("PUT", &[b"users", b"1", b"{}"]);
        assert_eq!(base, fingerprint("PUT", &[b"users", b"1", b"{}"]));
        for other in [
            fingerprint("POST", &[b"users", b"1", b"{}"]),
            fingerprint("PUT", &[b"users1", b"", b"{}"]),
            fingerprint("PUT", &[b"users", b"1", b"{ }"]),
            fingerprint("PUT", &[b"users", b"1{}"]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_sort_key_goes_with_sorted_collections_only() {
        let sorted = CollectionInfo { sort_key: true, ..Default::default() };
        let plain = CollectionInfo::default();
        assert!(check_sort(&sorted, Some("a")).is_ok() && check_sort(&plain, None).is_ok());
        assert!(check_sort(&sorted, None).is_err() && check_sort(&plain, Some("a")).is_err());
    }
}
