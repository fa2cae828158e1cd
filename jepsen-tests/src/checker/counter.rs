//! A counter that only grows: no increment lost, none counted twice.
//!
//! A read is at least what was added for sure before it began, or read before it began, and at most what may
//! have been added before it ended.

use serde_json::Value;

use super::{Findings, Report, by_key, describe, ok_end};
use crate::record::{Call, Kind};

/// Sums of what was added by a time.
struct Sums(Vec<(u64, u64)>);

impl Sums {
    fn new(mut added: Vec<(u64, u64)>) -> Self {
        added.sort_unstable();
        let mut sum = 0_u64;
        for (_, amount) in &mut added {
            sum = sum.saturating_add(*amount);
            *amount = sum;
        }
        Self(added)
    }

    fn before(&self, time: u64) -> u64 {
        self.upto(self.0.partition_point(|&(at, _)| at < time))
    }

    fn until(&self, time: u64) -> u64 {
        self.upto(self.0.partition_point(|&(at, _)| at <= time))
    }

    fn upto(&self, count: usize) -> u64 {
        count.checked_sub(1).and_then(|last| self.0.get(last)).map_or(0, |&(_, sum)| sum)
    }
}

/// Checks calls `add` of an amount that is not negative, and `read` of a count (null: 0), for each key.
pub fn check(calls: &[Call]) -> Report {
    let mut findings = Findings::default();
    let mut reads = 0_usize;
    for (key, of_key) in by_key(calls) {
        reads += check_key(key, &of_key, &mut findings);
    }
    if reads == 0 {
        findings.unknown(|| "no acknowledged read".to_owned());
    }
    findings.report("counter", calls)
}

fn check_key(key: &str, calls: &[&Call], findings: &mut Findings) -> usize {
    let (mut sure, mut possible) = (Vec::new(), Vec::new());
    let mut reads: Vec<(u64, u64, u64, &Call)> = Vec::new();
    for &call in calls {
        match (call.f.as_str(), call.input.as_u64()) {
            ("add", Some(amount)) => {
                sure.extend(ok_end(call).map(|end| (end, amount)));
                possible.extend((call.end != Kind::Fail).then_some((call.start_ns, amount)));
            }
            ("read", _) => {
                let Some(end) = ok_end(call) else { continue };
                let count = if call.output == Value::Null { Some(0) } else { call.output.as_u64() };
                match count {
                    Some(count) => reads.push((call.start_ns, end, count, call)),
                    None => findings.not_understood(call),
                }
            }
            _ => findings.not_understood(call),
        }
    }
    let (sure, possible) = (Sums::new(sure), Sums::new(possible));
    for &(start, end, count, read) in &reads {
        let (least, most) = (sure.before(start), possible.until(end));
        if count < least {
            let detail = || format!("{} though {least} were acknowledged before", describe(read));
            findings.add("lost increment", key, detail);
        } else if count > most {
            let detail = || format!("{} though at most {most} can have been added", describe(read));
            findings.add("increment counted twice", key, detail);
        }
    }
    backwards(key, &mut reads, findings);
    reads.len()
}

/// Tells reads that saw less than one that had ended before they began.
fn backwards(key: &str, reads: &mut [(u64, u64, u64, &Call)], findings: &mut Findings) {
    let mut ended = reads.to_vec();
    ended.sort_unstable_by_key(|&(_, end, _, _)| end);
    reads.sort_unstable_by_key(|&(start, ..)| start);
    let mut ended = ended.into_iter().peekable();
    let mut highest: Option<(u64, &Call)> = None;
    for &(start, _, count, read) in reads.iter() {
        while let Some((_, _, before, call)) = ended.next_if(|&(_, end, ..)| end < start) {
            if highest.is_none_or(|(highest, _)| highest < before) {
                highest = Some((before, call));
            }
        }
        if let Some((_, call)) = highest.filter(|&(highest, _)| count < highest) {
            let detail = || format!("{} after {}", describe(read), describe(call));
            findings.add("counter went backwards", key, detail);
        }
    }
}

#[cfg(test)]
#[path = "counter_tests.rs"]
mod tests;
