//! Calls as steps of a register.

use std::collections::HashMap;

use serde_json::Value;

use super::second;
use crate::record::{Call, Kind};

/// A value of one key; 0 is its absence.
pub type Id = u32;
pub const ABSENT: Id = 0;

/// What a call does or shows at the moment at which it takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The value was this.
    Read(Id),
    /// A condition was refused: the value was not this.
    Unlike(Id),
    /// The value becomes this, whatever it was. A deletion writes [`ABSENT`].
    Write(Id),
    /// The value was `old` and becomes `new`. A creation swaps [`ABSENT`].
    Swap { old: Id, new: Id },
}

impl Step {
    pub fn produces(self) -> Option<Id> {
        match self {
            Self::Write(id) | Self::Swap { new: id, .. } => Some(id),
            Self::Read(_) | Self::Unlike(_) => None,
        }
    }

    pub fn observes(self) -> Option<Id> {
        match self {
            Self::Read(id) | Self::Swap { old: id, .. } => Some(id),
            Self::Write(_) | Self::Unlike(_) => None,
        }
    }
}

/// A step and when it may take effect: from `start` to `end`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    pub step: Step,
    pub start: u64,
    /// `None`: at any time from its start, or never.
    pub end: Option<u64>,
    /// The place of its call among those of the key.
    pub call: usize,
}

/// The steps of the calls of one key, and a call that is none of this workload.
pub fn operations<'a>(calls: &[&'a Call]) -> (Vec<Op>, Option<&'a Call>) {
    let mut ids: HashMap<&'a Value, Id> = HashMap::from([(&Value::Null, ABSENT)]);
    let mut id = |value: &'a Value| {
        let next = u32::try_from(ids.len()).unwrap_or(u32::MAX - 1);
        *ids.entry(value).or_insert(next)
    };
    let mut ops = Vec::with_capacity(calls.len());
    let mut malformed = None;
    for (at, &call) in calls.iter().enumerate() {
        let step = match call.f.as_str() {
            "read" => Step::Read(id(&call.output)),
            "write" => Step::Write(id(&call.input)),
            "delete" => Step::Write(ABSENT),
            "create" => Step::Swap { old: ABSENT, new: id(&call.input) },
            "cas" if call.input.as_array().is_some_and(|pair| pair.len() == 2) => {
                Step::Swap { old: id(expected(call)), new: id(second(&call.input)) }
            }
            _ => {
                malformed = Some(call);
                continue;
            }
        };
        ops.extend(operation(call, step, at));
    }
    (ops, malformed)
}

/// `None` for what shows nothing: reads that were not answered, and failures of the way.
fn operation(call: &Call, step: Step, at: usize) -> Option<Op> {
    let (step, end) = match (call.end, step) {
        (Kind::Ok, step) => (step, call.end_ns),
        (Kind::Info | Kind::Invoke, Step::Write(_) | Step::Swap { .. }) => (step, None),
        (Kind::Info | Kind::Invoke, Step::Read(_) | Step::Unlike(_)) => return None,
        // Who refuses a condition has looked at the value.
        (Kind::Fail, Step::Swap { old, .. }) if call.error.as_deref() == Some("precondition") => {
            (Step::Unlike(old), call.end_ns)
        }
        (Kind::Fail, _) => return None,
    };
    Some(Op { step, start: call.start_ns, end, call: at })
}

/// The value that a call saw or required.
pub fn expected(call: &Call) -> &Value {
    if call.f == "read" { &call.output } else { call.input.get(0).unwrap_or(&Value::Null) }
}

/// The value that a call set out to write.
pub fn written(call: &Call) -> &Value {
    if call.f == "cas" { second(&call.input) } else { &call.input }
}
