//! Sessions that go back are found; sessions that may lag behind others are not accused.

use super::super::fixture::{assert_invalid, assert_unknown, assert_valid, read, wrote};
use super::*;
use serde_json::Value;

#[test]
fn another_session_may_lag_behind() {
    let calls = [
        wrote(1, "write", (1, 2), 1),
        wrote(1, "write", (3, 4), 2),
        read(2, (5, 6), 1),
        read(2, (7, 8), 1),
        read(2, (9, 10), 2),
        read(1, (9, 10), 2),
        read(3, (20, 21), Value::Null),
    ];
    assert_valid(&check(&calls));
}

#[test]
fn a_session_must_see_its_own_write() {
    let writes = [wrote(1, "write", (1, 2), 1), wrote(1, "write", (3, 4), 2)];
    let with = |read: Call| check(&[writes[0].clone(), writes[1].clone(), read]);
    assert_invalid(&with(read(1, (5, 6), 1)), &["read your writes"]);
    assert_invalid(&with(read(1, (5, 6), Value::Null)), &["read your writes"]);
    assert_invalid(&with(read(1, (5, 6), 7)), &["phantom read"]);
    // The second write of unknown outcome need not be seen, but may.
    let unknown = [writes[0].clone(), writes[1].clone().unknown(), read(1, (5, 6), 1), read(1, (7, 8), 2)];
    assert_valid(&check(&unknown));
}

#[test]
fn a_session_must_not_go_back() {
    let mut calls = vec![wrote(1, "write", (1, 2), 1), wrote(1, "write", (3, 4), 2), read(2, (5, 6), 2)];
    calls.push(read(2, (7, 8), 1));
    assert_invalid(&check(&calls), &["monotonic reads"]);
    calls[3] = read(2, (7, 8), Value::Null);
    assert_invalid(&check(&calls), &["monotonic reads"]);
}

#[test]
fn what_follows_a_read_is_younger() {
    // Process 2 writes 2 after it read 1, so 3 must not see 2 and then 1.
    let calls = [
        wrote(1, "write", (1, 50), 1),
        read(2, (5, 6), 1),
        wrote(2, "write", (7, 8), 2),
        read(3, (9, 10), 2),
        read(3, (11, 12), 1),
    ];
    assert_invalid(&check(&calls), &["monotonic reads"]);
}

#[test]
fn overlapping_writes_have_no_order() {
    let calls = [
        wrote(1, "write", (1, 9), 1),
        wrote(2, "write", (2, 8), 2),
        read(3, (10, 11), 2),
        read(3, (12, 13), 1),
    ];
    assert_valid(&check(&calls));
    // A write of unknown outcome may come after what was written after it.
    let late = [
        wrote(1, "write", (1, 2), 1).unknown(),
        wrote(4, "write", (3, 4), 2),
        read(3, (5, 6), 2),
        read(3, (7, 8), 1),
    ];
    assert_valid(&check(&late));
}

#[test]
fn impossible_values_are_found() {
    let calls = [
        wrote(1, "write", (1, 2), 1).failed(),
        read(1, (3, 4), 1),
        read(1, (5, 6), 2),
        wrote(1, "write", (7, 8), 2),
    ];
    assert_invalid(&check(&calls), &["read of a failed write", "read from the future"]);
    let twice = [wrote(1, "write", (1, 2), 1), wrote(1, "write", (3, 4), 1), read(1, (5, 6), 1)];
    assert_unknown(&check(&twice));
    assert_unknown(&check(&[wrote(1, "write", (1, 2), 1), read(2, (5, 6), 1)]));
}

#[test]
fn all_sessions_see_one_order() {
    let writes = || vec![wrote(1, "write", (0, 100), 1), wrote(2, "write", (0, 100), 2)];
    let with = |reads: &[Call]| check(&[writes(), reads.to_vec()].concat());
    // The writes overlap, so either may be the older one.
    assert_valid(&with(&[read(3, (110, 115), 1), read(3, (120, 125), 2), read(4, (110, 115), 2)]));
    let back = [read(3, (110, 115), 1), read(3, (120, 125), 2), read(3, (130, 135), 1)];
    assert_invalid(&with(&back), &["orders of sessions"]);
    let other =
        [read(3, (110, 115), 1), read(3, (120, 125), 2), read(4, (110, 115), 2), read(4, (120, 125), 1)];
    assert_invalid(&with(&other), &["orders of sessions"]);
    // Of three, by three sessions, of which no two disagree.
    let three = [writes(), vec![wrote(5, "write", (0, 100), 3)]].concat();
    let around = [(6, 1, 2), (7, 2, 3), (8, 3, 1)];
    let reads = around
        .iter()
        .flat_map(|&(session, one, next)| [read(session, (110, 115), one), read(session, (120, 125), next)]);
    assert_invalid(&check(&three.iter().cloned().chain(reads).collect::<Vec<_>>()), &["orders of sessions"]);
}
