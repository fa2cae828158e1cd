//! Answers that are not problems: the headers that every one carries, and JSON put together without parsing.

use std::fmt::Write as _;

use axum::body::Body;
use axum::response::Response;
use borough_proto::document::etag;
use borough_proto::exchange::{Answer, ForwardError};
use borough_proto::http_api::{format_time, headers as names};
use borough_proto::session::Session;
use borough_proto::{NodeId, ShardId};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub const SHARD: HeaderName = HeaderName::from_static(names::SHARD);
pub const NODE: HeaderName = HeaderName::from_static(names::NODE);
const SESSION: HeaderName = HeaderName::from_static(names::SESSION);
const EXPIRES: HeaderName = HeaderName::from_static(names::EXPIRES);
const CACHE_STATUS: HeaderName = HeaderName::from_static(names::CACHE_STATUS);

/// What nodes said besides their answers: who they are, and what a session has seen now.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    session: Session,
    /// Whether the session has seen anything of this request.
    answered: bool,
    /// Shards that were asked, and who answered.
    shards: Vec<(ShardId, Option<NodeId>)>,
}

impl Trace {
    /// Starts from what the caller has seen before.
    pub fn new(session: Option<&Session>) -> Self {
        Self { session: session.cloned().unwrap_or_default(), answered: false, shards: Vec::new() }
    }

    pub fn note<T>(&mut self, answer: &Answer<T>) {
        self.session.observe(answer.shard, answer.index);
        self.answered = true;
        self.add(answer.shard, Some(answer.node));
    }

    /// A part of the request that has no answer.
    pub fn note_failed(&mut self, error: &ForwardError) {
        self.add(error.shard, error.node);
    }

    fn add(&mut self, shard: ShardId, node: Option<NodeId>) {
        if !self.shards.contains(&(shard, node)) {
            self.shards.push((shard, node));
        }
    }

    /// `Borough-Shard`, `Borough-Node` (lists when there are several) and `Borough-Session`.
    pub fn write(&self, headers: &mut HeaderMap) {
        match self.shards.as_slice() {
            [] => return,
            [(shard, node)] => {
                headers.insert(SHARD, HeaderValue::from(shard.get()));
                if let Some(node) = node {
                    headers.insert(NODE, HeaderValue::from(node.get()));
                }
            }
            several => {
                let list = |number: fn(&(ShardId, Option<NodeId>)) -> Option<u64>| {
                    let mut numbers: Vec<u64> = several.iter().filter_map(number).collect();
                    numbers.sort_unstable();
                    numbers.dedup();
                    let mut list = String::with_capacity(3 * numbers.len());
                    for number in numbers {
                        let comma = if list.is_empty() { "" } else { "," };
                        // Writing to memory cannot fail.
                        let _ = write!(list, "{comma}{number}");
                    }
                    list
                };
                insert(headers, SHARD, list(|(shard, _)| Some(u64::from(shard.get()))));
                let nodes = list(|(_, node)| node.map(NodeId::get));
                if !nodes.is_empty() {
                    insert(headers, NODE, nodes);
                }
            }
        }
        if self.answered {
            insert(headers, SESSION, self.session.encode());
        }
    }
}

/// Inserts text that is made of visible ASCII.
fn insert(headers: &mut HeaderMap, name: HeaderName, text: String) {
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
        headers.insert(name, value);
    }
}

/// Completes what every answer carries: the shard and the node that it concerns, `none` where there are none.
pub fn put_none(headers: &mut HeaderMap) {
    for name in [SHARD, NODE] {
        headers.entry(name).or_insert(HeaderValue::from_static("none"));
    }
}

/// `ETag`, unless there is no version.
pub fn put_etag(headers: &mut HeaderMap, version: u64) {
    if version != 0 {
        insert(headers, ETAG, etag(version));
    }
}

/// Appends the entity tag of a version as a JSON string.
pub fn put_etag_json(out: &mut BytesMut, version: u64) {
    // Writing to memory cannot fail.
    let _ = write!(out, "\"\\\"{version:x}\\\"\"");
}

/// `Borough-Expires`, if the document does.
pub fn put_expires(headers: &mut HeaderMap, expires_ms: Option<u64>) {
    if let Some(expires) = expires_ms {
        insert(headers, EXPIRES, format_time(expires));
    }
}

/// `Cache-Status` (RFC 9211).
pub fn put_cache_status(headers: &mut HeaderMap, hit: bool) {
    let status = if hit { "borough; hit" } else { "borough; fwd=miss" };
    headers.insert(CACHE_STATUS, HeaderValue::from_static(status));
}

/// A response with a JSON body.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A response with a value as its JSON body.
pub fn json_value<T: serde::Serialize>(status: StatusCode, value: &T) -> Response {
    // The types of the API are plain structs: they always serialise.
    json(status, serde_json::to_vec(value).unwrap_or_default())
}

/// A response without a body.
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// The answer to `HEAD` is that to `GET` without its body.
pub fn without_body(mut response: Response) -> Response {
    let bytes = axum::body::HttpBody::size_hint(response.body()).exact();
    if let Some(bytes) = bytes {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    *response.body_mut() = Body::empty();
    response
}

/// `{"items":[…]` and further fields, from JSON that is known to be well formed.
#[derive(Debug)]
pub struct Items {
    json: BytesMut,
    any: bool,
}

impl Items {
    pub fn new(capacity: usize) -> Self {
        let mut json = BytesMut::with_capacity(capacity + 64);
        json.put_slice(b"{\"items\":[");
        Self { json, any: false }
    }

    /// Adds one item, which `write` appends as JSON.
    pub fn push(&mut self, write: impl FnOnce(&mut BytesMut)) {
        if self.any {
            self.json.put_u8(b',');
        }
        self.any = true;
        write(&mut self.json);
    }

    /// The whole object; `next` becomes `nextPageToken`.
    pub fn finish(mut self, next: Option<&str>) -> Bytes {
        self.json.put_u8(b']');
        if let Some(token) = next {
            self.json.put_slice(b",\"nextPageToken\":");
            put_json(&mut self.json, token);
        }
        self.json.put_u8(b'}');
        self.json.freeze()
    }
}

/// Appends `value` as JSON.
pub fn put_json<T: serde::Serialize + ?Sized>(out: &mut BytesMut, value: &T) {
    // Writing to memory cannot fail, and the types of the API always serialise.
    let _ = serde_json::to_writer(out.writer(), value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_make_one_json_object() {
        let mut items = Items::new(0);
        assert_eq!(Items::new(0).finish(None), "{\"items\":[]}");
        items.push(|out| out.put_slice(b"{\"a\":1}"));
        items.push(|out| put_json(out, "x\"y"));
        assert_eq!(items.finish(Some("t")), "{\"items\":[{\"a\":1},\"x\\\"y\"],\"nextPageToken\":\"t\"}");
    }

    #[test]
    fn an_entity_tag_in_json_is_that_of_the_header() {
        for version in [1, 0xab, u64::MAX] {
            let mut out = BytesMut::new();
            put_etag_json(&mut out, version);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), etag(version));
        }
    }

    #[test]
    fn a_trace_lists_all_who_answered_and_keeps_what_was_seen() {
        let mut before = Session::default();
        before.observe(ShardId(9), 90);
        let mut trace = Trace::new(Some(&before));
        for (shard, node) in [(2, 1), (1, 1), (2, 1)] {
            trace.note(&Answer {
                body: (),
                shard: ShardId(shard),
                node: NodeId(node),
                epoch: 1,
                index: 7,
                attempts: 1,
            });
        }
        let mut headers = HeaderMap::new();
        trace.write(&mut headers);
        assert_eq!(headers[SHARD], "1,2");
        assert_eq!(headers[NODE], "1");
        let session = Session::decode(headers[SESSION].to_str().unwrap()).unwrap();
        assert_eq!(session.min_index(ShardId(9)), Some(90));
        assert_eq!(session.min_index(ShardId(2)), Some(7));
    }
}
