//! What the tests of apply share: a view in memory, ways to write commands, random logs.
//!
//! Public within the crate's tests, so that the same logs can be run against every engine.

mod model;
mod properties;
mod reads;
mod rules;

use std::collections::BTreeMap;

use borough_proto::document::{flags, inspect};
use borough_proto::wire::{self, OpStatus, op::Action};
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value as Json;

use super::{Header, Sessions, View, load_header, resume};
use crate::store::{Batch, KeyRange, Scan, StoreError};

/// Ordered bytes in memory.
#[derive(Debug, Default)]
pub struct MemoryView(Mutex<BTreeMap<Bytes, Bytes>>);

impl MemoryView {
    /// Takes over a batch, as an engine would.
    pub fn write(&self, batch: Batch) {
        let mut map = self.0.lock();
        for (key, value) in batch.changes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
    }
}

impl View for MemoryView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.lock().get(key).cloned())
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        let found: Vec<_> =
            self.0.lock().range(range).map(|(key, value)| Ok((key.clone(), value.clone()))).collect();
        if reverse { Box::new(found.into_iter().rev()) } else { Box::new(found.into_iter()) }
    }
}

/// Everything in a view, in key order.
pub fn dump<V: View + ?Sized>(view: &V) -> Vec<(Bytes, Bytes)> {
    view.scan((std::ops::Bound::Unbounded, std::ops::Bound::Unbounded), false).map(Result::unwrap).collect()
}

/// Applies `entries` as one batch on top of `view`, hands the batch to `write` and checks the rest of what apply gives back.
pub fn apply_group<V: View + ?Sized>(
    view: &V,
    write: &dyn Fn(Batch),
    entries: &[(u64, wire::Command)],
) -> Vec<wire::CommandReply> {
    apply_next(view, write, &mut Sessions::default(), entries)
}

/// The same, with what the last batch on `view` left in memory.
pub fn apply_next<V: View + ?Sized>(
    view: &V,
    write: &dyn Fn(Batch),
    sessions: &mut Sessions,
    entries: &[(u64, wire::Command)],
) -> Vec<wire::CommandReply> {
    let mut apply = resume(view, load_header(view).unwrap(), std::mem::take(sessions));
    let replies = entries.iter().map(|(index, command)| apply.apply(*index, command).unwrap()).collect();
    let applied = apply.finish();
    assert!(applied.batch.changes.is_sorted_by(|one, next| one.0 < next.0), "sorted, each key once");
    assert!(applied.touched.iter().all(|touched| applied.batch.changes.contains(touched)));
    write(applied.batch);
    assert_eq!(load_header(view).unwrap(), applied.header);
    for (key, record) in applied.touched {
        assert_eq!(view.get(&key).unwrap(), record);
    }
    *sessions = applied.sessions;
    replies
}

/// A log index that leaves room for others before the next.
pub fn index_of(entry: usize) -> u64 {
    (entry as u64 + 1) * 10
}

/// The commands with their indexes.
pub fn numbered(log: &[wire::Command]) -> Vec<(u64, wire::Command)> {
    log.iter().enumerate().map(|(entry, command)| (index_of(entry), command.clone())).collect()
}

/// A shard under test.
#[derive(Debug, Default)]
pub struct Shard {
    pub view: MemoryView,
    pub index: u64,
    sessions: Sessions,
}

impl Shard {
    pub fn apply(&mut self, command: wire::Command) -> wire::CommandReply {
        self.index += 1;
        let write = |batch| self.view.write(batch);
        apply_next(&self.view, &write, &mut self.sessions, &[(self.index, command)]).remove(0)
    }

    /// Applies one unit of one operation at `stamp_ms`.
    pub fn op(&mut self, stamp_ms: u64, op: wire::Op) -> wire::OpReply {
        self.apply(command(stamp_ms, vec![unit(vec![op])])).units.remove(0).ops.remove(0)
    }

    pub fn read(&self, id: &str, now_ms: u64) -> Option<String> {
        let key = wire::DocumentKey { collection: 1, id: id.to_owned(), sort: None };
        super::read(&self.view, &key, now_ms)
            .unwrap()
            .map(|document| String::from_utf8(document.body.to_vec()).unwrap())
    }

    pub fn header(&self) -> Header {
        load_header(&self.view).unwrap()
    }
}

pub fn command(stamp_ms: u64, units: Vec<wire::Unit>) -> wire::Command {
    wire::Command { stamp_ms, session: None, units, sweep: None }
}

pub fn unit(ops: Vec<wire::Op>) -> wire::Unit {
    wire::Unit { ops, idempotency: None }
}

pub fn op(id: &str, action: Action) -> wire::Op {
    wire::Op {
        collection: 1,
        id: id.to_owned(),
        sort: None,
        precondition: None,
        ttl_ms: None,
        action: Some(action),
    }
}

pub fn put(id: &str, body: &str) -> wire::Op {
    let flags = inspect(body.as_bytes())
        .ok()
        .and_then(|inspected| flags(&inspected, id, None).ok())
        .unwrap_or_default();
    op(id, Action::Put(wire::Put { document: Bytes::copy_from_slice(body.as_bytes()), flags }))
}

pub fn merge(id: &str, patch: &str) -> wire::Op {
    op(id, Action::Merge(wire::Merge { patch: Bytes::copy_from_slice(patch.as_bytes()) }))
}

pub fn delete(id: &str) -> wire::Op {
    op(id, Action::Delete(wire::Delete {}))
}

pub fn check(id: &str) -> wire::Op {
    op(id, Action::Check(wire::Check {}))
}

pub fn given(mut op: wire::Op, set: impl FnOnce(&mut wire::Precondition)) -> wire::Op {
    set(op.precondition.get_or_insert_default());
    op
}

pub fn ttl(mut op: wire::Op, ttl_ms: u64) -> wire::Op {
    op.ttl_ms = Some(ttl_ms);
    op
}

pub fn statuses(reply: &wire::UnitReply) -> Vec<OpStatus> {
    reply.ops.iter().map(wire::OpReply::status).collect()
}

/// RFC 7396, as its section 2 has it.
pub fn naive_merge(target: Option<&Json>, patch: &Json) -> Json {
    let Json::Object(patch) = patch else { return patch.clone() };
    let mut merged = target.and_then(Json::as_object).cloned().unwrap_or_default();
    for (name, change) in patch {
        if change.is_null() {
            merged.shift_remove(name);
        } else {
            let value = naive_merge(merged.get(name), change);
            merged.insert(name.clone(), value);
        }
    }
    Json::Object(merged)
}

const BODIES: [&str; 6] = [
    "{}",
    r#"{"a":1}"#,
    r#"{"a":{"b":1,"c":[1]},"n":1.00}"#,
    r#"{"id":"u0"}"#,
    r#"{ "x" : "y" }"#,
    r#"{"b":{"b":{"b":0}}}"#,
];
const PATCHES: [&str; 7] = [
    r#"{"a":null}"#,
    r#"{"a":{"b":2}}"#,
    r#"{"b":{"b":null}}"#,
    r#"{"id":null}"#,
    r#"{"id":"u1"}"#,
    "[]",
    "{}",
];

fn precondition_strategy() -> impl Strategy<Value = wire::Precondition> {
    let versions = || {
        let version =
            (0..12_usize, 0..2_u64).prop_map(|(entry, position)| (index_of(entry) << 16) | position);
        prop_oneof![4 => Just(vec![]), 1 => proptest::collection::vec(version, 1..4)]
    };
    (versions(), prop::bool::weighted(0.2), prop::bool::weighted(0.2), versions()).prop_map(
        |(if_match, if_absent, if_present, if_none_match)| wire::Precondition {
            if_match,
            if_absent,
            if_present,
            if_none_match,
        },
    )
}

fn op_strategy() -> impl Strategy<Value = wire::Op> {
    let kind = prop_oneof![
        5 => prop::sample::select(&BODIES).prop_map(|body| (0, body)),
        3 => prop::sample::select(&PATCHES).prop_map(|patch| (1, patch)),
        2 => Just((2, "")),
        1 => Just((3, "")),
    ];
    let sort = prop::option::of(prop::sample::select(vec!["s", "t"]));
    let precondition = prop::option::weighted(0.25, precondition_strategy());
    (0..4_u32, sort, kind, precondition, prop::option::weighted(0.3, 1..120_u64)).prop_map(
        |(id, sort, (kind, text), precondition, ttl_ms)| {
            let id = format!("u{id}");
            let made = match kind {
                0 => put(&id, text),
                1 => merge(&id, text),
                2 => delete(&id),
                _ => check(&id),
            };
            let collection = if sort.is_some() { 2 } else { 1 };
            wire::Op { collection, sort: sort.map(str::to_owned), precondition, ttl_ms, ..made }
        },
    )
}

fn unit_strategy() -> impl Strategy<Value = wire::Unit> {
    let note = prop::option::of(prop::sample::select(vec!["", "n1", "n2"]));
    let idempotency = (prop::sample::select(vec!["k", "k2"]), 0..2_u32, prop::bool::weighted(0.8), note)
        .prop_map(|(key, position, usual, note)| wire::Idempotency {
            key: key.to_owned(),
            position,
            fingerprint: u64::from(usual),
            note: note.map(|note| Bytes::from_static(note.as_bytes())),
        });
    (proptest::collection::vec(op_strategy(), 0..4), prop::option::weighted(0.3, idempotency))
        .prop_map(|(ops, idempotency)| wire::Unit { ops, idempotency })
}

fn sweep_strategy() -> impl Strategy<Value = wire::Sweep> {
    let bytes_max = prop_oneof![3 => Just(u64::MAX), 1 => Just(150_u64), 1 => Just(0_u64)];
    (0..6_u32, 0..400_u64, bytes_max, prop_oneof![2 => Just(0_u64), 1 => 0..400_u64]).prop_map(
        |(expire_max, keys_before_ms, keys_bytes_max, sessions_before_ms)| wire::Sweep {
            expire_max,
            keys_before_ms,
            keys_bytes_max,
            sessions_before_ms,
            collections: Vec::new(),
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    Fresh {
        wait_ms: i64,
        session: Option<(u64, u64, u64, u64)>,
        units: Vec<wire::Unit>,
        sweep: Option<wire::Sweep>,
    },
    Resend(Index),
}

fn step_strategy() -> impl Strategy<Value = Step> {
    // (session, how far its sequence jumps, how many are left unacknowledged, how many later ones have overtaken it)
    let session = (
        1..3_u64,
        prop_oneof![6 => Just(1_u64), 1 => 2..90_u64],
        prop_oneof![3 => 0..4_u64, 1 => 0..200_u64],
        prop_oneof![5 => Just(0_u64), 1 => 1..4_u64],
    );
    let units = proptest::collection::vec(unit_strategy(), 0..3);
    let fresh = (
        -20..60_i64,
        prop::option::weighted(0.6, session),
        units,
        prop::option::weighted(0.1, sweep_strategy()),
    )
        .prop_map(|(wait_ms, session, units, sweep)| Step::Fresh { wait_ms, session, units, sweep });
    prop_oneof![5 => fresh, 1 => any::<Index>().prop_map(Step::Resend)]
}

/// Random logs: every kind of operation on few keys, transactions, deadlines, idempotency keys, sessions whose sequences
/// rise (now and then by much, or out of order), resent commands, sweeps, stamps that run backwards.
pub fn log_strategy(entries_max: usize) -> impl Strategy<Value = Vec<wire::Command>> {
    proptest::collection::vec(step_strategy(), 1..=entries_max).prop_map(|steps| {
        let mut log: Vec<wire::Command> = Vec::new();
        let mut clock_ms = 100_i64;
        let mut sequences: BTreeMap<u64, u64> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Resend(_) if log.is_empty() => {}
                Step::Resend(which) => log.push(which.get(&log).clone()),
                Step::Fresh { wait_ms, session, units, sweep } => {
                    clock_ms = (clock_ms + wait_ms).max(1);
                    let session = session.map(|(id, jump, behind, late)| {
                        let sequence = sequences.entry(id).or_default();
                        *sequence += jump;
                        wire::Session {
                            id,
                            sequence: sequence.saturating_sub(late).max(1),
                            acknowledged: sequence.saturating_sub(1 + behind),
                        }
                    });
                    log.push(wire::Command { stamp_ms: clock_ms as u64, session, units, sweep });
                }
            }
        }
        log
    })
}
