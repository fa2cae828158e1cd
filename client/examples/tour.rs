//! Documents from first to last: write, read, compare-and-set, patch, expire, batch, list.
//!
//! `cargo run -p borough-client --example tour`, with a router at `BOROUGH_ROUTER` or on port 8080.

use std::time::Duration;

use anyhow::Context as _;
use borough_client::{Client, Error};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, Serialize, Deserialize)]
struct User {
    name: String,
    visits: u32,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let router = std::env::var("BOROUGH_ROUTER").unwrap_or_else(|_| "http://127.0.0.1:8080".to_owned());
    let client = Client::builder().router(router).deadline(Duration::from_secs(3)).build()?;
    let users = client.collection::<User>("users");

    let ann = users.put("ann", &User { name: "Ann".into(), visits: 0 }).await?;
    println!("put ann: version {}, created: {}", ann.etag, ann.created);

    // Compare-and-set: whoever writes with an old version is told, and reads again.
    loop {
        let mut ann = users.get("ann").await?.context("ann vanished")?;
        ann.visits += 1;
        match users.put("ann", &ann).if_match(&ann).await {
            Ok(written) => break println!("ann was here {} times: version {}", ann.visits, written.etag),
            Err(Error::PreconditionFailed { current, .. }) => println!("somebody was faster: {current:?}"),
            Err(error) => return Err(error.into()),
        }
    }
    let stale = users.put("ann", &User { name: "?".into(), visits: 0 }).if_match(&ann).await;
    println!("with the first version: {}", stale.err().context("an old version was taken")?);

    let patched = users.patch("ann", &json!({"name": "Ann-Marie"})).await?;
    println!("patched: {:?}", patched.value);

    let guest = users.create(&User { name: "Guest".into(), visits: 1 }).ttl(Duration::from_secs(60)).await?;
    println!("created {} until {:?}", guest.id, guest.expires);

    // A session reads its own writes from any replica.
    let session = client.session();
    session.collection("users").put("ben", &User { name: "Ben".into(), visits: 0 }).await?;
    let ben = session.collection::<User>("users").get("ben").await?;
    println!("ben, from whichever replica: {:?}", ben.map(|ben| ben.into_value()));

    for (id, user) in ["ann", "ben", "nobody"].iter().zip(users.batch_get(["ann", "ben", "nobody"]).await?) {
        println!("{id}: {:?}", user?.map(|user| user.into_value().name));
    }
    let mut listing = users.list().page_size(2);
    while let Some(user) = listing.try_next().await? {
        println!("listed: {}", user.name);
    }
    for id in ["ann", "ben", guest.id.as_str()] {
        println!("deleted {id}: {}", users.delete(id).await?);
    }
    Ok(())
}
