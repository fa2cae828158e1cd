//! The API's description against what is served.

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use super::World;
use crate::serve::service;

const METHODS: [&str; 6] = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"];

#[tokio::test]
async fn every_described_path_serves_exactly_the_methods_described() {
    let world = World::new().await;
    let send = async |method: &str, path: &str| {
        let request =
            Request::builder().method(method).uri(path).header("host", "x").body(Body::from("{}")).unwrap();
        service(&world.app).oneshot(request).await.unwrap()
    };
    let description = send("GET", "/openapi.json").await.into_body().collect().await.unwrap().to_bytes();
    let description: Value = serde_json::from_slice(&description).unwrap();
    let mut operations = 0;
    for (path, item) in description["paths"].as_object().unwrap() {
        let collection = if path.contains("{sort}") { "posts" } else { "users" };
        let path = path.replace("{collection}", collection).replace("{name}", "spare");
        // Operations and nodes are numbers.
        let id = if path.starts_with("/admin") { "7" } else { "a" };
        let path = path.replace("{id}", id).replace("{sort}", "s");
        let described = |method: &str| {
            let method = if method == "HEAD" { "GET" } else { method };
            item.get(method.to_lowercase()).is_some()
        };
        for method in METHODS {
            let response = send(method, &path).await;
            assert_eq!(response.status() != 405, described(method), "{method} {path}: {}", response.status());
            if item["get"]["responses"].get("303").is_some() && method == "GET" {
                assert_eq!(response.status(), 303, "{path}");
                assert!(response.headers().contains_key("location"));
            }
            if let Some(allowed) = response.headers().get("allow") {
                let mut allowed: Vec<_> = allowed.to_str().unwrap().split(", ").collect();
                let mut expected: Vec<_> = METHODS.into_iter().filter(|method| described(method)).collect();
                allowed.sort_unstable();
                expected.sort_unstable();
                assert_eq!(allowed, expected, "{path}");
            }
            operations += usize::from(described(method) && method != "HEAD");
        }
    }
    assert!(operations >= 32, "only {operations}");
}
