//! A rolling restart, seen by a client that knows two routers.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use borough_client::Client;
use futures::TryStreamExt as _;
use jepsen_tests::cluster::{Cluster, HEAL_LIMIT, Router};
use jepsen_tests::lister::verify;
use jepsen_tests::wait::until;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const CALLERS: u64 = 6;
const PACE: Duration = Duration::from_millis(20);
/// Calls between two restarts, so that each one falls into traffic.
const BETWEEN: u64 = 200;

pub async fn restart(cluster: &mut Cluster, count: usize) -> anyhow::Result<()> {
    let seeds: Vec<String> =
        cluster.nodes.iter().filter(|node| node.running()).map(|node| node.addr.clone()).collect();
    let mut second = Router::start(cluster.dir(), "router-2", &seeds).await?;
    let client = Client::builder().routers([cluster.http().base(), second.http.base()]).build()?;
    let stop = CancellationToken::new();
    let calls = Arc::new(AtomicU64::new(0));
    let tasks = TaskTracker::new();
    let failed = Arc::new(Mutex::new(Vec::new()));
    for caller in 0..CALLERS {
        let calling = call(client.clone(), caller, Arc::clone(&calls), stop.clone());
        let failed = Arc::clone(&failed);
        tasks.spawn(async move {
            if let Err(error) = calling.await {
                failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(format!("caller {caller}: {error:#}"));
            }
        });
    }
    let listing = list(client.clone(), count, stop.clone());
    let (passes, failing) = (Arc::new(AtomicU64::new(0)), Arc::clone(&failed));
    let passed = Arc::clone(&passes);
    tasks.spawn(async move {
        match listing.await {
            Ok(listings) => passed.store(listings, Ordering::Relaxed),
            Err(error) => {
                failing.lock().unwrap_or_else(PoisonError::into_inner).push(format!("a listing: {error:#}"));
            }
        }
    });
    let check = || {
        let failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(failed.is_empty(), "calls failed: {failed:?}");
        anyhow::Ok(())
    };
    let progress = async || {
        let from = calls.load(Ordering::Relaxed);
        until(HEAL_LIMIT, "calls to be answered", || async {
            let done = calls.load(Ordering::Relaxed) - from;
            // A call that has failed is told at once.
            ensure!(done >= BETWEEN || check().is_err(), "{done} so far");
            Ok(())
        })
        .await?;
        check()
    };
    progress().await?;
    let ids: Vec<u64> = cluster.members(super::STEP_LIMIT).await?;
    for id in &ids {
        let ended = cluster.node_mut(*id)?.terminate().await?;
        ensure!(ended.success(), "node {id}: {ended}");
        cluster.node_mut(*id)?.launch().await?;
        progress().await?;
        super::healthy(cluster).await?;
    }
    for router in [&mut cluster.router, &mut second] {
        let ended = router.terminate().await?;
        ensure!(ended.success(), "router: {ended}");
        router.reseed(&seeds);
        router.launch().await?;
        progress().await?;
    }
    cluster.wait_even(&ids, super::REST_LIMIT).await?;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    check()?;
    let passes = passes.load(Ordering::Relaxed);
    println!("        {} calls and {passes} whole listings, none failed", calls.load(Ordering::Relaxed));
    ensure!(passes > 0, "nothing was listed to its end");
    second.terminate().await?;
    verify(&cluster.http(), super::COLLECTION, count).await
}

/// Lists all documents again and again: how many times. Ends with the first one that is missing or there twice.
async fn list(client: Client, count: usize, stop: CancellationToken) -> anyhow::Result<u64> {
    let listed = client.collection::<serde_json::Value>(super::COLLECTION);
    let mut passes = 0;
    while !stop.is_cancelled() {
        let mut seen = HashSet::with_capacity(count);
        let mut items = listed.list().page_size(1000).stream();
        while let Some(item) = items.try_next().await? {
            let number = item.get("number").and_then(serde_json::Value::as_u64).context("number")?;
            ensure!(seen.insert(number), "document {number} is there twice");
        }
        ensure!(seen.len() == count, "{} of {count} documents", seen.len());
        passes += 1;
    }
    Ok(passes)
}

/// Writes and reads back, again and again; ends with the first failure.
async fn call(
    client: Client,
    caller: u64,
    calls: Arc<AtomicU64>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let users = client.collection::<serde_json::Value>("users");
    for number in 0_u64.. {
        if stop.is_cancelled() {
            break;
        }
        let id = format!("rolling-{caller}-{}", number % 50);
        let document = json!({"number": number});
        users.put(&id, &document).await.with_context(|| format!("put {id}"))?;
        let found = users.get(&id).await.with_context(|| format!("get {id}"))?.context("it is not there")?;
        ensure!(
            found.value.get("number") == document.get("number"),
            "{id}: {:?} after {number}",
            found.value
        );
        calls.fetch_add(2, Ordering::Relaxed);
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}
