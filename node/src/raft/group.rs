//! One Raft group's replica on this node: proposing, reading, membership, and messages from peers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use borough_proto::{GroupId, NodeId, ReplicaId};
use openraft::alias::InstantOf;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{Raft, ServerState};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::confirm::{Confirmer, Round};
use super::contact::Contact;
use super::hearing::Hearing;
use super::peers::Peers;
use super::state_machine::{ReplicaState, SnapshotData, StateMachine};
use super::types::{Member, Proposal, Reply, SnapshotMeta, TypeConfig, Vote, parts};
use crate::defect::{self, Defect};

mod members;
mod messages;
mod reads;

pub use members::CATCHING_UP;
#[cfg(test)]
pub(super) use reads::holds;

type GroupRaft = Raft<TypeConfig, StateMachine>;

const NO_QUORUM: &str = "no quorum answers this leader";

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
        let applied = self.state.applied();
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

    /// Position of the last applied entry: (term, index).
    pub fn applied(&self) -> Option<(u64, u64)> {
        self.raft.metrics().borrow_watched().last_applied.as_ref().map(parts)
    }
}
