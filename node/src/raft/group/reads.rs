//! What a read may answer from: that this replica leads still, has applied enough, or is as fresh as asked.

use std::sync::Arc;
use std::time::Duration;

use borough_proto::{GroupId, ReplicaId, wire};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{Instant as _, ReadPolicy, ServerState};
use tokio::sync::oneshot;
use tokio::time::Instant;
use wire::raft_frame::Body;

use super::{Group, ReadError};
use crate::defect::{self, Defect};
use crate::raft::confirm::{Electorate, Leadership, Round};
use crate::raft::state_machine::ReplicaState;
use crate::raft::types::parts;

impl Group {
    /// An index that includes every write acknowledged before the call, confirmed by a quorum that all reads waiting share
    /// the asking of, and applied here. Only on the leader.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        if let Some(applied) = self.leads_still().await {
            return Ok(applied);
        }
        self.read_index_by_heartbeat().await
    }

    /// [`read_index`](Self::read_index) by Raft's own messages, for whoever had no answer otherwise.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_index_by_heartbeat(&self) -> Result<u64, ReadError> {
        // Boxed, like all that seldom happens: what each call may have to wait for takes room in each.
        let index = Box::pin(self.confirmed_by_heartbeat()).await?;
        self.wait_applied(index).await?;
        Ok(index)
    }

    pub(super) async fn confirmed_index(&self) -> Result<u64, ReadError> {
        match self.leads_still().await {
            Some(applied) => Ok(applied),
            None => Box::pin(self.confirmed_by_heartbeat()).await,
        }
    }

    /// An index applied here that includes every write acknowledged before the call, if a quorum of voters says that it has
    /// elected nobody else.
    async fn leads_still(&self) -> Option<u64> {
        if defect::has(Defect::ReadWithoutQuorum) && self.is_leader() {
            return Some(self.state.applied());
        }
        let outcome = self.ask_whether_it_leads()?;
        // Whatever was acknowledged before the call was applied here before it: nobody else led.
        outcome.await.unwrap_or(false).then(|| self.state.applied())
    }

    /// Asks a quorum of voters, together with all reads that wait, whether they have elected nobody else; `None` when this
    /// replica may not ask. If they say so, what is applied here then includes every write acknowledged before the call.
    pub fn ask_whether_it_leads(&self) -> Option<oneshot::Receiver<bool>> {
        // It would wait for nothing.
        if *self.state.deaf.borrow() {
            return None;
        }
        let mut current = self.round.lock();
        if let Some(outcome) = current.as_ref().and_then(|round| round.join()) {
            return Some(outcome);
        }
        let round = Arc::new(self.new_round()?);
        let outcome = round.join()?;
        self.confirmer.start(&round);
        *current = Some(round);
        Some(outcome)
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
    pub(super) fn standing_proof(&self) -> Option<(u64, Duration)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader || metrics.current_leader != Some(self.replica.get()) {
            return None;
        }
        // Until an entry of its own term is applied, a leader may lack what leaders before it acknowledged.
        let of_term = metrics.last_applied.as_ref().is_some_and(|id| parts(id).0 == metrics.current_term);
        let sent = metrics.last_quorum_acked.filter(|_| of_term)?.into_inner();
        Some((self.state.applied(), sent.elapsed()))
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
}

/// By the vote that the log holds, which is there before anybody hears of it.
pub fn holds(state: &ReplicaState, leadership: Leadership) -> bool {
    state
        .log()
        .vote()
        .is_some_and(|vote| vote.term == leadership.term && vote.voted_for == leadership.replica.get())
}
