//! What lives too long or not long enough is found.

use serde_json::{Value, json};

use super::super::fixture::{assert_invalid, assert_unknown, assert_valid, read, wrote};
use super::*;

fn write(times: (u64, u64), value: u64, ttl_ns: impl Into<Value>) -> Call {
    wrote(1, "write", times, json!({"value": value, "ttlNs": ttl_ns.into()}))
}

fn checked(calls: &[Call]) -> Report {
    check(calls, 10)
}

#[test]
fn there_before_and_gone_after_passes() {
    let calls = [
        read(2, (1, 2), Value::Null),
        write((100, 110), 1, 1_000),
        read(2, (200, 210), 1),
        // From 1090 to 1120 either is possible.
        read(2, (1_080, 1_090), Value::Null),
        read(2, (1_120, 1_130), 1),
        read(2, (1_200, 1_210), Value::Null),
        write((2_000, 2_010), 2, Value::Null),
        read(2, (900_000, 900_010), 2),
    ];
    assert_valid(&checked(&calls));
}

#[test]
fn a_value_that_outlives_its_time_is_found() {
    assert_invalid(
        &checked(&[write((100, 110), 1, 1_000), read(2, (1_121, 1_130), 1)]),
        &["read after expiry"],
    );
    // Of unknown outcome: its time began at the latest when it was first seen.
    let unknown = [write((100, 110), 1, 1_000).unknown(), read(2, (500, 510), 1), read(2, (1_520, 1_530), 1)];
    assert_valid(&checked(&unknown));
    let unknown = [write((100, 110), 1, 1_000).unknown(), read(2, (500, 510), 1), read(2, (1_521, 1_530), 1)];
    assert_invalid(&checked(&unknown), &["read after expiry"]);
}

#[test]
fn a_value_that_goes_too_early_is_found() {
    let early = read(2, (1_080, 1_089), Value::Null);
    assert_invalid(&checked(&[write((100, 110), 1, 1_000), early]), &["gone too early"]);
    let forever = [write((100, 110), 1, Value::Null), read(2, (9_000, 9_010), Value::Null)];
    assert_invalid(&checked(&forever), &["gone too early"]);
    // What was written over it has a longer time.
    let longer = [write((100, 110), 1, 50), write((120, 130), 2, 1_000), read(2, (300, 310), Value::Null)];
    assert_invalid(&checked(&longer), &["gone too early"]);
}

#[test]
fn what_came_over_it_may_have_expired() {
    let overlapping =
        [write((100, 130), 1, 1_000), write((110, 120), 2, 50), read(2, (300, 310), Value::Null)];
    assert_valid(&checked(&overlapping));
    let unknown =
        [write((100, 110), 1, 50).unknown(), write((120, 130), 2, 1_000), read(2, (300, 310), Value::Null)];
    assert_valid(&checked(&unknown));
}

#[test]
fn what_was_overwritten_does_not_come_back() {
    let back = [write((100, 110), 1, 9_000), write((200, 210), 2, 100), read(2, (500, 510), 1)];
    assert_invalid(&checked(&back), &["stale read or lost write"]);
}

#[test]
fn impossible_values_are_found() {
    let calls = [
        write((100, 110), 1, 1_000).failed(),
        read(2, (200, 210), 1),
        read(2, (200, 210), 2),
        write((300, 310), 2, 9),
    ];
    assert_invalid(&checked(&calls), &["read of a failed write", "read from the future"]);
    assert_invalid(&checked(&[read(2, (200, 210), 1)]), &["phantom read"]);
    assert_unknown(&checked(&[write((100, 110), 1, 1_000)]));
}
