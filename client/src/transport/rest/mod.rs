//! Through routers: what each call looks like in HTTP (the contract is API.md), and how its answer is read.
//! Attempts, retries and deadlines are [`exchange`]'s.

mod endpoints;
mod exchange;

use std::time::Duration;

use borough_proto::document::{KeyField, inspect_unbounded};
use borough_proto::error::{Outcome, ProblemType};
use borough_proto::http_api::{
    BatchGetRequest, BatchKey, BatchReply, BatchWrite, BatchWriteRequest, Page, TransactOp, TransactRequest,
    format_ttl, headers,
};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Method;
use reqwest::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use endpoints::Endpoints;
pub(crate) use exchange::{Answer, CONNECT_MAX, Outgoing, Rest};

use super::{Action, Call, Condition, Key, ListQuery, RawWritten, WriteRule};
use crate::document::{Etag, RawDoc, parse_time};
use crate::error::{Error, Result};

/// Everything but RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const MERGE_PATCH: HeaderValue = HeaderValue::from_static(headers::MERGE_PATCH);

fn encoded(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, SEGMENT)
}

/// One path segment. `.` and `..` are refused: every URL parser takes them, encoded or not, for steps of the path.
fn segment(operation: &str, text: &str) -> Result<String> {
    if text == "." || text == ".." {
        let detail = format!("{text:?} cannot be named in a URL; batch_get and batch_write can");
        return Err(Error::refused(operation, ProblemType::BadId, detail));
    }
    Ok(encoded(text).to_string())
}

fn target(operation: &str, key: &Key) -> Result<String> {
    let id = segment(operation, &key.id)?;
    match &key.sort {
        None => Ok(format!("/v1/{}/{id}", key.collection)),
        Some(sort) => Ok(format!("/v1/{}/{id}/{}", key.collection, segment(operation, sort)?)),
    }
}

fn ttl_text(ttl: Duration) -> String {
    format_ttl(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}

/// The query of a write.
fn ttl_query(ttl: Option<Duration>) -> String {
    ttl.map_or_else(String::new, |ttl| format!("?ttl={}", ttl_text(ttl)))
}

/// A JSON body of our own types.
fn body<T: Serialize>(operation: &str, value: &T) -> Result<Bytes> {
    let json = serde_json::to_vec(value);
    json.map(Bytes::from).map_err(|source| Error::Encode { operation: operation.to_owned(), source })
}

impl Rest {
    pub async fn get(&self, call: &Call, key: &Key) -> Result<Option<RawDoc>> {
        let out = read(call, Method::GET, target(&call.operation, key)?);
        let answer = match self.exchange(call, &out).await {
            Ok(answer) => answer,
            Err(Error::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let cache_hit = answer.header(headers::CACHE_STATUS).and_then(cache_hit);
        let (etag, expires) = (etag_of(call, &answer, Outcome::NotApplied)?, expires_of(&answer));
        Ok(Some(RawDoc { json: answer.body, etag, expires, cache_hit }))
    }

    pub async fn write(
        &self,
        call: &Call,
        key: &Key,
        action: &Action,
        rule: &WriteRule,
    ) -> Result<RawWritten> {
        let target = format!("{}{}", target(&call.operation, key)?, ttl_query(rule.ttl));
        let mut out = match action {
            Action::Put(document) => Outgoing::write(Method::PUT, target).body(JSON, document.clone()),
            Action::Patch(merge) => Outgoing::write(Method::PATCH, target).body(MERGE_PATCH, merge.clone()),
            Action::Delete => Outgoing::write(Method::DELETE, target),
        };
        match &rule.condition {
            Condition::None => {}
            Condition::Match(etag) => out = out.header(IF_MATCH, header(call, "If-Match", etag.as_str())?),
            Condition::Absent => out = out.header(IF_NONE_MATCH, HeaderValue::from_static("*")),
            Condition::Present => out = out.header(IF_MATCH, HeaderValue::from_static("*")),
        }
        let answer = self.exchange(call, &out).await?;
        let etag = match action {
            // What was deleted has no version any more; the answer may say which one it was.
            Action::Delete => answer.header("etag").map_or_else(|| Etag::from_version(0), Etag::from),
            Action::Put(_) | Action::Patch(_) => etag_of(call, &answer, Outcome::Applied)?,
        };
        let (created, expires) = (answer.status == 201, expires_of(&answer));
        let document = matches!(action, Action::Patch(_)).then_some(answer.body);
        Ok(RawWritten { id: None, created, etag, expires, document })
    }

    pub async fn create(
        &self,
        call: &Call,
        collection: &str,
        body: &Bytes,
        ttl: Option<Duration>,
    ) -> Result<RawWritten> {
        let target = format!("/v1/{collection}{}", ttl_query(ttl));
        let answer =
            self.exchange(call, &Outgoing::write(Method::POST, target).body(JSON, body.clone())).await?;
        let id = answer.header("location").and_then(id_of_location).or_else(|| id_of_body(&answer.body));
        let id = id.ok_or_else(|| missing(call, "Location", Outcome::Applied))?;
        let (etag, expires) = (etag_of(call, &answer, Outcome::Applied)?, expires_of(&answer));
        Ok(RawWritten { id: Some(id), created: true, etag, expires, document: None })
    }

    pub async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        let mut target = format!("/v1/{}", query.collection);
        if let Some(id) = &query.partition {
            target = format!("{target}/{}", segment(&call.operation, id)?);
        }
        let texts = [("start", &query.start), ("end", &query.end), ("pageToken", &query.page_token)];
        let mut parameters: Vec<String> = texts
            .into_iter()
            .filter_map(|(name, value)| value.as_deref().map(|value| format!("{name}={}", encoded(value))))
            .collect();
        parameters.extend(query.page_size.map(|size| format!("pageSize={size}")));
        parameters.extend(query.reverse.then(|| "reverse=true".to_owned()));
        parameters.extend(query.keys.then(|| "keys=true".to_owned()));
        parameters.extend(query.stored.then(|| "view=stored".to_owned()));
        if !parameters.is_empty() {
            target = format!("{target}?{}", parameters.join("&"));
        }
        let answer = self.exchange(call, &read(call, Method::GET, target)).await?;
        decoded(call, &answer, Outcome::NotApplied)
    }

    pub async fn batch_get(&self, call: &Call, collection: &str, keys: Vec<BatchKey>) -> Result<BatchReply> {
        let body = body(&call.operation, &BatchGetRequest { ids: keys })?;
        let out = read(call, Method::POST, format!("/v1/{collection}:batchGet")).body(JSON, body);
        decoded(call, &self.exchange(call, &out).await?, Outcome::NotApplied)
    }

    pub async fn batch_write(
        &self,
        call: &Call,
        collection: &str,
        writes: Vec<BatchWrite>,
    ) -> Result<BatchReply> {
        let body = body(&call.operation, &BatchWriteRequest { writes })?;
        let out = Outgoing::write(Method::POST, format!("/v1/{collection}:batchWrite")).body(JSON, body);
        decoded(call, &self.exchange(call, &out).await?, Outcome::Unknown)
    }

    pub async fn transact(&self, call: &Call, id: &str, ops: Vec<TransactOp>) -> Result<BatchReply> {
        let target = format!("/v1/partitions/{}:transact", segment(&call.operation, id)?);
        let out = Outgoing::write(Method::POST, target)
            .body(JSON, body(&call.operation, &TransactRequest { ops })?);
        decoded(call, &self.exchange(call, &out).await?, Outcome::Applied)
    }
}

/// A read as fresh as the call asks for.
fn read(call: &Call, method: Method, target: String) -> Outgoing {
    let out = Outgoing::read(method, target);
    match call.max_stale {
        // Whole seconds, rounded down: never staler than asked for.
        Some(age) => match HeaderValue::try_from(format!("max-stale={}", age.as_secs())) {
            Ok(value) => out.header(CACHE_CONTROL, value),
            Err(_) => out,
        },
        None => out,
    }
}

/// A caller's text as a header.
pub(crate) fn header(call: &Call, name: &'static str, value: &str) -> Result<HeaderValue> {
    HeaderValue::try_from(value).map_err(|_| {
        Error::refused(&call.operation, ProblemType::BadHeader, format!("{value:?} cannot be sent as {name}"))
    })
}

fn decoded<T: DeserializeOwned>(call: &Call, answer: &Answer, outcome: Outcome) -> Result<T> {
    serde_json::from_slice(&answer.body)
        .map_err(|source| Error::decode::<T>(&call.operation, outcome, source))
}

fn missing(call: &Call, name: &str, outcome: Outcome) -> Error {
    let source = serde::de::Error::custom(format_args!("the answer has no {name}"));
    Error::decode::<Answer>(&call.operation, outcome, source)
}

fn etag_of(call: &Call, answer: &Answer, outcome: Outcome) -> Result<Etag> {
    answer.header("etag").map(Etag::from).ok_or_else(|| missing(call, "ETag", outcome))
}

fn expires_of(answer: &Answer) -> Option<std::time::SystemTime> {
    answer.header(headers::EXPIRES).and_then(parse_time)
}

/// `Cache-Status: borough; hit` or `borough; fwd=miss` (RFC 9211).
fn cache_hit(value: &str) -> Option<bool> {
    let mut parts = value.split(';').map(str::trim);
    (parts.next() == Some("borough")).then(|| parts.any(|part| part == "hit"))
}

fn id_of_location(location: &str) -> Option<String> {
    let path = location.split(['?', '#']).next()?;
    let id = percent_decode_str(path.rsplit('/').next()?).decode_utf8().ok()?;
    (!id.is_empty()).then(|| id.into_owned())
}

fn id_of_body(body: &[u8]) -> Option<String> {
    match inspect_unbounded(body).ok()?.id {
        KeyField::Text(id) => Some(id.into_owned()),
        KeyField::Absent | KeyField::Other(_) => None,
    }
}

impl Outgoing {
    /// Changes nothing: may be sent any number of times.
    pub fn read(method: Method, target: String) -> Self {
        Self { method, target, headers: Vec::new(), body: None, write: false, resend: true }
    }

    /// A write that the idempotency key protects: resent only when the call has one.
    pub fn write(method: Method, target: String) -> Self {
        Self { method, target, headers: Vec::new(), body: None, write: true, resend: false }
    }

    /// A write that comes to the same however often it is sent.
    pub fn repeatable(mut self) -> Self {
        self.resend = true;
        self
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn body(mut self, content_type: HeaderValue, body: Bytes) -> Self {
        self.body = Some(body);
        self.header(CONTENT_TYPE, content_type)
    }

    /// A JSON body.
    pub fn json(self, body: Bytes) -> Self {
        self.body(JSON, body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_their_segment() {
        let key = |id: &str| Key { collection: "users".into(), id: id.into(), sort: None };
        assert_eq!(target("get", &key("a/b:c?ä")).unwrap(), "/v1/users/a%2Fb%3Ac%3F%C3%A4");
        for dots in [".", ".."] {
            assert!(matches!(target("get", &key(dots)), Err(Error::Invalid(_))), "{dots}");
        }
        assert_eq!(target("get", &key("...")).unwrap(), "/v1/users/...");
        assert_eq!(id_of_location("/v1/users/a%2Fb").as_deref(), Some("a/b"));
    }

    #[test]
    fn cache_status_is_read() {
        assert_eq!(cache_hit("borough; hit"), Some(true));
        assert_eq!(cache_hit("borough; fwd=miss"), Some(false));
        assert_eq!(cache_hit("nginx; hit"), None);
    }
}
