//! Request bodies: read within a bound of bytes and the request's deadline.

use std::time::Duration;

use axum::body::Body;
use borough_proto::error::ProblemType;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::time::Instant;

use super::refusal::Refusal;

/// What is read of a body that is refused, so that its sender gets to read the answer on a connection that stays.
const DRAIN_BYTES_MAX: usize = 8 << 20;
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Reads and forgets the rest of a body that is refused. A connection that is closed on a sender takes the answer with it.
async fn drain(mut body: Body, deadline: Instant) {
    let deadline = deadline.min(Instant::now() + DRAIN_MAX);
    let mut left = DRAIN_BYTES_MAX;
    while let Ok(Some(Ok(frame))) = tokio::time::timeout_at(deadline, body.frame()).await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

fn too_large(bytes_max: usize) -> Refusal {
    Refusal::new(ProblemType::TooLarge, format!("the body is larger than {bytes_max} bytes")).limit(bytes_max)
}

/// The whole body, if it has at most `bytes_max` bytes and arrives before `deadline`.
///
/// # Errors
/// 413, keeping no more than the limit; 400 when the caller stops sending.
pub async fn read(
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
    deadline: Instant,
) -> Result<Bytes, Refusal> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max as u64) {
        // Who asks before sending is told before: reading would say "go on".
        let asks =
            headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if !asks {
            drain(body, deadline).await;
        }
        return Err(too_large(bytes_max));
    }
    let incomplete = |why: &str| Refusal::new(ProblemType::BadRequest, format!("the body {why}"));
    match tokio::time::timeout_at(deadline, Limited::new(&mut body, bytes_max).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            drain(body, deadline).await;
            Err(too_large(bytes_max))
        }
        Ok(Err(_)) => Err(incomplete("broke off")),
        Err(_) => Err(incomplete("did not arrive within the deadline")),
    }
}
