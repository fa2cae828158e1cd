//! Which checker a workload's history goes to, and what its answer means for the run.

use std::time::Duration;

use crate::checker::linearizable::Bounds;
use crate::checker::{Report, append, counter, idempotent, linearizable, scan, session, set, stale, ttl};
use crate::nemesis::Nemesis;
use crate::record::{Call, NEMESIS, Record};
use crate::workload::Workload;

/// All processes read one clock; what is left is that stamps have milliseconds.
const TOLERANCE: Duration = Duration::from_millis(20);

/// By how much two nodes whose clocks go a tenth wrong, one too fast, one too slowly, misjudge the longest lag that reads
/// allow, which is 5 s.
const DRIFTED: Duration = Duration::from_millis(1250);

/// What clocks may differ by.
pub fn tolerance(nemeses: &[Nemesis]) -> Duration {
    if nemeses.contains(&Nemesis::ClockDrift) { DRIFTED } else { TOLERANCE }
}

/// The nemeses whose faults a history has.
pub fn nemeses_of(records: &[Record]) -> Vec<Nemesis> {
    let has = |nemesis: &Nemesis| {
        records.iter().any(|record| record.process == NEMESIS && record.f == nemesis.name())
    };
    Nemesis::ALL.iter().copied().filter(has).collect()
}

/// Judges the history of a workload.
pub fn judge(workload: Workload, calls: &[Call], tolerance: Duration) -> Report {
    let tolerance_ns = u64::try_from(tolerance.as_nanos()).unwrap_or(u64::MAX);
    match workload {
        Workload::Register => linearizable::check(calls, Bounds::default()),
        Workload::Ttl => ttl::check(calls, tolerance_ns),
        Workload::Set => set::check(calls),
        Workload::Counter => counter::check(calls),
        Workload::Idempotent => idempotent::check(calls),
        Workload::Append => append::check(calls),
        Workload::Session => session::check(calls),
        Workload::Stale => stale::check(calls, tolerance_ns),
        Workload::Scan => scan::check(calls),
    }
}
