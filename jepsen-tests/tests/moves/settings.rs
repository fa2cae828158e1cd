//! What the configuration says of moves, with real processes: zones, and a rebalance only when somebody asks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use borough_proto::http_api::RebalancePlan;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, Options};
use serde_json::json;

use super::{REST_LIMIT, STEP_LIMIT, ended, post};

/// The time for which nothing may happen: ten times the settling time.
const WATCHED: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_that_is_switched_off_waits_to_be_asked_and_keeps_zones_apart() -> anyhow::Result<()> {
    let env = [("BOROUGH_PLACEMENT__SETTLE", "200ms"), ("BOROUGH_PLACEMENT__REBALANCE", "false")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let zones = ["a", "b", "c"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(Options { env, zones, ..Options::default() }).await?;
    let http = cluster.http();
    for _ in 0..3 {
        cluster.add_node().await?;
    }
    let members = cluster.members(STEP_LIMIT).await?;
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        let status = cluster.status().await?;
        let unasked = status.operations.iter().find(|operation| operation.kind == "rebalance");
        ensure!(unasked.is_none(), "nobody asked for {unasked:?}");
        let moved = status.shards.iter().find(|shard| shard.replicas.iter().any(|&node| node > 3));
        ensure!(moved.is_none(), "{moved:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer = http.post("/admin/v1/rebalances?validateOnly=true", &json!({})).expect(200).await?;
    let plan: RebalancePlan = serde_json::from_slice(&answer.body)?;
    // Twelve replicas belong on the three new nodes, and none moves further than that.
    check_eq!(plan.moves.len(), 12, "{plan:?}");
    let rebalance = post(&http, "rebalances").await?;
    let done = ended(&cluster, &rebalance.id, "done").await?;
    // Told at once, although a shard's second move is recorded when its first is made.
    for told in [&rebalance, &done] {
        check_eq!((told.moves_total, told.bytes_total), (12, plan.bytes), "{told:?}");
    }
    check_eq!(done.moves_done, 12);
    let status = cluster.wait_even(&members, REST_LIMIT).await?;
    let zones: BTreeMap<u64, &str> = status.nodes.iter().map(|node| (node.id, node.zone.as_str())).collect();
    for shard in &status.shards {
        let zone = |node: &u64| zones.get(node).copied().context("a replica's node");
        let mut of_shard = shard.replicas.iter().map(zone).collect::<anyhow::Result<Vec<_>>>()?;
        of_shard.sort_unstable();
        check_eq!(of_shard, ["a", "b", "c"], "shard {}", shard.id);
    }

    // All at the same moment, and each alone could end: three of six nodes must stay.
    let drains = members.iter().map(|id| {
        let path = format!("/admin/v1/nodes/{id}:drain");
        let http = &http;
        async move { http.post(&path, &json!({})).send().await }
    });
    let answers = futures::future::try_join_all(drains).await?;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    check_eq!(statuses, [202, 202, 202, 409, 409, 409]);
    Ok(())
}
