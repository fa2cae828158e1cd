//! Every row of the REST contract through a real router and three nodes, refusals included: each has the right
//! problem and changes nothing.

#![expect(clippy::indexing_slicing, reason = "a field that JSON lacks is null, not a panic")]

mod admin;
mod batches;
mod collections;
mod documents;
mod freshness;
mod heads;
mod idempotency;
mod lists;
mod operations;
mod refusals;
mod sorted;
mod transact;

use jepsen_tests::cases::Cases;
use jepsen_tests::cluster::{Cluster, Options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rest_contract() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let http = cluster.http();
    let mut cases = Cases::new();
    documents::run(&mut cases, &http).await;
    refusals::run(&mut cases, &http).await;
    heads::run(&mut cases, &http).await;
    lists::run(&mut cases, &http).await;
    batches::run(&mut cases, &http).await;
    sorted::run(&mut cases, &http).await;
    transact::run(&mut cases, &http).await;
    idempotency::run(&mut cases, &http).await;
    freshness::run(&mut cases, &http).await;
    collections::run(&mut cases, &cluster).await;
    admin::run(&mut cases, &cluster).await;
    operations::run(&mut cases, &cluster).await;
    cases
        .run("every answer has a request id, a shard and a node, every error is a problem", async {
            let faults = http.faults();
            anyhow::ensure!(faults.is_empty(), "{}", faults.join("\n"));
            Ok(())
        })
        .await;
    if cases.failed() {
        println!("{}", cluster.logs(10));
    }
    cases.finish()
}
