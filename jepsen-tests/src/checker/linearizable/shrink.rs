//! Reduces a history that is not linearizable to a small part that is not.
//!
//! Only steps are taken that cannot make a good history bad, so what is left is a violation on its own:
//! cutting the end off (linearizability is prefix-closed), leaving out what only looks, leaving out a value
//! altogether, with who wrote it and who saw it (a swap from it counts as a plain write), and leaving out a
//! deletion that nobody can have noticed, as another write came between.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

mod shapes;

use super::Bounds;
use super::model::{ABSENT, Id, Op, Step};
use super::search::{Outcome, decide};

/// Smaller than for the decision, as many searches are made; what exceeds them is not left out.
const BOUNDS: Bounds = Bounds { configurations_max: 20_000, memory_max_bytes: 32 << 20 };
/// For all searches of a history: a verdict is told, whatever it takes to make it short.
const TIME_MAX: Duration = Duration::from_secs(10);

/// A part of `ops`, itself not linearizable: two or three calls where these are enough, else one from which nothing more can be
/// left out, as far as that is found in time. `ops` is not linearizable.
pub fn smallest(ops: &[Op]) -> Vec<Op> {
    let left = smallest_within(ops, TIME_MAX);
    let few = shapes::smallest(ops).filter(|few| few.len() < left.len());
    few.filter(|few| decide(few, BOUNDS) == Outcome::NotLinearizable).unwrap_or(left)
}

fn smallest_within(ops: &[Op], limit: Duration) -> Vec<Op> {
    let shrinker = Shrinker { until: Instant::now() + limit };
    let mut ops = shrinker.prefix(ops.to_vec());
    shrinker.accept(&mut ops, |op| !matches!(op.step, Step::Unlike(_)));
    loop {
        let before = ops.len();
        shrinker.leave_out_values(&mut ops);
        shrinker.leave_out_looks(&mut ops);
        shrinker.leave_out_deletions(&mut ops);
        if ops.len() == before {
            return ops;
        }
    }
}

struct Shrinker {
    until: Instant,
}

impl Shrinker {
    fn is_violation(&self, ops: &[Op]) -> bool {
        Instant::now() < self.until && decide(ops, BOUNDS) == Outcome::NotLinearizable
    }

    /// The history up to the first end at which it is not linearizable any more.
    fn prefix(&self, ops: Vec<Op>) -> Vec<Op> {
        let mut ends: Vec<u64> = ops.iter().filter_map(|op| op.end).collect();
        ends.sort_unstable();
        ends.dedup();
        let (mut good, mut bad) = (0, ends.len());
        while good < bad {
            let middle = good.midpoint(bad);
            let cut = ends.get(middle).map(|&end| until(&ops, end)).unwrap_or_default();
            if self.is_violation(&cut) { bad = middle } else { good = middle + 1 }
        }
        match ends.get(bad) {
            Some(&end) => until(&ops, end),
            None => ops,
        }
    }

    /// Keeps only what is to be kept, if that is still a violation.
    fn accept(&self, ops: &mut Vec<Op>, keep: impl Fn(&Op) -> bool) {
        let kept: Vec<Op> = ops.iter().copied().filter(keep).collect();
        if kept.len() < ops.len() && self.is_violation(&kept) {
            *ops = kept;
        }
    }

    fn leave_out_looks(&self, ops: &mut Vec<Op>) {
        let looks = |op: &&Op| matches!(op.step, Step::Read(_) | Step::Unlike(_));
        let calls: Vec<usize> = ops.iter().filter(looks).map(|op| op.call).collect();
        self.leave_out(ops, &calls, |ops, calls| {
            ops.iter().copied().filter(|op| !looks(&op) || !calls.contains(&op.call)).collect()
        });
    }

    fn leave_out_values(&self, ops: &mut Vec<Op>) {
        let ids = ops.iter().flat_map(|op| [op.step.produces(), op.step.observes()]).flatten();
        let ids: BTreeSet<Id> = ids.collect();
        let ids: Vec<Id> = ids.into_iter().collect();
        self.leave_out(ops, &ids, |ops, ids| {
            let kept: Vec<Op> = ops.iter().filter_map(|op| without(op, ids)).collect();
            // What holds because of any other value may have held because of this one.
            let cover = Cover::new(&kept, |op| matches!(op.step, Step::Unlike(_)));
            let mut gone = ops.iter().filter(|op| op.step.produces().is_some_and(|id| ids.contains(&id)));
            if gone.all(|op| cover.hides(op)) { kept } else { ops.to_vec() }
        });
    }

    fn leave_out_deletions(&self, ops: &mut Vec<Op>) {
        let notices = |op: &Op| {
            matches!(op.step, Step::Read(ABSENT) | Step::Swap { old: ABSENT, .. } | Step::Unlike(_))
        };
        let cover = Cover::new(ops, notices);
        let hidden = ops.iter().filter(|op| op.step == Step::Write(ABSENT) && cover.hides(op));
        let calls: Vec<usize> = hidden.map(|op| op.call).collect();
        self.leave_out(ops, &calls, |ops, calls| {
            ops.iter().copied().filter(|op| !calls.contains(&op.call)).collect()
        });
    }

    /// Tries to leave out half of the things, then quarters, and so on down to single ones.
    fn leave_out<T: Ord + Copy>(
        &self,
        ops: &mut Vec<Op>,
        things: &[T],
        without: impl Fn(&[Op], &BTreeSet<T>) -> Vec<Op>,
    ) {
        let mut size = things.len().div_ceil(2);
        let mut things = things.to_vec();
        while size > 0 {
            let mut kept = Vec::new();
            for chunk in things.chunks(size) {
                // Even to try each takes time, where there are many.
                if Instant::now() >= self.until {
                    return;
                }
                let less = without(ops, &chunk.iter().copied().collect());
                if less.len() < ops.len() && self.is_violation(&less) {
                    *ops = less;
                } else {
                    kept.extend_from_slice(chunk);
                }
            }
            things = kept;
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
    }
}

/// What was known at that time.
fn until(ops: &[Op], time: u64) -> Vec<Op> {
    let begun = ops.iter().filter(|op| op.start <= time);
    let known = begun.filter_map(|op| match op.step {
        _ if op.end.is_some_and(|end| end <= time) => Some(*op),
        Step::Read(_) | Step::Unlike(_) => None,
        Step::Write(_) | Step::Swap { .. } => Some(Op { end: None, ..*op }),
    });
    known.collect()
}

fn without(op: &Op, ids: &BTreeSet<Id>) -> Option<Op> {
    if op.step.produces().is_some_and(|id| ids.contains(&id)) {
        return None;
    }
    match op.step {
        Step::Read(id) if ids.contains(&id) => None,
        Step::Swap { old, new } if ids.contains(&old) => Some(Op { step: Step::Write(new), ..*op }),
        Step::Read(_) | Step::Unlike(_) | Step::Write(_) | Step::Swap { .. } => Some(*op),
    }
}

/// Tells what had been overwritten before anybody could notice it.
struct Cover {
    /// Start of each acknowledged write of a value, by that; with the first end of all from there on.
    writers: Vec<(u64, u64)>,
    /// End of each that could notice, by that; with the first start of all from there on.
    watchers: Vec<(u64, u64)>,
}

impl Cover {
    fn new(ops: &[Op], notices: impl Fn(&Op) -> bool) -> Self {
        let writes = ops.iter().filter(|op| op.step.produces().is_some_and(|id| id != ABSENT));
        let writers = writes.filter_map(|op| Some((op.start, op.end?))).collect();
        let watchers = ops.iter().filter(|op| notices(op));
        let watchers = watchers.map(|op| (op.end.unwrap_or(u64::MAX), op.start)).collect();
        Self { writers: least_from(writers), watchers: least_from(watchers) }
    }

    /// Every watcher ended before the write began, or began after another that came after the write had ended.
    fn hides(&self, write: &Op) -> bool {
        let after = write.end.map(|end| self.writers.partition_point(|&(start, _)| start <= end));
        let overwritten = after.and_then(|at| self.writers.get(at)).map(|&(_, end)| end);
        let watchers = self.watchers.partition_point(|&(end, _)| end < write.start);
        let watched = self.watchers.get(watchers).map(|&(_, start)| start);
        watched.is_none_or(|watched| overwritten.is_some_and(|overwritten| overwritten < watched))
    }
}

fn least_from(mut pairs: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    pairs.sort_unstable();
    let mut least = u64::MAX;
    for (_, second) in pairs.iter_mut().rev() {
        least = least.min(*second);
        *second = least;
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_time_all_of_it_is_the_violation() {
        let write =
            |start, id| Op { call: start as usize, start, end: Some(start + 1), step: Step::Write(id) };
        let read = |start, id| Op { step: Step::Read(id), ..write(start, id) };
        let ops = [write(1, 1), write(3, 2), read(5, 2), write(7, 3), read(9, 1)];
        assert_eq!(decide(&ops, BOUNDS), Outcome::NotLinearizable);
        assert_eq!(smallest_within(&ops, Duration::ZERO).len(), ops.len());
        assert!(smallest(&ops).len() < ops.len());
    }
}
