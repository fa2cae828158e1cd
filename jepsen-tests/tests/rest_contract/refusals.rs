//! What is refused: each with the right problem and outcome not-applied, and nothing changed.

use anyhow::{Context as _, ensure};
use borough_proto::error::ProblemType as P;
use borough_proto::limits;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::http::{Http, Method, segment};
use serde_json::{Value, json};

pub async fn run(cases: &mut Cases, http: &Http) {
    cases.run("bad bodies are refused and change nothing", bad_bodies(http)).await;
    cases.run("bad ids are refused", bad_ids(http)).await;
    cases.run("a document of 1 MiB is taken, one byte more is 413", sizes(http)).await;
    cases.run("a merge that would outgrow a document is refused", merged_too_large(http)).await;
    cases.run("bad queries are refused and change nothing", bad_queries(http)).await;
    cases.run("bad headers are refused and change nothing", bad_headers(http)).await;
    cases.run("unknown collections, paths and methods", unknown_paths(http)).await;
    cases.run("wrong content types are 415 and change nothing", content_types(http)).await;
}

const JSON: &str = "application/json";

async fn bad_bodies(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/bad-body";
    let etag = http.put(path, &json!({"kept": true})).expect(201).await?.etag()?;
    let deep = format!(
        "{{\"a\":{}{}}}",
        "[".repeat(limits::DOCUMENT_DEPTH_MAX + 1),
        "]".repeat(limits::DOCUMENT_DEPTH_MAX + 1)
    );
    let bodies: [&[u8]; 16] = [
        b"",
        b"{",
        b"{\"a\":}",
        b"{\"a\":1,}",
        b"{}x",
        b"nul",
        b"[]",
        b"1",
        b"\"x\"",
        b"null",
        b"true",
        b"{\"a\":\"\xff\"}",
        b"{\"a\":\"\\ud800\"}",
        b"{\"a\":1e999}",
        b"{'a':1}",
        deep.as_bytes(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(body).chars().take(40).collect::<String>();
        for (method, path) in [(Method::PUT, path), (Method::PATCH, path), (Method::POST, "/v1/users")] {
            let answer = http.call(method.clone(), path).body(JSON, body.to_vec()).send().await?;
            let problem = answer.refused_as(&[P::MalformedJson]);
            let problem = problem.with_context(|| format!("{method} with {shown:?}"))?;
            if body == deep.as_bytes() {
                check_eq!(problem.field.as_deref(), Some("a"), "field of what is nested too deep");
                check_eq!(problem.limit, Some(limits::DOCUMENT_DEPTH_MAX as u64), "limit named");
            }
        }
    }
    for body in [
        json!({"id": "other"}),
        json!({"id": 7}),
        json!({"id": 1.5}),
        json!({"id": null}),
        json!({"id": ["x"]}),
    ] {
        let answer = http.put(path, &body).send().await?;
        answer
            .refused_as(&[P::BadRequest, P::BadId, P::MalformedJson])
            .with_context(|| format!("PUT {body}"))?;
    }
    for body in
        [json!({"id": 1.5}), json!({"id": null}), json!({"id": {}}), json!({"id": true}), json!({"id": ""})]
    {
        let answer = http.post("/v1/users", &body).send().await?;
        answer
            .refused_as(&[P::BadRequest, P::BadId, P::MalformedJson])
            .with_context(|| format!("POST {body}"))?;
    }
    check_eq!(http.get(path).expect(200).await?.etag()?, etag, "the document's version");
    Ok(())
}

async fn bad_ids(http: &Http) -> anyhow::Result<()> {
    let long = "x".repeat(limits::ID_BYTES_MAX + 1);
    let long_umlauts = segment(&"ä".repeat(limits::ID_BYTES_MAX / 2 + 1));
    for id in [long.as_str(), &long_umlauts, "%FF", "%C3%28", "a%80"] {
        let path = format!("/v1/users/{id}");
        let shown = &id[..id.len().min(20)];
        for call in [
            http.get(&path),
            http.put(&path, &json!({"a": 1})),
            http.patch(&path, &json!({"a": 1})),
            http.delete(&path),
        ] {
            let problem = call.refused(P::BadId).await.with_context(|| format!("id {shown:?}"))?;
            ensure!(
                id.contains('%') && id.len() < 100 || problem.limit == Some(256),
                "names no limit: {problem:?}"
            );
        }
    }
    http.post("/v1/users", &json!({"id": long})).refused(P::BadId).await?;
    for call in [http.get("/v1/users/"), http.put("/v1/users/", &json!({})), http.delete("/v1/users/")] {
        call.send()
            .await?
            .refused_as(&[P::BadId, P::NotFound, P::BadRequest, P::MethodNotAllowed])
            .context("empty id")?;
    }
    Ok(())
}

fn document_of(bytes: usize) -> String {
    let frame = r#"{"fill":""}"#.len();
    format!("{{\"fill\":\"{}\"}}", "x".repeat(bytes - frame))
}

async fn sizes(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/size";
    let largest = document_of(limits::DOCUMENT_BYTES_MAX);
    let etag = http.call(Method::PUT, path).body(JSON, largest.clone()).expect(201).await?.etag()?;
    let too_large = document_of(limits::DOCUMENT_BYTES_MAX + 1);
    for (method, path) in [(Method::PUT, path), (Method::PATCH, path), (Method::POST, "/v1/users")] {
        let problem = http.call(method, path).body(JSON, too_large.clone()).refused(P::TooLarge).await?;
        check_eq!(problem.limit, Some(limits::DOCUMENT_BYTES_MAX as u64));
    }
    let far_too_large = document_of(12 << 20);
    http.call(Method::PUT, path).body(JSON, far_too_large).refused(P::TooLarge).await?;
    let got = http.get(path).expect(200).await?;
    check_eq!(got.etag()?, etag);
    check_eq!(got.json()?["fill"], serde_json::from_str::<Value>(&largest)?["fill"], "the largest document");
    http.delete(path).expect(204).await?;
    Ok(())
}

async fn merged_too_large(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/merged-size";
    let etag = http.put(path, &json!({"a": "x".repeat(600 << 10)})).expect(201).await?.etag()?;
    http.patch(path, &json!({"b": "y".repeat(600 << 10)})).refused(P::TooLarge).await?;
    check_eq!(http.get(path).expect(200).await?.etag()?, etag);
    http.delete(path).expect(204).await?;
    Ok(())
}

async fn bad_queries(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/bad-query";
    let etag = http.put(path, &json!({"kept": true})).expect(201).await?.etag()?;
    let query = |query: &str| format!("{path}?{query}");
    for ttl in ["", "0s", "-1s", "1", "1m", "abc", "1.2345s", "99999999999999999999s"] {
        let problem = http.put(&query(&format!("ttl={ttl}")), &json!({})).refused(P::BadParameter).await;
        let problem = problem.with_context(|| format!("ttl={ttl}"))?;
        check_eq!(problem.field.as_deref(), Some("ttl"), "field of ttl={ttl}");
    }
    for call in [
        http.get(&query("foo=1")),
        http.put(&query("foo=1"), &json!({})),
        http.patch(&query("foo=1"), &json!({})),
        http.delete(&query("foo=1")),
        http.post("/v1/users?foo=1", &json!({"id": "bad-query-2"})),
        http.post("/v1/users:batchGet?foo=1", &json!({"ids": ["x"]})),
        http.post("/v1/users:batchWrite?foo=1", &json!({"writes": []})),
        http.get("/v1/users?foo=1"),
        http.get("/v1/users?pageSize=10&foo=1"),
    ] {
        let problem = call.refused(P::BadParameter).await?;
        ensure!(
            problem.detail.contains("foo") || problem.field.as_deref() == Some("foo"),
            "unnamed: {problem:?}"
        );
    }
    let answer = http.put(&query("foo=1"), &json!({})).send().await?;
    let shard = http.get(path).send().await?.need("borough-shard")?.to_owned();
    check_eq!(answer.need("borough-shard")?, shard, "the shard of a refusal");
    for size in ["0", "-1", "abc", "1.5", "1001", "99999999999999999999"] {
        let problem = http.get(&format!("/v1/users?pageSize={size}")).refused(P::BadParameter).await;
        let problem = problem.with_context(|| format!("pageSize={size}"))?;
        check_eq!(problem.field.as_deref(), Some("pageSize"), "field of pageSize={size}");
    }
    for token in ["x", "!!!", "AAAA", "%00", "eyJhIjoxfQ"] {
        let answer = http.get(&format!("/v1/users?pageToken={token}"));
        answer.refused(P::BadPageToken).await.with_context(|| format!("pageToken={token}"))?;
    }
    check_eq!(http.get(path).expect(200).await?.etag()?, etag, "the document's version");
    check_eq!(http.document("/v1/users/bad-query-2").await?, None);
    Ok(())
}

async fn bad_headers(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/bad-header";
    let etag = http.put(path, &json!({"kept": true})).expect(201).await?.etag()?;
    let long_key = "k".repeat(limits::IDEMPOTENCY_KEY_BYTES_MAX + 1);
    for (name, value) in [
        ("idempotency-key", long_key.as_str()),
        ("idempotency-key", ""),
        ("borough-session", "not a token!"),
        ("borough-timeout-ms", "soon"),
        ("cache-control", "max-stale=abc"),
    ] {
        let call = match name {
            "idempotency-key" => http.put(path, &json!({"a": 1})),
            _ => http.get(path),
        };
        let shown = value.chars().take(20).collect::<String>();
        let answer = call.header(name, value).send().await?;
        answer.refused_as(&[P::BadHeader]).with_context(|| format!("{name}: {shown}"))?;
    }
    // No entity tag at all: either a bad header or one that matches nothing, never "matches".
    for bad in ["nonsense", "\"", "1"] {
        let answer = http.put(path, &json!({"a": 1})).header("if-match", bad).send().await?;
        answer
            .refused_as(&[P::BadHeader, P::PreconditionFailed])
            .with_context(|| format!("If-Match: {bad}"))?;
    }
    check_eq!(http.get(path).expect(200).await?.etag()?, etag, "the document's version");
    Ok(())
}

async fn unknown_paths(http: &Http) -> anyhow::Result<()> {
    let body = json!({"a": 1});
    for call in [
        http.get("/v1/nowhere/x"),
        http.put("/v1/nowhere/x", &body),
        http.patch("/v1/nowhere/x", &body),
        http.delete("/v1/nowhere/x"),
        http.post("/v1/nowhere", &body),
        http.get("/v1/nowhere"),
        http.post("/v1/nowhere:batchGet", &json!({"ids": ["x"]})),
        http.post("/v1/nowhere:batchWrite", &json!({"writes": [{"delete": {"id": "x"}}]})),
        http.get("/v1/nowhere/x/y"),
    ] {
        call.refused(P::CollectionNotFound).await?;
    }
    for path in ["/", "/v1", "/v2/users/x", "/v1/users/a/b/c", "/admin/v1/nothing", "/nothing"] {
        http.get(path).refused(P::NotFound).await.with_context(|| path.to_owned())?;
    }
    http.post("/v1/users:batchNothing", &body)
        .send()
        .await?
        .refused_as(&[P::NotFound, P::CollectionNotFound])?;
    for (method, path) in [
        (Method::PUT, "/v1/users"),
        (Method::DELETE, "/v1/users"),
        (Method::POST, "/v1/users/x"),
        (Method::GET, "/v1/users:batchGet"),
        (Method::PUT, "/v1/users:batchWrite"),
        (Method::GET, "/v1/partitions/x:transact"),
        (Method::POST, "/admin/v1/cluster"),
        (Method::DELETE, "/livez"),
    ] {
        let answer = http.call(method.clone(), path).json(&body).send().await?;
        answer.refused_as(&[P::MethodNotAllowed]).with_context(|| format!("{method} {path}"))?;
        ensure!(!answer.need("allow")?.contains(method.as_str()), "Allow: {}", answer.need("allow")?);
    }
    Ok(())
}

async fn content_types(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/content-type";
    let etag = http.put(path, &json!({"kept": true})).expect(201).await?.etag()?;
    for (method, path, content_type) in [
        (Method::PUT, path, "text/plain"),
        (Method::PUT, path, "application/xml"),
        (Method::PUT, path, "application/merge-patch+json"),
        (Method::PATCH, path, "application/json-patch+json"),
        (Method::PATCH, path, "text/plain"),
        (Method::POST, "/v1/users", "application/x-www-form-urlencoded"),
        (Method::POST, "/v1/users:batchGet", "text/plain"),
        (Method::POST, "/v1/users:batchWrite", "text/plain"),
        (Method::POST, "/v1/partitions/x:transact", "text/plain"),
    ] {
        let call = http.call(method.clone(), path).body(content_type, "{}");
        call.refused(P::UnsupportedMediaType).await.with_context(|| format!("{method} {content_type}"))?;
    }
    check_eq!(http.get(path).expect(200).await?.etag()?, etag, "the document's version");
    Ok(())
}
