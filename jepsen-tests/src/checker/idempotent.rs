//! Appends that are resent under one idempotency key: each takes effect once if acknowledged, never if refused, and at
//! most once otherwise. The order of the elements is not looked at. One that was acknowledged and is sent again much
//! later is answered as it was.

use super::elements::{self, Names};
use super::{Findings, Report, Verdict, describe};
use crate::record::{Call, Kind};

/// An append that was acknowledged before is sent again: `input` is the entity tag of its first answer, `output` that of
/// this one.
pub const RESEND: &str = "resend";

const NAMES: Names = Names {
    checker: "idempotent",
    put: "append",
    lost: "lost append",
    vanished: "vanished append",
    doubled: "append applied twice",
    phantom: "phantom append",
    refused: "refused append applied",
    future: "append from the future",
};

/// Checks calls `append` of an element that no other call appends, `read` of the list, and [`RESEND`], for each key.
pub fn check(calls: &[Call]) -> Report {
    let (resent, others): (Vec<Call>, Vec<Call>) = calls.iter().cloned().partition(|call| call.f == RESEND);
    let report = elements::check(&NAMES, &others);
    let mut findings = Findings::default();
    for call in &resent {
        match (call.end, call.error.as_deref()) {
            (Kind::Ok, _) if call.output != call.input => {
                findings.add("another outcome", &call.key, || describe(call));
            }
            // Against itself: what it replaced the first time is no longer there.
            (Kind::Fail, Some("precondition")) => {
                findings.add("forgotten request", &call.key, || describe(call));
            }
            _ => {}
        }
    }
    let found = findings.report(NAMES.checker, calls);
    let verdict = match (report.verdict, found.verdict) {
        (Verdict::Invalid(mut told), Verdict::Invalid(more)) => {
            told.extend(more);
            Verdict::Invalid(told)
        }
        (_, Verdict::Invalid(told)) => Verdict::Invalid(told),
        (verdict, _) => verdict,
    };
    Report { verdict, left_out: report.left_out + found.left_out, ..found }
}

#[cfg(test)]
#[path = "idempotent_tests.rs"]
mod tests;
