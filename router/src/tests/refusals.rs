//! What a refusal names: the place at fault, and the limit that was passed.

use borough_proto::limits;
use serde_json::{Value, json};

use super::World;

/// Method, path, headers, body; type, field and limit of the problem.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], String, &'a str, Value, Value);

#[tokio::test]
async fn a_400_names_its_field_and_limit() {
    let world = World::new().await;
    let (id, sort) = ("i".repeat(257), "s".repeat(1025));
    let long = |key: &str| format!("/v1/users/{key}");
    let (long_id, long_sort) = (long(&id), format!("/v1/posts/a/{sort}"));
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(101), "]".repeat(101));
    let many = json!({"ids": vec!["a"; 101]}).to_string();
    let writes = json!({"writes": vec![json!({"delete": {"id": "a"}}); 101]}).to_string();
    let ops = json!({"ops": vec![json!({"collection": "users", "delete": true}); 101]}).to_string();
    let depth = json!(limits::DOCUMENT_DEPTH_MAX);
    let ttl_max = json!(limits::TTL_MAX.as_secs());
    let key = "k".repeat(257);
    let none = Value::Null;
    let (get, put) = ("/v1/users:batchGet", "/v1/users:batchWrite");
    let transact = "/v1/partitions/a:transact";
    let table: &[Case<'_>] = &[
        (
            "PUT",
            "/v1/users/a",
            &[],
            r#"{"a":{"b":[1,}}"#.to_owned(),
            "malformed-json",
            json!("a.b[1]"),
            none.clone(),
        ),
        ("PATCH", "/v1/users/a", &[], deep.clone(), "malformed-json", json!("a"), depth.clone()),
        ("POST", "/v1/users", &[], deep.clone(), "malformed-json", json!("a"), depth.clone()),
        ("PUT", "/v1/users/a", &[], r#"{"id":"b"}"#.to_owned(), "bad-id", json!("id"), none.clone()),
        ("POST", "/v1/users", &[], json!({"id": id}).to_string(), "bad-id", json!("id"), json!(256)),
        ("PUT", &long_id, &[], "{}".to_owned(), "bad-id", json!("id"), json!(256)),
        ("PUT", &long_sort, &[], "{}".to_owned(), "bad-id", json!("sort"), json!(1024)),
        ("PUT", "/v1/users/a?ttl=5", &[], "{}".to_owned(), "bad-parameter", json!("ttl"), none.clone()),
        ("PUT", "/v1/users/a?ttl=0s", &[], "{}".to_owned(), "bad-parameter", json!("ttl"), ttl_max.clone()),
        (
            "PUT",
            "/v1/users/a?ttl=9999999999s",
            &[],
            "{}".to_owned(),
            "bad-parameter",
            json!("ttl"),
            ttl_max.clone(),
        ),
        (
            "GET",
            "/v1/users?pageSize=1001",
            &[],
            String::new(),
            "bad-parameter",
            json!("pageSize"),
            json!(1000),
        ),
        (
            "PUT",
            "/v1/users/a",
            &[("idempotency-key", &key)],
            "{}".to_owned(),
            "bad-header",
            json!("idempotency-key"),
            json!(256),
        ),
        (
            "POST",
            put,
            &[("idempotency-key", &key)],
            r#"{"writes":[{"delete":{"id":"a"}}]}"#.to_owned(),
            "bad-header",
            json!("idempotency-key"),
            json!(256),
        ),
        ("POST", get, &[], r#"{"ids":[1,null]}"#.to_owned(), "malformed-json", json!("ids[0]"), none.clone()),
        ("POST", get, &[], many, "bad-request", json!("ids"), json!(100)),
        ("POST", get, &[], json!({"ids": ["a", id]}).to_string(), "bad-id", json!("ids[1]"), json!(256)),
        (
            "POST",
            get,
            &[],
            r#"{"ids":[{"id":"a","sort":"s"}]}"#.to_owned(),
            "bad-request",
            json!("ids[0].sort"),
            none.clone(),
        ),
        ("POST", put, &[], writes, "bad-request", json!("writes"), json!(100)),
        (
            "POST",
            put,
            &[],
            r#"{"writes":[{"put":{"id":"a"}}]}"#.to_owned(),
            "malformed-json",
            json!("writes[0].put.document"),
            none.clone(),
        ),
        ("POST", transact, &[], ops, "bad-request", json!("ops"), json!(100)),
        (
            "POST",
            transact,
            &[],
            r#"{"ops":[{"collection":"users","delete":true},{"collection":"users"}]}"#.to_owned(),
            "bad-request",
            json!("ops[1]"),
            none.clone(),
        ),
        (
            "POST",
            transact,
            &[],
            r#"{"ops":[{"collection":"users","put":{},"ttl":"0s"}]}"#.to_owned(),
            "bad-parameter",
            json!("ops[0].ttl"),
            ttl_max.clone(),
        ),
        (
            "POST",
            transact,
            &[],
            format!(r#"{{"ops":[{{"collection":"users","put":{deep}}}]}}"#),
            "malformed-json",
            json!("ops[0].put.a"),
            depth.clone(),
        ),
        (
            "PUT",
            "/admin/v1/collections/x",
            &[],
            r#"{"defaultTtl":"1"}"#.to_owned(),
            "bad-parameter",
            json!("defaultTtl"),
            none.clone(),
        ),
        (
            "PUT",
            "/admin/v1/collections/x",
            &[],
            r#"{"sortKey":"yes"}"#.to_owned(),
            "malformed-json",
            json!("sortKey"),
            none,
        ),
        ("PUT", "/admin/v1/collections/X", &[], "{}".to_owned(), "bad-id", json!("name"), json!(64)),
    ];
    for (method, path, headers, body, kind, field, limit) in table {
        let shown: String = format!("{method} {path} {body}").chars().take(120).collect();
        let reply = world.send(method, path, headers, body.clone()).await;
        let problem = reply.json();
        assert_eq!((reply.status, &problem["outcome"]), (400, &json!("not-applied")), "{shown}: {reply:?}");
        assert_eq!(problem["type"], format!("urn:borough:problem:{kind}"), "{shown}");
        assert_eq!((&problem["field"], &problem["limit"]), (field, limit), "{shown}: {problem}");
    }
    assert!(world.node.store.lock().requests.is_empty(), "nothing reached a node");
}

#[tokio::test]
async fn an_item_of_a_batch_names_its_place_in_the_batch() {
    let world = World::new().await;
    let writes = json!({"writes": [
        {"delete": {"id": ""}},
        {"put": {"id": "a", "document": {"id": "b"}}},
        {"put": {"id": "a", "document": []}},
        {"patch": {"id": "a", "merge": {}, "ttl": "5"}},
        {"put": {"id": "a", "document": {}, "ifMatch": "5"}},
        {"put": {"id": "a", "document": {}}},
        {"patch": {"id": "a", "merge": {"id": "b"}}},
    ]});
    let reply = world.send("POST", "/v1/users:batchWrite", &[], writes.to_string()).await;
    let items = reply.json()["items"].as_array().unwrap().clone();
    let fields: Vec<&str> =
        items.iter().map(|item| item["problem"]["field"].as_str().unwrap_or("-")).collect();
    assert_eq!(
        fields,
        [
            "writes[0].delete.id",
            "writes[1].put.document.id",
            "writes[2].put.document",
            "writes[3].patch.ttl",
            "writes[4].put.ifMatch",
            "-",
            "writes[6].patch.merge.id",
        ]
    );
    assert_eq!(items[0]["problem"]["limit"], 256);
}

#[tokio::test]
async fn a_patch_that_would_change_the_id_is_refused_as_a_put_is() {
    let world = World::new().await;
    assert_eq!(world.put("/v1/users/a", "{}").await.status, 201);
    for method in ["PUT", "PATCH"] {
        let reply = world.send(method, "/v1/users/a", &[], r#"{"id":"b"}"#).await;
        let problem = reply.json();
        assert_eq!((reply.status, &problem["outcome"]), (400, &json!("not-applied")), "{method}");
        assert_eq!(
            (&problem["type"], &problem["field"]),
            (&json!("urn:borough:problem:bad-id"), &json!("id")),
            "{method}"
        );
    }
    let ops = r#"{"ops":[{"collection":"users","patch":{"id":"b"}}]}"#;
    let reply = world.send("POST", "/v1/partitions/a:transact", &[], ops).await;
    assert_eq!((reply.status, reply.json()["field"].as_str()), (400, Some("ops[0].patch.id")), "{reply:?}");
}
