//! Writes the files of a log by its documented format (`node/src/wal`), apart from the code that is tested: with checksums
//! that hold, so that what is wrong beyond them gets as far as it can.

use std::path::{Path, PathBuf};

use bincode::Encode;
use borough_node::wal::GroupState;

pub const HEADER: usize = 64;
pub const BATCH_HEADER: usize = 32;
const FRAME_HEADER: usize = 40;
const SALT: u64 = 7;
/// Size of the files. Larger ones than the log would be made with cost time and show nothing.
pub const CAPACITY: u64 = 4096;

/// Kinds of frames by their numbers on disk.
pub mod kind {
    pub const APPEND: u8 = 1;
    pub const MOVED: u8 = 2;
    pub const VOTE: u8 = 3;
    pub const COMMITTED: u8 = 4;
    pub const TRUNCATE: u8 = 5;
    pub const PURGE: u8 = 6;
    pub const GENERATION: u8 = 7;
    pub const STATE: u8 = 8;
    pub const REMOVE: u8 = 9;
}

/// What a frame says.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pub kind: u8,
    pub replica: u64,
    pub index: u64,
    pub term: u64,
    pub payload: &'a [u8],
}

/// A segment's header, as it is to be written.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub sequence: u64,
    pub oldest: u64,
    pub previous_end: u64,
    pub capacity: u64,
}

/// One segment in the making.
#[derive(Debug, Clone)]
pub struct Segment {
    pub sequence: u64,
    seed: u32,
    pub bytes: Vec<u8>,
    /// Where its batches start; the last one ends with `bytes`.
    pub batches: Vec<usize>,
    frames: Vec<u8>,
    count: u32,
}

fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

impl Segment {
    pub fn new(header: Header) -> Self {
        let mut bytes = b"BOROWAL\n".to_vec();
        bytes.extend_from_slice(&1_u32.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for field in [header.sequence, SALT, header.oldest, header.previous_end, header.capacity] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&crc(0, &bytes).to_le_bytes());
        let seed = crc(crc(0, &SALT.to_le_bytes()), &header.sequence.to_le_bytes());
        Self { sequence: header.sequence, seed, bytes, batches: Vec::new(), frames: Vec::new(), count: 0 }
    }

    /// Adds a frame to the next batch.
    pub fn frame(&mut self, frame: Frame<'_>) {
        let mut header = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        header.extend_from_slice(&crc(0, frame.payload).to_le_bytes());
        header.extend_from_slice(&[frame.kind, 0, 0, 0]);
        for field in [frame.replica, frame.index, frame.term] {
            header.extend_from_slice(&field.to_le_bytes());
        }
        self.frames.extend_from_slice(&crc(self.seed, &header).to_le_bytes());
        self.frames.extend_from_slice(&header);
        self.frames.extend_from_slice(frame.payload);
        self.count += 1;
    }

    /// Bytes of the frames of the next batch.
    pub fn pending(&self) -> usize {
        self.frames.len()
    }

    /// Writes the batch; `count` is the number of frames that its header tells, unless it is right.
    pub fn end_batch(&mut self, oldest: u64, count: Option<u32>) {
        let start = self.bytes.len();
        let mut header = u32::try_from(self.frames.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        header.extend_from_slice(&count.unwrap_or(self.count).to_le_bytes());
        header.extend_from_slice(&(start as u64).to_le_bytes());
        header.extend_from_slice(&oldest.to_le_bytes());
        self.bytes.extend_from_slice(b"BoRb");
        self.bytes.extend_from_slice(&crc(self.seed, &header).to_le_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.append(&mut self.frames);
        self.count = 0;
        self.batches.push(start);
    }

    pub fn end(&self) -> usize {
        self.bytes.len()
    }

    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{:016x}.seg", self.sequence))
    }
}

/// Room for one frame with `payload` bytes.
pub fn frame_bytes(payload: usize) -> usize {
    FRAME_HEADER + payload
}

fn encode(value: impl Encode) -> Vec<u8> {
    let format = bincode::config::standard().with_fixed_int_encoding();
    bincode::encode_to_vec(value, format).unwrap_or_else(|error| panic!("encode a seed's record: {error}"))
}

/// Payload of a state frame.
pub fn state(state: &GroupState, first: u64, end: u64, damage: Option<(String, u64, String)>) -> Vec<u8> {
    encode((state, first, end, damage))
}

/// Payload of a generation frame.
pub fn generation(generation: u64, snapshot: &[u8], purged: Option<(u64, u64)>) -> Vec<u8> {
    encode((generation, snapshot.to_vec(), purged))
}

/// Payload of a vote frame.
pub fn vote(vote: &borough_node::wal::VoteRecord) -> Vec<u8> {
    encode(vote)
}
