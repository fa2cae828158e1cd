//! Reads may lag by what they allowed, and by no more.

use serde_json::{Value, json};

use super::super::fixture::{assert_invalid, assert_unknown, assert_valid, call, wrote};
use super::*;

fn read(times: (u64, u64), max_stale_ns: u64, output: impl Into<Value>) -> Call {
    call(9, "read", times, json!({"maxStaleNs": max_stale_ns}), output.into())
}

fn writes() -> [Call; 2] {
    [wrote(1, "write", (100, 110), 1), wrote(1, "write", (200, 210), 2)]
}

fn with(read: Call, tolerance_ns: u64) -> Report {
    let [one, two] = writes();
    check(&[one, two, read], tolerance_ns)
}

#[test]
fn a_lag_within_the_bound_passes() {
    assert_valid(&with(read((300, 310), 90, 1), 0));
    assert_valid(&with(read((300, 310), 89, 1), 1));
    assert_valid(&with(read((300, 310), 0, 2), 0));
    assert_valid(&with(read((205, 206), 0, 1), 0));
    assert_valid(&with(read((300, 310), 190, Value::Null), 0));
    assert_valid(&with(read((50, 60), 0, Value::Null), 0));
}

#[test]
fn a_lag_beyond_the_bound_is_found() {
    assert_invalid(&with(read((300, 310), 89, 1), 0), &["too stale"]);
    assert_invalid(&with(read((300, 310), 0, 1), 0), &["too stale"]);
    assert_invalid(&with(read((300, 310), 189, Value::Null), 0), &["too stale"]);
}

#[test]
fn writes_of_unknown_outcome_may_be_late() {
    let [one, two] = writes();
    // Whether 2 ever overwrote 1 is unknown.
    assert_valid(&check(&[one.clone(), two.clone().unknown(), read((900, 910), 0, 1)], 0));
    // It did by the end of the read that saw it.
    let seen = [one.clone(), two.clone().unknown(), read((300, 310), 0, 2), read((900, 910), 100, 1)];
    assert_invalid(&check(&seen, 0), &["too stale"]);
    // The first may come after the second.
    assert_valid(&check(&[one.unknown(), two, read((300, 310), 0, 2), read((900, 910), 0, 1)], 0));
}

#[test]
fn impossible_values_are_found() {
    assert_invalid(&with(read((300, 310), 1_000, 3), 0), &["phantom read"]);
    assert_invalid(&with(read((150, 160), 1_000, 2), 0), &["read from the future"]);
    let [one, two] = writes();
    let failed = check(&[one, two.failed(), read((300, 310), 1_000, 2)], 0);
    assert_invalid(&failed, &["read of a failed write"]);
    assert_unknown(&check(&writes(), 0));
}
