//! Nodes that join, are drained and removed, as an operator would do it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use borough_proto::http_api::OperationStatus;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::director::{any_status, choose, position};
use crate::cluster::Cluster;
use crate::http::Http;
use crate::wait::until;

const JOIN_LIMIT: Duration = Duration::from_secs(30);
const DRAIN_LIMIT: Duration = Duration::from_secs(90);
const END_LIMIT: Duration = Duration::from_secs(30);

/// A node joins; one of `awake` is drained and removed.
pub async fn replace_one(cluster: &mut Cluster, awake: &[usize], rng: &mut StdRng) -> anyhow::Result<Value> {
    cluster.add_node().await?;
    let newcomer = cluster.nodes.last().context("no node")?;
    let joined = newcomer.name().to_owned();
    until(JOIN_LIMIT, "the newcomer to be up", || async {
        let id = newcomer.identity()?.node;
        let status = any_status(cluster).await?;
        let node = status.nodes.iter().find(|node| node.id == id).context("it is not in the status")?;
        ensure!(node.state == "up", "it is {}", node.state);
        Ok(())
    })
    .await?;
    let at = *choose(rng, awake, 1)?.first().context("no node")?;
    let leaver = cluster.nodes.get(at).context("no such node")?;
    let (id, left) = (leaver.identity()?.node, leaver.name().to_owned());
    let http = router(cluster)?;
    until(JOIN_LIMIT, "the drain to begin", || async {
        let answer = http.post(&format!("/admin/v1/nodes/{id}:drain"), &json!({})).send().await?;
        ensure!(matches!(answer.status, 200 | 202), "{answer}");
        serde_json::from_slice::<OperationStatus>(&answer.body).with_context(|| answer.to_string())
    })
    .await?;
    remove(cluster, id).await?;
    Ok(json!({"joined": joined, "left": left}))
}

fn router(cluster: &Cluster) -> anyhow::Result<Http> {
    let running = cluster.routers().find(|router| router.running());
    Ok(running.context("no router runs")?.http.clone())
}

/// Waits until the node, which is drained, holds nothing, and takes it out for good.
async fn remove(cluster: &mut Cluster, id: u64) -> anyhow::Result<()> {
    until(DRAIN_LIMIT, "the drain to end", || async {
        let status = any_status(cluster).await?;
        let node = status.nodes.iter().find(|node| node.id == id).context("it is not in the status")?;
        ensure!(node.replicas == 0, "it holds {} replicas", node.replicas);
        let under_way = |operation: &&OperationStatus| {
            operation.kind == "drain" && operation.node == Some(id) && operation.ended_ms.is_none()
        };
        let operation = status.operations.iter().find(under_way);
        ensure!(operation.is_none(), "{operation:?}");
        Ok(())
    })
    .await?;
    let http = router(cluster)?;
    until(JOIN_LIMIT, "the node to be removed", || async {
        let answer = http.post(&format!("/admin/v1/nodes/{id}:remove"), &json!({})).send().await?;
        let gone =
            any_status(cluster).await?.nodes.iter().all(|node| node.id != id || node.state == "removed");
        ensure!(answer.status == 204 || gone, "{answer}");
        Ok(())
    })
    .await?;
    let at = position(cluster, id)?;
    let node = cluster.nodes.get_mut(at).context("no such node")?;
    node.retired = true;
    if node.running() {
        node.wait_end(END_LIMIT).await.context("a removed node ends by itself")?;
    }
    Ok(())
}

/// Ends what was cut short: a drain that was begun is waited for, and its node removed.
pub async fn finish(cluster: &mut Cluster) -> anyhow::Result<()> {
    let status = until(JOIN_LIMIT, "the status document", || any_status(cluster)).await?;
    let draining: Vec<u64> =
        status.nodes.iter().filter(|node| node.state == "draining").map(|node| node.id).collect();
    for id in draining {
        remove(cluster, id).await?;
    }
    Ok(())
}
