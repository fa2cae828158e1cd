//! What every answer must be.

use borough_proto::error::{Outcome, Problem, ProblemType};
use borough_proto::http_api::headers as names;
use http::header::{ALLOW, CONTENT_TYPE, ETAG, RETRY_AFTER};
use http::{Method, StatusCode};
use serde_json::Value;

use super::Answer;
use super::request::Request;

fn header(answer: &Answer, name: impl http::header::AsHeaderName) -> &str {
    answer.headers.get(name).map_or("", |value| value.to_str().unwrap_or("not visible ASCII"))
}

pub fn answer(request: &Request, answer: &Answer) {
    for name in [names::REQUEST_ID, names::SHARD, names::NODE] {
        assert!(!header(answer, name).is_empty(), "no {name}: {request:?} {answer:?}");
    }
    if request.method == Method::HEAD {
        assert!(answer.body.is_empty(), "{request:?} {answer:?}");
        return;
    }
    if answer.status.is_client_error() || answer.status.is_server_error() {
        problem(request, answer);
        return;
    }
    let page = request.uri.path().starts_with("/docs");
    let known = matches!(
        answer.status,
        StatusCode::OK
            | StatusCode::CREATED
            | StatusCode::ACCEPTED
            | StatusCode::NO_CONTENT
            | StatusCode::NOT_MODIFIED
    );
    assert!(known || (page && answer.status.is_redirection()), "{request:?} {answer:?}");
    if header(answer, CONTENT_TYPE) == "application/json" && answer.status != StatusCode::NOT_MODIFIED {
        let parsed = serde_json::from_slice::<Box<serde_json::value::RawValue>>(&answer.body);
        assert!(parsed.is_ok(), "{parsed:?}: {request:?} {answer:?}");
    }
}

fn problem(request: &Request, answer: &Answer) {
    assert_eq!(header(answer, CONTENT_TYPE), names::PROBLEM, "{request:?} {answer:?}");
    let problem: Problem = serde_json::from_slice(&answer.body)
        .unwrap_or_else(|error| panic!("no problem: {error}: {request:?} {answer:?}"));
    let kind = ProblemType::from_urn(&problem.kind);
    assert_eq!(kind.map(ProblemType::status), Some(answer.status.as_u16()), "{request:?} {answer:?}");
    assert_eq!(problem.status, answer.status.as_u16(), "{request:?} {answer:?}");
    assert!(!problem.detail.is_empty(), "{request:?} {answer:?}");
    assert_ne!(kind, Some(ProblemType::Internal), "{request:?} {answer:?}");
    if request.method == Method::GET || answer.status == StatusCode::SERVICE_UNAVAILABLE {
        assert_eq!(problem.outcome, Outcome::NotApplied, "{request:?} {answer:?}");
    }
    let has = |name| !header(answer, name).is_empty();
    assert!(answer.status != StatusCode::METHOD_NOT_ALLOWED || has(ALLOW), "{request:?} {answer:?}");
    assert!(answer.status != StatusCode::SERVICE_UNAVAILABLE || has(RETRY_AFTER), "{request:?} {answer:?}");
}

/// `found` is what was read after `written` answered `request`.
pub fn read_back(request: &Request, written: &Answer, found: &Answer) {
    if found.is_late() {
        return;
    }
    assert_eq!(found.status, StatusCode::OK, "{request:?} {written:?} {found:?}");
    assert_eq!(header(found, ETAG), header(written, ETAG), "{request:?} {written:?} {found:?}");
    let read: Result<Value, _> = serde_json::from_slice(&request.body);
    // Some numbers are JSON, and more than serde_json's values hold.
    let Ok(Value::Object(sent)) = read else { return };
    let Ok(Value::Object(held)) = serde_json::from_slice(&found.body) else {
        panic!("{request:?} {found:?}");
    };
    for (name, value) in &sent {
        assert_eq!(held.get(name), Some(value), "{name} of {request:?} {found:?}");
    }
}
