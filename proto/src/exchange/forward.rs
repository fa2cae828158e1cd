//! Sends a request to the node that can answer it, again and elsewhere if need be, until the caller's deadline.
//!
//! A write keeps its session and sequence through all attempts, so it is never applied twice. How it ends is one of three:
//! an answer, *not applied* (no attempt can have been proposed) or *unknown* (I9). One deadline spans all attempts (I8).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::pool::{Pool, PoolSettings};
use super::sequence::Sessions;
use super::tries::Tries;
use super::watch::MapWatch;
use crate::error::Outcome;
use crate::id::{NodeId, ShardId};
use crate::idempotency;
use crate::wire::{self, data_reply, data_request};

mod many;
#[cfg(test)]
mod tests;

/// Settings of a [`Forwarder`].
#[derive(Debug, Clone, Copy)]
pub struct ForwardSettings {
    pub pool: PoolSettings,
    /// A node that has not answered for this long is left for another; its answer may still be *unknown*.
    pub attempt: Duration,
}

impl Default for ForwardSettings {
    fn default() -> Self {
        Self { pool: PoolSettings::default(), attempt: Duration::from_secs(2) }
    }
}

/// An answer and who gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer<T> {
    pub body: T,
    pub shard: ShardId,
    pub node: NodeId,
    /// The shard's epoch at that node.
    pub epoch: u64,
    /// A log index of the shard that the answer includes, for session tokens.
    pub index: u64,
    /// Attempts it took, from 1.
    pub attempts: u32,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// No replica could answer, or none led, within the deadline.
    Unavailable,
    /// Refused for load.
    Overloaded,
    /// The disk is full: reads are served, writes are not.
    DiskFull,
    /// The deadline passed while a node was at work.
    DeadlineExceeded,
    /// The node's catalog has no such collection.
    UnknownCollection,
    /// A node found the request to break the contract.
    Invalid,
    Internal,
    /// The shard knows the write's sequence as answered or given up long ago.
    Forgotten,
}

/// No answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{shard}: {detail} ({why:?}, outcome {outcome:?}, {attempts} attempts)")]
pub struct ForwardError {
    pub shard: ShardId,
    /// The last node that said why not, if any did.
    pub node: Option<NodeId>,
    pub why: Why,
    /// Of a write; a read changes nothing, so it is always `NotApplied`.
    pub outcome: Outcome,
    pub detail: String,
    /// When to try again, where that helps.
    pub retry_after: Option<Duration>,
    pub attempts: u32,
}

/// Sends requests to the nodes of one cluster.
pub struct Forwarder {
    pub(super) watch: MapWatch,
    pub(super) pool: Pool,
    sessions: Sessions,
    pub(super) attempt: Duration,
}

impl Forwarder {
    /// A forwarder that learns the cluster map from `seeds` (`host:port` of nodes). Its tasks belong to `tracker` and end with `stop`.
    pub fn start(
        seeds: Vec<String>,
        settings: ForwardSettings,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let this = Arc::new(Self {
            watch: MapWatch::new(seeds, settings.pool.channel),
            pool: Pool::new(settings.pool, tracker.clone(), stop.clone()),
            sessions: Sessions::default(),
            attempt: settings.attempt,
        });
        let (watching, stop) = (Arc::clone(&this), stop.clone());
        tracker.spawn(async move { watching.watch.run(&watching.pool, &stop).await });
        this
    }

    /// The cluster map, as it is kept current.
    pub fn watch(&self) -> &MapWatch {
        &self.watch
    }

    /// The streams to the nodes.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// One page of a shard's documents.
    ///
    /// # Errors
    /// [`ForwardError`], outcome always `NotApplied`.
    pub async fn scan(
        &self,
        shard: ShardId,
        scan: wire::Scan,
        deadline: Instant,
    ) -> Result<Answer<wire::ScanReply>, ForwardError> {
        let mut tries = Tries::new(self, shard, anyone(scan.freshness.as_ref()), deadline);
        let reply = tries.send(|| data_request::Op::Scan(scan.clone())).await?;
        match reply.result {
            Some(data_reply::Result::Scan(body)) => {
                Ok(tries.answer(body, reply.node, reply.epoch, reply.index))
            }
            Some(_) | None => Err(tries.misanswered()),
        }
    }

    /// Applies `units` to one shard, each atomically by itself, in order, in one command.
    ///
    /// # Errors
    /// [`ForwardError`]; its outcome is `Unknown` unless no attempt can have been proposed.
    pub async fn write(
        &self,
        shard: ShardId,
        units: Vec<wire::Unit>,
        deadline: Instant,
    ) -> Result<Answer<wire::CommandReply>, ForwardError> {
        // Its drop, on every way out of here, lets the watermark pass: from then on nobody can send this sequence again.
        let ticket = self.sessions.begin(shard);
        let mut tries = Tries::new(self, shard, false, deadline);
        tries.writes = true;
        let command = || wire::Command {
            stamp_ms: 0,
            session: Some(ticket.session()),
            units: units.clone(),
            sweep: None,
        };
        let reply = tries.send(|| data_request::Op::Write(wire::Write { command: Some(command()) })).await?;
        match reply.result {
            Some(data_reply::Result::Write(body)) if body.stale_duplicate => {
                tries.tainted = true;
                Err(tries.error(Why::Forgotten, "the shard no longer knows how this write ended"))
            }
            Some(data_reply::Result::Write(body)) if body.units.len() == units.len() => {
                Ok(tries.answer(body, reply.node, reply.epoch, reply.index))
            }
            Some(_) | None => Err(tries.misanswered()),
        }
    }
}

impl Forwarder {
    /// Claims a caller's key for one request in `shard`, the shard of the key itself; the answer has the first claim's
    /// note. The caller must look whether it says `KEY_REUSED`.
    ///
    /// # Errors
    /// [`ForwardError`], outcome always `NotApplied`: a claim changes no document, and the same request may claim again.
    pub async fn claim(
        &self,
        shard: ShardId,
        collection: u32,
        key: wire::Idempotency,
        deadline: Instant,
    ) -> Result<Answer<wire::UnitReply>, ForwardError> {
        let noted = key.note.is_some();
        let claimed = self.write(shard, vec![idempotency::claim(collection, key)], deadline).await;
        let Answer { mut body, shard, node, epoch, index, attempts } = claimed.map_err(nothing_applied)?;
        let unit = body.units.pop().unwrap_or_default();
        let reused = unit.ops.iter().any(|op| op.status() == wire::OpStatus::KeyReused);
        if noted && !reused && unit.note.is_none() {
            // A node of an earlier build dropped it; without it a retry would be another request.
            let detail = "a node of an earlier build keeps no note with a key".to_owned();
            let (why, outcome, retry_after) = (Why::Unavailable, Outcome::NotApplied, None);
            return Err(ForwardError {
                shard,
                node: Some(node),
                why,
                outcome,
                detail,
                retry_after,
                attempts,
            });
        }
        Ok(Answer { body: unit, shard, node, epoch, index, attempts })
    }
}

/// Whatever became of a claim, the request behind it was not sent.
fn nothing_applied(mut error: ForwardError) -> ForwardError {
    error.outcome = Outcome::NotApplied;
    if matches!(error.why, Why::DeadlineExceeded | Why::Forgotten) {
        error.why = Why::Unavailable;
    }
    error
}

/// Whether any replica may answer.
fn anyone(freshness: Option<&wire::Freshness>) -> bool {
    freshness.is_some_and(|fresh| fresh.max_stale_ms.is_some() || fresh.min_index.is_some())
}
