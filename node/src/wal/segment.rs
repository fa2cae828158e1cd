//! Segment files: names, header, creation, positioned reads.
//!
//! The header: `magic [8], version u32, 0 u32, sequence u64, salt u64, oldest u64, previous_end u64,
//! capacity u64, 0 u32, crc u32`, little-endian, [`HEADER`] bytes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::frame::{self, FRAME_HEADER, FrameHeader, Kind, crc, u32_at, u64_at};
use super::index::Loc;
use super::{Damage, Record, ReplicaId, WalError};
use crate::defect::{self, Defect};
use bytes::Bytes;

pub(super) const HEADER: usize = 64;
const MAGIC: [u8; 8] = *b"BOROWAL\n";
const VERSION: u32 = 1;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub sequence: u64,
    /// Chosen at random when the log is made, the same in all of its segments.
    pub salt: u64,
    /// Oldest segment needed when this one was begun.
    pub oldest: u64,
    /// Where the segment before this one ends, in bytes; everything below was durable.
    pub previous_end: u64,
    /// Bytes the file was made with.
    pub capacity: u64,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let fields: [&[u8]; 9] = [
            &MAGIC,
            &VERSION.to_le_bytes(),
            &[0; 4],
            &self.sequence.to_le_bytes(),
            &self.salt.to_le_bytes(),
            &self.oldest.to_le_bytes(),
            &self.previous_end.to_le_bytes(),
            &self.capacity.to_le_bytes(),
            &[0; 4],
        ];
        let (body, place) = out.split_at_mut(HEADER - 4);
        let mut rest = &mut *body;
        for field in fields {
            let (here, behind) = rest.split_at_mut(field.len());
            here.copy_from_slice(field);
            rest = behind;
        }
        place.copy_from_slice(&crc(0, body).to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Result<Self, String>> {
        if bytes.get(..8)? != MAGIC {
            return Some(Err("not a log segment".to_owned()));
        }
        if crc(0, bytes.get(..HEADER - 4)?) != u32_at(bytes, HEADER - 4)? {
            return Some(Err("bad segment header".to_owned()));
        }
        let version = u32_at(bytes, 8)?;
        if version != VERSION {
            return Some(Err(format!("log segment of version {version}, this is {VERSION}")));
        }
        Some(Ok(Self {
            sequence: u64_at(bytes, 16)?,
            salt: u64_at(bytes, 24)?,
            oldest: u64_at(bytes, 32)?,
            previous_end: u64_at(bytes, 40)?,
            capacity: u64_at(bytes, 48)?,
        }))
    }
}

pub(super) fn segment_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:016x}.seg"))
}

/// The sequence number in a segment's file name.
pub(super) fn sequence_of(path: &Path) -> Option<u64> {
    if path.extension()? != "seg" {
        return None;
    }
    let stem = path.file_stem()?.to_str()?;
    if stem.len() == 16 { u64::from_str_radix(stem, 16).ok() } else { None }
}

/// A segment that can be read, and by the writer thread written.
#[derive(Debug)]
pub(super) struct Segment {
    pub sequence: u64,
    pub path: PathBuf,
    pub file: File,
    pub seed: u32,
    /// Bytes meant to be used; a batch larger than a segment makes the file longer.
    pub capacity: u64,
}

impl Segment {
    /// Opens segment `sequence` and checks its header.
    pub fn open(dir: &Path, sequence: u64) -> Result<(Self, SegmentHeader), WalError> {
        let path = segment_path(dir, sequence);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(WalError::Damaged(Damage::new(&path, 0, "the segment is missing")));
            }
            Err(error) => return Err(WalError::io("open segment", &path)(error)),
        };
        let mut bytes = [0; HEADER];
        let refuse = |detail: String| WalError::Damaged(Damage::new(&path, 0, detail));
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(refuse("shorter than its header".to_owned()));
            }
            Err(error) => return Err(WalError::io("read segment", &path)(error)),
        }
        let header = match SegmentHeader::decode(&bytes) {
            Some(Ok(header)) => header,
            Some(Err(detail)) => return Err(refuse(detail)),
            None => return Err(refuse("bad segment header".to_owned())),
        };
        if header.sequence != sequence {
            return Err(refuse(format!("holds segment {:016x}", header.sequence)));
        }
        let seed = frame::seed(header.salt, sequence);
        Ok((Self { sequence, path, file, seed, capacity: header.capacity }, header))
    }

    pub fn file_bytes(&self) -> Result<u64, WalError> {
        Ok(self.file.metadata().map_err(WalError::io("inspect segment", &self.path))?.len())
    }

    /// Writes the bytes from `start` to `end` again as they are.
    pub fn rewrite(&self, start: u64, end: u64) -> Result<(), WalError> {
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or(0)];
        self.file
            .read_exact_at(&mut bytes, start)
            .and_then(|()| self.file.write_all_at(&bytes, start))
            .map_err(WalError::io("write the last batch again", &self.path))
    }

    /// Reads adjacent records of `replica`, which start at index `first`; each is checked.
    pub fn read_records(
        &self,
        replica: ReplicaId,
        first: u64,
        locs: &[Loc],
        out: &mut Vec<Record>,
    ) -> Result<(), WalError> {
        let Some(start) = locs.first().map(|loc| loc.offset) else { return Ok(()) };
        let bytes: usize = locs.iter().map(|loc| loc.len as usize).sum();
        let mut buffer = vec![0; bytes];
        self.file.read_exact_at(&mut buffer, u64::from(start)).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                WalError::Damaged(Damage::new(&self.path, start.into(), "the file is too short").of(replica))
            }
            _ => WalError::io("read segment", &self.path)(error),
        })?;
        let mut rest = Bytes::from(buffer);
        for (loc, index) in locs.iter().zip(first..) {
            let bytes = rest.split_to((loc.len as usize).min(rest.len()));
            match self.check(&bytes, replica, index) {
                Some(header) => {
                    let payload = bytes.slice(FRAME_HEADER..);
                    out.push(Record { index, term: header.term, payload });
                }
                None => {
                    let detail = format!("record {index} does not match its checksum");
                    return Err(WalError::Damaged(
                        Damage::new(&self.path, loc.offset.into(), detail).of(replica),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check(&self, bytes: &[u8], replica: ReplicaId, index: u64) -> Option<FrameHeader> {
        let header = frame::parse_frame(bytes, self.seed)?;
        let payload = bytes.get(FRAME_HEADER..)?;
        let record = matches!(header.kind, Kind::Append | Kind::Moved);
        let same = record && header.replica == replica && header.index == index;
        (same && header.len as usize == payload.len() && crc(0, payload) == header.payload_crc)
            .then_some(header)
    }
}

/// Makes a file of `bytes` zeros, durable up to its name. Blocks that were written once make `fdatasync`
/// twice as fast as blocks that were only allocated.
pub(super) fn create_zeroed(path: &Path, bytes: u64) -> Result<File, WalError> {
    let write = || {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        let mut at = 0;
        while at < bytes {
            let chunk = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(ZEROS.len());
            file.write_all_at(ZEROS.get(..chunk).unwrap_or(&ZEROS), at)?;
            at += chunk as u64;
        }
        file.sync_all()?;
        Ok(file)
    };
    write().map_err(WalError::io("allocate segment", path))
}

/// Makes names created, changed or removed in `dir` durable (I3).
pub(super) fn sync_dir(dir: &Path) -> Result<(), WalError> {
    if defect::has(Defect::SkipDirectorySync) {
        return Ok(());
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(WalError::io("sync directory", dir))
}
