//! Times to live: what was written is there until its time is over, and never after.
//!
//! The clock of a time to live is read somewhere between the start of the write and the time by which it was
//! applied, so a value is surely there until start + ttl and surely gone after that time + ttl, give or take what
//! clocks differ by.

use serde_json::Value;

use super::versions::{Seen, Version, Versions};
use super::{Findings, Report, by_key, describe, milliseconds, ok_end};
use crate::record::Call;

/// Checks calls `write` of `{"value": n, "ttlNs": t}` (t null: for ever; no n written twice to a key) and `read`.
/// `tolerance_ns` is what the clocks of the nodes may differ by.
pub fn check(calls: &[Call], tolerance_ns: u64) -> Report {
    let mut findings = Findings::default();
    let mut reads = 0_usize;
    for (key, of_key) in by_key(calls) {
        let versions = Versions::new(&of_key, |call| call.input.get("value"), &mut findings);
        let expiries = expiries(&versions, tolerance_ns);
        for read in of_key {
            let Some(end) = ok_end(read).filter(|_| read.f == "read") else { continue };
            reads += 1;
            // Of all that were there for sure before the read, the one begun last.
            let newest = versions.youngest_before(read.start_ns);
            match versions.seen(read, &mut findings) {
                Seen::Impossible => {}
                Seen::Version(version) => look(key, read, version, newest, tolerance_ns, &mut findings),
                Seen::Nothing => {
                    let expired = latest_expired(&expiries, end);
                    if let Some(newest) = newest.filter(|newest| expired.is_none_or(|by| by < newest.start)) {
                        let detail = || {
                            format!("{} although {} had not expired", describe(read), describe(newest.call))
                        };
                        findings.add("gone too early", key, detail);
                    }
                }
            }
        }
    }
    if reads == 0 {
        findings.unknown(|| "no acknowledged read".to_owned());
    }
    findings.report("ttl", calls)
}

/// Of each version the first time at which it may have expired, by that; with the latest `applied_by` of all up to it.
fn expiries(versions: &Versions<'_>, tolerance_ns: u64) -> Vec<(u64, u64)> {
    let mut expiries: Vec<(u64, u64)> = Vec::new();
    for version in versions.iter() {
        let Some(ttl) = ttl(version.call) else { continue };
        let at = version.start.saturating_add(ttl).saturating_sub(tolerance_ns);
        expiries.push((at, version.applied_by));
    }
    expiries.sort_unstable();
    let mut latest = 0;
    for (_, applied_by) in &mut expiries {
        latest = latest.max(*applied_by);
        *applied_by = latest;
    }
    expiries
}

/// Of all that may have expired by `time`, the latest time by which one was applied.
fn latest_expired(expiries: &[(u64, u64)], time: u64) -> Option<u64> {
    let count = expiries.partition_point(|&(at, _)| at <= time);
    expiries.get(count.checked_sub(1)?).map(|&(_, applied_by)| applied_by)
}

fn ttl(write: &Call) -> Option<u64> {
    write.input.get("ttlNs").and_then(Value::as_u64)
}

fn look(
    key: &str,
    read: &Call,
    version: Version<'_>,
    newest: Option<&Version<'_>>,
    tolerance_ns: u64,
    findings: &mut Findings,
) {
    let gone_by = ttl(version.call)
        .map(|ttl| version.applied_by.saturating_add(ttl).saturating_add(tolerance_ns))
        .filter(|&gone_by| gone_by < read.start_ns);
    if let Some(gone_by) = gone_by {
        let detail = || {
            let write = describe(version.call);
            format!("{} saw {write}, gone by {}", describe(read), milliseconds(Some(gone_by)))
        };
        findings.add("read after expiry", key, detail);
    } else if let Some(newest) = newest.filter(|newest| version.applied_by < newest.start) {
        let detail = || format!("{} although {} came later", describe(read), describe(newest.call));
        findings.add("stale read or lost write", key, detail);
    }
}

#[cfg(test)]
#[path = "ttl_tests.rs"]
mod tests;
