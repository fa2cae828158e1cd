//! Whether this node still leads the groups that it answers reads for: asked of other nodes for many groups at once.
//!
//! A read may be answered from what is applied here if, at some moment after it arrived, no later leader existed. A voter
//! that has not voted for anybody else says so (`Group::holds`); when a quorum has said so, each of them after the read
//! arrived, then nobody can have been elected before, as any later leader needs the vote of one of them first. This is
//! Raft's read index (Ongaro's dissertation, 6.4) without its heartbeats: a vote is what a voter's log holds, whichever
//! way it was asked for, so Raft's own task, here and there, takes no part. It trusts no clock.
//!
//! What costs is messages. So reads of one group share a *round*, rounds share a message, and there is one message on its
//! way to a node at a time, always to the same node as long as that one answers. It knows nothing of what is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use borough_proto::exchange::turn::others_first;
use borough_proto::{GroupId, NodeId, ReplicaId, wire};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use wire::raft_frame::Body;

use super::peers::Peers;

/// How long an answer is waited for. A node that is alive and busy answers in less; of one that is not, others are asked.
const PATIENCE: Duration = Duration::from_millis(150);
/// How long a node that did not answer is asked after the others.
const AVOIDED: Duration = Duration::from_secs(1);

/// A claim to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub term: u64,
}

/// The voters of a group, and where the others of them are.
#[derive(Debug, Clone)]
pub struct Electorate {
    /// One set of voters, or two during a joint change: a quorum of each is needed.
    pub configs: Vec<BTreeSet<ReplicaId>>,
    /// All voters but the leader.
    pub others: Vec<(NodeId, ReplicaId)>,
}

impl Electorate {
    fn is_quorum(&self, holds: impl Fn(ReplicaId) -> bool) -> bool {
        self.configs.iter().all(|voters| {
            let holding = voters.iter().filter(|voter| holds(**voter)).count();
            holding > voters.len() / 2
        })
    }

    /// How many of `others` a quorum takes at least, besides `leader`; all of them while the voters change.
    fn asked_at_first(&self, leader: ReplicaId) -> usize {
        match self.configs.as_slice() {
            [voters] => (voters.len() / 2 + 1).saturating_sub(usize::from(voters.contains(&leader))),
            _ => self.others.len(),
        }
    }
}

/// One question, for all reads of a group that came before it left.
pub struct Round {
    leadership: Leadership,
    electorate: Electorate,
    /// Whether the leader itself has voted for nobody else.
    own: Box<dyn Fn() -> bool + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Vec<oneshot::Sender<bool>>,
    /// It has left: reads that come now need the next one.
    left: bool,
    holding: Vec<ReplicaId>,
    /// The first so many of the others were asked.
    asked: usize,
    /// So many of them have not answered.
    open: usize,
    ended: bool,
}

impl Round {
    /// Every voter in `electorate.others` can be asked; `own` tells whether the leader's own vote still is its own.
    pub fn new(
        leadership: Leadership,
        electorate: Electorate,
        own: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { leadership, electorate, own: Box::new(own), state: Mutex::default() }
    }

    /// The outcome of this round, unless it has left already.
    pub fn join(&self) -> Option<oneshot::Receiver<bool>> {
        let mut state = self.state.lock();
        if state.left {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        state.waiting.push(sender);
        Some(receiver)
    }

    /// Takes no more reads. False when it has its outcome already.
    fn leave(&self) -> bool {
        let mut state = self.state.lock();
        state.left = true;
        !state.ended
    }

    /// One more of the others to ask, if there is one.
    fn ask_another(&self, state: &mut State) -> Option<(NodeId, ReplicaId)> {
        let next = self.electorate.others.get(state.asked).copied()?;
        state.asked += 1;
        state.open += 1;
        Some(next)
    }

    /// A voter has answered, or will not. Tells whom to ask next, if that is needed.
    fn answered(&self, voter: ReplicaId, holds: bool) -> Option<(NodeId, ReplicaId)> {
        let (outcome, waiting) = {
            let mut state = self.state.lock();
            if state.ended {
                return None;
            }
            state.open = state.open.saturating_sub(1);
            if holds {
                state.holding.push(voter);
            }
            if !self.has_quorum(&state) {
                let next = if holds { None } else { self.ask_another(&mut state) };
                if next.is_some() || state.open > 0 {
                    return next;
                }
            }
            self.end(&mut state)
        };
        self.tell(outcome, waiting);
        None
    }

    fn has_quorum(&self, state: &State) -> bool {
        let own = self.leadership.replica;
        self.electorate.is_quorum(|voter| voter == own || state.holding.contains(&voter))
    }

    fn end(&self, state: &mut State) -> (bool, Vec<oneshot::Sender<bool>>) {
        (state.ended, state.left) = (true, true);
        (self.has_quorum(state), std::mem::take(&mut state.waiting))
    }

    fn tell(&self, quorum: bool, waiting: Vec<oneshot::Sender<bool>>) {
        // Last, since the leader is one of the quorum.
        let outcome = quorum && (self.own)();
        for sender in waiting {
            // A read that was given up waits no more.
            let _ = sender.send(outcome);
        }
    }
}

/// Asks the other nodes.
pub struct Confirmer {
    peers: Arc<Peers>,
    /// In the order of their ids, so that nothing hangs on chance.
    asking: Mutex<BTreeMap<NodeId, Arc<Asking>>>,
    tasks: TaskTracker,
}

/// What one node is asked.
struct Asking {
    node: NodeId,
    state: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<(Arc<Round>, ReplicaId)>,
    /// A task asks.
    busy: bool,
    /// It did not answer: until then others are asked first.
    avoided_until: Option<Instant>,
}

impl Confirmer {
    /// Its tasks are of `tasks`.
    pub fn new(peers: Arc<Peers>, tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self { peers, asking: Mutex::default(), tasks })
    }

    fn asking(&self, node: NodeId) -> Arc<Asking> {
        let mut asking = self.asking.lock();
        let new = || Arc::new(Asking { node, state: Mutex::default() });
        Arc::clone(asking.entry(node).or_insert_with(new))
    }

    /// Puts the voters in the order in which they are asked: those that answer first, and of them for all groups the same one.
    pub fn prefer(&self, own: NodeId, others: &mut [(NodeId, ReplicaId)]) {
        let now = Instant::now();
        others.sort_by_cached_key(|(node, replica)| {
            let avoided = self.asking(*node).state.lock().avoided_until.is_some_and(|until| now < until);
            // Round the ring, so that each node asks another one.
            (avoided, node.get().wrapping_sub(own.get()), replica.get())
        });
    }

    /// Asks as many of the round's voters as it needs.
    pub fn start(self: &Arc<Self>, round: &Arc<Round>) {
        let count = round.electorate.asked_at_first(round.leadership.replica);
        let (first, alone) = {
            let mut state = round.state.lock();
            let first: Vec<_> = (0..count).map_while(|_| round.ask_another(&mut state)).collect();
            let alone = first.is_empty().then(|| round.end(&mut state));
            (first, alone)
        };
        if let Some((quorum, waiting)) = alone {
            round.tell(quorum, waiting);
        }
        for (node, voter) in first {
            self.ask(node, Arc::clone(round), voter);
        }
    }

    fn ask(self: &Arc<Self>, node: NodeId, round: Arc<Round>, voter: ReplicaId) {
        let asking = self.asking(node);
        {
            let mut queue = asking.state.lock();
            queue.waiting.push((round, voter));
            if std::mem::replace(&mut queue.busy, true) {
                return;
            }
        }
        let this = Arc::clone(self);
        self.tasks.spawn(async move { this.serve(&asking).await });
    }

    /// Sends what waits, one message at a time, until nothing does.
    async fn serve(self: &Arc<Self>, asking: &Asking) {
        loop {
            others_first().await;
            let mut batch = {
                let mut queue = asking.state.lock();
                if queue.waiting.is_empty() {
                    queue.busy = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            batch.retain(|(round, _)| round.leave());
            if batch.is_empty() {
                continue;
            }
            let leaderships = batch.iter().map(|(round, voter)| claim(round.leadership, *voter)).collect();
            let confirm = Body::Confirm(wire::ConfirmRequest { leaderships });
            let frame = wire::RaftFrame { body: Some(confirm), ..Default::default() };
            let answer = self.peers.call(asking.node, frame, Instant::now() + PATIENCE).await;
            let holds = match answer.map(|frame| frame.body) {
                Ok(Some(Body::ConfirmReply(reply))) if reply.holds.len() == batch.len() => Some(reply.holds),
                // A node of an earlier build refuses.
                Ok(_) | Err(_) => None,
            };
            match holds {
                Some(holds) => {
                    asking.state.lock().avoided_until = None;
                    for ((round, voter), holds) in batch.into_iter().zip(holds) {
                        self.told(round, voter, holds);
                    }
                }
                None => {
                    // Whoever waits for this node would wait in vain for as long.
                    let behind = {
                        let mut queue = asking.state.lock();
                        queue.avoided_until = Some(Instant::now() + AVOIDED);
                        std::mem::take(&mut queue.waiting)
                    };
                    for (round, voter) in batch.into_iter().chain(behind) {
                        self.told(round, voter, false);
                    }
                }
            }
        }
    }

    fn told(self: &Arc<Self>, round: Arc<Round>, voter: ReplicaId, holds: bool) {
        if let Some((node, next)) = round.answered(voter, holds) {
            self.ask(node, round, next);
        }
    }
}

fn claim(leadership: Leadership, voter: ReplicaId) -> wire::Leadership {
    wire::Leadership {
        group: leadership.group.get(),
        leader: leadership.replica.get(),
        term: leadership.term,
        voter: voter.get(),
    }
}

#[cfg(test)]
mod tests;
