//! Where a listing goes on: an opaque token that survives moves and splits of shards.
//!
//! It names a place in the hash space and the last key given, never a shard or a node. A checksum over it and the query
//! that it belongs to refuses tokens of other listings.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use borough_proto::error::ProblemType;
use borough_proto::limits::{ID_BYTES_MAX, SORT_BYTES_MAX};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::http::refusal::Refusal;

const VERSION: u8 = 1;

/// A place between two documents of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Everything below this hash was given.
    pub hash: u64,
    /// The last document given, if it lies at `hash` or above.
    pub last: Option<(String, Option<String>)>,
}

impl Place {
    pub const START: Self = Self { hash: 0, last: None };

    /// The token; `query` is the fingerprint of the listing it belongs to.
    pub fn encode(&self, query: u64) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.hash.to_be_bytes());
        if let Some((id, sort)) = &self.last {
            put(&mut bytes, Some(id));
            put(&mut bytes, sort.as_deref());
        }
        let check = xxh3_64_with_seed(&bytes, query);
        bytes.extend_from_slice(&check.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token of the listing with that fingerprint.
    ///
    /// # Errors
    /// 400 for any other token.
    pub fn decode(token: &str, query: u64) -> Result<Self, Refusal> {
        read(token, query).ok_or_else(|| {
            let detail = "pageToken is not one of this listing: start again without it, or repeat the first page's parameters";
            Refusal::new(ProblemType::BadPageToken, detail).field("pageToken")
        })
    }
}

fn put(bytes: &mut Vec<u8>, text: Option<&str>) {
    // Lengths are bounded by the limits on ids and sort keys; u16::MAX stands for none.
    let length = text.map_or(u16::MAX, |text| u16::try_from(text.len()).unwrap_or(u16::MAX));
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(text.unwrap_or_default().as_bytes());
}

fn read(token: &str, query: u64) -> Option<Place> {
    if token.len() > 2 * (ID_BYTES_MAX + SORT_BYTES_MAX + 32) {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (payload, check) = bytes.split_last_chunk::<8>()?;
    if xxh3_64_with_seed(payload, query) != u64::from_be_bytes(*check) {
        return None;
    }
    let (&[VERSION], rest) = payload.split_first_chunk::<1>()? else { return None };
    let (hash, mut rest) = rest.split_first_chunk::<8>()?;
    let hash = u64::from_be_bytes(*hash);
    if rest.is_empty() {
        return Some(Place { hash, last: None });
    }
    let id = take(&mut rest)??;
    let sort = take(&mut rest)?;
    rest.is_empty().then_some(Place { hash, last: Some((id, sort)) })
}

fn take(rest: &mut &[u8]) -> Option<Option<String>> {
    let (length, after) = rest.split_first_chunk::<2>()?;
    let length = u16::from_be_bytes(*length);
    if length == u16::MAX {
        *rest = after;
        return Some(None);
    }
    let (text, after) = after.split_at_checked(usize::from(length))?;
    *rest = after;
    String::from_utf8(text.to_vec()).ok().map(Some)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tokens_round_trip_within_their_listing(
            hash: u64, query: u64,
            last in proptest::option::of(("\\PC{1,40}", proptest::option::of("\\PC{0,40}"))),
        ) {
            let place = Place { hash, last };
            let token = place.encode(query);
            prop_assert_eq!(Place::decode(&token, query).ok(), Some(place));
            prop_assert!(Place::decode(&token, query ^ 1).is_err());
        }

        #[test]
        fn foreign_tokens_are_refused(token in "[A-Za-z0-9_-]{0,60}", any in "\\PC{0,40}") {
            prop_assert!(Place::decode(&token, 7).is_err());
            prop_assert!(Place::decode(&any, 7).is_err());
        }
    }
}
