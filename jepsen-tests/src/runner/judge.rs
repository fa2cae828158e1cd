//! Which checker a workload's history goes to, and what its answer means for the run.

use std::time::Duration;

use crate::checker::linearizable::Bounds;
use crate::checker::{Report, append, counter, idempotent, linearizable, scan, session, set, stale, ttl};
use crate::record::Call;
use crate::workload::Workload;

/// All processes read one clock; what is left is that stamps have milliseconds.
const TOLERANCE: Duration = Duration::from_millis(20);

/// Judges the history of a workload.
pub fn judge(workload: Workload, calls: &[Call]) -> Report {
    let tolerance_ns = u64::try_from(TOLERANCE.as_nanos()).unwrap_or(u64::MAX);
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
