//! What a crash may take: never what was acknowledged (I1), because the log behind the engine's last flush is
//! still there (I2), and applying it again gives the same bytes (I5).

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use borough_proto::exchange::channel::ChannelSettings;
use openraft::async_runtime::WatchReceiver;
use openraft::storage::RaftStateMachine;
use openraft::{Config as RaftSettings, Raft, SnapshotPolicy};
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::node::MapCell;
use crate::raft::commits::Commits;
use crate::raft::confirm::Confirmer;
use crate::raft::log_storage::LogStorage;
use crate::raft::network::NetworkFactory;
use crate::raft::snapshot::SnapshotSender;
use crate::raft::types::{Member, TypeConfig};
use crate::raft::{Group, Groups, Peers, ProposeError};
use crate::state::tests::{MemoryView, apply_group, command, log_strategy, put, unit};
use crate::store::{Batch, KeyRange, Scan, Space, SpaceId, StoreError};

const PATIENCE: Duration = Duration::from_secs(30);

/// A group with this replica as its only voter. Everything behind a flush is purged at once.
async fn start(
    engine: &Arc<dyn Engine>,
    wal: &Wal,
) -> (Raft<TypeConfig, StateMachine>, Arc<ReplicaState>, Arc<Peers>) {
    let settings = RaftSettings {
        heartbeat_interval: 50,
        election_timeout_min: 100,
        election_timeout_max: 150,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        purge_batch_size: 1,
        ..RaftSettings::default()
    };
    let state = open_replica(1, engine, wal);
    let peers = Peers::new(
        Arc::new(MapCell::default()),
        ChannelSettings::default(),
        TaskTracker::new(),
        CancellationToken::new(),
    );
    let network = NetworkFactory {
        peers: Arc::clone(&peers),
        state: Arc::clone(&state),
        snapshots: SnapshotSender::new(1 << 20, true),
        commits: Commits::new(Arc::clone(&peers), peers.tasks()),
    };
    let log = LogStorage::new(Arc::clone(&state));
    let machine = StateMachine(Arc::clone(&state));
    let raft = Raft::new(1, Arc::new(settings.validate().unwrap()), network, log, machine).await.unwrap();
    if !raft.is_initialized().await.unwrap() {
        raft.initialize(std::collections::BTreeMap::from([(1, Member::default())])).await.unwrap();
    }
    raft.wait(Some(PATIENCE)).current_leader(1, "leads itself").await.unwrap();
    (raft, state, peers)
}

#[derive(Debug, Clone)]
enum Event {
    /// Flush, and purge the log behind.
    Compact,
    /// Power loss; of the batches since the last flush the first so many survive.
    Crash(usize),
}

fn steps() -> impl Strategy<Value = (Vec<wire::Command>, Vec<(usize, Event)>)> {
    let event = prop_oneof![3 => Just(Event::Compact), 2 => (0..12_usize).prop_map(Event::Crash)];
    (log_strategy(40), proptest::collection::vec((0..41_usize, event), 1..7)).prop_map(|(log, mut events)| {
        events.sort_by_key(|(at, _)| *at);
        (log, events)
    })
}

async fn survives(log: &[wire::Command], events: &[(usize, Event)], dir: &Path) {
    let memory = Arc::new(MemoryEngine::new());
    let mut engine = buffered(Arc::clone(&memory) as Arc<dyn Engine>);
    let mut wal = open_wal(dir);
    let (mut raft, mut state, _) = start(&engine, &wal).await;
    let mut acknowledged: Vec<(u64, wire::Command)> = Vec::new();
    let mut events = events.iter().peekable();
    // One crash at the end in any case.
    for at in 0..=log.len() {
        while let Some((_, event)) = events.next_if(|(when, _)| *when <= at || at == log.len()) {
            match event {
                Event::Compact => {
                    // Something new: what a restart has flushed already is not flushed and purged again.
                    let new = wire::Command { stamp_ms: 1, ..Default::default() };
                    let applied = raft.client_write(proposal(&new)).await.unwrap().log_id.index;
                    acknowledged.push((applied, new));
                    raft.trigger().snapshot().await.unwrap();
                    let done = raft.wait(Some(PATIENCE));
                    done.metrics(|m| m.purged.is_some_and(|p| p.index >= applied), "purged").await.unwrap();
                }
                Event::Crash(kept) => {
                    raft.shutdown().await.unwrap();
                    wal.close();
                    memory.crash(*kept);
                    engine = buffered(Arc::clone(&memory) as Arc<dyn Engine>);
                    wal = open_wal(dir);
                    let stored = open_replica(1, &engine, &wal);
                    let durable = stored.applied();
                    let log = wal.group(ReplicaId(1)).unwrap();
                    let purged = log.state().purged.map_or(0, |(_, index)| index);
                    assert!(purged <= durable, "I2: purged {purged}, durably applied {durable}");
                    let last = log.last().or(log.state().purged).map_or(0, |(_, index)| index);
                    let told = acknowledged.last().map_or(0, |(index, _)| *index);
                    assert!(told <= last, "I1: told {told}, the log ends at {last}");
                    drop(stored);
                    (raft, state, _) = start(&engine, &wal).await;
                }
            }
        }
        if let Some(command) = log.get(at) {
            let index = raft.client_write(proposal(command)).await.unwrap().log_id.index;
            acknowledged.push((index, command.clone()));
        }
    }
    let told = acknowledged.last().map_or(0, |(index, _)| *index);
    state.applied_index().wait_for(|&applied| applied >= told).await.unwrap();
    raft.shutdown().await.unwrap();
    let expected = MemoryView::default();
    // A leader's first entry is no command, and still writes the header.
    apply_group(&expected, &|batch| expected.write(batch), &[]);
    for entry in &acknowledged {
        apply_group(&expected, &|batch| expected.write(batch), std::slice::from_ref(entry));
    }
    let mut found = bytes_of(&state);
    found.retain(|(key, _)| !key.starts_with(b"r"));
    assert_eq!(found, dump(&expected));
    wal.close();
}

#[test]
fn any_crash_leaves_what_was_acknowledged() {
    let runtime = runtime();
    TestRunner::new(Config { cases: 16, ..Config::default() })
        .run(&steps(), |(log, events)| {
            let dir = tempfile::tempdir().unwrap();
            runtime.block_on(survives(&log, &events, dir.path()));
            Ok(())
        })
        .unwrap();
}

/// Asked before every flush, with the space's generation.
type OnFlush = Box<dyn Fn(u64) -> Result<(), StoreError> + Send + Sync>;
/// Asked before every batch.
type OnApply = Box<dyn Fn() -> Result<(), StoreError> + Send + Sync>;

/// The engine in memory with a flush that can be held or fail, and batches that can fail.
struct Hooked {
    memory: MemoryEngine,
    on_flush: Arc<OnFlush>,
    on_apply: Arc<OnApply>,
}

struct HookedSpace {
    space: Arc<dyn Space>,
    generation: u64,
    on_flush: Arc<OnFlush>,
    on_apply: Arc<OnApply>,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.memory.fmt(f)
    }
}

impl std::fmt::Debug for HookedSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.space.fmt(f)
    }
}

impl Engine for Hooked {
    fn open_space(&self, id: SpaceId) -> Result<Arc<dyn Space>, StoreError> {
        let (on_flush, on_apply) = (Arc::clone(&self.on_flush), Arc::clone(&self.on_apply));
        let space = self.memory.open_space(id)?;
        Ok(Arc::new(HookedSpace { space, generation: id.generation, on_flush, on_apply }))
    }

    fn spaces(&self) -> Result<Vec<SpaceId>, StoreError> {
        self.memory.spaces()
    }

    fn drop_space(&self, id: SpaceId) -> Result<(), StoreError> {
        self.memory.drop_space(id)
    }

    fn disk_bytes(&self) -> Result<u64, StoreError> {
        self.memory.disk_bytes()
    }
}

impl Space for HookedSpace {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.space.get(key)
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        self.space.scan(range, reverse)
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        (self.on_apply)()?;
        self.space.apply(batch)
    }

    fn flush(&self) -> Result<(), StoreError> {
        (self.on_flush)(self.generation)?;
        self.space.flush()
    }
}

fn hooked(on_flush: impl Fn(u64) -> Result<(), StoreError> + Send + Sync + 'static) -> Arc<dyn Engine> {
    failing(on_flush, || Ok(()))
}

fn failing(
    on_flush: impl Fn(u64) -> Result<(), StoreError> + Send + Sync + 'static,
    on_apply: impl Fn() -> Result<(), StoreError> + Send + Sync + 'static,
) -> Arc<dyn Engine> {
    buffered(Arc::new(Hooked {
        memory: MemoryEngine::new(),
        on_flush: Arc::new(Box::new(on_flush)),
        on_apply: Arc::new(Box::new(on_apply)),
    }))
}

#[test]
fn failed_flush_stops_the_group_and_purges_nothing() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let wal = open_wal(dir.path());
        let engine = hooked(|_| {
            let detail = "no space left".to_owned();
            Err(StoreError::Engine { operation: "flush", space: "r1-g0".to_owned(), detail })
        });
        let (raft, state, peers) = start(&engine, &wal).await;
        for n in 0..20 {
            let command = wire::Command { stamp_ms: n, ..Default::default() };
            raft.client_write(proposal(&command)).await.unwrap();
        }
        let mut metrics = raft.metrics();
        let group =
            Group::new(raft, state, Arc::clone(&peers), Confirmer::new(Arc::clone(&peers), peers.tasks()));
        assert_eq!(group.failure(), None);
        group.compact(0).await.expect_err("a flush that fails is told");
        let stopped = async {
            while metrics.borrow_watched().running_state.is_ok() {
                metrics.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, stopped).await.expect("a failed flush is fatal");
        let failure = group.failure().unwrap();
        assert!(failure.contains("no space left"), "{failure}");
        assert_eq!(wal.group(ReplicaId(1)).unwrap().state().purged, None);
        wal.close();
    });
}

/// A layer of the buffer that the engine did not take is found by a later apply, or by the flush that would let the log go.
#[test]
fn failed_drain_stops_the_group_and_purges_nothing() {
    for by_flush in [false, true] {
        runtime().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let wal = open_wal(dir.path());
            let (failed, failing_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let told = Arc::clone(&failed);
            let engine = failing(
                |_| Ok(()),
                move || {
                    // Once: from then on the engine would take everything.
                    if failing_once.fetch_add(1, Ordering::Relaxed) > 0 {
                        return Ok(());
                    }
                    told.fetch_add(1, Ordering::Release);
                    let detail = "no space left".to_owned();
                    Err(StoreError::Engine { operation: "apply", space: "r1-g0".to_owned(), detail })
                },
            );
            let (raft, state, peers) = start(&engine, &wal).await;
            let metrics = raft.metrics();
            let body = format!(r#"{{"x":"{}"}}"#, "x".repeat(1_000));
            let mut acknowledged = 0;
            for n in 0.. {
                let command = command(n, vec![unit(vec![put(&format!("u{n}"), &body)])]);
                if by_flush && failed.load(Ordering::Acquire) > 0 {
                    break;
                }
                match raft.client_write(proposal(&command)).await {
                    Ok(written) => acknowledged = written.log_id.index,
                    Err(_) => break,
                }
                assert!(n < 10_000, "the engine was given nothing");
            }
            let mut stopped = metrics.clone();
            let group = Group::new(
                raft,
                state,
                Arc::clone(&peers),
                Confirmer::new(Arc::clone(&peers), peers.tasks()),
            );
            if by_flush {
                group.compact(0).await.expect_err("what is not written cannot be flushed");
            }
            let stopped = async {
                while stopped.borrow_watched().running_state.is_ok() {
                    stopped.changed().await.unwrap();
                }
            };
            tokio::time::timeout(PATIENCE, stopped).await.expect("a failed drain is fatal");
            let failure = group.failure().unwrap();
            assert!(failure.contains("no space left"), "{failure}");
            let log = wal.group(ReplicaId(1)).unwrap();
            assert_eq!(log.state().purged, None);
            assert!(log.last().unwrap().1 >= acknowledged && acknowledged > 0);
            wal.close();
        });
    }
}

#[test]
fn flush_that_an_installation_overtakes_is_no_failure() {
    let (reached, reaching) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let engine = hooked(move |generation| {
        if generation == 0 {
            reached.send(()).unwrap();
            held.lock().recv().unwrap();
        }
        Ok(())
    });
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let wal = open_wal(dir.path());
        let (slow, ahead) =
            (open_replica(1, &engine, &wal), open_replica(2, &super::engine(None, dir.path()), &wal));
        let entries: Vec<_> =
            (1..20).map(|n| normal(1, n, &wire::Command { stamp_ms: n, ..Default::default() })).collect();
        apply(&slow, &entries[..5]).await;
        apply(&ahead, &entries).await;
        let tasks = TaskTracker::new();
        let flushing = Arc::clone(&slow);
        let building = tasks.spawn(async move { build_snapshot(&flushing).await });
        tokio::task::block_in_place(|| reaching.recv().unwrap());
        let (scan, meta) = ahead.begin_scan();
        let staged = copy_into(scan, &slow, 1 << 10);
        let mut machine = StateMachine(Arc::clone(&slow));
        machine.install_snapshot(&meta, staged).await.unwrap();
        release.send(()).unwrap();
        assert_eq!(building.await.unwrap(), meta, "what was installed is durable");
        // The older position must not replace the newer one.
        assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, meta);
        wal.close();
    });
}

/// A group of one replica that leads, in an engine that counts its flushes; its log may hold 64 KiB.
async fn with_counted_flushes(test: impl AsyncFnOnce(&Groups, &Group, &AtomicUsize)) {
    let flushes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&flushes);
    let engine = hooked(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let dir = tempfile::tempdir().unwrap();
    let wal = open_wal(dir.path());
    let mut config = crate::config::Config::default();
    config.log.purge_after_bytes = 64 << 10;
    let peers = Peers::new(
        Arc::new(MapCell::default()),
        ChannelSettings::default(),
        TaskTracker::new(),
        CancellationToken::new(),
    );
    let groups = Groups::new(&config, wal.clone(), engine, peers).unwrap();
    let machine = ShardMachine::new(ReplicaId(1), Arc::new(Cache::new(1 << 20)));
    let group = groups.open(GROUP, ReplicaId(1), machine).await.unwrap();
    group.initialize(borough_proto::NodeId(1)).await.unwrap();
    test(&groups, &group, &flushes).await;
    groups.shutdown().await;
    wal.close();
}

/// Writes 80 KiB.
async fn grow(group: &Group) {
    let body = format!(r#"{{"x":"{}"}}"#, "x".repeat(16 << 10));
    for n in 0..5_u64 {
        let command = command(n, vec![unit(vec![put(&format!("u{n}"), &body)])]);
        while let Err(error) = group.propose(proposal(&command)).await {
            // Initialised, and about to be elected.
            assert!(matches!(error, ProposeError::NotLeader { .. }), "{error}");
            tokio::task::yield_now().await;
        }
    }
}

async fn until_flushed(flushes: &AtomicUsize, times: usize) {
    let flushed = async {
        while flushes.load(Ordering::Relaxed) < times {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, flushed).await.expect("a log that grew is compacted");
}

/// The entries kept behind a flush are larger than the bound here; without the log growing nothing is flushed again.
#[test]
fn log_that_does_not_grow_is_not_compacted_again() {
    runtime().block_on(with_counted_flushes(async |groups, group, flushes| {
        for round in 1..=3 {
            grow(group).await;
            groups.compact_where_due().await;
            until_flushed(flushes, round).await;
            for _ in 0..3 {
                groups.compact_where_due().await;
                group.propose(proposal(&wire::Command::default())).await.unwrap();
            }
            assert_eq!(flushes.load(Ordering::Relaxed), round);
        }
    }));
}

/// Nobody looks between a purge and what is written next, which may come before that purge has taken effect, too.
#[test]
fn log_that_grows_again_before_anybody_looks_is_compacted_again() {
    runtime().block_on(with_counted_flushes(async |groups, group, flushes| {
        for round in 1..=3 {
            grow(group).await;
            groups.compact_where_due().await;
            until_flushed(flushes, round).await;
        }
    }));
}
