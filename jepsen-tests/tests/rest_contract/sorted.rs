//! Sorted collections: items of (`id`, `sort`), and partitions in order.

use anyhow::{Context as _, ensure};
use borough_proto::error::ProblemType as P;
use borough_proto::limits;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::http::{Http, segment};
use serde_json::{Value, json};

use crate::lists::list;

pub async fn run(cases: &mut Cases, http: &Http) {
    cases
        .run("a sorted collection is created", http.create_collection("posts", &json!({"sortKey": true})))
        .await;
    cases.run("items: put, get, patch, delete, preconditions", items(http)).await;
    cases.run("an item keeps an id and sort of its own", own_fields(http)).await;
    cases.run("a partition lists in order, by start, end, reverse and pages", partition(http)).await;
    cases.run("partitions are apart, prefixes and odd sort keys included", apart(http)).await;
    cases.run("the wrong number of path segments is refused", wrong_shape(http)).await;
    cases.run("batches of a sorted collection", batches(http)).await;
}

async fn items(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/posts/u1/a";
    http.get(path).refused(P::DocumentNotFound).await?;
    http.patch(path, &json!({})).refused(P::DocumentNotFound).await?;
    http.delete(path).refused(P::DocumentNotFound).await?;
    let first = http.put(path, &json!({"v": 1})).header("if-none-match", "*").expect(201).await?.etag()?;
    http.put(path, &json!({"v": 9})).header("if-none-match", "*").refused(P::PreconditionFailed).await?;
    http.put(path, &json!({"v": 9})).header("if-match", "\"0\"").refused(P::PreconditionFailed).await?;
    check_eq!(http.document(path).await?, Some(json!({"id": "u1", "sort": "a", "v": 1})));
    http.put(path, &json!({"v": 2})).header("if-match", &first).expect(200).await?;
    let etag = http.patch(path, &json!({"w": 3})).expect(200).await?.etag()?;
    let got = http.get(path).expect(200).await?;
    check_eq!(got.json()?, json!({"id": "u1", "sort": "a", "v": 2, "w": 3}));
    check_eq!(got.etag()?, etag);
    http.get(path).header("if-none-match", &etag).expect(304).await?;
    http.delete(path).header("if-match", &first).refused(P::PreconditionFailed).await?;
    http.delete(path).expect(204).await?;
    check_eq!(http.document(path).await?, None);
    Ok(())
}

/// A post has an id of its own besides its author's, whose partition it lies in.
async fn own_fields(http: &Http) -> anyhow::Result<()> {
    let post = json!({"userId": 1, "id": 77, "title": "t"});
    http.put("/v1/posts/own/77", &post).expect(201).await?;
    let mut shown = http.document("/v1/posts/own/77").await?.context("gone")?;
    let added = shown.as_object_mut().and_then(|fields| fields.remove("sort"));
    check_eq!(added, Some(json!("77")));
    check_eq!(shown, post);
    http.put("/v1/posts/own/78", &json!({"sort": [1, 2]})).expect(201).await?;
    check_eq!(http.document("/v1/posts/own/78").await?, Some(json!({"id": "own", "sort": [1, 2]})));
    Ok(())
}

async fn sorts(http: &Http, path: &str, page_size: usize) -> anyhow::Result<Vec<String>> {
    let items = list(http, path, page_size).await?;
    items.iter().map(|item| item["sort"].as_str().map(str::to_owned).context("no sort")).collect()
}

async fn partition(http: &Http) -> anyhow::Result<()> {
    // Written out of order.
    for number in (0..25).rev().step_by(2).chain((0..25).rev().skip(1).step_by(2)) {
        http.put(&format!("/v1/posts/part/{number:03}"), &json!({"n": number})).expect(201).await?;
    }
    let all: Vec<String> = (0..25).map(|number| format!("{number:03}")).collect();
    let between = |from: usize, to: usize| all.get(from..to).unwrap_or_default().to_vec();
    let reversed = |mut list: Vec<String>| {
        list.reverse();
        list
    };
    let table = [
        ("", all.clone()),
        ("?start=005", between(5, 25)),
        ("?end=005", between(0, 5)),
        ("?start=003&end=010", between(3, 10)),
        ("?start=0045", between(5, 25)),
        ("?start=010&end=010", Vec::new()),
        ("?start=999", Vec::new()),
        ("?reverse=true", reversed(all.clone())),
        ("?reverse=false", all.clone()),
        ("?reverse=true&start=003&end=010", reversed(between(3, 10))),
    ];
    for (query, expected) in table {
        for page_size in [1, 4, 25, 100] {
            let found = sorts(http, &format!("/v1/posts/part{query}"), page_size).await?;
            check_eq!(found, expected, "{query:?} in pages of {page_size}");
        }
    }
    check_eq!(sorts(http, "/v1/posts/nobody", 10).await?, Vec::<String>::new(), "an empty partition");
    http.get("/v1/posts/part?reverse=maybe").refused(P::BadParameter).await?;
    http.get("/v1/posts/part?pageSize=0").refused(P::BadParameter).await?;
    http.get("/v1/posts/part?foo=1").refused(P::BadParameter).await?;
    http.get("/v1/posts/part?pageToken=x").refused(P::BadPageToken).await?;
    Ok(())
}

async fn apart(http: &Http) -> anyhow::Result<()> {
    let sort_max = "s".repeat(limits::SORT_BYTES_MAX);
    let keys = [
        ("ap", "a"),
        ("ap", "a/b"),
        ("ap", "a:b"),
        ("ap", "ä"),
        ("ap", "\u{1}"),
        ("ap", "a\u{0}b"),
        ("ap", "~"),
        ("ap", &sort_max),
        ("apa", "a"),
        ("ap\u{0}", "a"),
        ("ap/a", "b"),
        ("ap", "🦀"),
        ("ap", "\u{ffff}"),
    ];
    for (id, sort) in keys {
        let path = format!("/v1/posts/{}/{}", segment(id), segment(sort));
        let made = http.put(&path, &json!({"key": [id, sort]})).send().await?;
        ensure!(made.status == 201, "{id:?} {sort:?}: {made}");
    }
    for (id, sort) in keys {
        let path = format!("/v1/posts/{}/{}", segment(id), segment(sort));
        check_eq!(http.document(&path).await?, Some(json!({"id": id, "sort": sort, "key": [id, sort]})));
    }
    let mut expected: Vec<&str> = keys.iter().filter(|(id, _)| *id == "ap").map(|(_, sort)| *sort).collect();
    // Sort keys are in the order of their UTF-8 bytes.
    expected.sort_unstable();
    for page_size in [1, 3, 100] {
        check_eq!(sorts(http, "/v1/posts/ap", page_size).await?, expected, "in pages of {page_size}");
    }
    check_eq!(sorts(http, "/v1/posts/apa", 10).await?, ["a"]);
    let long = "s".repeat(limits::SORT_BYTES_MAX + 1);
    let answer = http.put(&format!("/v1/posts/ap/{long}"), &json!({})).send().await?;
    answer.refused_as(&[P::BadId, P::BadRequest])?;
    http.get("/v1/posts/ap/%FF").send().await?.refused_as(&[P::BadId, P::BadRequest])?;
    Ok(())
}

async fn wrong_shape(http: &Http) -> anyhow::Result<()> {
    let kinds =
        [P::NotFound, P::BadRequest, P::BadId, P::MethodNotAllowed, P::BadParameter, P::CollectionNotFound];
    for call in [
        http.put("/v1/posts/u1", &json!({})),
        http.patch("/v1/posts/u1", &json!({})),
        http.delete("/v1/posts/u1"),
        http.put("/v1/users/u1/s1", &json!({})),
        http.get("/v1/users/u1/s1"),
        http.delete("/v1/users/u1/s1"),
    ] {
        call.send().await?.refused_as(&kinds)?;
    }
    check_eq!(http.document("/v1/users/u1").await?, None);
    check_eq!(sorts(http, "/v1/posts/u1", 10).await?, Vec::<String>::new());
    // Ranges are for partitions only.
    http.get("/v1/users?start=a").refused(P::BadParameter).await?;
    http.get("/v1/posts/own/77?start=a").refused(P::BadParameter).await?;
    Ok(())
}

async fn batches(http: &Http) -> anyhow::Result<()> {
    let writes = json!({"writes": [
        {"put": {"id": "b", "sort": "1", "document": {"v": 1}}},
        {"put": {"id": "b", "sort": "2", "document": {"v": 2}}},
        {"put": {"id": "c", "sort": "1", "document": {"v": 3}}},
        {"delete": {"id": "c", "sort": "9"}},
    ]});
    let answer = http.post("/v1/posts:batchWrite", &writes).expect(200).await?;
    let found: Vec<Value> =
        crate::batches::items(&answer, 4)?.iter().map(|item| item["status"].clone()).collect();
    check_eq!(found, [json!(201), json!(201), json!(201), json!(404)]);
    let ids = json!({"ids": [{"id": "c", "sort": "1"}, {"id": "b", "sort": "2"}, {"id": "b", "sort": "3"}]});
    let answer = http.post("/v1/posts:batchGet", &ids).expect(200).await?;
    let found = crate::batches::items(&answer, 3)?;
    let seen: Vec<(Value, Value)> =
        found.iter().map(|item| (item["status"].clone(), item["document"]["v"].clone())).collect();
    check_eq!(seen, [(json!(200), json!(3)), (json!(200), json!(2)), (json!(404), Value::Null)]);
    let all = list(http, "/v1/posts", 3).await?;
    ensure!(
        all.iter().filter(|item| item["id"] == "b").count() == 2,
        "the whole collection lists its partitions"
    );
    Ok(())
}
