//! A set that is added to and listed: nothing lost, nothing that was not added, nothing twice.

use super::Report;
use super::elements::{self, Names};
use crate::record::Call;

const NAMES: Names = Names {
    checker: "set",
    put: "add",
    lost: "lost element",
    vanished: "vanished element",
    doubled: "doubled element",
    phantom: "phantom element",
    refused: "element of a failed add",
    future: "element from the future",
};

/// Checks calls `add` of an element and `read` of the whole set, for each key.
pub fn check(calls: &[Call]) -> Report {
    elements::check(&NAMES, calls)
}

#[cfg(test)]
#[path = "set_tests.rs"]
mod tests;
