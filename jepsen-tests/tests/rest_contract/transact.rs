//! `:transact`: all or nothing within a partition, over collections.

use anyhow::{Context as _, ensure};
use borough_proto::error::{Outcome, ProblemType as P};
use futures::StreamExt as _;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::http::{Http, segment};
use serde_json::{Value, json};

pub async fn run(cases: &mut Cases, http: &Http) {
    cases
        .run(
            "a sorted collection for transactions",
            http.create_collection("orders", &json!({"sortKey": true})),
        )
        .await;
    cases.run("all operations of a transaction are applied together", applied(http)).await;
    cases.run("one failed operation leaves nothing applied and is named", refused(http)).await;
    cases.run("malformed transactions are refused and change nothing", malformed(http)).await;
    cases.run("concurrent transfers keep the sum", transfers(http)).await;
}

async fn transact(http: &Http, id: &str, ops: Value) -> anyhow::Result<jepsen_tests::http::Answer> {
    http.post(&format!("/v1/partitions/{}:transact", segment(id)), &json!({"ops": ops})).send().await
}

async fn applied(http: &Http) -> anyhow::Result<()> {
    let old = http.put("/v1/orders/tx/gone", &json!({})).expect(201).await?.etag()?;
    let ops = json!([
        {"collection": "users", "put": {"name": "T"}, "ifAbsent": true},
        {"collection": "orders", "sort": "1", "put": {"total": 5}},
        {"collection": "orders", "sort": "1", "patch": {"paid": true}},
        {"collection": "orders", "sort": "gone", "delete": true, "ifMatch": old},
        {"collection": "orders", "sort": "2", "check": true, "ifAbsent": true},
    ]);
    let answer = transact(http, "tx", ops).await?;
    ensure!(answer.status == 200, "{answer}");
    check_eq!(http.document("/v1/users/tx").await?, Some(json!({"id": "tx", "name": "T"})));
    let order = json!({"id": "tx", "sort": "1", "total": 5, "paid": true});
    check_eq!(http.document("/v1/orders/tx/1").await?, Some(order));
    check_eq!(http.document("/v1/orders/tx/gone").await?, None);
    check_eq!(http.document("/v1/orders/tx/2").await?, None);

    // The id of the partition may hold anything, the colon of the verb included.
    let odd = "tx/ä:transact";
    let answer = transact(http, odd, json!([{"collection": "users", "put": {"odd": true}}])).await?;
    ensure!(answer.status == 200, "{answer}");
    let path = format!("/v1/users/{}", segment(odd));
    check_eq!(http.document(&path).await?, Some(json!({"id": odd, "odd": true})));
    Ok(())
}

async fn refused(http: &Http) -> anyhow::Result<()> {
    let etag = http.put("/v1/users/txr", &json!({"v": 1})).expect(201).await?.etag()?;
    let good = || json!({"collection": "orders", "sort": "x", "put": {"v": 1}});
    let failing = [
        json!({"collection": "users", "put": {"v": 2}, "ifAbsent": true}),
        json!({"collection": "users", "put": {"v": 2}, "ifMatch": "\"0\""}),
        json!({"collection": "users", "check": true, "ifMatch": "\"0\""}),
        json!({"collection": "users", "check": true, "ifAbsent": true}),
        json!({"collection": "users", "delete": true, "ifMatch": "\"0\""}),
        json!({"collection": "orders", "sort": "none", "patch": {"v": 1}}),
        json!({"collection": "orders", "sort": "none", "put": {"v": 1}, "ifMatch": etag}),
        json!({"collection": "orders", "sort": "none", "delete": true}),
    ];
    for op in failing {
        for position in [0, 1, 2] {
            let mut ops = vec![good(), json!({"collection": "users", "patch": {"w": 1}})];
            ops.insert(position, op.clone());
            let answer = transact(http, "txr", json!(ops)).await?;
            let problem = answer.problem(412).with_context(|| format!("{op} at {position}"))?;
            check_eq!(problem.outcome, Outcome::NotApplied, "{op}");
            check_eq!(problem.op, Some(u32::try_from(position)?), "the op named for {op}: {answer}");
            let got = http.get("/v1/users/txr").expect(200).await?;
            check_eq!(got.etag()?, etag, "version after {op}");
            check_eq!(http.document("/v1/orders/txr/x").await?, None, "after {op}");
        }
    }
    Ok(())
}

async fn malformed(http: &Http) -> anyhow::Result<()> {
    let good = || json!({"collection": "users", "put": {"v": 1}});
    let many: Vec<Value> =
        (0..101).map(|n| json!({"collection": "orders", "sort": n.to_string(), "put": {}})).collect();
    let answer = transact(http, "txm", json!(many)).await?;
    check_eq!(answer.refused_as(&[P::BadRequest, P::BadParameter])?.limit, Some(100), "limit named");
    let kinds = [P::BadRequest, P::MalformedJson, P::BadParameter, P::BadId];
    for bad in [
        json!({"collection": "users"}),
        json!({"collection": "users", "put": {}, "delete": true}),
        json!({"collection": "users", "put": {}, "check": true}),
        json!({"collection": "users", "put": [1]}),
        json!({"collection": "users", "put": {"id": "other"}}),
        json!({"collection": "users", "sort": "s", "put": {}}),
        json!({"collection": "orders", "put": {}}),
        json!({"collection": "users", "put": {}, "extra": 1}),
        json!({"collection": "users", "put": {}, "ifMatch": "\"1\"", "ifAbsent": true}),
        json!({"put": {}}),
        json!(1),
    ] {
        let answer = transact(http, "txm", json!([good(), bad])).await?;
        answer.refused_as(&kinds).with_context(|| bad.to_string())?;
        check_eq!(http.document("/v1/users/txm").await?, None, "after {bad}");
    }
    let answer = transact(http, "txm", json!([good(), {"collection": "nowhere", "put": {}}])).await?;
    answer.refused_as(&[P::CollectionNotFound])?;
    let long = transact(http, &"x".repeat(257), json!([good()])).await?;
    long.refused_as(&[P::BadId])?;
    for body in
        [json!({}), json!({"ops": 1}), json!([]), json!([[]]), json!([[good()]]), json!({"ops": [["users"]]})]
    {
        let answer = http.post("/v1/partitions/txm:transact", &body).send().await?;
        answer.refused_as(&kinds).with_context(|| body.to_string())?;
    }
    check_eq!(http.document("/v1/users/txm").await?, None);
    Ok(())
}

/// Two accounts in one partition; each transfer reads both and moves 1 by compare-and-set of both.
async fn transfers(http: &Http) -> anyhow::Result<()> {
    for (sort, amount) in [("a", 100), ("b", 100)] {
        http.put(&format!("/v1/orders/bank/{sort}"), &json!({"amount": amount})).expect(201).await?;
    }
    let transfer = |number: usize| async move {
        for _ in 0..500 {
            let mut seen = Vec::new();
            for sort in ["a", "b"] {
                let got = http.get(&format!("/v1/orders/bank/{sort}")).expect(200).await?;
                seen.push((sort, got.etag()?, got.json()?["amount"].as_i64().context("amount")?));
            }
            let by = if number.is_multiple_of(2) { 1 } else { -1 };
            let ops: Vec<Value> = seen
                .iter()
                .map(|(sort, etag, amount)| {
                    let amount = if *sort == "a" { amount - by } else { amount + by };
                    json!({"collection": "orders", "sort": sort, "put": {"amount": amount}, "ifMatch": etag})
                })
                .collect();
            let answer = transact(http, "bank", json!(ops)).await?;
            if answer.status == 200 {
                return Ok(());
            }
            answer.problem(412)?;
        }
        anyhow::bail!("transfer {number} lost 500 races")
    };
    // Three odd and six even ones: 3 more go from a to b.
    let numbers = [0, 1, 2, 4, 3, 6, 8, 5, 10];
    let mut running = futures::stream::iter(numbers).map(transfer).buffer_unordered(3);
    while let Some(done) = running.next().await {
        done?;
    }
    let amount = |sort: &'static str| async move {
        anyhow::Ok(
            http.document(&format!("/v1/orders/bank/{sort}")).await?.context("gone")?["amount"].as_i64(),
        )
    };
    check_eq!((amount("a").await?, amount("b").await?), (Some(97), Some(103)), "(a, b)");
    Ok(())
}
