//! How a value lies in an engine: `format: u8, crc32: u32 LE, payload`.
//!
//! The checksum covers the key, too, so that a page that turns up under another key is noticed (I10).

/// The payload is the value.
pub(super) const WHOLE: u8 = 1;
/// The payload is a [`Manifest`]; the value lies in chunks.
pub(super) const CHUNKED: u8 = 2;

const HEADER_BYTES: usize = 5;

/// Frames `payload` for storing under `key`.
pub(super) fn encode(format: u8, key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(HEADER_BYTES + payload.len());
    stored.push(format);
    stored.extend_from_slice(&checksum(format, key, payload).to_le_bytes());
    stored.extend_from_slice(payload);
    stored
}

/// The format and payload of what was stored under `key`, or what is wrong with it.
pub(super) fn decode<'a>(key: &[u8], stored: &'a [u8]) -> Result<(u8, &'a [u8]), String> {
    let Some(([format, crc @ ..], payload)) = stored.split_first_chunk::<HEADER_BYTES>() else {
        return Err(format!("value of {} bytes is shorter than its header", stored.len()));
    };
    let (expected, found) = (u32::from_le_bytes(*crc), checksum(*format, key, payload));
    if expected != found {
        return Err(format!("value checksum is {found:08x}, not {expected:08x}"));
    }
    Ok((*format, payload))
}

/// The payload of a value that engine and caller know to be whole.
pub(super) fn decode_whole<'a>(key: &[u8], stored: &'a [u8]) -> Result<&'a [u8], String> {
    match decode(key, stored)? {
        (WHOLE, payload) => Ok(payload),
        (other, _) => Err(format!("value format {other} is unknown")),
    }
}

fn checksum(format: u8, key: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&[format]);
    hasher.update(payload);
    hasher.finalize()
}

/// Describes a value that lies in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) value_bytes: u64,
    pub(super) value_crc: u32,
    /// Differs from one write to the next, so that a reader can tell overwritten from damaged.
    pub(super) write: u64,
}

impl Manifest {
    pub(super) fn to_payload(self) -> [u8; 20] {
        let mut payload = [0; 20];
        let (bytes, rest) = payload.split_at_mut(8);
        let (crc, write) = rest.split_at_mut(4);
        bytes.copy_from_slice(&self.value_bytes.to_le_bytes());
        crc.copy_from_slice(&self.value_crc.to_le_bytes());
        write.copy_from_slice(&self.write.to_le_bytes());
        payload
    }

    pub(super) fn from_payload(payload: &[u8]) -> Result<Self, String> {
        let parse = || {
            let (bytes, rest) = payload.split_first_chunk::<8>()?;
            let (crc, rest) = rest.split_first_chunk::<4>()?;
            let write = <[u8; 8]>::try_from(rest).ok()?;
            Some(Self {
                value_bytes: u64::from_le_bytes(*bytes),
                value_crc: u32::from_le_bytes(*crc),
                write: u64::from_le_bytes(write),
            })
        };
        parse().ok_or_else(|| format!("chunk manifest has {} bytes", payload.len()))
    }

    pub(super) fn chunks(&self, chunk_bytes: usize) -> u32 {
        u32::try_from(self.value_bytes.div_ceil(chunk_bytes as u64)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_of_key_or_value_is_noticed() {
        let key = *b"key";
        let stored = encode(WHOLE, &key, b"payload");
        assert_eq!(decode_whole(&key, &stored).unwrap(), b"payload");
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&key, &flipped).is_err(), "bit {bit} of the value");
        }
        for bit in 0..key.len() * 8 {
            let mut flipped = key;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped, &stored).is_err(), "bit {bit} of the key");
        }
        for length in 0..stored.len() {
            assert!(decode(&key, &stored[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn manifest_reads_back() {
        let manifest = Manifest { value_bytes: 1 << 33, value_crc: 7, write: u64::MAX };
        assert_eq!(Manifest::from_payload(&manifest.to_payload()), Ok(manifest));
        assert!(Manifest::from_payload(&[0; 19]).is_err());
    }
}
