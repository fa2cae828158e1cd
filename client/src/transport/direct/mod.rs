//! Straight to the shards' leaders: what a router does for a call, done here, with the same answers.
//!
//! Attempts, leaders and sessions against double writes are the forwarder's. A caller's idempotency key is
//! sent along; keys of the client's own are not made, because the sessions do their work at a fraction of the cost.

mod batch;
mod list;
mod ops;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use borough_proto::error::{Outcome, ProblemType};
use borough_proto::exchange::channel::ChannelSettings;
use borough_proto::exchange::pool::PoolSettings;
use borough_proto::exchange::{Answer, ForwardError, ForwardSettings, Forwarder, Why};
use borough_proto::idempotency::{CLAIM, position_of};
use borough_proto::{ClusterMap, ShardId, wire};
use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::{Action, Call, Condition, Key, RawWritten, WriteRule};
use crate::builder::BuildError;
use crate::document::{Etag, RawDoc};
use crate::error::{Error, Result};

/// How long a call waits for the map to name a collection that was perhaps made just now.
const NEW_COLLECTION: Duration = Duration::from_secs(1);

/// The nodes. The forwarder starts with the first call, within the caller's runtime.
pub(crate) struct Direct {
    seeds: Vec<String>,
    channel: ChannelSettings,
    running: OnceLock<Running>,
}

struct Running {
    forwarder: Arc<Forwarder>,
    /// Ends the forwarder's tasks.
    _stop: DropGuard,
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").field("seeds", &self.seeds).finish_non_exhaustive()
    }
}

/// One call on its way: what it needs to know of the cluster, and its one deadline (I8).
struct Way<'a> {
    call: &'a Call,
    forwarder: &'a Forwarder,
    map: Arc<ClusterMap>,
    until: Instant,
}

impl Direct {
    pub fn new(seeds: Vec<String>, channel: ChannelSettings) -> Result<Self, BuildError> {
        if seeds.is_empty() {
            return Err(BuildError::NowhereToGo);
        }
        for addr in &seeds {
            channel
                .endpoint(addr)
                .map_err(|error| BuildError::BadNode { addr: addr.clone(), reason: error.to_string() })?;
        }
        Ok(Self { seeds, channel, running: OnceLock::new() })
    }

    fn forwarder(&self) -> &Forwarder {
        let start = || {
            let stop = CancellationToken::new();
            let pool = PoolSettings { channel: self.channel, ..PoolSettings::default() };
            let settings = ForwardSettings { pool, ..ForwardSettings::default() };
            let forwarder = Forwarder::start(self.seeds.clone(), settings, &TaskTracker::new(), &stop);
            Running { forwarder, _stop: stop.drop_guard() }
        };
        &self.running.get_or_init(start).forwarder
    }

    /// Sets out once there is a map.
    async fn way<'a>(&'a self, call: &'a Call) -> Result<Way<'a>> {
        let (forwarder, until) = (self.forwarder(), Instant::now() + call.deadline);
        if !forwarder.watch().reached(1, until).await {
            let detail = format!("no cluster map from {} in time", self.seeds.join(", "));
            return Err(Error::refused(&call.operation, ProblemType::Unavailable, detail));
        }
        Ok(Way { call, forwarder, map: forwarder.watch().map(), until })
    }

    pub async fn get(&self, call: &Call, key: &Key) -> Result<Option<RawDoc>> {
        let mut way = self.way(call).await?;
        let collection = way.collection(&key.collection, key.sort.is_some()).await?;
        let shard = way.shard(&key.id)?;
        let keys =
            vec![wire::DocumentKey { collection: collection.id, id: key.id.clone(), sort: key.sort.clone() }];
        let answer = way.read(shard, keys).await?;
        let item = answer.body.items.into_iter().next();
        let hit = item.as_ref().map(|item| item.cache_hit);
        Ok(item
            .and_then(|item| item.document)
            .map(|document| RawDoc { cache_hit: hit, ..ops::shown(document) }))
    }

    pub async fn write(
        &self,
        call: &Call,
        key: &Key,
        action: &Action,
        rule: &WriteRule,
    ) -> Result<RawWritten> {
        let position = position_of(&[&key.collection, &key.id, key.sort.as_deref().unwrap_or_default()]);
        self.way(call).await?.put(position, key, action, rule).await
    }

    pub async fn create(
        &self,
        call: &Call,
        collection: &str,
        body: &Bytes,
        ttl: Option<Duration>,
    ) -> Result<RawWritten> {
        let given = ops::id_to_create(body).map_err(|refused| refused.of(call))?;
        let made = given.is_none().then(|| uuid::Uuid::now_v7().to_string());
        let note = made.clone().map(Bytes::from);
        let mut key =
            Key { collection: collection.to_owned(), id: given.or(made).unwrap_or_default(), sort: None };
        key.check(&call.operation)?;
        let rule = WriteRule { condition: Condition::Absent, ttl };
        let mut way = self.way(call).await?;
        if let Some(claim) =
            ops::idempotency(call, CLAIM, "CREATE", &format!("{collection:?} {rule:?}"), body)
        {
            let noted = way.claim(collection, wire::Idempotency { note, ..claim }).await?;
            if let Some(first) = noted {
                // The id that the first attempt made.
                key.id = String::from_utf8(first.into()).map_err(|_| way.misanswered())?;
            }
        }
        let written = way.put(0, &key, &Action::Put(body.clone()), &rule).await;
        let written = written.map_err(Error::of_if_absent)?;
        Ok(RawWritten { id: Some(key.id), ..written })
    }
}

impl Way<'_> {
    async fn put(
        &mut self,
        position: u32,
        key: &Key,
        action: &Action,
        rule: &WriteRule,
    ) -> Result<RawWritten> {
        let collection = self.collection(&key.collection, key.sort.is_some()).await?;
        let op = ops::op(&collection, &key.id, key.sort.as_deref(), action, rule)
            .map_err(|refused| refused.of(self.call))?;
        let (method, body) = match action {
            Action::Put(body) => ("PUT", &**body),
            Action::Patch(body) => ("PATCH", &**body),
            Action::Delete => ("DELETE", &[][..]),
        };
        let idempotency = ops::idempotency(self.call, position, method, &format!("{key:?} {rule:?}"), body);
        let unit = wire::Unit { ops: vec![op], idempotency };
        let reply = self.write_one(&key.id, unit).await?;
        let reply = reply.ops.into_iter().next().ok_or_else(|| self.misanswered())?;
        ops::written(reply, &key.id, key.sort.as_deref()).map_err(|refused| refused.of(self.call))
    }

    /// Claims the caller's key for a request whose body decides the shards; the note of the first claim.
    async fn claim(&mut self, collection: &str, key: wire::Idempotency) -> Result<Option<Bytes>> {
        let info = match self.map.collection(collection) {
            Some(info) => Arc::clone(info),
            // Perhaps made just now; whether it is sorted is for the write to say.
            None => self.collection(collection, false).await?,
        };
        let shard = self.shard(&key.key)?;
        let claimed = self.forwarder.claim(shard, info.id, key, self.until).await;
        let wire::UnitReply { ops, note, .. } = self.seen(claimed)?.body;
        let reply = ops.into_iter().next().ok_or_else(|| self.misanswered())?;
        ops::written(reply, "", None)
            .map_err(|refused| refused.with_outcome(Outcome::NotApplied).of(self.call))?;
        Ok(note)
    }

    /// The collection of that name. One that the map does not know may be new: the map is asked for once more, and
    /// waited for, since the next news may be of something else.
    async fn collection(&mut self, name: &str, sorted: bool) -> Result<Arc<wire::CollectionInfo>> {
        if self.map.collection(name).is_none() {
            let watch = self.forwarder.watch();
            watch.refresh();
            let patience = self.until.min(Instant::now() + NEW_COLLECTION);
            while self.map.collection(name).is_none() && watch.reached(self.map.epoch() + 1, patience).await {
                self.map = watch.map();
            }
        }
        let operation = &self.call.operation;
        let Some(info) = self.map.collection(name) else {
            let detail = format!("there is no collection {name:?}");
            return Err(Error::refused(operation, ProblemType::CollectionNotFound, detail));
        };
        if info.sort_key != sorted {
            let detail = if info.sort_key { "is sorted: name a sort key" } else { "has no sort keys" };
            return Err(Error::refused(
                operation,
                ProblemType::BadRequest,
                format!("the collection {name:?} {detail}"),
            ));
        }
        Ok(Arc::clone(info))
    }

    fn shard(&self, id: &str) -> Result<ShardId> {
        self.map.shard_of_id(id).map(|shard| ShardId(shard.id)).ok_or_else(|| {
            Error::refused(&self.call.operation, ProblemType::Unavailable, "the cluster map has no shards")
        })
    }

    /// How fresh a read of `shard` has to be: `None` is linearizable.
    fn freshness(&self, shard: ShardId) -> Option<wire::Freshness> {
        let seen = self.call.session.as_ref().and_then(|session| session.seen());
        let min_index = seen.as_ref().map(|seen| seen.min_index(shard));
        let max_stale_ms = self.call.max_stale.map(|age| u32::try_from(age.as_millis()).unwrap_or(u32::MAX));
        match (min_index, max_stale_ms) {
            // The session saw more shards than a token can name.
            (Some(None), _) | (None, None) => None,
            (Some(Some(index)), max_stale_ms) => {
                Some(wire::Freshness { max_stale_ms, min_index: Some(index) })
            }
            (None, max_stale_ms) => Some(wire::Freshness { max_stale_ms, min_index: None }),
        }
    }

    async fn read(&self, shard: ShardId, keys: Vec<wire::DocumentKey>) -> Result<Answer<wire::ReadReply>> {
        let read = wire::Read { keys, freshness: self.freshness(shard) };
        self.seen(self.forwarder.read(shard, read, self.until).await)
    }

    /// Reads of several shards at once; `keys` are those of the shard in a place of `shards`, and the results are in the
    /// order of `shards`.
    async fn read_many(
        &self,
        shards: &[ShardId],
        keys: impl Fn(usize) -> Vec<wire::DocumentKey> + Send + Sync,
    ) -> Vec<Result<Answer<wire::ReadReply>>> {
        // Once: what the session sees meanwhile must not make a read that is sent again a weaker one.
        let shards: Vec<_> = shards.iter().map(|&shard| (shard, self.freshness(shard))).collect();
        let answers = self.forwarder.read_many(&shards, keys, self.until).await;
        answers.into_iter().map(|answer| self.seen(answer)).collect()
    }

    async fn scan(&self, shard: ShardId, scan: wire::Scan) -> Result<Answer<wire::ScanReply>> {
        let scan = wire::Scan { freshness: self.freshness(shard), ..scan };
        self.seen(self.forwarder.scan(shard, scan, self.until).await)
    }

    async fn write(&self, shard: ShardId, units: Vec<wire::Unit>) -> Result<Answer<wire::CommandReply>> {
        self.seen(self.forwarder.write(shard, units, self.until).await)
    }

    async fn write_one(&self, id: &str, unit: wire::Unit) -> Result<wire::UnitReply> {
        let answer = self.write(self.shard(id)?, vec![unit]).await?;
        answer.body.units.into_iter().next().ok_or_else(|| self.misanswered())
    }

    /// Takes an answer into the session, and turns a failure into the error that a router's answer would be.
    fn seen<T>(&self, answer: Result<Answer<T>, ForwardError>) -> Result<Answer<T>> {
        let answer = answer.map_err(|error| self.failed(error))?;
        if let Some(session) = &self.call.session {
            session.observe(answer.shard, answer.index);
        }
        Ok(answer)
    }

    fn failed(&self, error: ForwardError) -> Error {
        use ProblemType as Kind;
        let kind = match error.why {
            Why::Internal => Kind::Internal,
            // 503 promises that nothing was applied; after an attempt that may have been, it is 504.
            _ if error.outcome == Outcome::Unknown => Kind::DeadlineExceeded,
            Why::Unavailable => Kind::Unavailable,
            Why::Overloaded | Why::DiskFull => Kind::Overloaded,
            Why::DeadlineExceeded | Why::Forgotten => Kind::DeadlineExceeded,
            Why::UnknownCollection => Kind::CollectionNotFound,
            Why::Invalid => Kind::BadRequest,
        };
        let refused = ops::Refused::new(kind, error.detail).with_outcome(error.outcome);
        let mut refused = refused.refusal(self.call);
        refused.retry_after = error.retry_after.or(refused.retry_after);
        Error::from_refusal(refused)
    }

    /// A node answered something else than was asked.
    fn misanswered(&self) -> Error {
        let refused = ops::Refused::new(ProblemType::Internal, "the node's answer does not fit the request");
        refused.with_outcome(Outcome::Unknown).of(self.call)
    }
}

/// The version as a tag; 0 stands for none.
fn tag(version: u64) -> Option<Etag> {
    (version != 0).then(|| Etag::from_version(version))
}
