//! Batches and frames: the bytes between a segment's header and its end.
//!
//! All integers are little-endian. A batch is what one `fdatasync` makes durable:
//!
//! | batch header | `magic u32, crc u32, len u32, frames u32, offset u64, oldest u64`, then `len` bytes of frames |
//! |---|---|
//! | **frame** | `crc u32, len u32, payload_crc u32, kind u8, 0 u8 × 3, replica u64, index u64, term u64`, then `len` bytes of payload |
//!
//! Both header checksums cover the rest of their header and start from the segment's seed. A payload's
//! checksum is unseeded: it is covered by its header's.

use borough_proto::ReplicaId;

pub(super) const BATCH_HEADER: usize = 32;
pub(super) const FRAME_HEADER: usize = 40;
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"BoRb");

/// What a frame says. The numbers are on disk: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A new record behind the last one.
    Append = 1,
    /// A live record, copied forward from a segment that is to be freed.
    Moved = 2,
    Vote = 3,
    /// `index`, `term` are committed.
    Committed = 4,
    /// Records from `index` on are gone.
    Truncate = 5,
    /// Records up to and including `index` are gone.
    Purge = 6,
    Generation = 7,
    /// The replica's whole state at this point.
    State = 8,
    /// The replica is gone.
    Remove = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Append,
            2 => Self::Moved,
            3 => Self::Vote,
            4 => Self::Committed,
            5 => Self::Truncate,
            6 => Self::Purge,
            7 => Self::Generation,
            8 => Self::State,
            9 => Self::Remove,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    /// Bytes of frames.
    pub len: u32,
    pub frames: u32,
    /// Where this header stands in its segment.
    pub offset: u64,
    /// Sequence number of the oldest segment still needed.
    pub oldest: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub kind: Kind,
    pub replica: ReplicaId,
    pub index: u64,
    pub term: u64,
    /// Bytes of payload.
    pub len: u32,
    pub payload_crc: u32,
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

pub(super) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// The start value of a segment's checksums.
pub(super) fn seed(salt: u64, sequence: u64) -> u32 {
    crc(crc(0, &salt.to_le_bytes()), &sequence.to_le_bytes())
}

/// Frame bytes of a payload of `len` bytes.
pub(super) fn frame_bytes(len: usize) -> u64 {
    (FRAME_HEADER + len) as u64
}

/// Overwrites the four bytes at `at`; `at` is a place this module has just written.
fn patch(out: &mut [u8], at: usize, value: u32) {
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

/// Appends a frame to `out`.
pub(super) fn put_frame(
    out: &mut Vec<u8>,
    seed: u32,
    (kind, replica, index, term): (Kind, ReplicaId, u64, u64),
    payload: &[u8],
) {
    let at = out.len();
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    assert!(len < u32::MAX, "payload of {} bytes in the log of replica {replica}", payload.len());
    let mut header = [0u8; FRAME_HEADER];
    let fields: [&[u8]; 7] = [
        &[0; 4],
        &len.to_le_bytes(),
        &crc(0, payload).to_le_bytes(),
        &[kind as u8, 0, 0, 0],
        &replica.get().to_le_bytes(),
        &index.to_le_bytes(),
        &term.to_le_bytes(),
    ];
    let mut rest = header.as_mut_slice();
    for field in fields {
        let (place, behind) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = behind;
    }
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    let header_crc = crc(seed, header.split_at(4).1);
    patch(out, at, header_crc);
}

/// `None` when these bytes are no frame header of a segment with this seed.
pub(super) fn parse_frame(bytes: &[u8], seed: u32) -> Option<FrameHeader> {
    let header = bytes.get(..FRAME_HEADER)?;
    if crc(seed, header.get(4..)?) != u32_at(header, 0)? {
        return None;
    }
    Some(FrameHeader {
        len: u32_at(header, 4)?,
        payload_crc: u32_at(header, 8)?,
        kind: Kind::from_byte(*header.get(12)?)?,
        replica: ReplicaId(u64_at(header, 16)?),
        index: u64_at(header, 24)?,
        term: u64_at(header, 32)?,
    })
}

/// Appends a batch header to `out`; [`finish_batch`] fills it in.
pub(super) fn begin_batch(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; BATCH_HEADER]);
}

/// Fills in the header at `at` of `out`, whose frames reach to the end of `out`.
pub(super) fn finish_batch(out: &mut [u8], at: usize, seed: u32, frames: u32, offset: u64, oldest: u64) {
    let len = u32::try_from(out.len() - at - BATCH_HEADER).unwrap_or(u32::MAX);
    assert!(len < u32::MAX, "log batch of {} bytes", out.len());
    patch(out, at, BATCH_MAGIC);
    patch(out, at + 8, len);
    patch(out, at + 12, frames);
    for (place, value) in [(16, offset), (24, oldest)] {
        if let Some(place) = out.get_mut(at + place..at + place + 8) {
            place.copy_from_slice(&value.to_le_bytes());
        }
    }
    let header_crc = crc(seed, out.get(at + 8..at + BATCH_HEADER).unwrap_or_default());
    patch(out, at + 4, header_crc);
}

/// `None` when these bytes are no batch header at this offset of a segment with this seed.
pub(super) fn parse_batch(bytes: &[u8], seed: u32, offset: u64) -> Option<BatchHeader> {
    let header = bytes.get(..BATCH_HEADER)?;
    if u32_at(header, 0)? != BATCH_MAGIC || crc(seed, header.get(8..)?) != u32_at(header, 4)? {
        return None;
    }
    let parsed = BatchHeader {
        len: u32_at(header, 8)?,
        frames: u32_at(header, 12)?,
        offset: u64_at(header, 16)?,
        oldest: u64_at(header, 24)?,
    };
    (parsed.offset == offset).then_some(parsed)
}

/// Whether a batch header was begun here: tells a cut tail from space that was never written.
pub(super) fn looks_like_batch(bytes: &[u8]) -> bool {
    u32_at(bytes, 0) == Some(BATCH_MAGIC)
}

/// Offsets (relative to `bytes`) at which a batch header may start.
pub(super) fn batch_candidates(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let magic = BATCH_MAGIC.to_le_bytes();
    bytes.windows(4).enumerate().filter(move |(_, window)| *window == magic).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_another_segment_or_place_is_none() {
        let (ours, other) = (seed(1, 7), seed(1, 8));
        let mut out = Vec::new();
        begin_batch(&mut out);
        put_frame(&mut out, ours, (Kind::Append, ReplicaId(3), 9, 2), b"payload");
        finish_batch(&mut out, 0, ours, 1, 64, 5);
        assert_eq!(
            parse_batch(&out, ours, 64),
            Some(BatchHeader { len: 47, frames: 1, offset: 64, oldest: 5 })
        );
        assert_eq!(parse_batch(&out, ours, 65), None);
        assert_eq!(parse_batch(&out, other, 64), None);
        let frame = parse_frame(&out[BATCH_HEADER..], ours).unwrap();
        assert_eq!((frame.kind, frame.replica, frame.index, frame.term), (Kind::Append, ReplicaId(3), 9, 2));
        assert_eq!(frame.payload_crc, crc(0, b"payload"));
        assert_eq!(parse_frame(&out[BATCH_HEADER..], other), None);
    }
}
