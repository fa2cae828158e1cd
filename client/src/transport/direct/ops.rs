//! Between the typed API and the commands of the shards' logs: no network, no clock.

use std::time::{Duration, UNIX_EPOCH};

use borough_proto::document::{self, DocumentError, KeyField};
use borough_proto::error::{Outcome, Problem, ProblemType};
use borough_proto::key::hash_id;
use borough_proto::{limits, wire};

use super::tag;
use crate::document::{Etag, RawDoc};
use crate::error::{Error, Refusal};
use crate::transport::{Action, Call, Condition, RawWritten, WriteRule};

/// A refusal that does not know its call yet.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub problem: Box<Problem>,
    /// The standing document's version.
    pub current: Option<Etag>,
}

impl Refused {
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self { problem: Box::new(Problem::new(kind, detail)), current: None }
    }

    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.problem.outcome = outcome;
        self
    }

    pub fn refusal(self, call: &Call) -> Refusal {
        Refusal {
            current: self.current,
            idempotency_key: call.idempotency_key.clone(),
            ..Refusal::new(&call.operation, *self.problem)
        }
    }

    pub fn of(self, call: &Call) -> Error {
        Error::from_refusal(self.refusal(call))
    }
}

impl From<DocumentError> for Refused {
    fn from(error: DocumentError) -> Self {
        let kind = match &error {
            DocumentError::TooLarge { .. } => ProblemType::TooLarge,
            DocumentError::Malformed { .. } | DocumentError::NotAnObject { .. } => ProblemType::MalformedJson,
            DocumentError::BadKeyField { .. } | DocumentError::KeyMismatch { .. } => ProblemType::BadId,
        };
        Self::new(kind, error.to_string())
    }
}

/// One operation of a command.
pub(super) fn op(
    collection: &wire::CollectionInfo,
    id: &str,
    sort: Option<&str>,
    action: &Action,
    rule: &WriteRule,
) -> Result<wire::Op, Refused> {
    use wire::op::Action as Wire;
    if rule.condition == Condition::None && collection.require_preconditions {
        let detail = format!("the collection {:?} takes writes with a precondition only", collection.name);
        return Err(Refused::new(ProblemType::PreconditionRequired, detail));
    }
    let (wire, ttl_default) = match action {
        Action::Put(body) => {
            let flags = document::flags(&document::inspect(body)?, id, sort)?;
            (Wire::Put(wire::Put { document: body.clone(), flags }), collection.default_ttl_ms)
        }
        Action::Patch(merge) => {
            document::inspect(merge)?;
            (Wire::Merge(wire::Merge { patch: merge.clone() }), None)
        }
        Action::Delete => (Wire::Delete(wire::Delete {}), None),
    };
    let ttl_ms = rule.ttl.map(ttl_ms).transpose()?.or(ttl_default);
    Ok(wire::Op {
        collection: collection.id,
        id: id.to_owned(),
        sort: sort.map(str::to_owned),
        action: Some(wire),
        precondition: precondition(&rule.condition)?,
        ttl_ms,
    })
}

/// Whole milliseconds within the limit.
fn ttl_ms(ttl: Duration) -> Result<u64, Refused> {
    let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    if ms == 0 || ttl > limits::TTL_MAX {
        let detail =
            format!("a time to live of {ttl:?} is not at least 1ms and at most {:?}", limits::TTL_MAX);
        return Err(Refused::new(ProblemType::BadParameter, detail));
    }
    Ok(ms)
}

pub(super) fn precondition(condition: &Condition) -> Result<Option<wire::Precondition>, Refused> {
    Ok(match condition {
        Condition::None => None,
        Condition::Absent => Some(wire::Precondition { if_absent: true, ..Default::default() }),
        Condition::Present => Some(wire::Precondition { if_present: true, ..Default::default() }),
        Condition::Match(etag) if etag.as_str() == "*" => precondition(&Condition::Present)?,
        Condition::Match(etag) => {
            let Some(version) = etag.version() else {
                // No document ever had such a tag.
                let detail = format!("no document is at version {etag}");
                return Err(Refused::new(ProblemType::PreconditionFailed, detail));
            };
            Some(wire::Precondition { if_match: vec![version], ..Default::default() })
        }
    })
}

/// A caller's key with the content that it was used for: (what is done, to which document, with what).
pub(super) fn idempotency(
    call: &Call,
    position: u32,
    method: &str,
    target: &str,
    body: &[u8],
) -> Option<wire::Idempotency> {
    let key = call.idempotency_key.clone()?;
    let content = format!("{method} {target}\n{}", String::from_utf8_lossy(body));
    Some(wire::Idempotency { key, position, fingerprint: hash_id(&content), note: None })
}

/// The id in the body, if there is one.
pub(super) fn id_to_create(body: &[u8]) -> Result<Option<String>, Refused> {
    match document::inspect(body)?.id {
        KeyField::Text(id) => Ok(Some(id.into_owned())),
        KeyField::Other(found) => {
            Err(DocumentError::BadKeyField { field: "id", found: found.to_owned() }.into())
        }
        KeyField::Absent => Ok(None),
    }
}

/// A document as callers see it.
pub(super) fn shown(document: wire::Document) -> RawDoc {
    let wire::Document { id, sort, version, expires_ms, flags, body } = document;
    RawDoc {
        json: document::present(&id, sort.as_deref(), flags, &body),
        etag: Etag::from_version(version),
        expires: expires_ms.map(|ms| UNIX_EPOCH + Duration::from_millis(ms)),
        cache_hit: None,
    }
}

/// What an operation's reply says.
pub(super) fn written(reply: wire::OpReply, id: &str, sort: Option<&str>) -> Result<RawWritten, Refused> {
    use wire::OpStatus as Status;
    let document = match reply.status() {
        Status::Created | Status::Replaced | Status::Deleted | Status::Checked => None,
        Status::Merged => Some(document::present(id, sort, reply.flags, &reply.document)),
        Status::NotFound
        | Status::Exists
        | Status::PreconditionFailed
        | Status::Aborted
        | Status::KeyReused
        | Status::TooLarge
        | Status::InvalidMerge
        | Status::Unspecified => return Err(refused(&reply)),
    };
    Ok(RawWritten {
        id: None,
        created: reply.status() == Status::Created,
        etag: Etag::from_version(reply.version),
        expires: reply.expires_ms.map(|ms| UNIX_EPOCH + Duration::from_millis(ms)),
        document,
    })
}

fn refused(reply: &wire::OpReply) -> Refused {
    use ProblemType as Kind;
    use wire::OpStatus as Status;
    let (kind, detail) = match reply.status() {
        Status::NotFound => (Kind::DocumentNotFound, "there is no such document"),
        Status::Exists => (Kind::PreconditionFailed, "the document exists"),
        Status::PreconditionFailed => (Kind::PreconditionFailed, "the document is not at that version"),
        Status::Aborted => (Kind::PreconditionFailed, "another operation of the transaction failed"),
        Status::KeyReused => (Kind::IdempotencyKeyReused, "the idempotency key was used for another request"),
        Status::TooLarge => (Kind::TooLarge, "the merged document would be too large"),
        Status::InvalidMerge => (Kind::InvalidMerge, "the patch cannot be applied to the document"),
        Status::Created | Status::Replaced | Status::Merged | Status::Deleted | Status::Checked => {
            return Refused::new(Kind::Internal, "a success among failures").with_outcome(Outcome::Applied);
        }
        // A newer node's status is no failure that this build understands.
        Status::Unspecified => {
            return Refused::new(Kind::Internal, "the node answered a status of a newer build")
                .with_outcome(Outcome::Unknown);
        }
    };
    Refused { current: tag(reply.version), ..Refused::new(kind, detail) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_create_is_that_of_its_body() {
        assert_eq!(id_to_create(b"{\"id\":7}").unwrap().as_deref(), Some("7"));
        assert_eq!(id_to_create(b"{}").unwrap(), None);
        assert!(id_to_create(b"{\"id\":[]}").is_err());
    }
}
