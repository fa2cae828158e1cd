//! What is common to all checkers: nothing is passed over in silence.

use serde_json::{Value, json};

use super::fixture::{assert_unknown, call, read, wrote};
use super::*;

type Checker = fn(&[Call]) -> Report;

fn checkers() -> [(Checker, Call, Call); 9] {
    let append = json!([["append", "x", 1], ["r", "x", null]]);
    let appended = json!([["append", "x", 1], ["r", "x", [1]]]);
    let stale = call(2, "read", (5, 6), json!({"maxStaleNs": 1}), json!(1));
    [
        (
            |c| linearizable::check(c, linearizable::Bounds::default()),
            wrote(1, "write", (1, 2), 1),
            read(2, (5, 6), 1),
        ),
        (
            |c| ttl::check(c, 0),
            wrote(1, "write", (1, 2), json!({"value": 1, "ttlNs": 9})),
            read(2, (5, 6), 1),
        ),
        (set::check, wrote(1, "add", (1, 2), 1), read(2, (5, 6), json!([1]))),
        (counter::check, wrote(1, "add", (1, 2), 1), read(2, (5, 6), 1)),
        (idempotent::check, wrote(1, "append", (1, 2), 1), read(2, (5, 6), json!([1]))),
        (
            append::check,
            call(1, "txn", (1, 2), append.clone(), appended.clone()),
            call(2, "txn", (3, 4), json!([["r", "x", null]]), json!([["r", "x", [1]]])),
        ),
        (session::check, wrote(1, "write", (1, 2), 1), read(1, (5, 6), 1)),
        (|c| stale::check(c, 0), wrote(1, "write", (1, 2), 1), stale),
        (scan::check, wrote(1, "add", (1, 2), "a"), call(2, "scan", (5, 6), Value::Null, json!(["a"]))),
    ]
}

#[test]
fn good_histories_pass_and_empty_ones_prove_nothing() {
    for (at, (check, write, read)) in checkers().into_iter().enumerate() {
        let report = check(&[write.clone(), read.clone()]);
        assert_eq!(report.verdict, Verdict::Valid, "checker {at}: {report}");
        assert_eq!(report.counts, Counts { ok: 2, fail: 0, info: 0 });
        assert_unknown(&check(&[]));
        assert_unknown(&check(&[write.clone().failed(), read.clone().unknown()]));
    }
}

#[test]
fn calls_of_another_workload_are_not_passed_over() {
    for (check, write, read) in checkers() {
        assert_unknown(&check(&[write.clone(), read.clone(), wrote(3, "strange", (8, 9), 1)]));
        let odd = Call { input: json!({"odd": true}), output: json!({"odd": true}), ..write.clone() };
        // Registers take any value.
        if !["write"].contains(&write.f.as_str()) {
            assert_unknown(&check(&[write, read, odd.of("k")]));
        }
    }
}

#[test]
fn violations_are_bounded_and_counted() {
    let calls: Vec<Call> = (0..80).map(|n| read(1, (n * 10, n * 10 + 5), json!([n]))).collect();
    let report = set::check(&calls);
    let Verdict::Invalid(violations) = &report.verdict else { panic!("{report}") };
    assert_eq!((violations.len(), report.left_out), (VIOLATIONS_MAX, 30));
    assert!(report.to_string().ends_with("and 30 more"));
}
