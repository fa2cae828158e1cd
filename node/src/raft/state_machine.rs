//! Raft's state machine over a replica's space in the engine.
//!
//! The effects of entries, the applied position and the membership go into the engine in one atomic
//! batch (I4). A snapshot here is a flush of the engine: it allows the log behind it to be purged (I2);
//! what is sent to a peer is a point-in-time scan made when it is sent.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use borough_proto::{GroupId, ReplicaId, wire};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::types::{
    LogId, Reply, SnapshotMeta, StoredMembership, TypeConfig, applied_from_wire, applied_to_wire,
    log_id_to_wire, proposal_message,
};
use crate::crash;
use crate::store::snapshot::{PointInTime, VersionedSpace};
use crate::store::{Engine, Space, SpaceId, StoreError};
use crate::wal::GroupLog;

/// How the keys of Raft's own part of the space begin, which machines leave alone.
pub(super) const RAFT_PREFIX: &[u8] = b"r/";
/// Key of the applied position.
const APPLIED_KEY: &[u8] = b"r/applied";
/// How long the log is kept for a replica that has just installed a snapshot.
const CATCH_UP_GRACE: Duration = Duration::from_secs(10);
/// Entries that go into one engine batch at most.
const BATCH_ENTRIES_MAX: usize = 512;
/// Bytes of commands after which an engine batch ends: long ones cost engines more than the same in several.
const BATCH_BYTES: usize = 32 << 10;

/// What a group replicates: a shard's documents or the catalog.
pub trait Machine: Send + Sync + 'static {
    /// Rebuilds what is kept in memory from `space`: at start and after a snapshot was installed.
    ///
    /// # Errors
    /// [`StoreError`] when the space cannot be read.
    fn load(&self, space: &VersionedSpace) -> Result<(), StoreError>;

    /// Applies commands in order and `position` (a key and its value) in one atomic batch (I4), then
    /// makes the effects visible to the cache (I7).
    ///
    /// # Errors
    /// [`StoreError`]; the replica then stops.
    fn apply(
        &self,
        space: &VersionedSpace,
        commands: &[(u64, Bytes)],
        position: (Bytes, Bytes),
    ) -> Result<Vec<Reply>, StoreError>;
}

/// The applied position and the membership there.
#[derive(Debug, Clone)]
struct Position {
    applied: Option<LogId>,
    membership: StoredMembership,
    /// The membership in the form that is kept beside the data, so that it need not be made for each batch.
    record: wire::AppliedState,
}

impl Position {
    fn new(applied: Option<LogId>, membership: StoredMembership) -> Self {
        Self { applied, record: applied_to_wire(applied.as_ref(), &membership), membership }
    }

    /// What is kept beside the data for `applied`.
    fn encoded_at(&mut self, applied: &LogId) -> Bytes {
        self.record.applied = Some(log_id_to_wire(applied));
        self.record.encode_to_vec().into()
    }

    fn voters(&self) -> BTreeSet<u64> {
        self.membership.voter_ids().collect()
    }
}

/// One replica's state: shared by Raft's worker, readers and snapshot senders.
pub struct ReplicaState {
    pub id: ReplicaId,
    pub group: GroupId,
    engine: Arc<dyn Engine>,
    log: GroupLog,
    machine: Arc<dyn Machine>,
    space: ArcSwap<Generation>,
    overlay_bytes_max: u64,
    /// Last entry of the batch that apply works on, at or after the applied index.
    applying: AtomicU64,
    /// Held while a batch is applied, so that a point in time is exact.
    position: Mutex<Position>,
    /// The voters of the applied membership, and those of memberships that the log has since, for who cannot wait until a
    /// batch is applied.
    voters: ArcSwap<BTreeSet<u64>>,
    /// As leader: up to which entry each new replica is sent the log at the pace of snapshots.
    owed: Mutex<BTreeMap<u64, u64>>,
    applied_index: watch::Sender<u64>,
    /// What the last flush made durable.
    flushed: Mutex<Option<SnapshotMeta>>,
    /// The last drain of the engine's buffer beside apply. One at a time; it ends with what there was when it began.
    draining: Mutex<Option<JoinHandle<()>>>,
    /// Log entries behind these are needed by replicas that a snapshot is on its way to: where it stands for Raft,
    /// and, once it has arrived, until when.
    held: Mutex<HashMap<u64, (u64, Option<Instant>)>>,
    /// Number of the next entry of `held`.
    next_hold: AtomicU64,
    /// Generation that the next incoming snapshot is staged in.
    next_generation: AtomicU64,
    /// Bytes of a snapshot that have arrived and are not installed yet.
    pub staged_bytes: AtomicU64,
    /// As leader: no quorum answers, so it sends nothing that would keep the others from electing.
    pub deaf: watch::Sender<bool>,
}

/// A replica's space and which generation it is.
pub struct Generation {
    pub number: u64,
    pub space: VersionedSpace,
}

/// A snapshot's data: nothing for our own (it is scanned when sent), a staged space for a received one.
#[derive(Debug)]
pub enum SnapshotData {
    Local,
    Staged { generation: u64 },
}

impl ReplicaState {
    /// Opens the replica's space and brings the machine to where it was.
    ///
    /// # Errors
    /// [`StoreError`] when the engine refuses or holds damaged data.
    pub fn open(
        id: ReplicaId,
        group: GroupId,
        engine: Arc<dyn Engine>,
        log: GroupLog,
        machine: Arc<dyn Machine>,
        overlay_bytes_max: u64,
    ) -> Result<Arc<Self>, StoreError> {
        let generation = log.state().generation;
        let space = VersionedSpace::new(engine.open_space(SpaceId { replica: id, generation })?);
        let position = read_position(&space, id)?;
        machine.load(&space)?;
        let applied = position.applied.map_or(0, |applied| applied.index);
        Ok(Arc::new(Self {
            id,
            group,
            engine,
            log,
            machine,
            space: ArcSwap::from_pointee(Generation { number: generation, space }),
            overlay_bytes_max,
            applying: AtomicU64::new(applied),
            voters: ArcSwap::from_pointee(position.voters()),
            position: Mutex::new(position),
            owed: Mutex::default(),
            applied_index: watch::Sender::new(applied),
            flushed: Mutex::new(None),
            draining: Mutex::new(None),
            held: Mutex::default(),
            next_hold: AtomicU64::new(0),
            next_generation: AtomicU64::new(generation + 1),
            staged_bytes: AtomicU64::new(0),
            deaf: watch::Sender::new(false),
        }))
    }

    /// The current space; a snapshot that is installed replaces it.
    pub fn space(&self) -> Arc<Generation> {
        self.space.load_full()
    }

    /// The replica's log.
    pub fn log(&self) -> &GroupLog {
        &self.log
    }

    /// Keeps the log behind `index` until [`Self::release_log`]: a snapshot that stands there is being sent. Without
    /// it the log would be purged while the snapshot is under way, and the next one would be late as well.
    pub fn hold_log(&self, index: u64) -> u64 {
        let hold = self.next_hold.fetch_add(1, Ordering::Relaxed);
        self.held.lock().insert(hold, (index, None));
        hold
    }

    /// The transfer that took `hold` ended; the log is kept a little longer for what its receiver missed meanwhile.
    pub fn release_log(&self, hold: u64) {
        if let Some((_, until)) = self.held.lock().get_mut(&hold) {
            *until = Some(Instant::now() + CATCH_UP_GRACE);
        }
    }

    /// The last entry that may be purged as far as snapshots under way are concerned.
    pub fn purgeable(&self) -> u64 {
        let mut held = self.held.lock();
        held.retain(|_, (_, until)| until.is_none_or(|until| Instant::now() < until));
        held.values().map(|(index, _)| *index).min().unwrap_or(u64::MAX)
    }

    /// The new replica `to` is sent what the log has up to `index` at the pace of snapshots.
    pub fn owes(&self, to: ReplicaId, index: u64) {
        self.owed.lock().insert(to.get(), index);
    }

    /// The entry up to which that replica is sent the log at the pace of snapshots, if it is: as a voter it would keep writes
    /// waiting for that.
    pub fn owed(&self, replica: u64) -> Option<u64> {
        self.owed.lock().get(&replica).copied()
    }

    /// The log has a membership with these voters, which may be needed to commit it.
    pub fn expect_voters(&self, voters: impl Iterator<Item = u64>) {
        let mut expected = BTreeSet::clone(&self.voters.load());
        expected.extend(voters);
        self.voters.store(Arc::new(expected));
    }

    /// Whether that replica votes, by the membership that is applied here or by one that the log has since.
    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.load().contains(&replica.get())
    }

    /// Index of the last applied entry, and a way to wait for later ones.
    pub fn applied_index(&self) -> watch::Receiver<u64> {
        self.applied_index.subscribe()
    }

    /// Index of the last applied entry.
    pub fn applied(&self) -> u64 {
        *self.applied_index.borrow()
    }

    /// The index that a read includes, if no batch was under way of which it may have seen a part. Call it after reading.
    pub fn settled(&self) -> Option<u64> {
        let applying = self.applying.load(Ordering::Acquire);
        let applied = self.applied();
        (applied >= applying).then_some(applied)
    }

    /// Waits until what a read may have seen of a batch under way is visible to every later read, in engine
    /// and cache alike, and answers the index that the read includes. Call it after reading.
    pub async fn settle(&self) -> u64 {
        let applying = self.applying.load(Ordering::Acquire);
        let now = self.applied();
        if now >= applying {
            return now;
        }
        // The sender lives as long as `self`.
        let mut applied = self.applied_index.subscribe();
        applied.wait_for(|&applied| applied >= applying).await.map_or(now, |applied| *applied)
    }

    /// A point in time of everything applied, and the position it stands at. Writes go on meanwhile.
    pub fn begin_scan(&self) -> (PointInTime, SnapshotMeta) {
        let position = self.position.lock();
        let scan = self.space.load().space.begin_scan(self.overlay_bytes_max);
        (scan, SnapshotMeta { last_log_id: position.applied, last_membership: position.membership.clone() })
    }

    /// A new empty space to receive a snapshot in; replaces what an earlier transfer left.
    ///
    /// # Errors
    /// [`StoreError`] from the engine.
    pub fn stage(&self) -> Result<(u64, Arc<dyn crate::store::Space>), StoreError> {
        let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
        let id = SpaceId { replica: self.id, generation };
        self.engine.drop_space(id)?;
        Ok((generation, self.engine.open_space(id)?))
    }

    /// Gives up a staged space.
    ///
    /// # Errors
    /// [`StoreError`] from the engine.
    pub fn unstage(&self, generation: u64) -> Result<(), StoreError> {
        self.engine.drop_space(SpaceId { replica: self.id, generation })
    }

    fn apply_batch(&self, items: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let Some((last, _)) = items.last() else { return Ok(()) };
        let last = last.log_id;
        let mut position = self.position.lock();
        let mut membership_after = None;
        let mut commands = Vec::with_capacity(items.len());
        for (entry, _) in &items {
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(proposal) => {
                    commands.push((entry.log_id.index, proposal_message(proposal)));
                }
                EntryPayload::Membership(membership) => {
                    let membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    membership_after = Some(Position::new(Some(last), membership));
                }
            }
        }
        let encoded = membership_after.as_mut().unwrap_or(&mut *position).encoded_at(&last);
        let record = (Bytes::from_static(APPLIED_KEY), encoded);
        self.applying.store(last.index, Ordering::Release);
        let replies =
            self.machine.apply(&self.space.load().space, &commands, record).map_err(io::Error::other)?;
        position.applied = Some(last);
        if let Some(next) = membership_after {
            let voters = next.voters();
            self.owed.lock().retain(|replica, _| !voters.contains(replica));
            self.voters.store(Arc::new(voters));
            *position = next;
        }
        drop(position);
        for (entry, _) in &items {
            if let EntryPayload::Membership(membership) = &entry.payload
                && self.group != GroupId::META
            {
                let joint = membership.get_joint_config().len() > 1;
                crash::reached(if joint { "joint-applied" } else { "members-applied" });
            }
        }
        // Only now: a reader that waits for this index must find its effects in engine and cache (I7).
        self.applied_index.send_replace(last.index);
        let mut replies = replies.into_iter();
        for (entry, responder) in items {
            let reply = match entry.payload {
                EntryPayload::Normal(_) => replies.next().unwrap_or(Reply::Undecodable),
                EntryPayload::Blank | EntryPayload::Membership(_) => Reply::None,
            };
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        self.drain_if_due();
        Ok(())
    }

    /// Lets the engine's buffer be written beside what goes on here, where there is enough of it.
    fn drain_if_due(&self) {
        if !self.space.load().space.drain_due() {
            return;
        }
        let mut draining = self.draining.lock();
        if draining.as_ref().is_some_and(|last| !last.is_finished()) {
            return;
        }
        let (replica, generation) = (self.id, self.space.load_full());
        *draining = Some(crate::blocking::spawn(move || {
            if let Err(error) = generation.space.drain() {
                // The buffer keeps what it could not write: the next apply or flush fails, and the replica stops.
                tracing::error!(%replica, %error, "the engine does not take what was applied");
            }
        }));
    }

    /// Makes everything applied so far durable and remembers that it is.
    fn flush(&self) -> io::Result<SnapshotMeta> {
        let (meta, space) = {
            let position = self.position.lock();
            let meta =
                SnapshotMeta { last_log_id: position.applied, last_membership: position.membership.clone() };
            (meta, self.space.load_full())
        };
        let flushed = space.space.flush();
        // Not while a snapshot is installed: what it made durable is newer, and the space it replaced may be gone.
        let _position = self.position.lock();
        let mut known = self.flushed.lock();
        if self.space.load().number != space.number
            && let Some(installed) = known.clone()
        {
            return Ok(installed);
        }
        flushed.map_err(io::Error::other)?;
        *known = Some(meta.clone());
        Ok(meta)
    }

    async fn install(&self, meta: &SnapshotMeta, generation: u64) -> io::Result<()> {
        let id = SpaceId { replica: self.id, generation };
        let space = self.engine.open_space(id).map_err(io::Error::other)?;
        space.flush().map_err(io::Error::other)?;
        let space = VersionedSpace::new(space);
        let staged = read_position(&space, self.id).map_err(io::Error::other)?;
        if staged.applied != meta.last_log_id {
            return Err(io::Error::other(format!(
                "staged snapshot of {} stands at {:?}, not at {:?}",
                self.id, staged.applied, meta.last_log_id
            )));
        }
        // The durable switch from the old generation to the new one: a crash before it finds the old
        // space whole, a crash after it the new one.
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let blob = self.log.state().snapshot;
        self.log.set_generation(
            generation,
            blob,
            None,
            Box::new(move |result| {
                let _ = sender.send(result);
            }),
        );
        receiver.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        let index = meta.last_log_id.map_or(0, |last| last.index);
        let old = {
            let mut position = self.position.lock();
            self.voters.store(Arc::new(staged.voters()));
            *position = staged;
            let old = self.space.swap(Arc::new(Generation { number: generation, space }));
            self.machine.load(&self.space.load().space).map_err(io::Error::other)?;
            self.applying.store(index, Ordering::Release);
            *self.flushed.lock() = Some(meta.clone());
            old
        };
        self.applied_index.send_replace(index);
        let old_id = SpaceId { replica: self.id, generation: old.number };
        drop(old);
        self.engine.drop_space(old_id).map_err(io::Error::other)
    }
}

fn read_position(space: &VersionedSpace, replica: ReplicaId) -> Result<Position, StoreError> {
    let Some(bytes) = space.get(APPLIED_KEY)? else {
        return Ok(Position::new(None, StoredMembership::default()));
    };
    let damaged = |detail: String| StoreError::Damaged { space: replica.to_string(), detail };
    let wire = wire::AppliedState::decode(bytes).map_err(|error| damaged(error.to_string()))?;
    let (applied, membership) = applied_from_wire(&wire).map_err(|error| damaged(error.to_string()))?;
    Ok(Position::new(applied, membership))
}

/// Raft's handle on a replica's state.
#[derive(Clone)]
pub struct StateMachine(pub Arc<ReplicaState>);

/// Flushes the engine, so that the log behind may go.
pub struct SnapshotBuilder(Arc<ReplicaState>);

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let state = Arc::clone(&self.0);
        let meta = crate::blocking::spawn(move || state.flush()).await.map_err(io::Error::other)??;
        Ok(Snapshot { meta, snapshot: SnapshotData::Local })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let position = self.0.position.lock();
        Ok((position.applied, position.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let (mut items, mut bytes) = (Vec::new(), 0);
        loop {
            // What is there already goes into one batch, up to its bounds.
            let full = items.len() >= BATCH_ENTRIES_MAX || bytes >= BATCH_BYTES;
            let next = match items.is_empty() {
                true => Some(entries.next().await),
                false if full => None,
                false => entries.next().now_or_never(),
            };
            match next {
                Some(Some(item)) => {
                    let item = item?;
                    if let EntryPayload::Normal(proposal) = &item.0.payload {
                        bytes += proposal.0.len();
                    }
                    items.push(item);
                }
                Some(None) => return self.0.apply_batch(items),
                None => {
                    self.0.apply_batch(std::mem::take(&mut items))?;
                    bytes = 0;
                }
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder(Arc::clone(&self.0))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        match snapshot {
            // What is durable here already is not installed again.
            SnapshotData::Local => Ok(()),
            SnapshotData::Staged { generation } => self.0.install(meta, generation).await,
        }
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let meta = self.0.flushed.lock().clone();
        Ok(meta.map(|meta| Snapshot { meta, snapshot: SnapshotData::Local }))
    }
}
