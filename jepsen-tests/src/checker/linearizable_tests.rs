//! Registers that are none are found and reduced; a simple exhaustive search agrees on small histories.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use super::super::Verdict;
use super::super::fixture::{assert_invalid, assert_unknown, assert_valid, read, wrote};
use super::*;

fn checked(calls: &[Call]) -> Report {
    check(calls, Bounds::default())
}

fn write(times: (u64, u64), value: u64) -> Call {
    wrote(1, "write", times, value)
}

fn cas(times: (u64, u64), old: u64, new: u64) -> Call {
    wrote(2, "cas", times, json!([old, new]))
}

fn create(times: (u64, u64), value: u64) -> Call {
    wrote(3, "create", times, value)
}

fn delete(times: (u64, u64)) -> Call {
    wrote(4, "delete", times, Value::Null)
}

#[test]
fn good_histories_pass() {
    assert_valid(&checked(&[write((1, 2), 1), read(9, (3, 4), 1), read(9, (5, 6), 7).of("other").unknown()]));
    let all = [
        create((1, 2), 1),
        create((3, 4), 2).refused(),
        cas((5, 6), 1, 3),
        cas((7, 8), 1, 4).refused(),
        delete((9, 10)),
        read(9, (11, 12), Value::Null),
        create((13, 14), 5),
        read(9, (15, 16), 5),
    ];
    assert_valid(&checked(&all));
    // A write of unknown outcome may take effect late, between others, or never.
    let late = [write((1, 2), 1).unknown(), write((3, 4), 2), read(9, (5, 6), 2), read(9, (7, 8), 1)];
    assert_valid(&checked(&late));
    let swapped = [
        write((1, 2), 1),
        cas((3, 4), 1, 2).unknown(),
        read(9, (5, 6), 1),
        cas((7, 8), 2, 3),
        read(9, (9, 10), 3),
    ];
    assert_valid(&checked(&swapped));
}

#[test]
fn a_write_that_nobody_saw_may_have_undone_a_delete() {
    // 2 must come after the delete, or the create would not have been refused.
    let history = [write((1, 2), 1), delete((3, 6)), write((4, 8), 2), create((9, 10), 3).refused()];
    assert_valid(&checked(&history));
    let history = [write((1, 2), 1), write((3, 4), 2), delete((5, 6)), create((9, 10), 3).refused()];
    assert_invalid(&checked(&history), &["refused although the condition held"]);
}

#[test]
fn bad_reads_are_found() {
    let writes = [write((1, 2), 1), write((3, 4), 2)];
    let with = |read: Call| checked(&[writes[0].clone(), writes[1].clone(), read]);
    assert_invalid(&with(read(9, (5, 6), 1)), &["stale read or lost write"]);
    assert_invalid(&with(read(9, (5, 6), Value::Null)), &["stale read or lost write"]);
    assert_invalid(&with(read(9, (5, 6), 3)), &["phantom read"]);
    let calls = [writes[0].clone(), writes[1].clone().failed(), read(9, (5, 6), 2)];
    assert_invalid(&checked(&calls), &["read of a failed write"]);
    assert_invalid(&checked(&[read(9, (0, 0), 1), writes[0].clone()]), &["read from the future"]);
    // Seen, gone and back again.
    let back = [writes[0].clone(), write((3, 90), 2), read(9, (5, 6), 2), read(9, (7, 8), 1)];
    assert_invalid(&checked(&back), &["stale read or lost write"]);
    let deleted = [writes[0].clone(), delete((3, 4)), read(9, (5, 6), 1)];
    assert_invalid(&checked(&deleted), &["stale read or lost write"]);
}

#[test]
fn bad_conditions_are_found() {
    let lost = [write((1, 2), 1), cas((3, 4), 1, 2), cas((3, 5), 1, 3)];
    assert_invalid(&checked(&lost), &["lost update"]);
    assert_invalid(&checked(&[create((1, 2), 1), create((3, 4), 2)]), &["lost update"]);
    // Refused, yet applied.
    let dirty = [write((1, 2), 1), cas((3, 4), 7, 2).refused(), read(9, (5, 6), 2)];
    assert_invalid(&checked(&dirty), &["read of a failed write"]);
    let wrong = "refused although the condition held";
    assert_invalid(&checked(&[write((1, 2), 1), cas((3, 4), 1, 2).refused(), read(9, (5, 6), 1)]), &[wrong]);
    assert_invalid(&checked(&[create((3, 4), 2).refused(), read(9, (5, 6), Value::Null)]), &[wrong]);
    // Applied twice: 1 came back after 2.
    let twice = [create((1, 2), 1), cas((3, 4), 1, 2), read(9, (5, 6), 1)];
    assert_invalid(&checked(&twice), &["stale read or lost write"]);
    // Another failure than of the condition says nothing.
    assert_valid(&checked(&[write((1, 2), 1), cas((3, 4), 1, 2).failed(), read(9, (5, 6), 1)]));
}

#[test]
fn a_violation_is_reduced_to_what_shows_it() {
    let mut calls: Vec<Call> = Vec::new();
    for n in 0..500 {
        let at = n * 100;
        calls.push(write((at, at + 10), n));
        calls.push(read(n % 16, (at + 20, at + 30), n));
        calls.push(cas((at + 40, at + 50), n, n + 10_000));
    }
    // Of the value overwritten by then.
    calls.push(read(7, (30_060, 30_070), 300));
    let report = checked(&calls);
    assert_invalid(&report, &["stale read or lost write"]);
    let Verdict::Invalid(violations) = &report.verdict else { panic!("{report}") };
    let detail = &violations[0].detail;
    assert!(detail.starts_with("no order explains these 3 of its 1501 calls"), "{detail}");
    assert!(detail.contains("ok 300") && detail.contains("cas [300,10300]"), "{detail}");
}

#[test]
fn what_is_not_decided_within_bounds_is_unknown() {
    // Ten swaps from one value that are all acknowledged, with as many ways to go.
    let calls: Vec<Call> =
        (0..12).map(|n| Call { process: n, ..wrote(n, "write", (0, 100), n % 3) }).collect();
    let mut calls: Vec<Call> = calls;
    calls.extend((0..6).map(|n| read(20 + n, (10 + n, 90 + n), n % 3)));
    let (configurations_max, memory_max_bytes) = (2, 1 << 20);
    assert_unknown(&check(&calls, Bounds { configurations_max, memory_max_bytes }));
    assert_unknown(&check(&calls, Bounds { configurations_max: 1_000, memory_max_bytes: 100 }));
    assert_valid(&checked(&calls));
    // A violation elsewhere is one all the same.
    calls.extend([write((1, 2), 1).of("other"), read(9, (3, 4), 9).of("other")]);
    assert_invalid(&check(&calls, Bounds { configurations_max, memory_max_bytes }), &["phantom read"]);
    assert_unknown(&checked(&[write((1, 2), 1)]));
}

/// Tries every order. Times up to 63, at most 12 calls.
fn by_force(calls: &[Call], taken: u32, value: &Value) -> bool {
    let left = |at: usize| taken & (1 << at) == 0;
    let shows = |call: &Call| call.end == Kind::Ok || (call.end == Kind::Fail && call.error.is_some());
    let must = |at: &usize| left(*at) && shows(&calls[*at]);
    let until = (0..calls.len()).filter(must).filter_map(|at| calls[at].end_ns).min();
    let Some(until) = until else { return true };
    (0..calls.len()).any(|at| {
        let call = &calls[at];
        if !left(at) || call.start_ns > until {
            return false;
        }
        let applied = call.end != Kind::Fail;
        let next = match (call.f.as_str(), applied) {
            ("read", true) if call.end == Kind::Ok && call.output == *value => value.clone(),
            ("write", true) => call.input.clone(),
            ("delete", true) => Value::Null,
            ("create", true) if value.is_null() => call.input.clone(),
            ("cas", true) if call.input[0] == *value => call.input[1].clone(),
            ("create", false) if call.error.is_some() && !value.is_null() => value.clone(),
            ("cas", false) if call.error.is_some() && call.input[0] != *value => value.clone(),
            _ => return false,
        };
        by_force(calls, taken | (1 << at), &next)
    })
}

fn any_history(rng: &mut StdRng) -> Vec<Call> {
    let unlike: bool = rng.random();
    let plain = rng.random_range(0..3) == 0;
    let mut calls = Vec::new();
    for process in 0..rng.random_range(1..4) {
        let mut time = rng.random_range(0..6);
        for _ in 0..rng.random_range(1..4) {
            let fresh = if unlike { 10 + calls.len() } else { rng.random_range(1..4) };
            let any = |rng: &mut StdRng| match rng.random_range(0..4) {
                0 => Value::Null,
                _ if unlike => json!(10 + rng.random_range(0..6)),
                _ => json!(rng.random_range(1..4)),
            };
            let times = (time, time + rng.random_range(0..6));
            time = times.1 + rng.random_range(1..4);
            let call = match rng.random_range(0..if plain { 3 } else { 8 }) {
                0 => wrote(process, "write", times, fresh),
                1 | 2 => read(process, times, any(rng)),
                3 => wrote(process, "create", times, fresh),
                4 => wrote(process, "delete", times, Value::Null),
                5 => read(process, times, any(rng)),
                _ => wrote(process, "cas", times, json!([any(rng), fresh])),
            };
            calls.push(match rng.random_range(0..8) {
                0 => call.unknown(),
                1 if call.f != "read" => call.failed(),
                2 if call.f == "cas" || call.f == "create" => call.refused(),
                _ => call,
            });
        }
    }
    calls.sort_by_key(|call| call.start_ns);
    calls
}

#[test]
fn random_histories_are_judged_as_by_force() {
    let (mut good, mut bad, mut largest) = (0, 0, 0);
    for seed in 0..20_000 {
        let calls = any_history(&mut StdRng::seed_from_u64(seed));
        let expected = by_force(&calls, 0, &Value::Null);
        let refs: Vec<&Call> = calls.iter().collect();
        let (ops, malformed) = model::operations(&refs);
        assert_eq!(malformed, None);
        let outcome = search::decide(&ops, Bounds::default());
        let listed = || calls.iter().map(super::super::describe).collect::<Vec<_>>().join("\n");
        assert_eq!(outcome == Outcome::Linearizable, expected, "seed {seed}\n{}", listed());
        assert_eq!(
            search::search(&ops, Bounds::default()),
            outcome,
            "seed {seed}: both ways agree\n{}",
            listed()
        );
        if expected {
            good += 1;
            // Nothing that is left out makes a violation.
            assert_eq!(shrink::smallest(&ops), ops, "seed {seed}\n{}", listed());
            continue;
        }
        bad += 1;
        let smallest = shrink::smallest(&ops);
        assert_eq!(search::decide(&smallest, Bounds::default()), Outcome::NotLinearizable, "seed {seed}");
        largest = largest.max(smallest.len());
        assert!(!smallest.is_empty() && smallest.len() <= ops.len(), "seed {seed}");
        assert!(!table(&smallest, &refs).is_empty() && !name(&smallest, &refs).is_empty());
    }
    assert!(largest <= 8, "{largest}");
    assert!(good > 3_000 && bad > 3_000, "{good} good, {bad} bad");
}

/// What a correct register does: every call takes effect somewhere between its start and end.
fn simulated(rng: &mut StdRng, keys: u64, calls_per_key: u64, processes: u64, plain: bool) -> Vec<Call> {
    let mut calls = Vec::new();
    for key in 0..keys {
        let mut planned: Vec<(u64, Call)> = Vec::new();
        let mut free = vec![0_u64; processes as usize];
        for n in 0..calls_per_key {
            let process = rng.random_range(0..processes);
            let start = free[process as usize] + rng.random_range(1..50);
            let at = start + rng.random_range(0..500);
            let end = at + rng.random_range(0..500);
            free[process as usize] = end + 1;
            let f = match rng.random_range(0..if plain { 2 } else { 5 }) {
                0 => "read",
                1 => "write",
                2 => "cas",
                3 => "create",
                _ => "delete",
            };
            let call = Call { key: format!("key {key}"), ..wrote(process, f, (start, end), n + 1) };
            planned.push((at, call));
        }
        planned.sort_by_key(|(at, _)| *at);
        let mut value = Value::Null;
        let mut seen: Vec<Value> = vec![Value::Null];
        for (_, mut call) in planned {
            let fresh = call.input.clone();
            let lost = rng.random_range(0..40) == 0;
            // One in a while is cut before it takes effect.
            let cut = lost && rng.random();
            let mut next = value.clone();
            match call.f.as_str() {
                "read" => (call.input, call.output) = (Value::Null, value.clone()),
                "write" => next = fresh,
                "delete" => (call.input, next) = (Value::Null, Value::Null),
                "create" if value.is_null() => next = fresh,
                "cas" => {
                    let old =
                        seen[seen.len().saturating_sub(rng.random_range(1..4)).min(seen.len() - 1)].clone();
                    call.input = json!([old, fresh]);
                    if old == value { next = fresh } else { call = call.refused() }
                }
                _ => call = call.refused(),
            }
            if lost {
                call = Call { error: None, ..call.unknown() };
            }
            if !cut && value != next {
                seen.push(next.clone());
                value = next;
            }
            calls.push(call);
        }
    }
    calls.sort_by_key(|call| call.start_ns);
    calls
}

#[test]
fn a_hundred_thousand_calls_are_decided_in_seconds() {
    let rng = &mut StdRng::seed_from_u64(1);
    for (keys, per_key, plain) in [(100, 1_000, false), (100, 1_000, true), (1, 20_000, false)] {
        let mut calls = simulated(rng, keys, per_key, 16, plain);
        let began = Instant::now();
        assert_valid(&checked(&calls));
        let good = began.elapsed();
        // A read of what was there long before.
        let reads = |call: &&mut Call| call.f == "read" && call.end == Kind::Ok && call.start_ns > 20_000;
        let old = calls.iter().find(|call| call.f == "write" && call.end == Kind::Ok).unwrap().clone();
        calls.iter_mut().filter(reads).rfind(|call| call.key == old.key).unwrap().output = old.input;
        let began = Instant::now();
        let report = checked(&calls);
        println!(
            "{keys} keys of {per_key}, plain {plain}: {good:?}, with a violation {:?}\n{report}",
            began.elapsed()
        );
        assert!(!report.is_valid());
        assert!(good.as_secs() < 30, "{good:?}");
    }
}
