//! What every answer's head has, and what answers heads that are no HTTP: over connections of our own, byte by byte.

use anyhow::{Context as _, ensure};
use borough_proto::error::{Outcome, Problem, ProblemType as P};
use borough_proto::http_api::headers;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::http::{Http, Method};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub async fn run(cases: &mut Cases, http: &Http) {
    cases.run("shard and node are \"none\" where none is concerned", none(http)).await;
    cases.run("heads that are no HTTP or too large are problems", bad_heads(http)).await;
    cases.run("an upload that asks first is refused before it is sent", asks_first(http)).await;
}

async fn none(http: &Http) -> anyhow::Result<()> {
    for path in
        ["/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/", "/docs/x", "/", "/v1", "/nope"]
    {
        for method in [Method::GET, Method::HEAD, Method::DELETE] {
            let answer = http.call(method, path).send().await?;
            check_eq!(answer.need(headers::SHARD)?, "none", "{answer}");
            check_eq!(answer.need(headers::NODE)?, "none", "{answer}");
            answer.need(headers::REQUEST_ID)?;
        }
    }
    let path = "/v1/users/heads-1";
    let made = http.put(path, &json!({})).expect(201).await?;
    let shard = made.need(headers::SHARD)?.to_owned();
    let known = http.get(path).header("if-none-match", &made.etag()?).expect(304).await?;
    let bodiless = http.call(Method::HEAD, path).expect(200).await?;
    let wrong = http.call(Method::PUT, path).body("text/plain", "x").expect(415).await?;
    let gone = http.delete(path).expect(204).await?;
    for answer in [&known, &bodiless, &wrong, &gone] {
        check_eq!(answer.need(headers::SHARD)?, shard, "{answer}");
        answer.need(headers::REQUEST_ID)?;
        let node = answer.need(headers::NODE)?;
        check_eq!(node == "none", answer.status == 415, "node {node}: {answer}");
    }
    Ok(())
}

/// Everything that comes back for `sent`.
async fn raw(http: &Http, sent: &str) -> anyhow::Result<String> {
    let mut stream = connect(http).await?;
    stream.write_all(sent.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn connect(http: &Http) -> anyhow::Result<TcpStream> {
    let addr = http.base().strip_prefix("http://").context("the router's address")?;
    Ok(TcpStream::connect(addr).await?)
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
    lines.find(|line| line.0.eq_ignore_ascii_case(name)).map(|line| line.1)
}

/// Head and body of the first answer in `text`, and what follows it.
fn first(text: &str) -> anyhow::Result<(&str, &str, &str)> {
    let (head, rest) = text.split_once("\r\n\r\n").with_context(|| format!("no head: {text:?}"))?;
    let length = field(head, "content-length").with_context(|| format!("no length: {head}"))?.parse()?;
    ensure!(rest.len() >= length, "{length} bytes announced: {rest:?}");
    let (body, rest) = rest.split_at(length);
    Ok((head, body, rest))
}

async fn bad_heads(http: &Http) -> anyhow::Result<()> {
    let good = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    let long = format!("GET /v1/users/{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(70_000));
    let many = format!("GET /livez HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(200));
    for (bad, kind) in [
        ("what is this?\r\n\r\n", P::BadRequest),
        ("GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", P::BadRequest),
        ("GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n", P::BadRequest),
        (long.as_str(), P::TargetTooLong),
        (many.as_str(), P::HeadTooLarge),
    ] {
        for before in [0, 1, 5] {
            let answers = raw(http, &format!("{}{bad}", good.repeat(before))).await?;
            let mut rest = answers.as_str();
            for _ in 0..before {
                let (head, body, after) = first(rest)?;
                ensure!(head.starts_with("HTTP/1.1 200 ") && body == "ok\n", "{head} {body}");
                rest = after;
            }
            let (head, body, after) = first(rest)?;
            ensure!(head.starts_with(&format!("HTTP/1.1 {} ", kind.status())), "{kind:?}: {head}");
            check_eq!(after, "", "behind {head}");
            check_eq!(field(head, "content-type"), Some(headers::PROBLEM));
            check_eq!(field(head, headers::SHARD), Some("none"));
            check_eq!(field(head, headers::NODE), Some("none"));
            ensure!(field(head, headers::REQUEST_ID).is_some_and(|id| !id.is_empty()), "{head}");
            let problem: Problem = serde_json::from_str(body).with_context(|| body.to_owned())?;
            check_eq!(problem.problem_type(), Some(kind));
            check_eq!((problem.status, problem.outcome), (kind.status(), Outcome::NotApplied));
        }
    }
    Ok(())
}

async fn asks_first(http: &Http) -> anyhow::Result<()> {
    let mut stream = connect(http).await?;
    let head = "PUT /v1/users/heads-2 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut status = [0; 12];
    stream.read_exact(&mut status).await?;
    check_eq!(String::from_utf8_lossy(&status), "HTTP/1.1 413");
    check_eq!(http.document("/v1/users/heads-2").await?, None);
    Ok(())
}
