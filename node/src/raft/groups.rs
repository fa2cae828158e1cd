//! All replicas of this node: opening, finding, purging and closing them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use borough_proto::{GroupId, ReplicaId, wire};
use openraft::{Config as RaftSettings, Raft, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::commits::Commits;
use super::confirm::Confirmer;
use super::group::Group;
use super::log_storage::LogStorage;
use super::network::NetworkFactory;
use super::peers::Peers;
use super::snapshot::{SnapshotReceiver, SnapshotSender};
use super::state_machine::{Machine, ReplicaState, StateMachine};
use crate::config::Config;
use crate::identity::DataDirError;
use crate::store::{Engine, StoreError};
use crate::wal::{GroupLog, Wal, WalError};

/// Part of `log.purge-after-bytes` that is kept behind a flush, so that a follower that was away for a moment needs no snapshot.
const KEEP_PARTS: u64 = 4;
/// How long a flush of one replica is waited for before the next one has its turn.
const FLUSH_MAX: Duration = Duration::from_secs(10);
/// Entries of one append message, besides its bound in bytes.
const APPEND_ENTRIES_MAX: u64 = 1024;
/// What writes may change while a snapshot is scanned, in bytes, before the scan gives up.
const OVERLAY_BYTES_MAX: u64 = 64 << 20;
/// First byte of the log's note of a replica's group.
const NOTE_VERSION: u8 = 1;

/// Why a replica cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("log of {replica}: {source}")]
    Log { replica: ReplicaId, source: WalError },
    #[error("engine of {replica}: {source}")]
    Store { replica: ReplicaId, source: StoreError },
    #[error("raft of {replica}: {detail}")]
    Raft { replica: ReplicaId, detail: String },
    #[error("the log's note of {replica} is not of this build")]
    Note { replica: ReplicaId },
    #[error("note that {replica} is here: {source}")]
    Registry { replica: ReplicaId, source: DataDirError },
}

impl OpenError {
    /// Whether bytes of the replica are not what was written, which no second try makes better (I10).
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Log { source: WalError::Damaged(_), .. }
                | Self::Store { source: StoreError::Damaged { .. }, .. }
        )
    }
}

/// The running replicas.
pub struct Groups {
    wal: Wal,
    engine: Arc<dyn Engine>,
    peers: Arc<Peers>,
    confirmer: Arc<Confirmer>,
    commits: Arc<Commits>,
    pub receiver: SnapshotReceiver,
    sender: Arc<SnapshotSender>,
    settings: Arc<RaftSettings>,
    purge_after_bytes: u64,
    running: ArcSwap<Running>,
    /// Log bytes that each replica had ever appended at its last compaction.
    compacted: Mutex<HashMap<ReplicaId, u64>>,
    /// Held while the set of running replicas changes.
    changing: Mutex<()>,
}

#[derive(Clone, Default)]
struct Running {
    by_replica: HashMap<ReplicaId, Arc<Group>>,
    by_group: HashMap<GroupId, Arc<Group>>,
}

impl Groups {
    /// # Errors
    /// A text when the Raft timing contradicts itself.
    pub fn new(
        config: &Config,
        wal: Wal,
        engine: Arc<dyn Engine>,
        peers: Arc<Peers>,
    ) -> Result<Arc<Self>, String> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let settings = RaftSettings {
            cluster_name: "borough".to_owned(),
            heartbeat_interval: millis(config.raft.heartbeat),
            heartbeat_min_interval: Some(millis(config.raft.heartbeat) / 2),
            election_timeout_min: millis(config.raft.election_timeout_min),
            election_timeout_max: millis(config.raft.election_timeout_max),
            enable_pre_vote: Some(true),
            // A tick of its own wakes every idle group twenty times a second; the node's one loop does what it would do:
            // heartbeats of the groups led here, elections where a leader has fallen silent.
            enable_tick: false,
            max_payload_entries: APPEND_ENTRIES_MAX,
            // Snapshots follow the log's bytes, not its entries: see `compact_where_due`.
            snapshot_policy: SnapshotPolicy::Never,
            purge_batch_size: 1,
            // A follower gets the log as long as there is one.
            replication_lag_threshold: 1 << 40,
            // A leader that restarts must win an election before it leads again. Its engine is behind what it had
            // committed, its commit position was never fsynced, and nothing else would tell it so: it would serve stale reads.
            enable_leader_restore: Some(false),
            // What is kept is decided in bytes: see `compact`.
            max_in_snapshot_log_to_keep: u64::MAX,
            // The transfer bounds itself; this is only the outer limit.
            install_snapshot_timeout: 3_600_000,
            ..RaftSettings::default()
        };
        let settings = settings.validate().map_err(|error| error.to_string())?;
        Ok(Arc::new(Self {
            wal,
            engine,
            confirmer: Confirmer::new(Arc::clone(&peers), peers.tasks()),
            commits: Commits::new(Arc::clone(&peers), peers.tasks()),
            peers,
            receiver: SnapshotReceiver::default(),
            sender: SnapshotSender::new(
                config.limits.snapshot_bytes_per_second,
                config.limits.snapshots_give_way,
            ),
            settings: Arc::new(settings),
            purge_after_bytes: config.log.purge_after_bytes,
            running: ArcSwap::default(),
            compacted: Mutex::default(),
            changing: Mutex::new(()),
        }))
    }

    /// Replicas that this node's log knows, with their groups: what has to be opened after a restart.
    ///
    /// # Errors
    /// [`OpenError`] when the log's note of one cannot be read.
    pub fn stored(&self) -> Result<Vec<(ReplicaId, GroupId)>, OpenError> {
        let mut stored = Vec::new();
        for replica in self.wal.groups() {
            let log = self.log(replica)?;
            match decode_note(&log.state().snapshot) {
                Some(group) => stored.push((replica, group)),
                // The replica was created and the process died before its first record was durable.
                None if log.state().snapshot.is_empty() => {}
                None => return Err(OpenError::Note { replica }),
            }
        }
        Ok(stored)
    }

    /// Removes spaces that belong to no replica, or to an older or unfinished generation of one that does not run.
    ///
    /// # Errors
    /// [`OpenError`] from the engine or the log.
    pub fn sweep_spaces(&self) -> Result<(), OpenError> {
        let store = |source| OpenError::Store { replica: ReplicaId(0), source };
        let known = self.wal.groups();
        for space in self.engine.spaces().map_err(store)? {
            let current = known.contains(&space.replica)
                && self.log(space.replica)?.state().generation == space.generation;
            // A running replica looks after its own: what is not current may be a snapshot that is on its way in.
            let running = self.replica(space.replica).is_some();
            if !current && !running {
                tracing::info!(%space, "removing a space that no replica uses");
                self.engine.drop_space(space).map_err(store)?;
            }
        }
        Ok(())
    }

    fn log(&self, replica: ReplicaId) -> Result<GroupLog, OpenError> {
        self.wal.group(replica).map_err(|source| OpenError::Log { replica, source })
    }

    /// Makes a new replica's log exist, durably: a restart must know what it was before it can answer anybody.
    ///
    /// # Errors
    /// [`OpenError`] of the log.
    pub async fn prepare(&self, group: GroupId, replica: ReplicaId) -> Result<(), OpenError> {
        let log = self.log(replica)?;
        if log.state().snapshot.is_empty() {
            let (sender, receiver) = oneshot::channel();
            let done = Box::new(move |result| {
                let _ = sender.send(result);
            });
            log.set_generation(0, encode_note(group), None, done);
            let result = receiver.await.unwrap_or(Ok(()));
            result.map_err(|source| OpenError::Log { replica, source })?;
        }
        Ok(())
    }

    /// Opens a replica, new or stored, and starts its group.
    ///
    /// # Errors
    /// [`OpenError`]; nothing runs then.
    pub async fn open(
        &self,
        group: GroupId,
        replica: ReplicaId,
        machine: Arc<dyn Machine>,
    ) -> Result<Arc<Group>, OpenError> {
        self.prepare(group, replica).await?;
        let log = self.log(replica)?;
        let engine = Arc::clone(&self.engine);
        let opening = {
            let log = log.clone();
            move || ReplicaState::open(replica, group, engine, log, machine, OVERLAY_BYTES_MAX)
        };
        let state = crate::blocking::spawn(opening)
            .await
            .map_err(|error| OpenError::Raft { replica, detail: error.to_string() })?
            .map_err(|source| OpenError::Store { replica, source })?;
        let network = NetworkFactory {
            peers: Arc::clone(&self.peers),
            state: Arc::clone(&state),
            snapshots: Arc::clone(&self.sender),
            commits: Arc::clone(&self.commits),
        };
        let raft = Raft::new(
            replica.get(),
            Arc::clone(&self.settings),
            network,
            LogStorage::new(Arc::clone(&state)),
            StateMachine(Arc::clone(&state)),
        )
        .await
        .map_err(|error| OpenError::Raft { replica, detail: error.to_string() })?;
        let opened = Arc::new(Group::new(raft, state, Arc::clone(&self.peers), Arc::clone(&self.confirmer)));
        self.change(|running| {
            running.by_replica.insert(replica, Arc::clone(&opened));
            running.by_group.insert(group, Arc::clone(&opened));
        });
        Ok(opened)
    }

    /// Whether each of these leaders still leads as far as the replica here is concerned that is asked; not for one that does
    /// not run.
    pub fn confirm(&self, request: &wire::ConfirmRequest) -> wire::ConfirmReply {
        let running = self.running.load();
        let asked = request.leaderships.iter().map(|leadership| {
            let voter = running.by_replica.get(&ReplicaId(leadership.voter));
            voter.is_some_and(|group| group.holds(leadership))
        });
        wire::ConfirmReply { holds: asked.collect() }
    }

    fn change(&self, change: impl FnOnce(&mut Running)) {
        let _changing = self.changing.lock();
        let mut running = Running::clone(&self.running.load());
        change(&mut running);
        self.running.store(Arc::new(running));
    }

    /// The replica of that id, if it runs here.
    pub fn replica(&self, replica: ReplicaId) -> Option<Arc<Group>> {
        self.running.load().by_replica.get(&replica).cloned()
    }

    /// This node's replica of `group`, if there is one.
    pub fn group(&self, group: GroupId) -> Option<Arc<Group>> {
        self.running.load().by_group.get(&group).cloned()
    }

    /// All running replicas, in the order of their groups.
    pub fn all(&self) -> Vec<Arc<Group>> {
        let mut all: Vec<_> = self.running.load().by_replica.values().cloned().collect();
        all.sort_by_key(|group| (group.group, group.replica));
        all
    }

    /// Removes what broken transfers of snapshots have left and nobody needs any more.
    pub async fn discard_useless_snapshots(&self) {
        // Mostly there is none, and this is asked often.
        if self.receiver.has_partial() {
            for group in self.all() {
                self.receiver.discard_useless(&group).await;
            }
        }
    }

    /// Lets logs go that have grown past their bound: flushes the replica's engine, then purges what the flush covers (I2).
    pub async fn compact_where_due(&self) {
        for group in self.all() {
            // While a snapshot is on its way, Raft's own must not move on under it.
            if group.state.purgeable() != u64::MAX {
                continue;
            }
            let log = group.state.log();
            // A replica that is away keeps the log from going: then only growth is worth another flush. Growth is counted in what
            // was appended, since what is left tells nothing of it while a purge is still under way.
            let due = {
                let appended = log.appended_bytes();
                let mut compacted = self.compacted.lock();
                let before = compacted.entry(group.replica).or_default();
                let grown = appended.saturating_sub(*before);
                let due = log.live_bytes() > self.purge_after_bytes && grown > self.purge_after_bytes / 2;
                if due {
                    *before = appended;
                }
                due
            };
            if !due {
                continue;
            }
            let flushing =
                tokio::time::timeout(FLUSH_MAX, group.compact(self.purge_after_bytes / KEEP_PARTS));
            match flushing.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(group = %group.group, %error, "log was not compacted"),
                Err(_) => {
                    tracing::warn!(group = %group.group, "flushing the engine takes long; the log is kept meanwhile")
                }
            }
        }
    }

    /// Notes that a caller's request was answered: what snapshots are sent beside.
    pub fn answered(&self, write: bool, took: Duration) {
        self.sender.pace().answered(write, took);
    }

    /// Learns how long requests take while no snapshot is sent; to be called about once a second.
    pub fn learn_latency(&self) {
        self.sender.pace().learn();
    }

    /// Part of their rate that outgoing snapshots use now; below 1 they give way to requests.
    pub fn snapshot_share(&self) -> f64 {
        self.sender.share()
    }

    /// The first replica that stopped by itself, and why.
    pub fn failure(&self) -> Option<(GroupId, String)> {
        self.all().into_iter().find_map(|group| group.failure().map(|failure| (group.group, failure)))
    }

    /// Stops a replica for good and removes its data.
    ///
    /// # Errors
    /// [`OpenError`] from the engine; the log forgets the replica all the same.
    pub async fn remove(&self, replica: ReplicaId) -> Result<(), OpenError> {
        let Some(group) = self.replica(replica) else { return Ok(()) };
        self.change(|running| {
            running.by_replica.remove(&replica);
            if running.by_group.get(&group.group).is_some_and(|current| current.replica == replica) {
                running.by_group.remove(&group.group);
            }
        });
        group.shutdown().await;
        self.receiver.forget(replica);
        self.compacted.lock().remove(&replica);
        self.forget_log(replica).await?;
        drop(group);
        self.sweep_spaces()
    }

    /// Drops the log of a replica that does not run. Its space goes with the next [`Self::sweep_spaces`].
    ///
    /// # Errors
    /// [`OpenError`] of the log.
    pub async fn forget_log(&self, replica: ReplicaId) -> Result<(), OpenError> {
        let (sender, receiver) = oneshot::channel();
        let done = Box::new(move |result| {
            let _ = sender.send(result);
        });
        self.wal.remove_group(replica, done);
        receiver.await.unwrap_or(Ok(())).map_err(|source| OpenError::Log { replica, source })
    }

    /// Stops all groups; their data stays.
    pub async fn shutdown(&self) {
        let all = self.all();
        futures::future::join_all(all.iter().map(|group| group.shutdown())).await;
    }
}

fn encode_note(group: GroupId) -> Vec<u8> {
    let mut note = vec![NOTE_VERSION];
    note.extend_from_slice(&group.get().to_be_bytes());
    note
}

fn decode_note(note: &[u8]) -> Option<GroupId> {
    let (version, group) = note.split_first()?;
    if *version != NOTE_VERSION {
        return None;
    }
    Some(GroupId(u32::from_be_bytes(group.try_into().ok()?)))
}
