//! Answers at the epoch named or newer, from replicas, never back; and histories that show nothing.

use serde_json::{Value, json};

use super::super::fixture::{assert_invalid, assert_unknown, assert_valid, call, wrote};
use super::*;

/// A question that names `named`, answered by `node` at `epoch`, on the one stream to it.
fn fence(times: (u64, u64), named: u64, node: u64, epoch: u64) -> Call {
    let input = json!({"stream": node, "named": named});
    call(node * 10, FENCE, times, input, json!({"node": node, "epoch": epoch}))
}

/// What the stream `process` tells of the shard.
fn map(process: u64, at: u64, epoch: u64, replicas: &[u64]) -> Call {
    call(process, MAP, (at, at + 1), Value::Null, json!({"epoch": epoch, "replicas": replicas}))
}

/// A shard that leaves node 3 for node 4.
fn moved() -> Vec<Call> {
    vec![
        map(1, 10, 1, &[1, 2, 3]),
        fence((20, 30), 1, 3, 1),
        map(1, 40, 2, &[1, 2, 3, 4]),
        map(1, 50, 3, &[1, 2, 4]),
        fence((60, 70), 3, 1, 3),
        fence((61, 71), 3, 3, 3).failed(),
    ]
}

fn with(more: &[Call]) -> Report {
    check(&[moved(), more.to_vec()].concat(), true)
}

#[test]
fn answers_at_the_epoch_named_or_newer_pass() {
    assert_valid(&with(&[]));
    assert_valid(&with(&[fence((80, 90), 0, 4, 3), fence((80, 90), 2, 2, 3)]));
    // Newer than any map that was seen.
    assert_valid(&with(&[fence((80, 90), 3, 9, 4)]));
    // Nobody told of the newer map yet.
    assert_valid(&with(&[fence((32, 90), 1, 3, 1)]));
}

#[test]
fn an_answer_at_an_older_epoch_than_named_is_found() {
    assert_invalid(&with(&[fence((80, 90), 3, 2, 2)]), &["answer at an older epoch"]);
    // The node that gave its replica away, and has not heard of it.
    assert_invalid(&with(&[fence((80, 90), 2, 3, 1)]), &["answer at an older epoch"]);
    assert_valid(&with(&[fence((80, 90), 3, 2, 2).failed(), fence((80, 90), 3, 2, 2).unknown()]));
}

#[test]
fn an_answer_of_a_node_that_is_no_replica_is_found() {
    assert_invalid(&with(&[fence((80, 90), 3, 3, 3)]), &["answer of no replica"]);
    assert_invalid(&with(&[fence((80, 90), 0, 9, 2)]), &["answer of no replica"]);
    assert_valid(&with(&[fence((80, 90), 3, 3, 3).of("another shard")]));
}

#[test]
fn epochs_that_go_back_are_found() {
    assert_invalid(&with(&[fence((80, 90), 0, 1, 2)]), &["epoch went back"]);
    assert_valid(&with(&[fence((65, 90), 0, 1, 2)]));
    assert_valid(&with(&[fence((80, 90), 0, 2, 2)]));
    // Another stream, to a node that may have been started anew.
    let anew = Call { input: json!({"stream": 9, "named": 0}), ..fence((80, 90), 0, 1, 2) };
    assert_valid(&with(&[anew]));
    assert_invalid(&with(&[map(1, 80, 2, &[1, 2, 3, 4])]), &["epoch went back"]);
    // Another stream, of a node that has not heard yet.
    assert_valid(&with(&[map(2, 80, 2, &[1, 2, 3, 4])]));
}

#[test]
fn two_maps_of_one_epoch_are_found() {
    assert_invalid(&with(&[map(2, 80, 3, &[1, 2, 3])]), &["two maps of one epoch"]);
    assert_valid(&with(&[map(2, 80, 3, &[4, 2, 1])]));
}

#[test]
fn a_history_in_which_nobody_could_be_wrong_shows_nothing() {
    let still = [map(1, 10, 1, &[1, 2, 3]), fence((20, 30), 1, 1, 1)];
    assert_valid(&check(&still, false));
    assert_unknown(&check(&still, true));
    assert_unknown(&check(&[], false));
    assert_unknown(&check(&[map(1, 10, 1, &[1]), fence((20, 30), 0, 1, 1)], false));
    assert_unknown(&check(&[map(1, 10, 1, &[1]), fence((20, 30), 1, 1, 1).failed()], false));
    // Epochs grew, and none of the new ones was named.
    let deaf: Vec<Call> = moved().into_iter().filter(|call| call.start_ns < 60).collect();
    assert_unknown(&check(&deaf, true));
    assert_unknown(&check(&deaf, false));
}

#[test]
fn what_is_not_understood_is_not_passed_over() {
    assert_unknown(&with(&[wrote(1, "strange", (80, 90), 1)]));
    assert_unknown(&with(&[call(1, FENCE, (80, 90), json!({"stream": 1, "named": 3}), json!({"epoch": 3}))]));
    assert_unknown(&with(&[call(1, FENCE, (80, 90), json!({"named": 3}), json!({"node": 1, "epoch": 3}))]));
    assert_unknown(&with(&[call(1, MAP, (80, 90), Value::Null, json!({"epoch": 3, "replicas": ["a"]}))]));
}

#[test]
fn calls_are_told_apart_and_counted() {
    let (callers, probes) = split([moved(), vec![wrote(9, "write", (1, 2), 1)]].concat());
    assert_eq!((callers.len(), probes.len()), (1, 6));
    assert_eq!(probed(&probes), Probed { asked: 3, answered: 2, grown: 2 });
    assert_eq!(probed(&[]), Probed::default());
}

#[test]
fn membership_has_changed_when_a_node_gave_replicas_to_others() {
    let record = |f: &str, value: Value| Record {
        index: 0,
        time_ns: 0,
        process: NEMESIS,
        kind: Kind::Info,
        f: f.to_owned(),
        key: String::new(),
        value,
        error: None,
    };
    let ended = |f: &str, gave: u64| record(f, json!({"phase": "end", "met": {"gave": gave}}));
    assert!(membership_changed(&[record("membership", json!({"phase": "start"})), ended("membership", 8)]));
    // It had none yet.
    assert!(!membership_changed(&[ended("membership", 0), ended("another", 8)]));
    assert!(!membership_changed(&[record("membership", json!({"phase": "end"}))]));
}
