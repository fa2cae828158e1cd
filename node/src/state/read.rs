//! Reads: one document, or a page of a collection or partition in key order.
//!
//! Time comes from the caller, who never lets it run backwards, so a document that was seen expired stays so.

use std::ops::Bound;

use borough_proto::{limits, wire};
use bytes::Bytes;

use super::apply::bytes_u64;
use super::record::{Record, decode_document};
use super::{View, keys};
use crate::store::{KeyRange, StoreError};

/// The document, if it exists and has not expired at `now_ms`.
///
/// # Errors
/// [`StoreError`] of the engine, or `Damaged` when the record cannot be read.
pub fn read<V: View + ?Sized>(
    view: &V,
    key: &wire::DocumentKey,
    now_ms: u64,
) -> Result<Option<wire::Document>, StoreError> {
    let Some(record) = view.get(&keys::document_key(key.collection, &key.id, key.sort.as_deref()))? else {
        return Ok(None);
    };
    let Record { flags, version, expires_ms, body } = match Record::decode(&record)? {
        record if record.is_visible(now_ms) => record,
        _ => return Ok(None),
    };
    Ok(Some(wire::Document { id: key.id.clone(), sort: key.sort.clone(), version, expires_ms, flags, body }))
}

/// A page of documents, and whether there is a visible one behind it. Limits of 0 mean the contract's, larger ones are cut to it.
///
/// # Errors
/// [`StoreError`] of the engine, or `Damaged` when a record cannot be read.
pub fn scan<V: View + ?Sized>(
    view: &V,
    scan: &wire::Scan,
    now_ms: u64,
) -> Result<(Vec<wire::Document>, bool), StoreError> {
    let range = range(scan);
    if is_empty(&range) {
        return Ok((Vec::new(), false));
    }
    let limit =
        if scan.limit == 0 { limits::PAGE_SIZE_DEFAULT } else { scan.limit.min(limits::PAGE_SIZE_MAX) };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let bytes_max = if scan.limit_bytes == 0 {
        limits::PAGE_BYTES_MAX
    } else {
        scan.limit_bytes.min(limits::PAGE_BYTES_MAX)
    };
    let mut items = Vec::new();
    let mut bytes = 0_u64;
    for entry in view.scan(range, scan.reverse) {
        let (key, record) = entry?;
        if !Record::decode(&record)?.is_visible(now_ms) {
            continue;
        }
        if items.len() == limit || (!items.is_empty() && bytes > u64::from(bytes_max)) {
            return Ok((items, true));
        }
        let document = decode_document(&key, &record)?;
        bytes = bytes.saturating_add(bytes_u64(document.body.len()));
        items.push(document);
    }
    Ok((items, false))
}

/// The keys that `scan` asks for.
fn range(scan: &wire::Scan) -> KeyRange {
    let (mut from, mut to) = match &scan.partition {
        None => keys::prefixed(&keys::collection(scan.collection)),
        Some(id) => {
            let bound = |sort: &String| keys::document_key(scan.collection, id, Some(sort));
            let (first, behind) = keys::prefixed(&keys::partition(scan.collection, id, 0));
            (
                scan.start.as_ref().map_or(first, |start| Bound::Included(bound(start))),
                scan.end.as_ref().map_or(behind, |end| Bound::Excluded(bound(end))),
            )
        }
    };
    if let Some(after) = &scan.after {
        let after = keys::document_key(scan.collection, &after.id, after.sort.as_deref());
        // A continuation never widens the range it continues.
        if scan.reverse {
            if !excluded_by(&to, &after, false) {
                to = Bound::Excluded(after);
            }
        } else if !excluded_by(&from, &after, true) {
            from = Bound::Excluded(after);
        }
    }
    (from, to)
}

/// Whether `key` lies outside of the range that begins (or ends) at `bound`.
fn excluded_by(bound: &Bound<Bytes>, key: &Bytes, begins: bool) -> bool {
    match bound {
        Bound::Included(edge) => {
            if begins {
                key < edge
            } else {
                key > edge
            }
        }
        Bound::Excluded(edge) => {
            if begins {
                key <= edge
            } else {
                key >= edge
            }
        }
        Bound::Unbounded => false,
    }
}

/// Inverted ranges come from callers; engines need not accept them.
fn is_empty((from, to): &KeyRange) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
            from >= to
        }
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}
