//! Session guarantees (Terry et al., "Session guarantees for weakly consistent replicated data", 1994).
//!
//! A session is a process. For each key, what it reads is never older than what it wrote (read your writes) or read
//! before (monotonic reads). Writes follow reads, within a key, needs no rule of its own: a value read before a write
//! began was applied before it, so whoever sees the later and then the earlier breaks monotonic reads. Which of
//! two values is older is known where one was applied before the other's write began; and what one session saw after another
//! value, no session may see before it: all replicas go through the same log.

use std::collections::{BTreeMap, BTreeSet, HashMap};

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
        let (mut orders, mut sound) = (Orders::default(), true);
        for call in of_key {
            if ok_end(call).is_none() {
                continue;
            }
            let floor = floors.entry(call.process).or_default();
            if call.f == "write" {
                raise(&mut floor.wrote, versions.of(&call.input).copied());
                orders.then(call, &call.input);
            } else if call.f == "read" {
                compared |= floor.wrote.is_some() || floor.read.is_some();
                let version = match versions.seen(call, &mut findings) {
                    Seen::Nothing => None,
                    Seen::Version(version) => Some(version),
                    Seen::Impossible => continue,
                };
                sound &= look(key, call, version, floor, &mut findings);
                raise(&mut floor.read, version);
                if version.is_some() {
                    orders.then(call, &call.output);
                }
            }
        }
        // What went back by itself is told already.
        if let Some(cycle) = orders.cycle().filter(|_| sound) {
            let detail = || cycle.iter().map(|call| describe(call)).collect::<Vec<_>>().join("; ");
            findings.add("orders of sessions", key, detail);
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

/// In which order sessions came to see the values of a key.
#[derive(Debug, Default)]
struct Orders<'a> {
    /// The last value of each session.
    last: HashMap<u64, String>,
    /// For each value those that a session saw or wrote next, with the call by which it did.
    next: BTreeMap<String, BTreeMap<String, &'a Call>>,
}

impl<'a> Orders<'a> {
    /// The session of `call` has come to `value`.
    fn then(&mut self, call: &'a Call, value: &serde_json::Value) {
        let value = value.to_string();
        if let Some(before) = self.last.insert(call.process, value.clone())
            && before != value
        {
            self.next.entry(before).or_default().entry(value).or_insert(call);
        }
    }

    /// Calls that cannot all have seen one order, if there are such: each came to its value from that of the one before it.
    fn cycle(&self) -> Option<Vec<&'a Call>> {
        // Values that nothing comes before are taken away until none is left, or a circle is.
        let mut before: BTreeMap<&str, usize> = BTreeMap::new();
        for next in self.next.values() {
            for value in next.keys() {
                *before.entry(value).or_default() += 1;
            }
        }
        let mut first: Vec<&str> =
            self.next.keys().map(String::as_str).filter(|value| !before.contains_key(value)).collect();
        while let Some(value) = first.pop() {
            for next in self.next.get(value).into_iter().flat_map(BTreeMap::keys) {
                if let Some(count) = before.get_mut(next.as_str()) {
                    *count -= 1;
                    if *count == 0 {
                        before.remove(next.as_str());
                        first.push(next);
                    }
                }
            }
        }
        // Whatever is left has one before it that is left: going back from any of them meets one twice.
        let mut at = *before.keys().next()?;
        let (mut met, mut calls) = (BTreeSet::new(), Vec::new());
        loop {
            let (earlier, call) = self.next.iter().find_map(|(earlier, next)| {
                let call = next.get(at).filter(|_| before.contains_key(earlier.as_str()))?;
                Some((earlier.as_str(), *call))
            })?;
            calls.push((at, call));
            if !met.insert(at) {
                break;
            }
            at = earlier;
        }
        let end = calls.pop().map(|(value, _)| value)?;
        let begin = calls.iter().position(|(value, _)| *value == end)?;
        Some(calls.drain(begin..).rev().map(|(_, call)| call).collect())
    }
}

/// Whether the read is as young as the session must have it.
fn look(
    key: &str,
    read: &Call,
    version: Option<Version<'_>>,
    floor: &Floor<'_>,
    findings: &mut Findings,
) -> bool {
    // Before any write there was nothing.
    let applied_by = version.map_or(0, |version| version.applied_by);
    let older = |floor: &&Version<'_>| version.is_none() || applied_by < floor.start;
    if let Some(wrote) = floor.wrote.as_ref().filter(older) {
        let detail = || format!("{} after its own {}", describe(read), describe(wrote.call));
        findings.add("read your writes", key, detail);
        false
    } else if let Some(before) = floor.read.as_ref().filter(older) {
        let detail = || {
            format!("{} after the process had read the result of {}", describe(read), describe(before.call))
        };
        findings.add("monotonic reads", key, detail);
        false
    } else {
        true
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
