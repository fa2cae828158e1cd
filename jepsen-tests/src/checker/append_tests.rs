//! Every anomaly of its own is found and named; a correct store passes.

use std::collections::BTreeMap;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::super::Verdict;
use super::super::fixture::{assert_invalid, assert_unknown, assert_valid, call};
use super::*;
use crate::record::Kind;

/// The input has no reads filled in.
fn txn(process: u64, times: (u64, u64), steps: Value) -> Call {
    let mut input = steps.clone();
    for step in input.as_array_mut().unwrap() {
        if step[0] == "r" {
            step[2] = Value::Null;
        }
    }
    call(process, "txn", times, input, steps)
}

#[test]
fn good_histories_pass() {
    let calls = [
        txn(1, (1, 2), json!([["append", "x", 1], ["r", "x", [1]], ["append", "x", 2]])),
        txn(2, (1, 5), json!([["r", "x", []], ["append", "y", 1]])),
        txn(3, (6, 7), json!([["append", "x", 3]])).unknown(),
        txn(4, (6, 7), json!([["append", "x", 4]])).failed(),
        txn(5, (8, 9), json!([["r", "x", [1, 2]], ["r", "y", [1]]])),
        txn(5, (10, 11), json!([["r", "x", [1, 2, 3]], ["append", "x", 5], ["r", "x", [1, 2, 3, 5]]])),
        // Read the end, append, and nobody reads it.
        txn(5, (12, 13), json!([["r", "x", [1, 2, 3, 5]], ["append", "x", 6], ["append", "z", 1]])),
    ];
    assert_valid(&check(&calls));
    // The same list names and elements in another partition have nothing to do with it.
    let mut twice = calls.to_vec();
    twice.extend(calls.map(|call| call.of("other")));
    assert_valid(&check(&twice));
}

#[test]
fn what_was_seen_to_take_effect_did_so_as_a_whole() {
    let read = |times, x: Value, y: Value| txn(2, times, json!([["r", "x", x], ["r", "y", y]]));
    let both = txn(1, (1, 2), json!([["append", "x", 1], ["append", "y", 2]])).unknown();
    let once = [both.clone(), read((3, 4), json!([1]), json!([2]))];
    assert_valid(&check(&once));
    assert_valid(&check(&[
        both.clone(),
        read((3, 4), json!([]), json!([])),
        read((5, 6), json!([1]), json!([2])),
    ]));
    let half = [both, read((3, 4), json!([1]), json!([])), read((5, 6), json!([1]), json!([]))];
    let found = check(&half);
    assert!(matches!(found.verdict, Verdict::Invalid(_)), "{found}");
    let gap = check(&[
        txn(1, (1, 2), json!([["append", "x", 1], ["append", "x", 2]])).unknown(),
        txn(3, (3, 4), json!([["append", "x", 3]])),
        txn(2, (5, 6), json!([["r", "x", [1, 3]]])),
        txn(2, (7, 8), json!([["r", "x", [1, 3]]])),
    ]);
    assert!(matches!(gap.verdict, Verdict::Invalid(_)), "{gap}");
}

#[test]
fn what_reads_show_by_themselves_is_found() {
    let one = txn(1, (1, 2), json!([["append", "x", 1], ["append", "x", 2]]));
    let with = |list: Value| check(&[one.clone(), txn(2, (3, 4), json!([["r", "x", list]]))]);
    assert_valid(&with(json!([1, 2])));
    assert_invalid(&with(json!([1, 2, 3])), &["phantom append"]);
    assert_invalid(&with(json!([1, 2, 2])), &["doubled append"]);
    assert_invalid(&with(json!([])), &["lost append", "lost append"]);
    let half = check(&[
        one.clone(),
        txn(2, (1, 4), json!([["r", "x", [1]]])),
        txn(2, (5, 6), json!([["r", "x", [1, 2]]])),
    ]);
    assert_invalid(&half, &["G-single: read skew", "G1b: intermediate read"]);
    let failed = check(&[one.clone().failed(), txn(2, (3, 4), json!([["r", "x", [1, 2]]]))]);
    assert_invalid(&failed, &["G1a: aborted read"]);
    let forked = check(&[
        one,
        txn(2, (1, 4), json!([["append", "x", 3]])),
        txn(3, (5, 6), json!([["r", "x", [1, 2, 3]]])),
        txn(3, (7, 8), json!([["r", "x", [3, 1, 2]]])),
    ]);
    assert_invalid(&forked, &["incompatible order"]);
}

#[test]
fn a_transaction_that_does_not_see_itself_is_found() {
    let alone = |steps| check(&[txn(1, (1, 2), steps)]);
    assert_invalid(&alone(json!([["append", "x", 1], ["r", "x", []]])), &["internal"]);
    // Nor may it see what it appends only later.
    assert_invalid(&alone(json!([["r", "x", [1]], ["append", "x", 1]])), &["internal"]);
    assert_invalid(
        &alone(json!([["r", "x", [1]], ["append", "x", 1], ["r", "x", [1, 1]]])),
        &["doubled append", "internal"],
    );
    let torn = check(&[
        txn(1, (1, 5), json!([["append", "x", 1]])),
        txn(2, (1, 5), json!([["r", "x", []], ["r", "x", [1]]])),
    ]);
    assert_invalid(&torn, &["internal"]);
}

#[test]
fn cycles_are_found_and_explained() {
    // Each saw the other's append, though neither can have come first.
    let circular = check(&[
        txn(1, (1, 9), json!([["append", "x", 1], ["r", "y", [1]]])),
        txn(2, (1, 9), json!([["append", "y", 1], ["r", "x", [1]]])),
    ]);
    assert_invalid(&circular, &["G1c: circular information flow"]);
    let written = check(&[
        txn(1, (1, 9), json!([["append", "x", 1], ["append", "y", 1]])),
        txn(2, (1, 9), json!([["append", "x", 2], ["append", "y", 2]])),
        txn(3, (10, 19), json!([["r", "x", [1, 2]]])),
        txn(4, (10, 19), json!([["r", "y", [2, 1]]])),
    ]);
    assert_invalid(&written, &["G0: write cycle"]);
    let skew = check(&[
        txn(1, (1, 9), json!([["append", "x", 1], ["append", "y", 1]])),
        txn(2, (1, 9), json!([["r", "x", [1]], ["r", "y", []]])),
        txn(3, (1, 19), json!([["r", "y", [1]]])),
    ]);
    assert_invalid(&skew, &["G-single: read skew"]);
    let write_skew = check(&[
        txn(1, (1, 9), json!([["r", "x", []], ["append", "y", 1]])),
        txn(2, (1, 9), json!([["r", "y", []], ["append", "x", 1]])),
    ]);
    assert_invalid(&write_skew, &["G2: anti-dependency cycle"]);
    let lost_update = check(&[
        txn(1, (1, 9), json!([["r", "x", []], ["append", "x", 1]])),
        txn(2, (1, 9), json!([["r", "x", []], ["append", "x", 2]])),
    ]);
    assert_invalid(&lost_update, &["G2: anti-dependency cycle"]);
}

#[test]
fn order_against_real_time_is_found() {
    let stale = check(&[
        txn(1, (1, 2), json!([["append", "x", 1]])),
        txn(2, (10, 11), json!([["r", "x", []]])),
        txn(3, (5, 20), json!([["r", "x", [1]]])),
    ]);
    assert_invalid(&stale, &["G-single-realtime: stale read"]);
    let Verdict::Invalid(violations) = &stale.verdict else { panic!("{stale}") };
    let detail = &violations[0].detail;
    assert!(detail.starts_with("a cycle of 2 transactions"), "{detail}");
    assert!(detail.contains("rt: T") && detail.contains("read x without 1, which T"), "{detail}");
    let swapped = check(&[
        txn(1, (1, 2), json!([["append", "x", 1]])),
        txn(2, (3, 4), json!([["append", "x", 2]])),
        txn(3, (5, 6), json!([["r", "x", [2, 1]]])),
    ]);
    assert_invalid(&swapped, &["G0-realtime: writes against real time"]);
    let future =
        check(&[txn(1, (1, 2), json!([["r", "x", [1]]])), txn(2, (3, 4), json!([["append", "x", 1]]))]);
    assert_invalid(&future, &["G1c-realtime: read against real time"]);
    // Through a long chain in real time, told as one step; what went back and forth is a stale read.
    let mut chain = vec![txn(1, (1, 2), json!([["append", "x", 1]]))];
    chain.extend((0..20).map(|n| txn(1, (10 + n * 10, 15 + n * 10), json!([["append", "y", n]]))));
    chain.push(txn(1, (1_000, 1_001), json!([["r", "x", []]])));
    chain.push(txn(2, (5, 2_000), json!([["r", "x", [1]]])));
    let report = check(&chain);
    assert!(report.to_string().contains("a cycle of 2 transactions"), "{report}");
}

#[test]
fn an_unknown_append_may_come_at_any_time_but_once_seen_stays() {
    let unknown = txn(1, (1, 2), json!([["append", "x", 1]])).unknown();
    let read = |times, list| txn(2, times, json!([["r", "x", list]]));
    assert_valid(&check(&[unknown.clone(), read((3, 4), json!([])), read((5, 6), json!([1]))]));
    let back = check(&[unknown, read((3, 4), json!([1])), read((5, 6), json!([]))]);
    assert_invalid(&back, &["G-single-realtime: stale read"]);
}

#[test]
fn a_workload_that_cannot_be_judged_is_unknown() {
    let twice = [
        txn(1, (1, 2), json!([["append", "x", 1]])),
        txn(1, (3, 4), json!([["append", "x", 1], ["r", "x", [1]]])),
    ];
    let report = check(&twice);
    assert!(!report.is_valid(), "{report}");
    assert_unknown(&check(&[txn(1, (1, 2), json!([["append", "x", 1]]))]));
    assert_unknown(&check(&[txn(1, (1, 2), json!([["w", "x", 1], ["r", "x", []]]))]));
}

/// A correct store: transactions take effect one after another, each between its start and end.
fn simulated(rng: &mut StdRng, count: u64, partitions: u64) -> Vec<Call> {
    let mut lists: BTreeMap<(u64, u64), Vec<u64>> = BTreeMap::new();
    let mut free = [0_u64; 16];
    let mut planned = Vec::new();
    for n in 0..count {
        let process = rng.random_range(0..16);
        let start = free[process] + rng.random_range(1..50);
        let at = start + rng.random_range(0..500);
        let end = at + rng.random_range(0..500);
        free[process] = end + 1;
        planned.push((at, n, process as u64, (start, end)));
    }
    planned.sort_unstable();
    let mut calls = Vec::new();
    for (order, (_, n, process, times)) in planned.into_iter().enumerate() {
        let partition = rng.random_range(0..partitions);
        let fate = rng.random_range(0..40);
        let mut steps = Vec::new();
        let mut undone = Vec::new();
        for step in 0..rng.random_range(1..4) {
            // Lists are left after a while, so that they do not grow without end.
            let list = order as u64 / 1_000 * 5 + rng.random_range(0..5);
            let name = format!("list {list}");
            let elements = lists.entry((partition, list)).or_default();
            if rng.random() {
                elements.push(n * 10 + step);
                undone.push((partition, list));
                steps.push(json!(["append", name, n * 10 + step]));
            } else {
                steps.push(json!(["r", name, elements]));
            }
        }
        let call = txn(process, times, Value::from(steps)).of(&format!("partition {partition}"));
        // Failed, or cut before it took effect, or cut after.
        if fate < 2 {
            for list in undone {
                lists.get_mut(&list).unwrap().pop();
            }
        }
        calls.push(match fate {
            0 => call.failed(),
            1 | 2 => call.unknown(),
            _ => call,
        });
    }
    calls.sort_by_key(|call| call.start_ns);
    calls
}

#[test]
fn a_hundred_thousand_transactions_are_decided_in_seconds() {
    let rng = &mut StdRng::seed_from_u64(1);
    for partitions in [1, 20] {
        let mut calls = simulated(rng, 100_000, partitions);
        let began = Instant::now();
        assert_valid(&check(&calls));
        let good = began.elapsed();
        // The last read that saw enough of a list loses its end.
        let mut broken = None;
        for (at, call) in calls.iter().enumerate().filter(|(_, call)| call.end == Kind::Ok) {
            let steps = call.output.as_array().unwrap();
            if let [step] = steps.as_slice()
                && step[0] == "r"
                && step[2].as_array().unwrap().len() > 50 / partitions as usize + 10
            {
                broken = Some(at);
            }
        }
        let list = calls[broken.unwrap()].output[0][2].as_array_mut().unwrap();
        list.truncate(5);
        let began = Instant::now();
        let report = check(&calls);
        println!("{partitions} partitions: {good:?}, with a violation {:?}\n{report}", began.elapsed());
        assert!(matches!(report.verdict, Verdict::Invalid(_)));
        assert!(good.as_secs() < 30, "{good:?}");
    }
}
