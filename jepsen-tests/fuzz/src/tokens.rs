//! What callers get from one answer and bring with another request: page tokens, session tokens, entity tags, keys. None
//! of them panics its reader, what was made is read back, and one that was changed is not taken for another.
//!
//! | first byte, modulo 6 | the rest is |
//! |---|---|
//! | 0 | a page token |
//! | 1 | the inside of a page token, which gets a checksum that holds |
//! | 2 | a place in a listing, and where its token is changed |
//! | 3 | a session token |
//! | 4 | what a session has seen |
//! | 5 | a header: entity tags, `Cache-Control`, a time to live |

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use borough_proto::ShardId;
use borough_proto::document::{etag, parse_etag};
use borough_proto::http_api::{format_ttl, parse_ttl};
use borough_proto::idempotency::{CLAIM, position_of};
use borough_proto::limits::{BATCH_ITEMS_MAX, ID_BYTES_MAX, SORT_BYTES_MAX};
use borough_proto::session::Session;
use borough_router::fuzzing::{CacheControl, Place, Tags};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::input::Input;

/// Fingerprint of the listing that tokens belong to.
const QUERY: u64 = 7;

/// # Panics
/// When a token breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    match input.byte() % 6 {
        0 => page_token(&String::from_utf8_lossy(input.rest())),
        1 => page_token(&seal(input.rest())),
        2 => place(&mut input),
        3 => session_token(&String::from_utf8_lossy(input.rest())),
        4 => session(&mut input),
        _ => header(&String::from_utf8_lossy(input.rest())),
    }
}

/// A page token of that inside.
pub fn seal(inside: &[u8]) -> String {
    let mut bytes = inside.to_vec();
    bytes.extend_from_slice(&xxh3_64_with_seed(inside, QUERY).to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn page_token(token: &str) {
    if let Ok(place) = Place::decode(token, QUERY) {
        assert_eq!(place.encode(QUERY), token, "a place has one token");
        assert!(Place::decode(token, !QUERY).is_err(), "a token of another listing");
    }
}

fn text(input: &mut Input<'_>, most: usize) -> String {
    let repeated = usize::from(input.byte()).max(1);
    let text = String::from_utf8_lossy(input.bytes()).repeat(repeated);
    let end = (0..=most.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    text.get(..end).unwrap_or_default().to_owned()
}

fn place(input: &mut Input<'_>) {
    let hash = input.number();
    let flags = input.byte();
    let last = (flags & 1 != 0).then(|| {
        let id = text(input, ID_BYTES_MAX);
        (id, (flags & 2 != 0).then(|| text(input, SORT_BYTES_MAX)))
    });
    let place = Place { hash, last };
    let token = place.encode(QUERY);
    assert_eq!(Place::decode(&token, QUERY).ok(), Some(place), "a token is read back");
    // Changed, cut or grown, it is no token any more.
    let at = usize::try_from(input.number()).unwrap_or(usize::MAX) % token.len();
    let mut changed = token.clone().into_bytes();
    match input.byte() {
        0 => changed.truncate(at),
        1 => changed.extend_from_slice(input.bytes()),
        flip => changed.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= flip & 0x7f),
    }
    let changed = String::from_utf8_lossy(&changed).into_owned();
    assert!(
        changed == token || Place::decode(&changed, QUERY).is_err(),
        "{token} changed to {changed} is believed"
    );
}

fn session_token(token: &str) {
    if let Ok(session) = Session::decode(token) {
        assert_eq!(session.encode(), token, "a session has one token");
    }
}

fn session(input: &mut Input<'_>) {
    let mut session = Session::default();
    let mut seen = Vec::new();
    while !input.is_empty() {
        let shard = ShardId(u32::try_from(input.number() & u64::from(u32::MAX)).unwrap_or(0));
        let index = input.number();
        session.observe(shard, index);
        seen.push((shard, index));
    }
    let again = Session::decode(&session.encode());
    assert_eq!(again.as_ref(), Ok(&session), "a token is read back");
    for (shard, index) in seen {
        assert!(session.min_index(shard).is_none_or(|least| least >= index), "{shard} went back");
    }
}

fn header(text: &str) {
    if let Some(version) = parse_etag(text) {
        assert_eq!(etag(version), text.trim(), "a version has one tag");
    }
    if let Some(Tags::List(tags)) = Tags::parse(text) {
        for tag in &tags {
            let weak = if tag.weak { "W/" } else { "" };
            let made = tag.version.map(|version| format!("{weak}{}", etag(version)));
            assert!(made.is_none_or(|made| text.contains(&made)), "{tag:?} of {text:?}");
        }
        let made: Vec<_> =
            tags.iter().filter(|tag| !tag.weak).filter_map(|tag| tag.version).map(etag).collect();
        if made.len() == tags.len() {
            assert_eq!(Tags::parse(&made.join(", ")), Some(Tags::List(tags)));
        }
    }
    let _ = CacheControl::parse(text);
    if let Ok(ttl_ms) = parse_ttl(text) {
        assert_eq!(parse_ttl(&format_ttl(ttl_ms)).ok(), Some(ttl_ms), "{text}");
    }
    let parts: Vec<&str> = text.split(',').collect();
    assert!((u32::try_from(BATCH_ITEMS_MAX).unwrap_or(0)..CLAIM).contains(&position_of(&parts)));
}
