//! Request bodies: read within a bound of bytes and the request's deadline.

use axum::body::Body;
use borough_proto::error::ProblemType;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::time::Instant;

use super::refusal::Refusal;

fn too_large(bytes_max: usize) -> Refusal {
    Refusal::new(ProblemType::TooLarge, format!("the body is larger than {bytes_max} bytes")).limit(bytes_max)
}

/// The whole body, if it has at most `bytes_max` bytes and arrives before `deadline`.
///
/// # Errors
/// 413 before more than the limit was read; 400 when the caller stops sending.
pub async fn read(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    deadline: Instant,
) -> Result<Bytes, Refusal> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max as u64) {
        return Err(too_large(bytes_max));
    }
    let incomplete = |why: &str| Refusal::new(ProblemType::BadRequest, format!("the body {why}"));
    match tokio::time::timeout_at(deadline, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(bytes_max)),
        Ok(Err(_)) => Err(incomplete("broke off")),
        Err(_) => Err(incomplete("did not arrive within the deadline")),
    }
}
