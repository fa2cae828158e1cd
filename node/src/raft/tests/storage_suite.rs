//! openraft's own suite of the storage contract, over the real log and each engine.

use std::io;
use std::sync::Arc;

use futures::Stream;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{RaftSnapshotBuilder, StorageError};
use tempfile::TempDir;

use super::*;
use crate::raft::log_storage::LogStorage;
use crate::raft::types::{LogId, StoredMembership, TypeConfig};

/// Our state machine, with the replica itself as the snapshot's data: installing it copies it over as the
/// network would, because ours are only scanned when they are sent.
struct Sending(StateMachine);
struct SendingBuilder(Arc<ReplicaState>);
#[derive(Debug)]
struct Sent(SentFrom);
struct SentFrom(Arc<ReplicaState>);

impl std::fmt::Debug for SentFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.id)
    }
}

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Sent>;

fn sent(from: &Arc<ReplicaState>, meta: SnapshotMeta) -> Snapshot {
    Snapshot { meta, snapshot: Sent(SentFrom(Arc::clone(from))) }
}

impl RaftSnapshotBuilder<TypeConfig> for SendingBuilder {
    type SnapshotData = Sent;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let mut machine = StateMachine(Arc::clone(&self.0));
        Ok(sent(&self.0, machine.get_snapshot_builder().await.build_snapshot().await?.meta))
    }
}

impl RaftStateMachine<TypeConfig> for Sending {
    type SnapshotData = Sent;
    type SnapshotBuilder = SendingBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        self.0.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        self.0.apply(entries).await
    }

    async fn get_snapshot_builder(&mut self) -> SendingBuilder {
        SendingBuilder(Arc::clone(&self.0.0))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Sent) -> Result<(), io::Error> {
        let from = snapshot.0.0;
        if Arc::ptr_eq(&from, &self.0.0) {
            return self.0.install_snapshot(meta, SnapshotData::Local).await;
        }
        let (scan, now) = from.begin_scan();
        assert_eq!(now, *meta);
        let staged = copy_into(scan, &self.0.0, 1 << 10);
        self.0.install_snapshot(meta, staged).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let current = self.0.get_current_snapshot().await?;
        Ok(current.map(|current| sent(&self.0.0, current.meta)))
    }
}

struct Builder(Option<EngineKind>);

/// Closes the log before its directory goes.
struct Guard {
    wal: Wal,
    _dir: TempDir,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.wal.close();
    }
}

impl StoreBuilder<TypeConfig, LogStorage, Sending, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStorage, Sending), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let wal = open_wal(&dir.path().join("log"));
        let engine = engine(self.0, &dir.path().join("engine"));
        let state = open_replica(1, &engine, &wal);
        let log = LogStorage::new(Arc::clone(&state));
        Ok((Guard { wal, _dir: dir }, log, Sending(StateMachine(state))))
    }
}

#[test]
fn storage_keeps_the_contract_in_memory() {
    runtime().block_on(Suite::test_all(Builder(None))).unwrap();
}

#[test]
fn storage_keeps_the_contract_on_sled() {
    runtime().block_on(Suite::test_all(Builder(Some(EngineKind::Sled)))).unwrap();
}

#[test]
fn storage_keeps_the_contract_on_fjall() {
    runtime().block_on(Suite::test_all(Builder(Some(EngineKind::Fjall)))).unwrap();
}
