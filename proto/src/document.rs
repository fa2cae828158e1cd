//! Documents: what is checked when one comes in, how it is kept, how it is shown.
//!
//! A document is stored exactly as it was sent. Flags remember whether `id` and `sort` have to be
//! added when it is shown, so reading parses no JSON and `export` can give back what was imported.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::limits;
use crate::place::place;

/// The body has no `"id"` of its own: add one when it is shown.
pub const DOCUMENT_ADD_ID: u32 = 1;
/// The body has no `"sort"` of its own: add one when it is shown.
pub const DOCUMENT_ADD_SORT: u32 = 2;

/// Why a document or patch is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    #[error("the document has {bytes} bytes; the limit is {}", limits::DOCUMENT_BYTES_MAX)]
    TooLarge { bytes: usize },
    #[error("malformed JSON: {reason}")]
    Malformed {
        reason: String,
        /// Where, if not at the top.
        field: Option<String>,
        /// The limit that was passed, if it is one.
        limit: Option<usize>,
    },
    #[error("the document must be a JSON object, not {found}")]
    NotAnObject { found: &'static str },
    #[error("field `{field}` must be a string or an integer, not {found}")]
    BadKeyField { field: &'static str, found: String },
    #[error("field `{field}` is {found:?} but the request names {expected:?}")]
    KeyMismatch { field: &'static str, found: String, expected: String },
}

/// What [`inspect`] learned about a JSON object without building it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspected<'a> {
    /// Text of a top-level `id` that is a string or an integer.
    pub id: KeyField<'a>,
    /// Text of a top-level `sort` that is a string or an integer.
    pub sort: KeyField<'a>,
}

/// A top-level field that may name the document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum KeyField<'a> {
    #[default]
    Absent,
    /// A string, or an integer in its decimal form.
    Text(Cow<'a, str>),
    /// Anything else; what it was.
    Other(&'static str),
}

impl KeyField<'_> {
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// Checks that `body` is one well-formed JSON object within the limits of size and depth, and
/// picks out its top-level `id` and `sort`. Builds no tree: linear in `body`, allocation-free but for escapes.
///
/// # Errors
/// [`DocumentError`], naming the limit or the place.
pub fn inspect(body: &[u8]) -> Result<Inspected<'_>, DocumentError> {
    if body.len() > limits::DOCUMENT_BYTES_MAX {
        return Err(DocumentError::TooLarge { bytes: body.len() });
    }
    inspect_unbounded(body)
}

/// [`inspect`] without the limit on bytes, for envelopes that bound their own size.
///
/// # Errors
/// [`DocumentError`] but never `TooLarge`.
pub fn inspect_unbounded(body: &[u8]) -> Result<Inspected<'_>, DocumentError> {
    // serde_json does not check UTF-8 in strings that it skips, so check all of it first.
    let text = std::str::from_utf8(body).map_err(|error| malformed(format!("not UTF-8: {error}")))?;
    let first = text.trim_start_matches([' ', '\t', '\r', '\n']).as_bytes().first();
    match first {
        Some(b'{') => {}
        Some(b'[') => return Err(DocumentError::NotAnObject { found: "an array" }),
        Some(b'"') => return Err(DocumentError::NotAnObject { found: "a string" }),
        Some(b't' | b'f') if ["true", "false"].contains(&text.trim()) => {
            return Err(DocumentError::NotAnObject { found: "a boolean" });
        }
        Some(b'n') if text.trim() == "null" => return Err(DocumentError::NotAnObject { found: "null" }),
        Some(b'-' | b'0'..=b'9') => return Err(DocumentError::NotAnObject { found: "a number" }),
        Some(_) => return Err(malformed("expected `{` at the start")),
        None => return Err(malformed("the body is empty")),
    }
    let too_deep = Cell::new(false);
    let mut json = serde_json::Deserializer::from_str(text);
    let walked = json.deserialize_map(TopLevel { too_deep: &too_deep });
    let inspected = walked.map_err(|error| DocumentError::Malformed {
        reason: error.to_string(),
        field: fault(text),
        limit: too_deep.get().then_some(limits::DOCUMENT_DEPTH_MAX),
    })?;
    json.end().map_err(|error| malformed(error.to_string()))?;
    Ok(inspected)
}

fn malformed(reason: impl Into<String>) -> DocumentError {
    DocumentError::Malformed { reason: reason.into(), field: None, limit: None }
}

/// Where in `text` the walk fails. A walk of its own, so that documents without fault pay nothing for it.
fn fault(text: &str) -> Option<String> {
    let (mut track, too_deep) = (serde_path_to_error::Track::new(), Cell::new(false));
    let mut json = serde_json::Deserializer::from_str(text);
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    tracked.deserialize_map(TopLevel { too_deep: &too_deep }).err()?;
    let place = place(&track.path())?;
    // Of what is nested too deep the top is enough to go by.
    let top = place.split(['.', '[']).next().filter(|_| too_deep.get()).map(str::to_owned);
    Some(top.unwrap_or(place))
}

struct TopLevel<'c> {
    too_deep: &'c Cell<bool>,
}

impl<'de> Visitor<'de> for TopLevel<'_> {
    type Value = Inspected<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut inspected = Inspected::default();
        while let Some(field) = map.next_key_seed(Text)? {
            let slot = match &*field {
                "id" => &mut inspected.id,
                "sort" => &mut inspected.sort,
                _ => {
                    map.next_value_seed(Checked { depth: 2, too_deep: self.too_deep })?;
                    continue;
                }
            };
            if !slot.is_absent() {
                map.next_value_seed(Twice(&field))?;
            }
            *slot = map.next_value_seed(Key { too_deep: self.too_deep })?;
        }
        Ok(inspected)
    }
}

/// A value whose field was given before.
struct Twice<'f>(&'f str);

impl<'de> DeserializeSeed<'de> for Twice<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
        Err(D::Error::custom(format_args!("field `{}` appears twice", self.0)))
    }
}

/// A string, borrowed when it has no escapes.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Walks a value to its end, so that everything in it is known to be well formed.
struct Checked<'c> {
    depth: usize,
    /// Set when that is what fails.
    too_deep: &'c Cell<bool>,
}

impl Checked<'_> {
    fn inner<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth > limits::DOCUMENT_DEPTH_MAX {
            self.too_deep.set(true);
            return Err(E::custom(format_args!("nested deeper than {} levels", limits::DOCUMENT_DEPTH_MAX)));
        }
        Ok(Self { depth: self.depth + 1, too_deep: self.too_deep })
    }
}

impl<'de> DeserializeSeed<'de> for Checked<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self.inner()?)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Text)?.is_some() {
            map.next_value_seed(self.inner()?)?;
        }
        Ok(())
    }
}

/// A value that may name a document.
struct Key<'c> {
    too_deep: &'c Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = KeyField<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = KeyField<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(KeyField::Other("a boolean"))
    }
    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(KeyField::Text(Cow::Owned(number.to_string())))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(KeyField::Text(Cow::Owned(number.to_string())))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(KeyField::Other("a number that is no integer of 64 bits"))
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(KeyField::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(KeyField::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(KeyField::Other("null"))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        Checked { depth: 2, too_deep: self.too_deep }.visit_seq(seq)?;
        Ok(KeyField::Other("an array"))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Checked { depth: 2, too_deep: self.too_deep }.visit_map(map)?;
        Ok(KeyField::Other("an object"))
    }
}

/// Flags for storing `inspected` under (`id`, `sort`).
///
/// In an unsorted collection a document's own `id`, a string or an integer, must name the same
/// document. In a sorted collection `id` and `sort` in the body are the caller's data and stay
/// untouched (a post has an id of its own besides its author's, whose partition it lies in).
///
/// # Errors
/// [`DocumentError::BadKeyField`] and [`DocumentError::KeyMismatch`], unsorted collections only.
pub fn flags(inspected: &Inspected<'_>, id: &str, sort: Option<&str>) -> Result<u32, DocumentError> {
    if sort.is_some() {
        let mut flags = 0;
        if inspected.id.is_absent() {
            flags |= DOCUMENT_ADD_ID;
        }
        if inspected.sort.is_absent() {
            flags |= DOCUMENT_ADD_SORT;
        }
        return Ok(flags);
    }
    match &inspected.id {
        KeyField::Absent => Ok(DOCUMENT_ADD_ID),
        KeyField::Text(text) if text == id => Ok(0),
        KeyField::Text(text) => {
            Err(DocumentError::KeyMismatch { field: "id", found: text.to_string(), expected: id.to_owned() })
        }
        KeyField::Other(found) => Err(DocumentError::BadKeyField { field: "id", found: (*found).to_owned() }),
    }
}

/// A stored document as callers see it: with `id` and `sort`, when it has none of its own, in front.
///
/// Shares `body` when nothing has to be added. `body` is trusted to be an object ([`inspect`]).
pub fn present(id: &str, sort: Option<&str>, flags: u32, body: &Bytes) -> Bytes {
    let adds = flags & DOCUMENT_ADD_ID != 0 || (sort.is_some() && flags & DOCUMENT_ADD_SORT != 0);
    if !adds {
        return body.clone();
    }
    let mut shown = BytesMut::with_capacity(body.len() + id.len() + sort.map_or(0, str::len) + 24);
    put_presented(&mut shown, id, sort, flags, body);
    shown.freeze()
}

/// Appends the same to `out`.
pub fn put_presented(out: &mut BytesMut, id: &str, sort: Option<&str>, flags: u32, body: &[u8]) {
    let id = Some(id).filter(|_| flags & DOCUMENT_ADD_ID != 0);
    let sort = sort.filter(|_| flags & DOCUMENT_ADD_SORT != 0);
    let open = body.iter().position(|&byte| byte == b'{').filter(|_| id.is_some() || sort.is_some());
    let Some(rest) = open.and_then(|open| body.get(open + 1..)) else {
        out.extend_from_slice(body);
        return;
    };
    out.put_u8(b'{');
    if let Some(id) = id {
        put_field(out, "id", id);
    }
    if let Some(sort) = sort {
        if id.is_some() {
            out.put_u8(b',');
        }
        put_field(out, "sort", sort);
    }
    let empty = rest.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
    if !empty {
        out.put_u8(b',');
    }
    out.extend_from_slice(rest);
}

fn put_field(out: &mut BytesMut, name: &str, value: &str) {
    out.put_u8(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    // A string always serialises, and writing to memory cannot fail.
    let _ = serde_json::to_writer(out.writer(), value);
}

/// The `ETag` of a version: a quoted string (RFC 9110 §8.8.3).
pub fn etag(version: u64) -> String {
    format!("\"{version:x}\"")
}

/// The version of one entity tag, quotes included; weak tags compare as strong ones never do, so they are `None`.
pub fn parse_etag(tag: &str) -> Option<u64> {
    let inner = tag.trim().strip_prefix('"')?.strip_suffix('"')?;
    let plain = inner.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    // Tags are compared as texts (RFC 9110 §8.8.3.2): one with zeros in front is another, and was never given out.
    let whole = inner == "0" || !inner.starts_with('0');
    if plain && whole { u64::from_str_radix(inner, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(id: &str, sort: Option<&str>, body: &'static str) -> String {
        let inspected = inspect(body.as_bytes()).unwrap();
        let flags = flags(&inspected, id, sort).unwrap();
        String::from_utf8(present(id, sort, flags, &Bytes::from_static(body.as_bytes())).to_vec()).unwrap()
    }

    #[test]
    fn missing_keys_are_added_in_front() {
        assert_eq!(shown("a\"b", None, "{}"), r#"{"id":"a\"b"}"#);
        assert_eq!(shown("a", None, " { } "), r#"{"id":"a" } "#);
        assert_eq!(shown("a", None, r#"{"x":1}"#), r#"{"id":"a","x":1}"#);
        assert_eq!(shown("a", Some("s"), r#"{"x":1}"#), r#"{"id":"a","sort":"s","x":1}"#);
        assert_eq!(shown("1", Some("s"), r#"{"id":7}"#), r#"{"sort":"s","id":7}"#);
        assert_eq!(shown("1", None, r#"{"x":2,"id":1}"#), r#"{"x":2,"id":1}"#);
    }

    #[test]
    fn an_id_that_names_another_document_is_refused() {
        let inspected = inspect(br#"{"id":2}"#).unwrap();
        assert!(matches!(flags(&inspected, "1", None), Err(DocumentError::KeyMismatch { field: "id", .. })));
        for body in [r#"{"id":1.5}"#, r#"{"id":null}"#, r#"{"id":[1]}"#, r#"{"id":{}}"#, r#"{"id":true}"#] {
            let inspected = inspect(body.as_bytes()).unwrap();
            assert!(matches!(flags(&inspected, "1", None), Err(DocumentError::BadKeyField { .. })), "{body}");
        }
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        for body in ["", "[]", "1", "\"x\"", "null", "true", "{", "{}x", "{\"a\":}", "{\"a\":1,}", "nul"] {
            assert!(inspect(body.as_bytes()).is_err(), "{body}");
        }
        assert!(inspect(b"{\"a\":\"\xff\"}").is_err());
        assert!(inspect(br#"{"a":"\ud800"}"#).is_err(), "lone surrogate");
        assert!(inspect(br#"{"a":1e999}"#).is_err(), "number out of range");
        assert!(inspect(br#"{"id":"a","id":"b"}"#).is_err(), "two ids");
    }

    #[test]
    fn depth_is_limited() {
        let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(inspect(nested(limits::DOCUMENT_DEPTH_MAX - 1).as_bytes()).is_ok());
        let error = inspect(nested(limits::DOCUMENT_DEPTH_MAX + 1).as_bytes()).unwrap_err();
        assert!(error.to_string().contains("100 levels"), "{error}");
        let (field, limit) = (Some("a".to_owned()), Some(limits::DOCUMENT_DEPTH_MAX));
        assert!(
            matches!(error, DocumentError::Malformed { field: f, limit: l, .. } if (&f, l) == (&field, limit))
        );
    }

    #[test]
    fn the_place_of_a_fault_is_named() {
        let long = format!("{{\"{}\":}}", "k".repeat(300));
        for (body, place) in [
            (r#"{"a":{"b":[1,{"c":1e999}]}}"#, Some("a.b[1].c")),
            (r#"{"a":[1,,2]}"#, Some("a[1]")),
            (r#"{"a":"\ud800"}"#, Some("a")),
            (r#"{"id":{"a":nul}}"#, Some("id.a")),
            (r#"{"id":"a","id":"b"}"#, Some("id")),
            ("{}x", None),
            ("", None),
            ("{", None),
            (&long, None),
        ] {
            match inspect(body.as_bytes()) {
                Err(DocumentError::Malformed { field, limit: None, .. }) => {
                    assert_eq!(field.as_deref(), place, "{body}")
                }
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn etags_round_trip_and_reject_foreign_ones() {
        for version in [0, 1, 0xabc, u64::MAX] {
            assert_eq!(parse_etag(&etag(version)), Some(version));
        }
        for tag in
            ["W/\"1\"", "1", "\"\"", "\"+1\"", "\"g\"", "\"", "\"01\"", "\"00\"", "\"11111111111111111\""]
        {
            assert_eq!(parse_etag(tag), None, "{tag}");
        }
    }
}
