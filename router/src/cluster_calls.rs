//! Unary calls of the control plane to any node that answers; nodes pass on what needs the meta leader.

use std::sync::Arc;
use std::time::Duration;

use borough_proto::error::{Outcome, ProblemType};
use borough_proto::exchange::Forwarder;
use borough_proto::exchange::backoff::Backoff;
use borough_proto::exchange::channel::{ChannelSettings, cluster_client};
use borough_proto::wire::{self, cluster_client::ClusterClient};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use wire::operate_reply::Result as OperateResult;
use wire::operate_request::Call;

use crate::http::refusal::Refusal;

const PAUSES: Backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_millis(500) };
/// A node that does not answer for this long is left for another.
const ATTEMPT: Duration = Duration::from_secs(3);

/// Calls to the `Cluster` service.
pub struct ClusterCalls {
    forwarder: Arc<Forwarder>,
    seeds: Vec<String>,
    channel: ChannelSettings,
    /// The node that answered last. It is asked first: one that hangs costs each call that meets it an attempt's time.
    answered: Mutex<Option<String>>,
}

impl ClusterCalls {
    pub fn new(forwarder: Arc<Forwarder>, seeds: Vec<String>, channel: ChannelSettings) -> Self {
        Self { forwarder, seeds, channel, answered: Mutex::new(None) }
    }

    /// The status document.
    ///
    /// # Errors
    /// 503 when no node answers.
    pub async fn status(&self, deadline: Instant) -> Result<wire::StatusReply, Refusal> {
        let call =
            async |mut client: ClusterClient<Channel>| client.status(wire::StatusRequest::default()).await;
        self.call(false, deadline, call).await
    }

    /// Creates or changes a collection. Asking again is harmless, so a lost answer is asked for again.
    ///
    /// # Errors
    /// 503, or 504 when the outcome is not known.
    pub async fn put_collection(
        &self,
        info: wire::CollectionInfo,
        deadline: Instant,
    ) -> Result<wire::PutCollectionReply, Refusal> {
        let request = wire::PutCollectionRequest { collection: Some(info) };
        let call = async |mut client: ClusterClient<Channel>| client.put_collection(request.clone()).await;
        self.call(true, deadline, call).await
    }

    /// Deletes a collection.
    ///
    /// # Errors
    /// 503, or 504 when the outcome is not known.
    pub async fn delete_collection(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<wire::DeleteCollectionReply, Refusal> {
        let request = wire::DeleteCollectionRequest { name: name.to_owned() };
        let call = async |mut client: ClusterClient<Channel>| client.delete_collection(request.clone()).await;
        self.call(true, deadline, call).await
    }

    /// Plans, starts, shows and controls operations. Asking again is harmless: what is under way already is answered.
    ///
    /// # Errors
    /// 404, 409, 503, or 504 when the outcome is not known.
    pub async fn operate(&self, call: Call, deadline: Instant) -> Result<wire::OperateReply, Refusal> {
        let changes =
            !matches!(call, Call::Get(_) | Call::Rebalance(wire::Rebalance { validate_only: true }));
        let request = wire::OperateRequest { forwarded: false, call: Some(call) };
        let ask = async |mut client: ClusterClient<Channel>| client.operate(request).await;
        let reply = self.call(changes, deadline, ask).await?;
        let kind = match reply.result() {
            OperateResult::NotFound => ProblemType::NotFound,
            OperateResult::Refused => ProblemType::Conflict,
            OperateResult::Ok | OperateResult::Unspecified => return Ok(reply),
        };
        Err(Refusal::new(kind, reply.refused).outcome(Outcome::NotApplied))
    }

    /// Asks one node after the other until one answers or the deadline passes.
    async fn call<T, F>(
        &self,
        changes: bool,
        deadline: Instant,
        call: impl Fn(ClusterClient<Channel>) -> F,
    ) -> Result<T, Refusal>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut first = self.answered.lock().clone();
        let mut turn = rand::random_range(0..1024_usize);
        let mut last = "no node to ask".to_owned();
        let mut tainted = false;
        for attempt in 0.. {
            let addrs = self.addrs();
            if let Some(at) = first.take().and_then(|first| addrs.iter().position(|addr| *addr == first)) {
                turn = at;
            }
            if let Some(addr) = addrs.get(turn % addrs.len().max(1)) {
                match self.channel.lazy(addr) {
                    Err(error) => last = error.to_string(),
                    Ok(channel) => {
                        let until = deadline.min(Instant::now() + ATTEMPT);
                        match tokio::time::timeout_at(until, call(cluster_client(channel))).await {
                            Ok(Ok(reply)) => {
                                *self.answered.lock() = Some(addr.clone());
                                return Ok(reply.into_inner());
                            }
                            Ok(Err(status)) => {
                                refused(&status, tainted)?;
                                tainted |= changes && maybe_done(&status);
                                last = status.message().to_owned();
                            }
                            Err(_) => {
                                tainted |= changes;
                                last = format!("{addr} did not answer in time");
                            }
                        }
                    }
                }
            }
            turn = turn.wrapping_add(1);
            let next = Instant::now() + PAUSES.pause(attempt);
            if next >= deadline {
                break;
            }
            tokio::time::sleep_until(next).await;
        }
        let (kind, outcome) = if tainted {
            (ProblemType::DeadlineExceeded, Outcome::Unknown)
        } else {
            (ProblemType::Unavailable, Outcome::NotApplied)
        };
        Err(Refusal::new(kind, last).outcome(outcome).retry_after(Duration::from_secs(1)))
    }

    fn addrs(&self) -> Vec<String> {
        let map = self.forwarder.watch().map();
        let members = map.nodes().iter().filter(|node| node.state() != wire::NodeState::Removed);
        let mut addrs: Vec<String> = members.map(|node| node.addr.clone()).collect();
        for seed in &self.seeds {
            if !addrs.contains(seed) {
                addrs.push(seed.clone());
            }
        }
        addrs
    }
}

/// Answers that another node would give as well.
fn refused(status: &Status, tainted: bool) -> Result<(), Refusal> {
    let kind = match status.code() {
        Code::InvalidArgument => ProblemType::BadRequest,
        Code::AlreadyExists | Code::FailedPrecondition => ProblemType::Conflict,
        Code::NotFound => ProblemType::NotFound,
        Code::ResourceExhausted => ProblemType::Overloaded,
        _ => return Ok(()),
    };
    let outcome = if tainted { Outcome::Unknown } else { Outcome::NotApplied };
    Err(Refusal::new(kind, status.message()).outcome(outcome))
}

/// Only a connection that was never made, or a node that says so, leaves no doubt.
fn maybe_done(status: &Status) -> bool {
    status.code() != Code::Unavailable
}
