//! Decides whether transactions over lists, that append to them and read them, are strictly serializable.
//!
//! The method is Elle's (Kingsbury and Alvaro, "Elle: inferring isolation anomalies from experimental observations",
//! 2020): every element names the transaction that appended it, so a read shows the order of all writes up to it, and
//! with the order of reads and of real time makes a graph in which any cycle is a contradiction. Anomalies are named as
//! by Adya ("Weak consistency", 1999). Every partition (key of the calls) is decided on its own.

mod cycle;
mod graph;
mod observe;

use super::{Findings, Report, by_key, ok_end};
use crate::record::Call;

/// Checks calls `txn` of `["append", k, n]` and `["r", k, null]`; no n may be appended twice to a k.
pub fn check(calls: &[Call]) -> Report {
    let mut findings = Findings::default();
    let mut reads = 0;
    for (key, of_key) in by_key(calls) {
        let observed = observe::observe(key, &of_key, &mut findings);
        reads += observed.reads.len();
        if findings.is_full() {
            continue;
        }
        let graph = graph::build(key, &observed, &mut findings);
        cycle::report(key, &observed, &graph, &mut findings);
    }
    if reads == 0 {
        findings.unknown(|| "no acknowledged read of a list".to_owned());
    }
    findings.report("append", calls)
}

/// Has taken effect, and by when is known.
fn is_acknowledged(call: &Call) -> bool {
    ok_end(call).is_some()
}

#[cfg(test)]
#[path = "append_tests.rs"]
mod tests;
