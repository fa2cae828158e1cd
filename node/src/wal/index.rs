//! What is known in memory about one replica's log.
//!
//! A [`View`] has two sides. The *submitted* side is what callers see: it changes when they submit. The
//! *durable* side ([`Placed`]) is what a replay of the flushed frames would give: only the writer thread
//! changes it, after the flush. Space is accounted on the durable side alone, so a segment is never freed
//! on account of a truncation or purge that a crash could undo (I2).
//!
//! Records that are not yet durable are always held in memory, recent others while the cache has room.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use parking_lot::Mutex;

use super::codec::{DamageRecord, StateRecord};
use super::record::{GroupState, Position, Record};
use super::{Damage, ReplicaId, WalError};

/// Cost of a cached record beside its payload, in bytes.
const CACHED_OVERHEAD: u64 = 64;

/// One replica. Submitting holds `order` until the submission is queued, so that views and queue agree on
/// the order; the writer thread takes only `view`, so a full queue cannot deadlock.
#[derive(Debug)]
pub(super) struct Group {
    pub replica: ReplicaId,
    pub order: Mutex<()>,
    pub view: Mutex<View>,
}

impl Group {
    pub fn new(replica: ReplicaId, view: View) -> Self {
        Self { replica, order: Mutex::new(()), view: Mutex::new(view) }
    }
}

/// Where a record's frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loc {
    pub segment: u64,
    pub offset: u32,
    /// Bytes of the frame.
    pub len: u32,
}

/// Why a replica is not served.
#[derive(Debug, Clone)]
pub(super) enum Gone {
    Removed,
    Damaged(Damage),
}

#[derive(Debug)]
struct Cached {
    term: u64,
    payload: Bytes,
    /// Position in the order of this replica's records as submitted, which, unlike an index, never comes twice.
    stamp: u64,
}

/// The durable side.
#[derive(Debug, Default)]
pub(super) struct Placed {
    pub state: GroupState,
    /// Index of the first of `locs`.
    pub first: u64,
    pub locs: VecDeque<Loc>,
    /// Bytes of their frames.
    pub bytes: u64,
    pub damage: Option<Damage>,
}

#[derive(Debug, Default)]
pub(super) struct View {
    pub state: GroupState,
    pub committed_dirty: bool,
    pub gone: Option<Gone>,
    /// Submitted records are `first..end`.
    first: u64,
    end: u64,
    /// `(first index, term)` of each run of equal terms.
    terms: VecDeque<(u64, u64)>,
    /// The last records, up to `end`.
    cache: VecDeque<Cached>,
    stamp: u64,
    durable_stamp: u64,
    unflushed_bytes: u64,
    /// Frame bytes ever appended, those found at the start among them; never less.
    appended_bytes: u64,
    pub placed: Placed,
}

impl View {
    /// As recovered: both sides equal, nothing cached. `terms` are the records' terms.
    pub fn recovered(placed: Placed, terms: impl Iterator<Item = u64>) -> Self {
        let end = placed.first + placed.locs.len() as u64;
        let mut view = Self { state: placed.state.clone(), first: placed.first, end, ..Self::default() };
        for (index, term) in (placed.first..end).zip(terms) {
            view.push_term(index, term);
        }
        view.gone = placed.damage.clone().map(Gone::Damaged);
        view.appended_bytes = placed.bytes;
        view.placed = placed;
        view
    }

    pub fn refusal(&self, replica: ReplicaId) -> Option<WalError> {
        self.gone.as_ref().map(|gone| match gone {
            Gone::Removed => WalError::Removed(replica),
            Gone::Damaged(damage) => WalError::Damaged(damage.clone()),
        })
    }

    fn push_term(&mut self, index: u64, term: u64) {
        if self.terms.back().is_none_or(|&(_, last)| last != term) {
            self.terms.push_back((index, term));
        }
    }

    fn is_empty(&self) -> bool {
        self.first == self.end
    }

    pub fn first(&self) -> Option<u64> {
        (!self.is_empty()).then_some(self.first)
    }

    pub fn last(&self) -> Option<Position> {
        let index = self.end.checked_sub(1).filter(|_| !self.is_empty())?;
        self.terms.back().map(|&(_, term)| (term, index))
    }

    /// Frame bytes not yet purged.
    pub fn live_bytes(&self) -> u64 {
        self.placed.bytes + self.unflushed_bytes
    }

    /// Frame bytes of the records behind `index`.
    pub fn bytes_behind(&self, index: u64) -> u64 {
        let first = usize::try_from(index.saturating_add(1).saturating_sub(self.placed.first));
        let placed = self.placed.locs.iter().skip(first.unwrap_or(usize::MAX));
        placed.map(|loc| u64::from(loc.len)).sum::<u64>() + self.unflushed_bytes
    }

    /// Frame bytes appended since the log was opened, and those that it held then; only grows.
    pub fn appended_bytes(&self) -> u64 {
        self.appended_bytes
    }

    /// Whether anything about this replica is, or is about to be, on disk.
    pub fn is_live(&self) -> bool {
        let removed = matches!(self.gone, Some(Gone::Removed));
        !removed && (!self.is_empty() || self.state != GroupState::default() || self.placed.damage.is_some())
    }

    /// Takes records as submitted; returns the stamp of the last.
    ///
    /// # Panics
    /// When there is a gap: our own bug.
    pub fn append(&mut self, replica: ReplicaId, records: &[Record]) -> u64 {
        for record in records {
            let expected = match self.state.purged {
                _ if !self.is_empty() => self.end,
                Some((_, purged)) => purged + 1,
                None => record.index,
            };
            assert!(record.index == expected, "{replica}: gap in the log: {} after {expected}", record.index);
            if self.is_empty() {
                self.first = record.index;
                self.terms.clear();
            }
            self.end = record.index + 1;
            self.push_term(record.index, record.term);
            self.stamp += 1;
            self.cache.push_back(Cached {
                term: record.term,
                payload: record.payload.clone(),
                stamp: self.stamp,
            });
        }
        self.stamp
    }

    pub fn add_unflushed(&mut self, bytes: u64) {
        self.unflushed_bytes += bytes;
        self.appended_bytes += bytes;
    }

    /// Removes records from `first_removed` on; tells whether there were any.
    pub fn truncate(&mut self, first_removed: u64) -> bool {
        if self.is_empty() || first_removed >= self.end {
            return false;
        }
        let keep_to = first_removed.max(self.first);
        for _ in keep_to..self.end {
            if self.cache.pop_back().is_none() {
                break;
            }
        }
        self.end = keep_to;
        while self.terms.back().is_some_and(|&(start, _)| start >= keep_to) {
            self.terms.pop_back();
        }
        true
    }

    /// Removes records up to and including the position's index; tells whether that is news.
    pub fn purge(&mut self, through: Position) -> bool {
        if self.state.purged.is_some_and(|(_, purged)| purged >= through.1) {
            return false;
        }
        self.state.purged = Some(through);
        let next = through.1 + 1;
        if next >= self.end {
            (self.first, self.end) = (next, next);
            self.cache.clear();
            self.terms.clear();
            return true;
        }
        while self.cache_first() < next {
            self.cache.pop_front();
        }
        self.first = self.first.max(next);
        while self.terms.get(1).is_some_and(|&(start, _)| start <= self.first) {
            self.terms.pop_front();
        }
        true
    }

    /// Forgets all records; the replica is gone.
    pub fn leave(&mut self, gone: Gone) {
        self.gone = Some(gone);
        self.state = GroupState::default();
        self.cache.clear();
        self.terms.clear();
        self.first = self.end;
    }

    fn cache_first(&self) -> u64 {
        self.end - self.cache.len() as u64
    }

    /// The part of `range` that exists.
    pub fn clip(&self, range: &Range<u64>) -> Range<u64> {
        range.start.max(self.first)..range.end.min(self.end)
    }

    /// Splits what to read, at least one record and then up to `bytes_max`: locations of those on disk (the
    /// first is at `range.start`), and those in memory behind them.
    pub fn plan_read(&self, range: Range<u64>, bytes_max: u64) -> (Vec<Loc>, Vec<Record>) {
        let cached = self.cache_first();
        let (mut locs, mut records, mut bytes) = (Vec::new(), Vec::new(), 0u64);
        let mut admit = |more: u64| {
            let first = bytes == 0;
            bytes += more;
            first || bytes <= bytes_max
        };
        let skip = |from: u64, to: u64| usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
        let on_disk = skip(range.start, cached.min(range.end));
        for loc in self.placed.locs.iter().skip(skip(self.placed.first, range.start)).take(on_disk) {
            if !admit(loc.len.into()) {
                return (locs, records);
            }
            locs.push(*loc);
        }
        let from = range.start.max(cached);
        let wanted = self.cache.iter().skip(skip(cached, from)).take(skip(from, range.end));
        for (index, hit) in (from..).zip(wanted) {
            if !admit(super::frame::frame_bytes(hit.payload.len())) {
                break;
            }
            records.push(Record { index, term: hit.term, payload: hit.payload.clone() });
        }
        (locs, records)
    }

    /// Cost of a record in the cache, in bytes.
    pub fn cached_cost(payload: &Bytes) -> u64 {
        payload.len() as u64 + CACHED_OVERHEAD
    }

    /// Drops records with stamps up to `stamp` from the cache. They are durable, so they can be read again.
    pub fn evict(&mut self, stamp: u64) {
        let stamp = stamp.min(self.durable_stamp);
        while self.cache.front().is_some_and(|cached| cached.stamp <= stamp) {
            self.cache.pop_front();
        }
        if self.cache.is_empty() {
            self.cache.shrink_to(64);
        }
    }

    /// Records up to `stamp`, of `bytes` frame bytes, are durable.
    pub fn flushed(&mut self, stamp: u64, bytes: u64) {
        self.durable_stamp = stamp;
        self.unflushed_bytes = self.unflushed_bytes.saturating_sub(bytes);
    }
}

impl Placed {
    pub fn push(&mut self, replica: ReplicaId, index: u64, loc: Loc) {
        if self.locs.is_empty() {
            self.first = index;
        }
        let expected = self.first + self.locs.len() as u64;
        assert!(index == expected, "{replica}: placed {index} after {expected}");
        self.locs.push_back(loc);
        self.bytes += u64::from(loc.len);
    }

    /// A record was copied forward.
    pub fn relocate(&mut self, index: u64, to: Loc) -> Option<Loc> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        let place = self.locs.get_mut(at)?;
        Some(std::mem::replace(place, to))
    }

    /// Removes records from `first_removed` on, telling `released` of each.
    pub fn truncate(&mut self, first_removed: u64, mut released: impl FnMut(Loc)) {
        while self.first + self.locs.len() as u64 > first_removed {
            let Some(loc) = self.locs.pop_back() else { break };
            self.bytes -= u64::from(loc.len);
            released(loc);
        }
    }

    /// Removes records up to and including the position's index, telling `released` of each.
    pub fn purge(&mut self, through: Position, mut released: impl FnMut(Loc)) {
        if self.state.purged.is_some_and(|(_, purged)| purged >= through.1) {
            return;
        }
        self.state.purged = Some(through);
        while self.first <= through.1 {
            let Some(loc) = self.locs.pop_front() else { break };
            self.first += 1;
            self.bytes -= u64::from(loc.len);
            released(loc);
        }
    }

    /// Forgets everything, telling `released` of each record.
    pub fn clear(&mut self, released: impl FnMut(Loc)) {
        std::mem::take(&mut self.locs).into_iter().for_each(released);
        self.bytes = 0;
        self.state = GroupState::default();
    }

    /// Whether there is anything to remember.
    pub fn is_live(&self) -> bool {
        !self.locs.is_empty() || self.damage.is_some() || self.state != GroupState::default()
    }

    pub fn to_record(&self) -> StateRecord {
        StateRecord {
            state: self.state.clone(),
            first: self.first,
            end: self.first + self.locs.len() as u64,
            damage: self.damage.as_ref().map(DamageRecord::from),
        }
    }
}

impl From<&Damage> for DamageRecord {
    fn from(damage: &Damage) -> Self {
        // Bounded: this goes into a record of bounded size.
        let short = |text: String| text.chars().take(512).collect();
        let name = damage.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { path: short(name), offset: damage.offset, detail: short(damage.detail.clone()) }
    }
}
