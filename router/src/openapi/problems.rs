//! What calls answer when they do not do what was asked.

#![expect(dead_code, reason = "only their descriptions are used")]

use borough_proto::error;
use utoipa::{IntoResponses, ToResponse};

/// A problem (RFC 9457). `type` tells which, `outcome` whether a write took effect, `field` what is at fault and `limit`
/// the bound that was passed, where there is one. Batches have at most 100 items.
#[derive(ToResponse)]
#[response(content_type = "application/problem+json")]
pub struct Problem(error::Problem);

/// Of every call.
#[derive(IntoResponses)]
pub enum CallProblems {
    #[response(status = 400)]
    Malformed(#[ref_response] Problem),
    #[response(status = 401)]
    Unauthorized(#[ref_response] Problem),
    #[response(status = 403)]
    Forbidden(#[ref_response] Problem),
    #[response(status = 414)]
    TargetTooLong(#[ref_response] Problem),
    #[response(status = 431)]
    HeadTooLarge(#[ref_response] Problem),
    #[response(status = 429)]
    TooManyRequests(#[ref_response] Problem),
    #[response(status = 500)]
    Internal(#[ref_response] Problem),
    #[response(status = 503)]
    Unavailable(#[ref_response] Problem),
    #[response(status = 504)]
    DeadlineExceeded(#[ref_response] Problem),
}

/// Of every call with a body, besides those of every call.
#[derive(IntoResponses)]
pub enum BodyProblems {
    #[response(status = 413)]
    TooLarge(#[ref_response] Problem),
    #[response(status = 415)]
    UnsupportedMediaType(#[ref_response] Problem),
}

/// Of every read, likewise.
#[derive(IntoResponses)]
pub enum ReadProblems {
    #[response(status = 404)]
    NotFound(#[ref_response] Problem),
}

/// Of every write, likewise.
#[derive(IntoResponses)]
pub enum WriteProblems {
    #[response(status = 404)]
    NotFound(#[ref_response] Problem),
    #[response(status = 422)]
    KeyReused(#[ref_response] Problem),
}

/// Of writes of one document, which may be conditional.
#[derive(IntoResponses)]
pub enum ConditionProblems {
    #[response(status = 412)]
    Failed(#[ref_response] Problem),
    #[response(status = 428)]
    Required(#[ref_response] Problem),
}
