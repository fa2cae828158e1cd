//! Collections that only grow, each element put in once: what every read must and must not hold.
//!
//! An element is in it for sure once its call was acknowledged, or a read saw it.

use std::collections::HashMap;

use serde_json::Value;

use super::{Findings, Report, by_key, describe, ok_end, shorten};
use crate::record::{Call, Kind};

/// What a kind of collection calls its elements and faults.
pub struct Names {
    pub checker: &'static str,
    /// The `f` that puts an element in.
    pub put: &'static str,
    pub lost: &'static str,
    pub vanished: &'static str,
    pub doubled: &'static str,
    pub phantom: &'static str,
    pub refused: &'static str,
    pub future: &'static str,
}

struct Element<'a> {
    call: &'a Call,
    /// Any of its calls may have taken effect.
    possible: bool,
    start: u64,
    ok_end: u64,
    /// The first end of the reads that saw it.
    seen_by: u64,
    /// The number, from 1, of the last read that saw it.
    last_seen: usize,
}

pub fn check(names: &Names, calls: &[Call]) -> Report {
    let mut findings = Findings::default();
    let mut reads = 0;
    for (key, of_key) in by_key(calls) {
        reads += check_key(names, key, &of_key, &mut findings);
    }
    if reads == 0 {
        findings.unknown(|| "no acknowledged read".to_owned());
    }
    findings.report(names.checker, calls)
}

fn check_key(names: &Names, key: &str, calls: &[&Call], findings: &mut Findings) -> usize {
    let (mut elements, places) = elements(names, calls, findings);
    let mut reads: Vec<(&Call, &Vec<Value>)> = Vec::new();
    for &call in calls {
        if call.f != "read" || ok_end(call).is_none() {
            continue;
        }
        match &call.output {
            Value::Array(values) => reads.push((call, values)),
            _ => findings.not_understood(call),
        }
    }
    for (number, &(read, values)) in reads.iter().enumerate() {
        for value in values {
            match places.get(value).and_then(|&at| elements.get_mut(at)) {
                Some(element) => note(names, element, (number + 1, read), findings),
                None => findings.add(names.phantom, key, || format!("{value} in {}", describe(read))),
            }
        }
    }
    missing(names, key, &elements, &places, &reads, findings);
    reads.len()
}

fn elements<'a>(
    names: &Names,
    calls: &[&'a Call],
    findings: &mut Findings,
) -> (Vec<Element<'a>>, HashMap<&'a Value, usize>) {
    let mut elements: Vec<Element<'a>> = Vec::new();
    let mut places = HashMap::new();
    for &call in calls {
        if call.f != names.put || call.input.is_null() || call.input.is_object() {
            if call.f != "read" {
                findings.not_understood(call);
            }
            continue;
        }
        let at = *places.entry(&call.input).or_insert(elements.len());
        if at == elements.len() {
            let (start, ok_end, seen_by) = (u64::MAX, u64::MAX, u64::MAX);
            elements.push(Element { call, possible: false, start, ok_end, seen_by, last_seen: 0 });
        }
        let Some(element) = elements.get_mut(at).filter(|_| call.end != Kind::Fail) else { continue };
        element.possible = true;
        element.start = element.start.min(call.start_ns);
        element.ok_end = element.ok_end.min(ok_end(call).unwrap_or(u64::MAX));
    }
    (elements, places)
}

fn note(names: &Names, element: &mut Element<'_>, (number, read): (usize, &Call), findings: &mut Findings) {
    let end = read.end_ns.unwrap_or(u64::MAX);
    let put = element.call;
    let detail = || format!("{} of {} in {}", put.input, describe(put), describe(read));
    if element.last_seen == number {
        findings.add(names.doubled, &read.key, detail);
    } else if !element.possible {
        findings.add(names.refused, &read.key, detail);
    } else if end < element.start {
        findings.add(names.future, &read.key, detail);
    }
    element.last_seen = number;
    element.seen_by = element.seen_by.min(end);
}

/// Tells what was there for sure before a read began and is not in it.
fn missing(
    names: &Names,
    key: &str,
    elements: &[Element<'_>],
    places: &HashMap<&Value, usize>,
    reads: &[(&Call, &Vec<Value>)],
    findings: &mut Findings,
) {
    let mut by_time: Vec<(u64, usize)> = Vec::new();
    for (at, element) in elements.iter().enumerate() {
        if element.possible {
            by_time.push((element.ok_end.min(element.seen_by), at));
        }
    }
    by_time.sort_unstable();
    let mut last_seen = vec![0; elements.len()];
    for (number, &(read, values)) in reads.iter().enumerate() {
        for &at in values.iter().filter_map(|value| places.get(value)) {
            if let Some(last) = last_seen.get_mut(at) {
                *last = number + 1;
            }
        }
        let due = by_time.iter().take_while(|&&(time, _)| time < read.start_ns);
        for &(_, at) in due.filter(|&&(_, at)| last_seen.get(at).is_some_and(|&last| last <= number)) {
            let Some(element) = elements.get(at) else { continue };
            let name = if element.ok_end < read.start_ns { names.lost } else { names.vanished };
            findings.add(name, key, || {
                let list = shorten(&read.output.to_string());
                format!("{} is not in the {list} of {}", describe(element.call), describe(read))
            });
        }
    }
}
