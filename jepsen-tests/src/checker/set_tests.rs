//! Sets that lose, invent or repeat elements are found.

use serde_json::json;

use super::super::fixture::{assert_invalid, assert_unknown, assert_valid, read, wrote};
use super::*;

#[test]
fn what_overlaps_or_is_unknown_may_be_there_or_not() {
    let calls = [
        wrote(1, "add", (1, 2), 1),
        wrote(2, "add", (1, 3), 2).unknown(),
        wrote(3, "add", (1, 3), 3).failed(),
        wrote(4, "add", (4, 9), 4),
        read(5, (5, 6), json!([1])),
        read(6, (5, 6), json!([4, 1])),
        read(5, (7, 8), json!([4, 1])),
        read(5, (20, 21), json!([2, 4, 1])),
        read(5, (30, 31), json!([9])).of("other").failed(),
    ];
    assert_valid(&check(&calls));
}

#[test]
fn a_lost_element_is_found() {
    let add = wrote(1, "add", (1, 2), 1);
    assert_invalid(&check(&[add.clone(), read(2, (3, 4), json!([]))]), &["lost element"]);
    // Seen before it was acknowledged, then not any more.
    let slow = wrote(1, "add", (1, 90), 1);
    let calls = [slow.clone(), read(2, (3, 4), json!([1])), read(2, (5, 6), json!([]))];
    assert_invalid(&check(&calls), &["vanished element"]);
    let calls = [
        slow.unknown(),
        read(2, (3, 4), json!([1])),
        read(2, (5, 6), json!([])),
        read(2, (7, 8), json!([1])),
    ];
    assert_invalid(&check(&calls), &["vanished element"]);
    assert_unknown(&check(&[add]));
}

#[test]
fn invented_and_repeated_elements_are_found() {
    let add = wrote(1, "add", (10, 20), 1);
    let with = |times, list| check(&[add.clone(), read(2, times, list)]);
    assert_invalid(&with((30, 40), json!([1, 2])), &["phantom element"]);
    assert_invalid(&with((30, 40), json!([1, 1])), &["doubled element"]);
    assert_invalid(&with((3, 4), json!([1])), &["element from the future"]);
    let failed = check(&[add.clone().failed(), read(2, (30, 40), json!([1]))]);
    assert_invalid(&failed, &["element of a failed add"]);
    let elsewhere = check(&[add, read(2, (30, 40), json!([1])).of("other"), read(2, (30, 40), json!([1]))]);
    assert_invalid(&elsewhere, &["phantom element"]);
}
