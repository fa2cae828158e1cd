//! The voters of a group, and who of them should lead.

use std::collections::{BTreeMap, BTreeSet};

use borough_proto::{NodeId, ReplicaId};
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;

use super::Group;
use crate::crash;
use crate::raft::types::Member;

/// Followers may be this many entries behind and still become voters.
const CAUGHT_UP_LAG_MAX: u64 = 256;
/// And so many bytes, whatever the number: writes wait for a voter that a quorum needs.
const CAUGHT_UP_BYTES_MAX: u64 = 4 << 20;
/// What a new replica that is not there yet is told with: it is no obstacle.
pub const CATCHING_UP: &str = "catching up: ";

impl Group {
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
}
