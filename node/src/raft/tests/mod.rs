//! Raft's parts over the real log and real engines: what the storage contract, a crash, a snapshot and a
//! quorum ask of them.

mod confirm;
mod content_hash;
mod crash;
pub mod growth;
mod install;
mod maps;
mod memory_loss;
mod quorum;
mod same_bytes;
mod storage_suite;

use std::path::Path;
use std::sync::Arc;

use borough_proto::{GroupId, ReplicaId, wire};
use bytes::Bytes;
use futures::stream;
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, RaftSnapshotBuilder};

use super::snapshot::{decode_pairs, encode_pairs};
use super::state_machine::{ReplicaState, SnapshotData, StateMachine};
use super::types::{Entry, SnapshotMeta, log_id, proposal};
use crate::cache::Cache;
use crate::config::{EngineKind, LogConfig};
use crate::shard::ShardMachine;
use crate::state::tests::dump;
use crate::store::snapshot::VersionedSpace;
use crate::store::{BufferedEngine, Engine, MemoryEngine, PointInTime, Space, open_engine};
use crate::wal::Wal;

const GROUP: GroupId = GroupId(1);
const OVERLAY_BYTES_MAX: u64 = 64 << 20;
/// So little that engines are written beside what goes on, besides at flushes.
const BUFFER_BYTES: u64 = 64 << 10;

fn log_config() -> LogConfig {
    LogConfig { segment_bytes: 1 << 20, cache_bytes: 1 << 20, ..LogConfig::default() }
}

fn open_wal(dir: &Path) -> Wal {
    let (wal, recovered) = Wal::open(dir, &log_config()).unwrap();
    assert!(recovered.damaged.is_empty(), "{:?}", recovered.damaged);
    wal
}

/// A new engine with its buffer, as a node has it; `None` for the one in memory.
fn engine(kind: Option<EngineKind>, dir: &Path) -> Arc<dyn Engine> {
    buffered(match kind {
        None => Arc::new(MemoryEngine::new()),
        Some(kind) => open_engine(kind, dir, 32 << 20, 1).unwrap(),
    })
}

fn buffered(engine: Arc<dyn Engine>) -> Arc<dyn Engine> {
    Arc::new(BufferedEngine::new(engine, BUFFER_BYTES))
}

/// A shard's replica, as [`Groups`](super::Groups) opens it.
fn open_replica(id: u64, engine: &Arc<dyn Engine>, wal: &Wal) -> Arc<ReplicaState> {
    let replica = ReplicaId(id);
    let machine = ShardMachine::new(replica, Arc::new(Cache::new(1 << 20)));
    let log = wal.group(replica).unwrap();
    ReplicaState::open(replica, GROUP, Arc::clone(engine), log, machine, OVERLAY_BYTES_MAX).unwrap()
}

fn normal(term: u64, index: u64, command: &wire::Command) -> Entry {
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(proposal(command)) }
}

/// Applies `entries` as Raft does when all of them are ready.
async fn apply(state: &Arc<ReplicaState>, entries: &[Entry]) {
    let items = entries.iter().map(|entry| Ok((entry.clone(), None)));
    StateMachine(Arc::clone(state)).apply(stream::iter(items.collect::<Vec<_>>())).await.unwrap();
}

async fn build_snapshot(state: &Arc<ReplicaState>) -> SnapshotMeta {
    let mut machine = StateMachine(Arc::clone(state));
    let mut builder = machine.try_create_snapshot_builder(true).await.unwrap();
    builder.build_snapshot().await.unwrap().meta
}

/// All that a replica holds, applied position included.
fn bytes_of(state: &ReplicaState) -> Vec<(Bytes, Bytes)> {
    dump::<VersionedSpace>(&state.space().space)
}

/// Writes a replica's point in time into the next generation of another, through the form it has on the wire.
fn copy_into(mut scan: PointInTime, to: &ReplicaState, chunk_bytes: usize) -> SnapshotData {
    let (generation, space) = to.stage().unwrap();
    while copy_chunk(&mut scan, &*space, chunk_bytes) {}
    SnapshotData::Staged { generation }
}

/// Whether there was a chunk.
fn copy_chunk(scan: &mut PointInTime, into: &dyn Space, chunk_bytes: usize) -> bool {
    let Some(pairs) = scan.next_chunk(chunk_bytes).unwrap() else { return false };
    into.apply(decode_pairs(encode_pairs(&pairs)).unwrap()).unwrap();
    true
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
