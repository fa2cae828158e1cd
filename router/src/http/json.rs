//! JSON envelopes of requests. An envelope is an object, and so is each of its items.
//!
//! serde's derived structs take an array of their fields too; the API doesn't.

use std::fmt;
use std::marker::PhantomData;

use borough_proto::error::ProblemType;
use borough_proto::http_api::{BatchDelete, BatchKey, BatchPatch, BatchPut, BatchWrite, TransactOp};
use borough_proto::place::{join, place};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::refusal::Refusal;

/// Reads an envelope.
///
/// # Errors
/// 400 with the place of the mistake.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    match serde_json::from_slice::<Object<T>>(body) {
        Ok(parsed) => Ok(parsed.0),
        Err(error) => {
            // Read once more for the place, so that envelopes without fault pay nothing for it.
            let mut json = serde_json::Deserializer::from_slice(body);
            let again = serde_path_to_error::deserialize::<_, Object<T>>(&mut json);
            Err(again.err().map_or_else(
                || Refusal::new(ProblemType::MalformedJson, error.to_string()),
                |error| refuse(&error),
            ))
        }
    }
}

fn refuse(error: &serde_path_to_error::Error<serde_json::Error>) -> Refusal {
    let (detail, place) = (error.inner().to_string(), place(error.path()));
    // The path to a field that is missing ends at what lacks it; serde's words are all that names it.
    let missing = detail.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    let field = match (place, missing) {
        (None, None) => None,
        (place, missing) => Some(join(&place.unwrap_or_default(), missing.unwrap_or_default())),
    };
    let refusal = Refusal::new(ProblemType::MalformedJson, detail);
    match field {
        Some(field) => refusal.field(&field),
        None => refusal,
    }
}

/// A `T` that is written as a JSON object.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// Body of `:batchGet`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchGetBody {
    pub ids: Vec<KeyBody>,
}

/// One key of a `:batchGet`: an id, or in a sorted collection an object with `id` and `sort`.
#[derive(Debug)]
pub struct KeyBody(pub BatchKey);

impl<'de> Deserialize<'de> for KeyBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeyVisitor).map(Self)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = BatchKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id, or an object with \"id\" and \"sort\"")
    }

    fn visit_str<E: Error>(self, id: &str) -> Result<BatchKey, E> {
        Ok(BatchKey::Id(id.to_owned()))
    }

    fn visit_string<E: Error>(self, id: String) -> Result<BatchKey, E> {
        Ok(BatchKey::Id(id))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BatchKey, A::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Sorted {
            id: String,
            sort: String,
        }
        let Sorted { id, sort } = Sorted::deserialize(MapAccessDeserializer::new(map))?;
        Ok(BatchKey::Sorted { id, sort })
    }
}

/// Body of `:batchWrite`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchWriteBody {
    pub writes: Vec<WriteBody>,
}

/// One write of a `:batchWrite`: an object with one member that says what is done.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WriteBody {
    Put(Object<BatchPut>),
    Patch(Object<BatchPatch>),
    Delete(Object<BatchDelete>),
}

impl From<WriteBody> for BatchWrite {
    fn from(body: WriteBody) -> Self {
        match body {
            WriteBody::Put(Object(put)) => Self::Put(put),
            WriteBody::Patch(Object(patch)) => Self::Patch(patch),
            WriteBody::Delete(Object(delete)) => Self::Delete(delete),
        }
    }
}

/// Body of `:transact`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransactBody {
    pub ops: Vec<Object<TransactOp>>,
}

#[cfg(test)]
mod tests {
    use borough_proto::http_api::CollectionOptions;

    use super::*;

    #[test]
    fn an_array_of_a_structs_fields_is_no_object() {
        fn status<'a, T: Deserialize<'a> + fmt::Debug>(body: &'a str) -> Option<u16> {
            parse::<T>(body.as_bytes()).err().map(|refusal| refusal.status())
        }
        for body in ["[]", "[true]", "null", "1", "\"a\"", "", "{} {}"] {
            assert_eq!(status::<CollectionOptions>(body), Some(400), "{body}");
        }
        assert_eq!(status::<CollectionOptions>(" {} "), None);
        for body in ["[[\"a\"]]", r#"{"ids":[["a","b"]]}"#, r#"{"ids":[1]}"#, r#"{"ids":[{"id":"a"}]}"#] {
            assert_eq!(status::<BatchGetBody>(body), Some(400), "{body}");
        }
        assert_eq!(status::<BatchGetBody>(r#"{"ids":["a",{"id":"a","sort":"\u0062"}]}"#), None);
        for body in
            [r#"[[{"delete":{"id":"a"}}]]"#, r#"{"writes":[{"delete":["a"]}]}"#, r#"{"writes":[["a"]]}"#]
        {
            assert_eq!(status::<BatchWriteBody>(body), Some(400), "{body}");
        }
        let put = r#"{"writes":[{"put":{"id":"a","document":{"n":1.50}}}]}"#;
        let mut put = parse::<BatchWriteBody>(put.as_bytes()).unwrap();
        let Some(WriteBody::Put(Object(put))) = put.writes.pop() else { panic!("no put") };
        assert_eq!(put.document.get(), "{\"n\":1.50}", "kept as it was sent");
        for body in [r#"[[]]"#, r#"{"ops":[["users"]]}"#, r#"{"ops":{}}"#] {
            assert_eq!(status::<TransactBody>(body), Some(400), "{body}");
        }
        assert_eq!(status::<TransactBody>(r#"{"ops":[{"collection":"users","delete":true}]}"#), None);
    }

    #[test]
    fn the_place_of_a_mistake_is_named() {
        fn place<'a, T: Deserialize<'a> + fmt::Debug>(body: &'a str) -> Option<String> {
            let problem = parse::<T>(body.as_bytes()).unwrap_err().into_problem();
            assert!(!problem.detail.contains("untagged"), "{problem:?}");
            problem.field
        }
        for (body, expected) in [
            ("", None),
            ("[]", None),
            (r#"{"ids":[]} {}"#, None),
            ("{}", Some("ids")),
            (r#"{"ids":1}"#, Some("ids")),
            (r#"{"ids":[],"more":1}"#, Some("more")),
            (r#"{"ids":[1,null]}"#, Some("ids[0]")),
            (r#"{"ids":["a",null]}"#, Some("ids[1]")),
            (r#"{"ids":["a",{"id":"b"}]}"#, Some("ids[1].sort")),
            (r#"{"ids":["a",{"id":"b","sort":1}]}"#, Some("ids[1].sort")),
            (r#"{"ids":["a",}"#, Some("ids[1]")),
        ] {
            assert_eq!(place::<BatchGetBody>(body).as_deref(), expected, "{body}");
        }
        for (body, expected) in [
            (r#"{"writes":[{"put":{"id":"a"}}]}"#, "writes[0].put.document"),
            (r#"{"writes":[{"delete":{"id":"a"}},{"delete":{"id":1}}]}"#, "writes[1].delete.id"),
            (r#"{"writes":[{"patch":{"id":"a","merge":{},"ifAbsent":true}}]}"#, "writes[0].patch.ifAbsent"),
            (r#"{"writes":[{"put":[]}]}"#, "writes[0].put"),
            (r#"{"writes":[{"upsert":{}}]}"#, "writes[0]"),
            (r#"{"writes":[{"put":{"id":"a","document":{}},"delete":{}}]}"#, "writes[0]"),
        ] {
            assert_eq!(place::<BatchWriteBody>(body).as_deref(), Some(expected), "{body}");
        }
        assert_eq!(
            place::<TransactBody>(r#"{"ops":[{"delete":true}]}"#).as_deref(),
            Some("ops[0].collection")
        );
        assert_eq!(place::<CollectionOptions>(r#"{"sortKey":1}"#).as_deref(), Some("sortKey"));
    }
}
