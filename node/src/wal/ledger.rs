//! Which segments the log consists of, and what live records lie in each.
//!
//! The writer's own account of the durable side: a segment with nothing live can be freed, once all
//! before it can. Freeing oldest first is what keeps a truncation or removal in force: the frames it applies
//! to are always gone before the frame that says so.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::ReplicaId;
use super::index::Loc;
use super::segment::Segment;

#[derive(Debug)]
struct Entry {
    segment: Arc<Segment>,
    /// Live records of each replica that has any.
    live: HashMap<ReplicaId, u64>,
    file_bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: BTreeMap<u64, Entry>,
    live_bytes: u64,
}

impl Ledger {
    pub fn insert(&mut self, segment: Arc<Segment>) {
        let file_bytes = segment.capacity;
        self.entries.insert(segment.sequence, Entry { segment, live: HashMap::new(), file_bytes });
    }

    /// The segment is used up to `end`.
    pub fn grown(&mut self, sequence: u64, end: u64) {
        if let Some(entry) = self.entries.get_mut(&sequence) {
            entry.file_bytes = entry.file_bytes.max(end);
        }
    }

    /// `records` of `bytes` in all were placed in the segment.
    pub fn add(&mut self, sequence: u64, replica: ReplicaId, records: u64, bytes: u64) {
        if let Some(entry) = self.entries.get_mut(&sequence).filter(|_| records > 0) {
            *entry.live.entry(replica).or_default() += records;
            self.live_bytes += bytes;
        }
    }

    /// The record there is dead.
    pub fn release(&mut self, replica: ReplicaId, loc: Loc) {
        let Some(entry) = self.entries.get_mut(&loc.segment) else { return };
        self.live_bytes = self.live_bytes.saturating_sub(loc.len.into());
        if let Some(records) = entry.live.get_mut(&replica) {
            *records -= 1;
            if *records == 0 {
                entry.live.remove(&replica);
            }
        }
    }

    /// The oldest segment that is still needed; the newest always is.
    pub fn oldest(&self) -> u64 {
        let needed = self.entries.iter().find(|(_, entry)| !entry.live.is_empty());
        needed.or(self.entries.last_key_value()).map_or(0, |(&sequence, _)| sequence)
    }

    /// Segments needed.
    pub fn needed(&self) -> usize {
        self.entries.range(self.oldest()..).count()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub fn file_bytes(&self) -> u64 {
        // A header that was made up may claim any capacity.
        self.entries.values().fold(0, |sum, entry| sum.saturating_add(entry.file_bytes))
    }

    pub fn segment(&self, sequence: u64) -> Option<&Arc<Segment>> {
        self.entries.get(&sequence).map(|entry| &entry.segment)
    }

    /// Replicas with live records in the segment.
    pub fn replicas_in(&self, sequence: u64) -> Vec<ReplicaId> {
        self.entries.get(&sequence).map(|entry| entry.live.keys().copied().collect()).unwrap_or_default()
    }

    /// Takes out one segment older than `sequence`.
    pub fn pop_below(&mut self, sequence: u64) -> Option<Arc<Segment>> {
        let entry = self.entries.first_entry().filter(|entry| *entry.key() < sequence)?;
        Some(entry.remove().segment)
    }
}
