//! The handles: [`Wal`] for the node, [`GroupLog`] for one replica.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use parking_lot::{Mutex, RwLock};
use tokio_util::task::TaskTracker;

use super::frame::frame_bytes;
use super::index::{Gone, Group, Loc, View};
use super::queue::{Change, Op, Queue};
use super::record::{Done, GroupState, Position, Record, SNAPSHOT_BYTES_MAX, VoteRecord};
use super::recover::{self, Recovered};
use super::segment::Segment;
use super::spare::Spares;
use super::watchdog::{self, FlushClock};
use super::writer::{Turn, Writer};
use super::{ReplicaId, WalError};
use crate::config::LogConfig;

/// Called when the log can no longer keep I1: a flush failed or hung.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;
/// Makes a file's bytes durable.
pub(super) type SyncFile = Arc<dyn Fn(&std::fs::File) -> std::io::Result<()> + Send + Sync>;

/// How long the writer lets work gather before it writes; see [`Driver::Task`].
pub type WriterPause = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What runs the writer.
#[derive(Clone, Default)]
pub enum Driver {
    /// Threads of its own, with a watchdog over its flushes.
    #[default]
    Threads,
    /// A task of the runtime in which the log is opened: each turn blocks it, after a pause. For simulations, where
    /// nothing may run beside the runtime.
    Task(WriterPause),
}

/// Settings of a log; see [`LogConfig`], which gives them in a node.
#[derive(Clone)]
pub struct Options {
    /// Size of a segment file, in bytes.
    pub segment_bytes: u64,
    /// Recent records kept in memory, in bytes.
    pub cache_bytes: u64,
    /// A flush that takes longer is fatal.
    pub flush_deadline: Duration,
    /// Must not return in production: the default aborts the process. When it returns, as in tests,
    /// everything submitted is answered [`WalError::Failed`].
    pub on_fatal: OnFatal,
    pub driver: Driver,
    pub(super) sync: SyncFile,
    /// Salt of a new log; random when `None`.
    pub(super) salt: Option<u64>,
}

impl From<&LogConfig> for Options {
    fn from(config: &LogConfig) -> Self {
        Self {
            segment_bytes: config.segment_bytes,
            cache_bytes: config.cache_bytes,
            flush_deadline: config.flush_deadline,
            on_fatal: Arc::new(|_| std::process::abort()),
            driver: Driver::Threads,
            sync: Arc::new(std::fs::File::sync_data),
            salt: None,
        }
    }
}

#[cfg(test)]
impl Options {
    /// Makes bytes durable by `sync`, so that a test can hold or fail it.
    pub fn with_sync(
        self,
        sync: impl Fn(&std::fs::File) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { sync: Arc::new(sync), ..self }
    }
}

/// What the log did and holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// `fdatasync` calls since the log was opened.
    pub fsyncs: u64,
    /// Bytes written since the log was opened.
    pub bytes_written: u64,
    /// Records appended since the log was opened.
    pub records: u64,
    /// Records copied forward since the log was opened.
    pub records_moved: u64,
    /// Segment files in use.
    pub segments: u64,
    /// Bytes of all files, spare ones included.
    pub disk_bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub fsyncs: AtomicU64,
    pub bytes_written: AtomicU64,
    pub records: AtomicU64,
    pub records_moved: AtomicU64,
    pub segments: AtomicU64,
    pub disk_bytes: AtomicU64,
}

/// What handles and threads share.
pub(super) struct Shared {
    pub dir: PathBuf,
    pub options: Options,
    pub queue: Queue,
    pub groups: Mutex<HashMap<ReplicaId, Arc<Group>>>,
    /// Segments that may hold live records.
    pub segments: RwLock<HashMap<u64, Arc<Segment>>>,
    pub counters: Counters,
    pub clock: Arc<FlushClock>,
    failed: AtomicBool,
}

impl Shared {
    /// Runs the fatal hook, once. Should it return, nothing is accepted any more.
    pub fn fail(&self, why: &str) {
        let first = !self.failed.swap(true, Ordering::SeqCst);
        self.queue.close();
        if first {
            tracing::error!(dir = %self.dir.display(), why, "the log failed, the process ends");
            (self.options.on_fatal)(why);
        }
    }

    /// No flush may be reported as good after the watchdog gave up on it.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }
}

struct Inner {
    shared: Arc<Shared>,
    threads: Mutex<Threads>,
    /// With [`Driver::Task`]: the writer, between its turns.
    stepped: Stepped,
}

/// A writer that takes its turns on a task, until it has ended.
type Stepped = Arc<Mutex<Option<Writer>>>;

#[derive(Default)]
struct Threads {
    writer: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    /// Disconnected to stop the others.
    stop: Option<Sender<()>>,
}

impl Inner {
    fn close(&self) {
        self.shared.queue.close();
        let mut threads = self.threads.lock();
        let current = std::thread::current().id();
        // The last handle may be dropped by a completion, that is on the writer thread itself.
        let join = |thread: JoinHandle<()>| {
            if thread.thread().id() != current && thread.join().is_err() {
                tracing::error!(dir = %self.shared.dir.display(), "a log thread panicked");
            }
        };
        threads.writer.take().into_iter().for_each(join);
        threads.stop = None;
        threads.others.drain(..).for_each(join);
        // Locked only when a completion of its own turn drops the last handle: the task then finds the queue closed.
        let stepped = self.stepped.try_lock().and_then(|mut writer| writer.take());
        if let Some(writer) = stepped {
            writer.run();
        }
    }
}

/// Gives the writer its turns until it has ended.
async fn step(shared: Arc<Shared>, writer: Stepped, pause: WriterPause) {
    let mut busy = false;
    loop {
        if !busy {
            shared.queue.filled().await;
        }
        tokio::time::sleep(pause()).await;
        let mut slot = writer.lock();
        let Some(turn) = slot.as_mut().map(Writer::turn) else { return };
        match turn {
            Ok(Turn::Idle) => busy = false,
            Ok(Turn::Busy) => busy = true,
            Ok(Turn::Ended) => {
                *slot = None;
                return;
            }
            Err(error) => {
                let failed = slot.take();
                drop(slot);
                if let Some(failed) = failed {
                    failed.end(error);
                }
                return;
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// The node's log. Cheap to clone; closed when the last handle (of a replica too) is dropped.
#[derive(Clone)]
pub struct Wal {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("dir", &self.inner.shared.dir).finish_non_exhaustive()
    }
}

impl Wal {
    /// Recovers the log in `dir`, or makes one. Blocks. The caller owns `dir` (lock file).
    ///
    /// # Errors
    /// [`WalError::Damaged`] naming file and offset, with nothing changed on disk, when damage before the
    /// tail cannot be attributed to single replicas; [`WalError::Io`].
    pub fn open(dir: &Path, config: &LogConfig) -> Result<(Self, Recovered), WalError> {
        Self::open_with(dir, Options::from(config))
    }

    /// [`Self::open`] with settings of one's own.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(dir: &Path, options: Options) -> Result<(Self, Recovered), WalError> {
        let state = recover::recover(dir, &options)?;
        let groups = state.groups.into_iter().map(|group| (group.replica, Arc::new(group))).collect();
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            options,
            queue: Queue::default(),
            groups: Mutex::new(groups),
            segments: RwLock::new(HashMap::new()),
            counters: Counters::default(),
            clock: Arc::new(FlushClock::new()),
            failed: AtomicBool::new(false),
        });
        if let Driver::Task(pause) = shared.options.driver.clone() {
            let writer =
                Writer::start(Arc::clone(&shared), Spares::inline(&shared, state.spares), state.log)?;
            let stepped = Arc::new(Mutex::new(Some(writer)));
            TaskTracker::new().spawn(step(Arc::clone(&shared), Arc::clone(&stepped), pause));
            let inner = Inner { shared, threads: Mutex::default(), stepped };
            return Ok((Self { inner: Arc::new(inner) }, state.recovered));
        }
        let (stop, stopped) = bounded(0);
        let (spares, spare_thread) = Spares::start(&shared, state.spares, stopped.clone())?;
        let writer = Writer::start(Arc::clone(&shared), spares, state.log)?;
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let builder = std::thread::Builder::new().name(name.to_owned());
            builder.spawn(body).map_err(WalError::io("start a thread of", dir))
        };
        let watchdog = {
            let shared = Arc::clone(&shared);
            let deadline = shared.options.flush_deadline;
            Box::new(move || {
                watchdog::watch(&shared.clock, deadline, &stopped, |why| shared.fail(&why));
            })
        };
        let threads = Threads {
            others: vec![spare_thread, spawn("wal-watchdog", watchdog)?],
            writer: Some(spawn("wal-writer", Box::new(move || writer.run()))?),
            stop: Some(stop),
        };
        let inner = Arc::new(Inner { shared, threads: Mutex::new(threads), stepped: Stepped::default() });
        Ok((Self { inner }, state.recovered))
    }

    /// The handle of a replica, which is new when the log does not know it. All handles share one state.
    ///
    /// # Errors
    /// [`WalError::Damaged`] when the replica's records are damaged: remove it, rebuild it under a new id.
    /// [`WalError::Removed`] while its removal is under way.
    pub fn group(&self, replica: ReplicaId) -> Result<GroupLog, WalError> {
        let mut groups = self.inner.shared.groups.lock();
        let group = groups.entry(replica).or_insert_with(|| Arc::new(Group::new(replica, View::default())));
        let group = Arc::clone(group);
        drop(groups);
        let refusal = group.view.lock().refusal(replica);
        match refusal {
            Some(error) => Err(error),
            None => Ok(GroupLog { inner: Arc::clone(&self.inner), group }),
        }
    }

    /// Replicas that have state or records, damaged ones included; in ascending order.
    pub fn groups(&self) -> Vec<ReplicaId> {
        let groups: Vec<_> = self.inner.shared.groups.lock().values().cloned().collect();
        let mut live: Vec<_> =
            groups.iter().filter(|group| group.view.lock().is_live()).map(|group| group.replica).collect();
        live.sort_unstable();
        live
    }

    /// Removes a replica, damaged or not, durably before `done`. Its records pin no segment any more.
    pub fn remove_group(&self, replica: ReplicaId, done: Done) {
        let group = self.inner.shared.groups.lock().get(&replica).cloned();
        let Some(group) = group else { return done(Ok(())) };
        let handle = GroupLog { inner: Arc::clone(&self.inner), group };
        handle.submit_if(true, done, |view| {
            let removed = matches!(view.gone, Some(Gone::Removed));
            view.leave(Gone::Removed);
            if removed { Change::Nothing } else { Change::Remove }
        });
    }

    /// Bytes of all files, spare ones included.
    pub fn disk_bytes(&self) -> u64 {
        self.stats().disk_bytes
    }

    /// Figures for metrics.
    pub fn stats(&self) -> Stats {
        let counters = &self.inner.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            fsyncs: get(&counters.fsyncs),
            bytes_written: get(&counters.bytes_written),
            records: get(&counters.records),
            records_moved: get(&counters.records_moved),
            segments: get(&counters.segments),
            disk_bytes: get(&counters.disk_bytes),
        }
    }

    /// Writes and flushes what is queued, then ends the threads. Blocks. Later submissions are refused.
    pub fn close(&self) {
        self.inner.close();
    }
}

/// One replica's log. Cheap to clone.
///
/// Submissions take effect in memory at once and are durable when `done` is called with `Ok` (I1, I3). A
/// full queue makes them wait for the write under way. After an error nothing is known to be durable.
#[derive(Clone)]
pub struct GroupLog {
    inner: Arc<Inner>,
    group: Arc<Group>,
}

impl std::fmt::Debug for GroupLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupLog").field("replica", &self.group.replica).finish_non_exhaustive()
    }
}

impl GroupLog {
    pub fn replica(&self) -> ReplicaId {
        self.group.replica
    }

    /// The state as last submitted.
    pub fn state(&self) -> GroupState {
        self.group.view.lock().state.clone()
    }

    /// The vote as last submitted.
    pub fn vote(&self) -> Option<VoteRecord> {
        self.group.view.lock().state.vote
    }

    /// Appends records; [`Self::read`] gives them on return.
    ///
    /// # Panics
    /// When their indexes leave a gap behind the last record, or behind the purged position when there is
    /// none. The first record of a log that was never purged may have any index.
    pub fn append(&self, records: Vec<Record>, done: Done) {
        let replica = self.group.replica;
        self.submit(done, |view| {
            let stamp = view.append(replica, &records);
            view.add_unflushed(records.iter().map(|record| frame_bytes(record.payload.len())).sum());
            Change::Append { records, stamp }
        });
    }

    /// Replaces the vote.
    pub fn save_vote(&self, vote: VoteRecord, done: Done) {
        self.submit(done, |view| {
            view.state.vote = Some(vote);
            Change::Vote(vote)
        });
    }

    /// Replaces the engine generation and the snapshot blob, and purges, all in one record.
    ///
    /// # Panics
    /// When the blob is larger than [`SNAPSHOT_BYTES_MAX`].
    pub fn set_generation(&self, generation: u64, snapshot: Vec<u8>, purged: Option<Position>, done: Done) {
        assert!(snapshot.len() <= SNAPSHOT_BYTES_MAX, "snapshot blob of {} bytes", snapshot.len());
        self.submit(done, |view| {
            view.state.generation = generation;
            view.state.snapshot.clone_from(&snapshot);
            if let Some(through) = purged {
                view.purge(through);
            }
            Change::Generation { generation, snapshot, purged }
        });
    }

    /// Notes the committed position. It is written along with this replica's next submission, so after a
    /// crash an older one may be found.
    pub fn save_committed(&self, committed: Position) {
        let mut view = self.group.view.lock();
        if view.gone.is_none() && view.state.committed != Some(committed) {
            view.state.committed = Some(committed);
            view.committed_dirty = true;
        }
    }

    /// Keeps records up to and including `index` and removes later ones; all of them for `None`.
    pub fn truncate_after(&self, index: Option<u64>, done: Done) {
        let first_removed = index.map_or(0, |index| index.saturating_add(1));
        self.submit(done, |view| {
            if view.truncate(first_removed) { Change::Truncate { first_removed } } else { Change::Nothing }
        });
    }

    /// Removes records up to and including `through`, which may lie beyond the last: then the next record
    /// is the one behind `through`. The caller has made the engine durable up to there (I2).
    pub fn purge(&self, through: Position, done: Done) {
        self.submit(done, |view| if view.purge(through) { Change::Purge(through) } else { Change::Nothing });
    }

    /// Index of the first record.
    pub fn first_index(&self) -> Option<u64> {
        self.group.view.lock().first()
    }

    /// `(term, index)` of the last record.
    pub fn last(&self) -> Option<Position> {
        self.group.view.lock().last()
    }

    /// Frame bytes of records not yet purged: what purging could give back.
    pub fn live_bytes(&self) -> u64 {
        self.group.view.lock().live_bytes()
    }

    /// Frame bytes of the records behind `index`, those not yet durable among them. Takes time with their number.
    pub fn bytes_behind(&self, index: u64) -> u64 {
        self.group.view.lock().bytes_behind(index)
    }

    /// Frame bytes appended since the log was opened, and those that it held then: only grows, so that two readings tell what
    /// came between them, whatever was purged.
    pub fn appended_bytes(&self) -> u64 {
        self.group.view.lock().appended_bytes()
    }

    /// The records of `range` that exist, in order: at least one if there is any, then as many as fit into
    /// `bytes_max` bytes of frames. May read from disk: call it where that is allowed.
    ///
    /// # Errors
    /// [`WalError::Damaged`] with the replica when a record does not match its checksum (I10);
    /// [`WalError::Io`]; [`WalError::Removed`].
    pub fn read(&self, range: Range<u64>, bytes_max: u64) -> Result<Vec<Record>, WalError> {
        let replica = self.group.replica;
        let (first, locs, cached, segments) = {
            let view = self.group.view.lock();
            if let Some(error) = view.refusal(replica) {
                return Err(error);
            }
            let range = view.clip(&range);
            if range.is_empty() {
                return Ok(Vec::new());
            }
            let first = range.start;
            let (locs, cached) = view.plan_read(range, bytes_max);
            // Under the view's lock: a segment is let go only after no view points into it.
            let segments = self.segments_of(&locs);
            (first, locs, cached, segments)
        };
        let mut out = Vec::with_capacity(locs.len() + cached.len());
        let mut index = first;
        for run in locs.chunk_by(|a, b| a.segment == b.segment && a.offset + a.len == b.offset) {
            let sequence = run.first().map_or(0, |loc| loc.segment);
            let segment = segments.get(&sequence);
            let Some(segment) = segment else {
                panic!("{replica}: segment {sequence} of record {index} is gone")
            };
            segment.read_records(replica, index, run, &mut out)?;
            index += run.len() as u64;
        }
        out.extend(cached);
        Ok(out)
    }

    fn segments_of(&self, locs: &[Loc]) -> HashMap<u64, Arc<Segment>> {
        let mut found = HashMap::new();
        let segments = self.inner.shared.segments.read();
        for run in locs.chunk_by(|a, b| a.segment == b.segment) {
            let segment = run.first().and_then(|loc| segments.get(&loc.segment));
            if let Some(segment) = segment {
                found.insert(segment.sequence, Arc::clone(segment));
            }
        }
        found
    }

    fn submit(&self, done: Done, change: impl FnOnce(&mut View) -> Change) {
        self.submit_if(false, done, change);
    }

    /// Changes the view and queues the change, in one order for both.
    fn submit_if(&self, even_gone: bool, done: Done, change: impl FnOnce(&mut View) -> Change) {
        let order = self.group.order.lock();
        let (change, committed) = {
            let mut view = self.group.view.lock();
            let refusal = view.refusal(self.group.replica).filter(|_| !even_gone);
            if let Some(error) = refusal {
                drop((view, order));
                return done(Err(error));
            }
            let change = change(&mut view);
            let dirty = std::mem::take(&mut view.committed_dirty);
            (change, view.state.committed.filter(|_| dirty))
        };
        let op = Op::new(Arc::clone(&self.group), change, committed, Some(done));
        let refused = self.inner.shared.queue.push(op);
        drop(order);
        if let Some(done) = refused.and_then(|op| op.done) {
            let failed = self.inner.shared.has_failed();
            done(Err(if failed {
                WalError::Failed("an earlier flush failed".into())
            } else {
                WalError::Closed
            }));
        }
    }
}
