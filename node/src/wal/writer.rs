//! The writer thread: one write and one `fdatasync` for everything that is queued (group commit, I1).
//!
//! Per batch: copy forward what the cleaner chose, encode the queued submissions in their order (I3), write,
//! flush, only then change the durable sides of the views and answer. A failed flush is never retried: it
//! is fatal, because the kernel may have dropped the pages.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::clean::{Cleaner, Plan};
use super::frame::{self, BATCH_HEADER, Kind};
use super::index::{Gone, Group, Loc, View};
use super::ledger::Ledger;
use super::log::Shared;
use super::queue::{Change, Op};
use super::recover::LogEnd;
use super::segment::{HEADER, Segment, SegmentHeader, segment_path, sync_dir};
use super::spare::Spares;
use super::{WalError, codec};
use crate::defect::{self, Defect};

/// Bytes after which a batch is written though more is queued; one larger submission goes alone.
const BATCH_BYTES_MAX: u64 = 4 << 20;

/// Without submissions for so long, what was written last is sealed.
const SEAL_AFTER: Duration = Duration::from_millis(2);

pub(super) struct Writer {
    shared: Arc<Shared>,
    spares: Spares,
    ledger: Ledger,
    cleaner: Cleaner,
    salt: u64,
    active: Arc<Segment>,
    /// Where the next batch goes; everything below is durable.
    end: u64,
    /// Where the segment's first batch ends.
    first_end: u64,
    /// Oldest segment that the last durable batch needs: files below may be reused.
    oldest_durable: u64,
    /// The last batch is followed by an empty one.
    sealed: bool,
    /// Taken from the queue and not yet written.
    backlog: VecDeque<Op>,
    batch: Vec<Op>,
    /// Locations of the batch's records, in order.
    locs: Vec<Loc>,
    buffer: Vec<u8>,
    /// Groups and stamps of what was written last, in order, with its cost in the cache.
    recent: VecDeque<(Arc<Group>, u64, u64)>,
    recent_bytes: u64,
    /// No group was left when one went last.
    bare: bool,
}

/// How a turn of the writer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The next turn waits for submissions.
    Idle,
    /// There is more to do at once.
    Busy,
    /// The log is closed and durable.
    Ended,
}

impl Turn {
    fn is_end(self) -> bool {
        self == Self::Ended
    }
}

impl Writer {
    /// Begins a new segment behind what was recovered.
    pub fn start(shared: Arc<Shared>, mut spares: Spares, log: LogEnd) -> Result<Self, WalError> {
        let mut ledger = Ledger::default();
        for segment in log.segments {
            shared.segments.write().insert(segment.sequence, Arc::clone(&segment));
            ledger.insert(segment);
        }
        for group in shared.groups.lock().values() {
            for loc in &group.view.lock().placed.locs {
                ledger.add(loc.segment, group.replica, 1, loc.len.into());
            }
        }
        let oldest = if ledger.len() == 0 { log.next_sequence } else { ledger.oldest() };
        let header = SegmentHeader {
            sequence: log.next_sequence,
            salt: log.salt,
            oldest,
            previous_end: log.end,
            capacity: shared.options.segment_bytes,
        };
        let (active, end) = begin_segment(&shared, &mut spares, header)?;
        let mut writer = Self {
            shared,
            spares,
            ledger,
            cleaner: Cleaner::default(),
            salt: log.salt,
            active,
            end,
            first_end: end,
            oldest_durable: oldest,
            sealed: false,
            backlog: VecDeque::new(),
            batch: Vec::new(),
            locs: Vec::new(),
            buffer: Vec::new(),
            recent: VecDeque::new(),
            recent_bytes: 0,
            bare: false,
        };
        writer.adopt_active();
        writer.free_segments();
        Ok(writer)
    }

    /// Body of the thread.
    pub fn run(mut self) {
        match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.end(error),
            Err(_) => self.end(WalError::Failed("the writer thread panicked".into())),
        }
    }

    /// Answers everything that is queued with the failure of a turn.
    pub fn end(mut self, error: WalError) {
        if !matches!(error, WalError::Closed) {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            self.shared.fail(&format!("{error}{}", cause.unwrap_or_default()));
        }
        let answer = match error {
            WalError::Closed => WalError::Closed,
            error => WalError::Failed(error.to_string().into()),
        };
        let mut queued = VecDeque::new();
        self.shared.queue.close();
        self.shared.queue.take(&mut queued, false);
        for op in self.batch.drain(..).chain(self.backlog.drain(..)).chain(queued) {
            if let Some(done) = op.done {
                done(Err(answer.clone()));
            }
        }
    }

    fn serve(&mut self) -> Result<(), WalError> {
        while !self.step(true)?.is_end() {}
        Ok(())
    }

    /// Writes and flushes what is queued, if anything is, without waiting for more.
    pub fn turn(&mut self) -> Result<Turn, WalError> {
        self.step(false)
    }

    fn step(&mut self, wait: bool) -> Result<Turn, WalError> {
        if self.backlog.is_empty() {
            let idle = !self.has_chores();
            // Under load the next batch seals this one.
            let rests =
                idle && if wait { self.shared.queue.rests(SEAL_AFTER) } else { self.shared.queue.is_empty() };
            if rests {
                self.seal()?;
            }
            let closed = self.shared.queue.take(&mut self.backlog, idle && wait);
            if wait && !self.backlog.is_empty() {
                // Who is about to submit has its turn first, where processors are scarce: one flush is for all.
                std::thread::yield_now();
                self.shared.queue.take(&mut self.backlog, false);
            }
            if self.backlog.is_empty() {
                if closed {
                    self.seal()?;
                    self.flush_with(|_| Ok(()))?;
                    return Ok(Turn::Ended);
                }
                if idle {
                    return Ok(Turn::Idle);
                }
            }
        }
        self.commit()?;
        Ok(if self.backlog.is_empty() && !self.has_chores() { Turn::Idle } else { Turn::Busy })
    }

    fn has_chores(&self) -> bool {
        self.cleaner.is_busy() || self.ledger.oldest() > self.oldest_durable
    }

    fn commit(&mut self) -> Result<(), WalError> {
        let plan = self.cleaner.plan(&self.ledger, &self.shared, &mut self.backlog)?;
        let first = self.backlog.front().map_or(0, |op| op.bytes);
        if !self.fits(plan.bytes + first) && self.end > self.first_end {
            self.rotate()?;
        }
        self.fill_batch(plan.bytes);
        let oldest = self.ledger.oldest();
        self.encode(&plan, oldest);
        self.write_batch()?;
        self.apply(plan);
        self.evict();
        self.oldest_durable = oldest;
        self.free_segments();
        self.cleaner.choose(&self.ledger, self.shared.options.segment_bytes);
        Ok(())
    }

    /// Whether a batch with so many bytes of frames fits into the segment, with room for a seal.
    fn fits(&self, frames: u64) -> bool {
        self.end + frames + 2 * BATCH_HEADER as u64 <= self.active.capacity
    }

    fn fill_batch(&mut self, moved: u64) {
        let mut bytes = moved;
        while let Some(op) = self.backlog.front() {
            let more = bytes + op.bytes;
            if !self.batch.is_empty() && (more > BATCH_BYTES_MAX || !self.fits(more)) {
                break;
            }
            bytes = more;
            self.batch.extend(self.backlog.pop_front());
        }
    }

    fn encode(&mut self, plan: &Plan, oldest: u64) {
        self.buffer.clear();
        self.locs.clear();
        frame::begin_batch(&mut self.buffer);
        let mut frames = Frames {
            out: &mut self.buffer,
            locs: &mut self.locs,
            count: 0,
            seed: self.active.seed,
            segment: self.active.sequence,
            base: self.end,
        };
        for moved in &plan.moves {
            let record = &moved.record;
            let what = (Kind::Moved, moved.group.replica, record.index, record.term);
            frames.put_record(what, &record.payload);
        }
        self.batch.iter().for_each(|op| frames.put_op(op));
        let count = frames.count;
        frame::finish_batch(&mut self.buffer, 0, self.active.seed, count, self.end, oldest);
    }

    fn write_batch(&mut self) -> Result<(), WalError> {
        let end = self.end;
        self.flush_with(|writer| {
            let written = writer.active.file.write_all_at(&writer.buffer, end);
            written.map_err(WalError::io("write log segment", &writer.active.path))
        })?;
        self.shared.count(|counters| &counters.bytes_written, self.buffer.len() as u64);
        self.end += self.buffer.len() as u64;
        self.sealed = false;
        self.ledger.grown(self.active.sequence, self.end);
        if self.buffer.capacity() as u64 > 4 * BATCH_BYTES_MAX {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Writes and flushes under the watchdog's eye.
    fn flush_with(&self, write: impl FnOnce(&Self) -> Result<(), WalError>) -> Result<(), WalError> {
        self.shared.clock.begin();
        let result = write(self).and_then(|()| self.shared.sync(&self.active));
        self.shared.clock.end();
        result?;
        // The watchdog may have given up meanwhile: then nothing may be reported as durable.
        if self.shared.has_failed() { Err(WalError::Failed("a flush was too slow".into())) } else { Ok(()) }
    }

    /// Marks everything written as durable, for recovery. Not flushed, and overwritten by the next batch.
    fn seal(&mut self) -> Result<(), WalError> {
        if self.sealed || self.end + BATCH_HEADER as u64 > self.active.capacity {
            return Ok(());
        }
        self.encode(&Plan::default(), self.ledger.oldest());
        let written = self.active.file.write_all_at(&self.buffer, self.end);
        written.map_err(WalError::io("write log segment", &self.active.path))?;
        self.sealed = true;
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), WalError> {
        // Every batch of the old segment is durable already, up to `end`.
        let header = SegmentHeader {
            sequence: self.active.sequence + 1,
            salt: self.salt,
            oldest: self.ledger.oldest(),
            previous_end: self.end,
            capacity: self.shared.options.segment_bytes,
        };
        (self.active, self.end) = begin_segment(&self.shared, &mut self.spares, header)?;
        self.first_end = self.end;
        self.adopt_active();
        Ok(())
    }

    fn adopt_active(&mut self) {
        self.sealed = false;
        self.ledger.insert(Arc::clone(&self.active));
        self.ledger.grown(self.active.sequence, self.end);
        self.shared.segments.write().insert(self.active.sequence, Arc::clone(&self.active));
        self.spares.order(self.active.sequence + 1);
        self.cleaner.rotated();
        self.cleaner.choose(&self.ledger, self.shared.options.segment_bytes);
        self.count_files();
    }

    /// Reuses the files that no durable batch needs (I2), as long as there is anything to log.
    fn free_segments(&mut self) {
        while let Some(segment) = self.ledger.pop_below(self.oldest_durable) {
            self.shared.segments.write().remove(&segment.sequence);
            self.spares.recycle(segment);
            self.count_files();
        }
        if self.bare {
            self.bare = self.shared.groups.lock().is_empty();
            if self.bare && self.spares.discard_recycled() {
                self.count_files();
            }
        }
    }

    fn count_files(&self) {
        let counters = &self.shared.counters;
        counters.segments.store(self.ledger.len() as u64, Ordering::Relaxed);
        let spare = self.spares.len() as u64 * self.shared.options.segment_bytes;
        counters.disk_bytes.store(self.ledger.file_bytes() + spare, Ordering::Relaxed);
    }

    /// The batch is durable: changes the durable sides, then answers.
    fn apply(&mut self, plan: Plan) {
        let mut locs = std::mem::take(&mut self.locs).into_iter();
        let moved = plan.moves.len() as u64;
        for (moved, to) in plan.moves.into_iter().zip(&mut locs) {
            let from = moved.group.view.lock().placed.relocate(moved.record.index, to);
            if let Some(from) = from {
                self.ledger.release(moved.group.replica, from);
                self.ledger.add(to.segment, moved.group.replica, 1, to.len.into());
            }
        }
        self.shared.count(|counters| &counters.records_moved, moved);
        let mut batch = std::mem::take(&mut self.batch);
        for mut op in batch.drain(..) {
            let done = op.done.take();
            let result = self.apply_op(op, &mut locs);
            if let Some(done) = done {
                done(result);
            }
        }
        self.batch = batch;
    }

    fn apply_op(&mut self, op: Op, locs: &mut impl Iterator<Item = Loc>) -> Result<(), WalError> {
        let replica = op.group.replica;
        let mut guard = op.group.view.lock();
        let view: &mut View = &mut guard;
        let ledger = &mut self.ledger;
        if let Some(damage) = view.placed.damage.clone() {
            // Replay ignores what follows the damage, too, except for the removal.
            if let Change::Append { records, .. } = &op.change {
                records.iter().zip(&mut *locs).for_each(drop);
            }
            if !matches!(op.change, Change::Remove | Change::Nothing) {
                return Err(WalError::Damaged(damage));
            }
        }
        if op.committed.is_some() {
            view.placed.state.committed = op.committed;
        }
        match op.change {
            Change::Nothing => {}
            Change::Append { records, stamp } => {
                let (mut bytes, mut cost) = (0, 0);
                for (record, loc) in records.iter().zip(locs) {
                    view.placed.push(replica, record.index, loc);
                    bytes += u64::from(loc.len);
                    cost += View::cached_cost(&record.payload);
                }
                view.flushed(stamp, bytes);
                ledger.add(self.active.sequence, replica, records.len() as u64, bytes);
                drop(guard);
                self.shared.count(|counters| &counters.records, records.len() as u64);
                self.recent_bytes += cost;
                self.recent.push_back((op.group, stamp, cost));
            }
            Change::Vote(vote) => view.placed.state.vote = Some(vote),
            Change::Generation { generation, snapshot, purged } => {
                view.placed.state.generation = generation;
                view.placed.state.snapshot = snapshot;
                if let Some(through) = purged {
                    view.placed.purge(through, |loc| ledger.release(replica, loc));
                }
            }
            Change::Truncate { first_removed } => {
                view.placed.truncate(first_removed, |loc| ledger.release(replica, loc));
            }
            Change::Purge(through) => view.placed.purge(through, |loc| ledger.release(replica, loc)),
            Change::Remove => {
                view.placed.clear(|loc| ledger.release(replica, loc));
                view.placed.damage = None;
                drop(guard);
                let mut groups = self.shared.groups.lock();
                groups.remove(&replica);
                self.bare = groups.is_empty();
            }
            Change::Damage(damage) => {
                view.leave(Gone::Damaged(damage.clone()));
                view.placed.clear(|loc| ledger.release(replica, loc));
                view.placed.damage = Some(damage);
            }
        }
        Ok(())
    }

    /// Keeps the cache within its bound, oldest records of the node first.
    fn evict(&mut self) {
        while self.recent_bytes > self.shared.options.cache_bytes {
            let Some((group, stamp, cost)) = self.recent.pop_front() else { break };
            group.view.lock().evict(stamp);
            self.recent_bytes -= cost;
        }
    }
}

impl Shared {
    fn sync(&self, segment: &Segment) -> Result<(), WalError> {
        self.count(|counters| &counters.fsyncs, 1);
        if defect::has(Defect::AnswerBeforeSync) {
            return Ok(());
        }
        (self.options.sync)(&segment.file).map_err(WalError::io("flush log segment", &segment.path))
    }

    fn count(&self, counter: impl FnOnce(&super::log::Counters) -> &AtomicU64, more: u64) {
        counter(&self.counters).fetch_add(more, Ordering::Relaxed);
    }
}

/// Encodes frames behind a batch header.
struct Frames<'a> {
    out: &'a mut Vec<u8>,
    locs: &'a mut Vec<Loc>,
    count: u32,
    seed: u32,
    segment: u64,
    /// Where `out` will lie in the segment.
    base: u64,
}

impl Frames<'_> {
    fn put(&mut self, what: (Kind, super::ReplicaId, u64, u64), payload: &[u8]) {
        self.count += 1;
        frame::put_frame(self.out, self.seed, what, payload);
    }

    fn put_record(&mut self, what: (Kind, super::ReplicaId, u64, u64), payload: &[u8]) {
        let at = self.base + self.out.len() as u64;
        self.put(what, payload);
        let len = self.base + self.out.len() as u64 - at;
        let (Ok(offset), Ok(len)) = (u32::try_from(at), u32::try_from(len)) else {
            panic!("{}: record of {len} bytes at {at} in a log segment", what.1)
        };
        self.locs.push(Loc { segment: self.segment, offset, len });
    }

    fn put_op(&mut self, op: &Op) {
        let replica = op.group.replica;
        match &op.change {
            Change::Nothing => {}
            Change::Append { records, .. } => {
                for record in records {
                    self.put_record((Kind::Append, replica, record.index, record.term), &record.payload);
                }
            }
            Change::Vote(_) => self.put((Kind::Vote, replica, 0, 0), &op.payload),
            Change::Generation { .. } => self.put((Kind::Generation, replica, 0, 0), &op.payload),
            Change::Truncate { first_removed } => self.put((Kind::Truncate, replica, *first_removed, 0), &[]),
            Change::Purge((term, index)) => self.put((Kind::Purge, replica, *index, *term), &[]),
            Change::Remove => self.put((Kind::Remove, replica, 0, 0), &[]),
            Change::Damage(_) => self.put((Kind::State, replica, 0, 0), &op.payload),
        }
        if let Some((term, index)) = op.committed {
            self.put((Kind::Committed, replica, index, term), &[]);
        }
    }
}

/// Makes a spare file the next segment. It gets its name only when its header and first batch, with every
/// live replica's state, are durable: a crash leaves a whole segment or none.
fn begin_segment(
    shared: &Shared,
    spares: &mut Spares,
    header: SegmentHeader,
) -> Result<(Arc<Segment>, u64), WalError> {
    let spare = spares.take(header.sequence, shared)?;
    let seed = frame::seed(header.salt, header.sequence);
    let mut groups: Vec<_> = shared.groups.lock().values().cloned().collect();
    groups.sort_unstable_by_key(|group| group.replica);
    let mut buffer = header.encode().to_vec();
    frame::begin_batch(&mut buffer);
    let mut frames = 0;
    for group in groups {
        let view = group.view.lock();
        if view.placed.is_live() {
            let payload = codec::encode(&view.placed.to_record());
            drop(view);
            frame::put_frame(&mut buffer, seed, (Kind::State, group.replica, 0, 0), &payload);
            frames += 1;
        }
    }
    frame::finish_batch(&mut buffer, HEADER, seed, frames, HEADER as u64, header.oldest);
    let path = segment_path(&shared.dir, header.sequence);
    let segment =
        Segment { sequence: header.sequence, path, file: spare.file, seed, capacity: header.capacity };
    shared.clock.begin();
    let result = segment
        .file
        .write_all_at(&buffer, 0)
        .map_err(WalError::io("begin log segment", &segment.path))
        .and_then(|()| shared.sync(&segment))
        .and_then(|()| {
            std::fs::rename(&spare.path, &segment.path)
                .map_err(WalError::io("name log segment", &segment.path))
        })
        // The name too, or a crash loses the segment with all that is acknowledged in it (I3).
        .and_then(|()| sync_dir(&shared.dir));
    shared.clock.end();
    result?;
    shared.count(|counters| &counters.bytes_written, buffer.len() as u64);
    Ok((Arc::new(segment), buffer.len() as u64))
}
