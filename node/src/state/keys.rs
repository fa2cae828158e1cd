//! Keys inside a space: one prefix byte for each kind, numbers big-endian so that bytes sort as numbers do.
//!
//! A document's key orders a shard by (collection, hash of id, id, sort): a collection is contiguous and in
//! hash order, a partition within it is contiguous, its sort keys are in byte order. The id carries its
//! length in front, so that no id's partition lies inside another's.

use std::ops::Bound;

use borough_proto::key::hash_id;
use bytes::{BufMut, Bytes, BytesMut};

use crate::store::KeyRange;

pub(super) const DOCUMENT: u8 = b'd';
pub(super) const EXPIRY: u8 = b'x';
pub(super) const IDEMPOTENCY: u8 = b'i';
pub(super) const IDEMPOTENCY_AGE: u8 = b'j';
pub(super) const SESSION: u8 = b's';
pub(super) const SESSION_PAGE: u8 = b'p';
pub(super) const SESSION_REPLY: u8 = b'o';
pub(super) const HEADER: [u8; 1] = *b"m";

/// Prefix, collection, hash and length before the id of a document key.
const BEFORE_ID: usize = 1 + 4 + 8 + 2;

/// Whether the record under `key` remembers a request that was answered.
pub fn is_memory_of_requests(key: &[u8]) -> bool {
    let kinds = [IDEMPOTENCY, IDEMPOTENCY_AGE, SESSION, SESSION_PAGE, SESSION_REPLY];
    key.first().is_some_and(|kind| kinds.contains(kind))
}

/// The key under which a document is kept. An id is at most 65,535 bytes: apply refuses longer ones, and
/// [`validate`](super::validate()) much shorter ones.
pub fn document_key(collection: u32, id: &str, sort: Option<&str>) -> Bytes {
    let mut key = partition(collection, id, sort.map_or(0, str::len));
    key.put_slice(sort.unwrap_or_default().as_bytes());
    key.freeze()
}

/// The common start of all keys of `id`'s partition, with room for `more` bytes.
pub(super) fn partition(collection: u32, id: &str, more: usize) -> BytesMut {
    let mut key = BytesMut::with_capacity(BEFORE_ID + id.len() + more);
    key.put_u8(DOCUMENT);
    key.put_u32(collection);
    key.put_u64(hash_id(id));
    key.put_u16(u16::try_from(id.len()).unwrap_or(u16::MAX));
    key.put_slice(id.as_bytes());
    key
}

/// The common start of all keys of a collection.
pub(super) fn collection(collection: u32) -> BytesMut {
    let mut key = BytesMut::with_capacity(5);
    key.put_u8(DOCUMENT);
    key.put_u32(collection);
    key
}

/// The id and sort key that a document key names; `None` when it is no document key.
pub(super) fn parse_document_key(key: &[u8]) -> Option<(&str, Option<&str>)> {
    let (head, rest) = key.split_at_checked(BEFORE_ID)?;
    let (&DOCUMENT, &[.., high, low]) = (head.first()?, head) else { return None };
    let (id, sort) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
    let sort = std::str::from_utf8(sort).ok()?;
    Some((std::str::from_utf8(id).ok()?, Some(sort).filter(|sort| !sort.is_empty())))
}

/// The collection of a document key.
pub(super) fn parse_collection(key: &[u8]) -> Option<u32> {
    let (&DOCUMENT, rest) = key.split_first()? else { return None };
    Some(u32::from_be_bytes(*rest.first_chunk::<4>()?))
}

/// Entry of the expiry index.
pub(super) fn expiry(expires_ms: u64, document_key: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(9 + document_key.len());
    key.put_u8(EXPIRY);
    key.put_u64(expires_ms);
    key.put_slice(document_key);
    key.freeze()
}

/// Deadline and document key of an expiry index entry.
pub(super) fn parse_expiry(key: &Bytes) -> Option<(u64, Bytes)> {
    let (&EXPIRY, rest) = key.split_first()? else { return None };
    let (expires_ms, _) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*expires_ms), key.slice(9..)))
}

/// Record of a caller's key. The position comes last and has a fixed width, so keys of any bytes stay distinct.
pub(super) fn idempotency(key: &str, position: u32) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + key.len());
    bytes.put_u8(IDEMPOTENCY);
    bytes.put_slice(key.as_bytes());
    bytes.put_u32(position);
    bytes.freeze()
}

/// Entry of the age index of idempotency records. (index, unit) makes it unique.
pub(super) fn idempotency_age(stamp_ms: u64, index: u64, unit: u32) -> Bytes {
    let mut bytes = BytesMut::with_capacity(21);
    bytes.put_u8(IDEMPOTENCY_AGE);
    bytes.put_u64(stamp_ms);
    bytes.put_u64(index);
    bytes.put_u32(unit);
    bytes.freeze()
}

/// Stamp of an entry of the age index.
pub(super) fn parse_idempotency_age(key: &[u8]) -> Option<u64> {
    let (&IDEMPOTENCY_AGE, rest) = key.split_first()? else { return None };
    Some(u64::from_be_bytes(*rest.first_chunk::<8>()?))
}

pub(super) fn session(id: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(9);
    bytes.put_u8(SESSION);
    bytes.put_u64(id);
    bytes.freeze()
}

pub(super) fn parse_session(key: &[u8]) -> Option<u64> {
    let (&SESSION, rest) = key.split_first()? else { return None };
    Some(u64::from_be_bytes(*rest.first_chunk::<8>()?))
}

pub(super) fn session_page(id: u64, page: u64) -> Bytes {
    pair(SESSION_PAGE, id, page)
}

pub(super) fn session_reply(id: u64, sequence: u64) -> Bytes {
    pair(SESSION_REPLY, id, sequence)
}

fn pair(prefix: u8, first: u64, second: u64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(17);
    bytes.put_u8(prefix);
    bytes.put_u64(first);
    bytes.put_u64(second);
    bytes.freeze()
}

/// All keys that start with `prefix`.
pub(super) fn prefixed(prefix: &[u8]) -> KeyRange {
    (Bound::Included(Bytes::copy_from_slice(prefix)), after_prefix(prefix))
}

/// The first key behind all that start with `prefix`.
pub(super) fn after_prefix(prefix: &[u8]) -> Bound<Bytes> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return Bound::Excluded(Bytes::from(end));
        }
    }
    Bound::Unbounded
}

/// All entries of the index `prefix` with a number of at most `until`.
pub(super) fn numbered_until(prefix: u8, until: u64) -> KeyRange {
    let mut last = BytesMut::with_capacity(9);
    last.put_u8(prefix);
    last.put_u64(until);
    (Bound::Included(Bytes::copy_from_slice(&[prefix])), after_prefix(&last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_contiguous_and_sorts_by_bytes() {
        let keys: Vec<Bytes> = [None, Some("a"), Some("a\0"), Some("aa"), Some("b"), Some("ä")]
            .map(|sort| document_key(7, "u", sort))
            .into();
        assert!(keys.is_sorted());
        assert!(keys.iter().all(|key| key.starts_with(&partition(7, "u", 0))));
        assert!(!document_key(7, "ua", None).starts_with(&partition(7, "u", 0)));
        assert!(document_key(7, "z", Some("z")) < document_key(8, "a", None));
    }

    #[test]
    fn keys_parse_back_and_foreign_ones_are_refused() {
        assert_eq!(parse_document_key(&document_key(1, "u", None)), Some(("u", None)));
        assert_eq!(parse_document_key(&document_key(1, "ü", Some("s"))), Some(("ü", Some("s"))));
        let key = document_key(1, "user", Some("s"));
        for end in 0..key.len() - 1 {
            assert_eq!(parse_document_key(&key[..end]), None);
        }
        assert_eq!(parse_document_key(&expiry(1, &key)), None);
        assert_eq!(parse_expiry(&expiry(9, &key)), Some((9, key.clone())));
        assert_eq!(parse_expiry(&key.slice(..5)), None);
        assert_eq!(parse_session(&session(u64::MAX)), Some(u64::MAX));
        assert_eq!(parse_idempotency_age(&idempotency_age(5, 6, 7)), Some(5));
    }

    #[test]
    fn numbered_ranges_include_their_end() {
        let (_, Bound::Excluded(end)) = numbered_until(EXPIRY, 5) else { panic!() };
        assert!(expiry(5, b"zzz") < end && expiry(6, b"") >= end);
        let (_, Bound::Excluded(end)) = numbered_until(EXPIRY, u64::MAX) else { panic!() };
        assert!(expiry(u64::MAX, &[0xff; 9]) < end);
    }
}
