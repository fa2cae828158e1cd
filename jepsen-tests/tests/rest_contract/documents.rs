//! One document: POST, GET, HEAD, PUT, PATCH, DELETE, preconditions, versions, ids.

use std::collections::HashSet;

use anyhow::{Context as _, ensure};
use borough_proto::error::ProblemType as P;
use borough_proto::http_api::headers;
use borough_proto::key::hash_id;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::status;
use jepsen_tests::http::{Http, Method, segment};
use serde_json::{Value, json};

pub async fn run(cases: &mut Cases, http: &Http) {
    cases.run("post creates, location and etag lead to the document", post(http)).await;
    cases.run("post without an id makes a UUIDv7", post_generates(http)).await;
    cases.run("get, head, 304 and 404", get_and_head(http)).await;
    cases.run("put creates and replaces under preconditions", put(http)).await;
    cases.run("patch merges (RFC 7396)", merge_table(http)).await;
    cases.run("patch: 404, 412, both content types", patch(http)).await;
    cases.run("delete: 204, 404, 412", delete(http)).await;
    cases.run("an etag never comes back, deletes and re-creates included", etags(http)).await;
    cases.run("unusual ids are kept apart and round trip", ids(http)).await;
    cases.run("a document comes back as it was sent", bodies(http)).await;
    cases.run("shard and node are named, and the shard is the hash's", placement(http)).await;
    cases.run("a race to create has one winner", create_race(http)).await;
}

async fn post(http: &Http) -> anyhow::Result<()> {
    let made = http.post("/v1/users", &json!({"id": "post-1", "name": "Ada"})).expect(201).await?;
    let location = made.need("location")?;
    ensure!(location.ends_with("/v1/users/post-1"), "Location: {location}");
    let got = http.get("/v1/users/post-1").expect(200).await?;
    check_eq!(got.json()?, json!({"id": "post-1", "name": "Ada"}));
    check_eq!(got.etag()?, made.etag()?);

    let again = http.post("/v1/users", &json!({"id": "post-1", "name": "Eve"}));
    again.refused(P::AlreadyExists).await?;
    check_eq!(http.get("/v1/users/post-1").expect(200).await?.etag()?, made.etag()?);

    // An integer id names the same document as its decimal text.
    let number = http.post("/v1/users", &json!({"id": 4711, "name": "n"})).expect(201).await?;
    ensure!(number.need("location")?.ends_with("/v1/users/4711"), "{}", number.need("location")?);
    check_eq!(http.document("/v1/users/4711").await?, Some(json!({"id": 4711, "name": "n"})));
    Ok(())
}

async fn post_generates(http: &Http) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for _ in 0..5 {
        let made = http.post("/v1/users", &json!({"generated": true})).expect(201).await?;
        let location = made.need("location")?.to_owned();
        let id = location.rsplit('/').next().context("id")?.to_owned();
        ensure!(id.len() == 36 && id.as_bytes().get(14) == Some(&b'7'), "{id} is no UUIDv7");
        check_eq!(
            http.document(&format!("/v1/users/{id}")).await?,
            Some(json!({"id": id, "generated": true}))
        );
        ensure!(seen.insert(id), "generated twice");
    }
    Ok(())
}

async fn get_and_head(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/get-1";
    let etag = http.put(path, &json!({"name": "x"})).expect(201).await?.etag()?;
    let got = http.get(path).expect(200).await?;
    check_eq!(got.etag()?, etag);
    ensure!(got.need("content-type")?.starts_with("application/json"), "{:?}", got.header("content-type"));
    check_eq!(got.json()?, json!({"id": "get-1", "name": "x"}));

    let head = http.call(Method::HEAD, path).expect(200).await?;
    check_eq!(head.etag()?, etag);
    ensure!(head.body.is_empty(), "HEAD has a body");
    check_eq!(
        head.header("content-length").map(str::to_owned),
        Some(got.body.len().to_string()),
        "length of HEAD"
    );

    let other = "\"0\"";
    for (tags, status) in [
        (etag.clone(), 304),
        (format!("W/{etag}"), 304),
        (format!("{other}, {etag}"), 304),
        ("*".to_owned(), 304),
        (other.to_owned(), 200),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let answer =
                http.call(method.clone(), path).header("if-none-match", &tags).expect(status).await?;
            check_eq!(answer.etag()?, etag, "ETag of {method} If-None-Match: {tags}");
            ensure!(status == 200 || answer.body.is_empty(), "304 with a body");
        }
    }
    let problem = http.get("/v1/users/get-none").refused(P::DocumentNotFound).await?;
    check_eq!(problem.status, 404);
    http.call(Method::HEAD, "/v1/users/get-none").expect(404).await?;
    http.get("/v1/users/get-none").header("if-none-match", "*").expect(404).await?;
    Ok(())
}

async fn put(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/put-1";
    let absent = http.put(path, &json!({"v": 0})).header("if-match", "\"1\"");
    absent.refused(P::PreconditionFailed).await?;
    let absent = http.put(path, &json!({"v": 0})).header("if-match", "*");
    absent.refused(P::PreconditionFailed).await?;
    check_eq!(http.document(path).await?, None);

    let first = http.put(path, &json!({"v": 1})).header("if-none-match", "*").expect(201).await?.etag()?;
    let exists = http.put(path, &json!({"v": 2})).header("if-none-match", "*");
    exists.refused(P::PreconditionFailed).await?;
    let second = http.put(path, &json!({"v": 3})).header("if-match", &first).expect(200).await?.etag()?;
    ensure!(first != second, "the ETag did not change");
    for stale in [first.as_str(), "\"0\"", &format!("W/{second}")] {
        let lost = http.put(path, &json!({"v": 4})).header("if-match", stale);
        lost.refused(P::PreconditionFailed).await.with_context(|| format!("If-Match: {stale}"))?;
    }
    check_eq!(http.document(path).await?, Some(json!({"id": "put-1", "v": 3})));
    let listed = format!("{first}, {second}");
    http.put(path, &json!({"v": 5})).header("if-match", &listed).expect(200).await?;
    http.put(path, &json!({"v": 6})).header("if-match", "*").expect(200).await?;
    let last = http.put(path, &json!({"v": 7})).expect(200).await?;
    let got = http.get(path).expect(200).await?;
    check_eq!(got.json()?, json!({"id": "put-1", "v": 7}));
    check_eq!(got.etag()?, last.etag()?);
    Ok(())
}

/// The test cases of RFC 7396, appendix A, that are objects (the originals all get an id).
async fn merge_table(http: &Http) -> anyhow::Result<()> {
    let table = [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ];
    for (number, (original, merge, mut expected)) in table.into_iter().enumerate() {
        let id = format!("merge-{number}");
        let path = format!("/v1/users/{id}");
        let before = http.put(&path, &original).expect(201).await?.etag()?;
        let after = http.patch(&path, &merge).expect(200).await?.etag()?;
        ensure!(before != after, "the ETag did not change");
        expected["id"] = Value::from(id);
        check_eq!(http.document(&path).await?, Some(expected), "{original} merged with {merge}");
    }
    Ok(())
}

async fn patch(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/patch-1";
    http.patch(path, &json!({"a": 1})).refused(P::DocumentNotFound).await?;
    check_eq!(http.document(path).await?, None);
    let first = http.put(path, &json!({"a": 1})).expect(201).await?.etag()?;
    let lost = http.patch(path, &json!({"a": 2})).header("if-match", "\"0\"");
    lost.refused(P::PreconditionFailed).await?;
    let second = http.patch(path, &json!({"b": 2})).header("if-match", &first).expect(200).await?.etag()?;
    let lost = http.patch(path, &json!({"a": 3})).header("if-match", &first);
    lost.refused(P::PreconditionFailed).await?;
    let plain = http.call(Method::PATCH, path).json(&json!({"c": 3})).expect(200).await?.etag()?;
    ensure!(second != plain, "the ETag did not change");
    for call in [http.patch(path, &json!({"id": "other"})), http.put(path, &json!({"id": "other"}))] {
        check_eq!(call.refused(P::BadId).await?.field.as_deref(), Some("id"), "field named");
    }
    http.patch(path, &json!([1])).refused(P::MalformedJson).await?;
    check_eq!(http.document(path).await?, Some(json!({"id": "patch-1", "a": 1, "b": 2, "c": 3})));
    Ok(())
}

async fn delete(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/delete-1";
    http.delete(path).refused(P::DocumentNotFound).await?;
    let first = http.put(path, &json!({"a": 1})).expect(201).await?.etag()?;
    http.delete(path).header("if-match", "\"0\"").refused(P::PreconditionFailed).await?;
    check_eq!(http.document(path).await?, Some(json!({"id": "delete-1", "a": 1})));
    let gone = http.delete(path).header("if-match", &first).expect(204).await?;
    ensure!(gone.body.is_empty(), "204 with a body");
    check_eq!(http.document(path).await?, None);
    http.delete(path).refused(P::DocumentNotFound).await?;
    http.put(path, &json!({"a": 2})).header("if-none-match", "*").expect(201).await?;
    http.delete(path).expect(204).await?;
    check_eq!(http.document(path).await?, None);
    Ok(())
}

async fn etags(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/etag-1";
    let mut seen = HashSet::new();
    for round in 0..6 {
        for (step, call) in [
            http.put(path, &json!({"same": 1})),
            // The same body again is a write all the same.
            http.put(path, &json!({"same": 1})),
            http.patch(path, &json!({})),
        ]
        .into_iter()
        .enumerate()
        {
            let answer = call.send().await?;
            ensure!(matches!(answer.status, 200 | 201), "{answer}");
            ensure!(seen.insert(answer.etag()?), "round {round}, step {step}: {} came back", answer.etag()?);
        }
        http.delete(path).expect(204).await?;
    }
    Ok(())
}

async fn ids(http: &Http) -> anyhow::Result<()> {
    let longest = "x".repeat(256);
    let ids = [
        "a/b",
        "a:b",
        "a:batchGet",
        "a b",
        "a+b",
        "a%2Fb",
        "ä€𝄞",
        "a?b#c",
        "\"quoted\\\"",
        "é",
        "e\u{301}",
        "A",
        "a",
        "1",
        "01",
        "-",
        "~",
        "null",
        "..x",
        "a=b&c",
        "\u{1}",
        "日本語",
        "🦀",
        &longest,
    ];
    for (number, id) in ids.iter().enumerate() {
        let path = format!("/v1/users/{}", segment(id));
        let made = http.put(&path, &json!({"number": number})).send().await?;
        ensure!(made.status == 201, "{id:?}: {made}");
    }
    for (number, id) in ids.iter().enumerate() {
        let got = http.document(&format!("/v1/users/{}", segment(id))).await?;
        check_eq!(got, Some(json!({"id": id, "number": number})), "{id:?}");
    }
    let made = http.post("/v1/users", &json!({"id": "post/ä:1"})).expect(201).await?;
    let location = made.need("location")?;
    let path = location.find("/v1/").and_then(|at| location.get(at..)).context("path of Location")?;
    check_eq!(
        http.document(path).await?,
        Some(json!({"id": "post/ä:1"})),
        "{location} leads to the document"
    );
    for id in ids {
        http.delete(&format!("/v1/users/{}", segment(id))).expect(204).await?;
    }
    Ok(())
}

async fn bodies(http: &Http) -> anyhow::Result<()> {
    let texts = [
        r#"{}"#,
        r#"{"big":123456789012345678901234567890,"float":1.10,"exp":1e3,"neg":-0}"#,
        r#"{"text":"\u00e4\ud834\udd1e\n\"\\/","empty":"","nested":{"a":[{},[],null,true]}}"#,
        r#"{"z":1,"a":2,"m":3}"#,
        r#"{ "spaced" :  [ 1 , 2 ] }"#,
    ];
    for (number, text) in texts.iter().enumerate() {
        let path = format!("/v1/users/body-{number}");
        http.call(Method::PUT, &path).body("application/json", *text).expect(201).await?;
        let got = String::from_utf8(http.get(&path).expect(200).await?.body)?;
        let rest = text.trim_start_matches('{').trim_start();
        ensure!(got.contains(rest.trim_end_matches('}').trim_end()), "sent {text}, got {got}");
        check_eq!(serde_json::from_str::<Value>(&got)?["id"], json!(format!("body-{number}")));
    }
    let path = "/v1/users/body-charset";
    http.call(Method::PUT, path).body("application/json; charset=utf-8", "{}").expect(201).await?;
    Ok(())
}

async fn placement(http: &Http) -> anyhow::Result<()> {
    let shards = status(http).await?.shards;
    let hash = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
    for number in 0..40 {
        let id = format!("placed-{number}");
        let path = format!("/v1/users/{id}");
        let wanted = hash_id(&id);
        let shard = shards
            .iter()
            .find(|shard| {
                let [first, last] = &shard.range;
                hash(first).is_ok_and(|first| first <= wanted) && hash(last).is_ok_and(|last| wanted <= last)
            })
            .with_context(|| format!("no shard has {wanted:#x}"))?;
        let missing = http.get(&path).expect(404).await?;
        let made = http.put(&path, &json!({})).expect(201).await?;
        let got = http.get(&path).expect(200).await?;
        let unchanged = http.get(&path).header("if-none-match", &made.etag()?).expect(304).await?;
        let refused = http.put(&path, &json!({})).header("if-none-match", "*").expect(412).await?;
        let exists = http.post("/v1/users", &json!({"id": id})).expect(409).await?;
        let gone = http.delete(&path).expect(204).await?;
        for answer in [missing, made, got, unchanged, refused, exists, gone] {
            check_eq!(answer.need(headers::SHARD)?, shard.id.to_string(), "shard of {id}: {answer}");
            let node: u64 = answer.need(headers::NODE)?.parse().with_context(|| answer.to_string())?;
            ensure!(shard.replicas.contains(&node), "{id}: node {node} is none of {:?}", shard.replicas);
        }
    }
    Ok(())
}

async fn create_race(http: &Http) -> anyhow::Result<()> {
    for round in 0..10 {
        let path = format!("/v1/users/race-{round}");
        let calls = (0..8).map(|racer| {
            let path = path.clone();
            async move { http.put(&path, &json!({"racer": racer})).header("if-none-match", "*").send().await }
        });
        let mut winner = None;
        for (racer, answer) in futures::future::join_all(calls).await.into_iter().enumerate() {
            let answer = answer?;
            match answer.status {
                201 => ensure!(winner.replace(racer).is_none(), "two created {path}"),
                _ => drop(answer.refused_as(&[P::PreconditionFailed])?),
            }
        }
        let document = http.document(&path).await?.context("nobody created it")?;
        check_eq!(document["racer"].as_u64(), winner.map(|racer| racer as u64), "the winner's document");
    }
    Ok(())
}
