//! Calls to the REST API, and what every answer must have.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use borough_proto::error::{Outcome, Problem, ProblemType};
use borough_proto::http_api::headers;
pub use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde_json::Value;

/// Longest wait for one answer; above every deadline of the router.
const ANSWER_LIMIT: Duration = Duration::from_secs(70);

/// A caller of one router.
#[derive(Debug, Clone)]
pub struct Http {
    base: String,
    client: reqwest::Client,
    faults: Arc<Mutex<Vec<String>>>,
}

/// A call about to be sent.
#[derive(Debug)]
pub struct Call<'a> {
    http: &'a Http,
    what: String,
    request: reqwest::RequestBuilder,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The method and path asked.
    pub what: String,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// `text` as one segment of a path: all but unreserved characters percent-encoded (RFC 3986 §2.3).
pub fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

impl Http {
    /// A caller of the server at `base`, for example `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// When the client cannot be built.
    pub fn new(base: &str) -> anyhow::Result<Self> {
        Self::with_limit(base, ANSWER_LIMIT)
    }

    /// A caller that gives an answer up after `limit`.
    ///
    /// # Errors
    /// When the client cannot be built.
    pub fn with_limit(base: &str, limit: Duration) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(limit)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("build the HTTP client")?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), client, faults: Arc::default() })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    /// Breaches of what every answer must have, over all calls so far.
    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn call(&self, method: Method, path: &str) -> Call<'_> {
        let what = format!("{method} {}", path.chars().take(120).collect::<String>());
        Call { http: self, what, request: self.client.request(method, format!("{}{path}", self.base)) }
    }

    pub fn get(&self, path: &str) -> Call<'_> {
        self.call(Method::GET, path)
    }

    pub fn put(&self, path: &str, document: &Value) -> Call<'_> {
        self.call(Method::PUT, path).json(document)
    }

    pub fn post(&self, path: &str, body: &Value) -> Call<'_> {
        self.call(Method::POST, path).json(body)
    }

    pub fn patch(&self, path: &str, merge: &Value) -> Call<'_> {
        self.call(Method::PATCH, path).body(headers::MERGE_PATCH, merge.to_string())
    }

    pub fn delete(&self, path: &str) -> Call<'_> {
        self.call(Method::DELETE, path)
    }

    /// Creates a collection.
    ///
    /// # Errors
    /// When it is not answered with success.
    pub async fn create_collection(&self, name: &str, options: &Value) -> anyhow::Result<()> {
        let answer = self.put(&format!("/admin/v1/collections/{name}"), options).send().await?;
        ensure!(matches!(answer.status, 200 | 201), "create collection {name}: {answer}");
        Ok(())
    }

    /// The document at `path`; `None` when there is none.
    ///
    /// # Errors
    /// On any other answer than 200 and 404.
    pub async fn document(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let answer = self.get(path).send().await?;
        match answer.status {
            200 => answer.json().map(Some),
            404 => Ok(None),
            _ => bail!("read back: {answer}"),
        }
    }

    fn inspect(&self, answer: &Answer) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() >= 20 {
            return;
        }
        for name in [headers::REQUEST_ID, headers::SHARD, headers::NODE] {
            if answer.header(name).is_none_or(str::is_empty) {
                faults.push(format!("no {name}: {answer}"));
            }
        }
        // An answer to HEAD has no body to judge.
        if answer.status >= 400
            && !answer.what.starts_with("HEAD")
            && let Err(error) = answer.problem(answer.status)
        {
            faults.push(format!("{error:#}"));
        }
    }
}

impl Call<'_> {
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// Header lines at once.
    #[must_use]
    pub fn headers(self, lines: &[(&str, &str)]) -> Self {
        lines.iter().fold(self, |call, (name, value)| call.header(name, value))
    }

    #[must_use]
    pub fn key(self, idempotency_key: &str) -> Self {
        self.header(headers::IDEMPOTENCY_KEY, idempotency_key)
    }

    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    #[must_use]
    pub fn body(mut self, content_type: &str, body: impl Into<reqwest::Body>) -> Self {
        self.request = self.request.header(CONTENT_TYPE, content_type).body(body);
        self
    }

    /// A body with no content type.
    #[must_use]
    pub fn bare_body(mut self, body: impl Into<reqwest::Body>) -> Self {
        self.request = self.request.body(body);
        self
    }

    /// Sends and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// Of the connection; [`is_connect`] tells whether anything was sent.
    pub async fn send(self) -> anyhow::Result<Answer> {
        let Self { http, what, request } = self;
        let response = request.send().await.with_context(|| what.clone())?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.with_context(|| format!("{what}: body"))?.to_vec();
        let answer = Answer { what, status, headers, body };
        http.inspect(&answer);
        Ok(answer)
    }

    /// [`Call::send`], and the status must be `status`.
    ///
    /// # Errors
    /// Any other answer, in full.
    pub async fn expect(self, status: u16) -> anyhow::Result<Answer> {
        let answer = self.send().await?;
        ensure!(answer.status == status, "expected {status}: {answer}");
        Ok(answer)
    }

    /// [`Call::send`], and the answer must be a problem of `kind` with outcome not-applied.
    ///
    /// # Errors
    /// Any other answer, in full.
    pub async fn refused(self, kind: ProblemType) -> anyhow::Result<Problem> {
        self.send().await?.refused_as(&[kind])
    }
}

/// Whether the call failed before anything was sent.
pub fn is_connect(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<reqwest::Error>()).any(reqwest::Error::is_connect)
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// A header that must be there.
    ///
    /// # Errors
    /// When it is not.
    pub fn need(&self, name: &str) -> anyhow::Result<&str> {
        self.header(name).with_context(|| format!("header {name} is missing: {self}"))
    }

    /// The entity tag: must be there, strong and quoted.
    ///
    /// # Errors
    /// When it is not.
    pub fn etag(&self) -> anyhow::Result<String> {
        let tag = self.need("etag")?;
        ensure!(
            tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"'),
            "ETag {tag} is no quoted string"
        );
        Ok(tag.to_owned())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("the body is no JSON: {self}"))
    }

    /// The answer as a problem of `status`.
    ///
    /// # Errors
    /// When it is none, or breaks RFC 9457 or the contract.
    pub fn problem(&self, status: u16) -> anyhow::Result<Problem> {
        ensure!(self.status == status, "expected {status}: {self}");
        let content_type = self.header("content-type").unwrap_or_default();
        ensure!(
            content_type.starts_with(headers::PROBLEM),
            "content type of a problem is {content_type:?}: {self}"
        );
        let problem: Problem =
            serde_json::from_slice(&self.body).with_context(|| format!("no problem: {self}"))?;
        ensure!(problem.status == status, "the problem's status differs from the answer's: {self}");
        ensure!(!problem.kind.is_empty() && !problem.title.is_empty(), "empty type or title: {self}");
        ensure!(!problem.detail.is_empty(), "empty detail: {self}");
        let kind = problem.problem_type().with_context(|| format!("unknown type: {self}"))?;
        ensure!(kind.status() == status, "the type belongs to status {}: {self}", kind.status());
        if status == 503 || status == 429 {
            ensure!(self.header("retry-after").is_some(), "no Retry-After: {self}");
        }
        Ok(problem)
    }

    /// The answer as a refusal of one of `kinds` that changed nothing.
    ///
    /// # Errors
    /// Any other answer, in full.
    pub fn refused_as(&self, kinds: &[ProblemType]) -> anyhow::Result<Problem> {
        ensure!(
            kinds.iter().any(|kind| kind.status() == self.status),
            "expected {:?}: {self}",
            kinds.iter().map(|kind| (kind.status(), kind.urn())).collect::<Vec<_>>()
        );
        let problem = self.problem(self.status)?;
        let found = problem.problem_type();
        ensure!(kinds.iter().any(|kind| Some(*kind) == found), "expected one of {kinds:?}: {self}");
        ensure!(problem.outcome == Outcome::NotApplied, "outcome: {self}");
        Ok(problem)
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = String::from_utf8_lossy(&self.body).chars().take(400).collect();
        write!(f, "{} answered {} {body}", self.what, self.status)
    }
}
