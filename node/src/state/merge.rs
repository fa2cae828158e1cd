//! RFC 7396 merge patch on raw JSON: what the patch does not name stays byte for byte as it was sent,
//! numbers of any precision and member order included. Only objects that the patch reaches into are rewritten.
//!
//! One pass over each text, recursion bounded by the contract's depth. Both texts come from the network:
//! the patch is checked before and the result after, so nothing malformed is ever stored (I10).

use std::borrow::Cow;
use std::collections::BTreeMap;

use borough_proto::document::{DocumentError, flags, inspect, inspect_unbounded};
use borough_proto::limits;
use borough_proto::wire::OpStatus;
use bytes::Bytes;

/// A document after a merge.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Merged {
    pub body: Bytes,
    /// DOCUMENT_* bits.
    pub flags: u32,
}

/// Why a patch cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum MergeError {
    #[error("merge: {0}")]
    Refused(#[from] DocumentError),
    #[error("merge: malformed or too deep near byte {at}")]
    Malformed { at: usize },
}

impl From<MergeError> for OpStatus {
    fn from(error: MergeError) -> Self {
        match error {
            MergeError::Refused(DocumentError::TooLarge { .. }) => Self::TooLarge,
            MergeError::Refused(
                DocumentError::Malformed { .. }
                | DocumentError::NotAnObject { .. }
                | DocumentError::BadKeyField { .. }
                | DocumentError::KeyMismatch { .. },
            )
            | MergeError::Malformed { .. } => Self::InvalidMerge,
        }
    }
}

/// Merges `patch` into the document (`id`, `sort`), whose body is `target`.
///
/// # Errors
/// [`MergeError`] when the patch is no object within the limits, or the result is no document of this name.
pub(super) fn document(
    target: &[u8],
    patch: &[u8],
    id: &str,
    sort: Option<&str>,
) -> Result<Merged, MergeError> {
    inspect_unbounded(patch)?;
    let body = Bytes::from(merge(text(target)?, text(patch)?)?);
    let inspected = inspect(&body)?;
    let flags = flags(&inspected, id, sort)?;
    drop(inspected);
    Ok(Merged { body, flags })
}

fn text(bytes: &[u8]) -> Result<&str, MergeError> {
    std::str::from_utf8(bytes).map_err(|error| MergeError::Malformed { at: error.valid_up_to() })
}

fn merge(target: &str, patch: &str) -> Result<String, MergeError> {
    let patch = Cursor::new(patch).patch(1)?;
    let target = Cursor::new(target).target(&patch, 1)?;
    let mut merged = String::new();
    write_merged(&mut merged, &target, &patch);
    Ok(merged)
}

/// An object of the patch.
#[derive(Debug, Default)]
struct Patch<'a> {
    /// In the order of the patch, each name once.
    members: Vec<PatchMember<'a>>,
    places: BTreeMap<Cow<'a, str>, usize>,
}

#[derive(Debug)]
struct PatchMember<'a> {
    /// As spelled, with quotes.
    name: &'a str,
    change: Change<'a>,
}

#[derive(Debug)]
enum Change<'a> {
    Remove,
    /// Anything but `null` and objects.
    Replace(&'a str),
    Merge(Patch<'a>),
}

/// A member of an object of the document that the patch reaches into.
#[derive(Debug)]
struct Member<'a> {
    /// As spelled, with quotes.
    name: &'a str,
    /// Where the patch names it.
    place: Option<usize>,
    value: Value<'a>,
}

#[derive(Debug)]
enum Value<'a> {
    Raw(&'a str),
    /// Only where the patch has an object too.
    Object(Vec<Member<'a>>),
}

/// Writes what `target` is after `patch`. Where a name occurs twice in the document, the last one counts.
fn write_merged(out: &mut String, target: &[Member<'_>], patch: &Patch<'_>) {
    let mut last_of: BTreeMap<usize, usize> = BTreeMap::new();
    for (position, member) in target.iter().enumerate() {
        if let Some(place) = member.place {
            last_of.insert(place, position);
        }
    }
    let mut object = Object::open(out);
    for (position, member) in target.iter().enumerate() {
        match (member.place, &member.value) {
            (None, Value::Raw(raw)) => object.name(member.name).push_str(raw),
            (Some(place), value) if last_of.get(&place) == Some(&position) => {
                let Some(named) = patch.members.get(place) else { continue };
                match (&named.change, value) {
                    (Change::Remove, _) => {}
                    (Change::Replace(raw), _) => object.name(member.name).push_str(raw),
                    (Change::Merge(inner), Value::Object(members)) => {
                        write_merged(object.name(member.name), members, inner);
                    }
                    (Change::Merge(inner), Value::Raw(_)) => {
                        write_merged(object.name(member.name), &[], inner)
                    }
                }
            }
            // An earlier one of two with the same name; an object is only taken apart where it has a place.
            (Some(_), _) | (None, Value::Object(_)) => {}
        }
    }
    for (place, named) in patch.members.iter().enumerate() {
        if last_of.contains_key(&place) {
            continue;
        }
        match &named.change {
            Change::Remove => {}
            Change::Replace(raw) => object.name(named.name).push_str(raw),
            Change::Merge(inner) => write_merged(object.name(named.name), &[], inner),
        }
    }
    object.close();
}

/// Puts the commas between members.
struct Object<'o> {
    out: &'o mut String,
    empty: bool,
}

impl<'o> Object<'o> {
    fn open(out: &'o mut String) -> Self {
        out.push('{');
        Self { out, empty: true }
    }

    /// Starts a member; its value is to be written next.
    fn name(&mut self, name: &str) -> &mut String {
        if !self.empty {
            self.out.push(',');
        }
        self.empty = false;
        self.out.push_str(name);
        self.out.push(':');
        self.out
    }

    fn close(self) {
        self.out.push('}');
    }
}

/// Walks JSON that is known to be well formed; on any other it ends with an error or with raw text that the
/// check of the result refuses.
#[derive(Debug)]
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn malformed(&self) -> MergeError {
        MergeError::Malformed { at: self.at }
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is not whitespace, without taking it.
    fn token(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.byte() {
            self.at += 1;
        }
        self.byte()
    }

    fn take(&mut self, expected: u8) -> Result<(), MergeError> {
        if self.token() != Some(expected) {
            return Err(self.malformed());
        }
        self.at += 1;
        Ok(())
    }

    fn since(&self, start: usize) -> Result<&'a str, MergeError> {
        self.text.get(start..self.at).ok_or_else(|| self.malformed())
    }

    /// A string as spelled, with quotes.
    fn string(&mut self) -> Result<&'a str, MergeError> {
        self.take(b'"')?;
        let start = self.at - 1;
        loop {
            match self.byte() {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
                None => return Err(self.malformed()),
            }
        }
        self.at += 1;
        self.since(start)
    }

    /// Any value as spelled.
    fn value(&mut self) -> Result<&'a str, MergeError> {
        self.token();
        let start = self.at;
        let mut open = 0_usize;
        loop {
            match self.byte() {
                Some(b'"') => drop(self.string()?),
                Some(b'{' | b'[') => {
                    open += 1;
                    self.at += 1;
                    continue;
                }
                Some(b'}' | b']') if open > 0 => {
                    open -= 1;
                    self.at += 1;
                }
                Some(b',' | b':' | b' ' | b'\t' | b'\r' | b'\n') if open > 0 => {
                    self.at += 1;
                    continue;
                }
                Some(_) => self.scalar()?,
                None => return Err(self.malformed()),
            }
            if open == 0 {
                return self.since(start);
            }
        }
    }

    /// Passes a number, `true`, `false` or `null`.
    fn scalar(&mut self) -> Result<(), MergeError> {
        let start = self.at;
        while let Some(b'0'..=b'9' | b'a'..=b'z' | b'+' | b'-' | b'.' | b'E') = self.byte() {
            self.at += 1;
        }
        if self.at == start { Err(self.malformed()) } else { Ok(()) }
    }

    /// Calls `member` with each name as spelled; it has to take the value.
    fn object(
        &mut self,
        depth: usize,
        mut member: impl FnMut(&mut Self, &'a str) -> Result<(), MergeError>,
    ) -> Result<(), MergeError> {
        if depth > limits::DOCUMENT_DEPTH_MAX {
            return Err(self.malformed());
        }
        self.take(b'{')?;
        if self.token() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.token();
            let name = self.string()?;
            self.take(b':')?;
            member(self, name)?;
            match self.token() {
                Some(b',') => self.at += 1,
                _ => return self.take(b'}'),
            }
        }
    }

    fn patch(&mut self, depth: usize) -> Result<Patch<'a>, MergeError> {
        let mut patch = Patch::default();
        self.object(depth, |cursor, name| {
            let change = match cursor.token() {
                Some(b'{') => Change::Merge(cursor.patch(depth + 1)?),
                Some(b'n') => {
                    cursor.scalar()?;
                    Change::Remove
                }
                _ => Change::Replace(cursor.value()?),
            };
            let next = patch.members.len();
            let place =
                *patch.places.entry(unescaped(name).ok_or_else(|| cursor.malformed())?).or_insert(next);
            match patch.members.get_mut(place) {
                // The last of two members with the same name counts.
                Some(earlier) => earlier.change = change,
                None => patch.members.push(PatchMember { name, change }),
            }
            Ok(())
        })?;
        Ok(patch)
    }

    fn target(&mut self, patch: &Patch<'_>, depth: usize) -> Result<Vec<Member<'a>>, MergeError> {
        let mut members = Vec::new();
        self.object(depth, |cursor, name| {
            let text = unescaped(name).ok_or_else(|| cursor.malformed())?;
            let place = patch.places.get(&text).copied();
            let change = place.and_then(|place| patch.members.get(place)).map(|member| &member.change);
            let value = match (change, cursor.token()) {
                (Some(Change::Merge(inner)), Some(b'{')) => Value::Object(cursor.target(inner, depth + 1)?),
                _ => Value::Raw(cursor.value()?),
            };
            members.push(Member { name, place, value });
            Ok(())
        })?;
        Ok(members)
    }
}

/// The text of a string that is spelled `raw`, quotes included.
fn unescaped(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(raw).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value as Json;

    use super::*;
    use crate::state::tests::naive_merge;

    fn merged(target: &str, patch: &str) -> String {
        let merged = document(target.as_bytes(), patch.as_bytes(), "1", None).unwrap();
        String::from_utf8(merged.body.to_vec()).unwrap()
    }

    fn refused(target: &str, patch: &str, sort: Option<&str>) -> OpStatus {
        document(target.as_bytes(), patch.as_bytes(), "1", sort).unwrap_err().into()
    }

    /// RFC 7396, appendix A: those whose target and result are objects.
    #[test]
    fn the_vectors_of_the_rfc_hold() {
        for (target, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            assert_eq!(merged(target, patch), result, "{target} + {patch}");
        }
        for patch in [r#"["c"]"#, "null", r#""bar""#, "", "{", r#"{"a":1"#, r#"{"a":1e999}"#, "\u{feff}{}"] {
            assert_eq!(refused(r#"{"a":"b"}"#, patch, None), OpStatus::InvalidMerge, "{patch}");
        }
    }

    #[test]
    fn what_the_patch_does_not_name_stays_byte_for_byte() {
        let target =
            r#"{ "n":1.000000000000000000001e2 , "\u0061b":{"x":-0,"y" :[ 1, 2 ]},"s":"}]\\\",{","t":0.10}"#;
        let patch = r#"{"ab":{"x":123456789012345678901234567890},"new":[ null ]}"#;
        let result = concat!(
            r#"{"n":1.000000000000000000001e2,"\u0061b":{"x":123456789012345678901234567890,"y":[ 1, 2 ]},"#,
            r#""s":"}]\\\",{","t":0.10,"new":[ null ]}"#
        );
        assert_eq!(merged(target, patch), result);
    }

    #[test]
    fn of_two_members_with_one_name_the_last_counts() {
        assert_eq!(merged(r#"{"a":{"x":1},"a":{"y":2}}"#, r#"{"a":{"z":3}}"#), r#"{"a":{"y":2,"z":3}}"#);
        assert_eq!(merged(r#"{"a":1,"b":2,"a":3}"#, r#"{"a":null}"#), r#"{"b":2}"#);
        assert_eq!(merged(r#"{"a":1,"a":2}"#, r#"{"b":1,"b":{"c":4}}"#), r#"{"a":1,"a":2,"b":{"c":4}}"#);
    }

    #[test]
    fn a_merge_cannot_rename_a_document() {
        assert_eq!(refused("{}", r#"{"id":"2"}"#, None), OpStatus::InvalidMerge);
        assert_eq!(refused(r#"{"id":"1"}"#, r#"{"id":{}}"#, None), OpStatus::InvalidMerge);
        let of = |target: &str, patch: &str, sort| {
            document(target.as_bytes(), patch.as_bytes(), "1", sort).unwrap().flags
        };
        assert_eq!(of("{}", r#"{"id":1}"#, None), 0);
        assert_eq!(of(r#"{"id":"1"}"#, r#"{"id":null}"#, None), borough_proto::document::DOCUMENT_ADD_ID);
        assert_eq!(of("{}", r#"{"id":"2"}"#, Some("s")), borough_proto::document::DOCUMENT_ADD_SORT);
    }

    #[test]
    fn size_and_depth_of_the_result_are_limited() {
        let half = "x".repeat(limits::DOCUMENT_BYTES_MAX / 2);
        assert_eq!(
            refused(&format!(r#"{{"a":"{half}"}}"#), &format!(r#"{{"b":"{half}"}}"#), None),
            OpStatus::TooLarge
        );
        let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert!(document(b"{}", nested(limits::DOCUMENT_DEPTH_MAX).as_bytes(), "1", None).is_ok());
        assert_eq!(refused("{}", &nested(limits::DOCUMENT_DEPTH_MAX + 1), None), OpStatus::InvalidMerge);
        assert_eq!(refused(&nested(5000), r#"{"b":1}"#, None), OpStatus::InvalidMerge);
        assert_eq!(refused(&"[".repeat(100_000), "{}", None), OpStatus::InvalidMerge);
    }

    fn json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            "[\"\\\\{}ab,: ü]{0,4}".prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![proptest::collection::vec(inner.clone(), 0..3).prop_map(Json::from), object(inner),]
        })
    }

    fn object(inner: impl Strategy<Value = Json>) -> impl Strategy<Value = Json> {
        proptest::collection::vec(("[ab\"\\\\]{1,2}", inner), 0..4)
            .prop_map(|members| Json::Object(members.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn merging_raw_text_is_merging_values(target in object(json()), patch in object(json()), pretty: bool) {
            let spell = |json: &Json| if pretty { format!("{json:#}") } else { json.to_string() };
            let result: Json = serde_json::from_str(&merged(&spell(&target), &spell(&patch))).unwrap();
            prop_assert_eq!(result, naive_merge(Some(&target), &patch));
        }

        #[test]
        fn hostile_text_never_panics(target in "[\"\\\\{}\\[\\]a1,: ü]{0,24}", patch in "[\"\\\\{}\\[\\]an,: ü]{0,24}") {
            if let Ok(merged) = document(target.as_bytes(), patch.as_bytes(), "1", None) {
                prop_assert!(inspect(&merged.body).is_ok());
            }
            let _ = merge(&target, &patch);
        }
    }
}
