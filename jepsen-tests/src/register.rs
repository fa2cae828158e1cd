//! Decides whether the history of one register is linearizable, when no value was written twice.
//!
//! Each value names its write, so a value's write and reads form a cluster that must be contiguous in any
//! linearization. A cluster's zone reaches from its first end to its last start. The history is linearizable
//! exactly when no read ends before its write starts, no two forward zones (first end before last start) overlap,
//! and no backward zone lies within a forward one (Gibbons and Korach, "Testing Shared Memories", 1997). That takes
//! `n log n`, so writes of unknown outcome cost nothing, where a search in the manner of Wing and Gong takes
//! exponential time; the tests compare it with such a search.

use std::collections::BTreeMap;

/// A write that was begun. Times are in any unit, on one clock, above 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Unlike every other write's.
    pub value: u64,
    pub start: u64,
    /// `None`: its outcome is unknown, it may take effect at any later time or never.
    pub end: Option<u64>,
    /// It was answered "not applied" and must never be seen.
    pub refused: bool,
}

/// A read that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// `None`: there was nothing.
    pub value: Option<u64>,
    pub start: u64,
    pub end: u64,
}

/// Why a history is not linearizable. Times are `[first end, last start]` of values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    #[error("{read:?} gave a value that nobody wrote")]
    Phantom { read: Read },
    #[error("{read:?} gave the value of a write that was answered as not applied")]
    Refused { read: Read },
    #[error("{read:?} ended before {write:?} of its value began")]
    Future { read: Read, write: Write },
    #[error("two values were written: {value:?}")]
    TwoWrites { value: u64 },
    /// Each was current at a time when the other must have been: a stale read, or a lost write that came back.
    #[error(
        "values {first:?} {first_zone:?} and {second:?} {second_zone:?} were each current before and after the other"
    )]
    Interleaved { first: Option<u64>, first_zone: (u64, u64), second: Option<u64>, second_zone: (u64, u64) },
    /// `inner` was written and acknowledged (or read) while `outer` was current before and after: a lost write or stale read.
    #[error(
        "value {inner:?} {inner_zone:?} came and went while {outer:?} {outer_zone:?} was current before and after"
    )]
    Overwritten { inner: Option<u64>, inner_zone: (u64, u64), outer: Option<u64>, outer_zone: (u64, u64) },
}

#[derive(Debug, Clone, Copy)]
struct Cluster {
    value: Option<u64>,
    first_end: u64,
    last_start: u64,
}

/// Checks one register, empty at first.
///
/// # Errors
/// The first [`Breach`] found.
pub fn check(writes: &[Write], reads: &[Read]) -> Result<(), Breach> {
    let clusters = clusters(writes, reads)?;
    let (mut forward, backward): (Vec<Cluster>, Vec<Cluster>) =
        clusters.into_iter().partition(|cluster| cluster.first_end < cluster.last_start);
    forward.sort_by_key(|cluster| cluster.first_end);
    for (first, second) in forward.iter().zip(forward.iter().skip(1)) {
        if second.first_end < first.last_start {
            return Err(Breach::Interleaved {
                first: first.value,
                first_zone: (first.first_end, first.last_start),
                second: second.value,
                second_zone: (second.first_end, second.last_start),
            });
        }
    }
    for inner in &backward {
        // Forward zones are apart by now, so only the last that begins before can hold it.
        let before = forward.partition_point(|outer| outer.first_end < inner.last_start);
        let Some(outer) = before.checked_sub(1).and_then(|index| forward.get(index)) else { continue };
        if inner.first_end < outer.last_start {
            return Err(Breach::Overwritten {
                inner: inner.value,
                inner_zone: (inner.last_start, inner.first_end),
                outer: outer.value,
                outer_zone: (outer.first_end, outer.last_start),
            });
        }
    }
    Ok(())
}

fn clusters(writes: &[Write], reads: &[Read]) -> Result<Vec<Cluster>, Breach> {
    let mut written: BTreeMap<u64, &Write> = BTreeMap::new();
    let mut clusters: BTreeMap<Option<u64>, Cluster> = BTreeMap::new();
    // The absence of any value is written before everything.
    clusters.insert(None, Cluster { value: None, first_end: 0, last_start: 0 });
    for write in writes {
        if written.insert(write.value, write).is_some() {
            return Err(Breach::TwoWrites { value: write.value });
        }
        if let (Some(end), false) = (write.end, write.refused) {
            let cluster = Cluster { value: Some(write.value), first_end: end, last_start: write.start };
            clusters.insert(Some(write.value), cluster);
        }
    }
    for &read in reads {
        if let Some(value) = read.value {
            let write = **written.get(&value).ok_or(Breach::Phantom { read })?;
            if write.refused {
                return Err(Breach::Refused { read });
            }
            if read.end < write.start {
                return Err(Breach::Future { read, write });
            }
            // A write of unknown outcome counts once it is read; unread, it may never have been.
            let unknown = Cluster { value: read.value, first_end: u64::MAX, last_start: write.start };
            clusters.entry(read.value).or_insert(unknown);
        }
        if let Some(cluster) = clusters.get_mut(&read.value) {
            cluster.first_end = cluster.first_end.min(read.end);
            cluster.last_start = cluster.last_start.max(read.start);
        }
    }
    Ok(clusters.into_values().collect())
}

#[cfg(test)]
#[path = "register_tests.rs"]
mod tests;
