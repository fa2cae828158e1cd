//! The commit index never passes what a quorum has: openraft's issue 1802, for five voters and joint
//! memberships, in the crate that counts and in a group of five replicas with real logs.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, Config as RaftSettings, Raft, RaftNetworkFactory, RaftNetworkV2, SnapshotPolicy};
use parking_lot::{Condvar, Mutex};
use proptest::prelude::*;
use quorum_set::{QuorumSet, VecProgress};
use tokio::sync::watch;

use super::*;
use crate::raft::log_storage::LogStorage;
use crate::raft::types::{LogId, Member, TypeConfig};
use crate::wal::Options;

type Configs = Vec<BTreeSet<u64>>;

/// The largest index that a majority of every configuration has, counted the plain way.
fn counted(configs: &Configs, matching: &BTreeMap<u64, u64>) -> u64 {
    let of = |voters: &BTreeSet<u64>| {
        let mut have: Vec<u64> = voters.iter().map(|voter| matching[voter]).collect();
        have.sort_unstable_by(|a, b| b.cmp(a));
        have[voters.len() / 2]
    };
    configs.iter().map(of).min().unwrap()
}

fn configs() -> impl Strategy<Value = Configs> {
    let voters = || proptest::collection::btree_set(0..8_u64, 1..=5);
    prop_oneof![
        Just(vec![BTreeSet::from([0, 1, 2, 3, 4])]),
        voters().prop_map(|voters| vec![voters]),
        (voters(), voters()).prop_map(|(old, new)| vec![old, new]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]
    #[test]
    fn accepted_is_what_a_quorum_has(
        configs in configs(),
        acknowledgements in proptest::collection::vec((any::<prop::sample::Index>(), 1..12_u64), 1..24),
    ) {
        let voters: Vec<u64> = configs.ids().collect();
        let mut progress = VecProgress::<(u64, u64), _>::new(configs.clone(), [], |voter| (voter, 0));
        let mut matching: BTreeMap<u64, u64> = voters.iter().map(|&voter| (voter, 0)).collect();
        for (voter, further) in acknowledgements {
            let voter = *voter.get(&voters);
            let index = matching.get_mut(&voter).unwrap();
            *index += further;
            progress.update_progress(&voter, *index);
            prop_assert_eq!(*progress.quorum_accepted(), counted(&configs, &matching), "{:?} {:?}", &configs, &matching);
        }
    }
}

type GroupRaft = Raft<TypeConfig, StateMachine>;

/// Calls the replicas of this process; a follower is given no entry beyond its gate.
#[derive(Clone, Default)]
struct Gated {
    rafts: Arc<Mutex<BTreeMap<u64, GroupRaft>>>,
    gates: Arc<Mutex<BTreeMap<u64, watch::Sender<u64>>>>,
}

struct Wire {
    gated: Gated,
    to: u64,
}

impl Gated {
    fn gate(&self, voter: u64) -> watch::Sender<u64> {
        self.gates.lock().entry(voter).or_insert_with(|| watch::Sender::new(u64::MAX)).clone()
    }

    fn raft(&self, voter: u64) -> GroupRaft {
        self.rafts.lock()[&voter].clone()
    }
}

impl RaftNetworkFactory<TypeConfig> for Gated {
    type Network = Wire;

    async fn new_client(&mut self, to: u64, _: &Member) -> Wire {
        Wire { gated: self.clone(), to }
    }
}

fn lost(error: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(error.to_string())))
}

impl RaftNetworkV2<TypeConfig> for Wire {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        mut rpc: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let asked = rpc.entries.len();
        if let Some(first) = rpc.entries.first() {
            let first = first.log_id.index;
            let mut gate = self.gated.gate(self.to).subscribe();
            let open = *gate.wait_for(|&open| open >= first).await.map_err(lost)?;
            rpc.entries.retain(|entry| entry.log_id.index <= open);
        }
        let last = rpc.entries.last().map(|entry| entry.log_id);
        let cut = rpc.entries.len() < asked;
        match self.gated.raft(self.to).append_entries(rpc).await.map_err(lost)? {
            AppendEntriesResponse::Success if cut => Ok(AppendEntriesResponse::PartialSuccess(last)),
            other => Ok(other),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.gated.raft(self.to).vote(rpc).await.map_err(lost)
    }

    async fn full_snapshot(
        &mut self,
        _: openraft::alias::VoteOf<TypeConfig>,
        _: openraft::alias::SnapshotOf<TypeConfig, SnapshotData>,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(StreamingError::Unreachable(Unreachable::new(&AnyError::error("no snapshots here"))))
    }
}

/// Whether the leader's disk answers.
#[derive(Default)]
struct Disk {
    held: Mutex<bool>,
    changed: Condvar,
}

impl Disk {
    fn hold(&self, held: bool) {
        *self.held.lock() = held;
        self.changed.notify_all();
    }

    fn sync(&self, file: &std::fs::File) -> std::io::Result<()> {
        let mut held = self.held.lock();
        while *held {
            self.changed.wait(&mut held);
        }
        file.sync_data()
    }
}

struct Five {
    gated: Gated,
    disk: Arc<Disk>,
    wals: Vec<Wal>,
    _dir: tempfile::TempDir,
}

const LEADER: u64 = 1;
const PATIENCE: Duration = Duration::from_secs(30);

impl Five {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (gated, disk) = (Gated::default(), Arc::<Disk>::default());
        // Nothing happens by itself: no ticks, so no heartbeats and no elections.
        let settings = RaftSettings {
            heartbeat_interval: 20_000,
            election_timeout_min: 100_000,
            election_timeout_max: 200_000,
            enable_tick: false,
            snapshot_policy: SnapshotPolicy::Never,
            ..RaftSettings::default()
        };
        let settings = Arc::new(settings.validate().unwrap());
        let mut wals = Vec::new();
        for voter in 1..=5 {
            let held = Arc::clone(&disk);
            let options = Options::from(&log_config()).with_sync(move |file| match voter {
                LEADER => held.sync(file),
                _ => file.sync_data(),
            });
            let (wal, _) = Wal::open_with(&dir.path().join(voter.to_string()), options).unwrap();
            let state = open_replica(voter, &engine(None, dir.path()), &wal);
            let log = LogStorage::new(Arc::clone(&state));
            let raft = Raft::new(voter, Arc::clone(&settings), gated.clone(), log, StateMachine(state))
                .await
                .unwrap();
            gated.rafts.lock().insert(voter, raft);
            wals.push(wal);
        }
        let members: BTreeMap<u64, Member> = (1..=5).map(|voter| (voter, Member::default())).collect();
        gated.raft(LEADER).initialize(members).await.unwrap();
        let five = Self { gated, disk, wals, _dir: dir };
        five.leader().wait(Some(PATIENCE)).current_leader(LEADER, "elected").await.unwrap();
        five
    }

    fn leader(&self) -> GroupRaft {
        self.gated.raft(LEADER)
    }

    fn last(&self) -> u64 {
        self.leader().metrics().borrow_watched().last_log_index.unwrap()
    }

    /// Waits until the leader counts `index` for `voter`.
    async fn acknowledged(&self, voter: u64, index: u64) {
        let counted =
            |id: Option<&Option<LogId>>| id.and_then(Option::as_ref).is_some_and(|id| id.index >= index);
        self.leader()
            .wait(Some(PATIENCE))
            .metrics(|m| m.replication.as_ref().is_some_and(|all| counted(all.get(&voter))), "acknowledged")
            .await
            .unwrap_or_else(|error| panic!("voter {voter} at {index}: {error}"));
    }

    async fn let_have(&self, voter: u64, index: u64) {
        self.gated.gate(voter).send_replace(index);
        self.acknowledged(voter, index).await;
    }

    async fn propose(&self, count: u64) {
        let last = self.last();
        for n in 0..count {
            let command = wire::Command { stamp_ms: n, ..Default::default() };
            self.leader().client_write_ff(proposal(&command), None).await.unwrap();
        }
        let appended = last + count;
        self.leader().wait(Some(PATIENCE)).log_index_at_least(Some(appended), "appended").await.unwrap();
    }

    /// What the leader takes to be granted by a quorum.
    fn committed(&self) -> u64 {
        self.leader().metrics().borrow_watched().cluster_committed.as_ref().map_or(0, |id| id.index)
    }

    async fn stop(self) {
        self.disk.hold(false);
        let rafts: Vec<GroupRaft> = self.gated.rafts.lock().values().cloned().collect();
        for raft in rafts {
            raft.shutdown().await.unwrap();
        }
        for wal in self.wals {
            wal.close();
        }
    }
}

/// The leader's own disk is behind, one follower is far ahead of it, and the others follow: with the order of the
/// issue, a leader that forgets to re-sort would commit what only two of five have.
#[test]
fn five_voters_commit_nothing_that_only_two_have() {
    runtime().block_on(async {
        let five = Five::start().await;
        let base = five.last();
        for voter in 1..=5 {
            five.acknowledged(voter, base).await;
        }
        for voter in 2..=5 {
            five.gated.gate(voter).send_replace(base);
        }
        five.propose(5).await;
        five.acknowledged(LEADER, base + 5).await;
        five.disk.hold(true);
        five.propose(5).await;
        five.let_have(2, base + 3).await;
        assert_eq!(five.committed(), base);
        five.let_have(3, base + 4).await;
        assert_eq!(five.committed(), base + 3);
        five.let_have(3, base + 10).await;
        five.let_have(4, base + 6).await;
        // Leader 5, followers 3, 10, 6 and 0.
        assert_eq!(five.committed(), base + 5);
        five.disk.hold(false);
        five.acknowledged(LEADER, base + 10).await;
        assert_eq!(five.committed(), base + 6);
        five.let_have(5, base + 10).await;
        assert_eq!(five.committed(), base + 10);
        five.stop().await;
    });
}
