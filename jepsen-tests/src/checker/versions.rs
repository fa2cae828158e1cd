//! What can be said for sure about the order of one key's writes when no value was written twice.
//!
//! A value was applied by the end of its write, if that was acknowledged, and by the end of every read that saw it.
//! So one is older than another for sure when it was applied before the other's write began.

use std::collections::HashMap;

use serde_json::Value;

use super::{Findings, describe, ok_end};
use crate::record::{Call, Kind};

/// A write that may have taken effect.
#[derive(Debug, Clone, Copy)]
pub struct Version<'a> {
    pub call: &'a Call,
    /// Not before this.
    pub start: u64,
    /// Not after this, if ever; `u64::MAX` when nothing shows that it did.
    pub applied_by: u64,
}

/// The writes of one key.
#[derive(Debug, Default)]
pub struct Versions<'a> {
    by_value: HashMap<&'a Value, Version<'a>>,
    failed: HashMap<&'a Value, &'a Call>,
    /// By `applied_by`, each with the youngest of all up to it.
    youngest: Vec<(u64, Version<'a>)>,
}

/// What a read saw.
pub enum Seen<'a> {
    Nothing,
    Version(Version<'a>),
    /// What cannot have been; it was told.
    Impossible,
}

impl<'a> Versions<'a> {
    /// Takes the calls of one key; `value` gives what a `write` wrote, or `None` when its form is unknown.
    pub fn new(calls: &[&'a Call], value: fn(&Call) -> Option<&Value>, findings: &mut Findings) -> Self {
        let mut versions = Self::default();
        for &call in calls {
            match call.f.as_str() {
                "write" => versions.write(call, value(call), findings),
                "read" => {}
                _ => findings.not_understood(call),
            }
        }
        for &read in calls {
            let Some(end) = ok_end(read).filter(|_| read.f == "read") else { continue };
            if let Some(version) = versions.by_value.get_mut(&read.output) {
                version.applied_by = version.applied_by.min(end);
            }
        }
        versions.sort();
        versions
    }

    fn write(&mut self, call: &'a Call, value: Option<&'a Value>, findings: &mut Findings) {
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return findings.not_understood(call);
        };
        if call.end == Kind::Fail {
            self.failed.insert(value, call);
            return;
        }
        let applied_by = ok_end(call).unwrap_or(u64::MAX);
        let version = Version { call, start: call.start_ns, applied_by };
        if self.by_value.insert(value, version).is_some() {
            findings.unknown(|| format!("{} was written twice to {}", value, call.key));
        }
    }

    fn sort(&mut self) {
        let mut applied: Vec<Version<'a>> = self.by_value.values().copied().collect();
        applied.retain(|version| version.applied_by < u64::MAX);
        applied.sort_by_key(|version| (version.applied_by, version.start));
        for version in applied {
            let before = self.youngest.last().map(|&(_, before)| before);
            let youngest = before.filter(|before| before.start > version.start).unwrap_or(version);
            self.youngest.push((version.applied_by, youngest));
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Version<'a>> {
        self.by_value.values()
    }

    pub fn of(&self, value: &Value) -> Option<&Version<'a>> {
        self.by_value.get(value)
    }

    /// Of those applied before `time` for sure, the one whose write began last. What was applied before that is
    /// overwritten at `time`.
    pub fn youngest_before(&self, time: u64) -> Option<&Version<'a>> {
        let count = self.youngest.partition_point(|&(applied_by, _)| applied_by < time);
        self.youngest.get(count.checked_sub(1)?).map(|(_, version)| version)
    }

    /// What an acknowledged read saw; tells values that were never written, failed, or were written later.
    pub fn seen(&self, read: &Call, findings: &mut Findings) -> Seen<'a> {
        if read.output.is_null() {
            return Seen::Nothing;
        }
        match (self.by_value.get(&read.output), self.failed.get(&read.output)) {
            (Some(version), _) if read.end_ns.is_some_and(|end| end < version.start) => {
                let write = version.call;
                let detail = || format!("{} before {}", describe(read), describe(write));
                findings.add("read from the future", &read.key, detail);
                Seen::Impossible
            }
            (Some(version), _) => Seen::Version(*version),
            (None, Some(failed)) => {
                let detail = || format!("{} saw {}", describe(read), describe(failed));
                findings.add("read of a failed write", &read.key, detail);
                Seen::Impossible
            }
            (None, None) => {
                findings
                    .add("phantom read", &read.key, || format!("nobody wrote what {} saw", describe(read)));
                Seen::Impossible
            }
        }
    }
}
