//! No checker accuses a store that keeps its promises, whatever is slow, lost or late.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::fixture::call;
use super::{Report, Verdict, counter, idempotent, linearizable, scan, session, set, stale, ttl};
use crate::record::{Call, Kind};

/// A call to come and the moment at which it takes effect.
struct Plan {
    process: u64,
    start: u64,
    /// `None`: never.
    at: Option<u64>,
    end: u64,
    kind: Kind,
}

impl Plan {
    fn call(&self, f: &str, input: Value, output: Value) -> Call {
        Call { end: self.kind, ..call(self.process, f, (self.start, self.end), input, output) }
    }
}

/// Six processes, each one call after another. A lost call takes effect in time, late or never; its process goes on as
/// another.
fn plans(rng: &mut StdRng, count: u64) -> Vec<Plan> {
    let mut processes: Vec<(u64, u64)> = (0..6).map(|process| (process, 10)).collect();
    let mut plans = Vec::new();
    for n in 0..count {
        let slot = rng.random_range(0..processes.len());
        let (process, free) = processes[slot];
        let start = free + rng.random_range(0..40);
        let at = start + rng.random_range(0..40);
        let end = at + rng.random_range(0..40);
        let (kind, at) = match rng.random_range(0..12) {
            0 => (Kind::Fail, None),
            1 => (Kind::Info, None),
            2 => (Kind::Info, Some(at)),
            3 => (Kind::Info, Some(end + rng.random_range(0..500))),
            _ => (Kind::Ok, Some(at)),
        };
        processes[slot] = (if kind == Kind::Info { 100 + n } else { process }, end + 1);
        plans.push(Plan { process, start, at, end, kind });
    }
    plans.sort_by_key(|plan| plan.start);
    plans
}

/// The moments of all changes, and the calls that made them; the other plans are for reads.
type Changes = Vec<(u64, u64)>;

fn changes(rng: &mut StdRng, plans: Vec<Plan>) -> (Changes, Vec<(u64, Plan)>, Vec<Plan>) {
    let (mut changes, mut writes, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for (n, plan) in plans.into_iter().enumerate() {
        if rng.random() {
            changes.extend(plan.at.map(|at| (at, n as u64)));
            writes.push((n as u64, plan));
        } else if plan.kind == Kind::Ok {
            reads.push(plan);
        }
    }
    changes.sort_unstable();
    (changes, writes, reads)
}

fn last(changes: &Changes, time: u64) -> Option<(u64, u64)> {
    changes.iter().copied().rfind(|&(at, _)| at <= time)
}

fn assert_not_accused(seed: u64, mut calls: Vec<Call>, check: impl Fn(&[Call]) -> Report) {
    calls.sort_by_key(|call| call.start_ns);
    let report = check(&calls);
    let listed = || calls.iter().map(super::describe).collect::<Vec<_>>().join("\n");
    assert!(!matches!(report.verdict, Verdict::Invalid(_)), "seed {seed}: {report}\n{}", listed());
}

const SEEDS: u64 = 400;

#[test]
fn registers_that_keep_their_promises_are_not_accused() {
    for seed in 0..SEEDS {
        let rng = &mut StdRng::seed_from_u64(seed);
        let plans = plans(rng, 60);
        let (changes, writes, mut reads) = changes(rng, plans);
        let writes: Vec<(u64, Call)> =
            writes.iter().map(|(n, plan)| (*n, plan.call("write", json!(n), Value::Null))).collect();
        let value = |time| last(&changes, time).map(|(_, n)| n);
        let written = || writes.iter().map(|(_, call)| call.clone());
        let read = |plan: &Plan, input, time| plan.call("read", input, json!(value(time)));
        let current = reads.iter().map(|plan| read(plan, Value::Null, plan.at.unwrap()));
        let current: Vec<Call> = written().chain(current).collect();
        assert_not_accused(seed, current.clone(), |calls| {
            linearizable::check(calls, linearizable::Bounds::default())
        });
        assert_not_accused(seed, current, session::check);

        let lagging = reads.iter().map(|plan| {
            let lag = rng.random_range(0..200);
            read(plan, json!({"maxStaleNs": lag}), plan.at.unwrap().saturating_sub(rng.random_range(0..=lag)))
        });
        assert_not_accused(seed, written().chain(lagging).collect(), |calls| stale::check(calls, 0));

        // Each session reads no earlier state than before, and none before its own writes.
        reads.sort_by_key(|plan| plan.start);
        let mut sessions: Vec<(u64, u64, u64)> = Vec::new();
        let own = writes.iter().filter(|(_, call)| call.end == Kind::Ok);
        sessions.extend(own.filter_map(|(n, call)| {
            let at = changes.iter().find(|(_, change)| change == n)?.0;
            Some((call.process, call.start_ns, at))
        }));
        let mut behind = Vec::new();
        for plan in &reads {
            let before =
                sessions.iter().filter(|&&(process, start, _)| process == plan.process && start < plan.start);
            let floor = before.map(|&(.., at)| at).max().unwrap_or(0);
            let time = rng.random_range(floor..=plan.at.unwrap().max(floor));
            sessions.push((plan.process, plan.start, time));
            behind.push(read(plan, Value::Null, time));
        }
        assert_not_accused(seed, written().chain(behind).collect(), session::check);
    }
}

#[test]
fn times_to_live_that_are_kept_are_not_accused() {
    for seed in 0..SEEDS {
        let rng = &mut StdRng::seed_from_u64(seed);
        let plans = plans(rng, 60);
        let (changes, writes, reads) = changes(rng, plans);
        let ttl = |n: u64| if n.is_multiple_of(5) { None } else { Some(n * 37 % 150) };
        let value = |time| {
            let (at, n) = last(&changes, time)?;
            ttl(n).is_none_or(|ttl| time < at + ttl).then_some(n)
        };
        let written = writes
            .iter()
            .map(|(n, plan)| plan.call("write", json!({"value": n, "ttlNs": ttl(*n)}), Value::Null));
        let read = reads.iter().map(|plan| plan.call("read", Value::Null, json!(value(plan.at.unwrap()))));
        assert_not_accused(seed, written.chain(read).collect(), |calls| ttl::check(calls, 0));
    }
}

#[test]
fn collections_that_lose_and_double_nothing_are_not_accused() {
    for seed in 0..SEEDS {
        let rng = &mut StdRng::seed_from_u64(seed);
        let plans = plans(rng, 60);
        let (changes, writes, reads) = changes(rng, plans);
        let listed = |plan: &Plan| -> Vec<u64> {
            let there = changes.iter().filter(|&&(at, _)| at <= plan.at.unwrap());
            there.map(|&(_, n)| n).collect()
        };
        for (f, check) in [("add", set::check as fn(&[Call]) -> Report), ("append", idempotent::check)] {
            let written = writes.iter().map(|(n, plan)| plan.call(f, json!(n), Value::Null));
            let read = reads.iter().map(|plan| plan.call("read", Value::Null, json!(listed(plan))));
            assert_not_accused(seed, written.chain(read).collect(), check);
        }
        let added = writes.iter().map(|(_, plan)| plan.call("add", json!(1), Value::Null));
        let read = reads.iter().map(|plan| plan.call("read", Value::Null, json!(listed(plan).len())));
        assert_not_accused(seed, added.chain(read).collect(), counter::check);

        // Items come and go, and a scan looks at each at a moment of its own.
        let change = |n: u64| (if n.is_multiple_of(3) { "remove" } else { "add" }, n % 7);
        let changed =
            writes.iter().map(|(n, plan)| plan.call(change(*n).0, json!(change(*n).1), Value::Null));
        let scanned = reads.iter().map(|plan| {
            let mut there = Vec::new();
            for item in 0..7 {
                let time = rng.random_range(plan.start..=plan.end);
                let of_item = changes.iter().rfind(|&&(at, n)| at <= time && change(n).1 == item);
                there.extend(of_item.filter(|&&(_, n)| change(n).0 == "add").map(|_| item));
            }
            plan.call("scan", Value::Null, json!(there))
        });
        assert_not_accused(seed, changed.chain(scanned).collect(), scan::check);
    }
}
