//! Raft's network over the peers' streams.
//!
//! A dead peer is *unreachable* (Raft then backs off), and every message names the replica it is for,
//! which the receiver verifies: replica ids are never reused.
//!
//! A new replica gets the log that there was when it came at the pace of snapshots: it is the same traffic on another way.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use borough_proto::{GroupId, NodeId, ReplicaId, wire};
use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, VoteRequest,
    VoteResponse,
};
use openraft::raft::{TransferLeaderRequest, TransferLeaderResponse};
use openraft::{AnyError, RaftNetworkFactory, RaftNetworkV2};
use tokio::time::Instant;
use wire::raft_frame::Body;

use super::commits::Commits;
use super::peers::Peers;
use super::snapshot::{MOVED_BYTES, SnapshotSender};
use super::state_machine::{ReplicaState, SnapshotData};
use super::types::{
    LogId, Member, TypeConfig, encode_payload, log_id_from_wire, log_id_to_wire, parts, vote_from_wire,
    vote_to_wire,
};

/// Makes the connections of one replica.
pub struct NetworkFactory {
    pub peers: Arc<Peers>,
    pub state: Arc<ReplicaState>,
    pub snapshots: Arc<SnapshotSender>,
    pub commits: Arc<Commits>,
}

/// From one replica to one other of its group.
pub struct Network {
    peers: Arc<Peers>,
    state: Arc<ReplicaState>,
    snapshots: Arc<SnapshotSender>,
    commits: Arc<Commits>,
    group: GroupId,
    from: ReplicaId,
    to: ReplicaId,
    node: NodeId,
    /// The other one votes, as of the last look: it is never kept waiting.
    to_voter: bool,
    /// What was committed when the first entries were sent.
    backlog: Option<u64>,
}

/// How entries leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paced {
    /// All at once, and nobody counts them.
    Whole,
    /// All of them, and others wait for that.
    All,
    /// The first of them alone.
    Piece,
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, member: &Member) -> Network {
        Network {
            peers: Arc::clone(&self.peers),
            state: Arc::clone(&self.state),
            snapshots: Arc::clone(&self.snapshots),
            commits: Arc::clone(&self.commits),
            group: self.state.group,
            from: self.state.id,
            to: ReplicaId(target),
            node: member.node,
            to_voter: false,
            backlog: None,
        }
    }
}

fn unreachable(error: &(impl std::error::Error + 'static)) -> Unreachable<TypeConfig> {
    Unreachable::new(error)
}

fn unexpected(body: Option<&Body>) -> RPCError<TypeConfig> {
    let detail = match body {
        Some(Body::Refused(reason)) => format!("refused: {reason}"),
        _ => "an answer of another kind".to_owned(),
    };
    RPCError::Unreachable(Unreachable::new(&AnyError::error(detail)))
}

impl Network {
    fn frame(&self, body: Body) -> wire::RaftFrame {
        wire::RaftFrame {
            call: 0,
            group: self.group.get(),
            from: self.from.get(),
            to: self.to.get(),
            body: Some(body),
        }
    }

    async fn call(&self, body: Body, option: &RPCOption) -> Result<Body, RPCError<TypeConfig>> {
        let frame = self.frame(body);
        let deadline = Instant::now() + option.soft_ttl();
        let answer = self
            .peers
            .call(self.node, frame, deadline)
            .await
            .map_err(|error| RPCError::Unreachable(unreachable(&error)))?;
        answer.body.ok_or_else(|| unexpected(None))
    }

    /// What is committed is told when there is occasion; a leader that keeps silent tells nothing.
    fn tell_committed(&self, rpc: &AppendEntriesRequest<TypeConfig>) {
        if !*self.state.deaf.borrow() {
            let frame = self.frame(Body::Append(append_request(rpc, Vec::new())));
            self.commits.tell(self.node, self.to, frame);
        }
    }

    /// Whether the other one is a new replica, which does not vote yet. The catalog's are never kept waiting: the catalog is
    /// small, and every move waits for its group's.
    fn is_newcomer(&mut self) -> bool {
        self.to_voter = self.to_voter || self.group == GroupId::META || self.state.is_voter(self.to);
        !self.to_voter
    }

    /// Waits until entries may leave if they are part of what a new replica lacked when it came, and cuts them to a piece. What was
    /// written since goes at once: it would never have caught up with writers that are faster than that pace.
    async fn keep_pace(&mut self, entries: &mut Vec<wire::LogEntry>, committed: u64) -> Paced {
        let Some(first) = entries.first() else { return Paced::Whole };
        let backlog = *self.backlog.get_or_insert_with(|| {
            self.state.owes(self.to, committed);
            committed
        });
        if first.index > backlog {
            return Paced::Whole;
        }
        let pace = self.snapshots.pace();
        pace.wait(0).await;
        let (piece, mut bytes) = (pace.piece(), 0);
        // One at least, however large.
        let fits = entries.iter().take_while(|entry| {
            let fits = bytes == 0 || bytes + entry.payload.len() <= piece;
            bytes += entry.payload.len().max(1);
            fits
        });
        let fits = fits.count();
        let cut = fits < entries.len();
        entries.truncate(fits);
        if cut { Paced::Piece } else { Paced::All }
    }

    /// Entries have come to a new replica, whatever it made of them.
    fn arrived(&self, bytes: usize, paced: Paced) {
        metrics::counter!(MOVED_BYTES, "way" => "log").increment(u64::try_from(bytes).unwrap_or(u64::MAX));
        if paced != Paced::Whole {
            self.snapshots.pace().spend(bytes);
        }
    }

    async fn ask_vote(
        &self,
        body: Body,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(body, option).await? {
            Body::VoteReply(reply) => Ok(VoteResponse {
                vote: vote_from_wire(&reply.vote.unwrap_or_default()),
                vote_granted: reply.granted,
                last_log_id: reply.last.as_ref().map(log_id_from_wire),
            }),
            other => Err(unexpected(Some(&other))),
        }
    }
}

/// Keeps the log that a replica needs after its snapshot; a transfer that is cancelled lets it go too.
struct Held {
    state: Arc<ReplicaState>,
    hold: u64,
}

impl Held {
    fn new(state: &Arc<ReplicaState>, index: u64) -> Self {
        Self { state: Arc::clone(state), hold: state.hold_log(index) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.state.release_log(self.hold);
    }
}

fn append_request(
    rpc: &AppendEntriesRequest<TypeConfig>,
    entries: Vec<wire::LogEntry>,
) -> wire::AppendRequest {
    wire::AppendRequest {
        vote: Some(vote_to_wire(&rpc.vote)),
        previous: rpc.prev_log_id.as_ref().map(log_id_to_wire),
        commit: rpc.leader_commit.as_ref().map(log_id_to_wire),
        entries,
    }
}

/// A stream of requests that are answered one after the other, each with the position that it reaches.
struct Appending<'s, S> {
    network: &'s mut Network,
    requests: S,
    option: RPCOption,
    /// What the other one has acknowledged in this stream.
    acknowledged: Option<LogId>,
}

impl<S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin> Appending<'_, S> {
    /// The next answer, and whether more may follow.
    async fn step(&mut self) -> Option<(Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>, bool)> {
        loop {
            let request = self.requests.next().await?;
            let (previous, entries) = (request.prev_log_id, request.entries.len());
            if entries == 0 && is_word(previous, self.acknowledged) {
                self.network.tell_committed(&request);
                continue;
            }
            let last = request.entries.last().map_or(previous, |entry| Some(entry.log_id));
            return Some(match self.network.append_entries(request, self.option.clone()).await {
                Ok(response) => {
                    let whole = match &response {
                        AppendEntriesResponse::Success => true,
                        AppendEntriesResponse::PartialSuccess(matching) => *matching == last,
                        AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => false,
                    };
                    if whole {
                        self.acknowledged = last;
                    }
                    (Ok(response.into_stream_result(previous, last)), whole)
                }
                Err(error) => (Err(error), false),
            });
        }
    }
}

/// Whether a request without entries behind `previous` needs no answer: the other one has acknowledged that position in the same
/// stream, so it is only to hear what is committed. One that stands alone asks whether it has the position, or is a heartbeat.
fn is_word(previous: Option<LogId>, acknowledged: Option<LogId>) -> bool {
    previous.is_some() && previous == acknowledged
}

fn vote_request(rpc: &VoteRequest<TypeConfig>) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote_to_wire(&rpc.vote)),
        last: rpc.last_log_id.as_ref().map(log_id_to_wire),
        transfer: rpc.leadership_transfer,
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        if *self.state.deaf.borrow() {
            let silent = AnyError::error("no quorum answers this leader, which keeps silent");
            return Err(RPCError::Unreachable(Unreachable::new(&silent)));
        }
        let word = (!rpc.entries.is_empty()).then(|| self.commits.overtaken(self.node, self.to));
        let mut entries: Vec<_> = rpc
            .entries
            .iter()
            .map(|entry| {
                let (term, index) = parts(&entry.log_id);
                wire::LogEntry { term, index, payload: encode_payload(&entry.payload) }
            })
            .collect();
        let newcomer = !entries.is_empty() && self.is_newcomer();
        let committed = rpc.leader_commit.as_ref().map_or(0, |commit| parts(commit).1);
        let paced = if newcomer { self.keep_pace(&mut entries, committed).await } else { Paced::Whole };
        let sent = rpc.entries.get(..entries.len()).and_then(<[_]>::last).map(|entry| entry.log_id);
        let bytes = entries.iter().map(|entry| entry.payload.len()).sum();
        let request = append_request(&rpc, entries);
        match self.call(Body::Append(request), &option).await? {
            Body::AppendReply(reply) => {
                use wire::append_reply::Kind;
                if let Some(word) = word.filter(|_| reply.kind() == Kind::Success) {
                    word.arrived();
                }
                if newcomer {
                    self.arrived(bytes, paced);
                }
                match reply.kind() {
                    // The rest is sent when it is asked for.
                    Kind::Success if paced == Paced::Piece => Ok(AppendEntriesResponse::PartialSuccess(sent)),
                    Kind::Success => Ok(AppendEntriesResponse::Success),
                    Kind::Partial => Ok(AppendEntriesResponse::PartialSuccess(
                        reply.matching.as_ref().map(log_id_from_wire),
                    )),
                    Kind::Conflict => Ok(AppendEntriesResponse::Conflict),
                    Kind::HigherVote => {
                        Ok(AppendEntriesResponse::HigherVote(vote_from_wire(&reply.vote.unwrap_or_default())))
                    }
                    Kind::Unspecified => Err(unexpected(None)),
                }
            }
            other => Err(unexpected(Some(&other))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        requests: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let appending = Appending { network: self, requests, option, acknowledged: None };
        let answers = futures::stream::unfold(Some(appending), async |appending| {
            let mut appending = appending?;
            let (answer, more) = appending.step().await?;
            Some((answer, more.then_some(appending)))
        });
        let answers: BoxStream<'s, _> = Box::pin(answers);
        Box::pin(async move { Ok(answers) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(Body::Vote(vote_request(&rpc)), &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(Body::PreVote(vote_request(&rpc)), &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: openraft::alias::VoteOf<TypeConfig>,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        // What is sent is a point in time of now, at or after the flush that Raft calls the snapshot.
        let _held = Held::new(&self.state, snapshot.meta.last_log_id.map_or(0, |last| last.index));
        let sending = self.snapshots.send(&self.peers, &self.state, self.to, self.node, vote);
        tokio::select! {
            result = sending => match result {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => {
                    tracing::warn!(group = %self.group, to = %self.to, error = %error, "snapshot was not sent");
                    Err(StreamingError::Unreachable(unreachable(&error)))
                }
            },
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = wire::TransferRequest {
            from: Some(vote_to_wire(req.from_leader())),
            to: *req.to_node_id(),
            last: req.last_log_id().map(log_id_to_wire),
        };
        match self.call(Body::Transfer(request), &option).await? {
            Body::TransferReply(reply) if reply.accepted => Ok(Ok(())),
            Body::TransferReply(_) => Ok(Err(openraft::raft::TransferLeaderError::LogNotFlushed {
                expected: req.last_log_id().copied(),
                actual: None,
            })),
            other => Err(unexpected(Some(&other))),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::log_id;

    #[test]
    fn only_what_follows_acknowledged_entries_needs_no_answer() {
        let (third, fourth) = (Some(log_id(2, 3)), Some(log_id(2, 4)));
        assert!(is_word(fourth, fourth));
        assert!(!is_word(fourth, None), "a heartbeat, or a probe");
        assert!(!is_word(fourth, third));
        assert!(!is_word(third, fourth));
        assert!(!is_word(None, None), "of an empty log nothing was acknowledged");
    }
}
