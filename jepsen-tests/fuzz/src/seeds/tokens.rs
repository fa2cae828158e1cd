//! Tokens, tags and headers as they are given out.

use borough_proto::ShardId;
use borough_proto::document::etag;
use borough_proto::session::Session;
use borough_router::fuzzing::Place;

use super::Seed;
use crate::input::Output;

pub fn seeds() -> Vec<Seed> {
    let last = Some(("a/b".to_owned(), Some("2026-01-01".to_owned())));
    let page = Place { hash: 1 << 60, last }.encode(7);
    let inside = [&[1][..], &[7; 8], &[0, 1], b"a", &[0xff, 0xff]].concat();
    let mut session = Session::default();
    session.observe(ShardId(0), 300);
    session.observe(ShardId(70), u64::MAX);
    let place =
        Output::default().byte(2).number(9).byte(3).byte(3).bytes(b"id").byte(200).bytes(b"sort").number(4);
    let text = |kind: u8, text: &str| Output::default().byte(kind).rest(text.as_bytes()).0;
    vec![
        ("page", text(0, &page)),
        ("page-inside", Output::default().byte(1).rest(&inside).0),
        ("page-start-inside", Output::default().byte(1).rest(&[1, 0, 0, 0, 0, 0, 0, 0, 9]).0),
        ("page-flipped", Output(place.0.clone()).byte(3).0),
        ("page-cut", Output(place.0.clone()).byte(0).0),
        ("page-grown", place.byte(1).bytes(b"AA").0),
        ("session", text(3, &session.encode())),
        ("session-everything", text(3, "Ag")),
        (
            "session-seen",
            Output::default().byte(4).number(1).number(5).number(1).number(3).number(2).number(1 << 40).0,
        ),
        ("etag", text(5, &etag(0x1f))),
        ("etags", text(5, "W/\"1f\", \"20\",\"a,b\"")),
        ("cache-control", text(5, "no-cache, max-stale=5")),
        ("ttl", text(5, "3600.5s")),
        ("target", text(5, "users,a/b,2026-01-01")),
    ]
}
