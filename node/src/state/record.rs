//! The record of a document: format byte, flags, version, deadline if any, then the body as it was sent.
//!
//! Reading one copies nothing: body and record share their bytes. Cache and engine hold the same record (I7).

use borough_proto::wire;
use bytes::{BufMut, Bytes, BytesMut};

use super::{damaged, keys};
use crate::store::StoreError;

const FORMAT: u8 = 1;
/// Set in the flags byte when a deadline follows the version; the other bits are DOCUMENT_* of the contract.
const HAS_DEADLINE: u8 = 0x80;
const BEFORE_DEADLINE: usize = 1 + 1 + 8;

/// Whether a reader may see a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    Visible,
    /// Its deadline has come; for a reader it does not exist.
    Expired,
}

/// What a document with this deadline is at `now_ms`: it ends when its deadline is reached.
pub fn visibility(expires_ms: Option<u64>, now_ms: u64) -> Visibility {
    if expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
        Visibility::Expired
    } else {
        Visibility::Visible
    }
}

/// A document without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// DOCUMENT_* bits.
    pub flags: u32,
    pub version: u64,
    pub expires_ms: Option<u64>,
    pub body: Bytes,
}

impl Record {
    pub fn is_visible(&self, now_ms: u64) -> bool {
        visibility(self.expires_ms, now_ms) == Visibility::Visible
    }

    /// The one copy of the body that a write makes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(BEFORE_DEADLINE + 8 + self.body.len());
        bytes.put_u8(FORMAT);
        // Bits above the contract's two mean nothing yet, and the top one is taken.
        let flags = u8::try_from(self.flags & 0x7f).unwrap_or_default();
        bytes.put_u8(if self.expires_ms.is_some() { flags | HAS_DEADLINE } else { flags });
        bytes.put_u64(self.version);
        if let Some(expires_ms) = self.expires_ms {
            bytes.put_u64(expires_ms);
        }
        bytes.put_slice(&self.body);
        bytes.freeze()
    }

    /// # Errors
    /// `Damaged` for anything that [`Record::encode`] does not make (I10).
    pub fn decode(record: &Bytes) -> Result<Self, StoreError> {
        let short = || damaged("document record", &format_args!("only {} bytes", record.len()));
        let (&[format, flags, ref version @ ..], rest) =
            record.split_first_chunk::<BEFORE_DEADLINE>().ok_or_else(short)?;
        if format != FORMAT {
            return Err(damaged(
                "document record",
                &format_args!("format {format}, this build reads {FORMAT}"),
            ));
        }
        let (expires_ms, body) = if flags & HAS_DEADLINE == 0 {
            (None, record.slice(BEFORE_DEADLINE..))
        } else {
            let expires_ms = rest.first_chunk::<8>().ok_or_else(short)?;
            (Some(u64::from_be_bytes(*expires_ms)), record.slice(BEFORE_DEADLINE + 8..))
        };
        let flags = u32::from(flags & !HAS_DEADLINE);
        Ok(Self { flags, version: u64::from_be_bytes(*version), expires_ms, body })
    }
}

/// The document that is kept under `key` as `record`, whether it has expired or not.
///
/// # Errors
/// `Damaged` when either was not written by apply.
pub fn decode_document(key: &[u8], record: &Bytes) -> Result<wire::Document, StoreError> {
    let (id, sort) = keys::parse_document_key(key)
        .ok_or_else(|| damaged("document key", &format_args!("{} bytes that name no document", key.len())))?;
    let Record { flags, version, expires_ms, body } = Record::decode(record)?;
    Ok(wire::Document { id: id.to_owned(), sort: sort.map(str::to_owned), version, expires_ms, flags, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_and_share_the_body() {
        for expires_ms in [None, Some(0), Some(u64::MAX)] {
            let record = Record {
                flags: 3,
                version: u64::MAX - 1,
                expires_ms,
                body: Bytes::from_static(b"{\"a\":1}"),
            };
            let bytes = record.encode();
            let back = Record::decode(&bytes).unwrap();
            assert_eq!(back, record);
            assert!(bytes.as_ptr_range().contains(&back.body.as_ptr()));
        }
    }

    #[test]
    fn the_format_is_what_it_always_was() {
        let record =
            Record { flags: 1, version: 0x0102, expires_ms: Some(3), body: Bytes::from_static(b"{}") };
        assert_eq!(&record.encode()[..], b"\x01\x81\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03{}");
    }

    #[test]
    fn torn_and_foreign_records_are_refused() {
        let bytes = Record { flags: 0, version: 1, expires_ms: Some(3), body: Bytes::new() }.encode();
        for end in 0..bytes.len() {
            assert!(Record::decode(&bytes.slice(..end)).is_err(), "{end}");
        }
        assert!(Record::decode(&Bytes::from_static(&[9; 40])).is_err());
    }
}
