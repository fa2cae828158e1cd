//! Decides whether each key behaved as one register with read, write, create, cas and delete.
//!
//! Keys are decided one by one (linearizability is local: Herlihy and Wing 1990, theorem 1). A key with only reads and
//! writes of unlike values takes the polynomial way of [`crate::register`]; others the search of `search.rs`. What is
//! not linearizable is reduced to a smallest part that is not, and printed.

mod model;
mod search;
mod shrink;

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Findings, Report, by_key, milliseconds, shorten};
use crate::record::{Call, Kind};
use model::{Op, Step};
use search::Outcome;

/// What a search may cost before it gives up, for each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Sets of calls that have taken effect, with the value then, that may be looked at.
    pub configurations_max: usize,
    /// For those remembered and those to be looked at yet.
    pub memory_max_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { configurations_max: 2_000_000, memory_max_bytes: 512 << 20 }
    }
}

/// As many keys have their violation reduced; it takes many searches.
const SHRUNK_KEYS_MAX: usize = 5;

/// As many calls of a violation are printed: the last ones, as the violation is in the last.
const ROWS_MAX: usize = 40;

/// Checks all keys, each absent at first.
pub fn check(calls: &[Call], bounds: Bounds) -> Report {
    let mut findings = Findings::default();
    let mut observed = false;
    let mut broken = 0;
    for (key, of_key) in by_key(calls) {
        let (ops, malformed) = model::operations(&of_key);
        if let Some(call) = malformed {
            findings.not_understood(call);
        }
        observed |= ops.iter().any(|op| op.end.is_some() && !matches!(op.step, Step::Write(_)));
        match search::decide(&ops, bounds) {
            Outcome::Linearizable => {}
            Outcome::Exhausted => findings
                .unknown(|| format!("key {key} ({} calls) was not decided within {bounds:?}", of_key.len())),
            Outcome::NotLinearizable => {
                broken += 1;
                let smallest = if broken <= SHRUNK_KEYS_MAX { shrink::smallest(&ops) } else { Vec::new() };
                findings.add(name(&smallest, &of_key), key, || table(&smallest, &of_key));
            }
        }
    }
    if !observed {
        findings.unknown(|| "no acknowledged read, cas or create".to_owned());
    }
    findings.report("linearizable", calls)
}

/// Steps that saw a value that no step of the same history wrote.
fn unwritten(ops: &[Op]) -> impl Iterator<Item = &Op> {
    let written: BTreeSet<u32> = ops.iter().filter_map(|op| op.step.produces()).collect();
    let seen =
        move |op: &&Op| op.step.observes().is_some_and(|id| id != model::ABSENT && !written.contains(&id));
    ops.iter().filter(seen)
}

/// The calls that set out to write the value that a step saw, whatever became of them.
fn writers<'a>(op: &Op, calls: &'a [&Call]) -> impl Iterator<Item = &'a Call> {
    let value = calls.get(op.call).map(|call| model::expected(call));
    calls.iter().copied().filter(move |call| call.f != "read" && Some(model::written(call)) == value)
}

/// What a reduced history is called.
fn name(ops: &[Op], calls: &[&Call]) -> &'static str {
    if ops.iter().any(|op| matches!(op.step, Step::Unlike(_))) {
        return "refused although the condition held";
    }
    let swaps = ops.iter().filter(|op| matches!(op.step, Step::Swap { .. }));
    let olds: Vec<u32> = swaps.filter_map(|op| op.step.observes()).collect();
    if olds.len() > olds.iter().collect::<BTreeSet<_>>().len() {
        return "lost update";
    }
    if let Some(op) = unwritten(ops).next() {
        return match writers(op, calls).map(|call| call.end).min_by_key(|&end| end == Kind::Fail) {
            None => "phantom read",
            Some(Kind::Fail) => "read of a failed write",
            Some(Kind::Ok | Kind::Info | Kind::Invoke) => "read from the future",
        };
    }
    match ops.iter().max_by_key(|op| op.end) {
        Some(Op { step: Step::Read(_), .. }) => "stale read or lost write",
        _ => "not linearizable",
    }
}

/// The calls of a reduced history in the order in which they began.
fn table(ops: &[Op], calls: &[&Call]) -> String {
    let shown: BTreeSet<usize> = ops.iter().map(|op| op.call).collect();
    if shown.is_empty() {
        return format!("not linearizable, {} calls (not reduced)", calls.len());
    }
    let mut shown: Vec<&Call> = shown.iter().filter_map(|&at| calls.get(at).copied()).collect();
    shown.extend(unwritten(ops).flat_map(|op| writers(op, calls)));
    shown.sort_by_key(|call| call.start_ns);
    let from = shown.iter().map(|call| call.start_ns).min();
    let to = shown.iter().filter_map(|call| call.end_ns).max();
    let mut rows = vec![["process", "call", "result", "from", "to"].map(str::to_owned)];
    let left_out = shown.len().saturating_sub(ROWS_MAX);
    for call in shown.iter().skip(left_out) {
        let input = if call.input.is_null() { String::new() } else { format!(" {}", call.input) };
        let result = match call.end {
            Kind::Ok if call.f == "read" => format!("ok {}", call.output),
            Kind::Ok => "ok".to_owned(),
            Kind::Fail => format!("fail {}", call.error.as_deref().unwrap_or_default()),
            Kind::Info | Kind::Invoke => "unknown".to_owned(),
        };
        let call_text = shorten(&format!("{}{input}", call.f));
        let times = [milliseconds(Some(call.start_ns)), milliseconds(call.end_ns)];
        let [start, end] = times;
        rows.push([call.process.to_string(), call_text, shorten(&result), start, end]);
    }
    let heading = format!(
        "no order explains these {} of its {} calls, from {} to {}",
        shown.len(),
        calls.len(),
        milliseconds(from),
        milliseconds(to)
    );
    let left_out = if left_out > 0 { format!("\n  ({left_out} before these)") } else { String::new() };
    format!("{heading}{left_out}\n{}", columns(&rows))
}

fn columns(rows: &[[String; 5]]) -> String {
    let mut widths = [0; 5];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Null for calls that write nothing.
fn second(value: &Value) -> &Value {
    value.get(1).unwrap_or(&Value::Null)
}

#[cfg(test)]
#[path = "linearizable_tests.rs"]
mod tests;
