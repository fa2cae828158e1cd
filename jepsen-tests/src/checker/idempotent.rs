//! Appends that are resent under one idempotency key: each takes effect once if acknowledged, never if refused, and at
//! most once otherwise. The order of the elements is not looked at.

use super::Report;
use super::elements::{self, Names};
use crate::record::Call;

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

/// Checks calls `append` of an element that no other call appends, and `read` of the list, for each key.
pub fn check(calls: &[Call]) -> Report {
    elements::check(&NAMES, calls)
}

#[cfg(test)]
#[path = "idempotent_tests.rs"]
mod tests;
