//! Bounded staleness: a read may lag behind, but not by more than it allowed.
//!
//! A read that allows `s` must give a value that was current at some time from `s` before its start to its end, in some
//! order of the writes that their times allow.

use super::versions::{Seen, Version, Versions};
use super::{Findings, Report, by_key, describe, milliseconds, ok_end};
use crate::record::Call;

/// Checks calls `write` (of values not written twice to a key) and `read` of `{"maxStaleNs": s}`, or null for no
/// lag. `tolerance_ns` is what clocks may differ by, as a replica measures its lag.
pub fn check(calls: &[Call], tolerance_ns: u64) -> Report {
    let mut findings = Findings::default();
    let mut reads = 0_usize;
    for (key, of_key) in by_key(calls) {
        let versions = Versions::new(&of_key, |call| Some(&call.input), &mut findings);
        for read in of_key {
            if read.f != "read" || ok_end(read).is_none() {
                continue;
            }
            let allowed = if read.input.is_null() {
                Some(0)
            } else {
                read.input.get("maxStaleNs").and_then(|ns| ns.as_u64())
            };
            let Some(allowed) = allowed else {
                findings.not_understood(read);
                continue;
            };
            reads += 1;
            let since = read.start_ns.saturating_sub(allowed).saturating_sub(tolerance_ns);
            look(key, read, since, &versions, &mut findings);
        }
    }
    if reads == 0 {
        findings.unknown(|| "no acknowledged read".to_owned());
    }
    findings.report("stale", calls)
}

fn look(key: &str, read: &Call, since: u64, versions: &Versions<'_>, findings: &mut Findings) {
    let applied_by = match versions.seen(read, findings) {
        Seen::Nothing => None,
        Seen::Version(Version { applied_by, .. }) => Some(applied_by),
        Seen::Impossible => return,
    };
    let Some(newer) = versions.youngest_before(since) else { return };
    if applied_by.is_none_or(|applied_by| applied_by < newer.start) {
        findings.add("too stale", key, || {
            format!(
                "{} gave what {} had overwritten before {}",
                describe(read),
                describe(newer.call),
                milliseconds(Some(since))
            )
        });
    }
}

#[cfg(test)]
#[path = "stale_tests.rs"]
mod tests;
