//! Listings of a whole collection, page by page: what exists throughout is there once, what does not exist is not.
//!
//! A listing takes time, so an item added or removed meanwhile may be in it or not.

use std::collections::HashMap;

use serde_json::Value;

use super::{Findings, Report, by_key, describe, ok_end};
use crate::record::{Call, Kind};

/// An add or remove that may have taken effect.
struct Change<'a> {
    call: &'a Call,
    start: u64,
    /// `u64::MAX` when nothing shows that it did.
    applied_by: u64,
}

#[derive(Default)]
struct Item<'a> {
    adds: Vec<Change<'a>>,
    removes: Vec<Change<'a>>,
    failed: Option<&'a Call>,
    /// The number, from 1, of the last listing that had it.
    last_seen: usize,
    /// Listings without it, (start, end): those that say most, as none began later and ended earlier.
    absent: Vec<(u64, u64)>,
}

/// Checks calls `add` and `remove` of an item, and `scan` of all items, for each key.
pub fn check(calls: &[Call]) -> Report {
    let mut findings = Findings::default();
    let mut scans = 0;
    for (key, of_key) in by_key(calls) {
        scans += check_key(key, &of_key, &mut findings);
    }
    if scans == 0 {
        findings.unknown(|| "no acknowledged scan".to_owned());
    }
    findings.report("scan", calls)
}

fn check_key(key: &str, calls: &[&Call], findings: &mut Findings) -> usize {
    let mut items: HashMap<&Value, Item<'_>> = HashMap::new();
    let mut scans: Vec<(&Call, u64, &Vec<Value>)> = Vec::new();
    for &call in calls {
        match (call.f.as_str(), &call.input, &call.output) {
            ("add" | "remove", Value::String(_) | Value::Number(_), _) => change(&mut items, call),
            ("scan", _, Value::Array(listed)) => {
                scans.extend(ok_end(call).map(|end| (call, end, listed)));
            }
            ("scan", ..) if call.end != Kind::Ok => {}
            _ => findings.not_understood(call),
        }
    }
    for (_, end, listed) in &scans {
        for value in *listed {
            // With several adds it is unknown which one was seen.
            if let Some([add]) = items.get_mut(value).map(|item| item.adds.as_mut_slice()) {
                add.applied_by = add.applied_by.min(*end);
            }
        }
    }
    for (number, (scan, end, listed)) in scans.iter().enumerate() {
        for value in *listed {
            match items.get_mut(value) {
                Some(item) => note(key, item, value, (number + 1, scan, *end), findings),
                None => findings.add("phantom item", key, || format!("{value} in {}", describe(scan))),
            }
        }
        for item in items.values_mut().filter(|item| item.last_seen <= number) {
            item.missed_by(scan.start_ns, *end);
        }
        let mut missed: Vec<&Item<'_>> = Vec::new();
        missed.extend(
            items.values().filter(|item| item.last_seen <= number && item.is_there(scan.start_ns, *end)),
        );
        missed.sort_by_key(|item| item.adds.first().map(|add| add.start));
        for add in missed.iter().filter_map(|item| item.adds.first()) {
            let detail = || format!("{} is not in {}", describe(add.call), describe(scan));
            findings.add("missed item", key, detail);
        }
    }
    scans.len()
}

fn change<'a>(items: &mut HashMap<&'a Value, Item<'a>>, call: &'a Call) {
    let item = items.entry(&call.input).or_default();
    if call.end == Kind::Fail {
        if call.f == "add" {
            item.failed = Some(call);
        }
        return;
    }
    let change = Change { call, start: call.start_ns, applied_by: ok_end(call).unwrap_or(u64::MAX) };
    if call.f == "add" { item.adds.push(change) } else { item.removes.push(change) }
}

fn note(
    key: &str,
    item: &mut Item<'_>,
    value: &Value,
    (number, scan, end): (usize, &Call, u64),
    findings: &mut Findings,
) {
    if item.last_seen == number {
        findings.add("doubled item", key, || format!("{value} twice in {}", describe(scan)));
        return;
    }
    item.last_seen = number;
    if let Some(gone) = item.gone_before(scan.start_ns)
        && !item.adds.iter().any(|add| add.start <= end && add.applied_by >= gone)
    {
        findings.add("item that came back", key, || format!("{value} in {}", describe(scan)));
        return;
    }
    if item.may_be_there(scan.start_ns, end) {
        return;
    }
    let (name, call) = match (item.adds.first(), item.removes.last(), item.failed) {
        (Some(add), ..) if item.adds.iter().all(|add| end < add.start) => {
            ("item from the future", Some(add.call))
        }
        (Some(_), Some(remove), _) => ("removed item listed", Some(remove.call)),
        (None, _, Some(failed)) => ("item of a failed add", Some(failed)),
        (Some(_), None, _) | (None, _, None) => ("phantom item", None),
    };
    let of = call.map(|call| format!(" of {}", describe(call))).unwrap_or_default();
    findings.add(name, key, || format!("{value}{of} in {}", describe(scan)));
}

impl Item<'_> {
    /// Keeps a listing without it.
    fn missed_by(&mut self, start: u64, end: u64) {
        // What began earlier and ended later says less.
        self.absent.retain(|&(began, ended)| began > start || ended < end);
        if !self.absent.iter().any(|&(began, ended)| began >= start && ended <= end) {
            self.absent.push((start, end));
        }
    }

    /// The last begin of a listing without it that had ended before `start`: at some time after that it was not there.
    fn gone_before(&self, start: u64) -> Option<u64> {
        self.absent.iter().filter(|&&(_, ended)| ended < start).map(|&(began, _)| began).max()
    }

    /// An add took effect before the scan began, and no remove can have undone it before the scan ended.
    fn is_there(&self, start: u64, end: u64) -> bool {
        let added = self.adds.iter().filter(|add| add.applied_by < start).map(|add| add.start).max();
        added.is_some_and(|added| {
            let mut removes = self.removes.iter().filter(|remove| remove.start <= end);
            removes.all(|remove| remove.applied_by < added)
        })
    }

    /// An add can have taken effect before the scan ended and not have been undone before it began.
    fn may_be_there(&self, start: u64, end: u64) -> bool {
        self.adds.iter().filter(|add| add.start <= end).any(|add| {
            let mut removes = self.removes.iter();
            !removes.any(|remove| add.applied_by < remove.start && remove.applied_by < start)
        })
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
