//! Errors of the client: what happened, whether a write took effect (I9), and what may be done next.
//!
//! Both transports end up in [`Error::from_refusal`], so an error means the same whichever way a call
//! went. Variants are chosen from the problem's `type`, and from the status only when the type is
//! not known to this build.

use std::fmt;
use std::time::Duration;

use borough_proto::error::{Outcome, Problem, ProblemType};

use crate::document::Etag;

/// `Result` with the client's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause below a [`Error::Transport`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What the cluster answered when it did not do what was asked.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Refusal {
    /// What was called, for example `put users/1`.
    pub operation: String,
    /// The problem as answered (RFC 9457).
    pub problem: Problem,
    /// `X-Request-Id` of the answer.
    pub request_id: Option<String>,
    /// The key under which a write was sent: send it again under this key to learn its outcome.
    pub idempotency_key: Option<String>,
    /// How long the cluster asked to wait.
    pub retry_after: Option<Duration>,
    /// The standing document's version, when the answer named it.
    pub current: Option<Etag>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { title, status, detail, .. } = &self.problem;
        write!(f, "{}: {title} ({status}): {detail}", self.operation)?;
        match &self.request_id {
            Some(id) => write!(f, " [request {id}]"),
            None => Ok(()),
        }
    }
}

/// Why a call did not succeed.
///
/// A document that does not exist is an error only where one is needed: `get` answers `None` and
/// `delete` answers `false`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no document to patch (or no such resource, on admin calls).
    #[error("{0}")]
    NotFound(Box<Refusal>),
    /// The collection does not exist.
    #[error("{0}")]
    CollectionNotFound(Box<Refusal>),
    /// The document is not at the version that was asked for.
    #[error("{refusal}")]
    PreconditionFailed {
        /// Version of the standing document, when the answer named it.
        current: Option<Etag>,
        /// `transact`: position of the operation that failed, from 0.
        op: Option<u32>,
        refusal: Box<Refusal>,
    },
    /// A `create` or a write with `if_absent` met a document.
    #[error("{refusal}")]
    AlreadyExists {
        /// Version of the standing document, when the answer named it.
        current: Option<Etag>,
        refusal: Box<Refusal>,
    },
    /// The request cannot be done in the present state, for example while the collection is in use.
    #[error("{0}")]
    Conflict(Box<Refusal>),
    /// The request breaks the contract; the same request gets the same answer.
    #[error("{0}")]
    Invalid(Box<Refusal>),
    /// The idempotency key was used before for another request.
    #[error("{0}")]
    IdempotencyKeyReused(Box<Refusal>),
    /// The cluster asks for a bearer token, and it is missing or not known there.
    #[error("{0}")]
    Unauthorized(Box<Refusal>),
    /// The token lacks the right, or is confined to other collections.
    #[error("{0}")]
    Forbidden(Box<Refusal>),
    /// More requests than this client may send.
    #[error("{refusal}")]
    RateLimited { retry_after: Option<Duration>, refusal: Box<Refusal> },
    /// No leader in time, or refused for load.
    #[error("{refusal}")]
    Unavailable { retry_after: Option<Duration>, refusal: Box<Refusal> },
    /// The cluster cannot tell whether the write took effect: send it again under
    /// [`Error::idempotency_key`] to find out. Reads end here when the cluster failed.
    #[error("{0}")]
    Unknown(Box<Refusal>),
    /// The call's own deadline passed without an answer.
    #[error("{operation}: no answer within {deadline:?} ({attempts} attempts)")]
    DeadlineExceeded {
        operation: String,
        deadline: Duration,
        attempts: u32,
        /// Whether a write took effect.
        outcome: Outcome,
        idempotency_key: Option<String>,
        /// What the last attempt before ended with.
        #[source]
        last: Option<Box<Error>>,
    },
    /// No answer was received: nobody listens, or the connection broke.
    #[error("{operation}: no answer from {peer}")]
    Transport {
        operation: String,
        /// The router or node that was asked.
        peer: String,
        /// Whether a write took effect.
        outcome: Outcome,
        idempotency_key: Option<String>,
        #[source]
        source: Cause,
    },
    /// The answer is not what the contract or the caller's type says.
    #[error("{operation}: the answer cannot be read as {expected}")]
    Decode {
        operation: String,
        expected: &'static str,
        /// Whether a write took effect.
        outcome: Outcome,
        #[source]
        source: serde_json::Error,
    },
    /// The caller's value cannot be written as JSON. Nothing was sent.
    #[error("{operation}: the value cannot be written as JSON")]
    Encode {
        operation: String,
        #[source]
        source: serde_json::Error,
    },
    /// The call needs a router and the client was built for direct access only. Nothing was sent.
    #[error("{operation}: needs a router, and none is configured")]
    NeedsRouter { operation: String },
}

impl Error {
    /// The error that a refusal is.
    pub(crate) fn from_refusal(refusal: Refusal) -> Self {
        let refusal = Box::new(refusal);
        let Some(kind) = refusal.problem.problem_type() else { return Self::from_status(refusal) };
        use ProblemType as Kind;
        match kind {
            Kind::DocumentNotFound | Kind::NotFound => Self::NotFound(refusal),
            Kind::CollectionNotFound => Self::CollectionNotFound(refusal),
            Kind::PreconditionFailed => Self::precondition_failed(refusal),
            Kind::AlreadyExists => Self::AlreadyExists { current: refusal.current.clone(), refusal },
            Kind::Conflict => Self::Conflict(refusal),
            Kind::IdempotencyKeyReused => Self::IdempotencyKeyReused(refusal),
            Kind::Unauthorized => Self::Unauthorized(refusal),
            Kind::Forbidden => Self::Forbidden(refusal),
            Kind::BadRequest
            | Kind::MalformedJson
            | Kind::BadId
            | Kind::BadParameter
            | Kind::BadHeader
            | Kind::BadPageToken
            | Kind::MethodNotAllowed
            | Kind::TooLarge
            | Kind::TargetTooLong
            | Kind::HeadTooLarge
            | Kind::UnsupportedMediaType
            | Kind::InvalidMerge
            | Kind::PreconditionRequired => Self::Invalid(refusal),
            Kind::TooManyRequests => Self::RateLimited { retry_after: refusal.retry_after, refusal },
            Kind::Unavailable | Kind::Overloaded => {
                Self::Unavailable { retry_after: refusal.retry_after, refusal }
            }
            Kind::Internal | Kind::DeadlineExceeded => Self::Unknown(refusal),
        }
    }

    /// For problems of a newer build, and for answers of whatever stands in front of the routers.
    fn from_status(refusal: Box<Refusal>) -> Self {
        match refusal.problem.status {
            401 => Self::Unauthorized(refusal),
            403 => Self::Forbidden(refusal),
            404 => Self::NotFound(refusal),
            409 => Self::Conflict(refusal),
            412 => Self::precondition_failed(refusal),
            429 => Self::RateLimited { retry_after: refusal.retry_after, refusal },
            503 => Self::Unavailable { retry_after: refusal.retry_after, refusal },
            400..=499 => Self::Invalid(refusal),
            _ => Self::Unknown(refusal),
        }
    }

    fn precondition_failed(refusal: Box<Refusal>) -> Self {
        Self::PreconditionFailed { current: refusal.current.clone(), op: refusal.problem.op, refusal }
    }

    /// A refusal by the client itself: nothing was sent.
    pub(crate) fn refused(operation: &str, kind: ProblemType, detail: impl Into<String>) -> Self {
        Self::from_refusal(Refusal::new(operation, Problem::new(kind, detail)))
    }

    /// The answer cannot be read.
    pub(crate) fn decode<T>(operation: &str, outcome: Outcome, source: serde_json::Error) -> Self {
        Self::Decode {
            operation: operation.to_owned(),
            expected: std::any::type_name::<T>(),
            outcome,
            source,
        }
    }

    /// Whether a write took effect. Reads change nothing: their errors say not-applied.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::DeadlineExceeded { outcome, .. }
            | Self::Transport { outcome, .. }
            | Self::Decode { outcome, .. } => *outcome,
            Self::Encode { .. } | Self::NeedsRouter { .. } => Outcome::NotApplied,
            other => other.refusal().map_or(Outcome::NotApplied, |refusal| refusal.problem.outcome),
        }
    }

    /// Whether the same call may succeed later. When [`Error::outcome`] is unknown, send a write
    /// again only under [`Error::idempotency_key`].
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::Unknown(_)
            | Self::DeadlineExceeded { .. }
            | Self::Transport { .. } => true,
            Self::NotFound(_)
            | Self::CollectionNotFound(_)
            | Self::PreconditionFailed { .. }
            | Self::AlreadyExists { .. }
            | Self::Conflict(_)
            | Self::Invalid(_)
            | Self::IdempotencyKeyReused(_)
            | Self::Unauthorized(_)
            | Self::Forbidden(_)
            | Self::Decode { .. }
            | Self::Encode { .. }
            | Self::NeedsRouter { .. } => false,
        }
    }

    /// The HTTP status of the answer; in direct mode the one a router would have answered.
    /// `None` when there was no answer.
    pub fn status(&self) -> Option<u16> {
        self.problem().map(|problem| problem.status)
    }

    /// The problem as answered.
    pub fn problem(&self) -> Option<&Problem> {
        self.refusal().map(|refusal| &refusal.problem)
    }

    /// The whole refusal, when there was an answer.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::NotFound(refusal)
            | Self::CollectionNotFound(refusal)
            | Self::PreconditionFailed { refusal, .. }
            | Self::AlreadyExists { refusal, .. }
            | Self::Conflict(refusal)
            | Self::Invalid(refusal)
            | Self::IdempotencyKeyReused(refusal)
            | Self::Unauthorized(refusal)
            | Self::Forbidden(refusal)
            | Self::RateLimited { refusal, .. }
            | Self::Unavailable { refusal, .. }
            | Self::Unknown(refusal) => Some(refusal),
            Self::DeadlineExceeded { .. }
            | Self::Transport { .. }
            | Self::Decode { .. }
            | Self::Encode { .. }
            | Self::NeedsRouter { .. } => None,
        }
    }

    /// The key under which the write was sent.
    pub fn idempotency_key(&self) -> Option<&str> {
        match self {
            Self::DeadlineExceeded { idempotency_key, .. } | Self::Transport { idempotency_key, .. } => {
                idempotency_key.as_deref()
            }
            other => other.refusal().and_then(|refusal| refusal.idempotency_key.as_deref()),
        }
    }

    /// How long the cluster asked to wait before the next attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal().and_then(|refusal| refusal.retry_after)
    }

    /// The same error after an earlier attempt of the same call whose outcome is unknown.
    ///
    /// A refusal that did not get as far as the log says nothing about that attempt, so the call
    /// as a whole is unknown (I9). An answer from the log is final: the key makes it the outcome of both.
    #[must_use]
    pub(crate) fn after_unknown(mut self) -> Self {
        match &mut self {
            Self::RateLimited { refusal, .. }
            | Self::Unavailable { refusal, .. }
            | Self::Unauthorized(refusal)
            | Self::Forbidden(refusal) => {
                refusal.problem.outcome = Outcome::Unknown;
            }
            Self::Transport { outcome, .. } | Self::DeadlineExceeded { outcome, .. } => {
                *outcome = Outcome::Unknown
            }
            Self::NotFound(_)
            | Self::CollectionNotFound(_)
            | Self::PreconditionFailed { .. }
            | Self::AlreadyExists { .. }
            | Self::Conflict(_)
            | Self::Invalid(_)
            | Self::IdempotencyKeyReused(_)
            | Self::Unknown(_)
            | Self::Decode { .. }
            | Self::Encode { .. }
            | Self::NeedsRouter { .. } => {}
        }
        self
    }

    /// A failed `if_absent` is told as "already exists", whichever status it was answered with.
    #[must_use]
    pub(crate) fn of_if_absent(self) -> Self {
        match self {
            Self::PreconditionFailed { current, refusal, .. } => Self::AlreadyExists { current, refusal },
            other => other,
        }
    }
}

/// When to try again after a refusal that names no time.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

impl Refusal {
    /// A refusal without an answer's headers; one that a retry helps says when to try again.
    pub(crate) fn new(operation: &str, problem: Problem) -> Self {
        let retry_after = matches!(problem.status, 429 | 503).then_some(RETRY_AFTER_DEFAULT);
        Self {
            operation: operation.to_owned(),
            problem,
            request_id: None,
            idempotency_key: None,
            retry_after,
            current: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error that a problem of that kind becomes, and whether it may be retried.
    fn mapped(kind: ProblemType) -> (&'static str, bool) {
        let error = Error::from_refusal(Refusal::new("put users/1", Problem::new(kind, "why")));
        assert_eq!(error.status(), Some(kind.status()));
        assert!(error.to_string().contains("put users/1"), "{error}");
        let name = match &error {
            Error::NotFound(_) => "NotFound",
            Error::CollectionNotFound(_) => "CollectionNotFound",
            Error::PreconditionFailed { .. } => "PreconditionFailed",
            Error::AlreadyExists { .. } => "AlreadyExists",
            Error::Conflict(_) => "Conflict",
            Error::Invalid(_) => "Invalid",
            Error::IdempotencyKeyReused(_) => "IdempotencyKeyReused",
            Error::Unauthorized(_) => "Unauthorized",
            Error::Forbidden(_) => "Forbidden",
            Error::RateLimited { .. } => "RateLimited",
            Error::Unavailable { .. } => "Unavailable",
            Error::Unknown(_) => "Unknown",
            other => panic!("not a refusal: {other:?}"),
        };
        (name, error.is_retryable())
    }

    #[test]
    fn every_problem_type_becomes_its_error() {
        let table = [
            (ProblemType::BadRequest, "Invalid", false),
            (ProblemType::MalformedJson, "Invalid", false),
            (ProblemType::BadId, "Invalid", false),
            (ProblemType::BadParameter, "Invalid", false),
            (ProblemType::BadHeader, "Invalid", false),
            (ProblemType::BadPageToken, "Invalid", false),
            (ProblemType::Unauthorized, "Unauthorized", false),
            (ProblemType::Forbidden, "Forbidden", false),
            (ProblemType::DocumentNotFound, "NotFound", false),
            (ProblemType::CollectionNotFound, "CollectionNotFound", false),
            (ProblemType::NotFound, "NotFound", false),
            (ProblemType::MethodNotAllowed, "Invalid", false),
            (ProblemType::AlreadyExists, "AlreadyExists", false),
            (ProblemType::Conflict, "Conflict", false),
            (ProblemType::PreconditionFailed, "PreconditionFailed", false),
            (ProblemType::TooLarge, "Invalid", false),
            (ProblemType::TargetTooLong, "Invalid", false),
            (ProblemType::HeadTooLarge, "Invalid", false),
            (ProblemType::UnsupportedMediaType, "Invalid", false),
            (ProblemType::IdempotencyKeyReused, "IdempotencyKeyReused", false),
            (ProblemType::InvalidMerge, "Invalid", false),
            (ProblemType::PreconditionRequired, "Invalid", false),
            (ProblemType::TooManyRequests, "RateLimited", true),
            (ProblemType::Internal, "Unknown", true),
            (ProblemType::Unavailable, "Unavailable", true),
            (ProblemType::Overloaded, "Unavailable", true),
            (ProblemType::DeadlineExceeded, "Unknown", true),
        ];
        for kind in ProblemType::ALL {
            let row = table.iter().find(|row| row.0 == *kind);
            let (_, name, retryable) = row.unwrap_or_else(|| panic!("{kind:?} has no row"));
            assert_eq!(mapped(*kind), (*name, *retryable), "{kind:?}");
        }
    }

    #[test]
    fn unknown_problem_types_are_told_apart_by_status() {
        let of = |status: u16| {
            let problem =
                Problem { kind: "urn:other".into(), status, ..Problem::new(ProblemType::Internal, "") };
            Error::from_refusal(Refusal::new("get users/1", problem))
        };
        assert!(matches!(of(401), Error::Unauthorized(_)));
        assert!(matches!(of(403), Error::Forbidden(_)));
        assert!(matches!(of(404), Error::NotFound(_)));
        assert!(matches!(of(412), Error::PreconditionFailed { .. }));
        assert!(matches!(of(418), Error::Invalid(_)));
        assert!(matches!(of(429), Error::RateLimited { .. }));
        assert!(matches!(of(502), Error::Unknown(_)));
        assert!(matches!(of(503), Error::Unavailable { .. }));
    }

    #[test]
    fn what_a_retry_helps_says_when() {
        for kind in ProblemType::ALL {
            let error = Error::refused("get users/1", *kind, "");
            assert_eq!(error.retry_after().is_some(), matches!(kind.status(), 429 | 503), "{kind:?}");
        }
    }

    #[test]
    fn a_refusal_after_an_unknown_attempt_is_unknown() {
        let error = Error::refused("put users/1", ProblemType::Unavailable, "").after_unknown();
        assert_eq!(error.outcome(), Outcome::Unknown);
        let error = Error::refused("put users/1", ProblemType::PreconditionFailed, "").after_unknown();
        assert_eq!(error.outcome(), Outcome::NotApplied);
    }
}
