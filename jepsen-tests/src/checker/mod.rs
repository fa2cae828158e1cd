//! Decides what a history shows: whether every answer was one that the promises allow.
//!
//! Each checker is a pure function of calls. None needs the whole truth: where a call's outcome is unknown, or calls
//! overlap, every possibility counts in favour of what is tested, so a violation is one for sure. A history that shows
//! nothing, or too much to decide within bounds, is [`Verdict::Unknown`], never `Valid`.
//!
//! A call lies before another when it ended before the other began; calls that touch in one instant overlap.

pub mod append;
pub mod counter;
mod elements;
pub mod epoch;
pub mod equality;
pub mod idempotent;
pub mod linearizable;
pub mod scan;
pub mod session;
pub mod set;
pub mod stale;
pub mod ttl;
mod versions;

use std::collections::BTreeMap;
use std::fmt;

use crate::record::{Call, Kind};

/// As many violations are told in full; of the others only their number.
pub const VIOLATIONS_MAX: usize = 50;

/// One thing that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What it is called in the field, such as "stale read".
    pub name: &'static str,
    pub key: String,
    /// The calls that show it; may have several lines.
    pub detail: String,
}

/// What a history shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Valid,
    /// At least one; at most [`VIOLATIONS_MAX`].
    Invalid(Vec<Violation>),
    /// No violation was found, and this is why that proves nothing.
    Unknown(String),
}

/// How many calls ended in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub ok: usize,
    pub fail: usize,
    pub info: usize,
}

/// A checker's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub checker: &'static str,
    pub verdict: Verdict,
    /// Of the calls that were given to the checker.
    pub counts: Counts,
    /// Violations beyond those told.
    pub left_out: usize,
}

impl Report {
    pub fn is_valid(&self) -> bool {
        self.verdict == Verdict::Valid
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.name, self.key, self.detail)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { ok, fail, info } = self.counts;
        let verdict = match &self.verdict {
            Verdict::Valid => "valid".to_owned(),
            Verdict::Invalid(violations) => {
                format!("INVALID, {} violations", violations.len() + self.left_out)
            }
            Verdict::Unknown(reason) => format!("UNKNOWN: {reason}"),
        };
        write!(f, "{}: {verdict} ({ok} ok, {fail} fail, {info} info)", self.checker)?;
        if let Verdict::Invalid(violations) = &self.verdict {
            for violation in violations {
                write!(f, "\n{violation}")?;
            }
            if self.left_out > 0 {
                write!(f, "\nand {} more", self.left_out)?;
            }
        }
        Ok(())
    }
}

/// What a checker has found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    violations: Vec<Violation>,
    left_out: usize,
    /// The first reason why nothing found proves nothing.
    unknown: Option<String>,
}

impl Findings {
    /// The detail is made only if it will be told.
    pub(crate) fn add(&mut self, name: &'static str, key: &str, detail: impl FnOnce() -> String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { name, key: key.to_owned(), detail: detail() });
        } else {
            self.left_out += 1;
        }
    }

    pub(crate) fn unknown(&mut self, reason: impl FnOnce() -> String) {
        self.unknown.get_or_insert_with(reason);
    }

    /// A call whose form the checker does not know proves nothing, and must not be passed over.
    pub(crate) fn not_understood(&mut self, call: &Call) {
        self.unknown(|| format!("a call is not of this workload: {}", describe(call)));
    }

    pub(crate) fn is_full(&self) -> bool {
        self.violations.len() >= VIOLATIONS_MAX
    }

    pub(crate) fn report(self, checker: &'static str, calls: &[Call]) -> Report {
        let verdict = match (self.violations, self.unknown) {
            (violations, _) if !violations.is_empty() => Verdict::Invalid(violations),
            (_, Some(reason)) => Verdict::Unknown(reason),
            (_, None) => Verdict::Valid,
        };
        Report { checker, verdict, counts: counts(calls), left_out: self.left_out }
    }
}

/// How many of the calls ended in which way.
pub fn counts(calls: &[Call]) -> Counts {
    let mut counts = Counts::default();
    for call in calls {
        match call.end {
            Kind::Ok => counts.ok += 1,
            Kind::Fail => counts.fail += 1,
            Kind::Info | Kind::Invoke => counts.info += 1,
        }
    }
    counts
}

/// The calls of each key, in their order.
pub(crate) fn by_key(calls: &[Call]) -> BTreeMap<&str, Vec<&Call>> {
    let mut keys: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        keys.entry(&call.key).or_default().push(call);
    }
    keys
}

/// When an acknowledged call ended; `None` for all others.
pub(crate) fn ok_end(call: &Call) -> Option<u64> {
    call.end_ns.filter(|_| call.end == Kind::Ok)
}

/// One line for people.
pub(crate) fn describe(call: &Call) -> String {
    let end = match (call.end, call.end_ns) {
        (Kind::Ok, _) => "ok",
        (Kind::Fail, _) => "fail",
        (Kind::Info | Kind::Invoke, _) => "info",
    };
    format!(
        "process {} {} {} → {} {end} [{} … {}]",
        call.process,
        call.f,
        shorten(&call.input.to_string()),
        shorten(&call.output.to_string()),
        milliseconds(Some(call.start_ns)),
        milliseconds(call.end_ns),
    )
}

/// `12.345 ms`, or `∞` for what never came.
pub(crate) fn milliseconds(time_ns: Option<u64>) -> String {
    match time_ns {
        Some(time) if time < u64::MAX => format!("{}.{:06} ms", time / 1_000_000, time % 1_000_000),
        _ => "∞".to_owned(),
    }
}

/// Long listings are not for reading.
pub(crate) fn shorten(text: &str) -> String {
    const CHARACTERS_MAX: usize = 120;
    if text.chars().count() <= CHARACTERS_MAX {
        return text.to_owned();
    }
    let kept: String = text.chars().take(CHARACTERS_MAX).collect();
    format!("{kept}…")
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
mod simulation_tests;

#[cfg(test)]
pub(crate) mod fixture;
