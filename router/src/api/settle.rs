//! What a shard did with one operation, as a status code or a problem.

use borough_proto::error::ProblemType;
use borough_proto::limits::DOCUMENT_BYTES_MAX;
use borough_proto::wire::{OpReply, OpStatus};

use crate::http::answer::put_etag;
use crate::http::refusal::Refusal;

/// The operation as callers know it, for the words of a problem.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    pub collection: &'a str,
    pub id: &'a str,
    pub sort: Option<&'a str>,
    /// `POST`: the document must be new, and 409 says that it is not.
    pub create: bool,
}

impl Named<'_> {
    pub fn name(&self) -> String {
        match self.sort {
            Some(sort) => format!("{}/{}/{sort}", self.collection, self.id),
            None => format!("{}/{}", self.collection, self.id),
        }
    }
}

/// The status code of an operation that was done.
///
/// # Errors
/// The problem of one that was not; `ETag` names the version that stands.
pub fn settle(reply: &OpReply, named: Named<'_>) -> Result<u16, Refusal> {
    let refuse = |kind, detail: String| {
        let mut refusal = Refusal::new(kind, detail);
        put_etag(refusal.headers_mut(), reply.version);
        Err(refusal)
    };
    match reply.status() {
        OpStatus::Created => Ok(201),
        OpStatus::Replaced | OpStatus::Merged | OpStatus::Checked => Ok(200),
        OpStatus::Deleted => Ok(204),
        OpStatus::NotFound => Err(not_found(named)),
        OpStatus::Exists if named.create => {
            refuse(ProblemType::AlreadyExists, format!("{} exists", named.name()))
        }
        OpStatus::Exists => refuse(ProblemType::PreconditionFailed, format!("{} exists", named.name())),
        OpStatus::PreconditionFailed => refuse(
            ProblemType::PreconditionFailed,
            format!("{} has another version than the condition asks for", named.name()),
        ),
        OpStatus::KeyReused => {
            let detail = "the Idempotency-Key was used before for another request";
            Err(Refusal::new(ProblemType::IdempotencyKeyReused, detail).field("idempotency-key"))
        }
        OpStatus::TooLarge => {
            let detail =
                format!("{} would have more than {DOCUMENT_BYTES_MAX} bytes after the merge", named.name());
            Err(Refusal::new(ProblemType::TooLarge, detail).limit(DOCUMENT_BYTES_MAX))
        }
        OpStatus::InvalidMerge => {
            // That a patch is an object was checked on the way in, and in sorted collections `id` is the caller's own data.
            if named.sort.is_none() {
                let detail = format!("the patch would change the id of {}", named.name());
                return Err(Refusal::new(ProblemType::BadId, detail).field("id"));
            }
            let detail = format!("the patch of {} cannot be applied", named.name());
            Err(Refusal::new(ProblemType::InvalidMerge, detail))
        }
        OpStatus::Aborted => {
            Err(Refusal::new(ProblemType::PreconditionFailed, "another operation of the transaction failed"))
        }
        OpStatus::Unspecified => Err(Refusal::new(
            ProblemType::Internal,
            "a node answered with a status this router does not know",
        )
        .outcome(borough_proto::error::Outcome::Unknown)),
    }
}

/// 404 for a document.
pub fn not_found(named: Named<'_>) -> Refusal {
    Refusal::new(ProblemType::DocumentNotFound, format!("there is no document {}", named.name()))
}
