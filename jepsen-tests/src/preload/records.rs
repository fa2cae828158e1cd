//! Reads the journal that the library wrote.

use super::layout::{HEADER, Record};

/// Reads a journal back.
#[derive(Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    position: u64,
}

impl<'a> Records<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }
}

/// Each record with its position. What a killed process has begun to write at the end is left out.
impl Iterator for Records<'_> {
    type Item = (u64, Record);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = number(self.bytes)?;
        let len = usize::try_from(len).ok()?;
        let mut body = rest.get(..len)?;
        let at = self.position;
        self.bytes = rest.get(len..)?;
        self.position += (HEADER + len) as u64;
        let mut next = || {
            let (value, rest) = number(body)?;
            body = rest;
            Some(value)
        };
        let (kind, a, b, c, d) = (next()?, next()?, next()?, next()?, next()?);
        let bytes = body.to_vec();
        let record = match kind {
            1 => Record::Write { inode: a, offset: b, len: c, size: d, old: bytes },
            2 => Record::Resize { inode: a, size: b, new: c, old: bytes },
            3 => Record::Sync { inode: a, upto: b },
            4 => Record::SyncFailed { inode: a, upto: b },
            5 => Record::Create { dir: a, inode: b, is_dir: c != 0, path: bytes },
            6 => Record::Remove { dir: a, inode: b, grave: c, path: bytes },
            7 => {
                let (from, to) = body.split_at_checked(usize::try_from(c).ok()?)?;
                Record::Rename { dir: a, grave: b, from: from.to_vec(), to: to.to_vec() }
            }
            _ => return None,
        };
        Some((at, record))
    }
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_ne_bytes(*number), rest))
}
