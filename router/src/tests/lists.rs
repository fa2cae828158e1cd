//! Listings.

use std::collections::BTreeSet;

use super::World;

/// All ids of a listing, page by page; each page but the last must have a token.
async fn walk(world: &World, path: &str, field: &str) -> Vec<String> {
    let (mut ids, mut token) = (Vec::new(), String::new());
    loop {
        let sep = if path.contains('?') { '&' } else { '?' };
        let page = world.get(&format!("{path}{sep}pageToken={token}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        let page = page.json();
        ids.extend(
            page["items"].as_array().unwrap().iter().map(|item| item[field].as_str().unwrap().to_owned()),
        );
        match page["nextPageToken"].as_str() {
            Some(next) => token = next.to_owned(),
            None => return ids,
        }
    }
}

#[tokio::test]
async fn a_collection_is_listed_completely_whatever_the_page_size() {
    let world = World::new().await;
    assert_eq!(world.get("/v1/users").await.body, "{\"items\":[]}");
    let ids: BTreeSet<String> = (0..57).map(|n| format!("user-{n}")).collect();
    for id in &ids {
        world.put(&format!("/v1/users/{id}"), "{}").await;
    }
    for size in [1, 2, 7, 56, 57, 58, 1000] {
        let listed = walk(&world, &format!("/v1/users?pageSize={size}"), "id").await;
        assert_eq!(listed.len(), ids.len(), "page size {size}");
        assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), ids, "page size {size}");
    }
}

#[tokio::test]
async fn a_sparse_collection_needs_one_page() {
    let world = World::new().await;
    world.put("/v1/users/only", "{}").await;
    let page = world.get("/v1/users").await;
    assert_eq!(page.body, "{\"items\":[{\"id\":\"only\"}]}");
    assert_eq!(page.header("borough-shard"), "0,1,2,3");
}

#[tokio::test]
async fn a_partition_is_listed_in_order_within_bounds() {
    let world = World::new().await;
    for sort in ["a", "b", "c", "d"] {
        world.put(&format!("/v1/posts/u/{sort}"), "{\"id\":\"own\"}").await;
    }
    world.put("/v1/posts/other/z", "{}").await;
    assert_eq!(walk(&world, "/v1/posts/u?pageSize=3", "sort").await, ["a", "b", "c", "d"]);
    assert_eq!(walk(&world, "/v1/posts/u?pageSize=1&reverse=true", "sort").await, ["d", "c", "b", "a"]);
    assert_eq!(walk(&world, "/v1/posts/u?start=b&end=d", "sort").await, ["b", "c"]);
    assert_eq!(walk(&world, "/v1/posts?pageSize=2", "sort").await.len(), 5);
    assert_eq!(
        world.get("/v1/posts/u?view=stored&keys=true&pageSize=1").await.json()["items"][0],
        serde_json::json!({"id": "u", "sort": "a", "document": {"id": "own"}})
    );
    assert_eq!(world.get("/v1/posts?keys=yes").await.status, 400);
    assert_eq!(
        world.get("/v1/posts/u?view=stored&pageSize=1").await.json()["items"][0],
        serde_json::json!({"id": "own"})
    );
}

#[tokio::test]
async fn a_token_belongs_to_its_listing() {
    let world = World::new().await;
    for sort in ["a", "b"] {
        world.put(&format!("/v1/posts/u/{sort}"), "{}").await;
    }
    let page = world.get("/v1/posts/u?pageSize=1").await.json();
    let token = page["nextPageToken"].as_str().unwrap();
    assert_eq!(world.get(&format!("/v1/posts/u?pageSize=2&pageToken={token}")).await.status, 200);
    for path in
        ["/v1/posts/v?", "/v1/posts/u?reverse=true&", "/v1/posts/u?start=a&", "/v1/posts?", "/v1/users?"]
    {
        let reply = world.get(&format!("{path}pageToken={token}")).await;
        assert_eq!(
            (reply.status, reply.json()["type"].as_str()),
            (400, Some("urn:borough:problem:bad-page-token")),
            "{path}"
        );
    }
    assert_eq!(world.get("/v1/users?pageToken=junk").await.status, 400);
}
