//! `:batchGet` and `:batchWrite`: order, a status for each item, limits.

use anyhow::{Context as _, ensure};
use borough_proto::error::{Outcome, ProblemType as P};
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::http::Http;
use serde_json::{Value, json};

pub async fn run(cases: &mut Cases, http: &Http) {
    cases.run("batchGet answers in request order, missing ones included", batch_get(http)).await;
    cases.run("batchGet refuses more than 100 and malformed ones", batch_get_limits(http)).await;
    cases.run("batchWrite gives each write its own status and etag", batch_write(http)).await;
    cases.run("batchWrite of one key applies in order", batch_write_order(http)).await;
    cases
        .run(
            "batchWrite refuses more than 100 and malformed ones, and changes nothing",
            batch_write_limits(http),
        )
        .await;
}

/// The items of a batch's answer, which must be `count`.
pub fn items(answer: &jepsen_tests::http::Answer, count: usize) -> anyhow::Result<Vec<Value>> {
    let body = answer.json()?;
    let items = body["items"].as_array().with_context(|| format!("no items: {answer}"))?.clone();
    ensure!(items.len() == count, "{} items, expected {count}: {answer}", items.len());
    Ok(items)
}

fn statuses(items: &[Value]) -> Vec<u64> {
    items.iter().map(|item| item["status"].as_u64().unwrap_or_default()).collect()
}

async fn batch_get(http: &Http) -> anyhow::Result<()> {
    let mut ids = Vec::new();
    let mut etags = Vec::new();
    for number in 0..50 {
        let id = format!("bg-{number}");
        etags.push(http.put(&format!("/v1/users/{id}"), &json!({"n": number})).expect(201).await?.etag()?);
        ids.push(id);
        ids.push(format!("bg-missing-{number}"));
    }
    let answer = http.post("/v1/users:batchGet", &json!({"ids": ids})).expect(200).await?;
    for (number, (item, id)) in items(&answer, 100)?.iter().zip(&ids).enumerate() {
        check_eq!(item["id"].as_str(), Some(id.as_str()), "order");
        if number % 2 == 0 {
            check_eq!(item["status"], json!(200), "{item}");
            check_eq!(item["document"], json!({"id": id, "n": number / 2}), "{item}");
            check_eq!(item["etag"].as_str(), etags.get(number / 2).map(String::as_str), "{item}");
        } else {
            check_eq!(item["status"], json!(404), "{item}");
            ensure!(item["document"].is_null() && item["etag"].is_null(), "{item}");
        }
    }
    let twice =
        http.post("/v1/users:batchGet", &json!({"ids": ["bg-1", "bg-0", "bg-1"]})).expect(200).await?;
    let ids: Vec<Value> = items(&twice, 3)?.iter().map(|item| item["id"].clone()).collect();
    check_eq!(ids, [json!("bg-1"), json!("bg-0"), json!("bg-1")]);
    Ok(())
}

async fn batch_get_limits(http: &Http) -> anyhow::Result<()> {
    let many: Vec<String> = (0..101).map(|number| format!("bg-{number}")).collect();
    let problem = http.post("/v1/users:batchGet", &json!({"ids": many})).send().await?;
    let problem = problem.refused_as(&[P::BadRequest, P::BadParameter])?;
    check_eq!(problem.limit, Some(100), "limit named");
    ensure!(problem.field.as_deref() == Some("ids"), "field: {problem:?}");
    for (body, field) in [
        (json!({}), Some("ids")),
        (json!({"ids": "x"}), Some("ids")),
        (json!({"ids": [1, null]}), Some("ids[0]")),
        (json!({"ids": ["x"], "more": 1}), Some("more")),
        (json!([]), None),
        (json!([["x"]]), None),
        (json!({"ids": ["a", ["x", "y"]]}), Some("ids[1]")),
    ] {
        let answer = http.post("/v1/users:batchGet", &body).send().await?;
        let problem = answer.refused_as(&[P::MalformedJson]).with_context(|| body.to_string())?;
        check_eq!(problem.field.as_deref(), field, "field of {body}");
        ensure!(!problem.detail.contains("untagged"), "words of the parser: {problem:?}");
    }
    Ok(())
}

async fn batch_write(http: &Http) -> anyhow::Result<()> {
    let etag = http.put("/v1/users/bw-old", &json!({"v": 1})).expect(201).await?.etag()?;
    http.put("/v1/users/bw-gone", &json!({})).expect(201).await?;
    let writes = json!({"writes": [
        {"put": {"id": "bw-new", "document": {"v": 1}}},
        {"put": {"id": "bw-old", "document": {"v": 2}, "ifMatch": etag}},
        {"put": {"id": "bw-absent", "document": {"v": 3}, "ifAbsent": true}},
        {"put": {"id": "bw-new-2", "document": {"v": 9}, "ifMatch": "\"0\""}},
        {"patch": {"id": "bw-none", "merge": {"a": 1}}},
        {"delete": {"id": "bw-gone"}},
        {"delete": {"id": "bw-none"}},
    ]});
    let answer = http.post("/v1/users:batchWrite", &writes).expect(200).await?;
    let found = items(&answer, 7)?;
    check_eq!(statuses(&found), [201, 200, 201, 412, 404, 204, 404], "{answer}");
    let ids: Vec<&str> = found.iter().filter_map(|item| item["id"].as_str()).collect();
    check_eq!(ids, ["bw-new", "bw-old", "bw-absent", "bw-new-2", "bw-none", "bw-gone", "bw-none"]);
    for (id, expected) in [
        ("bw-new", Some(json!({"id": "bw-new", "v": 1}))),
        ("bw-old", Some(json!({"id": "bw-old", "v": 2}))),
        ("bw-absent", Some(json!({"id": "bw-absent", "v": 3}))),
        ("bw-new-2", None),
        ("bw-none", None),
        ("bw-gone", None),
    ] {
        let got = http.get(&format!("/v1/users/{id}")).send().await?;
        check_eq!((got.status == 200).then(|| got.json()).transpose()?, expected, "{id}");
        if got.status == 200 {
            let item = found.iter().find(|item| item["id"] == id).context("item")?;
            check_eq!(item["etag"].as_str(), Some(got.etag()?.as_str()), "etag of {id}");
        }
    }
    let again = json!({"writes": [
        {"put": {"id": "bw-absent", "document": {"v": 4}, "ifAbsent": true}},
        {"patch": {"id": "bw-old", "merge": {"w": 3}}},
    ]});
    let answer = http.post("/v1/users:batchWrite", &again).expect(200).await?;
    let found = statuses(&items(&answer, 2)?);
    ensure!(matches!(found.as_slice(), [409 | 412, 200]), "{answer}");
    check_eq!(http.document("/v1/users/bw-old").await?, Some(json!({"id": "bw-old", "v": 2, "w": 3})));
    check_eq!(http.document("/v1/users/bw-absent").await?, Some(json!({"id": "bw-absent", "v": 3})));
    Ok(())
}

async fn batch_write_order(http: &Http) -> anyhow::Result<()> {
    let mut writes = vec![json!({"put": {"id": "bw-order", "document": {"n": 0}}})];
    writes.extend((1..99).map(|n| json!({"patch": {"id": "bw-order", "merge": {"n": n}}})));
    writes.push(json!({"patch": {"id": "bw-order", "merge": {"last": true}}}));
    let answer = http.post("/v1/users:batchWrite", &json!({"writes": writes})).expect(200).await?;
    let found = items(&answer, 100)?;
    let etags: std::collections::HashSet<&str> =
        found.iter().filter_map(|item| item["etag"].as_str()).collect();
    check_eq!(etags.len(), 100, "distinct etags");
    check_eq!(
        http.document("/v1/users/bw-order").await?,
        Some(json!({"id": "bw-order", "n": 98, "last": true}))
    );
    Ok(())
}

async fn batch_write_limits(http: &Http) -> anyhow::Result<()> {
    let put = |id: &str| json!({"put": {"id": id, "document": {"v": 1}}});
    let many: Vec<Value> = (0..101).map(|number| put(&format!("bwl-{number}"))).collect();
    let answer = http.post("/v1/users:batchWrite", &json!({"writes": many})).send().await?;
    check_eq!(answer.refused_as(&[P::BadRequest, P::BadParameter])?.limit, Some(100), "limit named");
    check_eq!(http.document("/v1/users/bwl-0").await?, None);

    let malformed = [
        json!({}),
        json!({"writes": {}}),
        json!([[put("bwl-1")]]),
        json!({"writes": [put("bwl-1"), {"delete": ["bwl-2"]}]}),
        json!({"writes": [put("bwl-1"), {}]}),
        json!({"writes": [put("bwl-1"), {"put": {"id": "bwl-2"}}]}),
        json!({"writes": [put("bwl-1"), {"put": {"document": {}}}]}),
        json!({"writes": [put("bwl-1"), {"touch": {"id": "bwl-2"}}]}),
        json!({"writes": [put("bwl-1"), {"put": {"id": "bwl-2", "document": {}, "extra": 1}}]}),
        json!({"writes": [put("bwl-1"), {"put": {"id": "bwl-2", "document": {}}, "delete": {"id": "bwl-2"}}]}),
    ];
    for body in malformed {
        let answer = http.post("/v1/users:batchWrite", &body).send().await?;
        answer
            .refused_as(&[P::BadRequest, P::MalformedJson, P::BadParameter])
            .with_context(|| body.to_string())?;
        check_eq!(http.document("/v1/users/bwl-1").await?, None, "after {body}");
    }
    // One bad item may fail the batch, before anything is done, or only itself.
    for bad in [
        json!({"put": {"id": "", "document": {}}}),
        json!({"put": {"id": "x".repeat(257), "document": {}}}),
        json!({"put": {"id": "bwl-bad", "document": [1]}}),
        json!({"put": {"id": "bwl-bad", "document": {"id": "other"}}}),
        json!({"put": {"id": "bwl-bad", "document": {}, "ttl": "soon"}}),
        json!({"put": {"id": "bwl-bad", "document": {}, "ifMatch": "\"1\"", "ifAbsent": true}}),
        json!({"put": {"id": "bwl-bad", "sort": "s", "document": {}}}),
    ] {
        let body = json!({"writes": [put("bwl-good"), bad.clone()]});
        let answer = http.post("/v1/users:batchWrite", &body).send().await?;
        if answer.status == 200 {
            check_eq!(statuses(&items(&answer, 2)?), [201, 400], "{bad}");
            http.delete("/v1/users/bwl-good").expect(204).await?;
        } else {
            let problem = answer.problem(400).with_context(|| bad.to_string())?;
            check_eq!(problem.outcome, Outcome::NotApplied, "{bad}");
            check_eq!(http.document("/v1/users/bwl-good").await?, None, "after {bad}");
        }
        check_eq!(http.document("/v1/users/bwl-bad").await?, None, "after {bad}");
    }
    Ok(())
}
