//! The one place where bincode is spoken: payloads of state frames.
//!
//! Decoding is limited and rejects trailing bytes, so hostile input gives an error (I10). The frame around
//! a payload carries its length and checksum, the segment header the version.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

use super::record::{GroupState, Position, SNAPSHOT_BYTES_MAX};

/// Room for a snapshot blob and the positions and texts beside it.
const BYTES_MAX: usize = SNAPSHOT_BYTES_MAX + (8 << 10);

type Format = Configuration<LittleEndian, Fixint, Limit<BYTES_MAX>>;

fn format() -> Format {
    bincode::config::standard().with_fixed_int_encoding().with_limit::<BYTES_MAX>()
}

/// A replica's whole state, as written at the start of each segment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct StateRecord {
    pub state: GroupState,
    /// Records `first..end` are live, wherever they lie.
    pub first: u64,
    pub end: u64,
    /// Set once a record of this replica was found damaged: the replica stays refused until it is removed,
    /// even when the segment that showed the damage is long gone.
    pub damage: Option<DamageRecord>,
}

/// Where a replica was found damaged.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct DamageRecord {
    pub path: String,
    pub offset: u64,
    pub detail: String,
}

/// A change of engine generation, with the purge that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct GenerationRecord {
    pub generation: u64,
    pub snapshot: Vec<u8>,
    pub purged: Option<Position>,
}

pub(super) fn encode<T: Encode>(value: &T) -> Vec<u8> {
    match bincode::encode_to_vec(value, format()) {
        Ok(bytes) => bytes,
        // All fields are bounded where they enter, so this is our own bug.
        Err(error) => panic!("encode a log state record: {error}"),
    }
}

/// # Errors
/// A text that says what is wrong with the bytes.
pub(super) fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, String> {
    let (value, used) =
        bincode::decode_from_slice(bytes, format()).map_err(|e| format!("undecodable state: {e}"))?;
    if used == bytes.len() {
        Ok(value)
    } else {
        Err(format!("{} trailing bytes in state", bytes.len() - used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_bytes_and_hostile_lengths_are_refused() {
        let good = encode(&StateRecord::default());
        assert_eq!(decode::<StateRecord>(&good), Ok(StateRecord::default()));
        let mut long = good;
        long.push(0);
        assert!(decode::<StateRecord>(&long).is_err());
        assert!(decode::<StateRecord>(&[0xff; 200]).is_err());
        let mut hostile = vec![7; 8];
        hostile.extend([0xff; 8]);
        assert!(decode::<GenerationRecord>(&hostile).is_err());
    }
}
