//! The client crate through the router beside the same crate straight to the nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use borough::local_cluster::LocalCluster;
use borough_client::{Client, Collection};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Usage;

/// What is put on the cluster by each of the two.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub time: Duration,
    pub rounds: usize,
    pub callers: usize,
    pub keys: u64,
    pub value_bytes: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    text: String,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Get,
    Put,
}

/// Both ways in turns, and a line for each.
///
/// # Errors
/// When a call fails.
pub async fn run(cluster: &LocalCluster, load: Load) -> Result<()> {
    let router = Client::builder().router(cluster.router_url()).build()?;
    let nodes = cluster.nodes();
    let nodes = nodes.iter().map(|node| node.addr().to_string());
    let direct = Client::builder().direct(nodes).build()?;
    let ways = [("router", router), ("direct", direct)];
    for (_, client) in &ways {
        put_all(client, load).await?;
    }
    for kind in [Kind::Get, Kind::Put] {
        let mut rates = [Vec::new(), Vec::new()];
        for round in 1..=load.rounds {
            for ((way, client), rates) in ways.iter().zip(&mut rates) {
                let before = Usage::of(cluster)?;
                let (calls, elapsed, latency) = measure(client, load, kind).await?;
                let spent = Usage::of(cluster)?.since(&before);
                let rate = calls as f64 / elapsed.as_secs_f64();
                rates.push(rate);
                println!(
                    "{kind:?} {way} {round}: {rate:.0}/s, p50 {:.2} ms, p99 {:.2} ms, {:.1} µs of processor time in all servers",
                    latency.value_at_quantile(0.5) as f64 / 1e3,
                    latency.value_at_quantile(0.99) as f64 / 1e3,
                    (spent.nodes() + spent.router()) * 1e6 / calls.max(1) as f64,
                );
            }
        }
        let [router, direct] = rates.map(median);
        println!(
            "{kind:?}: medians {router:.0} and {direct:.0}/s, direct is {:.2} times the router",
            direct / router
        );
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn document(load: Load) -> Document {
    Document { text: "x".repeat(load.value_bytes.saturating_sub(r#"{"text":""}"#.len())) }
}

fn id(number: u64) -> String {
    format!("direct-{number}")
}

async fn put_all(client: &Client, load: Load) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..load.callers {
        let (users, next) = (client.collection::<Document>("users"), Arc::clone(&next));
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= load.keys {
                    return anyhow::Ok(());
                }
                users.put(id(number), &document(load)).await?;
            }
        });
    }
    callers.join_all().await.into_iter().collect()
}

/// Calls, how long they took together, and each of them in µs.
async fn measure(client: &Client, load: Load, kind: Kind) -> Result<(u64, Duration, Histogram<u64>)> {
    let (over, begin) = (Arc::new(AtomicBool::new(false)), Instant::now());
    let mut callers = JoinSet::new();
    for caller in 0..load.callers as u64 {
        let users = client.collection::<Document>("users");
        callers.spawn(call(users, load, kind, caller, Arc::clone(&over)));
    }
    tokio::time::sleep(load.time).await;
    over.store(true, Ordering::Relaxed);
    let mut latency = Histogram::new(3).context("make a histogram")?;
    for each in callers.join_all().await {
        latency.add(each?).context("add a histogram")?;
    }
    Ok((latency.len(), begin.elapsed(), latency))
}

async fn call(
    users: Collection<Document>,
    load: Load,
    kind: Kind,
    caller: u64,
    over: Arc<AtomicBool>,
) -> Result<Histogram<u64>> {
    let mut latency = Histogram::new(3).context("make a histogram")?;
    let document = document(load);
    // Each caller takes all keys, in an order of its own: the step has no factor in common with any power of ten.
    let mut number = caller * 7919;
    while !over.load(Ordering::Relaxed) {
        number = (number + 7_919) % load.keys.max(1);
        let sent = Instant::now();
        match kind {
            Kind::Get => {
                users.get(id(number)).await?.context("a document is missing")?;
            }
            Kind::Put => {
                users.put(id(number), &document).await?;
            }
        }
        let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        latency.record(micros).context("keep a latency")?;
    }
    Ok(latency)
}
