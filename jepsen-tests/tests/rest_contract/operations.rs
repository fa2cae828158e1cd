//! The control plane's changing side, on a cluster that has nothing to move: plans, operations, nodes.

use anyhow::{Context as _, ensure};
use borough_proto::error::ProblemType as P;
use borough_proto::http_api::{OperationList, RebalancePlan};
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, HEAL_LIMIT};
use jepsen_tests::http::{Http, Method};
use jepsen_tests::wait::until;
use serde_json::json;

pub async fn run(cases: &mut Cases, cluster: &Cluster) {
    let http = &cluster.http();
    cases.run("a plan tells what each node holds, and does nothing", plan(cluster)).await;
    cases.run("a rebalance is an operation that can be watched to its end", rebalance(http)).await;
    cases.run("operations and nodes that there are not, and bad ids", refused(http)).await;
    cases.run("a node that is needed is neither drained nor removed", needed(cluster)).await;
}

async fn plan(cluster: &Cluster) -> anyhow::Result<()> {
    let http = cluster.http();
    let before: OperationList =
        serde_json::from_slice(&http.get("/admin/v1/operations").expect(200).await?.body)?;
    let answer = http.post("/admin/v1/rebalances?validateOnly=true", &json!({})).expect(200).await?;
    let plan: RebalancePlan = serde_json::from_slice(&answer.body)?;
    ensure!(plan.moves.is_empty() && plan.bytes == 0 && plan.short.is_empty(), "{plan:?}");
    let status = cluster.status().await?;
    check_eq!(plan.nodes.len(), status.nodes.len());
    for node in &plan.nodes {
        check_eq!((node.before.replicas, node.after.replicas), (8, 8), "node {}", node.id);
    }
    check_eq!(plan.nodes.iter().map(|node| node.after.leaders).sum::<u64>(), 8, "leaders");
    let after: OperationList =
        serde_json::from_slice(&http.get("/admin/v1/operations").expect(200).await?.body)?;
    check_eq!(before.items.len(), after.items.len(), "operations");
    Ok(())
}

async fn rebalance(http: &Http) -> anyhow::Result<()> {
    let started = http.post("/admin/v1/rebalances", &json!({})).expect(202).await?;
    let location = started.need("location")?.to_owned();
    let id = location.strip_prefix("/admin/v1/operations/").context("location")?.to_owned();
    check_eq!(started.json()?.get("id"), Some(&json!(id)));
    let ended = until(HEAL_LIMIT, "the rebalance to end", || async {
        let shown = http.get(&location).expect(200).await?.json()?;
        ensure!(shown.get("state") == Some(&json!("done")), "{shown}");
        Ok(shown)
    })
    .await?;
    for (field, value) in [
        ("kind", json!("rebalance")),
        ("movesDone", json!(0)),
        ("movesTotal", json!(0)),
        ("bytesDone", json!(0)),
        ("bytesTotal", json!(0)),
        ("moves", json!([])),
    ] {
        check_eq!(ended.get(field), Some(&value), "{field}");
    }
    for verb in ["pause", "resume", "cancel"] {
        http.post(&format!("{location}:{verb}"), &json!({})).refused(P::Conflict).await?;
    }
    let list: OperationList =
        serde_json::from_slice(&http.get("/admin/v1/operations").expect(200).await?.body)?;
    check_eq!(list.items.first().map(|newest| newest.id.clone()), Some(id), "the newest first");
    Ok(())
}

async fn refused(http: &Http) -> anyhow::Result<()> {
    http.get("/admin/v1/operations/999999").refused(P::NotFound).await?;
    for (path, kind) in [
        ("/admin/v1/operations/999999:pause", P::NotFound),
        ("/admin/v1/nodes/999999:drain", P::NotFound),
        ("/admin/v1/nodes/999999:undrain", P::NotFound),
        ("/admin/v1/nodes/999999:remove", P::NotFound),
        ("/admin/v1/nodes/1:explode", P::NotFound),
        ("/admin/v1/operations/1:explode", P::NotFound),
        ("/admin/v1/nodes/x:drain", P::BadId),
        ("/admin/v1/nodes/0:drain", P::BadId),
        ("/admin/v1/operations/-1:pause", P::BadId),
        ("/admin/v1/operations/99999999999999999999:pause", P::BadId),
        ("/admin/v1/rebalances?validateOnly=maybe", P::BadParameter),
        ("/admin/v1/rebalances?dryRun=true", P::BadParameter),
    ] {
        http.post(path, &json!({})).refused(kind).await.with_context(|| path.to_owned())?;
    }
    for (method, path) in [
        (Method::GET, "/admin/v1/rebalances"),
        (Method::DELETE, "/admin/v1/operations/1"),
        (Method::POST, "/admin/v1/operations"),
        (Method::GET, "/admin/v1/nodes/1:drain"),
    ] {
        http.call(method, path).expect(405).await.with_context(|| path.to_owned())?;
    }
    Ok(())
}

async fn needed(cluster: &Cluster) -> anyhow::Result<()> {
    let http = cluster.http();
    for verb in ["drain", "remove"] {
        let problem =
            http.post(&format!("/admin/v1/nodes/2:{verb}"), &json!({})).refused(P::Conflict).await?;
        ensure!(problem.detail.contains('3'), "{verb}: the reason names no number: {}", problem.detail);
    }
    // A member stays one.
    http.post("/admin/v1/nodes/2:undrain", &json!({})).expect(204).await?;
    let status = cluster.status().await?;
    ensure!(status.nodes.iter().all(|node| node.state == "up"), "{:?}", status.nodes);
    Ok(())
}
