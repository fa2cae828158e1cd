//! Properties of whole logs: same log, same bytes (I5); nothing is applied twice; counters and indexes are exact.

use super::*;
use crate::state::{Header, keys, validate};

/// Applies `log` in groups whose sizes are taken from `sizes` in turn, each on what the one before it left in memory.
fn apply_in_groups(
    view: &MemoryView,
    log: &[(u64, wire::Command)],
    sizes: &[usize],
) -> Vec<wire::CommandReply> {
    let mut sizes = sizes.iter().copied().cycle();
    let (mut rest, mut replies) = (log, Vec::new());
    let mut sessions = Sessions::default();
    while !rest.is_empty() {
        let (group, behind) = rest.split_at(sizes.next().unwrap_or(1).clamp(1, rest.len()));
        replies.extend(apply_next(view, &|batch| view.write(batch), &mut sessions, group));
        rest = behind;
    }
    replies
}

/// The header as it follows from everything else; panics when an index and what it points to disagree.
fn recount(view: &MemoryView) -> Header {
    let all = dump(view);
    let of = |prefix: u8| all.iter().filter(move |(key, _)| key[0] == prefix);
    let mut header = Header { time_ms: load_header(view).unwrap().time_ms, ..Header::default() };
    let mut expected_index = Vec::new();
    for (key, record) in of(keys::DOCUMENT) {
        let document = super::super::decode_document(key, record).unwrap();
        header.documents += 1;
        header.document_bytes +=
            (document.id.len() + document.sort.map_or(0, |sort| sort.len()) + document.body.len()) as u64;
        expected_index.extend(document.expires_ms.map(|expires_ms| keys::expiry(expires_ms, key)));
    }
    expected_index.sort();
    assert!(of(keys::EXPIRY).map(|(key, _)| key).eq(&expected_index), "expiry index is exact");
    for (age, key) in of(keys::IDEMPOTENCY_AGE) {
        let value = view.get(key).unwrap().expect("the age index points to a record");
        header.idempotency_records += 1;
        header.idempotency_bytes += (age.len() + 2 * key.len() + value.len()) as u64;
    }
    assert_eq!(of(keys::IDEMPOTENCY).count() as u64, header.idempotency_records);
    header.sessions = of(keys::SESSION).count() as u64;
    for (key, _) in of(keys::SESSION_PAGE).chain(of(keys::SESSION_REPLY)) {
        assert!(
            view.get(&[&[keys::SESSION], &key[1..9]].concat()).unwrap().is_some(),
            "pages have a session"
        );
    }
    header
}

proptest! {
    #[test]
    fn same_log_same_bytes(
        log in log_strategy(60),
        sizes in proptest::collection::vec(1..9_usize, 1..6),
        cut in any::<Index>(),
    ) {
        let log = numbered(&log);
        let (one_by_one, grouped, copied) = (MemoryView::default(), MemoryView::default(), MemoryView::default());
        // Each on its own, as after a restart.
        let replies: Vec<_> = log
            .iter()
            .flat_map(|entry| apply_group(&one_by_one, &|batch| one_by_one.write(batch), std::slice::from_ref(entry)))
            .collect();
        prop_assert_eq!(&apply_in_groups(&grouped, &log, &sizes), &replies);
        // A snapshot in the middle, and the rest of the log on top of it.
        let (before, after) = log.split_at(cut.index(log.len() + 1));
        let first = MemoryView::default();
        apply_in_groups(&first, before, &sizes);
        copied.write(Batch { changes: dump(&first).into_iter().map(|(key, value)| (key, Some(value))).collect() });
        apply_in_groups(&copied, after, &[usize::MAX]);
        prop_assert_eq!(dump(&grouped), dump(&one_by_one));
        prop_assert_eq!(dump(&copied), dump(&one_by_one));
    }

    #[test]
    fn counters_and_indexes_are_exact(log in log_strategy(60), sizes in proptest::collection::vec(1..9_usize, 1..6)) {
        let view = MemoryView::default();
        apply_in_groups(&view, &numbered(&log), &sizes);
        prop_assert_eq!(recount(&view), load_header(&view).unwrap());
    }

    #[test]
    fn resending_changes_nothing(
        mut log in log_strategy(40),
        resent in proptest::collection::vec((any::<Index>(), any::<Index>()), 0..40),
    ) {
        // Only what carries a session can be resent, and sessions live longer than any resent command.
        for (sequence, command) in log.iter_mut().enumerate() {
            let id = command.session.map_or(3, |session| session.id);
            let acknowledged = command.session.map_or(0, |session| session.acknowledged);
            let sequence = sequence as u64 + 1;
            command.session = Some(wire::Session { id, sequence, acknowledged: acknowledged.min(sequence - 1) });
            if let Some(sweep) = &mut command.sweep {
                sweep.sessions_before_ms = 0;
            }
        }
        prop_assume!(!log.is_empty());
        let log = numbered(&log);
        let mut with_resent = log.clone();
        for (which, later) in resent {
            let (first, command) = which.get(&log).clone();
            // Anywhere behind its first place, between two others.
            let last = index_of(log.len());
            let index = first + 1 + later.index(usize::try_from(last - first).unwrap()) as u64;
            if !with_resent.iter().any(|(taken, _)| *taken == index) {
                with_resent.push((index, command));
            }
        }
        with_resent.sort_by_key(|(index, _)| *index);
        let (once, again) = (MemoryView::default(), MemoryView::default());
        let first_replies = apply_in_groups(&once, &log, &[3]);
        let replies = apply_in_groups(&again, &with_resent, &[1, 4]);
        let unchanged = |view: &MemoryView| -> Vec<_> {
            // A resent command is a sign of life of its session, nothing else.
            dump(view).into_iter().filter(|(key, _)| key[0] != keys::SESSION).collect()
        };
        prop_assert_eq!(unchanged(&again), unchanged(&once));
        for ((index, command), reply) in with_resent.iter().zip(replies) {
            let place = log.iter().position(|(_, other)| other.session == command.session).unwrap();
            let mut expected = first_replies[place].clone();
            if *index != index_of(place) && !reply.stale_duplicate {
                expected.units.iter_mut().for_each(|unit| unit.replayed = true);
            }
            prop_assert!(reply == expected || (reply.stale_duplicate && *index != index_of(place)));
        }
    }

    #[test]
    fn hostile_commands_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..60),
        index: u64,
        stamp_ms: u64,
        session: (u64, u64, u64),
        ttl_ms: u64,
        sweep: (u32, u64, u64, u64),
    ) {
        use prost::Message as _;
        let mut shard = Shard { index: index >> 1, ..Shard::default() };
        if let Ok(command) = wire::Command::decode(&bytes[..]) {
            let _ = validate(&command);
            shard.apply(command);
        }
        let (id, sequence, acknowledged) = session;
        let (expire_max, keys_before_ms, keys_bytes_max, sessions_before_ms) = sweep;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let ops = vec![ttl(put(&text, "{}"), ttl_ms), ttl(put("a", &text), ttl_ms), merge("a", &text), merge("a", "{}")];
        let hostile = wire::Command {
            stamp_ms,
            session: Some(wire::Session { id, sequence, acknowledged }),
            units: ops.into_iter().map(|op| unit(vec![op])).collect(),
            sweep: Some(wire::Sweep { expire_max, keys_before_ms, keys_bytes_max, sessions_before_ms, collections: Vec::new() }),
        };
        let _ = validate(&hostile);
        shard.apply(hostile.clone());
        shard.apply(hostile);
        prop_assert_eq!(recount(&shard.view), shard.header());
    }
}
