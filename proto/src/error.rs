//! Errors of the contract and what a caller may do about them.
//!
//! Retryability is decided from these codes, never from a gRPC status or an HTTP phrase.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::wire;

/// Whether a write took effect (I9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing was changed, and nothing will be.
    NotApplied,
    Applied,
    /// It may or may not take effect; a retry with the same idempotency key finds out.
    Unknown,
}

impl From<wire::Outcome> for Outcome {
    fn from(outcome: wire::Outcome) -> Self {
        match outcome {
            wire::Outcome::NotApplied => Self::NotApplied,
            wire::Outcome::Applied => Self::Applied,
            // An outcome this build does not know must not be taken for a failure.
            wire::Outcome::Unknown | wire::Outcome::Unspecified => Self::Unknown,
        }
    }
}

/// What a router or direct client does about a [`wire::Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Send the same request, under the same session and sequence, to this node.
    At(NodeId),
    /// Send it again to whichever replica comes next, after the pause.
    After(Duration),
    /// Fetch the cluster map first.
    RefreshMap,
    /// The same request gets the same answer: tell the caller.
    Never,
}

/// Pause between attempts while a shard elects a leader.
const ELECTION_PAUSE: Duration = Duration::from_millis(25);

impl wire::Fault {
    /// A fault with the outcome that its code implies.
    pub fn new(code: wire::FaultCode, detail: impl Into<String>) -> Self {
        use wire::FaultCode as Code;
        let outcome = match code {
            Code::OutcomeUnknown | Code::DeadlineExceeded | Code::Internal | Code::Unspecified => {
                wire::Outcome::Unknown
            }
            Code::NotLeader
            | Code::WrongEpoch
            | Code::Busy
            | Code::NotFresh
            | Code::UnknownCollection
            | Code::DiskFull
            | Code::Invalid
            | Code::ShuttingDown => wire::Outcome::NotApplied,
        };
        Self {
            code: code.into(),
            detail: detail.into(),
            outcome: outcome.into(),
            leader_node: 0,
            retry_after_ms: 0,
        }
    }

    /// The same fault with another outcome, where the code alone does not tell.
    #[must_use]
    pub fn with_outcome(mut self, outcome: wire::Outcome) -> Self {
        self.outcome = outcome.into();
        self
    }

    /// This node does not lead; `leader` probably does.
    pub fn not_leader(leader: Option<NodeId>) -> Self {
        let mut fault = Self::new(wire::FaultCode::NotLeader, "this node does not lead the shard");
        fault.leader_node = leader.map_or(0, NodeId::get);
        fault
    }

    /// What to do next. Resending under the same session is always safe; `Never` is for what cannot change.
    pub fn retry(&self) -> Retry {
        use wire::FaultCode as Code;
        let pause = Duration::from_millis(u64::from(self.retry_after_ms));
        match self.code() {
            Code::NotLeader if self.leader_node != 0 => Retry::At(NodeId(self.leader_node)),
            Code::NotLeader | Code::NotFresh | Code::ShuttingDown | Code::OutcomeUnknown => {
                Retry::After(pause.max(ELECTION_PAUSE))
            }
            Code::WrongEpoch | Code::UnknownCollection => Retry::RefreshMap,
            Code::Busy => Retry::After(pause.max(Duration::from_millis(10))),
            Code::DeadlineExceeded | Code::DiskFull | Code::Invalid | Code::Internal | Code::Unspecified => {
                Retry::Never
            }
        }
    }
}

/// `application/problem+json` (RFC 9457) with Borough's `outcome`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// A URN of [`ProblemType`].
    #[cfg_attr(feature = "openapi", schema(schema_with = crate::openapi::problem_types))]
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    /// The HTTP status code.
    pub status: u16,
    pub detail: String,
    #[cfg_attr(feature = "openapi", schema(inline))]
    pub outcome: Outcome,
    /// The field, header or parameter at fault, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    pub field: Option<String>,
    /// The limit that was passed, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64, required = false))]
    pub limit: Option<u64>,
    /// `:transact`: position of the operation that failed, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = u32, required = false))]
    pub op: Option<u32>,
}

macro_rules! problems {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $status:literal, $title:literal;)*) => {
        /// Every kind of problem the REST API answers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ProblemType {
            $($(#[$doc])* $variant,)*
        }

        impl ProblemType {
            /// All of them, for documentation and tests.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The value of `type`.
            pub fn urn(self) -> &'static str {
                match self { $(Self::$variant => concat!("urn:borough:problem:", $name),)* }
            }

            /// The HTTP status code it goes with.
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// The kind that a `type` names.
            pub fn from_urn(urn: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|kind| kind.urn() == urn)
            }
        }
    };
}

problems! {
    BadRequest = "bad-request", 400, "Bad request";
    MalformedJson = "malformed-json", 400, "Malformed JSON";
    BadId = "bad-id", 400, "Bad id";
    BadParameter = "bad-parameter", 400, "Bad parameter";
    BadHeader = "bad-header", 400, "Bad header";
    BadPageToken = "bad-page-token", 400, "Bad page token";
    Unauthorized = "unauthorized", 401, "No valid token";
    Forbidden = "forbidden", 403, "The token does not allow this";
    DocumentNotFound = "document-not-found", 404, "No such document";
    CollectionNotFound = "collection-not-found", 404, "No such collection";
    NotFound = "not-found", 404, "No such resource";
    MethodNotAllowed = "method-not-allowed", 405, "Method not allowed";
    AlreadyExists = "already-exists", 409, "The id exists";
    Conflict = "conflict", 409, "Conflict";
    PreconditionFailed = "precondition-failed", 412, "Precondition failed";
    TooLarge = "too-large", 413, "Too large";
    TargetTooLong = "target-too-long", 414, "Request target too long";
    UnsupportedMediaType = "unsupported-media-type", 415, "Unsupported content type";
    IdempotencyKeyReused = "idempotency-key-reused", 422, "Idempotency key reused with another request";
    InvalidMerge = "invalid-merge", 422, "The patch cannot be applied";
    PreconditionRequired = "precondition-required", 428, "The collection requires a precondition";
    HeadTooLarge = "head-too-large", 431, "Request head too large";
    TooManyRequests = "too-many-requests", 429, "Rate limit exceeded";
    Internal = "internal", 500, "Internal error";
    Unavailable = "unavailable", 503, "No leader within the deadline";
    Overloaded = "overloaded", 503, "Refused for load";
    DeadlineExceeded = "deadline-exceeded", 504, "Deadline exceeded";
}

impl Problem {
    /// A problem of that kind; `outcome` is not-applied until [`Self::with_outcome`] says otherwise.
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self {
            kind: kind.urn().to_owned(),
            title: kind.title().to_owned(),
            status: kind.status(),
            detail: detail.into(),
            outcome: Outcome::NotApplied,
            field: None,
            limit: None,
            op: None,
        }
    }

    #[must_use]
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    #[must_use]
    pub fn with_limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The kind, if this build knows it.
    pub fn problem_type(&self) -> Option<ProblemType> {
        ProblemType::from_urn(&self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_types_have_distinct_names() {
        for kind in ProblemType::ALL {
            assert_eq!(ProblemType::from_urn(kind.urn()), Some(*kind));
            assert!((400..600).contains(&kind.status()));
        }
    }

    #[test]
    fn an_outcome_of_a_newer_build_is_unknown_not_failed() {
        assert_eq!(Outcome::from(wire::Outcome::Unspecified), Outcome::Unknown);
        let fault = wire::Fault { code: 999, ..Default::default() };
        assert_eq!(fault.retry(), Retry::Never);
    }

    #[test]
    fn a_hint_is_followed() {
        assert_eq!(wire::Fault::not_leader(Some(NodeId(3))).retry(), Retry::At(NodeId(3)));
        assert!(matches!(wire::Fault::not_leader(None).retry(), Retry::After(_)));
    }
}
