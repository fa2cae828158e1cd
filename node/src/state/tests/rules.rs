//! The rules one by one: statuses, preconditions, transactions, time to live, idempotency, sessions, sweeps, refusals.

use std::time::Duration;

use borough_proto::idempotency;

use super::*;
use crate::state::{SESSION_SPAN_MAX, SweepLimits, begin, keys, sweep_due, validate};

fn with_key(ops: Vec<wire::Op>, key: &str, fingerprint: u64) -> wire::Unit {
    let idempotency = wire::Idempotency { key: key.to_owned(), position: 0, fingerprint, note: None };
    wire::Unit { ops, idempotency: Some(idempotency) }
}

fn in_session(sequence: u64, acknowledged: u64, ops: Vec<wire::Op>) -> wire::Command {
    let session = Some(wire::Session { id: 7, sequence, acknowledged });
    wire::Command { session, ..command(1, vec![unit(ops)]) }
}

fn sweep(stamp_ms: u64, sweep: wire::Sweep) -> wire::Command {
    wire::Command { sweep: Some(sweep), ..command(stamp_ms, vec![]) }
}

const KEEP_KEYS: wire::Sweep = wire::Sweep {
    expire_max: 100,
    keys_before_ms: 0,
    keys_bytes_max: u64::MAX,
    sessions_before_ms: 0,
    collections: Vec::new(),
};

#[test]
fn every_operation_tells_what_it_did() {
    let mut shard = Shard::default();
    let created = shard.op(1, put("a", r#"{"x":1}"#));
    assert_eq!((created.status(), created.version), (OpStatus::Created, 1 << 16));
    let replaced = shard.op(1, put("a", r#"{"x":2}"#));
    assert_eq!((replaced.status(), replaced.version), (OpStatus::Replaced, 2 << 16));
    let merged = shard.op(1, merge("a", r#"{"y":3}"#));
    assert_eq!((merged.status(), merged.version, merged.flags), (OpStatus::Merged, 3 << 16, 1));
    assert_eq!(&merged.document[..], br#"{"x":2,"y":3}"#);
    let checked = shard.op(1, check("a"));
    assert_eq!((checked.status(), checked.version), (OpStatus::Checked, 3 << 16));
    assert_eq!(shard.op(1, merge("a", "[]")).status(), OpStatus::InvalidMerge);
    let large = format!(r#"{{"y":"{}"}}"#, "y".repeat((1 << 20) - 10));
    assert_eq!(shard.op(1, merge("a", &large)).status(), OpStatus::TooLarge);
    assert_eq!(shard.op(1, put("a", &format!("{large}        "))).status(), OpStatus::TooLarge);
    assert_eq!(shard.read("a", 1).unwrap(), r#"{"x":2,"y":3}"#);
    let deleted = shard.op(1, delete("a"));
    assert_eq!((deleted.status(), deleted.version), (OpStatus::Deleted, 0));
    assert_eq!(shard.op(1, delete("a")).status(), OpStatus::NotFound);
    assert_eq!(shard.op(1, merge("a", "{}")).status(), OpStatus::NotFound);
    let absent = shard.op(1, check("a"));
    assert_eq!((absent.status(), absent.version), (OpStatus::Checked, 0));
    assert!(shard.op(1, put("a", "{}")).version > 3 << 16, "a version never comes back");
}

#[test]
fn preconditions_hold_or_name_what_stands() {
    type Set = fn(&mut wire::Precondition);
    let absent: Set = |p| p.if_absent = true;
    let present: Set = |p| p.if_present = true;
    let matching: Set = |p| p.if_match = vec![9, 1 << 16];
    let other: Set = |p| p.if_match = vec![9];
    let none_of: Set = |p| p.if_none_match = vec![1 << 16];
    let none_other: Set = |p| p.if_none_match = vec![9];
    let (exists, failed, missing) = (OpStatus::Exists, OpStatus::PreconditionFailed, OpStatus::NotFound);
    let (created, replaced, checked) = (OpStatus::Created, OpStatus::Replaced, OpStatus::Checked);
    let (merged, deleted) = (OpStatus::Merged, OpStatus::Deleted);
    // On a document that stands at version 1 << 16, then on none: put, check, merge, delete.
    let rows: [(&str, Set, [OpStatus; 8]); 6] = [
        ("absent", absent, [exists, exists, exists, exists, created, checked, missing, missing]),
        ("present", present, [replaced, checked, merged, deleted, failed, failed, missing, missing]),
        ("match", matching, [replaced, checked, merged, deleted, failed, failed, missing, missing]),
        ("other", other, [failed, failed, failed, failed, failed, failed, missing, missing]),
        ("none of", none_of, [failed, failed, failed, failed, created, checked, missing, missing]),
        ("none other", none_other, [replaced, checked, merged, deleted, created, checked, missing, missing]),
    ];
    for (name, set, expected) in rows {
        for (column, expected) in expected.into_iter().enumerate() {
            let mut shard = Shard::default();
            if column < 4 {
                shard.op(1, put("a", "{}"));
            }
            let op = [put("a", "{}"), check("a"), merge("a", "{}"), delete("a")][column % 4].clone();
            let reply = shard.op(1, given(op, set));
            assert_eq!(reply.status(), expected, "{name}, column {column}");
            if matches!(expected, OpStatus::Exists | OpStatus::PreconditionFailed) {
                assert_eq!(reply.version, if column < 4 { 1 << 16 } else { 0 }, "{name}, column {column}");
            }
        }
    }
}

#[test]
fn a_unit_is_applied_whole_or_not_at_all() {
    let mut shard = Shard::default();
    shard.op(1, ttl(put("old", "{}"), 500));
    let before = dump(&shard.view);
    let failing = vec![put("a", "{}"), delete("old"), merge("nobody", "{}"), put("b", "{}")];
    let reply = shard.apply(command(1, vec![unit(failing)]));
    let aborted = OpStatus::Aborted;
    assert_eq!(statuses(&reply.units[0]), [aborted, aborted, OpStatus::NotFound, aborted]);
    assert_eq!(dump(&shard.view), before);
    // Operations of a unit see each other; units of a command are independent.
    let chain = vec![put("a", r#"{"n":1}"#), merge("a", r#"{"m":2}"#), delete("a"), put("a", r#"{"n":3}"#)];
    let reply =
        shard.apply(command(1, vec![unit(chain), unit(vec![delete("nobody")]), unit(vec![check("a")])]));
    let done = [OpStatus::Created, OpStatus::Merged, OpStatus::Deleted, OpStatus::Created];
    assert_eq!(statuses(&reply.units[0]), done);
    assert_eq!(statuses(&reply.units[1]), [OpStatus::NotFound]);
    assert_eq!(reply.units[2].ops[0].version, (shard.index << 16) | 3, "positions count over all units");
    assert_eq!(shard.read("a", 1).unwrap(), r#"{"n":3}"#);
}

#[test]
fn versions_of_one_command_end_where_their_bits_end() {
    let mut shard = Shard::default();
    let last = 1 << 16;
    let reply = shard.apply(command(1, vec![unit(vec![check("a"); last]), unit(vec![put("a", "{}")])]));
    assert_eq!(statuses(&reply.units[1]), [OpStatus::Unspecified]);
    assert_eq!(shard.read("a", 1), None);
}

#[test]
fn deadlines_follow_the_stamp() {
    let mut shard = Shard::default();
    assert_eq!(shard.op(1000, ttl(put("a", "{}"), 50)).expires_ms, Some(1050));
    assert_eq!(shard.op(1000, merge("a", r#"{"x":1}"#)).expires_ms, Some(1050), "a merge keeps it");
    assert_eq!(
        shard.op(900, ttl(merge("a", "{}"), 70)).expires_ms,
        Some(1070),
        "time does not run backwards"
    );
    assert_eq!(shard.op(1000, put("a", "{}")).expires_ms, None, "a put clears it");
    shard.op(1000, ttl(put("a", "{}"), 50));
    assert_eq!(shard.op(1049, check("a")).version, 5 << 16);
    assert_eq!(shard.op(1050, check("a")).version, 0, "gone when its deadline is reached");
    assert_eq!(shard.op(1050, delete("a")).status(), OpStatus::NotFound);
    assert_eq!(shard.op(1050, given(put("a", "{}"), |p| p.if_absent = true)).status(), OpStatus::Created);
    assert_eq!(shard.op(u64::MAX, ttl(put("b", "{}"), 50)).expires_ms, Some(u64::MAX));
}

#[test]
fn a_sweep_removes_what_has_expired_and_nothing_else() {
    let mut shard = Shard::default();
    for id in ["a", "b", "c"] {
        shard.op(100, ttl(put(id, "{}"), 10));
    }
    shard.op(100, ttl(put("d", "{}"), 11));
    shard.op(100, put("e", "{}"));
    shard.apply(sweep(110, wire::Sweep { expire_max: 2, ..KEEP_KEYS }));
    assert_eq!(shard.header().documents, 3);
    shard.apply(sweep(110, KEEP_KEYS));
    assert_eq!(shard.header().documents, 2);
    assert!(shard.read("d", 0).is_some() && shard.read("e", 0).is_some());
    // An entry that points to a document with another deadline goes alone.
    shard.view.write(Batch {
        changes: vec![(keys::expiry(5, &super::super::document_key(1, "e", None)), Some(Bytes::new()))],
    });
    shard.apply(sweep(110, KEEP_KEYS));
    assert!(shard.read("e", 0).is_some());
    assert_eq!(dump(&shard.view).iter().filter(|(key, _)| key[0] == keys::EXPIRY).count(), 1);
}

#[test]
fn an_idempotency_key_gets_its_first_outcome_again() {
    let mut shard = Shard::default();
    let create = || given(put("a", "{}"), |p| p.if_absent = true);
    let first = shard.apply(command(1, vec![with_key(vec![create()], "k", 1)])).units.remove(0);
    shard.op(1, put("a", r#"{"later":1}"#));
    let again = shard.apply(command(1, vec![with_key(vec![create()], "k", 1)])).units.remove(0);
    assert_eq!(again, wire::UnitReply { replayed: true, ..first });
    assert_eq!(shard.read("a", 1).unwrap(), r#"{"later":1}"#);
    let other = shard.apply(command(1, vec![with_key(vec![create(), create()], "k", 2)])).units.remove(0);
    assert_eq!(statuses(&other), [OpStatus::KeyReused; 2]);
    // A failure is an outcome too.
    shard.apply(command(1, vec![with_key(vec![create()], "k2", 1)]));
    shard.op(1, delete("a"));
    let failed = shard.apply(command(1, vec![with_key(vec![create()], "k2", 1)])).units.remove(0);
    assert_eq!((statuses(&failed)[0], failed.replayed), (OpStatus::Exists, true));
    // Within one command, and by position.
    let mut units = vec![with_key(vec![put("x", "{}")], "k3", 1); 3];
    units[2].idempotency.as_mut().unwrap().position = 1;
    let reply = shard.apply(command(1, units));
    assert_eq!(reply.units.iter().map(|unit| unit.replayed).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn a_claim_changes_no_document_and_keeps_the_first_note() {
    let mut shard = Shard::default();
    shard.op(1, put("k", "{}"));
    let before = shard.header();
    let claim = |fingerprint, note: &'static str| {
        let note = Some(Bytes::from_static(note.as_bytes()));
        let key = wire::Idempotency { key: "k".to_owned(), position: 0, fingerprint, note };
        // Of a collection that has such a document, and of one that has none.
        [1, 2].map(|collection| command(1, vec![idempotency::claim(collection, key.clone())]))
    };
    let [there, absent] = claim(1, "first");
    let first = shard.apply(there).units.remove(0);
    assert_eq!((statuses(&first)[0], first.replayed), (OpStatus::Checked, false));
    assert_eq!(first.note.as_deref(), Some(&b"first"[..]));
    let bytes = shard.header().idempotency_bytes;
    let [_, again] = claim(1, "second");
    let again = shard.apply(again).units.remove(0);
    assert_eq!(again, wire::UnitReply { replayed: true, ..first });
    let [other, _] = claim(2, "third");
    let other = shard.apply(other).units.remove(0);
    assert_eq!((statuses(&other)[0], other.note), (OpStatus::KeyReused, None));
    assert_eq!(shard.header().documents, before.documents);
    assert_eq!(shard.read("k", 1).unwrap(), "{}");

    let mut empty = Shard::default();
    let reply = empty.apply(absent).units.remove(0);
    assert_eq!((statuses(&reply)[0], reply.ops[0].version), (OpStatus::Checked, 0));
    let noted = empty.header().idempotency_bytes;
    let mut bare = Shard::default();
    let [_, mut without] = claim(1, "first");
    without.units[0].idempotency.as_mut().unwrap().note = None;
    bare.apply(without);
    assert!(noted > bare.header().idempotency_bytes && bytes > 0, "the note counts");
}

#[test]
fn a_note_is_bounded() {
    let note = |bytes: usize| {
        let mut unit = with_key(vec![put("a", "{}")], "k", 1);
        unit.idempotency.as_mut().unwrap().note = Some(vec![b'n'; bytes].into());
        validate(&command(1, vec![unit]))
    };
    assert!(note(64).is_ok());
    assert!(note(65).unwrap_err().contains("note"));
}

#[test]
fn idempotency_records_go_by_age_and_by_bytes() {
    let mut shard = Shard::default();
    for (stamp_ms, key) in [(10, "k1"), (20, "k2"), (30, "k3"), (40, "k4")] {
        shard.apply(command(stamp_ms, vec![with_key(vec![put("a", "{}")], key, 1)]));
    }
    let bytes = shard.header().idempotency_bytes;
    shard.apply(sweep(50, wire::Sweep { keys_before_ms: 20, ..KEEP_KEYS }));
    assert_eq!(shard.header().idempotency_records, 3);
    shard.apply(sweep(50, wire::Sweep { keys_bytes_max: bytes / 2, ..KEEP_KEYS }));
    assert_eq!(shard.header().idempotency_records, 2);
    let reply = shard.apply(command(50, vec![with_key(vec![], "k2", 1), with_key(vec![], "k3", 1)]));
    assert_eq!(
        reply.units.iter().map(|unit| unit.replayed).collect::<Vec<_>>(),
        [false, true],
        "the oldest go first"
    );
}

#[test]
fn a_large_sweep_is_done_in_steps() {
    let mut shard = Shard::default();
    for _ in 0..11 {
        let units = (0..1000_u32).map(|unit| {
            let mut unit_of = with_key(vec![], &format!("{}-{unit}", shard.index), 1);
            unit_of.idempotency.as_mut().unwrap().position = unit;
            unit_of
        });
        let units = units.collect();
        shard.apply(command(1, units));
    }
    shard.apply(sweep(2, wire::Sweep { keys_before_ms: 2, ..KEEP_KEYS }));
    assert_eq!(shard.header().idempotency_records, 1000);
    shard.apply(sweep(2, wire::Sweep { keys_before_ms: 2, ..KEEP_KEYS }));
    assert_eq!((shard.header().idempotency_records, shard.header().idempotency_bytes), (0, 0));
}

#[test]
fn a_session_answers_what_it_has_applied() {
    let mut shard = Shard::default();
    shard.op(1, put("a", "{}"));
    let body = format!(r#"{{"x":"{}"}}"#, "x".repeat(1000));
    let first = shard.apply(in_session(1, 0, vec![merge("a", &body)]));
    shard.apply(in_session(2, 0, vec![delete("a")]));
    let mut again = shard.apply(in_session(1, 0, vec![merge("a", &body)]));
    assert!(again.units[0].replayed);
    again.units[0].replayed = false;
    assert_eq!(again, first, "with the merged document");
    assert_eq!(shard.read("a", 1), None);
    // Acknowledged: forgotten, and still not applied.
    shard.apply(in_session(3, 2, vec![put("b", "{}")]));
    let stale = shard.apply(in_session(2, 0, vec![put("a", "{}")]));
    assert_eq!(stale, wire::CommandReply { units: vec![], stale_duplicate: true });
    assert_eq!(shard.read("a", 1), None);
}

#[test]
fn what_a_session_has_acknowledged_is_given_back() {
    let mut shard = Shard::default();
    shard.op(1, put("a", "{}"));
    let body = format!(r#"{{"x":"{}"}}"#, "x".repeat(1000));
    for sequence in 1..=640 {
        shard.apply(in_session(sequence, sequence.saturating_sub(5), vec![merge("a", &body)]));
    }
    let count = |prefix| dump(&shard.view).iter().filter(|(key, _)| key[0] == prefix).count();
    assert_eq!(count(keys::SESSION_PAGE), 2);
    assert!(count(keys::SESSION_REPLY) <= 70);
    shard.apply(in_session(SESSION_SPAN_MAX + 1000, 0, vec![]));
    let count = |prefix| dump(&shard.view).iter().filter(|(key, _)| key[0] == prefix).count();
    assert_eq!((count(keys::SESSION_PAGE), count(keys::SESSION_REPLY)), (1, 0), "the span is bounded");
    assert!(shard.apply(in_session(999, 0, vec![])).stale_duplicate);
    shard.apply(sweep(10, wire::Sweep { sessions_before_ms: 1, ..KEEP_KEYS }));
    assert_eq!(shard.header().sessions, 1, "last seen at 1, not before it");
    shard.apply(sweep(10, wire::Sweep { sessions_before_ms: 2, ..KEEP_KEYS }));
    let left: Vec<u8> = dump(&shard.view).iter().map(|(key, _)| key[0]).collect();
    assert_eq!(left, [keys::DOCUMENT, keys::HEADER[0]]);
    assert_eq!(shard.header().sessions, 0);
}

#[test]
fn a_sweep_is_due_when_it_would_remove_something() {
    let limits = SweepLimits {
        expire_max: 10,
        keys_bytes_max: 500,
        keys_retention: Duration::from_millis(100),
        sessions_retention: Duration::from_millis(50),
    };
    let mut shard = Shard::default();
    let due = |shard: &Shard, now_ms| sweep_due(&shard.view, &shard.header(), now_ms, limits).unwrap();
    assert_eq!(due(&shard, u64::MAX), None);
    shard.op(1000, ttl(put("a", "{}"), 10));
    assert_eq!(due(&shard, 1009), None);
    shard.apply(sweep(1010, due(&shard, 1010).unwrap()));
    assert_eq!(due(&shard, 1010), None);
    shard.apply(wire::Command { stamp_ms: 1010, ..in_session(1, 0, vec![]) });
    assert_eq!(due(&shard, 1060), None);
    shard.apply(sweep(1061, due(&shard, 1061).unwrap()));
    assert_eq!(due(&shard, 1061), None);
    shard.apply(command(1061, vec![with_key(vec![], "k", 1)]));
    assert_eq!(due(&shard, 1161), None);
    shard.apply(sweep(1162, due(&shard, 1162).unwrap()));
    assert_eq!(due(&shard, 5000), None);
    let many = (0..20).map(|key| with_key(vec![], &format!("key-{key}"), 1)).collect();
    shard.apply(command(1162, many));
    shard.apply(sweep(1162, due(&shard, 0).unwrap()));
    assert_eq!(due(&shard, 0), None);
    assert!(shard.header().idempotency_bytes <= 500 && shard.header().idempotency_records > 0);
}

#[test]
fn what_breaks_the_contract_is_not_proposed() {
    let good = command(1, vec![unit(vec![ttl(put("a", r#"{"id":"a"}"#), 1)])]);
    assert_eq!(validate(&good), Ok(()));
    let refused = |what: &str, op: wire::Op| {
        let reason = validate(&command(1, vec![unit(vec![op])])).unwrap_err();
        assert!(reason.contains(what), "{reason}");
    };
    refused("id is empty", put("", "{}"));
    refused("id: 257 bytes", put(&"x".repeat(257), "{}"));
    refused("sort key is empty", wire::Op { sort: Some(String::new()), ..put("a", "{}") });
    refused("sort key: 1025", wire::Op { sort: Some("x".repeat(1025)), ..put("a", "{}") });
    refused("time to live", ttl(put("a", "{}"), 0));
    refused("time to live", ttl(put("a", "{}"), u64::MAX));
    refused("must be a JSON object", put("a", "[]"));
    refused("flags", put("a", r#"{"id":"a"}"#).into_wrong_flags());
    refused("names", put("a", r#"{"id":"b"}"#));
    refused("no action", wire::Op { action: None, ..put("a", "{}") });
    refused("not 101", given(put("a", "{}"), |p| p.if_match = vec![1; 101]));
    let refused = |what: &str, command: wire::Command| {
        let reason = validate(&command).unwrap_err();
        assert!(reason.contains(what), "{reason}");
    };
    refused("units", command(1, vec![]));
    refused("operations, not 0", command(1, vec![unit(vec![])]));
    refused("operations, not 101", command(1, vec![unit(vec![check("a"); 101])]));
    refused("sweeps", sweep(1, KEEP_KEYS));
    refused("acknowledged", in_session(1, 1, vec![check("a")]));
    refused("acknowledged", in_session(0, 0, vec![check("a")]));
    refused("key is empty", command(1, vec![with_key(vec![check("a")], "", 1)]));
    refused("key: 257", command(1, vec![with_key(vec![check("a")], &"k".repeat(257), 1)]));
    let large = merge("a", &format!(r#"{{"x":"{}"}}"#, "x".repeat(1 << 19)));
    refused("together", command(1, vec![unit(vec![large; 17])]));
}

trait WrongFlags {
    fn into_wrong_flags(self) -> wire::Op;
}

impl WrongFlags for wire::Op {
    fn into_wrong_flags(mut self) -> wire::Op {
        if let Some(Action::Put(put)) = &mut self.action {
            put.flags ^= 1;
        }
        self
    }
}

#[test]
fn damage_is_an_error_and_not_a_panic() {
    use bytes::BufMut as _;
    let key = super::super::document_key(1, "a", None);
    for (damaged, command) in [
        (key.clone(), command(1, vec![unit(vec![check("a")])])),
        (keys::idempotency("k", 0), command(1, vec![with_key(vec![], "k", 1)])),
        (keys::session(7), in_session(1, 0, vec![])),
        (keys::expiry(0, b"?"), sweep(1, KEEP_KEYS)),
    ] {
        let view = MemoryView::default();
        let mut garbage = bytes::BytesMut::new();
        garbage.put_bytes(0xff, 12);
        view.write(Batch { changes: vec![(damaged.clone(), Some(garbage.freeze()))] });
        let outcome = begin(&view, Header::default()).apply(1, &command);
        // An index entry of a document that does not exist only goes away.
        assert_eq!(outcome.is_err(), damaged[0] != keys::EXPIRY);
    }
    let view = MemoryView::default();
    view.write(Batch {
        changes: vec![(Bytes::from_static(&keys::HEADER), Some(Bytes::from_static(b"\xff")))],
    });
    assert!(load_header(&view).is_err());
}
