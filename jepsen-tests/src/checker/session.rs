//! Session guarantees (Terry et al., "Session guarantees for weakly consistent replicated data", 1994).
//!
//! A session is a process. For each key, what it reads is never older than what it wrote (read your writes) or read
//! before (monotonic reads). Writes follow reads, within a key, needs no rule of its own: a value read before a write
//! began was applied before it, so whoever sees the later and then the earlier breaks monotonic reads. Which of
//! two values is older is known only where one was applied before the other's write began; elsewhere nothing is claimed.

use std::collections::HashMap;

use super::versions::{Seen, Version, Versions};
use super::{Findings, Report, by_key, describe, ok_end};
use crate::record::Call;

/// The youngest that a session has written and read.
#[derive(Debug, Default)]
struct Floor<'a> {
    wrote: Option<Version<'a>>,
    read: Option<Version<'a>>,
}

/// Checks calls `write` (of values not written twice to a key) and `read`.
pub fn check(calls: &[Call]) -> Report {
    let mut findings = Findings::default();
    let mut compared = false;
    for (key, of_key) in by_key(calls) {
        let versions = Versions::new(&of_key, |call| Some(&call.input), &mut findings);
        let mut floors: HashMap<u64, Floor<'_>> = HashMap::new();
        for call in of_key {
            if ok_end(call).is_none() {
                continue;
            }
            let floor = floors.entry(call.process).or_default();
            if call.f == "write" {
                raise(&mut floor.wrote, versions.of(&call.input).copied());
            } else if call.f == "read" {
                compared |= floor.wrote.is_some() || floor.read.is_some();
                let version = match versions.seen(call, &mut findings) {
                    Seen::Nothing => None,
                    Seen::Version(version) => Some(version),
                    Seen::Impossible => continue,
                };
                look(key, call, version, floor, &mut findings);
                raise(&mut floor.read, version);
            }
        }
    }
    if !compared {
        findings.unknown(|| "no session read anything after it had written or read".to_owned());
    }
    findings.report("session", calls)
}

fn raise<'a>(floor: &mut Option<Version<'a>>, version: Option<Version<'a>>) {
    if let Some(version) = version
        && floor.is_none_or(|floor| floor.start < version.start)
    {
        *floor = Some(version);
    }
}

fn look(key: &str, read: &Call, version: Option<Version<'_>>, floor: &Floor<'_>, findings: &mut Findings) {
    // Before any write there was nothing.
    let applied_by = version.map_or(0, |version| version.applied_by);
    let older = |floor: &&Version<'_>| version.is_none() || applied_by < floor.start;
    if let Some(wrote) = floor.wrote.as_ref().filter(older) {
        let detail = || format!("{} after its own {}", describe(read), describe(wrote.call));
        findings.add("read your writes", key, detail);
    } else if let Some(before) = floor.read.as_ref().filter(older) {
        let detail = || {
            format!("{} after the process had read the result of {}", describe(read), describe(before.call))
        };
        findings.add("monotonic reads", key, detail);
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
