//! Whoever dies while a replica moves, and at whichever step, the move ends as it should, under load and unnoticed.
//!
//! The binary has crash points (the feature `crash-points`): a file of a step's name in a node's data directory ends that
//! node, as `kill -9` would, exactly there.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use borough_proto::http_api::{ClusterStatus, OperationStatus};
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, Node, Options};
use jepsen_tests::http::Http;
use jepsen_tests::lister::{Lister, fill, verify};
use jepsen_tests::load::{Load, Shape};
use jepsen_tests::looker::{Looker, Truth};
use jepsen_tests::wait::until;
use serde_json::json;

mod settings;

const COLLECTION: &str = "moved";
const DOCUMENTS: usize = 4_000;
const SHARDS: u32 = 5;
const REST_LIMIT: Duration = Duration::from_secs(120);
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// Drains until a step that may be left out is come by.
const TRIES_MAX: usize = 10;
const SHAPE: Shape = Shape { writers_per_shard: 1, readers_per_shard: 1, pace: Duration::from_millis(20) };

/// One move at a time, so that a step is reached by one node; a node is given up only where a case waits for it.
const ENV: [(&str, &str); 5] = [
    // So that most of a shard is no longer in its log, and goes as a snapshot.
    ("BOROUGH_LOG__PURGE_AFTER_BYTES", "65536"),
    ("BOROUGH_PLACEMENT__SETTLE", "200ms"),
    ("BOROUGH_PLACEMENT__MOVES_MAX", "1"),
    ("BOROUGH_RAFT__SUSPECT_AFTER", "2s"),
    ("BOROUGH_RAFT__DOWN_AFTER", "10s"),
];

/// Which node dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    MetaLeader,
    ShardLeader,
    Source,
    Target,
}

/// Each step of a move, and who can die there.
const STEPS: [(Who, &str); 15] = [
    (Who::MetaLeader, "call-recorded"),
    (Who::MetaLeader, "move-begun"),
    (Who::Target, "replica-opened"),
    (Who::ShardLeader, "learner-added"),
    (Who::Target, "snapshot-chunk-staged"),
    (Who::Target, "snapshot-staged"),
    (Who::Target, "snapshot-installed"),
    (Who::ShardLeader, "joint-applied"),
    (Who::Source, "joint-applied"),
    (Who::ShardLeader, "members-applied"),
    (Who::MetaLeader, "members-changed"),
    (Who::MetaLeader, "change-recorded"),
    (Who::MetaLeader, "catalog-members-changed"),
    (Who::MetaLeader, "catalog-change-recorded"),
    (Who::Source, "replica-given-up"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_survive_the_death_of_anybody_at_any_step() -> anyhow::Result<()> {
    let env = ENV.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let mut cluster =
        Cluster::start(Options { nodes: 5, shards: SHARDS, replicas: 3, env, ..Options::default() }).await?;
    fill(&cluster.http(), COLLECTION, DOCUMENTS).await?;
    let mut cases = Cases::new();
    // After a failure what comes next would only fail for the same reason, each case after its whole limit.
    for (who, step) in STEPS {
        if cases.failed() {
            break;
        }
        let name = format!("a drain ends although the {who:?} dies at {step:?}");
        cases.run(&name, dies_in_a_drain(&mut cluster, who, step)).await;
    }
    if !cases.failed() {
        cases.run("a drain goes elsewhere when its target stays away", target_stays_away(&mut cluster)).await;
    }
    for (who, step) in [
        (Who::MetaLeader, "members-changed"),
        (Who::MetaLeader, "change-recorded"),
        (Who::ShardLeader, "members-applied"),
        (Who::Source, "members-applied"),
        (Who::Target, "replica-given-up"),
    ] {
        if cases.failed() {
            break;
        }
        let name = format!("a cancelled move is undone although the {who:?} dies at {step:?}");
        cases.run(&name, dies_in_an_undo(&mut cluster, who, step)).await;
    }
    if cases.failed() {
        println!("{}", cluster.logs(40));
    }
    cases.finish()
}

fn armed(node: &Node, step: &str) -> PathBuf {
    node.data_dir.join("crash-points").join(step)
}

/// Arms `step` on `nodes`.
fn arm(cluster: &mut Cluster, nodes: &[u64], step: &str) -> anyhow::Result<()> {
    for &id in nodes {
        let path = armed(cluster.node_mut(id)?, step);
        std::fs::create_dir_all(path.parent().context("directory of crash points")?)?;
        std::fs::write(&path, "").with_context(|| format!("arm {}", path.display()))?;
    }
    Ok(())
}

/// Waits until one of `nodes` has died at `step`, and disarms the others.
async fn died(cluster: &mut Cluster, nodes: &[u64], step: &str) -> anyhow::Result<u64> {
    let started = std::time::Instant::now();
    let dead = loop {
        let mut dead = None;
        for &id in nodes {
            if let Some(status) = cluster.node_mut(id)?.process()?.ended()? {
                ensure!(std::os::unix::process::ExitStatusExt::signal(&status) == Some(9), "{status}");
                dead = Some(id);
            }
        }
        if let Some(dead) = dead {
            break dead;
        }
        ensure!(started.elapsed() < STEP_LIMIT, "nobody died at {step:?}: {}", cluster.logs(20));
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    for &id in nodes {
        let node = cluster.node_mut(id)?;
        let path = armed(node, step);
        let used_up = !path.exists();
        ensure!(used_up == (id == dead), "{step:?} of node {id} is used up: {used_up}; node {dead} is dead");
        if !used_up {
            std::fs::remove_file(path)?;
        }
    }
    cluster.node_mut(dead)?.wait_end(STEP_LIMIT).await?;
    Ok(dead)
}

/// Waits until `source` has died at `step`: says whether it has, or `drain` was done before that, and then disarms it.
async fn died_before_done(
    cluster: &mut Cluster,
    source: u64,
    step: &str,
    drain: &OperationStatus,
) -> anyhow::Result<bool> {
    let http = cluster.http();
    let path = armed(cluster.node_mut(source)?, step);
    until(STEP_LIMIT, &format!("a death at {step:?} or the end of operation {}", drain.id), || async {
        if path.exists() {
            let answer = http.get(&format!("/admin/v1/operations/{}", drain.id)).expect(200).await?;
            let operation: OperationStatus = serde_json::from_slice(&answer.body)?;
            ensure!(operation.ended_ms.is_some(), "{operation:?}");
        }
        Ok(())
    })
    .await
    .with_context(|| cluster.logs(20))?;
    // Who dies there removes it first: only one of the two can.
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            died(cluster, &[source], step).await.map(|_| true)
        }
        Err(error) => Err(error).context("disarm"),
    }
}

/// A node to drain, and the leader of a shard that it has: of every one that both have, if there is such a pair.
fn drained_and_leader(status: &ClusterStatus) -> anyhow::Result<(u64, u64)> {
    let pairs = status.shards.iter().filter_map(|shard| Some((shard, shard.leader?)));
    let pairs = pairs.flat_map(|(shard, leader)| {
        let others = shard.replicas.iter().filter(move |&&node| node != leader);
        others.map(move |&drained| (drained, leader))
    });
    let led_by_others = |&(drained, leader): &(u64, u64)| {
        let both = |shard: &&borough_proto::http_api::ShardStatus| {
            shard.replicas.contains(&drained) && shard.replicas.contains(&leader)
        };
        status.shards.iter().filter(both).filter(|shard| shard.leader != Some(leader)).count()
    };
    pairs.min_by_key(led_by_others).context("no shard has a leader and another replica")
}

/// Load and listings while something dies: no call may fail for it.
struct Busy {
    load: Load,
    lister: Lister,
}

impl Busy {
    async fn start(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        let http = cluster.http();
        let keys = cluster.ids_by_shard(name, 1).await?;
        let lister = Lister::start(&http, COLLECTION, DOCUMENTS);
        Ok(Self { load: Load::start(&http, keys, SHAPE), lister })
    }

    async fn stop(self, cluster: &Cluster) -> anyhow::Result<()> {
        self.load.progress(2, STEP_LIMIT).await?;
        let failures = self.load.history.failures(Duration::ZERO, self.load.history.now());
        ensure!(failures.is_empty(), "{} calls failed: {:?}", failures.len(), failures.first());
        self.lister.check()?;
        self.lister.stop().await?;
        self.load.stop(20).await?;
        verify(&cluster.http(), COLLECTION, DOCUMENTS).await
    }
}

async fn post(http: &Http, path: &str) -> anyhow::Result<OperationStatus> {
    // The meta group may be electing.
    until(STEP_LIMIT, path, || async {
        let answer = http.post(&format!("/admin/v1/{path}"), &json!({})).send().await?;
        ensure!([200, 202].contains(&answer.status), "{path}: {answer}");
        serde_json::from_slice(&answer.body).with_context(|| format!("{path}: {answer}"))
    })
    .await
}

async fn ended(cluster: &Cluster, id: &str, state: &str) -> anyhow::Result<OperationStatus> {
    let http = cluster.http();
    let operation = until(REST_LIMIT, &format!("operation {id} to end"), || async {
        let answer = http.get(&format!("/admin/v1/operations/{id}")).expect(200).await?;
        let operation: OperationStatus = serde_json::from_slice(&answer.body)?;
        ensure!(operation.ended_ms.is_some(), "{operation:?}");
        Ok(operation)
    })
    .await
    .with_context(|| cluster.logs(30))?;
    check_eq!(operation.state, state, "{operation:?}");
    Ok(operation)
}

/// Waits until no node's directory holds a replica that the map does not give it.
async fn no_strays(cluster: &Cluster) -> anyhow::Result<()> {
    until(STEP_LIMIT, "stray replicas to be gone", || async {
        let status = cluster.status().await?;
        let mut held = 0;
        for node in cluster.nodes.iter().filter(|node| node.running()) {
            let registry: serde_json::Value =
                serde_json::from_slice(&std::fs::read(node.data_dir.join("replicas.json"))?)?;
            let removed = |held: &&serde_json::Value| {
                held.get("removed").and_then(serde_json::Value::as_bool) == Some(true)
            };
            let all = registry.as_object().context("replicas.json")?.values();
            held += all.filter(|held| !removed(held)).count();
        }
        let shards: usize = status.shards.iter().map(|shard| shard.replicas.len()).sum();
        // The catalog's group has an odd number, so that each of them counts.
        let members = status.nodes.iter().filter(|node| node.state == "up").count();
        let of_catalog = if members == 4 { 3 } else { members.min(5) };
        check_eq!(held, shards + of_catalog, "replicas on disks, and on the map with {members} members");
        Ok(())
    })
    .await
}

/// Lets the drained node have replicas again, for the next case.
async fn undrain(cluster: &Cluster, drained: u64) -> anyhow::Result<()> {
    let http = cluster.http();
    until(STEP_LIMIT, "the node to be taken back", || async {
        http.post(&format!("/admin/v1/nodes/{drained}:undrain"), &json!({})).expect(204).await
    })
    .await?;
    cluster.wait_placed(&cluster.members(STEP_LIMIT).await?, REST_LIMIT).await?;
    Ok(())
}

async fn dies_in_a_drain(cluster: &mut Cluster, who: Who, step: &str) -> anyhow::Result<()> {
    let members = cluster.members(STEP_LIMIT).await?;
    cluster.wait_placed(&members, REST_LIMIT).await?;
    let busy = Busy::start(cluster, &format!("{who:?}-{step}")).await?;
    let mut tries = 1;
    let (drain, drained, dead) = loop {
        let (drain, drained, dead) = drained_once(cluster, &members, who, step).await?;
        if let Some(dead) = dead {
            break (drain, drained, dead);
        }
        ensure!(tries < TRIES_MAX, "the {who:?} did not come by {step:?} in {tries} drains");
        tries += 1;
        ended(cluster, &drain.id, "done").await?;
        undrain(cluster, drained).await?;
    };
    cluster.node_mut(dead)?.launch().await?;
    let done = ended(cluster, &drain.id, "done").await?;
    ensure!(done.moves_total > 0, "{done:?}");
    let left: Vec<u64> = members.into_iter().filter(|&node| node != drained).collect();
    cluster.wait_placed(&left, REST_LIMIT).await?;
    no_strays(cluster).await?;
    undrain(cluster, drained).await?;
    busy.stop(cluster).await
}

/// Drains a node, and waits for the death of whoever is to die at `step`. Gives the drain, who is drained, and who is dead:
/// none only where the step may be left out, and the drain was done without it.
async fn drained_once(
    cluster: &mut Cluster,
    members: &[u64],
    who: Who,
    step: &str,
) -> anyhow::Result<(OperationStatus, u64, Option<u64>)> {
    let status = cluster.wait_placed(members, REST_LIMIT).await?;
    let (drained, leader) = drained_and_leader(&status)?;
    let candidates = match who {
        // The call is sent again, and must not kill the next one too.
        Who::MetaLeader if step == "call-recorded" => vec![cluster.meta_leader().await?],
        // Only who leads the meta group gets there, and that may change on the way.
        Who::MetaLeader => members.to_vec(),
        Who::ShardLeader => vec![leader],
        Who::Source => vec![drained],
        Who::Target => members.iter().copied().filter(|&node| node != drained).collect(),
    };
    arm(cluster, &candidates, step)?;
    let drain = post(&cluster.http(), &format!("nodes/{drained}:drain")).await?;
    // The next change leaves the source out. If that is appended before the source was told that the joint one is committed,
    // nobody tells it any more: its replica is given up without having applied it.
    if (who, step) == (Who::Source, "joint-applied") {
        let dead = died_before_done(cluster, drained, step, &drain).await?.then_some(drained);
        return Ok((drain, drained, dead));
    }
    let dead = died(cluster, &candidates, step).await?;
    Ok((drain, drained, Some(dead)))
}

/// Starts a drain whose first target dies while it is sent a snapshot. Gives the drain and who is drained and dead.
async fn drain_to_the_dead(cluster: &mut Cluster) -> anyhow::Result<(OperationStatus, u64, u64)> {
    const STEP: &str = "snapshot-chunk-staged";
    let members = cluster.members(STEP_LIMIT).await?;
    let status = cluster.wait_placed(&members, REST_LIMIT).await?;
    let (drained, _) = drained_and_leader(&status)?;
    let others: Vec<u64> = members.into_iter().filter(|&node| node != drained).collect();
    arm(cluster, &others, STEP)?;
    let drain = post(&cluster.http(), &format!("nodes/{drained}:drain")).await?;
    let dead = died(cluster, &others, STEP).await?;
    Ok((drain, drained, dead))
}

async fn target_stays_away(cluster: &mut Cluster) -> anyhow::Result<()> {
    let busy = Busy::start(cluster, "away").await?;
    let (drain, drained, dead) = drain_to_the_dead(cluster).await?;
    // Whoever leads the meta group when the node is given up takes the move back, and dies then.
    let others: Vec<u64> =
        cluster.members(STEP_LIMIT).await?.into_iter().filter(|&node| node != drained).collect();
    arm(cluster, &others, "move-taken-back")?;
    let meta = died(cluster, &others, "move-taken-back").await?;
    // The next one knows that the node is silent and for how long.
    let looker = Looker::start(&cluster.http(), Truth::Dead(dead));
    cluster.node_mut(meta)?.launch().await?;
    ended(cluster, &drain.id, "done").await?;
    let left: Vec<u64> =
        cluster.members(STEP_LIMIT).await?.into_iter().filter(|&node| node != drained).collect();
    check_eq!(left.len(), 3);
    cluster.wait_placed(&left, REST_LIMIT).await?;
    looker.stop().await?;
    cluster.node_mut(dead)?.launch().await?;
    undrain(cluster, drained).await?;
    no_strays(cluster).await?;
    busy.stop(cluster).await
}

async fn dies_in_an_undo(cluster: &mut Cluster, who: Who, step: &str) -> anyhow::Result<()> {
    let http = cluster.http();
    let before = cluster.wait_placed(&cluster.members(STEP_LIMIT).await?, REST_LIMIT).await?;
    let busy = Busy::start(cluster, &format!("undo-{who:?}-{step}")).await?;
    let (drain, drained, dead) = drain_to_the_dead(cluster).await?;
    let shard = until(STEP_LIMIT, "only a shard to be copied, with a leader", || async {
        let answer = http.get(&format!("/admin/v1/operations/{}", drain.id)).expect(200).await?;
        let operation: OperationStatus = serde_json::from_slice(&answer.body)?;
        let moves: Vec<_> = operation.moves.iter().flatten().collect();
        // The catalog's own replica leaves first.
        let of_catalog = moves.iter().find(|step| step.shard.is_none() && step.step != "done");
        ensure!(of_catalog.is_none(), "{operation:?}");
        let copying = moves.iter().find(|step| step.step == "copying").context("none is copied")?;
        let shard = copying.shard.context("a shard")?;
        let status = cluster.status().await?;
        let leader = status.shards.iter().find(|info| info.id == shard).and_then(|info| info.leader);
        Ok((shard, leader.filter(|&leader| leader != dead).context("no leader")?))
    });
    let (shard, leader) = shard.await?;
    let candidates = match who {
        Who::ShardLeader => vec![leader],
        Who::Source => vec![drained],
        Who::Target => vec![dead],
        // Only who leads the meta group gets there.
        Who::MetaLeader => cluster.members(STEP_LIMIT).await?,
    };
    arm(cluster, &candidates, step)?;
    post(&http, &format!("operations/{}:cancel", drain.id)).await?;
    if who == Who::Target {
        // It is back in the middle of the undo, and dies once more when it hears of it.
        cluster.node_mut(dead)?.launch().await?;
    }
    let victim = died(cluster, &candidates, step).await?;
    for node in BTreeSet::from([dead, victim]) {
        cluster.node_mut(node)?.launch().await?;
    }
    ended(cluster, &drain.id, "cancelled").await?;
    let members = cluster.members(STEP_LIMIT).await?;
    let after = cluster.wait_placed(&members, REST_LIMIT).await?;
    let replicas = |status: &ClusterStatus| {
        let info = status.shards.iter().find(|info| info.id == shard).context("the shard")?;
        anyhow::Ok(info.replicas.iter().copied().collect::<BTreeSet<u64>>())
    };
    check_eq!(replicas(&after)?, replicas(&before)?, "shard {shard}");
    no_strays(cluster).await?;
    busy.stop(cluster).await
}
