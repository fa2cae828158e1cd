//! Nodes that join, are drained and removed, as an operator would do it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use borough_proto::http_api::OperationStatus;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::field::Field;
use super::processes::{choose, launch};
use crate::http::Http;
use crate::wait::until;

const JOIN_LIMIT: Duration = Duration::from_secs(30);
const DRAIN_LIMIT: Duration = Duration::from_secs(90);
const END_LIMIT: Duration = Duration::from_secs(30);

/// A node joins; one of `awake` is drained and removed.
pub async fn replace_one(field: &Field<'_>, awake: &[usize], rng: &mut StdRng) -> anyhow::Result<Value> {
    let newcomer = field.with(|cluster| -> anyhow::Result<usize> {
        let node = cluster.another_node()?;
        cluster.nodes.push(node);
        Ok(cluster.nodes.len() - 1)
    })?;
    launch(field, newcomer).await?;
    let joined = field.name(newcomer);
    until(JOIN_LIMIT, "the newcomer to be up", || async {
        let id = identity(field, newcomer)?;
        let status = field.status().await?;
        let node = status.nodes.iter().find(|node| node.id == id).context("it is not in the status")?;
        ensure!(node.state == "up", "it is {}", node.state);
        Ok(())
    })
    .await?;
    let at = *choose(rng, awake, 1)?.first().context("no node")?;
    let (id, left) = (identity(field, at)?, field.name(at));
    let gave = until(JOIN_LIMIT, "the drain to begin", || async {
        let status = field.status().await?;
        let node = status.nodes.iter().find(|node| node.id == id).context("it is not in the status")?;
        let answer = router(field)?.post(&format!("/admin/v1/nodes/{id}:drain"), &json!({})).send().await?;
        ensure!(matches!(answer.status, 200 | 202), "{answer}");
        serde_json::from_slice::<OperationStatus>(&answer.body).with_context(|| answer.to_string())?;
        Ok(node.replicas)
    })
    .await?;
    remove(field, id).await?;
    Ok(json!({"joined": joined, "left": left, "gave": gave}))
}

fn identity(field: &Field<'_>, at: usize) -> anyhow::Result<u64> {
    field.with(|cluster| Ok(cluster.nodes.get(at).context("no such node")?.identity()?.node))
}

fn router(field: &Field<'_>) -> anyhow::Result<Http> {
    field.routers().into_iter().next().context("no router runs")
}

/// Waits until the node, which is drained, holds nothing, and takes it out for good.
async fn remove(field: &Field<'_>, id: u64) -> anyhow::Result<()> {
    until(DRAIN_LIMIT, "the drain to end", || async {
        let status = field.status().await?;
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
    until(JOIN_LIMIT, "the node to be removed", || async {
        let answer = router(field)?.post(&format!("/admin/v1/nodes/{id}:remove"), &json!({})).send().await?;
        let gone = field.status().await?.nodes.iter().all(|node| node.id != id || node.state == "removed");
        ensure!(answer.status == 204 || gone, "{answer}");
        Ok(())
    })
    .await?;
    let at = field.position(id)?;
    let pid = field.with(|cluster| -> anyhow::Result<_> {
        let node = cluster.nodes.get_mut(at).context("no such node")?;
        node.retired = true;
        Ok(node.pid())
    })?;
    let Some(pid) = pid else { return Ok(()) };
    until(END_LIMIT, "a removed node to end by itself", || async {
        let gone =
            field.with(|cluster| cluster.nodes.get_mut(at).context("no such node")?.look_ended(pid))?;
        ensure!(gone, "it still runs");
        Ok(())
    })
    .await
}

/// Ends what was cut short: a drain that was begun is waited for, and its node removed.
pub async fn finish(field: &Field<'_>) -> anyhow::Result<()> {
    let status = until(JOIN_LIMIT, "the status document", || field.status()).await?;
    // One that is being drained may look down, and one that is drained has no operation any more.
    let under_way = status.operations.iter().filter(|it| it.kind == "drain" && it.ended_ms.is_none());
    let draining = status.nodes.iter().filter(|node| node.state == "draining").map(|node| node.id);
    let draining: BTreeSet<u64> = draining.chain(under_way.filter_map(|it| it.node)).collect();
    for id in draining {
        remove(field, id).await?;
    }
    Ok(())
}
