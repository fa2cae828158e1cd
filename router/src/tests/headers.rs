//! Which answers name their shard and node.

use borough_proto::wire::{Fault, FaultCode};
use serde_json::json;

use super::World;
use crate::http::path::escape;

/// An id of each of two shards.
async fn two_ids(world: &World) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for number in 0.. {
        let id = format!("i:{number}");
        let shard = world.get(&format!("/v1/users/{}", escape(&id))).await.header("borough-shard").to_owned();
        if found.iter().all(|(_, known)| *known != shard) {
            found.push((id, shard));
        }
        if found.len() == 2 {
            break;
        }
    }
    found
}

#[tokio::test]
async fn every_answer_about_an_id_names_its_shard() {
    let world = World::new().await;
    for (id, shard) in two_ids(&world).await {
        world.put(&format!("/v1/users/{}", escape(&id)), "{}").await;
        let strict = "{\"requirePreconditions\":true}";
        world.send("PUT", "/admin/v1/collections/strict", &[], strict).await;
        let huge = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20));
        let named = |collection: &str| format!("/v1/{collection}/{}", escape(&id));
        let (long_sort, other) = ("s".repeat(1025), json!({"id": id, "sort": "s".repeat(1025)}).to_string());
        let (document, post) = (named("users"), json!({"id": id}).to_string());
        let transact = format!("/v1/partitions/{}:transact", escape(&id));
        let bad_key = [("idempotency-key", "")];
        // Method, path, headers, body, status; whether a node answered.
        for (method, path, headers, body, status, node) in [
            ("GET", document.clone(), &[][..], "", 200, true),
            ("HEAD", document.clone(), &[], "", 200, true),
            ("GET", document.clone(), &[("if-none-match", "*")], "", 304, true),
            ("GET", document.clone(), &[("if-match", "\"ffff\"")], "", 412, true),
            ("PUT", document.clone(), &[("if-none-match", "*")], "{}", 412, true),
            ("POST", "/v1/users".to_owned(), &[], &post, 409, true),
            ("POST", "/v1/users".to_owned(), &bad_key, &post, 400, false),
            ("POST", "/v1/posts".to_owned(), &[], &other, 400, false),
            ("PUT", document.clone(), &[], "[]", 400, false),
            ("PUT", format!("{document}?foo=1"), &[], "{}", 400, false),
            ("PUT", document.clone(), &[], &huge, 413, false),
            ("PUT", document.clone(), &[("content-type", "text/plain")], "{}", 415, false),
            ("PUT", named("strict"), &[], "{}", 428, false),
            ("GET", named("nowhere"), &[], "", 404, false),
            ("POST", document.clone(), &[], "{}", 405, false),
            ("POST", transact.clone(), &[], "{}", 400, false),
            ("DELETE", document.clone(), &[], "", 204, true),
            ("GET", document.clone(), &[], "", 404, true),
        ] {
            let reply = world.send(method, &path, headers, body.to_owned()).await;
            assert_eq!(reply.status, status, "{method} {path} {reply:?}");
            assert_eq!(reply.header("borough-shard"), shard, "{method} {path} {status}");
            assert_eq!(
                reply.header("borough-node"),
                if node { "1" } else { "none" },
                "{method} {path} {status}"
            );
        }
        let unknown = world.get(&format!("/v1/posts/a/{long_sort}")).await;
        assert_eq!((unknown.status, unknown.header("borough-shard")), (400, "none"));
    }
    for path in [
        "/livez",
        "/readyz",
        "/metrics",
        "/admin/v1/cluster",
        "/admin/v1/collections",
        "/nope",
        "/docs",
        "/docs/",
        "/docs/nope.js",
        "/openapi.json",
    ] {
        for method in ["GET", "HEAD", "PUT"] {
            let reply = world.send(method, path, &[], "").await;
            let named = (reply.header("borough-shard"), reply.header("borough-node"));
            assert_eq!(named, ("none", "none"), "{method} {path}");
        }
    }
    let deleted = world.send("DELETE", "/admin/v1/collections/strict", &[], "").await;
    assert_eq!((deleted.status, deleted.header("borough-node")), (204, "none"));
}

#[tokio::test]
async fn a_node_that_refuses_is_named() {
    let world = World::new().await;
    let shard = world.get("/v1/users/a").await.header("borough-shard").to_owned();
    let batch = json!({"writes": [{"put": {"id": "a", "document": {}}}]}).to_string();
    for (method, path, body, status) in
        [("PUT", "/v1/users/a", "{}", 503), ("POST", "/v1/users:batchWrite", batch.as_str(), 200)]
    {
        world.node.store.lock().faults.push(Fault::new(FaultCode::DiskFull, "full"));
        let reply = world.send(method, path, &[], body.to_owned()).await;
        assert_eq!(reply.status, status, "{reply:?}");
        assert_eq!(
            (reply.header("borough-shard"), reply.header("borough-node")),
            (shard.as_str(), "1"),
            "{path}"
        );
    }
}
