//! `Idempotency-Key`: a retry gets the first outcome again and changes nothing.

use anyhow::ensure;
use borough_proto::error::ProblemType as P;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::http::{Answer, Call, Http};
use serde_json::json;

pub async fn run(cases: &mut Cases, http: &Http) {
    cases
        .run("a sorted collection for keys", http.create_collection("keyed", &json!({"sortKey": true})))
        .await;
    cases.run("post without an id is created once", post(http)).await;
    cases.run("post with an id, put, patch and delete are replayed", single(http)).await;
    cases.run("a refusal is replayed too, whatever happened since", refusals(http)).await;
    cases.run("batchWrite and transact are replayed", many(http)).await;
    cases.run("a key with another body is 422 and changes nothing", reused(http)).await;
    cases.run("a keyed post belongs to one request, whatever shard its body names", one_post(http)).await;
    cases.run("a keyed batchWrite with other contents or another order is 422", one_batch(http)).await;
    cases.run("where the path names the target, another path is another use", by_path(http)).await;
    cases.run("a keyed post makes one UUIDv7, however often it is sent at once", one_id(http)).await;
    cases.run("keys are apart, by document too", apart(http)).await;
    cases.run("the same key sent many times at once is applied once", at_once(http)).await;
}

fn same(first: &Answer, again: &Answer) -> anyhow::Result<()> {
    check_eq!(again.status, first.status, "status of the replay: {again}");
    check_eq!(again.header("etag"), first.header("etag"), "ETag of the replay: {again}");
    check_eq!(again.header("location"), first.header("location"), "Location of the replay: {again}");
    check_eq!(
        again.header("borough-expires"),
        first.header("borough-expires"),
        "Borough-Expires of the replay"
    );
    // The id of the request is this request's own, in a problem too.
    check_eq!(
        String::from_utf8_lossy(&again.body),
        String::from_utf8_lossy(&first.body),
        "body of the replay"
    );
    Ok(())
}

async fn twice(call: impl Fn() -> CallFuture) -> anyhow::Result<Answer> {
    let first = call().await?;
    let again = call().await?;
    same(&first, &again)?;
    Ok(first)
}

type CallFuture = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<Answer>> + Send>>;

/// A call that can be made again: `make` builds it on its own caller.
fn again(
    http: &Http,
    make: impl Fn(&Http) -> Call<'_> + Clone + Send + Sync + 'static,
) -> impl Fn() -> CallFuture {
    let http = http.clone();
    move || {
        let (http, make) = (http.clone(), make.clone());
        Box::pin(async move { make(&http).send().await })
    }
}

async fn post(http: &Http) -> anyhow::Result<()> {
    let first = twice(again(http, |http| http.post("/v1/users", &json!({"idem": 1})).key("post-1"))).await?;
    check_eq!(first.status, 201);
    let other = http.post("/v1/users", &json!({"idem": 1})).key("post-2").expect(201).await?;
    ensure!(other.need("location")? != first.need("location")?, "two keys, one document");
    let all = crate::lists::list(http, "/v1/users", 500).await?;
    check_eq!(all.iter().filter(|user| user["idem"] == 1).count(), 2, "documents created by two keys");
    Ok(())
}

async fn single(http: &Http) -> anyhow::Result<()> {
    let made = twice(again(http, |http| http.post("/v1/users", &json!({"id": "idem-0"})).key("k0"))).await?;
    check_eq!(made.status, 201);

    let path = "/v1/users/idem-1";
    let created =
        again(http, move |http| http.put(path, &json!({"v": 1})).header("if-none-match", "*").key("k1"));
    let first = twice(&created).await?;
    check_eq!(first.status, 201);
    let replaced = again(http, move |http| http.put(path, &json!({"v": 2})).key("k2"));
    check_eq!(twice(&replaced).await?.status, 200);
    let patched = again(http, move |http| http.patch(path, &json!({"w": 3})).key("k3"));
    let patch = twice(&patched).await?;
    check_eq!(patch.status, 200);
    // An old key again, after other writes: its own first answer, and nothing changes.
    same(&first, &created().await?)?;
    let got = http.get(path).expect(200).await?;
    check_eq!(got.json()?, json!({"id": "idem-1", "v": 2, "w": 3}));
    check_eq!(got.etag()?, patch.etag()?);

    let deleted = again(http, move |http| http.delete(path).key("k4"));
    check_eq!(twice(&deleted).await?.status, 204);
    http.put(path, &json!({"back": true})).expect(201).await?;
    check_eq!(deleted().await?.status, 204);
    check_eq!(http.document(path).await?, Some(json!({"id": "idem-1", "back": true})));
    same(&first, &created().await?)?;

    let item = "/v1/keyed/idem/1";
    let put = again(http, move |http| http.put(&format!("{item}?ttl=3600s"), &json!({"v": 1})).key("k5"));
    let first = twice(&put).await?;
    check_eq!(first.status, 201);
    first.need("borough-expires")?;
    Ok(())
}

async fn refusals(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/idem-refused";
    let missing = again(http, move |http| http.patch(path, &json!({"a": 1})).key("r1"));
    check_eq!(twice(&missing).await?.status, 404);
    let lost =
        again(http, move |http| http.put(path, &json!({"a": 1})).header("if-match", "\"0\"").key("r2"));
    check_eq!(twice(&lost).await?.status, 412);
    let etag = http.put(path, &json!({"a": 2})).expect(201).await?.etag()?;
    check_eq!(missing().await?.status, 404, "the first outcome, though the document exists now");
    check_eq!(lost().await?.status, 412);
    check_eq!(http.get(path).expect(200).await?.etag()?, etag);
    Ok(())
}

async fn many(http: &Http) -> anyhow::Result<()> {
    let writes: Vec<_> = (0..20)
        .map(|n| json!({"put": {"id": format!("idem-b{n}"), "document": {"n": n}, "ifAbsent": true}}))
        .collect();
    let writes = json!({"writes": writes});
    let batch = again(http, move |http| http.post("/v1/users:batchWrite", &writes).key("b1"));
    let first = twice(&batch).await?;
    let statuses: Vec<_> =
        crate::batches::items(&first, 20)?.iter().map(|item| item["status"].clone()).collect();
    check_eq!(statuses, vec![json!(201); 20]);
    http.delete("/v1/users/idem-b3").expect(204).await?;
    same(&first, &batch().await?)?;
    check_eq!(http.document("/v1/users/idem-b3").await?, None, "a deleted document");

    let ops = json!({"ops": [
        {"collection": "users", "put": {"v": 1}, "ifAbsent": true},
        {"collection": "keyed", "sort": "1", "put": {"v": 1}, "ifAbsent": true},
    ]});
    let transaction = again(http, move |http| http.post("/v1/partitions/idem-t:transact", &ops).key("t1"));
    check_eq!(twice(&transaction).await?.status, 200);
    http.delete("/v1/keyed/idem-t/1").expect(204).await?;
    check_eq!(transaction().await?.status, 200);
    check_eq!(http.document("/v1/keyed/idem-t/1").await?, None);
    Ok(())
}

async fn reused(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/idem-reused";
    let etag = http.put(path, &json!({"v": 1})).key("u1").expect(201).await?.etag()?;
    http.put(path, &json!({"v": 2})).key("u1").refused(P::IdempotencyKeyReused).await?;
    http.patch(path, &json!({"v": 1})).key("u1").refused(P::IdempotencyKeyReused).await?;
    http.put(&format!("{path}?ttl=60s"), &json!({"v": 1})).key("u1").refused(P::IdempotencyKeyReused).await?;
    let got = http.get(path).expect(200).await?;
    check_eq!(got.etag()?, etag);
    check_eq!(got.json()?["v"], json!(1));

    http.post("/v1/users", &json!({"reused": 1})).key("u2").expect(201).await?;
    http.post("/v1/users", &json!({"reused": 2})).key("u2").refused(P::IdempotencyKeyReused).await?;

    let ops = |v: u32| json!({"ops": [{"collection": "users", "put": {"v": v}}]});
    http.post("/v1/partitions/idem-reused-t:transact", &ops(1)).key("u3").expect(200).await?;
    let other = http.post("/v1/partitions/idem-reused-t:transact", &ops(2)).key("u3");
    other.refused(P::IdempotencyKeyReused).await?;
    check_eq!(http.document("/v1/users/idem-reused-t").await?, Some(json!({"id": "idem-reused-t", "v": 1})));

    let writes = |v: u32| json!({"writes": [{"put": {"id": "idem-reused-b", "document": {"v": v}}}]});
    http.post("/v1/users:batchWrite", &writes(1)).key("u4").expect(200).await?;
    http.post("/v1/users:batchWrite", &writes(2)).key("u4").refused(P::IdempotencyKeyReused).await?;
    check_eq!(http.document("/v1/users/idem-reused-b").await?, Some(json!({"id": "idem-reused-b", "v": 1})));
    Ok(())
}

async fn one_post(http: &Http) -> anyhow::Result<()> {
    let first = http.post("/v1/users", &json!({"id": "idem-one-0"})).key("one-1").expect(201).await?;
    // Ten ids lie in several shards.
    for number in 1..10 {
        let id = format!("idem-one-{number}");
        http.post("/v1/users", &json!({"id": id})).key("one-1").refused(P::IdempotencyKeyReused).await?;
        check_eq!(http.document(&format!("/v1/users/{id}")).await?, None);
    }
    let item = json!({"id": "idem-one-0", "sort": "1"});
    http.post("/v1/keyed", &item).key("one-1").refused(P::IdempotencyKeyReused).await?;
    let other = http.post("/v1/users?ttl=60s", &json!({"id": "idem-one-0"})).key("one-1");
    other.refused(P::IdempotencyKeyReused).await?;
    let batch = json!({"writes": [{"delete": {"id": "idem-one-0"}}]});
    http.post("/v1/users:batchWrite", &batch).key("one-1").refused(P::IdempotencyKeyReused).await?;
    same(&first, &http.post("/v1/users", &json!({"id": "idem-one-0"})).key("one-1").send().await?)?;
    // As long as a key may be, and to a sorted collection.
    let long = "k".repeat(borough_proto::limits::IDEMPOTENCY_KEY_BYTES_MAX);
    let posted = http.post("/v1/keyed", &item).key(&long).expect(201).await?;
    same(&posted, &http.post("/v1/keyed", &item).key(&long).send().await?)?;
    // Malformed, it uses no key up.
    http.post("/v1/users", &json!([])).key("one-2").expect(400).await?;
    http.post("/v1/users", &json!({})).key("one-2").expect(201).await?;
    Ok(())
}

async fn one_batch(http: &Http) -> anyhow::Result<()> {
    let puts = |numbers: &[u32]| {
        let put = |n: &u32| json!({"put": {"id": format!("idem-batch-{n}"), "document": {"n": n}}});
        json!({"writes": numbers.iter().map(put).collect::<Vec<_>>()})
    };
    let path = "/v1/users:batchWrite";
    let first = http.post(path, &puts(&[0, 1, 2, 3])).key("batch-1").expect(200).await?;
    for other in [&[3, 2, 1, 0][..], &[0, 1, 2], &[0, 1, 2, 3, 4], &[5, 6, 7, 8]] {
        http.post(path, &puts(other)).key("batch-1").refused(P::IdempotencyKeyReused).await?;
    }
    for number in 4..9 {
        check_eq!(http.document(&format!("/v1/users/idem-batch-{number}")).await?, None);
    }
    same(&first, &http.post(path, &puts(&[0, 1, 2, 3])).key("batch-1").send().await?)
}

async fn by_path(http: &Http) -> anyhow::Result<()> {
    for number in 0..20 {
        let path = format!("/v1/users/idem-path-{number}");
        http.put(&path, &json!({"n": number})).key("path-1").expect(201).await?;
        http.put(&path, &json!({"n": -1})).key("path-1").refused(P::IdempotencyKeyReused).await?;
        http.delete(&path).key("path-1").refused(P::IdempotencyKeyReused).await?;
        // In one partition, so in one shard.
        http.put(&format!("/v1/keyed/idem-path/{number}"), &json!({})).key("path-1").expect(201).await?;
        let ops = json!({"ops": [{"collection": "users", "patch": {"t": 1}}]});
        let transact = format!("/v1/partitions/idem-path-{number}:transact");
        http.post(&transact, &ops).key("path-1").expect(200).await?;
    }
    http.post("/v1/users", &json!({"id": "idem-path-new"})).key("path-1").expect(201).await?;
    Ok(())
}

async fn one_id(http: &Http) -> anyhow::Result<()> {
    for round in 0..5 {
        let key = format!("one-id-{round}");
        let body = json!({"oneId": round});
        let calls = (0..8).map(|_| http.post("/v1/users", &body).key(&key).send());
        let mut locations = std::collections::HashSet::new();
        for answer in futures::future::join_all(calls).await {
            let answer = answer?;
            ensure!(answer.status == 201, "{answer}");
            locations.insert(answer.need("location")?.to_owned());
        }
        ensure!(locations.len() == 1, "{locations:?}");
        let location = locations.into_iter().next().unwrap_or_default();
        let id = location.rsplit('/').next().unwrap_or_default();
        ensure!(id.len() == 36 && id.as_bytes().get(14) == Some(&b'7'), "{id} is no UUIDv7");
    }
    Ok(())
}

async fn apart(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/idem-apart";
    let mut etags = std::collections::HashSet::new();
    for key in ["a1", "a2", "A1", "key:with/signs", "a 1"] {
        let answer = http.put(path, &json!({"v": 1})).key(key).send().await?;
        ensure!(matches!(answer.status, 200 | 201), "{key}: {answer}");
        ensure!(etags.insert(answer.etag()?), "key {key} was taken for another");
    }
    Ok(())
}

async fn at_once(http: &Http) -> anyhow::Result<()> {
    for round in 0..5 {
        let path = format!("/v1/users/idem-at-once-{round}");
        let key = format!("at-once-{round}");
        let calls =
            (0..8).map(|_| http.put(&path, &json!({"v": 1})).header("if-none-match", "*").key(&key).send());
        for answer in futures::future::join_all(calls).await {
            let answer = answer?;
            // Applied a second time, it would be 412.
            ensure!(answer.status == 201, "{answer}");
        }
    }
    Ok(())
}
