//! Straight to the shards' leaders, without a router in between; the API is the same.
//!
//! `cargo run -p borough-client --features direct --example direct`, with nodes at `BOROUGH_NODES`
//! (`host:port`, separated by commas) or one on port 7070.

use std::time::Instant;

use borough_client::Client;
use futures::TryStreamExt as _;
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let nodes = std::env::var("BOROUGH_NODES").unwrap_or_else(|_| "127.0.0.1:7070".to_owned());
    let client = Client::builder().direct(nodes.split(',')).build()?;
    let users = client.collection::<Value>("users");

    users.put("dora", &json!({"name": "Dora"})).await?;
    let started = Instant::now();
    let dora = users.get("dora").await?;
    println!("{:?} in {:?}", dora.map(|dora| dora.into_value()), started.elapsed());

    let results = users.batch_write().put("d1", &json!({})).put("d2", &json!({})).await?;
    for result in results {
        let written = result?;
        println!("{}: version {}", written.id, written.etag);
    }
    let some: Vec<Value> = users.list().page_size(10).page().await?.items;
    println!("the first page has {} documents", some.len());
    let all = users.list().page_size(1000).try_fold(0_u64, |count, _| async move { Ok(count + 1) }).await?;
    println!("all in all {all}");
    for id in ["dora", "d1", "d2"] {
        users.delete(id).await?;
    }
    Ok(())
}
