//! Lost and doubled increments are found, at the end and on the way.

use serde_json::Value;

use super::super::fixture::{assert_invalid, assert_unknown, assert_valid, read, wrote};
use super::*;

fn add(times: (u64, u64)) -> Call {
    wrote(1, "add", times, 1)
}

#[test]
fn counts_between_sure_and_possible_pass() {
    let calls = [
        read(2, (1, 2), Value::Null),
        add((10, 20)),
        add((30, 40)).unknown(),
        add((50, 60)).failed(),
        read(2, (15, 16), 1),
        read(2, (70, 80), 1),
        read(2, (90, 95), 2),
        add((100, 200)),
        read(2, (110, 120), 2),
        read(3, (111, 119), 3),
        read(2, (300, 310), 3),
    ];
    assert_valid(&check(&calls));
}

#[test]
fn lost_increments_are_found() {
    assert_invalid(&check(&[add((10, 20)), add((30, 40)), read(2, (50, 60), 1)]), &["lost increment"]);
    assert_invalid(&check(&[add((10, 20)), read(2, (50, 60), Value::Null)]), &["lost increment"]);
}

#[test]
fn doubled_increments_are_found() {
    assert_invalid(&check(&[add((10, 20)), read(2, (50, 60), 2)]), &["increment counted twice"]);
    assert_invalid(&check(&[add((10, 20)).unknown(), read(2, (50, 60), 2)]), &["increment counted twice"]);
    assert_invalid(&check(&[add((10, 20)).failed(), read(2, (50, 60), 1)]), &["increment counted twice"]);
    assert_invalid(&check(&[read(2, (5, 6), 1), add((10, 20))]), &["increment counted twice"]);
}

#[test]
fn a_counter_that_goes_back_is_found() {
    let calls = [add((10, 20)).unknown(), read(2, (30, 40), 1), read(3, (50, 60), 0)];
    assert_invalid(&check(&calls), &["counter went backwards"]);
    // Overlapping reads have no order.
    assert_valid(&check(&[add((10, 20)).unknown(), read(2, (30, 50), 1), read(3, (50, 60), 0)]));
}

#[test]
fn odd_counts_prove_nothing() {
    assert_unknown(&check(&[add((10, 20)), read(2, (30, 40), -1)]));
    assert_unknown(&check(&[wrote(1, "add", (10, 20), -1), read(2, (30, 40), 0)]));
    assert_unknown(&check(&[add((10, 20))]));
}
