//! Chooses what to copy forward, so that a few live records do not pin old segments for ever.
//!
//! The log is kept to about twice its live data and a few segments. When it has more, the oldest segment
//! is the victim: its live records ride along with the next batches, at most [`CHUNK`] bytes each, so that
//! nobody's write waits long for them. Work per rotation is bounded to little more than one segment.

use std::sync::Arc;

use super::index::{Group, Loc};
use super::ledger::Ledger;
use super::log::Shared;
use super::queue::{Change, Op};
use super::record::Record;
use super::segment::Segment;
use super::{ReplicaId, WalError};

/// Bytes copied forward in one batch; one larger record goes alone.
const CHUNK: u64 = 256 << 10;
/// Segments allowed beyond twice the live data.
const SLACK: u64 = 2;

/// A live record to be copied forward.
#[derive(Debug)]
pub(super) struct Move {
    pub group: Arc<Group>,
    pub record: Record,
}

/// What to copy next.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub moves: Vec<Move>,
    /// Bytes of their frames.
    pub bytes: u64,
}

#[derive(Debug)]
struct Victim {
    sequence: u64,
    /// Replicas yet to be looked at.
    replicas: Vec<ReplicaId>,
    /// First index of the last of them yet to be looked at.
    cursor: u64,
}

#[derive(Debug, Default)]
pub(super) struct Cleaner {
    victim: Option<Victim>,
    moved_bytes: u64,
}

impl Cleaner {
    pub fn is_busy(&self) -> bool {
        self.victim.is_some()
    }

    pub fn rotated(&mut self) {
        self.moved_bytes = 0;
    }

    /// Picks a victim when there are too many segments and this rotation's share is not used up.
    pub fn choose(&mut self, ledger: &Ledger, segment_bytes: u64) {
        let allowed = SLACK + 2 * ledger.live_bytes() / segment_bytes;
        let share = self.moved_bytes <= segment_bytes / 4;
        if self.victim.is_none() && share && ledger.needed() as u64 > allowed {
            let sequence = ledger.oldest();
            self.victim = Some(Victim { sequence, replicas: ledger.replicas_in(sequence), cursor: 0 });
        }
    }

    /// Reads the next records to copy. A replica whose records cannot be read correctly is given up by an
    /// operation put into `ops` (I10).
    pub fn plan(
        &mut self,
        ledger: &Ledger,
        shared: &Shared,
        ops: &mut std::collections::VecDeque<Op>,
    ) -> Result<Plan, WalError> {
        let mut plan = Plan::default();
        let Some(victim) = &mut self.victim else { return Ok(plan) };
        let segment = ledger.segment(victim.sequence);
        while let Some(&replica) = victim.replicas.last().filter(|_| plan.bytes < CHUNK) {
            let group = shared.groups.lock().get(&replica).cloned();
            let (Some(group), Some(segment)) = (group, segment) else {
                victim.replicas.pop();
                continue;
            };
            let (found, next) = live_in(&group, victim.sequence, victim.cursor, CHUNK - plan.bytes);
            victim.cursor = next.unwrap_or(0);
            if next.is_none() {
                victim.replicas.pop();
            }
            match read(segment, &group, &found, &mut plan) {
                Ok(()) => {}
                Err(WalError::Damaged(damage)) => {
                    tracing::error!(%replica, %damage, "damaged log record, the replica stops");
                    ops.push_front(Op::new(group, Change::Damage(damage), None, None));
                    if next.is_some() {
                        victim.replicas.pop();
                        victim.cursor = 0;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if victim.replicas.is_empty() {
            self.victim = None;
        }
        self.moved_bytes += plan.bytes;
        Ok(plan)
    }
}

/// Records of `group` from index `from` on that lie in the segment, at least one and up to `bytes_max`, and
/// the index at which to go on.
fn live_in(group: &Group, sequence: u64, from: u64, bytes_max: u64) -> (Vec<(u64, Loc)>, Option<u64>) {
    let view = group.view.lock();
    let start = from.max(view.placed.first);
    let skipped = usize::try_from(start - view.placed.first).unwrap_or(usize::MAX);
    let (mut found, mut bytes) = (Vec::new(), 0);
    for (index, loc) in (start..).zip(view.placed.locs.iter().skip(skipped)) {
        if loc.segment != sequence {
            continue;
        }
        if bytes >= bytes_max {
            return (found, Some(index));
        }
        bytes += u64::from(loc.len);
        found.push((index, *loc));
    }
    (found, None)
}

fn read(
    segment: &Segment,
    group: &Arc<Group>,
    found: &[(u64, Loc)],
    plan: &mut Plan,
) -> Result<(), WalError> {
    let mut records = Vec::with_capacity(found.len());
    for &(index, loc) in found {
        segment.read_records(group.replica, index, &[loc], &mut records)?;
        plan.bytes += u64::from(loc.len);
    }
    plan.moves.extend(records.into_iter().map(|record| Move { group: Arc::clone(group), record }));
    Ok(())
}
