//! Tokens, rights and confinement, call by call: what is refused changes nothing and costs nobody's limit.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::{Reply, World};
use crate::config::{AuthConfig, Config, RateLimitConfig, TokenConfig};

const DOCUMENT: &str = "{\"n\":1}";

fn token(name: &str, rights: &[&str], collections: Option<&[&str]>) -> TokenConfig {
    let mut sha256 = String::new();
    for byte in Sha256::digest(format!("{name}-token")) {
        write!(sha256, "{byte:02x}").unwrap();
    }
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    TokenConfig { name: name.to_owned(), sha256, rights: owned(rights), collections: collections.map(owned) }
}

/// Tokens `reader-token`, `writer-token`, `both-token`, `admin-token`, and `shop-token`, which is confined to `users`.
fn config() -> Config {
    let tokens = vec![
        token("reader", &["read"], None),
        token("writer", &["write"], None),
        token("both", &["read", "write"], None),
        token("admin", &["admin"], None),
        token("shop", &["read", "write"], Some(&["users"])),
    ];
    Config { auth: AuthConfig { tokens }, ..Config::default() }
}

impl World {
    /// As the holder of the token `NAME-token`.
    async fn call(&self, name: &str, method: &str, path: &str, body: &'static str) -> Reply {
        self.send(method, path, &[("authorization", &format!("Bearer {name}-token"))], body).await
    }

    fn writes(&self) -> usize {
        self.node.store.lock().requests.len()
    }
}

const BATCH_GET: &str = r#"{"ids":["a"]}"#;
const BATCH_WRITE: &str = r#"{"writes":[{"put":{"id":"a","document":{}}}]}"#;
const TRANSACT: &str = r#"{"ops":[{"collection":"users","put":{}}]}"#;

/// (method, path, body, the right it needs)
const CALLS: &[(&str, &str, &str, &str)] = &[
    ("GET", "/v1/users", "", "read"),
    ("HEAD", "/v1/users", "", "read"),
    ("GET", "/v1/users/a", "", "read"),
    ("HEAD", "/v1/users/a", "", "read"),
    ("GET", "/v1/posts/a", "", "read"),
    ("GET", "/v1/posts/a/b", "", "read"),
    ("POST", "/v1/users:batchGet", BATCH_GET, "read"),
    ("POST", "/v1/users", DOCUMENT, "write"),
    ("PUT", "/v1/users/a", DOCUMENT, "write"),
    ("PATCH", "/v1/users/a", DOCUMENT, "write"),
    ("DELETE", "/v1/users/a", "", "write"),
    ("PUT", "/v1/posts/a/b", DOCUMENT, "write"),
    ("POST", "/v1/users:batchWrite", BATCH_WRITE, "write"),
    ("POST", "/v1/partitions/a:transact", TRANSACT, "write"),
    ("GET", "/admin/v1/cluster", "", "admin"),
    ("GET", "/admin/v1/collections", "", "admin"),
    ("GET", "/admin/v1/collections/users", "", "admin"),
    ("PUT", "/admin/v1/collections/made", "{}", "admin"),
    ("DELETE", "/admin/v1/collections/made", "", "admin"),
];

#[tokio::test]
async fn every_call_needs_its_right() {
    let world = World::with(config()).await;
    for &(method, path, body, right) in CALLS {
        for (name, rights) in
            [("reader", "read"), ("writer", "write"), ("both", "read write"), ("admin", "admin")]
        {
            let before = world.writes();
            let reply = world.call(name, method, path, body).await;
            let what = format!("{name}: {method} {path}: {reply:?}");
            if rights.split(' ').any(|one| one == right) {
                assert!(!matches!(reply.status, 401 | 403), "{what}");
                continue;
            }
            assert_eq!(reply.status, 403, "{what}");
            let challenge =
                format!("Bearer realm=\"borough\", error=\"insufficient_scope\", scope=\"{right}\"");
            assert_eq!(reply.header("www-authenticate"), challenge, "{what}");
            if method != "HEAD" {
                let problem = reply.json();
                assert_eq!(problem["type"], "urn:borough:problem:forbidden", "{what}");
                assert_eq!(problem["outcome"], "not-applied", "{what}");
            }
            assert_eq!(world.writes(), before, "{what}");
        }
    }
}

#[tokio::test]
async fn every_call_needs_a_good_token() {
    let world = World::with(config()).await;
    let (missing, invalid) =
        ("Bearer realm=\"borough\"", "Bearer realm=\"borough\", error=\"invalid_token\"");
    let table: &[(&[(&str, &str)], &str)] = &[
        (&[], missing),
        (&[("authorization", "Basic YTpi")], missing),
        (&[("authorization", "Bearer")], invalid),
        (&[("authorization", "Bearer a b")], invalid),
        (&[("authorization", "Bearer nobodys-token")], invalid),
        (&[("authorization", "Bearer both-token"), ("authorization", "Bearer both-token")], invalid),
    ];
    let unknown_paths =
        [("GET", "/v1/a/b/c/d", "", ""), ("GET", "/admin/v1/nope", "", ""), ("GET", "/", "", "")];
    for &(method, path, body, _) in CALLS.iter().chain(&unknown_paths) {
        for (headers, challenge) in table {
            let reply = world.send(method, path, headers, body).await;
            let what = format!("{headers:?}: {method} {path}: {reply:?}");
            assert_eq!((reply.status, reply.header("www-authenticate")), (401, *challenge), "{what}");
            if method != "HEAD" {
                let problem = reply.json();
                assert_eq!(problem["type"], "urn:borough:problem:unauthorized", "{what}");
                assert_eq!(problem["outcome"], "not-applied", "{what}");
                assert!(!what.contains("retry-after"), "{what}");
            }
        }
    }
    assert_eq!(world.writes(), 0);
    let reply = world.send("GET", "/v1/users/a", &[("authorization", "bearer  both-token")], "").await;
    assert_eq!(reply.status, 404, "the scheme has no case: {reply:?}");
}

#[tokio::test]
async fn a_confined_token_stays_in_its_collections() {
    let world = World::with(config()).await;
    assert_eq!(world.call("shop", "PUT", "/v1/users/a", DOCUMENT).await.status, 201);
    assert_eq!(world.call("shop", "GET", "/v1/%75sers/a", "").await.status, 200);
    let before = world.writes();
    for (method, path, body) in [
        ("GET", "/v1/posts", ""),
        ("GET", "/v1/posts/a/b", ""),
        ("GET", "/v1/%70osts/a/b", ""),
        ("GET", "/v1/nope/a", ""),
        ("PUT", "/v1/posts/a/b", DOCUMENT),
        ("POST", "/v1/posts:batchGet", BATCH_GET),
        ("POST", "/v1/posts:batchWrite", BATCH_WRITE),
        ("GET", "/admin/v1/collections/users", ""),
    ] {
        let reply = world.call("shop", method, path, body).await;
        assert_eq!(reply.status, 403, "{method} {path}: {reply:?}");
    }
    let mixed = r#"{"ops":[{"collection":"users","put":{}},{"collection":"posts","sort":"s","put":{}}]}"#;
    let reply = world.call("shop", "POST", "/v1/partitions/b:transact", mixed).await;
    assert_eq!((reply.status, reply.json()["op"].as_u64()), (403, Some(1)), "{reply:?}");
    assert_eq!(reply.json()["outcome"], "not-applied");
    let checks = r#"{"ops":[{"collection":"nope","check":true,"ifAbsent":true}]}"#;
    assert_eq!(world.call("shop", "POST", "/v1/partitions/b:transact", checks).await.status, 403);
    assert_eq!(world.node.store.lock().looks, 0, "the cluster was not asked for its collections");
    assert_eq!(world.writes(), before);
    assert_eq!(world.call("shop", "POST", "/v1/partitions/b:transact", TRANSACT).await.status, 200);
}

#[tokio::test]
async fn who_may_only_write_is_not_shown_what_was_there() {
    let world = World::with(config()).await;
    assert_eq!(world.call("both", "PUT", "/v1/users/a", DOCUMENT).await.status, 201);
    let reply = world.call("writer", "PATCH", "/v1/users/a", "{\"m\":2}").await;
    assert_eq!((reply.status, reply.body.len()), (200, 0), "{reply:?}");
    let seen = world.call("both", "PATCH", "/v1/users/a", "{}").await;
    assert_eq!((seen.json()["n"].as_u64(), seen.json()["m"].as_u64()), (Some(1), Some(2)));
    assert!(!reply.header("etag").is_empty() && reply.header("etag") != seen.header("etag"));
    assert_eq!(world.call("writer", "PUT", "/v1/users/a", DOCUMENT).await.json()["n"], 1, "its own document");
}

#[tokio::test]
async fn health_and_metrics_are_open_and_the_control_plane_is_closed_as_a_whole() {
    let world = World::with(config()).await;
    assert_eq!(world.get("/livez").await.status, 200);
    assert_eq!(world.call("reader", "GET", "/v1/users/a", "").await.status, 404);
    assert_eq!(world.get("/readyz").await.status, 200);
    assert_eq!(world.call("both", "GET", "/admin/v1/nope", "").await.status, 403);
    assert_eq!(world.call("admin", "GET", "/admin/v1/nope", "").await.status, 404);
    assert_eq!(world.get("/v1/users/a").await.status, 401);
    let page = world.get("/metrics").await;
    assert_eq!(page.status, 200);
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    for reason in ["missing", "malformed", "unknown", "right", "collection"] {
        let line = format!("borough_router_auth_refusals_total{{reason=\"{reason}\"}} ");
        assert!(page.contains(&line), "{page}");
    }
    assert!(!page.contains("reason=\"missing\"} 0\n"), "{page}");
}

#[tokio::test]
async fn the_limit_is_the_tokens_and_refusals_do_not_spend_it() {
    let rate_limit = RateLimitConfig { per_second: 1, burst: 2, trust_forwarded: false };
    let world = World::with(Config { rate_limit, ..config() }).await;
    for _ in 0..5 {
        assert_eq!(world.get("/v1/users/a").await.status, 401);
        assert_eq!(world.call("reader", "DELETE", "/v1/users/a", "").await.status, 403);
    }
    let reply = world.call("reader", "GET", "/v1/users/a", "").await;
    assert_eq!((reply.status, reply.header("ratelimit")), (404, "\"client\";r=1;t=1"), "{reply:?}");
    assert_eq!(world.call("reader", "GET", "/v1/users/a", "").await.status, 404);
    assert_eq!(world.call("reader", "GET", "/v1/users/a", "").await.status, 429);
    assert_eq!(world.call("both", "GET", "/v1/users/a", "").await.status, 404);
}

#[tokio::test]
async fn without_tokens_nobody_is_asked_for_one() {
    let world = World::new().await;
    for authorization in ["Bearer x", "Basic YTpi", "?"] {
        let reply = world.send("GET", "/v1/users/a", &[("authorization", authorization)], "").await;
        assert_eq!(reply.status, 404, "{reply:?}");
    }
    assert_eq!(world.get("/admin/v1/cluster").await.status, 200);
}
