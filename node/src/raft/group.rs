//! One Raft group's replica on this node: proposing, reading, membership, and messages from peers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use borough_proto::{GroupId, NodeId, ReplicaId, wire};
use openraft::alias::InstantOf;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use openraft::raft::{TransferLeaderError, TransferLeaderRequest};
use openraft::{ChangeMembers, Instant as _, Raft, ReadPolicy, ServerState};
use parking_lot::Mutex;
use tokio::time::Instant;
use wire::raft_frame::Body;

use super::confirm::{Confirmer, Electorate, Leadership, Round};
use super::contact::Contact;
use super::hearing::Hearing;
use super::peers::Peers;
use super::state_machine::{ReplicaState, SnapshotData, StateMachine};
use super::types::{
    Member, Proposal, Reply, SnapshotMeta, TypeConfig, Vote, entry, log_id_from_wire, log_id_to_wire, parts,
    vote_from_wire, vote_to_wire,
};
use crate::crash;
use crate::defect::{self, Defect};

type GroupRaft = Raft<TypeConfig, StateMachine>;

/// Followers may be this many entries behind and still become voters.
const CAUGHT_UP_LAG_MAX: u64 = 256;
/// And so many bytes, whatever the number: writes wait for a voter that a quorum needs.
const CAUGHT_UP_BYTES_MAX: u64 = 4 << 20;
/// What a new replica that is not there yet is told with: it is no obstacle.
pub const CATCHING_UP: &str = "catching up: ";
const NO_QUORUM: &str = "no quorum answers this leader";
/// How long the next leader waits for the rest of the log, and between looks.
const TAKE_OVER_MAX: Duration = Duration::from_millis(500);
const TAKE_OVER_RETRY: Duration = Duration::from_millis(2);

/// A running replica.
pub struct Group {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub state: Arc<ReplicaState>,
    raft: GroupRaft,
    peers: Arc<Peers>,
    confirmer: Arc<Confirmer>,
    /// The question whether this replica leads that was asked last; reads join it until it leaves.
    round: Mutex<Option<Arc<Round>>>,
    /// The latest proof that this replica was current: when it was asked for, and the index it gave.
    proven: Mutex<Option<(Instant, u64)>>,
    contact: Contact,
    /// Whether a quorum answers, while this replica leads.
    hearing: Mutex<Hearing<InstantOf<TypeConfig>>>,
    /// Held while the membership is changed from outside.
    reconfiguring: tokio::sync::Mutex<()>,
}

/// Why a command was not applied here.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was appended.
    #[error("this replica does not lead")]
    NotLeader { leader: Option<NodeId> },
    /// The entry may be committed by another leader (I9).
    #[error("the outcome is not known: {0}")]
    Unknown(String),
}

/// Why a read cannot be served as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("this replica does not lead")]
    NotLeader { leader: Option<NodeId> },
    /// No quorum, or no leader, confirmed in time.
    #[error("{0}")]
    NotFresh(String),
}

/// What a replica knows of its group.
#[derive(Debug, Clone)]
pub struct GroupView {
    pub leader: Option<ReplicaId>,
    pub leader_node: Option<NodeId>,
    pub is_leader: bool,
    pub term: u64,
    pub voters: Vec<ReplicaId>,
    pub learners: Vec<ReplicaId>,
    pub joint: bool,
}

impl Group {
    pub fn new(
        raft: GroupRaft,
        state: Arc<ReplicaState>,
        peers: Arc<Peers>,
        confirmer: Arc<Confirmer>,
    ) -> Self {
        Self {
            group: state.group,
            replica: state.id,
            state,
            raft,
            peers,
            confirmer,
            round: Mutex::new(None),
            proven: Mutex::new(None),
            contact: Contact::new(Instant::now()),
            hearing: Mutex::default(),
            reconfiguring: tokio::sync::Mutex::default(),
        }
    }

    /// Makes this replica the only voter of a new group.
    ///
    /// # Errors
    /// A text when the group exists already.
    pub async fn initialize(&self, node: NodeId) -> Result<(), String> {
        let members = BTreeMap::from([(self.replica.get(), Member { node })]);
        self.raft.initialize(members).await.map_err(|error| error.to_string())
    }

    /// Whether the group was ever initialised as far as this replica knows.
    pub async fn is_initialized(&self) -> bool {
        self.raft.is_initialized().await.unwrap_or(false)
    }

    /// Appends `proposal` and waits until it is applied here: log index and reply.
    ///
    /// # Errors
    /// [`ProposeError`], which tells whether the command may still take effect.
    pub async fn propose(&self, proposal: Proposal) -> Result<(u64, Reply), ProposeError> {
        // It would wait for its deadline, while another replica leads.
        let mut deaf = self.state.deaf.subscribe();
        if *deaf.borrow_and_update() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        let written = tokio::select! {
            biased;
            written = self.raft.client_write(proposal) => written,
            _ = deaf.changed() => return Err(ProposeError::Unknown(NO_QUORUM.to_owned())),
        };
        match written {
            Ok(response) => Ok((response.log_id.index, response.data)),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader { leader: forward.leader_node.map(|member| member.node) })
            }
            Err(other) => Err(ProposeError::Unknown(other.to_string())),
        }
    }

    /// An index that includes every write acknowledged before the call, confirmed by a quorum that all reads waiting share
    /// the asking of, and applied here. Only on the leader.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        if let Some(applied) = self.leads_still().await {
            return Ok(applied);
        }
        // Boxed, like all that seldom happens: what each call may have to wait for takes room in each.
        let index = Box::pin(self.confirmed_by_heartbeat()).await?;
        self.wait_applied(index).await?;
        Ok(index)
    }

    async fn confirmed_index(&self) -> Result<u64, ReadError> {
        match self.leads_still().await {
            Some(applied) => Ok(applied),
            None => Box::pin(self.confirmed_by_heartbeat()).await,
        }
    }

    /// An index applied here that includes every write acknowledged before the call, if a quorum of voters says that it has
    /// elected nobody else.
    async fn leads_still(&self) -> Option<u64> {
        if defect::has(Defect::ReadWithoutQuorum) && self.is_leader() {
            return Some(*self.state.applied_index().borrow());
        }
        // It would wait for nothing.
        if *self.state.deaf.borrow() {
            return None;
        }
        let outcome = {
            let mut current = self.round.lock();
            match current.as_ref().and_then(|round| round.join()) {
                Some(outcome) => outcome,
                None => {
                    let round = Arc::new(self.new_round()?);
                    let outcome = round.join()?;
                    self.confirmer.start(&round);
                    *current = Some(round);
                    outcome
                }
            }
        };
        // Whatever was acknowledged before the call was applied here before it: nobody else led.
        outcome.await.unwrap_or(false).then(|| *self.state.applied_index().borrow())
    }

    /// The question whether this replica leads, if it may: until an entry of its own term is applied, a leader may lack what
    /// leaders before it have acknowledged.
    fn new_round(&self) -> Option<Round> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leads =
            metrics.state == ServerState::Leader && metrics.current_leader == Some(self.replica.get());
        let of_term = metrics.last_applied.as_ref().is_some_and(|id| parts(id).0 == metrics.current_term);
        if !leads || !of_term {
            return None;
        }
        let leadership = Leadership { group: self.group, replica: self.replica, term: metrics.current_term };
        let membership = metrics.membership_config.membership();
        let configs = membership.get_joint_config().iter();
        let configs = configs.map(|voters| voters.iter().copied().map(ReplicaId).collect()).collect();
        let own = membership.get_node(&self.replica.get())?.node;
        let voters = membership.voter_ids().filter(|&voter| voter != self.replica.get());
        let placed = voters.map(|voter| Some((membership.get_node(&voter)?.node, ReplicaId(voter))));
        let mut others = placed.collect::<Option<Vec<_>>>()?;
        self.confirmer.prefer(own, &mut others);
        let state = Arc::clone(&self.state);
        let own = move || holds(&state, leadership);
        Some(Round::new(leadership, Electorate { configs, others }, own))
    }

    /// Whether this replica has voted for no other leader, nor in a later term. It is no promise for later.
    pub fn holds(&self, leadership: &wire::Leadership) -> bool {
        let claimed = Leadership {
            group: GroupId(leadership.group),
            replica: ReplicaId(leadership.leader),
            term: leadership.term,
        };
        self.group == claimed.group && holds(&self.state, claimed)
    }

    async fn confirmed_by_heartbeat(&self) -> Result<u64, ReadError> {
        let mut deaf = self.state.deaf.subscribe();
        if *deaf.borrow_and_update() {
            return Err(ReadError::NotLeader { leader: None });
        }
        let confirmed = tokio::select! {
            biased;
            confirmed = self.raft.get_read_linearizer(ReadPolicy::ReadIndex) => confirmed,
            _ = deaf.changed() => return Err(ReadError::NotLeader { leader: None }),
        };
        match confirmed {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ReadError::NotLeader { leader: forward.leader_node.map(|member| member.node) })
            }
            Err(other) => Err(ReadError::NotFresh(other.to_string())),
        }
    }

    /// Waits until entry `index` is applied here. The caller bounds the time.
    ///
    /// # Errors
    /// [`ReadError::NotFresh`] when the replica goes away.
    pub async fn wait_applied(&self, index: u64) -> Result<(), ReadError> {
        let mut applied = self.state.applied_index();
        let gone = |_| ReadError::NotFresh("the replica is closing".to_owned());
        applied.wait_for(|&applied| applied >= index).await.map_err(gone)?;
        Ok(())
    }

    /// An index at which this replica, leader or not, was complete at most `max_stale` ago. One
    /// round to the leader proves it for all reads until it is too old.
    ///
    /// # Errors
    /// [`ReadError::NotFresh`] when no leader confirms until `deadline`.
    pub async fn fresh_within(&self, max_stale: Duration, deadline: Instant) -> Result<u64, ReadError> {
        if let Some((index, age)) = self.standing_proof()
            && age <= max_stale
        {
            return Ok(index);
        }
        let proven = *self.proven.lock();
        if let Some((at, index)) = proven
            && at.elapsed() <= max_stale
        {
            return Ok(index);
        }
        // The proof counts from when it was asked for: what was acknowledged before that is included.
        let asked = Instant::now();
        let index = match self.confirmed_index().await {
            Ok(index) => index,
            Err(ReadError::NotLeader { .. }) => self.ask_leader(false, deadline).await?.0,
            Err(other) => return Err(other),
        };
        self.wait_applied(index).await?;
        self.prove(asked, index);
        Ok(index)
    }

    /// As follower: asks the leader what its messages have proven already, so that reads that may be stale need no round,
    /// and none while there is no quorum either.
    ///
    /// # Errors
    /// [`ReadError::NotFresh`] when the leader has nothing to show until `deadline`.
    pub async fn refresh_proof(&self, deadline: Instant) -> Result<(), ReadError> {
        // The leader answers after this moment, so what it has proven is at most its age older than it.
        let asked = Instant::now();
        let (index, age) = self.ask_leader(true, deadline).await?;
        let late = |_| ReadError::NotFresh(format!("entry {index} is not applied here yet"));
        tokio::time::timeout_at(deadline, self.wait_applied(index)).await.map_err(late)??;
        if let Some(at) = asked.checked_sub(age) {
            self.prove(at, index);
        }
        Ok(())
    }

    fn prove(&self, at: Instant, index: u64) {
        let mut proven = self.proven.lock();
        if proven.is_none_or(|(before, _)| before < at) {
            *proven = Some((at, index));
        }
    }

    /// As leader: an index that includes everything acknowledged until some moment, and how long that was ago.
    ///
    /// The moment is the sending of the last messages that a quorum has acknowledged: nobody else led at that time, so nobody
    /// else acknowledged anything, and what this leader had acknowledged was applied here before.
    fn standing_proof(&self) -> Option<(u64, Duration)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader || metrics.current_leader != Some(self.replica.get()) {
            return None;
        }
        // Until an entry of its own term is applied, a leader may lack what leaders before it acknowledged.
        let of_term = metrics.last_applied.as_ref().is_some_and(|id| parts(id).0 == metrics.current_term);
        let sent = metrics.last_quorum_acked.filter(|_| of_term)?.into_inner();
        Some((*self.state.applied_index().borrow(), sent.elapsed()))
    }

    /// The index, and how long before the answer it was complete.
    async fn ask_leader(&self, standing: bool, deadline: Instant) -> Result<(u64, Duration), ReadError> {
        let view = self.view();
        let (Some(leader), Some(node)) = (view.leader, view.leader_node) else {
            return Err(ReadError::NotFresh("the shard has no leader".to_owned()));
        };
        let frame = wire::RaftFrame {
            call: 0,
            group: self.group.get(),
            from: self.replica.get(),
            to: leader.get(),
            body: Some(Body::ReadIndex(wire::ReadIndexRequest { standing })),
        };
        let answer = self.peers.call(node, frame, deadline).await;
        match answer.map(|frame| frame.body) {
            Ok(Some(Body::ReadIndexReply(wire::ReadIndexReply { index: Some(index), age_ms }))) => {
                Ok((index, Duration::from_millis(age_ms)))
            }
            Ok(_) => Err(ReadError::NotFresh("the leader could not confirm".to_owned())),
            Err(error) => Err(ReadError::NotFresh(error.to_string())),
        }
    }

    /// What this replica knows of its group now.
    pub fn view(&self) -> GroupView {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let leader_node =
            metrics.current_leader.and_then(|leader| membership.get_node(&leader)).map(|member| member.node);
        GroupView {
            leader: metrics.current_leader.map(ReplicaId),
            leader_node,
            is_leader: metrics.state == ServerState::Leader
                && metrics.current_leader == Some(self.replica.get()),
            term: metrics.current_term,
            voters: membership.voter_ids().map(ReplicaId).collect(),
            learners: membership.learner_ids().map(ReplicaId).collect(),
            joint: membership.get_joint_config().len() > 1,
        }
    }

    pub fn is_leader(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state == ServerState::Leader && metrics.current_leader == Some(self.replica.get())
    }

    /// The node that leads, as far as this replica knows.
    pub fn leader_node(&self) -> Option<NodeId> {
        self.view().leader_node
    }

    /// Why the group stopped, when it did: a storage error is fatal to it.
    pub fn failure(&self) -> Option<String> {
        self.raft.metrics().borrow_watched().running_state.as_ref().err().map(ToString::to_string)
    }

    /// Brings the membership to exactly `voters` and no learners: adds learners, waits until they are caught up, changes
    /// the voters in one joint step. A leader that is to go hands its leadership over first. Idempotent: every call does
    /// the next step.
    ///
    /// # Errors
    /// What is still to wait for.
    pub async fn reconfigure(&self, voters: &BTreeMap<ReplicaId, NodeId>) -> Result<(), String> {
        let _one_at_a_time = self.reconfiguring.lock().await;
        let view = self.view();
        if !view.is_leader {
            return Err("this replica does not lead".to_owned());
        }
        let wanted: BTreeSet<u64> = voters.keys().map(|replica| replica.get()).collect();
        let current: BTreeSet<u64> = view.voters.iter().map(|replica| replica.get()).collect();
        let known: BTreeSet<u64> = view.learners.iter().map(|replica| replica.get()).collect();
        if current == wanted && !view.joint {
            // A learner that is no longer wanted: its move was taken back.
            return if known.is_empty() {
                Ok(())
            } else {
                self.change(ChangeMembers::RemoveNodes(known)).await
            };
        }
        for (replica, &node) in voters {
            if !current.contains(&replica.get()) && !known.contains(&replica.get()) {
                // Not blocking: that is no proof of having caught up, and has no timeout.
                self.raft
                    .add_learner(replica.get(), Member { node }, false)
                    .await
                    .map_err(|error| format!("add learner {replica}: {error}"))?;
                crash::reached("learner-added");
            }
        }
        if let Some(waits) = self.not_caught_up(&wanted, &current) {
            return Err(waits);
        }
        if !wanted.contains(&self.replica.get()) {
            let heir = self.best_follower_of(|voter| wanted.contains(&voter) && current.contains(&voter));
            let Some(heir) = heir else {
                // Only newcomers are to stay: they vote first, then one of them leads.
                let both = wanted.into_iter().chain([self.replica.get()]).collect();
                self.change(ChangeMembers::ReplaceAllVoters(both)).await?;
                return Err("the new replica votes, the old one is still to go".to_owned());
            };
            self.transfer_leader(heir).await?;
            crash::reached("leadership-handed-over");
            return Err(format!("the leadership moves to replica {heir} first"));
        }
        self.change(ChangeMembers::ReplaceAllVoters(wanted)).await
    }

    async fn change(&self, change: ChangeMembers<u64, Member>) -> Result<(), String> {
        let changing = self.raft.change_membership(change, false).await;
        changing.map(|_| ()).map_err(|error| format!("change membership: {error}"))
    }

    fn not_caught_up(&self, wanted: &BTreeSet<u64>, current: &BTreeSet<u64>) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let replication = metrics.replication.as_ref()?;
        wanted.difference(current).find_map(|replica| {
            let matching = replication.get(replica).and_then(|matching| matching.as_ref()).map(|id| id.index);
            match matching {
                Some(index) if self.lags_little(*replica, index, last) => None,
                Some(index) => Some(format!("{CATCHING_UP}replica r{replica} is at entry {index} of {last}")),
                None => Some(format!("{CATCHING_UP}replica r{replica} is being sent its data")),
            }
        })
    }

    /// Whether a new replica that has the log up to `index` may vote: writes may have to wait for the rest from then on, so none
    /// of it may be what is sent at a pace, and it must be little.
    fn lags_little(&self, replica: u64, index: u64, last: u64) -> bool {
        self.state.owed(replica).is_none_or(|owed| index >= owed)
            && index + CAUGHT_UP_LAG_MAX >= last
            && self.state.log().bytes_behind(index) <= CAUGHT_UP_BYTES_MAX
    }

    /// Asks `to` to take the leadership over; writes go on at once.
    ///
    /// # Errors
    /// A text when the group is stopped.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), String> {
        self.raft.trigger().transfer_leader(to.get()).await.map_err(|error| error.to_string())
    }

    /// The voter that has most of the log, other than this replica: the best next leader.
    pub fn best_follower(&self) -> Option<ReplicaId> {
        self.best_follower_of(|_| true)
    }

    fn best_follower_of(&self, may_lead: impl Fn(u64) -> bool) -> Option<ReplicaId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.as_ref()?;
        let voters = metrics.membership_config.membership().voter_ids();
        voters
            .filter(|&voter| voter != self.replica.get() && may_lead(voter))
            .filter_map(|voter| replication.get(&voter).and_then(Option::as_ref).map(|id| (id.index, voter)))
            .max()
            .map(|(_, voter)| ReplicaId(voter))
    }

    /// Starts an election when no leader was heard for `lease`, each voter a little after the one before it: that
    /// keeps candidates apart without waiting for one more randomised timeout. Raft's own timer is off.
    /// It is a pre-vote: voters that still hear the leader refuse it, and nothing happens.
    pub async fn elect_if_silent(&self, lease: Duration, rank_pause: Duration) {
        let rank = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            if metrics.state == ServerState::Leader {
                self.contact.leads(Instant::now());
                return;
            }
            self.contact.follows();
            // Whoever leads again, or is asked who leads, begins to listen anew.
            self.hearing.lock().reset();
            self.state.deaf.send_if_modified(std::mem::take);
            let mut voters = metrics.membership_config.membership().voter_ids();
            match voters.position(|voter| voter == self.replica.get()) {
                Some(rank) => u32::try_from(rank).unwrap_or(u32::MAX),
                None => return,
            }
        };
        if !self.contact.is_due(Instant::now(), lease, rank_pause, rank) {
            return;
        }
        tracing::info!(group = %self.group, "no leader is heard: asking for an election");
        if let Err(error) = self.raft.trigger().elect(true).await {
            tracing::debug!(group = %self.group, %error, "no election");
        }
    }

    /// How long this replica has led without a break, as far as [`Self::elect_if_silent`] has seen.
    pub fn led_for(&self) -> Option<Duration> {
        self.contact.led_for(Instant::now())
    }

    /// As leader: tells the followers that it is alive. Those that heard it anyway are left out by Raft. When a quorum has
    /// left `answers_due` heartbeats unanswered, nothing is sent any more, so that the others can elect.
    pub async fn heartbeat(&self, answers_due: u32) {
        let deaf = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let mut hearing = self.hearing.lock();
            if metrics.state != ServerState::Leader
                || metrics.membership_config.membership().voter_ids().count() < 2
            {
                hearing.reset();
                false
            } else {
                let acknowledged = metrics.last_quorum_acked.map(|sent| sent.into_inner());
                hearing.is_deaf(acknowledged, answers_due)
            }
        };
        let deaf = deaf && !defect::has(Defect::ReadWithoutQuorum);
        let changed = self.state.deaf.send_if_modified(|held| std::mem::replace(held, deaf) != deaf);
        if changed {
            tracing::info!(group = %self.group, deaf, "a leader that no quorum answers keeps silent");
        }
        if deaf {
            return;
        }
        if let Err(error) = self.raft.trigger().heartbeat().await {
            tracing::debug!(group = %self.group, %error, "no heartbeat");
        }
    }

    /// Flushes the engine and purges the log behind it, but for about its last `keep_bytes`.
    ///
    /// # Errors
    /// A text when the group is stopped.
    pub async fn compact(&self, keep_bytes: u64) -> Result<(), String> {
        let log = self.state.log();
        let applied = *self.state.applied_index().borrow();
        self.raft.trigger().snapshot().await.map_err(|error| error.to_string())?;
        let done = |metrics: &openraft::RaftMetrics<TypeConfig>| {
            metrics.snapshot.is_some_and(|snapshot| snapshot.index >= applied)
        };
        let waiting = self.raft.wait(None);
        waiting.metrics(done, "the engine to be flushed").await.map_err(|error| error.to_string())?;
        let (Some(first), Some((_, last))) = (log.first_index(), log.last()) else { return Ok(()) };
        let entries = last.saturating_sub(first) + 1;
        let keep = keep_bytes / (log.live_bytes() / entries).max(1);
        let through = applied.min(last.saturating_sub(keep)).min(self.state.purgeable());
        if through < first {
            return Ok(());
        }
        self.raft.trigger().purge_log(through).await.map_err(|error| error.to_string())
    }

    /// Installs a staged snapshot.
    ///
    /// # Errors
    /// A text when the group is stopped.
    pub async fn install_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        data: SnapshotData,
    ) -> Result<Vote, String> {
        let snapshot = openraft::alias::SnapshotOf::<TypeConfig, SnapshotData> { meta, snapshot: data };
        let reply =
            self.raft.install_full_snapshot(vote, snapshot).await.map_err(|error| error.to_string())?;
        Ok(reply.vote)
    }

    /// Ends the replica's tasks; its data stays.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = %self.group, %error, "raft group did not shut down cleanly");
        }
    }

    /// Answers a peer's message.
    pub async fn handle(&self, frame: wire::RaftFrame) -> Body {
        let Some(body) = frame.body else { return refused("an empty frame") };
        match body {
            Body::Append(request) => self.handle_append(request).await,
            other => Box::pin(self.handle_rare(other)).await,
        }
    }

    async fn handle_rare(&self, body: Body) -> Body {
        match body {
            Body::Vote(request) => {
                let voting = self.contact.asked();
                match self.raft.vote(vote_request(&request)).await {
                    Ok(response) => {
                        if response.vote_granted {
                            voting.granted(Instant::now());
                        }
                        vote_reply(&response)
                    }
                    Err(error) => refused(error),
                }
            }
            Body::PreVote(request) => match self.raft.pre_vote(vote_request(&request)).await {
                Ok(response) => vote_reply(&response),
                Err(error) => refused(error),
            },
            Body::Transfer(request) => {
                let transfer = TransferLeaderRequest::new(
                    vote_from_wire(&request.from.unwrap_or_default()),
                    request.to,
                    request.last.as_ref().map(log_id_from_wire),
                );
                self.take_over(transfer).await
            }
            Body::ReadIndex(request) if request.standing => {
                let proof = self.standing_proof();
                // Rounded up: the bound must hold.
                let age_ms = proof.map_or(0, |(_, age)| {
                    u64::try_from(age.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
                });
                Body::ReadIndexReply(wire::ReadIndexReply { index: proof.map(|(index, _)| index), age_ms })
            }
            Body::ReadIndex(_) => {
                let index = self.confirmed_index().await.ok();
                Body::ReadIndexReply(wire::ReadIndexReply { index, age_ms: 0 })
            }
            // Of no one group: the node answers it.
            Body::Confirm(_) => refused("a question to the node, not to a replica"),
            Body::Append(_)
            | Body::AppendReply(_)
            | Body::VoteReply(_)
            | Body::TransferReply(_)
            | Body::ReadIndexReply(_)
            | Body::ConfirmReply(_)
            | Body::Refused(_) => refused("an answer where a request was expected"),
        }
    }

    /// Takes the leadership over. The leader has stopped proposing and goes on sending its log, so what is missing
    /// here arrives in a moment; refusing at once would leave the group to wait for an election.
    async fn take_over(&self, transfer: TransferLeaderRequest<TypeConfig>) -> Body {
        let deadline = Instant::now() + TAKE_OVER_MAX;
        loop {
            match self.raft.handle_transfer_leader(transfer.clone()).await {
                Ok(Err(TransferLeaderError::LogNotFlushed { .. })) if Instant::now() < deadline => {
                    tokio::time::sleep(TAKE_OVER_RETRY).await;
                }
                Ok(result) => return Body::TransferReply(wire::TransferReply { accepted: result.is_ok() }),
                Err(error) => return refused(error),
            }
        }
    }

    async fn handle_append(&self, request: wire::AppendRequest) -> Body {
        let entries: Result<Vec<_>, _> =
            request.entries.iter().map(|wire| entry(wire.term, wire.index, &wire.payload)).collect();
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return refused(error),
        };
        // I10: the log takes no gaps, whatever a peer sends.
        let first = request.previous.as_ref().map_or(Some(0), |previous| previous.index.checked_add(1));
        let mut expected = first;
        for entry in &request.entries {
            if expected != Some(entry.index) {
                return refused("the entries do not follow each other");
            }
            expected = entry.index.checked_add(1);
        }
        let rpc = AppendEntriesRequest {
            vote: vote_from_wire(&request.vote.unwrap_or_default()),
            prev_log_id: request.previous.as_ref().map(log_id_from_wire),
            entries,
            leader_commit: request.commit.as_ref().map(log_id_from_wire),
        };
        use wire::append_reply::Kind;
        let result = self.raft.append_entries(rpc).await;
        if matches!(result, Ok(AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_))) {
            self.contact.heard(Instant::now());
        }
        let (kind, matching, vote) = match result {
            Ok(AppendEntriesResponse::Success) => (Kind::Success, None, None),
            Ok(AppendEntriesResponse::PartialSuccess(matching)) => (Kind::Partial, matching, None),
            Ok(AppendEntriesResponse::Conflict) => (Kind::Conflict, None, None),
            Ok(AppendEntriesResponse::HigherVote(vote)) => (Kind::HigherVote, None, Some(vote)),
            Err(error) => return refused(error),
        };
        Body::AppendReply(wire::AppendReply {
            kind: kind.into(),
            matching: matching.as_ref().map(log_id_to_wire),
            vote: vote.as_ref().map(vote_to_wire),
        })
    }

    /// Position of the last applied entry: (term, index).
    pub fn applied(&self) -> Option<(u64, u64)> {
        self.raft.metrics().borrow_watched().last_applied.as_ref().map(parts)
    }
}

/// By the vote that the log holds, which is there before anybody hears of it.
pub(super) fn holds(state: &ReplicaState, leadership: Leadership) -> bool {
    state
        .log()
        .vote()
        .is_some_and(|vote| vote.term == leadership.term && vote.voted_for == leadership.replica.get())
}

fn refused(reason: impl ToString) -> Body {
    Body::Refused(reason.to_string())
}

fn vote_request(request: &wire::VoteRequest) -> VoteRequest<TypeConfig> {
    VoteRequest {
        vote: vote_from_wire(&request.vote.unwrap_or_default()),
        last_log_id: request.last.as_ref().map(log_id_from_wire),
        leadership_transfer: request.transfer,
    }
}

fn vote_reply(response: &VoteResponse<TypeConfig>) -> Body {
    Body::VoteReply(wire::VoteReply {
        vote: Some(vote_to_wire(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(log_id_to_wire),
    })
}
