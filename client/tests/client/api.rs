//! What each call sends, and what it makes of the answer.

use std::time::{Duration, UNIX_EPOCH};

use crate::support::{ANN, Scripted, User, ann, ok, problem, problem_with, with};
use borough_client::{Client, Doc, Error, Etag, Json, Outcome, Problem, ProblemType};
use borough_proto::ShardId;
use borough_proto::session::Session as Seen;
use futures::TryStreamExt as _;
use serde_json::json;

fn token(seen: &[(u32, u64)]) -> String {
    let mut session = Seen::default();
    for (shard, index) in seen {
        session.observe(ShardId(*shard), *index);
    }
    session.encode()
}

#[tokio::test]
async fn get_reads_the_document_and_what_is_said_about_it() {
    let headers = [
        ("etag", "\"1f\""),
        ("cache-status", "borough; hit"),
        ("borough-expires", "2023-11-14T22:13:20.123Z"),
    ];
    let router = Scripted::start([with(200, &headers, ANN)]).await;
    let doc: Doc<User> = router.client().collection("users").get("a/b").await.unwrap().unwrap();
    assert_eq!(doc.name, "Ann");
    assert_eq!((doc.id.as_str(), doc.version(), doc.cache_hit), ("a/b", Some(0x1f), Some(true)));
    assert_eq!(doc.expires, Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)));
    let request = router.only();
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/v1/users/a%2Fb"));
    assert_eq!(request.header("cache-control"), None, "linearizable unless asked otherwise");
}

#[tokio::test]
async fn no_document_is_none_and_no_collection_is_an_error() {
    let router = Scripted::start([
        problem(ProblemType::DocumentNotFound, Outcome::NotApplied),
        problem(ProblemType::CollectionNotFound, Outcome::NotApplied),
    ])
    .await;
    let users = router.client().collection::<User>("users");
    assert!(users.get("1").await.unwrap().is_none());
    assert!(matches!(users.get("1").await, Err(Error::CollectionNotFound(_))));
}

#[tokio::test]
async fn a_stale_read_says_how_stale() {
    let router = Scripted::start([ok(200, "\"1\"", ANN)]).await;
    router
        .client()
        .collection::<User>("users")
        .get("1")
        .max_stale(Duration::from_millis(5900))
        .await
        .unwrap();
    assert_eq!(router.only().header("cache-control"), Some("max-stale=5"));
}

#[tokio::test]
async fn put_carries_its_options() {
    let router = Scripted::start([
        ok(201, "\"1\"", ""),
        ok(200, "\"2\"", ""),
        problem_with(ProblemType::PreconditionFailed, Outcome::NotApplied, &[("etag", "\"9\"")]),
        problem_with(ProblemType::PreconditionFailed, Outcome::NotApplied, &[("etag", "\"9\"")]),
    ])
    .await;
    let users = router.client().collection::<User>("users");
    let first = users.put("1", &ann()).if_absent().ttl(Duration::from_millis(1500)).await.unwrap();
    let second = users.put("1", &ann()).if_match(&first).await.unwrap();
    assert!(first.created && !second.created);
    let error = users.put("1", &ann()).if_match(&first.etag).await.unwrap_err();
    let nine = Etag::from_version(9);
    assert!(
        matches!(&error, Error::PreconditionFailed { current: Some(etag), .. } if *etag == nine),
        "{error:?}"
    );
    let error = users.put("1", &ann()).if_absent().await.unwrap_err();
    assert!(matches!(&error, Error::AlreadyExists { current: Some(etag), .. } if *etag == nine), "{error:?}");

    let seen = router.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("PUT", "/v1/users/1?ttl=1.500s"));
    assert_eq!((seen[0].header("if-none-match"), seen[0].header("if-match")), (Some("*"), None));
    assert_eq!((seen[1].header("if-none-match"), seen[1].header("if-match")), (None, Some("\"1\"")));
    assert_eq!(seen[0].header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn create_learns_the_id() {
    let router = Scripted::start([
        with(201, &[("etag", "\"1\""), ("location", "/v1/users/0190%2F7")], ""),
        problem(ProblemType::AlreadyExists, Outcome::NotApplied),
        ok(201, "\"1\"", ""),
    ])
    .await;
    let users = router.client().collection::<User>("users");
    assert_eq!(users.create(&ann()).await.unwrap().id, "0190/7");
    assert!(matches!(users.create(&ann()).await, Err(Error::AlreadyExists { .. })));
    assert_eq!(users.create(&ann()).id("7").await.unwrap().id, "7");
    let seen = router.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("POST", "/v1/users"));
    assert_eq!((seen[2].method.as_str(), seen[2].target.as_str()), ("PUT", "/v1/users/7"));
    assert_eq!(seen[2].header("if-none-match"), Some("*"));
}

#[tokio::test]
async fn patch_answers_the_whole_and_delete_whether_there_was_one() {
    let router = Scripted::start([
        ok(200, "\"2\"", ANN),
        problem(ProblemType::DocumentNotFound, Outcome::NotApplied),
        with(204, &[], ""),
        problem(ProblemType::DocumentNotFound, Outcome::NotApplied),
    ])
    .await;
    let users = router.client().collection::<User>("users");
    let doc = users.patch("1", &json!({"name": "Ann"})).if_present().await.unwrap();
    assert_eq!(doc.value, ann());
    assert!(matches!(users.patch("1", &json!({})).await, Err(Error::NotFound(_))));
    assert!(users.delete("1").await.unwrap());
    assert!(!users.delete("1").await.unwrap());
    let seen = router.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].header("if-match")), ("PATCH", Some("*")));
    assert_eq!(seen[0].header("content-type"), Some("application/merge-patch+json"));
    assert_eq!(seen[2].method, "DELETE");
}

#[tokio::test]
async fn an_answer_that_does_not_fit_the_type_tells_that_the_patch_was_applied() {
    let router = Scripted::start([ok(200, "\"2\"", "{\"id\":\"1\"}")]).await;
    let error = router.client().collection::<User>("users").patch("1", &json!({})).await.unwrap_err();
    assert!(matches!(error, Error::Decode { outcome: Outcome::Applied, .. }), "{error:?}");
}

#[tokio::test]
async fn raw_documents_keep_their_bytes() {
    let bytes = r#"{ "b": 1.50,  "a": "\u00e4" }"#;
    let router = Scripted::start([ok(200, "\"1\"", bytes), ok(200, "\"2\"", "")]).await;
    let users = router.client().raw("users");
    let doc = users.get("1").await.unwrap().unwrap();
    assert_eq!(doc.get(), bytes);
    users.put("1", &doc).await.unwrap();
    assert_eq!(router.seen()[1].text(), bytes);
}

#[tokio::test]
async fn what_could_not_be_sent_as_meant_is_not_sent() {
    let router = Scripted::start([]).await;
    let client = router.client();
    for id in ["", "..", ".", &"x".repeat(257)] {
        let error = client.collection("users").put(id, &ann()).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{id}: {error:?}");
    }
    assert!(matches!(client.raw("Users/../x").get("1").await, Err(Error::Invalid(_))));
    assert!(matches!(
        client.raw("users").batch_get((0..101).map(|id| id.to_string())).await,
        Err(Error::Invalid(_))
    ));
    let not_an_object_key = std::collections::HashMap::from([((1, 2), 3)]);
    let error = client.collection("users").put("1", &not_an_object_key).await.unwrap_err();
    assert!(matches!(error, Error::Encode { .. }), "{error:?}");
    assert!(router.seen().is_empty());
}

#[tokio::test]
async fn a_listing_reads_page_after_page() {
    let router = Scripted::start([
        with(200, &[], r#"{"items":[{"name":"A"},{"name":"B"}],"nextPageToken":"t+1"}"#),
        with(200, &[], r#"{"items":[],"nextPageToken":"t2"}"#),
        problem(ProblemType::Unavailable, Outcome::NotApplied),
        with(200, &[], r#"{"items":[{"name":"C"}]}"#),
    ])
    .await;
    let users = router.client().collection::<User>("users").list().page_size(2);
    let names: Vec<_> = users.map_ok(|user| user.name).try_collect().await.unwrap();
    assert_eq!(names, ["A", "B", "C"]);
    let targets: Vec<_> = router.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets[0], "/v1/users?pageSize=2");
    assert_eq!(targets[1], "/v1/users?pageToken=t%2B1&pageSize=2");
    assert_eq!(targets[2], targets[3]);
    assert_eq!(targets[3], "/v1/users?pageToken=t2&pageSize=2");
}

#[tokio::test]
async fn a_document_of_another_type_does_not_end_a_listing_and_a_failed_page_does() {
    let router = Scripted::start([
        with(200, &[], r#"{"items":[{"x":1},{"name":"B"}],"nextPageToken":"t"}"#),
        problem(ProblemType::BadPageToken, Outcome::NotApplied),
    ])
    .await;
    let mut users = router.client().collection::<User>("users").list().stream();
    assert!(matches!(users.try_next().await, Err(Error::Decode { .. })));
    assert_eq!(users.try_next().await.unwrap().unwrap().name, "B");
    assert!(matches!(users.try_next().await, Err(Error::Invalid(_))));
    assert!(users.try_next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_partition_is_read_by_range() {
    let router = Scripted::start([
        with(200, &[], r#"{"items":[]}"#),
        with(200, &[], r#"{"items":[{"name":"B"}],"nextPageToken":"t"}"#),
    ])
    .await;
    let posts = router.client().sorted::<User>("posts");
    let none: Vec<User> =
        posts.partition("a").range("2026".."2027/ä").reverse().stream().try_collect().await.unwrap();
    assert!(none.is_empty());
    let page = posts.partition("a").range("x"..="y").stored().page_token("p").page().await.unwrap();
    assert_eq!((page.items.len(), page.next.as_deref()), (1, Some("t")));
    let seen = router.seen();
    assert_eq!(seen[0].target, "/v1/posts/a?start=2026&end=2027%2F%C3%A4&reverse=true");
    assert_eq!(seen[1].target, "/v1/posts/a?start=x&end=y%00&pageToken=p&view=stored");
}

#[tokio::test]
async fn batches_tell_the_result_of_each_item() {
    let missing = Problem::new(ProblemType::DocumentNotFound, "");
    let exists = Problem::new(ProblemType::PreconditionFailed, "");
    let busy = Problem::new(ProblemType::Unavailable, "");
    let read = json!({"items": [
        {"id": "1", "status": 200, "etag": "\"1\"", "document": {"name": "Ann"}},
        {"id": "2", "status": 404, "problem": missing},
        {"id": "3", "status": 404},
        {"id": "4", "status": 503, "problem": busy},
    ]});
    let write = json!({"items": [
        {"id": "1", "status": 201, "etag": "\"2\""},
        {"id": "2", "status": 412, "problem": exists},
        {"id": "3", "status": 404, "problem": missing},
    ]});
    let router =
        Scripted::start([with(200, &[], &read.to_string()), with(200, &[], &write.to_string())]).await;
    let users = router.client().collection::<User>("users");
    let read = users.batch_get(["1", "2", "3", "4"]).await.unwrap();
    assert_eq!(read[0].as_ref().unwrap().as_ref().unwrap().name, "Ann");
    assert!(matches!((&read[1], &read[2]), (Ok(None), Ok(None))));
    assert!(matches!(&read[3], Err(Error::Unavailable { .. })));
    let written =
        users.batch_write().put("1", &ann()).put("2", &ann()).if_absent().delete("3").await.unwrap();
    assert!(written[0].as_ref().unwrap().created);
    assert!(matches!(&written[1], Err(Error::AlreadyExists { .. })));
    assert!(matches!(&written[2], Err(Error::NotFound(_))));
    let seen = router.seen();
    assert_eq!(seen[0].target, "/v1/users:batchGet");
    assert_eq!(seen[0].text(), r#"{"ids":["1","2","3","4"]}"#);
    assert_eq!(seen[0].header("idempotency-key"), None);
    assert_eq!(seen[1].target, "/v1/users:batchWrite");
    seen[1].key();
    assert_eq!(
        seen[1].text(),
        r#"{"writes":[{"put":{"id":"1","document":{"name":"Ann"}}},{"put":{"id":"2","document":{"name":"Ann"},"ifAbsent":true}},{"delete":{"id":"3"}}]}"#
    );
}

#[tokio::test]
async fn a_transaction_is_sent_whole_and_names_what_failed() {
    let failed = Problem { op: Some(1), ..Problem::new(ProblemType::PreconditionFailed, "") };
    let done = json!({"items": [
        {"id": "ann", "sort": "s", "status": 201, "etag": "\"2\""},
        {"id": "ann", "status": 200, "etag": "\"2\""},
    ]});
    let router = Scripted::start([
        with(200, &[], &done.to_string()),
        with(412, &[], &serde_json::to_string(&failed).unwrap()),
    ])
    .await;
    let transact = || {
        let partition = router.client().partition("ann");
        partition.transact().put(("posts", "s"), &ann()).if_absent().check("users").if_match("\"1\"")
    };
    let receipts = transact().commit().await.unwrap();
    assert!(receipts[0].created && receipts[0].sort.as_deref() == Some("s"));
    let error = transact().commit().await.unwrap_err();
    assert!(matches!(error, Error::PreconditionFailed { op: Some(1), .. }), "{error:?}");
    let seen = router.seen();
    assert_eq!(seen[0].target, "/v1/partitions/ann:transact");
    assert_eq!(
        seen[0].text(),
        r#"{"ops":[{"collection":"posts","sort":"s","put":{"name":"Ann"},"ifAbsent":true},{"collection":"users","check":true,"ifMatch":"\"1\""}]}"#
    );
    assert_ne!(seen[0].key(), seen[1].key());
}

#[tokio::test]
async fn a_session_carries_all_that_it_saw() {
    let answer = |seen: &[(u32, u64)], body: &str| {
        with(200, &[("etag", "\"1\""), ("borough-session", &token(seen))], body)
    };
    let not_there = problem_with(
        ProblemType::DocumentNotFound,
        Outcome::NotApplied,
        &[("borough-session", &token(&[(2, 8)])), ("borough-shard", "2")],
    );
    let router = Scripted::start([
        answer(&[(1, 5)], ""),
        answer(&[(2, 7)], ANN),
        not_there,
        answer(&[(1, 5), (2, 8)], ANN),
        answer(&[], ANN),
        answer(&[], ANN),
    ])
    .await;
    let client = router.client();
    let session = client.session();
    assert_eq!(session.token(), None);
    session.collection("users").put("1", &ann()).await.unwrap();
    session.collection::<User>("users").get("2").await.unwrap();
    session.collection::<User>("users").get("3").await.unwrap();
    session.collection::<User>("users").get("1").await.unwrap();
    let resumed = client.resume(&session.token().unwrap()).unwrap();
    resumed.collection::<User>("users").get("1").await.unwrap();
    client.collection::<User>("users").get("1").await.unwrap();
    let seen = router.seen();
    let sent: Vec<_> = seen.iter().map(|seen| seen.header("borough-session").map(str::to_owned)).collect();
    let all = Some(token(&[(1, 5), (2, 8)]));
    assert_eq!(
        sent,
        [None, Some(token(&[(1, 5)])), Some(token(&[(1, 5), (2, 7)])), all.clone(), all, None],
        "a client outside the session sends no token"
    );
    assert!(client.resume("?").is_err());
}

#[tokio::test]
async fn the_token_is_sent_and_not_shown() {
    let router = Scripted::start([ok(200, "\"1\"", ANN)]).await;
    let client = Client::builder().router(router.url()).bearer_token("s3cret").build().unwrap();
    client.collection::<User>("users").get("1").await.unwrap();
    assert_eq!(router.only().header("authorization"), Some("Bearer s3cret"));
    assert!(!format!("{client:?}").contains("s3cret"));
    let error = client.raw("users").get("1").await.unwrap_err();
    assert!(!format!("{error:?}").contains("s3cret"));
}

#[tokio::test]
async fn a_token_that_is_bad_or_lacks_the_right_is_an_error_of_its_own_and_not_sent_again() {
    let not_applied = |kind| problem(kind, Outcome::NotApplied);
    for (kind, status) in [(ProblemType::Unauthorized, 401), (ProblemType::Forbidden, 403)] {
        let router = Scripted::start([not_applied(kind)]).await;
        let error = router.client().collection("users").put("1", &ann()).await.unwrap_err();
        match (&error, status) {
            (Error::Unauthorized(_), 401) | (Error::Forbidden(_), 403) => {}
            _ => panic!("{error:?}"),
        }
        assert_eq!((error.status(), error.outcome()), (Some(status), Outcome::NotApplied));
        assert!(!error.is_retryable() && error.retry_after().is_none());
        router.only();
    }
}

#[tokio::test]
async fn collections_are_administered() {
    let posts = r#"{"name":"posts","sortKey":true,"defaultTtl":null,"requirePreconditions":false}"#;
    let router = Scripted::start([
        with(201, &[], posts),
        with(200, &[], posts),
        problem(ProblemType::CollectionNotFound, Outcome::NotApplied),
        with(200, &[], &format!("{{\"items\":[{posts}]}}")),
        with(204, &[], ""),
        problem(ProblemType::CollectionNotFound, Outcome::NotApplied),
        with(
            200,
            &[],
            r#"{"clusterId":"c","epoch":4,"replicationFactor":3,"nodes":[],"shards":[],"operations":[]}"#,
        ),
    ])
    .await;
    let admin = router.client().admin();
    let options = borough_client::http_api::CollectionOptions { sort_key: true, ..Default::default() };
    assert!(admin.put_collection("posts", &options).await.unwrap().sort_key);
    assert_eq!(admin.collection("posts").await.unwrap().unwrap().name, "posts");
    assert!(admin.collection("nope").await.unwrap().is_none());
    assert_eq!(admin.collections().await.unwrap().len(), 1);
    assert!(admin.delete_collection("posts").await.unwrap());
    assert!(!admin.delete_collection("posts").await.unwrap());
    assert_eq!(admin.status().await.unwrap().epoch, 4);
    let seen = router.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("PUT", "/admin/v1/collections/posts"));
    assert_eq!(seen[0].text(), r#"{"sortKey":true,"defaultTtl":null,"requirePreconditions":false}"#);
    assert_eq!(seen[6].target, "/admin/v1/cluster");
}

#[tokio::test]
async fn an_answer_of_something_else_is_no_answer_of_boroughs() {
    let router = Scripted::start([with(404, &[], "<html>nginx</html>"), with(200, &[], "hello")]).await;
    let users = router.client().collection::<Json>("users");
    let error = users.list().page().await.unwrap_err();
    assert!(error.to_string().contains("nginx"), "{error}");
    assert!(matches!(users.list().page().await, Err(Error::Decode { .. })));
}
