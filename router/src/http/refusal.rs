//! What the API answers when it does not do what was asked: `application/problem+json`, with the write's outcome (I9).

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use borough_proto::document::DocumentError;
use borough_proto::error::{Outcome, Problem, ProblemType};
use borough_proto::exchange::{ForwardError, Why};
use borough_proto::http_api::{TtlError, headers as names};
use borough_proto::place::join;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// When to try again after a refusal that names no time.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// A problem and the headers that go with it.
#[derive(Debug)]
pub struct Refusal(Box<Parts>);

#[derive(Debug)]
struct Parts {
    problem: Problem,
    headers: HeaderMap,
}

impl Refusal {
    /// A problem of that kind, outcome not-applied.
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self(Box::new(Parts { problem: Problem::new(kind, detail), headers: HeaderMap::new() }))
    }

    /// Adds a sentence to the detail.
    pub fn detail(mut self, more: &str) -> Self {
        self.0.problem.detail.push_str("; ");
        self.0.problem.detail.push_str(more);
        self
    }

    pub fn field(mut self, field: &str) -> Self {
        self.0.problem.field = Some(field.to_owned());
        self
    }

    /// Whether that field is at fault.
    pub fn is_of(&self, field: &str) -> bool {
        self.0.problem.field.as_deref() == Some(field)
    }

    /// Takes the field for a place of what lies at `outer`; what names no field is at fault as a whole.
    pub fn within(mut self, outer: &str) -> Self {
        let inner = self.0.problem.field.take().unwrap_or_default();
        self.0.problem.field = Some(join(outer, &inner));
        self
    }

    pub fn limit(mut self, limit: usize) -> Self {
        self.0.problem.limit = u64::try_from(limit).ok();
        self
    }

    /// Position of the operation at fault in a transaction.
    pub fn op(mut self, op: usize) -> Self {
        self.0.problem.op = u32::try_from(op).ok();
        self
    }

    pub fn outcome(mut self, outcome: Outcome) -> Self {
        self.0.problem.outcome = outcome;
        self
    }

    /// Whole seconds, rounded up: a caller that waits this long is not early.
    pub fn retry_after(self, pause: Duration) -> Self {
        let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
        self.header(RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    /// Headers of the answer, to be added to.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.0.headers
    }

    /// 405, and what the resource allows instead.
    pub fn method(allowed: &'static str, detail: impl Into<String>) -> Self {
        Self::new(ProblemType::MethodNotAllowed, detail).header(ALLOW, HeaderValue::from_static(allowed))
    }

    #[cfg(test)]
    pub fn status(&self) -> u16 {
        self.0.problem.status
    }

    /// The problem alone, for the items of a batch.
    pub fn into_problem(self) -> Problem {
        self.0.problem
    }

    pub fn into_response(self) -> Response {
        let Parts { problem, headers } = *self.0;
        // A struct of strings and numbers always serialises.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *response.headers_mut() = headers;
        if matches!(problem.status, 429 | 503) && !response.headers().contains_key(RETRY_AFTER) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_DEFAULT.as_secs()));
        }
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(names::PROBLEM));
        response
    }
}

impl From<ForwardError> for Refusal {
    fn from(error: ForwardError) -> Self {
        let unknown = error.outcome == Outcome::Unknown;
        let kind = match error.why {
            Why::Internal => ProblemType::Internal,
            // 503 promises that nothing was applied; whatever came last, an earlier attempt may have been.
            _ if unknown => ProblemType::DeadlineExceeded,
            Why::Unavailable => ProblemType::Unavailable,
            Why::Overloaded | Why::DiskFull => ProblemType::Overloaded,
            Why::DeadlineExceeded | Why::Forgotten => ProblemType::DeadlineExceeded,
            Why::UnknownCollection => ProblemType::CollectionNotFound,
            Why::Invalid => ProblemType::BadRequest,
        };
        let mut refusal = Self::new(kind, error.detail).outcome(error.outcome);
        refusal
            .headers_mut()
            .insert(HeaderName::from_static(names::SHARD), HeaderValue::from(error.shard.get()));
        if let Some(node) = error.node {
            refusal.headers_mut().insert(HeaderName::from_static(names::NODE), HeaderValue::from(node.get()));
        }
        match error.retry_after {
            Some(pause) => refusal.retry_after(pause),
            None if unknown => refusal.retry_after(RETRY_AFTER_DEFAULT),
            None => refusal,
        }
    }
}

impl From<DocumentError> for Refusal {
    fn from(error: DocumentError) -> Self {
        let detail = error.to_string();
        match error {
            DocumentError::TooLarge { .. } => {
                Self::new(ProblemType::TooLarge, detail).limit(borough_proto::limits::DOCUMENT_BYTES_MAX)
            }
            DocumentError::Malformed { field, limit, .. } => {
                let mut refusal = Self::new(ProblemType::MalformedJson, detail);
                refusal.0.problem.field = field;
                refusal.0.problem.limit = limit.and_then(|limit| u64::try_from(limit).ok());
                refusal
            }
            DocumentError::NotAnObject { .. } => Self::new(ProblemType::MalformedJson, detail),
            DocumentError::BadKeyField { field, .. } | DocumentError::KeyMismatch { field, .. } => {
                Self::new(ProblemType::BadId, detail).field(field)
            }
        }
    }
}

impl From<TtlError> for Refusal {
    fn from(error: TtlError) -> Self {
        let mut refusal = Self::new(ProblemType::BadParameter, error.to_string());
        refusal.0.problem.limit = error.limit;
        refusal
    }
}

#[cfg(test)]
mod tests {
    use borough_proto::{NodeId, ShardId};

    use super::*;

    #[test]
    fn a_503_always_promises_that_nothing_was_applied() {
        let whys = [
            Why::Unavailable,
            Why::Overloaded,
            Why::DiskFull,
            Why::DeadlineExceeded,
            Why::UnknownCollection,
            Why::Invalid,
            Why::Internal,
            Why::Forgotten,
        ];
        for why in whys {
            for outcome in [Outcome::NotApplied, Outcome::Unknown] {
                let error = ForwardError {
                    shard: ShardId(3),
                    node: Some(NodeId(2)),
                    why,
                    outcome,
                    detail: "x".to_owned(),
                    retry_after: None,
                    attempts: 1,
                };
                let response = Refusal::from(error).into_response();
                if outcome == Outcome::Unknown {
                    assert!(matches!(response.status().as_u16(), 500 | 504), "{why:?}");
                }
                if response.status() == 503 {
                    assert_eq!(response.headers()["retry-after"], "1", "{why:?}");
                }
                assert_eq!(response.headers()["content-type"], "application/problem+json");
                assert_eq!(response.headers()["borough-shard"], "3");
                assert_eq!(response.headers()["borough-node"], "2");
            }
        }
    }
}
