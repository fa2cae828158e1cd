//! Collections: created, shown, listed, deleted; their options.

use anyhow::{Context as _, ensure};
use borough_proto::error::ProblemType as P;
use borough_proto::http_api::headers;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, Router};
use jepsen_tests::http::Http;
use serde_json::{Value, json};

pub async fn run(cases: &mut Cases, cluster: &Cluster) {
    let http = &cluster.http();
    cases.run("users exists from the start", users(http)).await;
    cases.run("create, show, list, delete a collection", life(http)).await;
    cases.run("a deleted collection's documents do not come back with its name", no_return(http)).await;
    cases.run("bad names and options are refused", refusals(http)).await;
    cases.run("requirePreconditions: 428 without one", preconditions(http)).await;
    cases.run("a collection made through another router is there at once", other_router(cluster)).await;
}

fn at(name: &str) -> String {
    format!("/admin/v1/collections/{name}")
}

async fn names(http: &Http) -> anyhow::Result<Vec<String>> {
    let list = http.get("/admin/v1/collections").expect(200).await?.json()?;
    let items = list["items"].as_array().context("items")?;
    items.iter().map(|item| item["name"].as_str().map(str::to_owned).context("name")).collect()
}

async fn users(http: &Http) -> anyhow::Result<()> {
    let shown = http.get(&at("users")).expect(200).await?.json()?;
    check_eq!(shown["name"], json!("users"));
    check_eq!(shown["sortKey"], json!(false));
    ensure!(names(http).await?.iter().any(|name| name == "users"), "users is not listed");
    Ok(())
}

async fn life(http: &Http) -> anyhow::Result<()> {
    http.get(&at("col-a")).refused(P::CollectionNotFound).await?;
    http.get("/v1/col-a/x").refused(P::CollectionNotFound).await?;
    let options = json!({"sortKey": true, "defaultTtl": "3600s", "requirePreconditions": false});
    let made = http.put(&at("col-a"), &options).send().await?;
    ensure!(matches!(made.status, 200 | 201), "{made}");
    let shown = http.get(&at("col-a")).expect(200).await?.json()?;
    for field in ["sortKey", "defaultTtl", "requirePreconditions"] {
        check_eq!(shown[field], options[field], "{field}");
    }
    ensure!(names(http).await?.iter().any(|name| name == "col-a"), "col-a is not listed");
    // The same again changes nothing; whether items have a sort key can never change.
    let again = http.put(&at("col-a"), &options).send().await?;
    ensure!(matches!(again.status, 200 | 201), "{again}");
    http.put(&at("col-a"), &json!({"sortKey": false})).refused(P::Conflict).await?;
    check_eq!(http.get(&at("col-a")).expect(200).await?.json()?["sortKey"], json!(true));
    // Usable at once.
    http.put("/v1/col-a/x/1", &json!({})).expect(201).await?;
    http.delete(&at("col-a")).expect(204).await?;
    http.get(&at("col-a")).refused(P::CollectionNotFound).await?;
    http.delete(&at("col-a")).refused(P::CollectionNotFound).await?;
    http.get("/v1/col-a/x/1").refused(P::CollectionNotFound).await?;
    http.put("/v1/col-a/x/1", &json!({})).refused(P::CollectionNotFound).await?;
    ensure!(!names(http).await?.iter().any(|name| name == "col-a"), "col-a is still listed");
    Ok(())
}

async fn no_return(http: &Http) -> anyhow::Result<()> {
    http.create_collection("col-b", &json!({})).await?;
    for number in 0..20 {
        http.put(&format!("/v1/col-b/{number}"), &json!({})).expect(201).await?;
    }
    http.delete(&at("col-b")).expect(204).await?;
    http.create_collection("col-b", &json!({})).await?;
    check_eq!(crate::lists::list(http, "/v1/col-b", 10).await?, Vec::<Value>::new());
    for number in 0..20 {
        check_eq!(http.document(&format!("/v1/col-b/{number}")).await?, None);
    }
    // With the other shape, too.
    http.delete(&at("col-b")).expect(204).await?;
    http.create_collection("col-b", &json!({"sortKey": true})).await?;
    http.put("/v1/col-b/1/1", &json!({})).expect(201).await?;
    Ok(())
}

async fn refusals(http: &Http) -> anyhow::Result<()> {
    let long = "a".repeat(65);
    for name in ["Upper", "1a", "a%3Ab", "%C3%A4", "partitions", "a.b", long.as_str(), "-a"] {
        let answer = http.put(&at(name), &json!({})).send().await?;
        answer.refused_as(&[P::BadRequest, P::BadId, P::BadParameter]).with_context(|| name.to_owned())?;
    }
    for options in [
        json!({"sortkey": true}),
        json!({"sortKey": "yes"}),
        json!({"defaultTtl": 3600}),
        json!({"defaultTtl": "soon"}),
        json!({"defaultTtl": "0s"}),
        json!([]),
    ] {
        let answer = http.put(&at("col-bad"), &options).send().await?;
        let kinds = [P::BadRequest, P::MalformedJson, P::BadParameter];
        answer.refused_as(&kinds).with_context(|| options.to_string())?;
    }
    http.get(&at("col-bad")).refused(P::CollectionNotFound).await?;
    Ok(())
}

async fn preconditions(http: &Http) -> anyhow::Result<()> {
    http.create_collection("guarded", &json!({"requirePreconditions": true})).await?;
    let path = "/v1/guarded/a";
    http.put(path, &json!({"v": 1})).refused(P::PreconditionRequired).await?;
    check_eq!(http.document(path).await?, None);
    let etag = http.put(path, &json!({"v": 1})).header("if-none-match", "*").expect(201).await?.etag()?;
    for call in [http.put(path, &json!({"v": 2})), http.patch(path, &json!({"v": 2})), http.delete(path)] {
        call.refused(P::PreconditionRequired).await?;
    }
    let answer = http.get(path).expect(200).await?;
    check_eq!(answer.etag()?, etag);
    let etag = http.patch(path, &json!({"v": 3})).header("if-match", &etag).expect(200).await?.etag()?;
    http.delete(path).header("if-match", &etag).expect(204).await?;
    // To create is its own precondition.
    http.post("/v1/guarded", &json!({"id": "b"})).expect(201).await?;
    let writes = json!({"writes": [{"put": {"id": "c", "document": {}}}, {"put": {"id": "d", "document": {}, "ifAbsent": true}}]});
    let batch = http.post("/v1/guarded:batchWrite", &writes).send().await?;
    if batch.status == 200 {
        let found: Vec<Value> =
            crate::batches::items(&batch, 2)?.iter().map(|item| item["status"].clone()).collect();
        check_eq!(found, [json!(428), json!(201)]);
    } else {
        batch.refused_as(&[P::PreconditionRequired])?;
    }
    let ops = json!({"ops": [{"collection": "guarded", "put": {}}]});
    http.post("/v1/partitions/c:transact", &ops).refused(P::PreconditionRequired).await?;
    check_eq!(http.document("/v1/guarded/c").await?, None);
    ensure!(answer.header(headers::EXPIRES).is_none(), "it expires");
    Ok(())
}

async fn other_router(cluster: &Cluster) -> anyhow::Result<()> {
    let seeds: Vec<String> = cluster.nodes.iter().map(|node| node.addr.clone()).collect();
    let mut other = Router::start(cluster.dir(), "router-2", &seeds).await?;
    let (here, there) = (cluster.http(), other.http.clone());
    there.get("/v1/users/warm").refused(P::DocumentNotFound).await?;
    for number in 0..20 {
        let (maker, user) = if number % 2 == 0 { (&here, &there) } else { (&there, &here) };
        let name = format!("shared-{number}");
        maker.create_collection(&name, &json!({})).await?;
        match number % 3 {
            0 => user.put(&format!("/v1/{name}/a"), &json!({})).expect(201).await?,
            1 => user.get(&format!("/v1/{name}")).expect(200).await?,
            _ => {
                let ops = json!({"ops": [{"collection": name, "put": {}}]});
                user.post("/v1/partitions/a:transact", &ops).expect(200).await?
            }
        };
    }
    // Names that nobody made stay unknown, and asking for many of them costs little.
    let unknown = (0..100).map(|number| {
        let there = &there;
        async move { there.get(&format!("/v1/nobody-{number}/a")).refused(P::CollectionNotFound).await }
    });
    futures::future::try_join_all(unknown).await?;
    other.terminate().await?;
    Ok(())
}
