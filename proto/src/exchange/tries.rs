//! One request's attempts: whom to ask, what to make of a fault, when to pause, when to stop.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::forward::{Answer, ForwardError, Forwarder, Why};
use super::mux::CallError;
use super::route::Route;
use crate::error::{Outcome, Retry};
use crate::id::{NodeId, ShardId};
use crate::wire::{self, FaultCode, data_reply, data_request};

/// Between rounds, once every replica was tried.
const PAUSES: Backoff = Backoff { first: Duration::from_millis(10), max: Duration::from_millis(100) };
/// After this many rounds without an answer the map itself is doubted.
const ROUNDS_TRUSTED: u32 = 3;
/// After this many refusals for load the caller is told, so that retries do not feed the overload.
const REFUSALS_MAX: u32 = 3;
/// How long nodes may go without knowing a collection that the map has.
const COLLECTION_PATIENCE: Duration = Duration::from_secs(2);
/// When to try again after a refusal that names no time.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRY_AFTER_DISK_FULL: Duration = Duration::from_secs(10);

/// The attempts of one request.
pub(super) struct Tries<'a> {
    forwarder: &'a Forwarder,
    shard: ShardId,
    deadline: Instant,
    started: Instant,
    route: Route,
    /// Whether it is a write.
    pub(super) writes: bool,
    /// An attempt may have been proposed whose answer never came.
    pub(super) tainted: bool,
    attempts: u32,
    /// The last node that answered with a fault.
    refused_by: Option<NodeId>,
    pauses: u32,
    refusals: u32,
    /// What a fault of this round asked for.
    pause_min: Duration,
    /// What the last attempt met.
    last: String,
}

/// One attempt: a request for one node, to be answered by then.
pub(super) struct Attempt {
    pub(super) node: NodeId,
    pub(super) request: wire::DataRequest,
    pub(super) until: Instant,
}

impl<'a> Tries<'a> {
    pub(super) fn new(forwarder: &'a Forwarder, shard: ShardId, anyone: bool, deadline: Instant) -> Self {
        Self {
            forwarder,
            shard,
            deadline,
            started: Instant::now(),
            route: Route::new(anyone),
            writes: false,
            tainted: false,
            attempts: 0,
            refused_by: None,
            pauses: 0,
            refusals: 0,
            pause_min: Duration::ZERO,
            last: String::new(),
        }
    }

    /// Sends what `op` makes until a node answers with something other than a fault.
    ///
    /// What seldom happens is boxed: a batch moves as many of these futures as it meets shards.
    pub(super) async fn send(
        &mut self,
        op: impl Fn() -> data_request::Op,
    ) -> Result<wire::DataReply, ForwardError> {
        loop {
            let Some(Attempt { node, request, until }) = self.attempt(&op, |_| 0)? else {
                Box::pin(self.end_round()).await?;
                continue;
            };
            let answer = self.forwarder.pool.call(node, request, until).await;
            if let Some(reply) = self.settle(node, answer).await? {
                return Ok(reply);
            }
        }
    }

    /// Whom to ask next, and what; `None` ends the round. `also` is how many more calls a node is about to get.
    pub(super) fn attempt(
        &mut self,
        op: impl FnOnce() -> data_request::Op,
        also: impl Fn(NodeId) -> usize,
    ) -> Result<Option<Attempt>, ForwardError> {
        let pool = &self.forwarder.pool;
        let load = |node| pool.in_flight(node).map(|calls| calls + also(node));
        let next = self.route.next(&self.forwarder.watch.topology(), self.shard, load);
        let Some((node, epoch)) = next else { return Ok(None) };
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        if left.is_zero() {
            return Err(self.expired());
        }
        let patience = left.min(self.forwarder.attempt);
        // A write that is at work may go on when its attempt is over; a read is of no use then.
        let timeout = if self.writes { left } else { patience };
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        let request =
            wire::DataRequest { call: 0, shard: self.shard.get(), epoch, timeout_ms, op: Some(op()) };
        self.attempts += 1;
        Ok(Some(Attempt { node, request, until: now + patience }))
    }

    /// What came of an attempt: the answer, if it is one; else the next attempt may be made.
    pub(super) async fn settle(
        &mut self,
        node: NodeId,
        answer: Result<wire::DataReply, CallError>,
    ) -> Result<Option<wire::DataReply>, ForwardError> {
        match answer {
            Ok(wire::DataReply { result: Some(data_reply::Result::Fault(fault)), .. }) => {
                Box::pin(self.fault(node, fault)).await?;
                Ok(None)
            }
            Ok(reply) => Ok(Some(reply)),
            Err(error) => {
                Box::pin(self.failed(node, error)).await?;
                Ok(None)
            }
        }
    }

    /// Nobody is left to ask in this round.
    async fn end_round(&mut self) -> Result<(), ForwardError> {
        if self.pauses >= ROUNDS_TRUSTED {
            // The replicas may be elsewhere by now, and the node we watch may be cut off itself.
            self.forwarder.watch.refresh();
        }
        self.pause().await
    }

    /// A node said why not.
    async fn fault(&mut self, node: NodeId, fault: wire::Fault) -> Result<(), ForwardError> {
        self.refused_by = Some(node);
        let unknown = !matches!(fault.outcome(), wire::Outcome::NotApplied);
        self.tainted |= self.writes && unknown;
        let code = fault.code();
        match fault.retry() {
            Retry::At(leader) => {
                self.forwarder.watch.topology().set_leader(self.shard, leader);
                self.last = format!("node {node} names {leader} as leader");
                if !self.route.redirect(node, leader) {
                    self.pause().await?;
                }
            }
            Retry::After(pause) if code == FaultCode::Busy => {
                self.refusals += 1;
                if self.refusals >= REFUSALS_MAX && !self.tainted {
                    let mut error = self.error(Why::Overloaded, &fault.detail);
                    error.retry_after = Some(pause.max(RETRY_AFTER));
                    return Err(error);
                }
                self.last = fault.detail;
                self.pause_min = pause;
                self.pause().await?;
            }
            Retry::After(pause) => {
                if code == FaultCode::NotFresh {
                    self.route.leader_only();
                } else {
                    self.pause_min = self.pause_min.max(pause);
                }
                self.leave(node, fault.detail);
            }
            Retry::RefreshMap => self.refresh(node, fault).await?,
            // Its deadline was that of the attempt; the caller's is not over.
            Retry::Never if code == FaultCode::DeadlineExceeded && !self.writes => {
                self.leave(node, fault.detail)
            }
            Retry::Never => return Err(self.refused(&fault)),
        }
        Ok(())
    }

    async fn refresh(&mut self, node: NodeId, fault: wire::Fault) -> Result<(), ForwardError> {
        if fault.code() == FaultCode::UnknownCollection && self.started.elapsed() > COLLECTION_PATIENCE {
            return Err(self.error(Why::UnknownCollection, &fault.detail));
        }
        self.forwarder.watch.refresh();
        self.leave(node, fault.detail);
        self.pause().await
    }

    /// A fault that the same request would meet again.
    fn refused(&self, fault: &wire::Fault) -> ForwardError {
        match fault.code() {
            FaultCode::DiskFull => {
                let mut error = self.error(Why::DiskFull, &fault.detail);
                error.retry_after = Some(RETRY_AFTER_DISK_FULL);
                error
            }
            FaultCode::DeadlineExceeded => self.expired(),
            FaultCode::Invalid => self.error(Why::Invalid, &fault.detail),
            FaultCode::Internal
            | FaultCode::Unspecified
            | FaultCode::NotLeader
            | FaultCode::WrongEpoch
            | FaultCode::Busy
            | FaultCode::OutcomeUnknown
            | FaultCode::NotFresh
            | FaultCode::UnknownCollection
            | FaultCode::ShuttingDown => self.error(Why::Internal, &fault.detail),
        }
    }

    /// A node did not answer.
    async fn failed(&mut self, node: NodeId, error: CallError) -> Result<(), ForwardError> {
        self.tainted |= self.writes && error.maybe_delivered();
        match error {
            CallError::Full if !self.tainted => {
                let mut refused = self.error(Why::Overloaded, "too many requests wait for the node");
                refused.retry_after = Some(RETRY_AFTER);
                Err(refused)
            }
            CallError::Full => {
                self.last = error.to_string();
                self.pause().await
            }
            CallError::TimedOut { .. } if Instant::now() >= self.deadline => Err(self.expired()),
            CallError::NotSent | CallError::Lost | CallError::TimedOut { .. } => {
                self.leave(node, format!("{node}: {error}"));
                Ok(())
            }
        }
    }

    /// Goes on to another node.
    fn leave(&mut self, node: NodeId, why: String) {
        self.route.fail(node);
        if !self.route.anyone() {
            self.forwarder.watch.topology().forget_leader(self.shard, node);
        }
        self.last = why;
    }

    /// Waits before the next round, unless the deadline would pass meanwhile.
    async fn pause(&mut self) -> Result<(), ForwardError> {
        let pause = PAUSES.pause(self.pauses).max(std::mem::take(&mut self.pause_min));
        self.pauses += 1;
        let until = Instant::now() + pause;
        if until >= self.deadline {
            return Err(self.expired());
        }
        tokio::time::sleep_until(until).await;
        Ok(())
    }

    pub(super) fn answer<T>(&self, body: T, node: u64, epoch: u64, index: u64) -> Answer<T> {
        let node = NodeId(node);
        if !self.route.anyone() && node.get() != 0 {
            self.forwarder.watch.topology().set_leader(self.shard, node);
        }
        Answer { body, shard: self.shard, node, epoch, index, attempts: self.attempts }
    }

    /// A node answered with something else than what was asked.
    pub(super) fn misanswered(&mut self) -> ForwardError {
        self.tainted |= self.writes;
        self.error(Why::Internal, "the node's answer does not fit the request")
    }

    fn expired(&self) -> ForwardError {
        let last = if self.last.is_empty() { "no replica of the shard could be asked" } else { &self.last };
        let why = if self.tainted { Why::DeadlineExceeded } else { Why::Unavailable };
        let mut error = self.error(why, last);
        error.retry_after = Some(RETRY_AFTER);
        error
    }

    pub(super) fn error(&self, why: Why, detail: &str) -> ForwardError {
        ForwardError {
            shard: self.shard,
            node: self.refused_by,
            why,
            outcome: if self.tainted { Outcome::Unknown } else { Outcome::NotApplied },
            detail: detail.to_owned(),
            retry_after: None,
            attempts: self.attempts,
        }
    }
}
