//! Carries a schedule out on a running cluster, takes every fault down, and undoes it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use borough_proto::http_api::ClusterStatus;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::{Event, Nemesis, Phase, membership, partitions};
use crate::cluster::{Cluster, HEAL_LIMIT, status};
use crate::record::{Kind, NEMESIS, Recorder};
use crate::wait::until;

/// For a router to tell who leads, while other faults last.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// For a node that was stopped to have its shards again.
const REST_LIMIT: Duration = Duration::from_secs(30);

/// How a fault is undone.
#[derive(Debug)]
enum Undo {
    /// Positions of nodes that were killed.
    Launch(Vec<usize>),
    Resume(usize),
    LaunchRouter(usize),
    Links,
}

/// Makes the faults of a run.
#[derive(Debug)]
pub struct Director {
    recorder: Recorder,
    open: BTreeMap<usize, (Nemesis, Undo)>,
    paused: BTreeSet<usize>,
    /// Faults that took effect.
    pub injected: usize,
    /// Why others did not.
    pub failures: Vec<String>,
}

impl Director {
    pub fn new(recorder: Recorder) -> Self {
        let (open, paused, failures) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        Self { recorder, open, paused, injected: 0, failures }
    }

    /// Carries out the schedule, and waits for the end of the run.
    ///
    /// # Errors
    /// What the cluster should have survived: a node or router that does not start again.
    pub async fn run(
        &mut self,
        cluster: &mut Cluster,
        events: &[Event],
        length: Duration,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        for event in events {
            tokio::time::sleep_until((started + event.at.min(length)).into()).await;
            match event.phase {
                // Behind the schedule: what ends a fault counts, what begins one comes too late.
                Phase::Begin if started.elapsed() > length => {}
                Phase::Begin => self.begin(cluster, event).await,
                Phase::End => self.end(cluster, event.fault).await?,
            }
        }
        tokio::time::sleep_until((started + length).into()).await;
        Ok(())
    }

    fn record(&self, f: &str, value: Value, error: Option<String>) {
        self.recorder.end(NEMESIS, Kind::Info, f, "", value, error);
    }

    async fn begin(&mut self, cluster: &mut Cluster, event: &Event) {
        let (name, fault) = (event.nemesis.name(), event.fault);
        let whole = event.nemesis.ends_by_itself();
        if whole {
            self.record(name, json!({"phase": "start", "fault": fault}), None);
        }
        let phase = if whole { "end" } else { "start" };
        match Box::pin(self.inject(cluster, event)).await {
            Ok((undo, met)) => {
                self.injected += 1;
                self.record(name, json!({"phase": phase, "fault": fault, "met": met}), None);
                if let Some(undo) = undo {
                    self.open.insert(fault, (event.nemesis, undo));
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                self.failures.push(format!("{name}: {error}"));
                let phase = if whole { "end" } else { "failed" };
                self.record(name, json!({"phase": phase, "fault": fault}), Some(error));
            }
        }
    }

    async fn end(&mut self, cluster: &mut Cluster, fault: usize) -> anyhow::Result<()> {
        let Some((nemesis, undo)) = self.open.remove(&fault) else { return Ok(()) };
        match undo {
            Undo::Launch(nodes) => {
                for node in nodes {
                    launch(cluster, node).await?;
                }
            }
            Undo::Resume(node) => self.resume(cluster, node)?,
            Undo::LaunchRouter(at) => launch_router(cluster, at).await?,
            Undo::Links => {
                if let Some(links) = &cluster.links {
                    links.clear(fault);
                }
            }
        }
        self.record(nemesis.name(), json!({"phase": "end", "fault": fault}), None);
        Ok(())
    }

    /// Undoes everything, and waits until the cluster is whole.
    ///
    /// # Errors
    /// What does not start again or does not become whole.
    pub async fn heal(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        for fault in self.open.keys().copied().collect::<Vec<_>>() {
            self.end(cluster, fault).await?;
        }
        if let Some(links) = &cluster.links {
            links.heal();
        }
        self.record("heal", json!({"phase": "start"}), None);
        for node in 0..cluster.nodes.len() {
            launch(cluster, node).await?;
        }
        membership::finish(cluster).await.context("finish drains")?;
        cluster.wait_whole(HEAL_LIMIT).await?;
        self.record("heal", json!({"phase": "end"}), None);
        Ok(())
    }

    fn resume(&mut self, cluster: &Cluster, node: usize) -> anyhow::Result<()> {
        self.paused.remove(&node);
        match cluster.nodes.get(node).filter(|node| node.running()) {
            Some(node) => node.signal(Signal::SIGCONT),
            // Killed meanwhile by another fault.
            None => Ok(()),
        }
    }

    /// Nodes that run and are not paused.
    fn awake(&self, cluster: &Cluster) -> Vec<usize> {
        let running = cluster.nodes.iter().enumerate().filter(|(_, node)| node.running());
        running.map(|(at, _)| at).filter(|at| !self.paused.contains(at)).collect()
    }

    async fn inject(
        &mut self,
        cluster: &mut Cluster,
        event: &Event,
    ) -> anyhow::Result<(Option<Undo>, Value)> {
        let mut rng = StdRng::seed_from_u64(event.pick);
        let awake = self.awake(cluster);
        match event.nemesis {
            Nemesis::None | Nemesis::Mix => anyhow::bail!("no fault of its own"),
            Nemesis::KillMinority => {
                let count = (cluster.nodes.iter().filter(|node| !node.retired).count() - 1) / 2;
                kill(cluster, choose(&mut rng, &awake, count.max(1))?)
            }
            Nemesis::KillAll => kill(cluster, awake),
            Nemesis::KillLeader => {
                let leader = self.leader(cluster, &mut rng).await?;
                kill(cluster, vec![leader])
            }
            Nemesis::KillMeta => {
                let leader = until(STATUS_LIMIT, "a meta leader", || cluster.meta_leader()).await?;
                kill(cluster, vec![position(cluster, leader)?])
            }
            Nemesis::KillRouter => kill_router(cluster, &mut rng),
            Nemesis::Pause => {
                let node = choose(&mut rng, &awake, 1)?;
                self.pause(cluster, *node.first().context("no node")?)
            }
            Nemesis::PauseLeader => {
                let leader = self.leader(cluster, &mut rng).await?;
                self.pause(cluster, leader)
            }
            Nemesis::PartitionMajority
            | Nemesis::PartitionOneWay
            | Nemesis::PartitionRing
            | Nemesis::PartitionBridge
            | Nemesis::LinkDelay
            | Nemesis::LinkLoss => {
                let (rules, met) = partitions::rules(event.nemesis, cluster, &mut rng)?;
                cluster.links.as_ref().context("links have no proxies")?.set(event.fault, rules);
                Ok((Some(Undo::Links), met))
            }
            Nemesis::Membership => {
                let met = membership::replace_one(cluster, &awake, &mut rng).await?;
                Ok((None, met))
            }
            Nemesis::RollingRestart => {
                let met = restart_all(cluster, &awake).await?;
                Ok((None, met))
            }
        }
    }

    /// The leader of a random shard, as long as it is awake.
    async fn leader(&self, cluster: &Cluster, rng: &mut StdRng) -> anyhow::Result<usize> {
        let pick: usize = rng.random_range(0..usize::MAX);
        until(STATUS_LIMIT, "a leader", || async {
            let status = any_status(cluster).await?;
            let leaders: Vec<u64> = status.shards.iter().filter_map(|shard| shard.leader).collect();
            let leader = leaders.get(pick % leaders.len().max(1)).context("no shard has a leader")?;
            let at = position(cluster, *leader)?;
            let awake =
                cluster.nodes.get(at).is_some_and(|node| node.running()) && !self.paused.contains(&at);
            ensure!(awake, "node {leader} is away already");
            Ok(at)
        })
        .await
    }

    fn pause(&mut self, cluster: &Cluster, at: usize) -> anyhow::Result<(Option<Undo>, Value)> {
        let node = cluster.nodes.get(at).context("no such node")?;
        node.signal(Signal::SIGSTOP)?;
        self.paused.insert(at);
        Ok((Some(Undo::Resume(at)), json!(node.name())))
    }
}

/// The status document, from whichever router answers.
pub async fn any_status(cluster: &Cluster) -> anyhow::Result<ClusterStatus> {
    let mut last = anyhow::anyhow!("no router runs");
    for router in cluster.routers().filter(|router| router.running()) {
        match tokio::time::timeout(Duration::from_secs(2), status(&router.http)).await {
            Ok(Ok(status)) => return Ok(status),
            Ok(Err(error)) => last = error,
            Err(_) => last = anyhow::anyhow!("a router does not answer"),
        }
    }
    Err(last.context("status document"))
}

/// Where the node of this id stands.
pub fn position(cluster: &Cluster, id: u64) -> anyhow::Result<usize> {
    let of_id = |node: &crate::cluster::Node| node.identity().is_ok_and(|identity| identity.node == id);
    cluster.nodes.iter().position(of_id).with_context(|| format!("no node has id {id}"))
}

/// `count` of `from`.
pub fn choose(rng: &mut StdRng, from: &[usize], count: usize) -> anyhow::Result<Vec<usize>> {
    ensure!(!from.is_empty(), "no node is awake");
    let mut left = from.to_vec();
    let mut chosen = Vec::new();
    while chosen.len() < count && !left.is_empty() {
        chosen.push(left.swap_remove(rng.random_range(0..left.len())));
    }
    Ok(chosen)
}

fn kill(cluster: &mut Cluster, nodes: Vec<usize>) -> anyhow::Result<(Option<Undo>, Value)> {
    ensure!(!nodes.is_empty(), "no node is awake");
    let mut names = Vec::new();
    for &at in &nodes {
        let node = cluster.nodes.get_mut(at).context("no such node")?;
        node.kill()?;
        names.push(node.name().to_owned());
    }
    Ok((Some(Undo::Launch(nodes)), json!(names)))
}

fn kill_router(cluster: &mut Cluster, rng: &mut StdRng) -> anyhow::Result<(Option<Undo>, Value)> {
    let running: Vec<usize> =
        cluster.routers().enumerate().filter(|(_, router)| router.running()).map(|(at, _)| at).collect();
    let at = *choose(rng, &running, 1)?.first().context("no router")?;
    cluster.routers_mut().nth(at).context("no such router")?.kill()?;
    Ok((Some(Undo::LaunchRouter(at)), json!(format!("router-{}", at + 1))))
}

/// Starts a node again unless it runs or has been removed.
async fn launch(cluster: &mut Cluster, at: usize) -> anyhow::Result<()> {
    let node = cluster.nodes.get_mut(at).context("no such node")?;
    if node.running() || node.retired {
        return Ok(());
    }
    let name = node.name().to_owned();
    node.launch().await.with_context(|| format!("start {name} again"))
}

async fn launch_router(cluster: &mut Cluster, at: usize) -> anyhow::Result<()> {
    // Those of the beginning may have been removed.
    let seeds: Vec<String> =
        cluster.nodes.iter().filter(|node| !node.retired).map(|node| node.addr.clone()).collect();
    let router = cluster.routers_mut().nth(at).context("no such router")?;
    if router.running() {
        return Ok(());
    }
    router.reseed(&seeds);
    router.launch().await.with_context(|| format!("start router-{} again", at + 1))
}

async fn restart_all(cluster: &mut Cluster, awake: &[usize]) -> anyhow::Result<Value> {
    let mut names = Vec::new();
    for &at in awake {
        let node = cluster.nodes.get_mut(at).context("no such node")?;
        node.terminate().await?;
        node.launch().await?;
        names.push(node.name().to_owned());
        rest(cluster).await?;
    }
    for at in 0..cluster.routers().count() {
        let router = cluster.routers_mut().nth(at).context("no such router")?;
        if router.running() {
            router.terminate().await?;
            launch_router(cluster, at).await?;
        }
    }
    Ok(json!(names))
}

/// Waits until every shard has a leader and all its voters, as somebody who restarts nodes one by one would.
async fn rest(cluster: &Cluster) -> anyhow::Result<()> {
    until(REST_LIMIT, "shards to be healthy", || async {
        let status = any_status(cluster).await?;
        let ill = status.shards.iter().find(|shard| shard.state != "healthy" || shard.leader.is_none());
        ensure!(ill.is_none(), "{ill:?}");
        let away = status.nodes.iter().find(|node| node.state == "suspect" || node.state == "down");
        ensure!(away.is_none(), "{away:?}");
        Ok(())
    })
    .await
}
