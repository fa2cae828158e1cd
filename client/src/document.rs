//! What calls answer: documents with their version, and receipts of writes.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use borough_proto::document::{etag, parse_etag};
use borough_proto::error::Outcome;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// A JSON document exactly as it travels. `client.collection::<Json>("users")` reads and writes
/// documents without knowing their type, and without changing a byte inside them.
pub type Json = Box<serde_json::value::RawValue>;

/// A document's version: an entity tag (RFC 9110 §8.8.3), quotes included. It changes with every
/// write and never repeats for one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Etag(String);

impl Etag {
    /// The tag as it travels, quotes included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The version as a number; it grows with every write of the document's shard.
    pub fn version(&self) -> Option<u64> {
        parse_etag(&self.0)
    }

    /// The tag of a version.
    pub fn from_version(version: u64) -> Self {
        Self(etag(version))
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Etag {
    fn from(tag: &str) -> Self {
        Self(tag.to_owned())
    }
}

impl From<String> for Etag {
    fn from(tag: String) -> Self {
        Self(tag)
    }
}

impl From<&Etag> for Etag {
    fn from(tag: &Etag) -> Self {
        tag.clone()
    }
}

impl<T> From<&Doc<T>> for Etag {
    fn from(doc: &Doc<T>) -> Self {
        doc.etag.clone()
    }
}

impl From<&Written> for Etag {
    fn from(written: &Written) -> Self {
        written.etag.clone()
    }
}

/// A document and what the cluster said about it. Dereferences to the value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Doc<T> {
    pub value: T,
    pub id: String,
    /// Set in sorted collections.
    pub sort: Option<String>,
    /// Hand it to `if_match` to write only when nobody else has in between.
    pub etag: Etag,
    /// When the document vanishes; `None`: never, or not told (batches don't).
    pub expires: Option<SystemTime>,
    /// Whether a node's cache answered; `None` where it isn't told (writes, batches).
    pub cache_hit: Option<bool>,
}

impl<T> Doc<T> {
    /// The value alone.
    pub fn into_value(self) -> T {
        self.value
    }

    /// The version as a number, for comparing.
    pub fn version(&self) -> Option<u64> {
        self.etag.version()
    }
}

impl<T> Deref for Doc<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Doc<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Receipt of a write: it is on a quorum's disks (I1).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// The document's id; generated when a `create` named none.
    pub id: String,
    pub sort: Option<String>,
    /// The new version.
    pub etag: Etag,
    /// When the document vanishes; `None`: never, or not told (batches don't).
    pub expires: Option<SystemTime>,
    /// Whether there was no document before.
    pub created: bool,
}

/// A document as a transport hands it over.
#[derive(Debug)]
pub(crate) struct RawDoc {
    pub json: Bytes,
    pub etag: Etag,
    pub expires: Option<SystemTime>,
    pub cache_hit: Option<bool>,
}

impl RawDoc {
    /// The typed document. `outcome` is told in the error: a patch that was applied stays applied
    /// when its answer does not fit the caller's type.
    pub fn typed<T: DeserializeOwned>(
        self,
        operation: &str,
        id: String,
        sort: Option<String>,
        outcome: Outcome,
    ) -> Result<Doc<T>> {
        let value = serde_json::from_slice(&self.json)
            .map_err(|source| Error::decode::<T>(operation, outcome, source))?;
        Ok(Doc { value, id, sort, etag: self.etag, expires: self.expires, cache_hit: self.cache_hit })
    }
}

/// Reads `Borough-Expires`: RFC 3339 in UTC, with or without a fraction.
pub(crate) fn parse_time(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    let in_range = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !in_range
        || hours > 23
        || minutes > 59
        || seconds > 60
        || !fraction.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    // Days since 1970 by the civil calendar, counted in years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(UNIX_EPOCH + Duration::new(days * 86_400 + hours * 3600 + minutes * 60 + seconds, nanos))
}

#[cfg(test)]
mod tests {
    use borough_proto::http_api::format_time;

    use super::*;

    #[test]
    fn times_of_the_contract_are_read() {
        for ms in [
            0,
            1,
            951_782_400_000,
            951_868_799_999,
            1_700_000_000_123,
            4_102_444_799_999,
            253_402_200_000_001,
        ] {
            let expected = UNIX_EPOCH + Duration::from_millis(ms);
            assert_eq!(parse_time(&format_time(ms)), Some(expected), "{}", format_time(ms));
        }
        assert_eq!(parse_time("2023-11-14T22:13:20Z"), Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        for bad in
            ["", "2023-11-14", "2023-13-14T22:13:20Z", "x-11-14T22:13:20Z", "2023-11-14T22:13:20.1xZ", "TZ"]
        {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }
}
