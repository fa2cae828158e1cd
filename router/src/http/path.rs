//! What a request's path names.
//!
//! Paths are taken apart by hand: ids hold any character once percent-encoded, and a raw `:` in the last segment sets a
//! custom method off (`users:batchGet`), which a routing table of patterns cannot tell from an id.

use std::borrow::Cow;

use borough_proto::error::ProblemType;
use borough_proto::limits::{ID_BYTES_MAX, SORT_BYTES_MAX};
use borough_proto::wire::Control;

use super::refusal::Refusal;

/// A path, with its segments decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target<'a> {
    /// `/v1/{collection}`
    Collection {
        collection: Cow<'a, str>,
    },
    /// `/v1/{collection}:batchGet`
    BatchGet {
        collection: Cow<'a, str>,
    },
    /// `/v1/{collection}:batchWrite`
    BatchWrite {
        collection: Cow<'a, str>,
    },
    /// `/v1/{collection}/{id}`
    Document {
        collection: Cow<'a, str>,
        id: Cow<'a, str>,
    },
    /// `/v1/{collection}/{id}/{sort}`
    Item {
        collection: Cow<'a, str>,
        id: Cow<'a, str>,
        sort: Cow<'a, str>,
    },
    /// `/v1/partitions/{id}:transact`
    Transact {
        id: Cow<'a, str>,
    },
    Cluster,
    AdminCollections,
    AdminCollection {
        name: Cow<'a, str>,
    },
    /// `/admin/v1/rebalances`
    Rebalances,
    /// `/admin/v1/operations`
    Operations,
    /// `/admin/v1/operations/{id}`
    Operation {
        id: u64,
    },
    /// `/admin/v1/operations/{id}:pause`, `:resume`, `:cancel`
    OperationControl {
        id: u64,
        control: Control,
    },
    /// `/admin/v1/nodes/{id}:drain`, `:undrain`, `:remove`
    NodeChange {
        id: u64,
        change: NodeChange,
    },
    Livez,
    Readyz,
    Metrics,
}

/// What can be done with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeChange {
    Drain,
    Undrain,
    Remove,
}

impl<'a> Target<'a> {
    /// Takes the raw path of a request apart.
    ///
    /// # Errors
    /// 404 for what the API does not have, 400 for an id or sort key that cannot be one.
    pub fn parse(path: &'a str) -> Result<Self, Refusal> {
        match path {
            "/livez" => return Ok(Self::Livez),
            "/readyz" => return Ok(Self::Readyz),
            "/metrics" => return Ok(Self::Metrics),
            "/admin/v1/cluster" => return Ok(Self::Cluster),
            "/admin/v1/collections" => return Ok(Self::AdminCollections),
            "/admin/v1/rebalances" => return Ok(Self::Rebalances),
            "/admin/v1/operations" => return Ok(Self::Operations),
            _ => {}
        }
        if let Some(rest) = path.strip_prefix("/admin/v1/operations/").filter(|rest| !rest.contains('/')) {
            return Self::operation(path, rest);
        }
        if let Some(rest) = path.strip_prefix("/admin/v1/nodes/").filter(|rest| !rest.contains('/')) {
            return Self::node(path, rest);
        }
        if let Some(name) = path.strip_prefix("/admin/v1/collections/").filter(|name| !name.contains('/')) {
            return Ok(Self::AdminCollection { name: decode(name, "collection")? });
        }
        let rest = path.strip_prefix("/v1/").ok_or_else(|| no_such_path(path))?;
        let mut segments = rest.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some(collection), None, None, None) => Self::collection(path, collection),
            (Some("partitions"), Some(last), None, None) => match last.split_once(':') {
                Some((id, "transact")) => Ok(Self::Transact { id: key(id, "id", ID_BYTES_MAX)? }),
                Some(_) | None => Err(no_such_path(path)),
            },
            (Some(collection), Some(id), None, None) => {
                no_colon(id, "id")?;
                let (collection, id) = (decode(collection, "collection")?, key(id, "id", ID_BYTES_MAX)?);
                Ok(Self::Document { collection, id })
            }
            (Some(collection), Some(id), Some(sort), None) => {
                no_colon(sort, "sort")?;
                Ok(Self::Item {
                    collection: decode(collection, "collection")?,
                    id: key(id, "id", ID_BYTES_MAX)?,
                    sort: key(sort, "sort", SORT_BYTES_MAX)?,
                })
            }
            _ => Err(no_such_path(path).detail("a `/` within an id must be percent-encoded as %2F")),
        }
    }

    fn operation(path: &str, segment: &str) -> Result<Self, Refusal> {
        let Some((id, verb)) = segment.split_once(':') else {
            return Ok(Self::Operation { id: number(segment, "operation")? });
        };
        let control = match verb {
            "pause" => Control::Pause,
            "resume" => Control::Resume,
            "cancel" => Control::Cancel,
            _ => {
                let known = "an operation has the methods pause, resume and cancel";
                return Err(no_such_path(path).detail(known));
            }
        };
        Ok(Self::OperationControl { id: number(id, "operation")?, control })
    }

    fn node(path: &str, segment: &str) -> Result<Self, Refusal> {
        let (id, change) = match segment.split_once(':') {
            Some((id, "drain")) => (id, NodeChange::Drain),
            Some((id, "undrain")) => (id, NodeChange::Undrain),
            Some((id, "remove")) => (id, NodeChange::Remove),
            Some(_) | None => {
                let known =
                    "a node has the methods drain, undrain and remove; /admin/v1/cluster tells its state";
                return Err(no_such_path(path).detail(known));
            }
        };
        Ok(Self::NodeChange { id: number(id, "node")?, change })
    }

    fn collection(path: &str, segment: &'a str) -> Result<Self, Refusal> {
        match segment.split_once(':') {
            None if segment.is_empty() => Err(no_such_path(path)),
            None => Ok(Self::Collection { collection: decode(segment, "collection")? }),
            Some((name, "batchGet")) => Ok(Self::BatchGet { collection: decode(name, "collection")? }),
            Some((name, "batchWrite")) => Ok(Self::BatchWrite { collection: decode(name, "collection")? }),
            Some((_, method)) => Err(no_such_path(path).detail(&format!(
                "a collection has no method {method:?}: there are batchGet and batchWrite"
            ))),
        }
    }
}

/// The id of a node or an operation.
fn number(text: &str, field: &'static str) -> Result<u64, Refusal> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let id = text.parse().ok().filter(|&id: &u64| digits && id > 0);
    id.ok_or_else(|| {
        Refusal::new(ProblemType::BadId, format!("{field:?} is a number from 1, not {text:?}")).field(field)
    })
}

fn no_such_path(path: &str) -> Refusal {
    Refusal::new(
        ProblemType::NotFound,
        format!("{path:?} is no resource of this API; /openapi.json lists them"),
    )
}

/// A raw `:` in the last segment sets off a custom method, and documents have none.
fn no_colon(segment: &str, field: &'static str) -> Result<(), Refusal> {
    if segment.contains(':') {
        let detail = format!(
            "a `:` within {field:?} must be percent-encoded as %3A; documents have no custom methods"
        );
        return Err(Refusal::new(ProblemType::BadId, detail).field(field));
    }
    Ok(())
}

/// An id or a sort key: percent-decoded, not empty, UTF-8, within its limit.
fn key<'a>(segment: &'a str, field: &'static str, bytes_max: usize) -> Result<Cow<'a, str>, Refusal> {
    let text = decode(segment, field)?;
    check_key(&text, field, bytes_max)?;
    Ok(text)
}

/// Whether `text` can be an id or a sort key.
///
/// # Errors
/// 400 naming the field and the limit.
pub fn check_key(text: &str, field: &'static str, bytes_max: usize) -> Result<(), Refusal> {
    if text.is_empty() {
        return Err(Refusal::new(
            ProblemType::BadId,
            format!("{field:?} is empty; it has 1 to {bytes_max} bytes"),
        )
        .field(field)
        .limit(bytes_max));
    }
    if text.len() > bytes_max {
        let detail = format!("{field:?} has {} bytes of UTF-8; the limit is {bytes_max}", text.len());
        return Err(Refusal::new(ProblemType::BadId, detail).field(field).limit(bytes_max));
    }
    Ok(())
}

fn decode<'a>(segment: &'a str, field: &'static str) -> Result<Cow<'a, str>, Refusal> {
    if !segment.contains('%') {
        return Ok(Cow::Borrowed(segment));
    }
    let bad = |what: &str| Refusal::new(ProblemType::BadId, format!("{field:?} {what}")).field(field);
    let bytes =
        unescape(segment.as_bytes()).ok_or_else(|| bad("holds a `%` without two hex digits after it"))?;
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| bad("is not UTF-8 once percent-decoded"))
}

/// Percent-decoding that refuses a broken escape instead of keeping it.
pub fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        if byte == b'%' {
            let (high, low) = (digit(*rest.next()?)?, digit(*rest.next()?)?);
            bytes.push(high << 4 | low);
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}

/// `text` as a path segment that [`Target::parse`] reads back.
pub fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, SEGMENT).to_string()
}

/// All but RFC 3986's unreserved characters.
const SEGMENT: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document<'a>(collection: &'a str, id: &'a str) -> Target<'a> {
        Target::Document { collection: collection.into(), id: id.into() }
    }

    #[test]
    fn every_resource_is_told_apart() {
        let users = || Cow::Borrowed("users");
        let table = [
            ("/v1/users", Target::Collection { collection: users() }),
            ("/v1/users:batchGet", Target::BatchGet { collection: users() }),
            ("/v1/users:batchWrite", Target::BatchWrite { collection: users() }),
            ("/v1/users/a%2Fb%3Ac", document("users", "a/b:c")),
            ("/v1/users/%00", document("users", "\0")),
            ("/v1/users/+", document("users", "+")),
            ("/v1/users/%E2%82%AC", document("users", "€")),
            ("/v1/posts/a/b", Target::Item { collection: "posts".into(), id: "a".into(), sort: "b".into() }),
            ("/v1/partitions/a%3Ab:transact", Target::Transact { id: "a:b".into() }),
            ("/admin/v1/cluster", Target::Cluster),
            ("/admin/v1/collections/x", Target::AdminCollection { name: "x".into() }),
        ];
        for (path, target) in table {
            assert_eq!(Target::parse(path).ok(), Some(target), "{path}");
        }
    }

    #[test]
    fn bad_ids_are_400_and_unknown_resources_404() {
        let long = format!("/v1/users/{}", "x".repeat(257));
        for path in [
            "/v1/users/",
            "/v1/users/%ff",
            "/v1/users/%2",
            "/v1/users/%zz",
            "/v1/users/a:b",
            "/v1/posts//s",
            &long,
        ] {
            assert_eq!(Target::parse(path).unwrap_err().status(), 400, "{path}");
        }
        for path in [
            "/",
            "/v1",
            "/v1/",
            "/v2/users",
            "/v1/users:drop",
            "/v1/a/b/c/d",
            "/v1/partitions/a",
            "/admin/v1/x",
        ] {
            assert_eq!(Target::parse(path).unwrap_err().status(), 404, "{path}");
        }
    }

    proptest! {
        #[test]
        fn every_id_survives_its_path(id in "\\PC{1,60}") {
            prop_assume!(id.len() <= ID_BYTES_MAX);
            let path = format!("/v1/users/{}", escape(&id));
            prop_assert_eq!(Target::parse(&path).ok(), Some(document("users", &id)));
        }

        #[test]
        fn no_path_panics(path in "\\PC{0,80}", tail in "[/:%a-f0-9.]{0,40}") {
            let _ = Target::parse(&path);
            let _ = Target::parse(&format!("/v1/{tail}"));
        }
    }
}
