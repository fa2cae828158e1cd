//! Telling followers how far the log is committed, when there are no new entries that would tell it.
//!
//! Raft would send each follower an empty message after every commit, and wait for its answer, which says nothing new. Under
//! load the next entries are about to leave anyway and carry the same word. So it waits for a moment: entries that leave
//! meanwhile take its place, and what is left goes to a node in one message for all groups. No answer is waited for, and none
//! counts as a sign of life: heartbeats bring the word again should it be lost. A follower may so apply an entry a few
//! milliseconds after its leader; nothing but its own readers waits for that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use borough_proto::{NodeId, ReplicaId, wire};
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::peers::Peers;

/// How long the word waits for entries to travel with.
const WAIT: Duration = Duration::from_millis(5);
/// How long its delivery may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// What followers are still to be told.
pub struct Commits {
    peers: Arc<Peers>,
    /// By node and replica: the last word to each. A node is there while a task waits to tell it.
    waiting: Mutex<BTreeMap<NodeId, BTreeMap<ReplicaId, wire::RaftFrame>>>,
    tasks: TaskTracker,
}

impl Commits {
    /// Its tasks are of `tasks`.
    pub fn new(peers: Arc<Peers>, tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self { peers, waiting: Mutex::default(), tasks })
    }

    /// `frame`, an append without entries, is to reach `to` on `node` soon; it replaces an earlier one.
    pub fn tell(self: &Arc<Self>, node: NodeId, to: ReplicaId, frame: wire::RaftFrame) {
        let first = {
            let mut waiting = self.waiting.lock();
            let first = !waiting.contains_key(&node);
            // Bounded by the replicas of this node's groups (I8).
            waiting.entry(node).or_default().insert(to, frame);
            first
        };
        if first {
            let this = Arc::clone(self);
            self.tasks.spawn(async move {
                tokio::time::sleep(WAIT).await;
                this.leave(node).await;
            });
        }
    }

    /// Entries for `to` are about to leave, and say how far the log is committed. Whoever is being taken out of a group is sent
    /// nothing more in the midst of that: the word must not be lost with them.
    pub fn overtaken(self: &Arc<Self>, node: NodeId, to: ReplicaId) -> Overtaken {
        let frame = self.waiting.lock().get_mut(&node).and_then(|waiting| waiting.remove(&to));
        Overtaken { commits: Arc::clone(self), node, to, frame }
    }

    async fn leave(&self, node: NodeId) {
        let frames = self.waiting.lock().remove(&node).unwrap_or_default();
        let deadline = Instant::now() + PATIENCE;
        let telling = frames.into_values().map(|frame| self.peers.call(node, frame, deadline));
        // A word that is lost is said again by the next heartbeat.
        join_all(telling).await;
    }
}

/// A word that entries carry. Unless they arrive it waits to leave again.
pub struct Overtaken {
    commits: Arc<Commits>,
    node: NodeId,
    to: ReplicaId,
    frame: Option<wire::RaftFrame>,
}

impl Overtaken {
    /// The entries have arrived, and the word with them.
    pub fn arrived(mut self) {
        self.frame = None;
    }
}

impl Drop for Overtaken {
    fn drop(&mut self) {
        // At the end of a process nobody is told any more.
        if let Some(frame) = self.frame.take()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            self.commits.tell(self.node, self.to, frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use borough_proto::exchange::channel::ChannelSettings;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::node::MapCell;

    fn word(commit: u64) -> wire::RaftFrame {
        let commit = Some(wire::LogId { term: 1, index: commit });
        let append = wire::AppendRequest { commit, ..Default::default() };
        wire::RaftFrame { body: Some(wire::raft_frame::Body::Append(append)), ..Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_word_to_each_leaves_after_a_moment_unless_entries_overtake_it() {
        let tasks = TaskTracker::new();
        let book = Arc::new(MapCell::default());
        let peers = Peers::new(book, ChannelSettings::default(), tasks.clone(), CancellationToken::new());
        let commits = Commits::new(peers, tasks.clone());
        let (node, other) = (NodeId(2), NodeId(3));
        commits.tell(node, ReplicaId(5), word(7));
        commits.tell(node, ReplicaId(5), word(8));
        commits.tell(node, ReplicaId(6), word(9));
        commits.tell(other, ReplicaId(7), word(1));
        assert_eq!(tasks.len(), 2, "one task a node");
        commits.overtaken(node, ReplicaId(6)).arrived();
        commits.overtaken(other, ReplicaId(7)).arrived();
        // These entries do not arrive.
        drop(commits.overtaken(node, ReplicaId(5)));
        {
            let waiting = commits.waiting.lock();
            let left: Vec<_> = waiting.get(&node).into_iter().flatten().collect();
            assert_eq!(left, [(&ReplicaId(5), &word(8))]);
            assert!(waiting.get(&other).is_some_and(BTreeMap::is_empty));
        }
        tasks.close();
        tasks.wait().await;
        assert!(commits.waiting.lock().is_empty());
        // The next word finds nobody waiting, and so is told as well.
        commits.tell(node, ReplicaId(5), word(10));
        assert_eq!(tasks.len(), 1);
        tasks.wait().await;
        assert!(commits.waiting.lock().is_empty());
    }
}
