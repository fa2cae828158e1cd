//! What was asked and answered, operation by operation, over keys that are registers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::register::{self, Read, Write};

/// How an operation ended, as the caller knows it (I9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Done,
    NotApplied,
    Unknown,
}

/// One call.
#[derive(Debug, Clone)]
pub struct Operation {
    pub shard: u32,
    pub key: Arc<str>,
    /// Written value; for a read `None`.
    pub wrote: Option<u64>,
    /// Value read; `None` when there was no document.
    pub read: Option<u64>,
    /// Time since the history began.
    pub start: Duration,
    pub end: Duration,
    pub result: End,
    /// The answer, when it was no success.
    pub detail: String,
}

/// A time in which no write of a shard was acknowledged, since the history began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    pub shard: u32,
    pub begin: Duration,
    pub end: Duration,
}

impl Rest {
    pub fn length(&self) -> Duration {
        self.end - self.begin
    }
}

/// All calls so far, shared by the tasks that make them.
#[derive(Debug)]
pub struct History {
    origin: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Default for History {
    fn default() -> Self {
        Self { origin: Instant::now(), operations: Mutex::default() }
    }
}

/// Counts of a history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub writes: usize,
    pub reads: usize,
    pub not_applied: usize,
    pub unknown: usize,
}

impl History {
    /// Time since the history began.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    pub fn push(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for operation in self.operations.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            match (operation.result, operation.wrote) {
                (End::Done, Some(_)) => counts.writes += 1,
                (End::Done, None) => counts.reads += 1,
                (End::NotApplied, _) => counts.not_applied += 1,
                (End::Unknown, _) => counts.unknown += 1,
            }
        }
        counts
    }

    /// For each shard that had any, the writes begun after `from` that were acknowledged.
    pub fn acknowledged_since(&self, from: Duration) -> BTreeMap<u32, usize> {
        let mut counts = BTreeMap::new();
        let operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at often: not further back than needed. Operations are pushed when they end, give or take a moment.
        let recent = |op: &&Operation| op.end + Duration::from_secs(1) > from;
        for op in operations.iter().rev().take_while(recent) {
            if op.wrote.is_some() && op.result == End::Done && op.start > from {
                *counts.entry(op.shard).or_default() += 1;
            }
        }
        counts
    }

    /// Failed calls that were under way at some time between `from` and `to`.
    pub fn failures(&self, from: Duration, to: Duration) -> Vec<Operation> {
        let mut failed = self.operations();
        failed.retain(|op| op.result != End::Done && op.end >= from && op.start <= to);
        failed
    }

    /// How long the slowest of each hundred calls took that were begun between `from` and `to`, and how many there were.
    pub fn p99(&self, from: Duration, to: Duration) -> (Duration, usize) {
        let operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        let within = operations.iter().filter(|op| op.start >= from && op.start < to);
        let mut took: Vec<Duration> = within.map(|op| op.end - op.start).collect();
        took.sort_unstable();
        let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
        (p99, took.len())
    }

    /// For each shard, how long after `kill` the first write that was begun after it was acknowledged.
    pub fn write_gaps(&self, kill: Duration) -> BTreeMap<u32, Duration> {
        let mut gaps = BTreeMap::new();
        for op in self.operations() {
            if op.wrote.is_some() && op.result == End::Done && op.start > kill {
                let gap = op.end - kill;
                gaps.entry(op.shard)
                    .and_modify(|least: &mut Duration| *least = gap.min(*least))
                    .or_insert(gap);
            }
        }
        gaps
    }

    /// All times between two acknowledged writes of a shard from `from` to now; shards that had none rest all the time.
    pub fn rests(&self, from: Duration) -> Vec<Rest> {
        let mut ends: BTreeMap<u32, Vec<Duration>> = BTreeMap::new();
        for op in self.operations() {
            let of_shard = ends.entry(op.shard).or_default();
            if op.wrote.is_some() && op.result == End::Done && op.end > from {
                of_shard.push(op.end);
            }
        }
        let now = self.now();
        let mut rests = Vec::new();
        for (shard, mut times) in ends {
            times.extend([from, now]);
            times.sort_unstable();
            let pairs = times.iter().zip(times.iter().skip(1));
            rests.extend(pairs.map(|(&begin, &end)| Rest { shard, begin, end }));
        }
        rests
    }

    /// The moment that is `since` after the beginning of the history.
    pub fn moment(&self, since: Duration) -> Instant {
        self.origin + since
    }

    /// Checks each key on its own (linearizability is local: Herlihy and Wing 1990, theorem 1).
    ///
    /// # Errors
    /// The first breach of each key that has one.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut keys: BTreeMap<Arc<str>, (Vec<Write>, Vec<Read>)> = BTreeMap::new();
        for op in self.operations() {
            let (writes, reads) = keys.entry(op.key).or_default();
            let (start, end) = (nanos(op.start), nanos(op.end));
            match (op.wrote, op.result) {
                (Some(value), End::Done) => {
                    writes.push(Write { value, start, end: Some(end), refused: false })
                }
                (Some(value), End::Unknown) => writes.push(Write { value, start, end: None, refused: false }),
                (Some(value), End::NotApplied) => {
                    writes.push(Write { value, start, end: Some(end), refused: true })
                }
                (None, End::Done) => reads.push(Read { value: op.read, start, end }),
                // A read that was not answered says nothing.
                (None, End::NotApplied | End::Unknown) => {}
            }
        }
        let broken: Vec<String> = keys
            .iter()
            .filter_map(|(key, (writes, reads))| {
                let breach = register::check(writes, reads).err()?;
                Some(format!("{key} ({} writes, {} reads): {breach}", writes.len(), reads.len()))
            })
            .collect();
        anyhow::ensure!(broken.is_empty(), "{} of {} keys:\n{}", broken.len(), keys.len(), broken.join("\n"));
        Ok(())
    }
}

/// From 1, so that the absence of a document at the beginning lies before everything.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).saturating_add(1)
}
