//! Single documents.

use borough_proto::error::Outcome;
use borough_proto::wire::{Fault, FaultCode, data_request};

use super::World;

#[tokio::test]
async fn a_document_lives_from_put_to_delete() {
    let world = World::new().await;
    let put = world.put("/v1/users/a%2Fb", "{ \"x\": 1.0 }").await;
    assert_eq!(put.status, 201);
    assert_eq!(put.body, "{\"id\":\"a/b\", \"x\": 1.0 }");
    for name in ["borough-shard", "borough-node", "borough-session", "etag"] {
        assert!(!put.header(name).is_empty(), "{name}");
    }
    let got = world.get("/v1/users/a%2Fb").await;
    assert_eq!((got.status, &got.body, got.header("etag")), (200, &put.body, put.header("etag")));
    assert_eq!(got.header("cache-status"), "borough; hit");
    assert_eq!(world.get("/v1/users/a%2Fb?view=stored").await.body, "{ \"x\": 1.0 }");
    let head = world.send("HEAD", "/v1/users/a%2Fb", &[], "").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "23", 0));
    let patched = world
        .send("PATCH", "/v1/users/a%2Fb", &[("content-type", "application/merge-patch+json")], "{\"y\":2}")
        .await;
    assert_eq!(patched.status, 200);
    assert_eq!(patched.json()["y"], 2);
    assert_eq!(patched.json()["id"], "a/b");
    assert_ne!(patched.header("etag"), put.header("etag"));
    assert_eq!(world.put("/v1/users/a%2Fb", "{}").await.status, 200);
    let deleted = world.send("DELETE", "/v1/users/a%2Fb", &[], "").await;
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
    let gone = world.get("/v1/users/a%2Fb").await;
    assert_eq!(
        (gone.status, gone.json()["type"].as_str()),
        (404, Some("urn:borough:problem:document-not-found"))
    );
    assert_eq!(gone.header("cache-status"), "borough; fwd=miss");
    assert_eq!(world.send("DELETE", "/v1/users/a%2Fb", &[], "").await.status, 404);
}

#[tokio::test]
async fn conditions_are_kept() {
    let world = World::new().await;
    let tag = world.put("/v1/users/a", "{}").await.header("etag").to_owned();
    let send = async |method: &str, name: &str, value: &str| {
        let body = if method == "GET" || method == "DELETE" { "" } else { "{}" };
        world.send(method, "/v1/users/a", &[(name, value)], body).await
    };
    assert_eq!(send("GET", "if-none-match", &tag).await.status, 304);
    assert_eq!(send("GET", "if-none-match", &format!("W/{tag}")).await.header("etag"), tag);
    assert_eq!(send("GET", "if-match", "\"ffff\"").await.status, 412);
    let exists = send("PUT", "if-none-match", "*").await;
    assert_eq!((exists.status, exists.header("etag")), (412, tag.as_str()));
    assert_eq!(send("PUT", "if-match", "\"ffff\"").await.status, 412);
    assert_eq!(send("PUT", "if-match", &format!("W/{tag}")).await.status, 412);
    assert_eq!(send("PUT", "if-match", "junk").await.status, 400);
    assert_eq!(send("PUT", "if-match", &tag).await.status, 200);
    assert_eq!(send("DELETE", "if-match", &tag).await.status, 412);
    assert_eq!(send("DELETE", "if-match", "*").await.status, 204);
}

#[tokio::test]
async fn posts_make_new_documents() {
    let world = World::new().await;
    let made = world.send("POST", "/v1/users", &[], "{\"n\":1}").await;
    assert_eq!(made.status, 201);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(made.header("location"), format!("/v1/users/{id}"));
    assert_eq!(world.get(made.header("location")).await.body, made.body);
    assert_eq!(world.send("POST", "/v1/users", &[], "{\"id\":7}").await.header("location"), "/v1/users/7");
    let again = world.send("POST", "/v1/users", &[], "{\"id\":\"7\"}").await;
    assert_eq!(
        (again.status, again.json()["type"].as_str()),
        (409, Some("urn:borough:problem:already-exists"))
    );
    let item = world.send("POST", "/v1/posts", &[], "{\"id\":7,\"sort\":\"x y\"}").await;
    assert_eq!((item.status, item.header("location")), (201, "/v1/posts/7/x%20y"));
    assert_eq!(world.send("POST", "/v1/posts", &[], "{\"id\":7}").await.status, 400);
}

#[tokio::test]
async fn an_idempotency_key_replays_the_first_answer() {
    let world = World::new().await;
    let key = [("idempotency-key", "k1")];
    let first = world.send("POST", "/v1/users", &key, "{\"n\":1}").await;
    let again = world.send("POST", "/v1/users", &key, "{\"n\":1}").await;
    assert_eq!(first.status, 201);
    assert_eq!((again.status, &again.body, again.header("etag")), (201, &first.body, first.header("etag")));
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(world.send("POST", "/v1/users", &key, "{\"n\":2}").await.status, 422);
    let long = "k".repeat(257);
    assert_eq!(world.send("POST", "/v1/users", &[("idempotency-key", &long)], "{}").await.status, 400);
}

#[tokio::test]
async fn a_keyed_post_belongs_to_one_request_in_all_shards() {
    let world = World::new().await;
    let post = async |key: &str, path: &str, body: &str| {
        world.send("POST", path, &[("idempotency-key", key)], body.to_owned()).await
    };
    let first = post("k1", "/v1/users", "{\"id\":\"a\"}").await;
    assert_eq!(first.status, 201);
    for id in ["b", "c", "d", "e", "f", "g"] {
        let other = post("k1", "/v1/users", &format!("{{\"id\":{id:?}}}")).await;
        assert_eq!((other.status, other.json()["outcome"].as_str()), (422, Some("not-applied")), "{id}");
        assert_eq!(world.get(&format!("/v1/users/{id}")).await.status, 404, "{id}");
    }
    for (path, body) in [
        ("/v1/users?ttl=60s", "{\"id\":\"a\"}"),
        ("/v1/posts", "{\"id\":\"a\",\"sort\":\"s\"}"),
        ("/v1/users:batchWrite", "{\"writes\":[{\"delete\":{\"id\":\"a\"}}]}"),
    ] {
        assert_eq!(post("k1", path, body).await.status, 422, "{path}");
    }
    assert_eq!(post("k1", "/v1/users", "{\"id\":\"a\"}").await.body, first.body);

    // A refusal is the outcome of its key too.
    let exists = post("k2", "/v1/users", "{\"id\":\"a\",\"n\":1}").await;
    assert_eq!(exists.status, 409);
    world.send("DELETE", "/v1/users/a", &[], "").await;
    assert_eq!(post("k2", "/v1/users", "{\"id\":\"a\",\"n\":1}").await.status, 409);
    // A request that is malformed uses no key up.
    assert_eq!(post("k3", "/v1/users", "[]").await.status, 400);
    assert_eq!(post("k3", "/v1/users", "{}").await.status, 201);
}

#[tokio::test]
async fn an_id_that_was_made_under_a_key_is_made_once() {
    let world = World::new().await;
    let key = [("idempotency-key", "k1")];
    let post = async || world.send("POST", "/v1/users", &key, "{\"n\":1}").await;
    let first = post().await;
    let id = first.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 7);
    assert_eq!((post().await.body, world.node.store.lock().requests.len()), (first.body, 4));

    // The claim is made, the write is refused: a retry goes on with the id of the first attempt.
    let key = [("idempotency-key", "k2")];
    let post = async || world.send("POST", "/v1/users", &key, "{\"n\":2}").await;
    world.node.store.lock().faults_after = Some((1, Fault::new(FaultCode::DiskFull, "full")));
    let refused = post().await;
    assert_eq!((refused.status, refused.json()["outcome"].as_str()), (503, Some("not-applied")));
    let made = post().await;
    assert_eq!((made.status, post().await.body), (201, made.body.clone()));
    let ids: Vec<String> = {
        let store = world.node.store.lock();
        let writes = store.requests.iter().filter_map(|request| match &request.op {
            Some(data_request::Op::Write(write)) => write.command.as_ref()?.units.first(),
            _ => None,
        });
        let puts = writes
            .filter(|unit| unit.idempotency.as_ref().is_some_and(|key| key.key == "k2" && key.position == 0));
        puts.map(|unit| unit.ops[0].id.clone()).collect()
    };
    assert_eq!(ids, vec![made.json()["id"].as_str().unwrap(); 3]);
}

#[tokio::test]
async fn a_claim_that_nobody_answers_leaves_the_document_alone() {
    let world = World::new().await;
    world.get("/v1/users/a").await;
    let key = [("idempotency-key", "k1")];
    for (code, status) in [(FaultCode::DeadlineExceeded, 503), (FaultCode::Internal, 500)] {
        world.node.store.lock().faults.push(Fault::new(code, "late"));
        let reply = world.send("POST", "/v1/users", &key, "{\"id\":\"a\"}").await;
        assert_eq!(
            (reply.status, reply.json()["outcome"].as_str()),
            (status, Some("not-applied")),
            "{code:?}"
        );
    }
    assert_eq!(world.get("/v1/users/a").await.status, 404);
    assert_eq!(world.send("POST", "/v1/users", &key, "{\"id\":\"a\"}").await.status, 201);
}

#[tokio::test]
async fn a_key_is_used_anew_for_another_target_of_a_path() {
    let world = World::new().await;
    let key = [("idempotency-key", "k1")];
    for number in 0..20 {
        let path = format!("/v1/users/u{number}");
        assert_eq!(world.send("PUT", &path, &key, format!("{{\"n\":{number}}}")).await.status, 201, "{path}");
        assert_eq!(world.send("PUT", &path, &key, "{\"other\":1}").await.status, 422, "{path}");
        assert_eq!(world.send("DELETE", &path, &key, "").await.status, 422, "{path}");
        let item = format!("/v1/posts/u0/{number}");
        assert_eq!(world.send("PUT", &item, &key, "{}").await.status, 201, "{item}");
    }
    assert_eq!(world.send("POST", "/v1/users", &key, "{}").await.status, 201);
    let ops = r#"{"ops":[{"collection":"users","patch":{"t":1}}]}"#;
    assert_eq!(world.send("POST", "/v1/partitions/u0:transact", &key, ops).await.status, 200);
    assert_eq!(world.send("POST", "/v1/partitions/u1:transact", &key, ops).await.status, 200);
}

#[tokio::test]
async fn bad_requests_name_what_is_wrong() {
    let world = World::new().await;
    let huge = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20));
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16);
    let table: &[Case<'_>] = &[
        ("PUT", "/v1/users/a", &[], "[]", 400),
        ("PUT", "/v1/users/a", &[], "{\"id\":\"b\"}", 400),
        ("PUT", "/v1/users/a", &[("content-type", "text/plain")], "{}", 415),
        ("PATCH", "/v1/users/a", &[("content-type", "application/json-patch+json")], "{}", 415),
        ("PUT", "/v1/users/a", &[], &huge, 413),
        ("PUT", "/v1/users/a?ttl=5", &[], "{}", 400),
        ("PUT", "/v1/users/a?tll=5s", &[], "{}", 400),
        ("GET", "/v1/users/a?ttl=5s", &[], "", 400),
        ("GET", "/v1/users/a", &[("borough-session", "???")], "", 400),
        ("GET", "/v1/users/a", &[("cache-control", "max-stale=")], "", 400),
        ("GET", "/v1/nowhere/a", &[], "", 404),
        ("GET", "/v1/users/a/b", &[], "", 404),
        ("PUT", "/v1/posts/a", &[], "{}", 405),
        ("POST", "/v1/users/a", &[], "{}", 405),
        ("PUT", "/v1/users", &[], "{}", 405),
        ("GET", "/v1/users:batchGet", &[], "", 405),
        ("PUT", "/livez", &[], "", 405),
        ("GET", "/v1/users:drop", &[], "", 404),
    ];
    for (method, path, headers, body, status) in table {
        let reply = world.send(method, path, headers, body.to_string()).await;
        assert_eq!(reply.status, *status, "{method} {path} {headers:?}: {reply:?}");
        assert_eq!(reply.json()["outcome"], "not-applied");
        assert_eq!(reply.status == 405, !reply.header("allow").is_empty());
    }
}

#[tokio::test]
async fn a_collections_options_are_applied() {
    let world = World::new().await;
    let made = world
        .send(
            "PUT",
            "/admin/v1/collections/strict",
            &[],
            "{\"defaultTtl\":\"60s\",\"requirePreconditions\":true}",
        )
        .await;
    assert_eq!((made.status, made.json()["defaultTtl"].as_str()), (201, Some("60s")));
    assert_eq!(world.put("/v1/strict/a", "{}").await.status, 428);
    let put = world.send("PUT", "/v1/strict/a", &[("if-none-match", "*")], "{}").await;
    assert_eq!((put.status, put.header("borough-expires")), (201, "1970-01-01T00:17:40.000Z"));
    let put = world.send("PUT", "/v1/strict/a?ttl=1s", &[("if-match", "*")], "{}").await;
    assert_eq!(put.header("borough-expires"), "1970-01-01T00:16:41.000Z");
    assert_eq!(world.send("POST", "/v1/strict", &[], "{}").await.status, 201);
    assert_eq!(world.send("DELETE", "/admin/v1/collections/strict", &[], "").await.status, 204);
    assert_eq!(world.get("/v1/strict/a").await.status, 404);
}

#[tokio::test]
async fn freshness_follows_the_request() {
    let world = World::new().await;
    let token = world.put("/v1/users/a", "{}").await.header("borough-session").to_owned();
    let freshness = async |headers: &[(&str, &str)]| {
        world.send("GET", "/v1/users/a", headers, "").await;
        let requests = &world.node.store.lock().requests;
        match &requests.last().unwrap().op {
            Some(data_request::Op::Read(read)) => read.freshness,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(freshness(&[]).await, None);
    assert_eq!(freshness(&[("cache-control", "max-stale=3")]).await.unwrap().max_stale_ms, Some(3000));
    assert_eq!(freshness(&[("borough-session", &token)]).await.unwrap().min_index, Some(101));
    assert_eq!(freshness(&[("borough-session", &token), ("cache-control", "no-cache")]).await, None);
}

#[tokio::test]
async fn outcomes_are_told_as_they_are() {
    let world = World::new().await;
    world.get("/v1/users/a").await;
    let table = [
        (Fault::new(FaultCode::DiskFull, "full"), 503, "not-applied"),
        (Fault::new(FaultCode::DeadlineExceeded, "late"), 504, "unknown"),
        (Fault::new(FaultCode::Internal, "broken"), 500, "unknown"),
    ];
    for (fault, status, outcome) in table {
        world.node.store.lock().faults.push(fault);
        let reply = world.put("/v1/users/a", "{}").await;
        assert_eq!((reply.status, reply.json()["outcome"].as_str()), (status, Some(outcome)));
        assert!(!reply.header("retry-after").is_empty());
    }
    assert_eq!(serde_json::to_value(Outcome::Unknown).unwrap(), "unknown");
}

#[tokio::test]
async fn a_callers_request_id_and_deadline_are_used() {
    let world = World::new().await;
    let reply = world
        .send("GET", "/v1/users/a", &[("x-request-id", "abc-1"), ("borough-timeout-ms", "1234")], "")
        .await;
    assert_eq!(reply.header("x-request-id"), "abc-1");
    assert!(world.node.store.lock().requests.last().unwrap().timeout_ms <= 1234);
    assert_ne!(
        world.send("GET", "/v1/users/a", &[("x-request-id", "a b")], "").await.header("x-request-id"),
        "a b"
    );
}
