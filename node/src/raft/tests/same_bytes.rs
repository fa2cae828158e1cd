//! Same log, same bytes (I5): on every engine, in whatever batches, and through a snapshot that was taken while
//! writes went on.

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use super::*;
use crate::config::EngineKind::{Fjall, Sled};
use crate::state::tests::{log_strategy, numbered};

/// An engine and a log of its own.
struct Bed {
    engine: Arc<dyn Engine>,
    wal: Wal,
    next: u64,
    _dir: TempDir,
}

impl Bed {
    fn new(kind: Option<EngineKind>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (engine, wal) = (engine(kind, &dir.path().join("engine")), open_wal(&dir.path().join("log")));
        Self { engine, wal, next: 0, _dir: dir }
    }

    /// A replica that holds nothing yet.
    fn replica(&mut self) -> Arc<ReplicaState> {
        self.next += 1;
        open_replica(self.next, &self.engine, &self.wal)
    }

    fn drop_replica(&self, state: &ReplicaState) {
        for space in self.engine.spaces().unwrap() {
            if space.replica == state.id {
                self.engine.drop_space(space).unwrap();
            }
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.wal.close();
    }
}

async fn apply_in_groups(state: &Arc<ReplicaState>, mut rest: &[Entry], sizes: &[usize]) {
    let mut sizes = sizes.iter().copied().cycle();
    while !rest.is_empty() {
        let (group, behind) = rest.split_at(sizes.next().unwrap().min(rest.len()));
        apply(state, group).await;
        rest = behind;
    }
}

/// `before` on one engine, a snapshot of it into another while `during` is applied there, then the rest on the other.
async fn through_snapshot(
    (from, to): (&mut Bed, &mut Bed),
    (before, during, after): (&[Entry], &[Entry], &[Entry]),
    sizes: &[usize],
    chunk_bytes: usize,
) -> Vec<(Bytes, Bytes)> {
    let (source, target) = (from.replica(), to.replica());
    // Something that the snapshot must replace.
    apply(&target, before.get(..1).unwrap_or_default()).await;
    apply_in_groups(&source, before, sizes).await;
    let (mut scan, meta) = source.begin_scan();
    let (generation, space) = target.stage().unwrap();
    let mut meanwhile = during.iter();
    while copy_chunk(&mut scan, &*space, chunk_bytes) {
        if let Some(entry) = meanwhile.next() {
            apply(&source, std::slice::from_ref(entry)).await;
        }
    }
    drop((scan, space));
    let staged = SnapshotData::Staged { generation };
    StateMachine(Arc::clone(&target)).install_snapshot(&meta, staged).await.unwrap();
    apply_in_groups(&target, during, sizes).await;
    apply_in_groups(&target, after, sizes).await;
    let bytes = bytes_of(&target);
    from.drop_replica(&source);
    to.drop_replica(&target);
    bytes
}

fn hold_for(kinds: &[Option<EngineKind>], cases: u32) {
    let runtime = runtime();
    let mut memory = Bed::new(None);
    let mut beds: Vec<Bed> = kinds.iter().map(|&kind| Bed::new(kind)).collect();
    let strategy = (
        log_strategy(40),
        proptest::collection::vec(1..9_usize, 1..6),
        (any::<Index>(), any::<Index>()),
        1..600_usize,
    );
    let beds = parking_lot::Mutex::new((&mut memory, &mut beds));
    TestRunner::new(Config { cases, ..Config::default() })
        .run(&strategy, |(log, sizes, (one, two), chunk_bytes)| {
            let entries: Vec<Entry> =
                numbered(&log).iter().map(|(index, command)| normal(1, *index, command)).collect();
            let (one, two) = (one.index(entries.len() + 1), two.index(entries.len() + 1));
            let (cut, end) = (one.min(two), one.max(two));
            let parts = (&entries[..cut], &entries[cut..end], &entries[end..]);
            let mut beds = beds.lock();
            let (memory, beds) = &mut *beds;
            runtime.block_on(async {
                let whole = memory.replica();
                apply(&whole, &entries).await;
                let expected = bytes_of(&whole);
                memory.drop_replica(&whole);
                for at in 0..beds.len() {
                    let grouped = beds[at].replica();
                    apply_in_groups(&grouped, &entries, &sizes).await;
                    prop_assert_eq!(&bytes_of(&grouped), &expected, "engine {} in groups", at);
                    beds[at].drop_replica(&grouped);
                    let from_memory =
                        through_snapshot((&mut *memory, &mut beds[at]), parts, &sizes, chunk_bytes).await;
                    prop_assert_eq!(&from_memory, &expected, "from memory to engine {}", at);
                }
                for at in 1..beds.len() {
                    let (low, high) = beds.split_at_mut(at);
                    let (one, other) = (low.last_mut().unwrap(), &mut high[0]);
                    let there = through_snapshot((one, other), parts, &sizes, chunk_bytes).await;
                    prop_assert_eq!(&there, &expected, "engine {} to {}", at - 1, at);
                    let back = through_snapshot((other, one), parts, &sizes, chunk_bytes).await;
                    prop_assert_eq!(&back, &expected, "engine {} to {}", at, at - 1);
                }
                Ok(())
            })
        })
        .unwrap();
}

#[test]
fn same_log_same_bytes_in_memory() {
    hold_for(&[None, None], 40);
}

#[test]
fn same_log_same_bytes_on_every_engine() {
    hold_for(&[Some(Sled), Some(Fjall)], 5);
}
