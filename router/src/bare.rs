//! hyper's own answers to heads that are no HTTP or too large, made into what every refusal is.
//!
//! It writes them by itself, before any service is asked, and offers no hook: a status with no more than `connection`,
//! `content-length: 0` and `date`. No answer of the router looks like that, since each has an `x-request-id`. Such an answer
//! is the last of its connection.

use borough_proto::error::{Problem, ProblemType};
use borough_proto::http_api::headers as names;
use bytes::Bytes;

/// Longer than any of them; those of HTTP/1.1 have some 100 bytes.
const BARE_BYTES_MAX: usize = 256;

/// Where such an answer begins in what is about to be written; it is the end of it.
pub fn starts_at(written: &[u8]) -> Option<usize> {
    if !written.ends_with(b"\r\n\r\n") {
        return None;
    }
    let from = written.len().saturating_sub(BARE_BYTES_MAX);
    let tail = written.get(from..)?;
    let at = tail.windows(8).rposition(|word| matches!(word, b"HTTP/1.1" | b"HTTP/1.0"))?;
    parse(tail.get(at..)?).map(|_| from + at)
}

/// Status line and date of a bare refusal.
fn parse(answer: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(answer).ok()?.strip_suffix("\r\n\r\n")?;
    let (status, fields) = text.split_once("\r\n")?;
    let (mut date, mut empty) = ("", false);
    for field in fields.split("\r\n") {
        match field.split_once(": ")? {
            ("content-length", "0") => empty = true,
            ("date", _) => date = field,
            ("connection", _) => {}
            _ => return None,
        }
    }
    let refused = status.as_bytes().get(8..10) == Some(b" 4");
    (refused && empty).then_some((status, date))
}

/// The bare answer `written` with a body that says what is wrong, and the headers of every answer.
pub fn completed(written: &[u8], request_id: &str) -> Option<Bytes> {
    let (status, date) = parse(written)?;
    let (kind, detail) = match status.get(9..12)? {
        "414" => (ProblemType::TargetTooLong, "the request's target is longer than 65534 bytes"),
        "431" => (
            ProblemType::HeadTooLarge,
            "the request's head has more than 100 fields or is larger than 400 KiB",
        ),
        _ => (ProblemType::BadRequest, "this is no HTTP request, or its framing is at fault"),
    };
    // A struct of strings and numbers always serialises.
    let body = serde_json::to_string(&Problem::new(kind, detail)).unwrap_or_default();
    let mut head =
        format!("{status}\r\ncontent-type: {}\r\ncontent-length: {}\r\n", names::PROBLEM, body.len());
    for (name, value) in [
        (names::SHARD, "none"),
        (names::NODE, "none"),
        (names::REQUEST_ID, request_id),
        ("connection", "close"),
    ] {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !date.is_empty() {
        head.push_str(date);
        head.push_str("\r\n");
    }
    Some(Bytes::from(head + "\r\n" + &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n";

    #[test]
    fn only_bare_refusals_are_found() {
        assert_eq!(starts_at(BARE.as_bytes()), Some(0));
        let behind = format!("HTTP/1.1 204 No Content\r\nx-request-id: 1\r\n\r\n{BARE}");
        assert_eq!(starts_at(behind.as_bytes()), Some(behind.len() - BARE.len()));
        let behind = format!("HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n{}{BARE}", "x".repeat(9000));
        assert_eq!(starts_at(behind.as_bytes()), Some(behind.len() - BARE.len()));
        for other in [
            "",
            "\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nx-request-id: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 10\r\ndate: x\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "{\"a\":\"HTTP/1.1 400 Bad Request\"}\r\n\r\n",
        ] {
            assert_eq!(starts_at(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_completed_refusal_says_what_is_wrong() {
        for (status, kind) in [
            ("400 Bad Request", ProblemType::BadRequest),
            ("414 URI Too Long", ProblemType::TargetTooLong),
            ("431 Request Header Fields Too Large", ProblemType::HeadTooLarge),
        ] {
            let bare = BARE.replace("431 Request Header Fields Too Large", status);
            let whole = completed(bare.as_bytes(), "id-1").unwrap();
            let (head, body) = std::str::from_utf8(&whole).unwrap().split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
            for field in [
                "content-type: application/problem+json",
                "borough-shard: none",
                "borough-node: none",
                "x-request-id: id-1",
                "connection: close",
                "date: Thu, 01 Jan 1970 00:00:00 GMT",
                &format!("content-length: {}", body.len()),
            ] {
                assert!(head.split("\r\n").any(|line| line == field), "{field}: {head}");
            }
            let problem: Problem = serde_json::from_str(body).unwrap();
            assert_eq!((problem.problem_type(), problem.status), (Some(kind), kind.status()));
            assert_eq!(starts_at(&whole), None);
        }
    }
}
