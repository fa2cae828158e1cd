//! The same API straight to nodes: here nodes that keep their shards in memory and say no on demand.

use std::time::Duration;

use crate::node::{Nodes, Refuse};
use crate::support::{User, ann};
use borough_client::{Client, Error, Etag, Outcome};
use borough_proto::wire;
use futures::TryStreamExt as _;
use serde_json::{Value, json};

fn client(nodes: &Nodes) -> Client {
    Client::builder().direct(nodes.addrs()).deadline(Duration::from_secs(10)).build().unwrap()
}

#[tokio::test]
async fn documents_are_written_and_read() {
    let nodes = Nodes::start(8).await;
    let users = client(&nodes).collection::<User>("users");
    assert!(users.get("1").await.unwrap().is_none());
    let first = users.put("1", &ann()).ttl(Duration::from_secs(3600)).await.unwrap();
    assert!(first.created && first.expires.is_some());
    let doc = users.get("1").await.unwrap().unwrap();
    assert_eq!((doc.value.clone(), &doc.etag), (ann(), &first.etag));
    let second = users.put("1", &User { name: "Anna".into() }).if_match(&doc).await.unwrap();
    assert!(!second.created);
    let error = users.put("1", &ann()).if_match(&first).await.unwrap_err();
    assert!(
        matches!(&error, Error::PreconditionFailed { current: Some(etag), .. } if *etag == second.etag),
        "{error:?}"
    );
    assert_eq!((error.status(), error.outcome()), (Some(412), Outcome::NotApplied));
    assert!(matches!(users.put("1", &ann()).if_absent().await, Err(Error::AlreadyExists { .. })));
    assert!(users.delete("1").if_match(Etag::from("\"1\"")).await.is_err());
    assert!(users.delete("1").await.unwrap());
    assert!(!users.delete("1").await.unwrap());
    let created = users.create(&ann()).await.unwrap();
    assert_eq!(users.get(&created.id).await.unwrap().unwrap().value, ann());
}

#[tokio::test]
async fn patches_answer_the_whole_with_its_id() {
    let nodes = Nodes::start(1).await;
    let users = client(&nodes).collection::<Value>("users");
    assert!(matches!(users.patch("1", &json!({"a": 1})).await, Err(Error::NotFound(_))));
    users.put("1", &json!({"a": 1})).await.unwrap();
    let doc = users.patch("1", &json!({"b": 2})).await.unwrap();
    assert_eq!(*doc, json!({"id": "1", "a": 1, "b": 2}));
}

#[tokio::test]
async fn a_listing_crosses_the_shards_and_misses_nothing() {
    let nodes = Nodes::start(8).await;
    let users = client(&nodes).collection::<Value>("users");
    let mut expected = Vec::new();
    for id in 0..50 {
        users.put(format!("user-{id}"), &json!({})).await.unwrap();
        expected.push(format!("user-{id}"));
    }
    expected.sort();
    for size in [1, 7, 50, 1000] {
        let all: Vec<Value> = users.list().page_size(size).try_collect().await.unwrap();
        let mut ids: Vec<_> = all.iter().map(|user| user["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        assert_eq!(ids, expected, "pages of {size}");
    }
    let stored = users.list().stored().page_size(3).page().await.unwrap();
    assert_eq!(stored.items, vec![json!({}); 3]);
    assert!(matches!(users.list().page_token("?").page().await, Err(Error::Invalid(_))));
    assert!(matches!(users.list().page_size(1001).page().await, Err(Error::Invalid(_))));
}

#[tokio::test]
async fn a_partition_is_read_in_order() {
    let nodes = Nodes::start(4).await;
    let posts = client(&nodes).sorted::<Value>("posts");
    for sort in ["b", "a", "d", "c"] {
        posts.put("ann", sort, &json!({})).await.unwrap();
    }
    posts.put("ben", "x", &json!({})).await.unwrap();
    let sorts =
        |items: Vec<Value>| -> String { items.iter().map(|item| item["sort"].as_str().unwrap()).collect() };
    assert_eq!(sorts(posts.partition("ann").page_size(3).stream().try_collect().await.unwrap()), "abcd");
    let range = posts.partition("ann").range("b".."d").reverse().page_size(1).stream();
    assert_eq!(sorts(range.try_collect().await.unwrap()), "cb");
    let everything: Vec<Value> = posts.list().try_collect().await.unwrap();
    assert_eq!(everything.len(), 5);
}

#[tokio::test]
async fn batches_tell_the_result_of_each_item_over_all_shards() {
    let nodes = Nodes::start(8).await;
    let users = client(&nodes).collection::<User>("users");
    users.put("2", &ann()).await.unwrap();
    let written = users
        .batch_write()
        .put("1", &ann())
        .put("2", &ann())
        .if_absent()
        .delete("3")
        .put("4", &ann())
        .await
        .unwrap();
    assert!(written[0].as_ref().unwrap().created && written[3].as_ref().unwrap().created);
    assert!(matches!(&written[1], Err(Error::AlreadyExists { .. })));
    assert!(matches!(&written[2], Err(Error::NotFound(_))));
    let read = users.batch_get(["4", "3", "2", "1"]).await.unwrap();
    let there: Vec<_> =
        read.iter().map(|doc| doc.as_ref().unwrap().as_ref().map(|doc| doc.id.as_str())).collect();
    assert_eq!(there, [Some("4"), None, Some("2"), Some("1")]);
}

#[tokio::test]
async fn a_transaction_applies_all_or_nothing_and_names_what_failed() {
    let nodes = Nodes::start(4).await;
    let client = client(&nodes);
    let ann = client.partition("ann");
    let receipts = ann
        .transact()
        .put("users", &json!({}))
        .if_absent()
        .put(("posts", "1"), &json!({}))
        .commit()
        .await
        .unwrap();
    assert!(receipts.iter().all(|receipt| receipt.created));
    let failed = ann
        .transact()
        .put(("posts", "2"), &json!({}))
        .check("users")
        .if_match(Etag::from_version(999))
        .commit()
        .await;
    assert!(matches!(failed, Err(Error::PreconditionFailed { op: Some(1), .. })), "{failed:?}");
    assert!(client.sorted::<Value>("posts").get("ann", "2").await.unwrap().is_none());
    let failed = ann.transact().delete(("posts", "9")).commit().await;
    assert!(matches!(failed, Err(Error::PreconditionFailed { op: Some(0), .. })), "{failed:?}");
}

#[tokio::test]
async fn what_is_refused_says_so_as_a_router_would() {
    let nodes = Nodes::start(1).await;
    let client = client(&nodes);
    let error = client.raw("nope").get("1").await.unwrap_err();
    assert!(matches!(error, Error::CollectionNotFound(_)), "{error:?}");
    assert!(matches!(client.raw("posts").get("1").await, Err(Error::Invalid(_))), "a sort key is missing");
    let error = client.collection("users").put("1", &json!({"id": "2"})).await.unwrap_err();
    assert_eq!(error.status(), Some(400), "{error:?}");
    let error = client.collection("users").put("1", &json!([])).await.unwrap_err();
    assert_eq!(error.status(), Some(400), "{error:?}");
    let error = client.collection("strict").put("1", &json!({})).await.unwrap_err();
    assert_eq!(error.status(), Some(428), "{error:?}");
    client.collection("strict").put("1", &json!({})).if_absent().await.unwrap();
    assert!(matches!(client.admin().status().await, Err(Error::NeedsRouter { .. })));
}

#[tokio::test]
async fn faults_have_outcomes() {
    let nodes = Nodes::start(1).await;
    let users = client(&nodes).collection::<User>("users");
    nodes.refuse(Refuse::Always(wire::FaultCode::DiskFull));
    let error = users.put("1", &ann()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    nodes.refuse(Refuse::Always(wire::FaultCode::Internal));
    let error = users.put("1", &ann()).await.unwrap_err();
    assert!(matches!(error, Error::Unknown(_)), "{error:?}");
    assert_eq!((error.outcome(), error.idempotency_key()), (Outcome::Unknown, None));
}

#[tokio::test]
async fn a_resent_write_is_applied_once() {
    let nodes = Nodes::start(1).await;
    let users = client(&nodes).collection::<User>("users");
    users.put("0", &ann()).await.unwrap();
    let before = nodes.applied();
    nodes.refuse(Refuse::CutAfterApplyOnce);
    let written = users.put("1", &ann()).await.unwrap();
    assert!(written.created, "the first attempt's answer");
    assert_eq!(nodes.applied(), before + 1);
}

#[tokio::test]
async fn a_session_asks_for_what_it_saw_and_a_stale_read_for_its_age() {
    let nodes = Nodes::start(1).await;
    let client = client(&nodes);
    let session = client.session();
    session.collection("users").put("1", &ann()).await.unwrap();
    session.collection::<User>("users").get("1").await.unwrap();
    let index = nodes.last_freshness().unwrap().min_index;
    assert_eq!(index, Some(nodes.index()));
    client.collection::<User>("users").get("1").max_stale(Duration::from_millis(1500)).await.unwrap();
    assert_eq!(nodes.last_freshness().unwrap().max_stale_ms, Some(1500));
    client.collection::<User>("users").get("1").await.unwrap();
    assert_eq!(nodes.last_freshness(), None, "linearizable");
}

#[tokio::test]
async fn a_callers_key_holds_for_the_whole_request_whatever_shards_it_names() {
    let nodes = Nodes::start(8).await;
    let client = client(&nodes);
    let users = client.collection::<Value>("users");
    let create = async |name: &str| users.create(&json!({"name": name})).idempotency_key("k1").await;
    let first = create("ann").await.unwrap();
    assert_eq!(first.id.as_bytes()[14], b'7', "{} is no UUIDv7", first.id);
    let again = create("ann").await.unwrap();
    assert_eq!((&again.id, &again.etag), (&first.id, &first.etag));
    assert!(matches!(create("ben").await, Err(Error::IdempotencyKeyReused(_))));
    for (id, good) in [("a", true), ("b", false), ("a", true), ("c", false), ("d", false)] {
        let made = users.create(&json!({"id": id})).idempotency_key("k2").await;
        assert_eq!(made.is_ok(), good, "{id}: {made:?}");
    }
    for (ids, good) in [(["x", "y"], true), (["x", "y"], true), (["y", "x"], false), (["x", "z"], false)] {
        let batch = users.batch_write().put(ids[0], &json!({})).put(ids[1], &json!({}));
        let written = batch.idempotency_key("k3").await;
        assert_eq!(written.is_ok(), good, "{ids:?}: {written:?}");
    }
    assert!(users.get("z").await.unwrap().is_none());
    // Elsewhere the path names the target, and each has its own use of the key.
    for id in ["p", "q", "r"] {
        assert!(users.put(id, &json!({"of": id})).idempotency_key("k4").await.unwrap().created);
    }
}
