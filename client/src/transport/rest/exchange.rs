//! One call over HTTP: attempts over the routers, inside one deadline (I8).
//!
//! Reads are sent again after any failure that a router can get over. Writes are sent again when
//! the answer says that nothing was applied, and when the outcome is not known only under the same
//! idempotency key, so that no attempt applies a second time. The outcome told at the end covers
//! all attempts (I9).

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use borough_proto::error::{Outcome, Problem, ProblemType};
use borough_proto::http_api::headers;
use borough_proto::limits;
use bytes::{Bytes, BytesMut};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::endpoints::{Endpoint, Endpoints};
use crate::document::Etag;
use crate::error::{Error, Refusal, Result};
use crate::transport::Call;

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// With another router to turn to, one attempt gets half of the time left, but not less than this.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);
/// Longest a connection may take to open: a machine that is gone answers nothing at all.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(2);

/// The routers and the connections to them.
#[derive(Debug)]
pub(crate) struct Rest {
    pub http: reqwest::Client,
    pub endpoints: Endpoints,
    /// `Authorization`, marked sensitive.
    pub authorization: Option<HeaderValue>,
}

/// A request, whichever router it goes to.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Option<Bytes>,
    /// It changes something, so its failures have an outcome.
    pub write: bool,
    /// Sending it twice comes to the same as sending it once, even without a key.
    pub resend: bool,
}

/// A success.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What to do after a failed attempt.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// At once when another router has not been tried, else after a pause.
    Elsewhere,
    /// After a pause, of at least this length.
    After(Duration),
    Stop,
}

/// Decides from the error alone. `repeatable`: sending the request twice is harmless.
fn next(error: &Error, write: bool, repeatable: bool) -> Next {
    let pause = error.retry_after().unwrap_or_default();
    match error {
        Error::Transport { outcome: Outcome::NotApplied, .. } => Next::Elsewhere,
        Error::Transport { .. } if repeatable => Next::Elsewhere,
        Error::RateLimited { .. } => Next::After(pause),
        Error::Unavailable { .. } if error.outcome() == Outcome::NotApplied || repeatable => {
            Next::After(pause)
        }
        // The same bug answers the same way; reads try another router, writes are the caller's decision.
        Error::Unknown(refusal) if write && refusal.problem.status == 500 => Next::Stop,
        Error::Unknown(_) if repeatable => Next::After(pause),
        Error::NotFound(_)
        | Error::CollectionNotFound(_)
        | Error::PreconditionFailed { .. }
        | Error::AlreadyExists { .. }
        | Error::Conflict(_)
        | Error::Invalid(_)
        | Error::IdempotencyKeyReused(_)
        | Error::Unauthorized(_)
        | Error::Forbidden(_)
        | Error::Unavailable { .. }
        | Error::Unknown(_)
        | Error::DeadlineExceeded { .. }
        | Error::Transport { .. }
        | Error::Decode { .. }
        | Error::Encode { .. }
        | Error::NeedsRouter { .. } => Next::Stop,
    }
}

impl Rest {
    /// Sends `out` until it is answered, refused for good, or the deadline leaves no time for another attempt.
    pub async fn exchange(&self, call: &Call, out: &Outgoing) -> Result<Answer> {
        let until = Instant::now() + call.deadline;
        let repeatable = out.resend || call.idempotency_key.is_some();
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(PAUSE_MIN)
            .with_max_delay(PAUSE_MAX)
            .with_jitter()
            .without_max_times()
            .build();
        let mut attempts = 0_u32;
        let mut untried = self.endpoints.len();
        let mut unknown = false;
        let mut last = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(exceeded(call, attempts, unknown, last));
            }
            attempts += 1;
            untried = untried.saturating_sub(1);
            let mut error = match self.attempt(call, out, left).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if unknown {
                error = error.after_unknown();
            }
            unknown |= out.write && error.outcome() == Outcome::Unknown;
            if matches!(error, Error::Transport { .. }) && Instant::now() >= until {
                return Err(exceeded(call, attempts, unknown, Some(error)));
            }
            let pause = match next(&error, out.write, repeatable) {
                Next::Stop => return Err(error),
                Next::Elsewhere if untried > 0 => Duration::ZERO,
                Next::Elsewhere => pauses.next().unwrap_or(PAUSE_MAX),
                Next::After(least) => pauses.next().unwrap_or(PAUSE_MAX).max(least),
            };
            if pause >= until.saturating_duration_since(Instant::now()) {
                return Err(error);
            }
            tracing::debug!(operation = %call.operation, attempts, ?pause, %error, "sending again");
            last = Some(error);
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends it once, to the router whose turn it is.
    async fn attempt(&self, call: &Call, out: &Outgoing, left: Duration) -> Result<Answer> {
        let Some(endpoint) = self.endpoints.pick() else {
            return Err(Error::NeedsRouter { operation: call.operation.clone() });
        };
        let budget = if self.endpoints.len() > 1 { (left / 2).max(ATTEMPT_MIN).min(left) } else { left };
        let request = self.request(call, out, endpoint, budget)?;
        // A write handed to the network may arrive whatever happens to the answer (I9).
        let sent = if out.write { Outcome::Unknown } else { Outcome::NotApplied };
        let received = match request.send().await {
            Ok(response) => {
                self.endpoints.welcome(endpoint);
                receive(response).await
            }
            Err(error) => Err(error.into()),
        };
        let (status, headers, body) = received.map_err(|broken| {
            self.endpoints.shun(endpoint);
            Error::Transport {
                operation: call.operation.clone(),
                peer: endpoint.base.clone(),
                outcome: if broken.before_sending { Outcome::NotApplied } else { sent },
                idempotency_key: call.idempotency_key.clone(),
                source: broken.source,
            }
        })?;
        let answer = Answer { status, headers, body };
        if let (Some(session), Some(token)) = (&call.session, answer.header(headers::SESSION)) {
            session.absorb(token);
        }
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        Err(refusal(call, out, &answer))
    }

    fn request(
        &self,
        call: &Call,
        out: &Outgoing,
        endpoint: &Endpoint,
        budget: Duration,
    ) -> Result<reqwest::RequestBuilder> {
        let url = format!("{}{}", endpoint.base, out.target);
        let mut request = self.http.request(out.method.clone(), url).timeout(budget);
        // The router gets a little less, so that its own, more telling answer is here in time.
        let told = budget - (budget / 20).min(Duration::from_millis(50));
        request =
            request.header(headers::TIMEOUT, told.min(limits::DEADLINE_MAX).as_millis().max(1).to_string());
        for (name, value) in &out.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(reqwest::header::AUTHORIZATION, authorization);
        }
        if let (true, Some(key)) = (out.write, &call.idempotency_key) {
            request = request.header(headers::IDEMPOTENCY_KEY, super::header(call, "Idempotency-Key", key)?);
        }
        if let Some(token) = call.session.as_ref().and_then(|session| session.token()) {
            request = request.header(headers::SESSION, token);
        }
        Ok(match &out.body {
            Some(body) => request.body(body.clone()),
            None => request,
        })
    }
}

/// No whole answer came back.
struct Broken {
    before_sending: bool,
    source: crate::error::Cause,
}

impl From<reqwest::Error> for Broken {
    fn from(error: reqwest::Error) -> Self {
        // The target is in the operation's name already, and it may be long.
        let error = error.without_url();
        Self { before_sending: error.is_connect() || error.is_builder(), source: Box::new(error) }
    }
}

/// Reads the whole answer, up to the largest that Borough sends.
async fn receive(mut response: reqwest::Response) -> Result<(u16, HeaderMap, Bytes), Broken> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limits::MESSAGE_BYTES_MAX {
            let source = format!("an answer of more than {} bytes", limits::MESSAGE_BYTES_MAX).into();
            return Err(Broken { before_sending: false, source });
        }
        body.extend_from_slice(&chunk);
    }
    Ok((response.status().as_u16(), std::mem::take(response.headers_mut()), body.freeze()))
}

/// The error that an answer is.
fn refusal(call: &Call, out: &Outgoing, answer: &Answer) -> Error {
    let mut problem = serde_json::from_slice(&answer.body).unwrap_or_else(|_| foreign_problem(answer));
    if !out.write && problem.outcome != Outcome::NotApplied {
        problem.outcome = Outcome::NotApplied;
    }
    let seconds = answer.header("retry-after").and_then(|text| text.trim().parse().ok());
    Error::from_refusal(Refusal {
        request_id: answer.header(headers::REQUEST_ID).map(str::to_owned),
        idempotency_key: call.idempotency_key.clone().filter(|_| out.write),
        retry_after: seconds.map(Duration::from_secs),
        current: answer.header("etag").map(Etag::from),
        ..Refusal::new(&call.operation, problem)
    })
}

/// An answer that is no problem document comes from something in front of the routers:
/// whether the request got through from there is not known, unless it was the request's own fault.
fn foreign_problem(answer: &Answer) -> Problem {
    let text: String = String::from_utf8_lossy(&answer.body).chars().take(200).collect();
    let client_fault = (400..500).contains(&answer.status);
    Problem {
        kind: "about:blank".to_owned(),
        title: "Not an answer of Borough's".to_owned(),
        status: answer.status,
        outcome: if client_fault { Outcome::NotApplied } else { Outcome::Unknown },
        ..Problem::new(ProblemType::Internal, text)
    }
}

fn exceeded(call: &Call, attempts: u32, unknown: bool, last: Option<Error>) -> Error {
    Error::DeadlineExceeded {
        operation: call.operation.clone(),
        deadline: call.deadline,
        attempts,
        outcome: if unknown { Outcome::Unknown } else { Outcome::NotApplied },
        idempotency_key: call.idempotency_key.clone(),
        last: last.map(Box::new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: ProblemType, outcome: Outcome) -> Error {
        // An answer that names no time to wait.
        let refusal = Refusal::new("put users/1", Problem::new(kind, "").with_outcome(outcome));
        Error::from_refusal(Refusal { retry_after: None, ..refusal })
    }

    fn broken(outcome: Outcome) -> Error {
        Error::Transport {
            operation: "put users/1".into(),
            peer: "http://r".into(),
            outcome,
            idempotency_key: None,
            source: "cut".into(),
        }
    }

    #[test]
    fn a_write_is_resent_only_when_it_cannot_apply_twice() {
        let now = Next::After(Duration::ZERO);
        use Outcome::{NotApplied, Unknown};
        // (error, next for a write with a key, next for a write without one)
        let table = [
            (broken(NotApplied), Next::Elsewhere, Next::Elsewhere),
            (broken(Unknown), Next::Elsewhere, Next::Stop),
            (
                refused(ProblemType::Unavailable, NotApplied),
                Next::After(Duration::ZERO),
                Next::After(Duration::ZERO),
            ),
            (
                refused(ProblemType::Overloaded, NotApplied),
                Next::After(Duration::ZERO),
                Next::After(Duration::ZERO),
            ),
            (refused(ProblemType::Unavailable, Unknown), Next::After(Duration::ZERO), Next::Stop),
            (refused(ProblemType::DeadlineExceeded, Unknown), Next::After(Duration::ZERO), Next::Stop),
            (refused(ProblemType::Internal, Unknown), Next::Stop, Next::Stop),
            (refused(ProblemType::PreconditionFailed, NotApplied), Next::Stop, Next::Stop),
            (refused(ProblemType::IdempotencyKeyReused, NotApplied), Next::Stop, Next::Stop),
            (refused(ProblemType::BadRequest, NotApplied), Next::Stop, Next::Stop),
            (refused(ProblemType::Unauthorized, NotApplied), Next::Stop, Next::Stop),
            (refused(ProblemType::Forbidden, NotApplied), Next::Stop, Next::Stop),
        ];
        for (error, with_key, without) in table {
            assert_eq!(next(&error, true, true), with_key, "{error}");
            assert_eq!(next(&error, true, false), without, "{error}");
        }
        assert_eq!(next(&refused(ProblemType::Internal, NotApplied), false, true), now);
    }
}
