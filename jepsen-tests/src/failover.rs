//! How long shards stand still when their leader dies: a distribution over many kills, held against the promise.
//!
//! A prober for each shard writes all the time. Again and again a node that leads is killed, and the time is taken until
//! every shard that it led has acknowledged a write that was sent after the kill. Then it is started again, and all must
//! be whole before the next one dies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::cluster::{Cluster, HEAL_LIMIT, Options};
use crate::replicas;
use crate::runner::Engine;
use crate::stall::Stalls;
use crate::wait::until;

mod figures;
mod probe;

pub use figures::{Kill, Summary};
use probe::Probes;

/// For the shards of the dead to be led again; what takes longer is no failover.
const BACK_LIMIT: Duration = Duration::from_secs(60);
/// For every shard to have a leader before a kill.
const LED_LIMIT: Duration = Duration::from_secs(30);
/// Between the cluster being whole and the next kill, in milliseconds: kills are to meet heartbeats at any phase.
const CALM_MS: std::ops::Range<u64> = 200..1500;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Failover {
    pub kills: u32,
    pub seed: u64,
    pub nodes: usize,
    pub shards: u32,
    /// The nodes' longest election timeout; the shortest is three quarters of it, as in their defaults.
    pub election_timeout: Duration,
    pub engine: Option<Engine>,
    /// Where `failover.jsonl`, `failover.txt` and the nodes' logs go.
    pub dir: PathBuf,
}

/// The cluster did not come back from a kill: the product's fault, where other errors are the harness's.
#[derive(Debug, thiserror::Error)]
#[error("after kill {0}")]
pub struct NotHealed(u32);

/// Who leads what, by the nodes' names.
type Leaders = BTreeMap<String, BTreeSet<u32>>;

/// Makes the kills and gives what was measured.
///
/// # Errors
/// When the cluster does not start, does not become whole again, or a file cannot be written; what was measured until then
/// is in `failover.jsonl`.
pub async fn run(failover: &Failover) -> anyhow::Result<Summary> {
    // An earlier run's nodes are not to be started again.
    ensure!(!failover.dir.exists(), "{} exists already", failover.dir.display());
    std::fs::create_dir_all(&failover.dir).with_context(|| format!("make {}", failover.dir.display()))?;
    let mut cluster = Cluster::start(options(failover)).await.context("start the cluster")?;
    let stalls = Stalls::start(&failover.dir)?;
    let probes = Probes::start(&cluster).await?;
    let mut rng = StdRng::seed_from_u64(failover.seed);
    let path = failover.dir.join("failover.jsonl");
    let mut lines = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut summary = Summary::new(failover)?;
    for number in 1..=failover.kills {
        let calm = Duration::from_millis(rng.random_range(CALM_MS));
        tokio::time::sleep(calm).await;
        let kill = Box::pin(kill_one(&mut cluster, &probes, &stalls, &mut rng, number)).await;
        let kill = kill.context(NotHealed(number))?;
        writeln!(lines, "{}", serde_json::to_string(&kill)?).context("write failover.jsonl")?;
        crate::say(&kill);
        summary.add(&kill)?;
        cluster.wait_whole(HEAL_LIMIT).await.context(NotHealed(number))?;
    }
    probes.stop().await;
    let text = summary.to_string();
    std::fs::write(failover.dir.join("failover.txt"), format!("{text}\n")).context("write failover.txt")?;
    drop(cluster);
    remove_data(&failover.dir);
    Ok(summary)
}

fn options(failover: &Failover) -> Options {
    let millis = failover.election_timeout.as_millis();
    let mut env = vec![
        ("BOROUGH_RAFT__ELECTION_TIMEOUT_MAX".to_owned(), format!("{millis}ms")),
        ("BOROUGH_RAFT__ELECTION_TIMEOUT_MIN".to_owned(), format!("{}ms", millis * 3 / 4)),
    ];
    if let Some(engine) = failover.engine {
        env.push(("BOROUGH_ENGINE".to_owned(), engine.name().to_owned()));
    }
    Options {
        nodes: failover.nodes,
        shards: failover.shards,
        env,
        dir: Some(failover.dir.clone()),
        ..Options::default()
    }
}

/// Kills the leader of a random shard, measures, and starts it again.
async fn kill_one(
    cluster: &mut Cluster,
    probes: &Probes,
    stalls: &Stalls,
    rng: &mut StdRng,
    number: u32,
) -> anyhow::Result<Kill> {
    let shards = probes.shards();
    let leaders = until(LED_LIMIT, "every shard to have a leader", || leaders(cluster, &shards)).await?;
    // A node that leads more is met more often, as in life.
    let shard = *shards.get(rng.random_range(0..shards.len())).context("no shard")?;
    let (victim, led) = leaders.iter().find(|(_, led)| led.contains(&shard)).context("no leader")?;
    let at = cluster.nodes.iter().position(|node| node.name() == victim).context("no such node")?;
    let killed = Instant::now();
    cluster.nodes.get_mut(at).context("no such node")?.kill()?;
    let back = probes.back(led, killed, BACK_LIMIT).await.with_context(|| format!("{victim} led {led:?}"))?;
    let (slowest, failover) = back.iter().max_by_key(|(_, took)| **took).context("it led nothing")?;
    let end = killed + *failover;
    let others = shards.iter().copied().filter(|shard| !led.contains(shard));
    let gap = others.filter_map(|shard| probes.longest_gap(shard, killed, end)).max();
    let kill = Kill {
        kill: number,
        node: victim.clone(),
        led: led.iter().copied().collect(),
        failover_us: micros(*failover),
        slowest_shard: *slowest,
        others_gap_us: gap.map(micros),
        stalled_us: micros(stalls.between(killed, end)),
    };
    probes.forget(killed);
    cluster.nodes.get_mut(at).context("no such node")?.launch().await?;
    Ok(kill)
}

/// Who says that it leads; each of `shards` must have exactly one who does.
async fn leaders(cluster: &Cluster, shards: &[u32]) -> anyhow::Result<Leaders> {
    let mut leaders = Leaders::new();
    let mut led = Vec::new();
    for (node, list) in replicas::lists(cluster, false).await? {
        let of_node =
            list.replicas.iter().filter(|replica| replica.leader).filter_map(|replica| replica.shard);
        let of_node: BTreeSet<u32> = of_node.collect();
        led.extend(of_node.iter().copied());
        leaders.insert(node, of_node);
    }
    led.sort_unstable();
    ensure!(led == shards, "leaders: {leaders:?}");
    Ok(leaders)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Data directories are of use only when it failed.
fn remove_data(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}
