//! Session tokens: which log index of which shards a caller has seen.
//!
//! A token is opaque to callers: base64url of a version byte and varint pairs, in shard order. It is bounded;
//! one that would grow past the bound turns into "everything", which only a linearizable read satisfies.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::encoding::{decode_varint, encode_varint};

use crate::id::ShardId;

const VERSION: u8 = 1;
const VERSION_EVERYTHING: u8 = 2;
/// Most shards named by a token; about 8 bytes each.
pub const SHARDS_MAX: usize = 256;
/// Longest token accepted, in characters.
pub const TOKEN_CHARS_MAX: usize = 8192;

/// What a caller has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    seen: BTreeMap<ShardId, u64>,
    everything: bool,
}

/// A token that this build did not make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a session token")]
pub struct BadToken;

impl Session {
    /// Raises what was seen of `shard` to `index`.
    pub fn observe(&mut self, shard: ShardId, index: u64) {
        if self.everything {
            return;
        }
        let seen = self.seen.entry(shard).or_default();
        *seen = index.max(*seen);
        if self.seen.len() > SHARDS_MAX {
            self.seen.clear();
            self.everything = true;
        }
    }

    /// Raises what was seen to everything that `other` has seen too.
    pub fn merge(&mut self, other: &Self) {
        if other.everything {
            self.seen.clear();
            self.everything = true;
        }
        for (shard, index) in &other.seen {
            self.observe(*shard, *index);
        }
    }

    /// The index of `shard` that a read must include; `None` asks for a linearizable read.
    pub fn min_index(&self, shard: ShardId) -> Option<u64> {
        if self.everything { None } else { Some(self.seen.get(&shard).copied().unwrap_or(0)) }
    }

    /// The token for `Borough-Session`.
    pub fn encode(&self) -> String {
        let mut bytes = vec![if self.everything { VERSION_EVERYTHING } else { VERSION }];
        for (shard, index) in &self.seen {
            encode_varint(u64::from(shard.get()), &mut bytes);
            encode_varint(*index, &mut bytes);
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token.
    ///
    /// # Errors
    /// [`BadToken`] for anything that [`Session::encode`] does not make.
    pub fn decode(token: &str) -> Result<Self, BadToken> {
        if token.len() > TOKEN_CHARS_MAX {
            return Err(BadToken);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| BadToken)?;
        let (version, mut rest) = bytes.split_first().ok_or(BadToken)?;
        match *version {
            VERSION_EVERYTHING if rest.is_empty() => Ok(Self { seen: BTreeMap::new(), everything: true }),
            VERSION => {
                let mut session = Self::default();
                while !rest.is_empty() {
                    let shard = decode_varint(&mut rest)
                        .ok()
                        .and_then(|shard| u32::try_from(shard).ok())
                        .ok_or(BadToken)?;
                    let index = decode_varint(&mut rest).map_err(|_| BadToken)?;
                    session.observe(ShardId(shard), index);
                }
                // Numbers padded, shards doubled or out of order: the same session, and no token of ours.
                if session.encode() == token { Ok(session) } else { Err(BadToken) }
            }
            _ => Err(BadToken),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tokens_round_trip(seen in proptest::collection::btree_map(any::<u32>(), any::<u64>(), 0..40)) {
            let mut session = Session::default();
            for (shard, index) in &seen {
                session.observe(ShardId(*shard), *index);
            }
            prop_assert_eq!(Session::decode(&session.encode()), Ok(session));
        }

        #[test]
        fn a_merge_has_seen_what_both_have(
            one in proptest::collection::btree_map(0..20_u32, any::<u64>(), 0..20),
            other in proptest::collection::btree_map(0..20_u32, any::<u64>(), 0..20),
        ) {
            let session = |seen: &BTreeMap<u32, u64>| {
                let mut session = Session::default();
                seen.iter().for_each(|(shard, index)| session.observe(ShardId(*shard), *index));
                session
            };
            let (left, right) = (session(&one), session(&other));
            let mut merged = left.clone();
            merged.merge(&right);
            for shard in (0..20).map(ShardId) {
                prop_assert_eq!(merged.min_index(shard), left.min_index(shard).max(right.min_index(shard)));
            }
            let mut turned = right;
            turned.merge(&left);
            prop_assert_eq!(turned, merged);
        }

        #[test]
        fn foreign_tokens_never_panic(token in ".{0,80}") {
            let _ = Session::decode(&token);
        }
    }

    #[test]
    fn a_session_has_one_token() {
        let token = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        assert!(Session::decode(&token(&[1, 3, 7, 4, 1])).is_ok());
        // A padded number, a shard twice, shards out of order, more shards than a token names.
        let many: Vec<u8> = [1].into_iter().chain((0..=SHARDS_MAX).flat_map(|_| [5, 5])).collect();
        for bytes in [&[1, 3, 0x87, 0][..], &[1, 3, 7, 3, 8], &[1, 4, 1, 3, 7], &many] {
            assert_eq!(Session::decode(&token(bytes)), Err(BadToken), "{bytes:?}");
        }
    }

    #[test]
    fn a_full_token_asks_for_everything() {
        let mut session = Session::default();
        for shard in 0..=SHARDS_MAX as u32 {
            session.observe(ShardId(shard), 1);
        }
        assert_eq!(session.min_index(ShardId(0)), None);
        let mut merged = Session::default();
        merged.observe(ShardId(0), 1);
        merged.merge(&session);
        assert_eq!(merged, session);
        session.merge(&Session::default());
        assert_eq!(merged, session);
        assert_eq!(Session::decode(&session.encode()), Ok(session));
    }
}
