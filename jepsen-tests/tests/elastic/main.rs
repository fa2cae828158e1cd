//! Nodes come, go, die and are restarted under a constant load of reads, writes and lists, and nobody notices.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use borough_proto::http_api::{ClusterStatus, MoveStatus, OperationList, OperationStatus, RebalancePlan};
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, Options};
use jepsen_tests::http::Http;
use jepsen_tests::lister::{Lister, fill, verify};
use jepsen_tests::load::{Load, Shape};
use jepsen_tests::looker::{Looker, Truth};
use jepsen_tests::process::run;
use jepsen_tests::wait::until;
use serde_json::json;

mod rolling;

/// Documents that are listed and checked; `JEPSEN_DOCUMENTS` gives another number.
const DOCUMENTS: usize = 200_000;
const COLLECTION: &str = "elastic";
const SHARDS: u32 = 16;
/// For a phase to come to rest, on a machine that does much else.
const REST_LIMIT: Duration = Duration::from_secs(300);
const STEP_LIMIT: Duration = Duration::from_secs(120);
/// How long the load runs for a figure.
const SAMPLE: Duration = Duration::from_secs(5);
/// A lone page of a listing and a few calls of each kind are under way beside the writers: a fraction of what the
/// machine can do, so that what is measured is waiting, not saturation.
const SHAPE: Shape = Shape { writers_per_shard: 1, readers_per_shard: 1, pace: Duration::from_millis(20) };

fn env() -> Vec<(String, String)> {
    [
        ("BOROUGH_PLACEMENT__SETTLE", "1s"),
        ("BOROUGH_RAFT__SUSPECT_AFTER", "2s"),
        ("BOROUGH_RAFT__DOWN_AFTER", "8s"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

fn documents() -> anyhow::Result<usize> {
    match std::env::var("JEPSEN_DOCUMENTS") {
        Ok(text) => text.parse().context("JEPSEN_DOCUMENTS"),
        Err(_) => Ok(DOCUMENTS),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elastic() -> anyhow::Result<()> {
    let count = documents()?;
    let options = Options { nodes: 3, shards: SHARDS, replicas: 3, env: env(), ..Options::default() };
    let mut cluster = Cluster::start(options).await?;
    let http = cluster.http();
    let started = Instant::now();
    fill(&http, COLLECTION, count).await?;
    println!("        {count} documents written in {:.1?}", started.elapsed());
    let mut cases = Cases::new();
    cases.run("a drain that cannot end is refused at once", refused(&cluster)).await;
    cases
        .run(
            "three nodes become six and three again, and nobody notices",
            there_and_back(&mut cluster, count),
        )
        .await;
    cases.run("a cancelled rebalance leaves no stray replica", cancelled(&mut cluster, count)).await;
    cases
        .run("a rebalance goes on when the meta leader is killed", meta_leader_killed(&mut cluster, count))
        .await;
    for victim in [Victim::Source, Victim::Target, Victim::MetaLeader] {
        let name = format!("a drain ends although the {victim:?} of a move is killed");
        cases.run(&name, killed_in_a_move(&mut cluster, victim, count)).await;
    }
    cases
        .run("a dead node is replaced, and an empty one takes its place", dead_node(&mut cluster, count))
        .await;
    cases.run("all nodes and routers are restarted one by one", rolling::restart(&mut cluster, count)).await;
    if cases.failed() {
        println!("{}", cluster.logs(40));
    }
    cases.finish()
}

async fn post(http: &Http, path: &str) -> anyhow::Result<OperationStatus> {
    let answer = http.post(&format!("/admin/v1/{path}"), &json!({})).send().await?;
    ensure!([200, 202].contains(&answer.status), "{path}: {answer}");
    serde_json::from_slice(&answer.body).with_context(|| format!("{path}: {answer}"))
}

async fn operation(http: &Http, id: &str) -> anyhow::Result<OperationStatus> {
    let answer = http.get(&format!("/admin/v1/operations/{id}")).expect(200).await?;
    serde_json::from_slice(&answer.body).with_context(|| answer.to_string())
}

/// Waits until the operation has ended in `state`.
async fn ended(http: &Http, id: &str, state: &str, limit: Duration) -> anyhow::Result<OperationStatus> {
    let operation = until(limit, &format!("operation {id} to end"), || async {
        let operation = operation(http, id).await?;
        ensure!(operation.ended_ms.is_some(), "{operation:?}");
        Ok(operation)
    })
    .await?;
    check_eq!(operation.state, state, "{operation:?}");
    Ok(operation)
}

/// Bytes that the engine's files take on the disk.
fn engine_bytes(data_dir: &Path) -> anyhow::Result<u64> {
    fn of(dir: &Path) -> std::io::Result<u64> {
        let mut bytes = 0;
        for entry in std::fs::read_dir(dir)? {
            // Files come and go while the engine works.
            let Ok(metadata) =
                entry.as_ref().map_err(|_| ()).and_then(|entry| entry.metadata().map_err(|_| ()))
            else {
                continue;
            };
            let entry = entry?;
            bytes += if metadata.is_dir() { of(&entry.path()).unwrap_or(0) } else { metadata.blocks() * 512 };
        }
        Ok(bytes)
    }
    of(&data_dir.join("engine")).context("size of the engine's directory")
}

async fn refused(cluster: &Cluster) -> anyhow::Result<()> {
    let answer = cluster.http().post("/admin/v1/nodes/2:drain", &json!({})).send().await?;
    let problem = answer.problem(409)?;
    ensure!(problem.detail.contains('3'), "the reason names no number of nodes: {answer}");
    let none = cluster.http().post("/admin/v1/nodes/99:drain", &json!({})).send().await?;
    none.problem(404)?;
    let status = cluster.status().await?;
    ensure!(status.nodes.iter().all(|node| node.state == "up"), "{:?}", status.nodes);
    ensure!(status.operations.iter().all(|operation| operation.kind != "drain"), "{:?}", status.operations);
    Ok(())
}

/// Load on every shard and listings, all of it without a failure.
struct Busy {
    load: Load,
    lister: Lister,
}

impl Busy {
    async fn start(cluster: &Cluster, name: &str, count: usize) -> anyhow::Result<Self> {
        let http = cluster.http();
        let keys = cluster.ids_by_shard(name, 2).await?;
        let busy =
            Self { load: Load::start(&http, keys, SHAPE), lister: Lister::start(&http, COLLECTION, count) };
        busy.load.progress(20, STEP_LIMIT).await?;
        Ok(busy)
    }

    /// Runs for a while and tells the p99.
    async fn sample(&self, what: &str) -> anyhow::Result<()> {
        let begin = self.load.history.now();
        until(STEP_LIMIT, "a sample", || async {
            ensure!(self.load.history.now() >= begin + SAMPLE, "not yet");
            Ok(())
        })
        .await?;
        self.tell(what, begin);
        Ok(())
    }

    fn tell(&self, what: &str, begin: Duration) {
        let (p99, calls) = self.load.history.p99(begin, self.load.history.now());
        println!("        {what}: p99 {p99:.2?} of {calls} calls");
    }

    fn check(&self) -> anyhow::Result<()> {
        let failures = self.load.history.failures(Duration::ZERO, self.load.history.now());
        ensure!(failures.is_empty(), "{} calls failed: {:?}", failures.len(), failures.first());
        self.lister.check()
    }

    async fn stop(self, cluster: &Cluster, count: usize) -> anyhow::Result<()> {
        self.check()?;
        let passes = self.lister.stop().await?;
        println!("        {passes} whole listings");
        self.load.stop(200).await?;
        verify(&cluster.http(), COLLECTION, count).await
    }
}

/// Bytes that the operations which began at `since_ms` or later have moved.
fn moved(status: &ClusterStatus, since_ms: u64) -> (u64, u64) {
    let since = status.operations.iter().filter(|operation| operation.started_ms >= since_ms);
    since.fold((0, 0), |(moves, bytes), operation| {
        (moves + operation.moves_done, bytes + operation.bytes_done)
    })
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(0))
}

async fn there_and_back(cluster: &mut Cluster, count: usize) -> anyhow::Result<()> {
    let http = cluster.http();
    let busy = Busy::start(cluster, "back", count).await?;
    busy.sample("before").await?;
    let looker = Looker::start(&http, Truth::Served);
    let first = cluster.nodes.first().context("no node")?.data_dir.clone();
    let full = engine_bytes(&first)?;

    let (begin, clock, began) = (busy.load.history.now(), Instant::now(), now_ms());
    for _ in 0..3 {
        cluster.add_node().await?;
    }
    let six: Vec<u64> = (1..=6).collect();
    let status = cluster.wait_even(&six, REST_LIMIT).await?;
    let (moves, bytes) = moved(&status, began);
    println!("        3 to 6 nodes in {:.1?}: {moves} moves, {bytes} bytes", clock.elapsed());
    busy.tell("while growing", begin);
    busy.check()?;
    busy.sample("with six").await?;
    let half = until(STEP_LIMIT, "the space to come back", || async {
        let bytes = engine_bytes(&first)?;
        ensure!(bytes * 4 < full * 3, "{bytes} of {full} bytes are still taken");
        Ok(bytes)
    })
    .await?;
    println!("        node 1's engine: {full} bytes before, {half} after");
    let answer = http.post("/admin/v1/rebalances?validateOnly=true", &json!({})).expect(200).await?;
    let plan: RebalancePlan = serde_json::from_slice(&answer.body)?;
    ensure!(plan.moves.is_empty() && plan.transfers == 0, "a plan at rest: {plan:?}");

    let (begin, clock, began) = (busy.load.history.now(), Instant::now(), now_ms());
    for id in 1..=3 {
        let drain = post(&http, &format!("nodes/{id}:drain")).await?;
        check_eq!((drain.kind.as_str(), drain.node), ("drain", Some(id)));
        let done = ended(&http, &drain.id, "done", REST_LIMIT).await.with_context(|| cluster.logs(20))?;
        check_eq!((done.moves_done, done.moves_total), (drain.moves_total, drain.moves_total), "{drain:?}");
        let status = cluster.status().await?;
        let node = status.nodes.iter().find(|node| node.id == id).context("the node")?;
        check_eq!((node.state.as_str(), node.replicas, node.leaders), ("draining", 0, 0));
        // Nodes that start together are given their ids in any order.
        let drained = cluster.node_mut(id)?.data_dir.clone();
        until(STEP_LIMIT, "the drained node's space", || async {
            let bytes = engine_bytes(&drained)?;
            ensure!(bytes < full / 20, "{bytes} of {full} bytes are still taken");
            Ok(())
        })
        .await?;
        let answer = http.post(&format!("/admin/v1/nodes/{id}:remove"), &json!({})).expect(204).await?;
        ensure!(answer.body.is_empty(), "{answer}");
        // It has nothing left to do.
        let ended = cluster.node_mut(id)?.wait_end(STEP_LIMIT).await?;
        check_eq!(ended.code(), Some(0), "exit code of node {id}");
        let data_dir = cluster.node_mut(id)?.data_dir.to_string_lossy().into_owned();
        let again =
            ["node", "--data-dir", &data_dir, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let output = run(&again.map(str::to_owned), &[], b"", STEP_LIMIT).await?;
        let told = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(74), "the removed node's directory again: {told}");
        ensure!(told.contains("removed"), "{told}");
    }
    let status = cluster.wait_even(&[4, 5, 6], REST_LIMIT).await?;
    let (moves, bytes) = moved(&status, began);
    println!("        6 to 3 nodes in {:.1?}: {moves} moves, {bytes} bytes", clock.elapsed());
    busy.tell("while shrinking", begin);
    println!("        {} looks at the status", looker.stop().await?);
    busy.sample("after").await?;
    busy.stop(cluster, count).await
}

/// Waits until the newest operation of that kind copies something.
async fn under_way(http: &Http, kind: &str) -> anyhow::Result<OperationStatus> {
    until(STEP_LIMIT, "moves to be under way", || async {
        let answer = http.get("/admin/v1/operations").expect(200).await?;
        let list: OperationList = serde_json::from_slice(&answer.body)?;
        let newest = list.items.into_iter().find(|operation| operation.kind == kind);
        let running = newest.filter(|operation| operation.ended_ms.is_none());
        let running = running.context("none runs")?;
        let copying = |step: &MoveStatus| step.step == "copying" && step.shard.is_some();
        let copying = running.moves.iter().flatten().any(copying);
        ensure!(copying, "{running:?}");
        Ok(running)
    })
    .await
}

async fn healthy(cluster: &Cluster) -> anyhow::Result<ClusterStatus> {
    until(STEP_LIMIT, "all shards to be healthy", || async {
        let status = cluster.status().await?;
        let running = cluster.nodes.iter().filter(|node| node.running()).count();
        let up = status.nodes.iter().filter(|node| node.state == "up").count();
        ensure!(up == running, "{up} of {running} nodes are up");
        ensure!(status.shards.iter().all(|shard| shard.state == "healthy"), "{:?}", status.shards);
        Ok(status)
    })
    .await
}

async fn cancelled(cluster: &mut Cluster, count: usize) -> anyhow::Result<()> {
    let http = cluster.http();
    let busy = Busy::start(cluster, "cancelled", count).await?;
    let before = cluster.status().await?;
    cluster.add_node().await?;
    let rebalance = under_way(&http, "rebalance").await?;
    let paused = post(&http, &format!("operations/{}:pause", rebalance.id)).await?;
    check_eq!(paused.state, "paused");
    post(&http, &format!("operations/{}:cancel", rebalance.id)).await?;
    let cancelled = ended(&http, &rebalance.id, "cancelled", STEP_LIMIT).await?;
    let moves = cancelled.moves.context("moves")?;
    ensure!(moves.iter().any(|step| step.step == "cancelled"), "nothing was cancelled: {moves:?}");
    // Where nothing was moved everything is as it was, on the map and on the disk.
    let done: BTreeSet<u32> =
        moves.iter().filter(|step| step.step == "done").filter_map(|step| step.shard).collect();
    let status = healthy(cluster).await?;
    for (old, new) in before.shards.iter().zip(&status.shards).filter(|(old, _)| !done.contains(&old.id)) {
        let nodes = |replicas: &[u64]| replicas.iter().copied().collect::<BTreeSet<_>>();
        check_eq!(nodes(&old.replicas), nodes(&new.replicas), "shard {}", old.id);
    }
    let newcomer = cluster.members(STEP_LIMIT).await?.into_iter().max().context("no node")?;
    let held = status.nodes.iter().find(|node| node.id == newcomer).context("the node")?.replicas as usize;
    check_eq!(held, done.len(), "replicas of the newcomer");
    let data_dir = cluster.node_mut(newcomer)?.data_dir.clone();
    until(STEP_LIMIT, "stray replicas to be gone", || async {
        let registry: serde_json::Value =
            serde_json::from_slice(&std::fs::read(data_dir.join("replicas.json"))?)?;
        let replicas = registry.as_object().context("replicas.json")?.values();
        let kept = replicas
            .filter(|held| held.get("removed").and_then(serde_json::Value::as_bool) != Some(true))
            .count();
        // It stays out of the catalog's group, for which three are enough of four.
        check_eq!(kept, held, "replicas in the directory, and on the map");
        Ok(())
    })
    .await?;
    busy.stop(cluster, count).await
}

async fn meta_leader_killed(cluster: &mut Cluster, count: usize) -> anyhow::Result<()> {
    let http = cluster.http();
    let busy = Busy::start(cluster, "meta", count).await?;
    let rebalance = post(&http, "rebalances").await?;
    let running = under_way(&http, "rebalance").await?;
    check_eq!(running.id, rebalance.id);
    let leader = cluster.meta_leader().await?;
    let looker = Looker::start(&http, Truth::Served);
    cluster.node_mut(leader)?.kill()?;
    let killed = busy.load.history.now();
    cluster.node_mut(leader)?.launch().await?;
    let done = ended(&http, &rebalance.id, "done", REST_LIMIT).await.with_context(|| cluster.logs(30))?;
    ensure!(done.moves_done == done.moves_total && done.moves_total > 0, "{done:?}");
    let members = cluster.members(STEP_LIMIT).await?;
    cluster.wait_even(&members, REST_LIMIT).await?;
    busy.tell("with the meta leader killed", killed);
    looker.stop().await?;
    // A node was killed: what it led waits for an election, but no request fails for it.
    busy.stop(cluster, count).await
}

/// Who dies while a replica is on its way.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Source,
    Target,
    MetaLeader,
}

async fn killed_in_a_move(cluster: &mut Cluster, victim: Victim, count: usize) -> anyhow::Result<()> {
    let http = cluster.http();
    let busy = Busy::start(cluster, &format!("{victim:?}"), count).await?;
    let drained = cluster.members(STEP_LIMIT).await?.into_iter().max().context("no node")?;
    let drain = post(&http, &format!("nodes/{drained}:drain")).await?;
    let running = under_way(&http, "drain").await?;
    let copying = running.moves.iter().flatten().find(|step| step.step == "copying" && step.shard.is_some());
    let dead = match victim {
        Victim::Source => drained,
        Victim::Target => copying.and_then(|step| step.to).context("no target")?,
        Victim::MetaLeader => cluster.meta_leader().await?,
    };
    cluster.node_mut(dead)?.kill()?;
    cluster.node_mut(dead)?.launch().await?;
    let done = ended(&http, &drain.id, "done", REST_LIMIT).await.with_context(|| cluster.logs(30))?;
    ensure!(done.moves_total > 0, "{done:?}");
    let left: Vec<u64> =
        cluster.members(STEP_LIMIT).await?.into_iter().filter(|&node| node != drained).collect();
    cluster.wait_even(&left, REST_LIMIT).await?;
    // And back again, for the next one.
    http.post(&format!("/admin/v1/nodes/{drained}:undrain"), &json!({})).expect(204).await?;
    cluster.wait_even(&cluster.members(STEP_LIMIT).await?, REST_LIMIT).await?;
    busy.stop(cluster, count).await
}

async fn dead_node(cluster: &mut Cluster, count: usize) -> anyhow::Result<()> {
    let busy = Busy::start(cluster, "dead", count).await?;
    let dead = *cluster.members(STEP_LIMIT).await?.first().context("no node")?;
    let clock = Instant::now();
    cluster.node_mut(dead)?.kill()?;
    let left = cluster.members(STEP_LIMIT).await?;
    cluster.wait_even(&left, REST_LIMIT).await?;
    println!("        whole again {:.1?} after a node died", clock.elapsed());
    busy.check()?;
    let clock = Instant::now();
    cluster.add_node().await?;
    let now = cluster.members(STEP_LIMIT).await?;
    cluster.wait_even(&now, REST_LIMIT).await?;
    println!("        an empty node took its place in {:.1?}", clock.elapsed());
    // The dead one comes back, has nothing any more, and knows it.
    cluster.node_mut(dead)?.launch().await?;
    let all = cluster.members(STEP_LIMIT).await?;
    cluster.wait_even(&all, REST_LIMIT).await?;
    busy.stop(cluster, count).await
}
