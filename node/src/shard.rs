//! A shard's documents on this node: the machine that Raft applies to, and the reads over it.
//!
//! Writes the engine, then the cache, then lets the applied index move (I7). Knows no network.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use borough_proto::{ReplicaId, wire};
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;

use crate::cache::Cache;
use crate::defect::{self, Defect};
use crate::raft::{Group, Machine, ReadError, Reply};
use crate::state::{self, Header, Sessions, SweepLimits, Visibility};
use crate::store::snapshot::VersionedSpace;
use crate::store::{Space, StoreError};

/// The state machine of one shard replica.
pub struct ShardMachine {
    replica: ReplicaId,
    cache: Arc<Cache>,
    header: Mutex<Header>,
    /// As the last batch has left them. Of the space that was loaded last.
    sessions: Mutex<Sessions>,
    pub reads: AtomicU64,
    pub writes: AtomicU64,
}

impl ShardMachine {
    pub fn new(replica: ReplicaId, cache: Arc<Cache>) -> Arc<Self> {
        Arc::new(Self {
            replica,
            cache,
            header: Mutex::default(),
            sessions: Mutex::default(),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        })
    }

    /// Counters and time of the shard as applied here.
    pub fn header(&self) -> Header {
        *self.header.lock()
    }
}

impl Machine for ShardMachine {
    fn load(&self, space: &VersionedSpace) -> Result<(), StoreError> {
        *self.sessions.lock() = Sessions::default();
        *self.header.lock() = state::load_header(space)?;
        Ok(())
    }

    fn apply(
        &self,
        space: &VersionedSpace,
        commands: &[(u64, Bytes)],
        position: (Bytes, Bytes),
    ) -> Result<Vec<Reply>, StoreError> {
        let before = self.header();
        // Whatever fails from here on, nothing of it is taken for what the space holds.
        let sessions = std::mem::take(&mut *self.sessions.lock());
        let mut apply = state::resume(space, before, sessions);
        let mut replies = Vec::with_capacity(commands.len());
        for (index, bytes) in commands {
            replies.push(match wire::Command::decode(bytes.clone()) {
                Ok(command) => Reply::Shard(apply.apply(*index, &command)?),
                // The same bytes on every replica: all of them skip it alike (I5).
                Err(error) => {
                    tracing::error!(replica = %self.replica, index, %error, "log entry is not a command");
                    Reply::Undecodable
                }
            });
        }
        let mut applied = apply.finish();
        let (key, value) = position;
        applied.batch.changes.push((key, Some(value)));
        space.apply(applied.batch)?;
        *self.header.lock() = applied.header;
        *self.sessions.lock() = applied.sessions;
        self.writes.fetch_add(commands.len() as u64, Ordering::Relaxed);
        for (key, record) in applied.touched {
            if defect::has(Defect::StaleCache) {
                continue;
            }
            self.cache.update(space.instance(), key, record);
        }
        if applied.swept.documents > 0 {
            metrics::counter!("borough_swept_documents_total").increment(applied.swept.documents);
        }
        if applied.swept.keys_evicted > 0 {
            metrics::counter!("borough_idempotency_evicted_total").increment(applied.swept.keys_evicted);
        }
        Ok(replies)
    }
}

/// A running shard replica.
#[derive(Clone)]
pub struct Shard {
    pub group: Arc<Group>,
    pub machine: Arc<ShardMachine>,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ShardReadError {
    #[error(transparent)]
    Barrier(#[from] ReadError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the shard's time could not be moved on: {0}")]
    Time(String),
}

/// Whose word decides that a document has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The leader's, made the shard's own by a log entry before anybody acts on it, so that what was
    /// once seen expired stays so under every later leader.
    Leader,
    /// This replica's, for reads that may be stale.
    Local,
}

fn stored_key(key: &wire::DocumentKey) -> Bytes {
    state::document_key(key.collection, &key.id, key.sort.as_deref())
}

/// How far a read came without waiting.
pub enum ReadNow {
    /// To the end, with the log index included.
    Done(Vec<wire::ReadItem>, u64),
    /// All but [`Shard::finish`]: a document has expired that the shard's time has not passed, or a batch is being applied.
    Found(Found),
    /// Another reader loads one of the documents.
    Loading,
}

/// What a read has come to.
pub struct Found {
    items: Vec<wire::ReadItem>,
    now_ms: u64,
    /// Of the documents hidden because they have expired by `now_ms`; 0 when there is none.
    newest_deadline: u64,
}

impl Found {
    fn new(keys: usize, now_ms: u64) -> Self {
        Self { items: Vec::with_capacity(keys), now_ms, newest_deadline: 0 }
    }

    /// What the cache answered under `stored`.
    fn add(&mut self, stored: &Bytes, (record, cache_hit): (Option<Bytes>, bool)) -> Result<(), StoreError> {
        let document = match &record {
            Some(record) => Some(state::decode_document(stored, record)?),
            None => None,
        };
        let document =
            document.filter(|document| match state::visibility(document.expires_ms, self.now_ms) {
                Visibility::Visible => true,
                Visibility::Expired => {
                    self.newest_deadline = self.newest_deadline.max(document.expires_ms.unwrap_or(0));
                    false
                }
            });
        self.items.push(wire::ReadItem { document, cache_hit });
        Ok(())
    }
}

impl Shard {
    /// Reads documents after the caller's barrier: each with whether the cache answered, and the log index included.
    ///
    /// # Errors
    /// [`ShardReadError`].
    pub async fn read(
        &self,
        keys: &[wire::DocumentKey],
        now_ms: u64,
        clock: Clock,
    ) -> Result<(Vec<wire::ReadItem>, u64), ShardReadError> {
        let mut found = Found::new(keys.len(), now_ms);
        let space = self.group.state.space();
        let instance = space.space.instance();
        for key in keys {
            let stored = stored_key(key);
            let load = || space.space.get(&stored);
            let record = self.machine.cache.get_or_load(instance, stored.clone(), load).await?;
            found.add(&stored, record)?;
        }
        self.finish(found, clock).await
    }

    /// [`read`](Self::read) by the leader's clock, as far as nothing has to be waited for.
    ///
    /// # Errors
    /// [`StoreError`] of the engine.
    pub fn read_now(&self, keys: &[wire::DocumentKey], now_ms: u64) -> Result<ReadNow, StoreError> {
        let mut found = Found::new(keys.len(), now_ms);
        let space = self.group.state.space();
        let instance = space.space.instance();
        for key in keys {
            let stored = stored_key(key);
            let load = || space.space.get(&stored);
            let record = self.machine.cache.get_or_load_now(instance, stored.clone(), load)?;
            let Some(record) = record else { return Ok(ReadNow::Loading) };
            found.add(&stored, record)?;
        }
        if found.newest_deadline > self.machine.header().time_ms {
            return Ok(ReadNow::Found(found));
        }
        let Some(index) = self.group.state.settled() else { return Ok(ReadNow::Found(found)) };
        self.machine.reads.fetch_add(found.items.len() as u64, Ordering::Relaxed);
        Ok(ReadNow::Done(found.items, index))
    }

    /// Waits until every later read will see what `found` has seen; the items, and the log index included.
    ///
    /// # Errors
    /// [`ShardReadError`].
    pub async fn finish(
        &self,
        found: Found,
        clock: Clock,
    ) -> Result<(Vec<wire::ReadItem>, u64), ShardReadError> {
        self.machine.reads.fetch_add(found.items.len() as u64, Ordering::Relaxed);
        self.confirm_expired(found.newest_deadline, found.now_ms, clock).await?;
        Ok((found.items, self.group.state.settle().await))
    }

    /// Scans a page after the caller's barrier; also whether there is more, and the log index included.
    ///
    /// # Errors
    /// [`ShardReadError`].
    pub async fn scan(
        &self,
        scan: wire::Scan,
        now_ms: u64,
        clock: Clock,
    ) -> Result<(Vec<wire::Document>, bool, u64), ShardReadError> {
        let space = self.group.state.space();
        let scanning = move || {
            let page = state::scan(&space.space, &scan, now_ms)?;
            Ok::<_, StoreError>(page)
        };
        // A page is up to a thousand documents: not on a thread that serves others.
        let (items, more) = match crate::blocking::spawn(scanning).await {
            Ok(page) => page?,
            Err(error) => return Err(ShardReadError::Time(error.to_string())),
        };
        self.machine.reads.fetch_add(items.len() as u64, Ordering::Relaxed);
        // A scan does not tell what it hid, so any document that may have just expired counts.
        let header = self.machine.header();
        if clock == Clock::Leader
            && state::expires_between(&self.group.state.space().space, header.time_ms, now_ms)?
        {
            Box::pin(self.advance_time(now_ms)).await?;
        }
        Ok((items, more, self.group.state.settle().await))
    }

    /// A document seen expired by the leader's clock alone: the shard's time must reach that moment first.
    async fn confirm_expired(
        &self,
        deadline_ms: u64,
        now_ms: u64,
        clock: Clock,
    ) -> Result<(), ShardReadError> {
        if clock == Clock::Leader && deadline_ms > self.machine.header().time_ms {
            Box::pin(self.advance_time(now_ms)).await?;
        }
        Ok(())
    }

    async fn advance_time(&self, now_ms: u64) -> Result<(), ShardReadError> {
        let tick = wire::Command { stamp_ms: now_ms, ..Default::default() };
        let proposed = self.group.propose(crate::raft::proposal(&tick)).await;
        proposed.map(|_| ()).map_err(|error| ShardReadError::Time(error.to_string()))
    }

    /// The housekeeping that this replica, as leader, should propose now.
    ///
    /// # Errors
    /// [`StoreError`] of the engine.
    pub fn sweep_due(
        &self,
        now_ms: u64,
        limits: SweepLimits,
        deleted: impl Fn(u32) -> bool,
    ) -> Result<Option<wire::Sweep>, StoreError> {
        let space = self.group.state.space();
        let gone =
            state::collections_held(&space.space)?.into_iter().filter(|&id| deleted(id)).collect::<Vec<_>>();
        let due = state::sweep_due(&space.space, &self.machine.header(), now_ms, limits)?;
        if gone.is_empty() {
            return Ok(due);
        }
        let sweep = due.unwrap_or_else(|| state::sweep_at(now_ms, limits));
        Ok(Some(wire::Sweep { collections: gone, ..sweep }))
    }
}
