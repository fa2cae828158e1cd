//! Listings that miss, repeat or invent items are found; what changed meanwhile may be in them or not.

use serde_json::json;

use super::super::fixture::{assert_invalid, assert_unknown, assert_valid, call, wrote};
use super::*;

fn add(times: (u64, u64)) -> Call {
    wrote(1, "add", times, "a")
}

fn remove(times: (u64, u64)) -> Call {
    wrote(1, "remove", times, "a")
}

fn scan(times: (u64, u64), items: Value) -> Call {
    call(2, "scan", times, Value::Null, items)
}

#[test]
fn what_changes_meanwhile_may_be_there_or_not() {
    for items in [json!([]), json!(["a"])] {
        assert_valid(&check(&[add((1, 10)), scan((5, 20), items.clone())]));
        assert_valid(&check(&[add((1, 2)), remove((10, 11)), scan((5, 20), items.clone())]));
        assert_valid(&check(&[add((1, 2)).unknown(), scan((5, 20), items.clone())]));
        assert_valid(&check(&[add((1, 2)), remove((3, 4)).unknown(), scan((5, 20), items.clone())]));
        assert_valid(&check(&[add((1, 2)), remove((3, 4)), add((6, 7)), scan((5, 20), items)]));
    }
    assert_valid(&check(&[add((1, 2)), remove((3, 4)), scan((5, 20), json!([]))]));
    assert_valid(&check(&[add((1, 2)), remove((3, 4)).failed(), scan((5, 20), json!(["a"]))]));
    assert_valid(&check(&[add((1, 2)), remove((3, 4)), add((5, 6)), scan((7, 20), json!(["a"]))]));
}

#[test]
fn an_item_that_comes_back_is_found() {
    let (there, gone) = (json!(["a"]), json!([]));
    let calls = |add_again: Option<Call>| {
        let scans = [((5, 6), &gone), ((7, 8), &there)].map(|(times, items)| scan(times, items.clone()));
        [add((1, 2)), remove((3, 4)).unknown()].into_iter().chain(add_again).chain(scans).collect::<Vec<_>>()
    };
    assert_invalid(&check(&calls(None)), &["item that came back"]);
    assert_valid(&check(&calls(Some(add((5, 7))))));
    assert_valid(&check(&calls(Some(add((3, 4)).unknown()))));
    // Overlapping listings may see it in any order.
    let overlap = [add((1, 2)), remove((3, 4)).unknown(), scan((5, 8), gone), scan((7, 9), there)];
    assert_valid(&check(&overlap));
}

#[test]
fn a_missed_item_is_found() {
    assert_invalid(&check(&[add((1, 2)), scan((5, 20), json!([]))]), &["missed item"]);
    assert_invalid(
        &check(&[add((1, 2)), remove((3, 4)).failed(), scan((5, 20), json!([]))]),
        &["missed item"],
    );
    assert_invalid(&check(&[add((1, 2)), remove((21, 22)), scan((5, 20), json!([]))]), &["missed item"]);
    let again = [add((1, 2)), remove((3, 4)), add((5, 6)), scan((7, 20), json!([]))];
    assert_invalid(&check(&again), &["missed item"]);
    // Of unknown outcome, but listed once.
    let listed = [add((1, 2)).unknown(), scan((5, 20), json!(["a"])), scan((21, 30), json!([]))];
    assert_invalid(&check(&listed), &["missed item"]);
}

#[test]
fn items_that_must_not_be_there_are_found() {
    assert_invalid(&check(&[add((1, 2)), scan((5, 20), json!(["a", "a"]))]), &["doubled item"]);
    assert_invalid(&check(&[add((1, 2)), scan((5, 20), json!(["a", "b"]))]), &["phantom item"]);
    assert_invalid(&check(&[add((1, 2)).failed(), scan((5, 20), json!(["a"]))]), &["item of a failed add"]);
    assert_invalid(
        &check(&[add((1, 2)), remove((3, 4)), scan((5, 20), json!(["a"]))]),
        &["removed item listed"],
    );
    assert_invalid(&check(&[add((30, 40)), scan((5, 20), json!(["a"]))]), &["item from the future"]);
    assert_unknown(&check(&[add((1, 2))]));
}
