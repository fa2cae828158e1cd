//! Scans and point reads: order, ranges, continuation, limits, hidden documents.

use super::*;
use crate::state::{Visibility, scan, visibility};

const NAMES: [(&str, &str); 7] =
    [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "22"), ("ab", "1"), ("zz", "ü")];

fn sorted_shard() -> Shard {
    let mut shard = Shard::default();
    for (id, sort) in NAMES {
        for collection in [1, 2, 3] {
            let op = wire::Op { collection, sort: Some(sort.to_owned()), ..put(id, "{}") };
            shard.op(1, op);
        }
    }
    shard
}

fn names(shard: &Shard, asked: &wire::Scan) -> (Vec<(String, String)>, bool) {
    let (items, more) = scan(&shard.view, asked, 1).unwrap();
    (items.into_iter().map(|item| (item.id, item.sort.unwrap_or_default())).collect(), more)
}

fn partition(id: &str) -> wire::Scan {
    wire::Scan { collection: 2, partition: Some(id.to_owned()), ..Default::default() }
}

fn sorts(shard: &Shard, asked: &wire::Scan) -> Vec<String> {
    names(shard, asked).0.into_iter().map(|(_, sort)| sort).collect()
}

#[test]
fn a_partition_scan_keeps_to_its_bounds() {
    let shard = sorted_shard();
    assert_eq!(sorts(&shard, &partition("a")), ["1", "2", "3"]);
    assert_eq!(sorts(&shard, &partition("nobody")), [""; 0]);
    let from = wire::Scan { start: Some("2".to_owned()), ..partition("a") };
    assert_eq!(sorts(&shard, &from), ["2", "3"]);
    let within = wire::Scan { end: Some("3".to_owned()), ..from.clone() };
    assert_eq!(sorts(&shard, &within), ["2"]);
    assert_eq!(sorts(&shard, &wire::Scan { reverse: true, ..partition("a") }), ["3", "2", "1"]);
    let inverted = wire::Scan { start: Some("3".to_owned()), end: Some("2".to_owned()), ..partition("a") };
    assert_eq!(sorts(&shard, &inverted), [""; 0]);
}

#[test]
fn pages_follow_each_other_without_gap_or_overlap() {
    let shard = sorted_shard();
    let asked = wire::Scan { collection: 2, ..Default::default() };
    let (all, more) = names(&shard, &asked);
    assert_eq!((all.len(), more), (NAMES.len(), false));
    for (reverse, limit) in [(false, 1), (false, 3), (true, 2), (true, 7)] {
        let mut asked = wire::Scan { reverse, limit, ..asked.clone() };
        let mut paged = Vec::new();
        loop {
            let (page, more) = names(&shard, &asked);
            assert!(page.len() <= limit as usize);
            paged.extend(page);
            if !more {
                break;
            }
            let (id, sort) = paged.last().unwrap().clone();
            asked.after = Some(wire::DocumentKey { collection: 2, id, sort: Some(sort) });
        }
        if reverse {
            paged.reverse();
        }
        assert_eq!(paged, all);
    }
}

#[test]
fn a_continuation_never_widens_the_range() {
    let shard = sorted_shard();
    let after = |sort: &str| {
        Some(wire::DocumentKey { collection: 2, id: "a".to_owned(), sort: Some(sort.to_owned()) })
    };
    let asked = wire::Scan { start: Some("2".to_owned()), after: after("0"), ..partition("a") };
    assert_eq!(sorts(&shard, &asked), ["2", "3"]);
    assert_eq!(sorts(&shard, &wire::Scan { after: after("9"), ..asked.clone() }), [""; 0]);
    let reverse =
        wire::Scan { end: Some("3".to_owned()), after: after("9"), reverse: true, ..partition("a") };
    assert_eq!(sorts(&shard, &reverse), ["2", "1"]);
}

#[test]
fn a_page_ends_after_the_item_that_passes_its_bytes() {
    let shard = sorted_shard();
    let (page, more) = names(&shard, &wire::Scan { limit_bytes: 3, ..partition("a") });
    assert_eq!((page.len(), more), (2, true));
}

#[test]
fn expired_documents_are_hidden_from_their_deadline_on() {
    let mut shard = Shard::default();
    shard.op(100, ttl(put("a", "{}"), 50));
    shard.op(100, put("b", "{}"));
    let scanned = |now_ms| {
        scan(&shard.view, &wire::Scan { collection: 1, ..Default::default() }, now_ms).unwrap().0.len()
    };
    assert_eq!((shard.read("a", 149).is_some(), scanned(149)), (true, 2));
    assert_eq!((shard.read("a", 150).is_some(), scanned(150)), (false, 1));
    assert_eq!(visibility(Some(150), 149), Visibility::Visible);
    assert_eq!(visibility(Some(150), 150), Visibility::Expired);
    assert_eq!(visibility(None, u64::MAX), Visibility::Visible);
}
