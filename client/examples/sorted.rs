//! A sorted collection: the posts of a user lie together, in order, and change together with the user.
//!
//! `cargo run -p borough-client --example sorted`, with a router at `BOROUGH_ROUTER` or on port 8080.

use anyhow::Context as _;
use borough_client::http_api::CollectionOptions;
use borough_client::{Client, Error};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, Serialize, Deserialize)]
struct Post {
    title: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let router = std::env::var("BOROUGH_ROUTER").unwrap_or_else(|_| "http://127.0.0.1:8080".to_owned());
    let client = Client::builder().router(router).build()?;
    client
        .admin()
        .put_collection("posts", &CollectionOptions { sort_key: true, ..Default::default() })
        .await?;
    let posts = client.sorted::<Post>("posts");

    // All or nothing: three posts, and how many there are in the user's own document.
    let post = |title: &str| Post { title: title.to_owned() };
    client
        .partition("carla")
        .transact()
        .put(("posts", "2026-01-05"), &post("Snow"))
        .put(("posts", "2026-02-11"), &post("Thaw"))
        .put(("posts", "2026-03-20"), &post("Spring"))
        .put("users", &json!({"name": "Carla", "posts": 3}))
        .commit()
        .await?;

    let mut newest_first = posts.partition("carla").range("2026-02".."2026-12").reverse().stream();
    while let Some(post) = newest_first.try_next().await? {
        println!("{}", post.title);
    }

    // The check fails, so the post is not written either.
    let carla = client.raw("users").get("carla").await?.context("carla vanished")?;
    client.raw("users").patch("carla", &json!({"posts": 4})).await?;
    let late = client
        .partition("carla")
        .transact()
        .put(("posts", "2026-04-01"), &post("Never seen"))
        .check("users")
        .if_match(&carla)
        .commit()
        .await;
    match late {
        Err(Error::PreconditionFailed { op, .. }) => println!("not applied, because of operation {op:?}"),
        other => anyhow::bail!("expected a failed precondition, got {other:?}"),
    }
    println!("the late post: {:?}", posts.get("carla", "2026-04-01").await?.map(|post| post.into_value()));

    for sort in ["2026-01-05", "2026-02-11", "2026-03-20"] {
        posts.delete("carla", sort).await?;
    }
    client.raw("users").delete("carla").await?;
    Ok(())
}
