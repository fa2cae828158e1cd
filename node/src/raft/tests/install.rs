//! A snapshot's installation is a switch of generations: a crash before it leaves the old data whole, a crash
//! after it the new, and what is left over is swept away.

use borough_proto::exchange::channel::ChannelSettings;
use openraft::storage::RaftStateMachine;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::config::Config;
use crate::node::MapCell;
use crate::raft::{Groups, Peers};
use crate::state::tests::{command, put, unit};
use crate::store::SpaceId;

fn entries(ids: std::ops::Range<u64>) -> Vec<Entry> {
    ids.map(|index| {
        let op = put(&format!("u{index}"), &format!(r#"{{"n":{index}}}"#));
        normal(1, index, &command(1_000 + index, vec![unit(vec![op])]))
    })
    .collect()
}

fn groups(wal: &Wal, engine: &Arc<dyn Engine>) -> Arc<Groups> {
    let peers = Peers::new(
        Arc::new(MapCell::default()),
        ChannelSettings::default(),
        TaskTracker::new(),
        CancellationToken::new(),
    );
    Groups::new(&Config::default(), wal.clone(), Arc::clone(engine), peers).unwrap()
}

/// What a start does before it opens replicas.
fn sweep(wal: &Wal, engine: &Arc<dyn Engine>) {
    groups(wal, engine).sweep_spaces().unwrap();
}

/// A replica with a few entries of its own, durable, and a snapshot of many staged for it.
struct Staged {
    dir: tempfile::TempDir,
    wal: Wal,
    engine: Arc<dyn Engine>,
    memory: Option<Arc<MemoryEngine>>,
    kind: Option<EngineKind>,
    state: Arc<ReplicaState>,
    old: Vec<(Bytes, Bytes)>,
    new: Vec<(Bytes, Bytes)>,
    meta: SnapshotMeta,
    staged: SnapshotData,
}

async fn stage(kind: Option<EngineKind>) -> Staged {
    let dir = tempfile::tempdir().unwrap();
    let wal = open_wal(&dir.path().join("log"));
    let memory = kind.is_none().then(|| Arc::new(MemoryEngine::new()));
    let engine = match &memory {
        Some(memory) => buffered(Arc::clone(memory) as Arc<dyn Engine>),
        None => engine(kind, &dir.path().join("engine")),
    };
    let state = open_replica(1, &engine, &wal);
    let (done, noted) = std::sync::mpsc::channel();
    let note = Box::new(move |result| done.send(result).unwrap());
    wal.group(ReplicaId(1)).unwrap().set_generation(0, vec![1, 0, 0, 0, 1], None, note);
    noted.recv().unwrap().unwrap();
    apply(&state, &entries(1..5)).await;
    build_snapshot(&state).await;

    let elsewhere = tempfile::tempdir().unwrap();
    let other_wal = open_wal(&elsewhere.path().join("log"));
    let source = open_replica(2, &super::engine(None, elsewhere.path()), &other_wal);
    apply(&source, &entries(1..300)).await;
    let (scan, meta) = source.begin_scan();
    let staged = copy_into(scan, &state, 1 << 10);
    let (old, new) = (bytes_of(&state), bytes_of(&source));
    other_wal.close();
    Staged { dir, wal, engine, memory, kind, state, old, new, meta, staged }
}

impl Staged {
    /// Drops everything as a power loss would as far as this engine can show it, and starts again.
    fn restart(self) -> (Wal, Arc<dyn Engine>, Arc<ReplicaState>, tempfile::TempDir) {
        drop((self.state, self.staged));
        self.wal.close();
        drop((self.wal, self.engine));
        let engine = match self.memory {
            Some(memory) => {
                memory.crash(0);
                buffered(memory)
            }
            None => engine(self.kind, &self.dir.path().join("engine")),
        };
        let wal = open_wal(&self.dir.path().join("log"));
        sweep(&wal, &engine);
        let state = open_replica(1, &engine, &wal);
        (wal, engine, state, self.dir)
    }
}

fn generations(engine: &Arc<dyn Engine>) -> Vec<u64> {
    engine.spaces().unwrap().into_iter().map(|space| space.generation).collect()
}

fn crash_before_the_switch_finds_the_old_after_it_the_new(kind: Option<EngineKind>) {
    runtime().block_on(async {
        let bed = stage(kind).await;
        assert_eq!(generations(&bed.engine), [0, 1]);
        let old = bed.old.clone();
        let (wal, engine, state, _dir) = bed.restart();
        assert_eq!(bytes_of(&state), old);
        assert_eq!(generations(&engine), [0], "the unfinished transfer is swept away");
        wal.close();

        let mut bed = stage(kind).await;
        let staged = std::mem::replace(&mut bed.staged, SnapshotData::Local);
        StateMachine(Arc::clone(&bed.state)).install_snapshot(&bed.meta, staged).await.unwrap();
        assert_eq!(bytes_of(&bed.state), bed.new);
        assert_eq!(*bed.state.applied_index().borrow(), 299);
        let new = bed.new.clone();
        let (wal, engine, state, _dir) = bed.restart();
        assert_eq!(bytes_of(&state), new);
        assert_eq!(generations(&engine), [1]);
        assert_eq!(*state.applied_index().borrow(), 299);
        // The log goes on behind it, and the next snapshot takes a generation that was never used.
        apply(&state, &entries(300..310)).await;
        assert_eq!(state.stage().unwrap().0, 2);
        wal.close();
    });
}

#[test]
fn crash_around_the_switch_in_memory() {
    crash_before_the_switch_finds_the_old_after_it_the_new(None);
}

#[test]
fn crash_around_the_switch_on_sled() {
    crash_before_the_switch_finds_the_old_after_it_the_new(Some(EngineKind::Sled));
}

#[test]
fn crash_around_the_switch_on_fjall() {
    crash_before_the_switch_finds_the_old_after_it_the_new(Some(EngineKind::Fjall));
}

#[test]
fn crash_between_the_switch_and_the_removal_of_the_old_finds_the_new() {
    runtime().block_on(async {
        let mut bed = stage(None).await;
        let staged = std::mem::replace(&mut bed.staged, SnapshotData::Local);
        StateMachine(Arc::clone(&bed.state)).install_snapshot(&bed.meta, staged).await.unwrap();
        let left = bed.engine.open_space(SpaceId { replica: ReplicaId(1), generation: 0 }).unwrap();
        let changes = bed.old.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        left.apply(crate::store::Batch { changes }).unwrap();
        left.flush().unwrap();
        let new = bed.new.clone();
        let (wal, engine, state, _dir) = bed.restart();
        assert_eq!(bytes_of(&state), new);
        assert_eq!(generations(&engine), [1]);
        wal.close();
    });
}

#[test]
fn snapshot_that_is_not_where_it_says_is_refused_and_the_old_stays() {
    runtime().block_on(async {
        let mut bed = stage(None).await;
        let staged = std::mem::replace(&mut bed.staged, SnapshotData::Local);
        let mut meta = bed.meta.clone();
        meta.last_log_id = Some(log_id(1, 300));
        let refused = StateMachine(Arc::clone(&bed.state)).install_snapshot(&meta, staged).await.unwrap_err();
        assert!(refused.to_string().contains("stands at"), "{refused}");
        assert_eq!(bytes_of(&bed.state), bed.old);
        let old = bed.old.clone();
        let (wal, _, state, _dir) = bed.restart();
        assert_eq!(bytes_of(&state), old);
        wal.close();
    });
}

#[test]
fn giving_one_replica_up_leaves_what_is_staged_for_another() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let wal = open_wal(&dir.path().join("log"));
        let engine = engine(None, dir.path());
        let groups = groups(&wal, &engine);
        let open = async |group, replica| {
            let machine = ShardMachine::new(ReplicaId(replica), Arc::new(Cache::new(1 << 20)));
            groups.open(GroupId(group), ReplicaId(replica), machine).await.unwrap()
        };
        let (receiving, _) = (open(1, 1).await, open(2, 2).await);
        let (generation, staged) = receiving.state.stage().unwrap();
        let space = |replica, generation| SpaceId { replica: ReplicaId(replica), generation };
        groups.remove(ReplicaId(2)).await.unwrap();
        let mut kept = engine.spaces().unwrap();
        kept.sort_unstable();
        assert_eq!(kept, [space(1, 0), space(1, generation)]);
        staged.get(b"k").unwrap();

        // The next start finds nobody to whom it belongs.
        groups.shutdown().await;
        sweep(&wal, &engine);
        assert_eq!(engine.spaces().unwrap(), [space(1, 0)]);
        wal.close();
    });
}
