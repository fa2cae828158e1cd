//! Appends that take effect twice, or not at all, or although refused, are found.

use serde_json::json;

use super::super::fixture::{assert_invalid, assert_valid, call, read, wrote};
use super::*;

#[test]
fn once_each_passes() {
    let calls = [
        wrote(1, "append", (1, 2), 1),
        wrote(1, "append", (3, 4), 2).unknown(),
        wrote(2, "append", (5, 6), 3).failed(),
        read(3, (7, 8), json!([1])),
        read(3, (9, 10), json!([1, 2])),
    ];
    assert_valid(&check(&calls));
}

#[test]
fn every_other_number_of_times_is_found() {
    let append = wrote(1, "append", (1, 2), 1);
    let with = |append: &Call, list| check(&[append.clone(), read(3, (7, 8), list)]);
    assert_invalid(&with(&append, json!([1, 1])), &["append applied twice"]);
    assert_invalid(&with(&append, json!([1, 1, 1])), &["append applied twice", "append applied twice"]);
    assert_invalid(&with(&append.clone().unknown(), json!([1, 1])), &["append applied twice"]);
    assert_invalid(&with(&append, json!([])), &["lost append"]);
    assert_invalid(&with(&append.clone().failed(), json!([1])), &["refused append applied"]);
    assert_invalid(&with(&append, json!([1, 5])), &["phantom append"]);
    let seen = [append.unknown(), read(3, (7, 8), json!([1])), read(3, (9, 10), json!([]))];
    assert_invalid(&check(&seen), &["vanished append"]);
}

#[test]
fn a_request_that_is_answered_otherwise_later_is_found() {
    let append = wrote(1, "append", (1, 2), 1);
    let seen = read(3, (7, 8), json!([1]));
    let with = |resent: Call| check(&[append.clone(), resent, seen.clone()]);
    let resent = |answer: &str| call(1, RESEND, (3, 4), json!("1"), json!(answer));
    assert_valid(&with(resent("1")));
    assert_valid(&with(resent("1").unknown()));
    assert_valid(&with(resent("1").failed()));
    assert_invalid(&with(resent("2")), &["another outcome"]);
    assert_invalid(&with(resent("1").refused()), &["forgotten request"]);
    let both = [append.clone(), resent("2"), read(3, (7, 8), json!([]))];
    assert_invalid(&check(&both), &["lost append", "another outcome"]);
}
