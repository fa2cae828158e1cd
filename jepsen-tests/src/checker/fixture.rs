//! Handmade calls for the tests of the checkers. Times are in nanoseconds.

use serde_json::Value;

use super::{Report, Verdict};
use crate::record::{Call, Kind};

pub fn call(process: u64, f: &str, times: (u64, u64), input: Value, output: Value) -> Call {
    Call {
        process,
        f: f.to_owned(),
        key: "k".to_owned(),
        input,
        output,
        start_ns: times.0,
        end_ns: Some(times.1),
        end: Kind::Ok,
        error: None,
    }
}

/// A call that gave nothing but its acknowledgement.
pub fn wrote(process: u64, f: &str, times: (u64, u64), input: impl Into<Value>) -> Call {
    call(process, f, times, input.into(), Value::Null)
}

pub fn read(process: u64, times: (u64, u64), output: impl Into<Value>) -> Call {
    call(process, "read", times, Value::Null, output.into())
}

impl Call {
    pub fn failed(self) -> Self {
        Self { end: Kind::Fail, ..self }
    }

    pub fn refused(self) -> Self {
        Self { end: Kind::Fail, error: Some("precondition".to_owned()), ..self }
    }

    pub fn unknown(self) -> Self {
        Self { end: Kind::Info, ..self }
    }

    pub fn of(self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self }
    }
}

pub fn assert_valid(report: &Report) {
    assert_eq!(report.verdict, Verdict::Valid, "{report}");
}

pub fn assert_unknown(report: &Report) {
    assert!(matches!(report.verdict, Verdict::Unknown(_)), "{report}");
}

/// The names of the violations must be exactly these, in any order.
pub fn assert_invalid(report: &Report, names: &[&str]) {
    let Verdict::Invalid(violations) = &report.verdict else { panic!("expected {names:?}: {report}") };
    let mut found: Vec<&str> = violations.iter().map(|violation| violation.name).collect();
    let mut expected = names.to_vec();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "{report}");
}
