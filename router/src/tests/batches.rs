//! `:batchGet`, `:batchWrite`, `:transact`.

use borough_proto::idempotency::CLAIM;
use borough_proto::wire;
use serde_json::json;

use super::World;

#[tokio::test]
async fn a_batch_answers_each_item_in_order() {
    let world = World::new().await;
    let writes = json!({"writes": [
        {"put": {"id": "a", "document": {"n": 1}}},
        {"put": {"id": "a", "document": {"n": 2}, "ifAbsent": true}},
        {"patch": {"id": "a", "merge": {"m": 3}}},
        {"patch": {"id": "b", "merge": {}}},
        {"put": {"id": "", "document": {}}},
        {"put": {"id": "c", "document": []}},
        {"put": {"id": "d", "document": {}, "ttl": "5s"}},
        {"delete": {"id": "d"}},
    ]});
    let reply = world.send("POST", "/v1/users:batchWrite", &[], writes.to_string()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let statuses: Vec<_> =
        reply.json()["items"].as_array().unwrap().iter().map(|item| item["status"].clone()).collect();
    assert_eq!(json!(statuses), json!([201, 412, 200, 404, 400, 400, 201, 204]));
    assert_eq!(reply.json()["items"][1]["problem"]["outcome"], "not-applied");

    let ids = json!({"ids": ["b", "a", "x", "a"]});
    let reply = world.send("POST", "/v1/users:batchGet", &[], ids.to_string()).await;
    let items = reply.json()["items"].as_array().unwrap().clone();
    assert_eq!(
        items.iter().map(|item| item["status"].as_u64().unwrap()).collect::<Vec<_>>(),
        [404, 200, 404, 200]
    );
    assert_eq!(items[1]["document"], json!({"id": "a", "n": 1, "m": 3}));
    assert!(items[1]["etag"].is_string());
    assert_eq!(items[0]["id"], "b");
}

#[tokio::test]
async fn a_batch_sends_one_request_for_each_shard() {
    let world = World::new().await;
    let ids: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let writes: Vec<_> = ids.iter().map(|id| json!({"put": {"id": id, "document": {}}})).collect();
    let reply = world.send("POST", "/v1/users:batchWrite", &[], json!({"writes": writes}).to_string()).await;
    assert!(reply.json()["items"].as_array().unwrap().iter().all(|item| item["status"] == 201));
    assert_eq!(reply.header("borough-shard"), "0,1,2,3");
    assert_eq!(world.node.store.lock().requests.len(), 4);
    world.send("POST", "/v1/users:batchGet", &[], json!({"ids": ids}).to_string()).await;
    assert_eq!(world.node.store.lock().requests.len(), 8);
}

#[tokio::test]
async fn a_keyed_batch_is_not_applied_twice() {
    let world = World::new().await;
    let writes =
        json!({"writes": [{"put": {"id": "a", "document": {"n": 1}}}, {"delete": {"id": "a"}}]}).to_string();
    let key = [("idempotency-key", "k")];
    let first = world.send("POST", "/v1/users:batchWrite", &key, writes.clone()).await;
    assert_eq!(world.send("POST", "/v1/users:batchWrite", &key, writes).await.body, first.body);
}

#[tokio::test]
async fn a_batch_is_the_same_request_whatever_the_collections_default_is_now() {
    let world = World::new().await;
    let writes = json!({"writes": [{"put": {"id": "a", "document": {}}}]}).to_string();
    let key = [("idempotency-key", "k")];
    world.send("POST", "/v1/users:batchWrite", &key, writes.clone()).await;
    world.node.map.send_modify(|map| {
        map.epoch += 1;
        map.collections[0].default_ttl_ms = Some(60_000);
    });
    world.see_epoch(2).await;
    world.send("POST", "/v1/users:batchWrite", &key, writes).await;
    let store = world.node.store.lock();
    let units = store.requests.iter().filter_map(|request| match &request.op {
        Some(wire::data_request::Op::Write(write)) => write.command.as_ref()?.units.first(),
        _ => None,
    });
    let claims = |unit: &&wire::Unit| unit.idempotency.as_ref().unwrap().position == CLAIM;
    let (claims, units): (Vec<_>, Vec<_>) = units.partition(claims);
    assert_eq!(claims.len(), 2);
    assert_eq!(claims[0], claims[1]);
    assert_eq!(units.len(), 2);
    assert_eq!(units[0].ops[0].ttl_ms, None);
    assert_eq!(units[1].ops[0].ttl_ms, Some(60_000));
    assert_eq!(units[0].idempotency, units[1].idempotency);
}

#[tokio::test]
async fn a_batch_under_a_used_key_is_refused_as_a_whole() {
    let world = World::new().await;
    let puts = |ids: &[&str]| {
        let writes: Vec<_> = ids.iter().map(|id| json!({"put": {"id": id, "document": {}}})).collect();
        json!({"writes": writes}).to_string()
    };
    let key = [("idempotency-key", "k")];
    // "a" to "d" lie in several shards.
    let first = world.send("POST", "/v1/users:batchWrite", &key, puts(&["a", "b", "c", "d"])).await;
    assert_eq!(first.status, 200);
    for other in [&["b", "a", "c", "d"][..], &["a", "b", "c"], &["a", "b", "c", "d", "e"], &["x", "y", "z"]] {
        let reply = world.send("POST", "/v1/users:batchWrite", &key, puts(other)).await;
        let problem = reply.json();
        assert_eq!((reply.status, &problem["field"]), (422, &json!("idempotency-key")), "{other:?}");
        assert_eq!(problem["outcome"], "not-applied");
        assert_eq!(reply.header("borough-node"), "1");
    }
    for id in ["e", "x", "y", "z"] {
        assert_eq!(world.get(&format!("/v1/users/{id}")).await.status, 404, "{id}");
    }
    let again = world.send("POST", "/v1/users:batchWrite", &key, puts(&["a", "b", "c", "d"])).await;
    assert_eq!(again.body, first.body);
    // Nothing to write, nothing to claim.
    let before = world.node.store.lock().requests.len();
    let key = [("idempotency-key", "k2")];
    assert_eq!(world.send("POST", "/v1/users:batchWrite", &key, puts(&[""])).await.status, 200);
    assert_eq!(world.node.store.lock().requests.len(), before);
}

#[tokio::test]
async fn envelopes_are_checked() {
    let world = World::new().await;
    let many = json!({"ids": vec!["a"; 101]}).to_string();
    for (path, body) in [
        ("/v1/users:batchGet", "{}"),
        ("/v1/users:batchGet", "{\"ids\":[]}"),
        ("/v1/users:batchGet", "{\"ids\":[\"\"]}"),
        ("/v1/users:batchGet", "{\"ids\":[{\"id\":\"a\",\"sort\":\"s\"}]}"),
        ("/v1/users:batchGet", &many),
        ("/v1/users:batchWrite", "{\"writes\":[{\"put\":{},\"delete\":{}}]}"),
        ("/v1/users:batchWrite", "not json"),
        ("/v1/partitions/a:transact", "{\"ops\":[]}"),
    ] {
        assert_eq!(world.send("POST", path, &[], body.to_owned()).await.status, 400, "{path} {body}");
    }
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() {
    let world = World::new().await;
    let transact = async |ops: serde_json::Value| {
        world.send("POST", "/v1/partitions/u1:transact", &[], json!({"ops": ops}).to_string()).await
    };
    let done = transact(json!([
        {"collection": "users", "put": {"name": "Ada"}, "ifAbsent": true},
        {"collection": "posts", "sort": "1", "put": {"text": "x"}},
    ]))
    .await;
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(done.json()["items"][1]["sort"], "1");
    let failed = transact(json!([
        {"collection": "posts", "sort": "2", "put": {"text": "y"}},
        {"collection": "users", "check": true, "ifMatch": "\"ffff\""},
    ]))
    .await;
    assert_eq!((failed.status, failed.json()["op"].as_u64()), (412, Some(1)));
    assert_eq!(world.get("/v1/posts/u1/2").await.status, 404);
    assert_eq!(world.get("/v1/posts/u1/1").await.status, 200);
}
