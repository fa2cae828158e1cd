//! Violations of two or three calls, looked for as such: leaving out one thing after another may end at a larger one.
//!
//! Each is one on its own, whatever else happened: what could explain it is not in the history.

use std::collections::HashMap;

use crate::checker::linearizable::model::{ABSENT, Id, Op, Step};

/// The one that was first complete, of those with the fewest calls; `None` where there is none of these shapes.
pub(super) fn smallest(ops: &[Op]) -> Option<Vec<Op>> {
    gone(ops).or_else(|| back(ops))
}

/// Calls that saw something, in the order in which they ended.
fn seen(ops: &[Op]) -> Vec<(Op, Id, u64)> {
    let mut seen: Vec<(Op, Id, u64)> =
        ops.iter().filter_map(|op| Some((*op, op.step.observes()?, op.end?))).collect();
    seen.sort_by_key(|&(.., end)| end);
    seen
}

/// Nothing is there after an acknowledged write, and no deletion can have come after that.
fn gone(ops: &[Op]) -> Option<Vec<Op>> {
    // By end: of all that ended so far, the write that began last.
    let mut writes: Vec<(u64, Op)> =
        ops.iter().filter(|op| produces_a_value(op)).filter_map(|op| Some((op.end?, *op))).collect();
    writes.sort_by_key(|&(end, _)| end);
    let mut latest: Option<Op> = None;
    for (_, write) in &mut writes {
        latest = Some(latest.filter(|latest| latest.start >= write.start).unwrap_or(*write));
        *write = latest.unwrap_or(*write);
    }
    // By start: of all that began so far, the last end of a deletion.
    let deletions = ops.iter().filter(|op| op.step.produces() == Some(ABSENT));
    let mut deletions: Vec<(u64, u64)> = deletions.map(|op| (op.start, op.end.unwrap_or(u64::MAX))).collect();
    deletions.sort_unstable();
    let mut last = 0;
    for (_, end) in &mut deletions {
        last = last.max(*end);
        *end = last;
    }
    seen(ops).into_iter().filter(|&(_, id, _)| id == ABSENT).find_map(|(read, _, end)| {
        let before = writes.partition_point(|&(end, _)| end < read.start);
        let (_, write) = before.checked_sub(1).and_then(|at| writes.get(at))?;
        let begun = deletions.partition_point(|&(start, _)| start <= end);
        let deleted = begun.checked_sub(1).and_then(|at| deletions.get(at)).map(|&(_, end)| end);
        deleted.is_none_or(|deleted| deleted < write.start).then(|| vec![plain(write), read])
    })
}

/// A value that was written once is there again after an acknowledged write of another, or a deletion.
fn back(ops: &[Op]) -> Option<Vec<Op>> {
    let mut writers: HashMap<Id, Option<Op>> = HashMap::new();
    for op in ops {
        if let Some(id) = op.step.produces() {
            writers.entry(id).and_modify(|writer| *writer = None).or_insert(Some(*op));
        }
    }
    // By start: of all that begin from there on, the write that ends first.
    let mut others: Vec<(u64, u64, Op)> = ops
        .iter()
        .filter(|op| op.step.produces().is_some())
        .filter_map(|op| Some((op.start, op.end?, *op)))
        .collect();
    others.sort_by_key(|&(start, ..)| start);
    let mut first: Option<(u64, Op)> = None;
    for (_, end, op) in others.iter_mut().rev() {
        let kept = first.filter(|&(first, _)| first <= *end).unwrap_or((*end, *op));
        first = Some(kept);
        (*end, *op) = kept;
    }
    seen(ops).into_iter().filter(|&(_, id, _)| id != ABSENT).find_map(|(read, id, _)| {
        let writer = writers.get(&id).copied().flatten()?;
        let written = writer.end?;
        let after = others.partition_point(|&(start, ..)| start <= written);
        let &(_, end, other) = others.get(after)?;
        (end < read.start).then(|| vec![plain(&writer), plain(&other), read])
    })
}

fn produces_a_value(op: &Op) -> bool {
    op.step.produces().is_some_and(|id| id != ABSENT)
}

/// Without what it required: that is another call's.
fn plain(op: &Op) -> Op {
    Op { step: op.step.produces().map_or(op.step, Step::Write), ..*op }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::super::super::{Bounds, search};
    use super::*;

    fn op(call: usize, start: u64, end: u64, step: Step) -> Op {
        Op { step, start, end: Some(end), call }
    }

    fn calls(few: Option<Vec<Op>>) -> Option<Vec<usize>> {
        few.map(|few| few.iter().map(|op| op.call).collect())
    }

    #[test]
    fn a_value_that_is_back_takes_three_calls_however_it_was_written() {
        let ops = [
            op(0, 1, 2, Step::Write(1)),
            op(1, 3, 4, Step::Swap { old: 1, new: 2 }),
            op(2, 5, 6, Step::Swap { old: 2, new: 3 }),
            op(3, 7, 8, Step::Write(ABSENT)),
            op(4, 9, 10, Step::Read(2)),
        ];
        assert_eq!(calls(smallest(&ops)), Some(vec![1, 2, 4]));
        // Another writer of the value, or one of unknown outcome, may explain it.
        let again = op(5, 1, 20, Step::Write(2));
        assert_eq!(calls(smallest(&[&ops[..], &[again]].concat())), None);
        let mut unknown = ops;
        unknown[1].end = None;
        assert_eq!(calls(smallest(&unknown)), None);
    }

    #[test]
    fn what_is_gone_takes_two_calls_unless_a_deletion_may_have_come_between() {
        let ops = [
            op(0, 1, 2, Step::Write(1)),
            op(1, 3, 4, Step::Write(ABSENT)),
            op(2, 5, 6, Step::Write(2)),
            op(3, 8, 9, Step::Read(ABSENT)),
        ];
        assert_eq!(calls(smallest(&ops)), Some(vec![2, 3]));
        let mut late = ops;
        late[1].end = None;
        assert_eq!(calls(smallest(&late)), None);
    }

    #[test]
    fn every_shape_is_a_violation_and_so_is_the_history_it_is_in() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut found = 0;
        for _ in 0..20_000 {
            let ops: Vec<Op> = (0..rng.random_range(2..9))
                .map(|call| {
                    let start = rng.random_range(0..30);
                    let step = match rng.random_range(0..4) {
                        0 => Step::Read(rng.random_range(0..4)),
                        1 => Step::Write(rng.random_range(0..4)),
                        2 => Step::Write(ABSENT),
                        _ => Step::Swap { old: rng.random_range(0..4), new: rng.random_range(0..4) },
                    };
                    let end = rng.random_bool(0.8).then(|| start + rng.random_range(0..8));
                    let end = if matches!(step, Step::Read(_)) { end.or(Some(start + 1)) } else { end };
                    Op { step, start, end, call }
                })
                .collect();
            if let Some(few) = smallest(&ops) {
                found += 1;
                for ops in [&few, &ops] {
                    let decided = search::decide(ops, Bounds::default());
                    assert_eq!(decided, search::Outcome::NotLinearizable, "{few:?} in {ops:?}");
                }
            }
        }
        assert!(found > 1000, "{found}");
    }
}
