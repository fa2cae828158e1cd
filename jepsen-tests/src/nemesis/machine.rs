//! Faults of one node's disk and clocks, by orders to the library that is preloaded into it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::field::Field;
use super::processes::{choose, launch};
use super::{Nemesis, damage};
use crate::cluster::{Cluster, Excuse};
use crate::preload::layout::Word;

/// An fsync that takes this long is slow, and far from the node's limit (`log.flush-deadline`, 20 s).
const SYNC_DELAY_MS: std::ops::Range<u64> = 20..1500;
/// A clock is a tenth too slow or too fast at most: as much as a node's own clock may slew to follow the wall clock.
const RATE_PPM: std::ops::RangeInclusive<u64> = 900_000..=1_100_000;
const NORMAL_PPM: u64 = 1_000_000;
/// Jumps of the wall clock: of seconds, or of hours.
const JUMPS: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(3 * 3600)];

/// How a node's log tells of a fault that may end it, as errors of the operating system read.
const NO_SPACE: &[&str] = &["os error 28", "No space left"];
const FAILED_SYNC: &[&str] = &["os error 5", "Input/output error", "StorageFailure"];

/// An order that lasts until it is taken back.
#[derive(Debug, Clone)]
pub struct Order {
    /// Positions of the nodes, with the count before it.
    nodes: Vec<(usize, u64)>,
    word: Word,
    /// Counts what the order did.
    effect: Word,
}

/// Gives the orders of a fault; what it is for the history.
pub fn order(
    nemesis: Nemesis,
    cluster: &mut Cluster,
    awake: &[usize],
    rng: &mut StdRng,
) -> anyhow::Result<(Order, Value)> {
    let (word, effect) = match nemesis {
        Nemesis::DiskFull => (Word::DiskFull, Word::Refused),
        Nemesis::SlowFsync => (Word::SyncDelayMs, Word::Delayed),
        Nemesis::FailingFsync => (Word::SyncFailures, Word::Failed),
        Nemesis::ClockJump => (Word::WallOffsetNs, Word::WrongTimes),
        Nemesis::ClockDrift => (Word::ClockRatePpm, Word::WrongTimes),
        _ => anyhow::bail!("{} is no order", nemesis.name()),
    };
    let count = rng.random_range(1..=awake.len().max(1));
    let (mut nodes, mut told) = (Vec::new(), Vec::new());
    for at in choose(rng, awake, count)? {
        let value = value(nemesis, rng);
        let node = cluster.nodes.get_mut(at).context("no such node")?;
        if let Some(excuse) = excuse(nemesis) {
            node.excuse(excuse);
        }
        let shim = node.shim()?;
        nodes.push((at, shim.get(effect)?));
        shim.set(word, u64::from_ne_bytes(value.to_ne_bytes()))?;
        told.push(json!({"node": node.name(), "value": value}));
    }
    Ok((Order { nodes, word, effect }, json!({"order": format!("{word:?}"), "nodes": told})))
}

fn value(nemesis: Nemesis, rng: &mut StdRng) -> i64 {
    let unsigned = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    match nemesis {
        Nemesis::SlowFsync => unsigned(rng.random_range(SYNC_DELAY_MS)),
        // Once, or for as long as it lasts.
        Nemesis::FailingFsync => unsigned(if rng.random_bool(0.5) { 1 } else { 1_000_000 }),
        Nemesis::ClockDrift => unsigned(rng.random_range(RATE_PPM)),
        Nemesis::ClockJump => {
            let longest = *JUMPS.get(rng.random_range(0..JUMPS.len())).unwrap_or(&Duration::ZERO);
            let ns = unsigned(rng.random_range(0..unsigned_ns(longest)));
            if rng.random_bool(0.5) { ns } else { -ns }
        }
        _ => 1,
    }
}

fn unsigned_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Faults after which a node may end itself, if it says so.
fn excuse(nemesis: Nemesis) -> Option<Excuse> {
    match nemesis {
        Nemesis::DiskFull => Some(Excuse { fault: nemesis.name(), told_by: NO_SPACE }),
        Nemesis::FailingFsync => Some(Excuse { fault: nemesis.name(), told_by: FAILED_SYNC }),
        _ => None,
    }
}

impl Order {
    /// Positions of the nodes.
    pub fn nodes(&self) -> Vec<usize> {
        self.nodes.iter().map(|(at, _)| *at).collect()
    }

    /// Takes the order back; how often it did something.
    ///
    /// # Errors
    /// Of the control pages.
    pub fn take_back(&self, cluster: &Cluster) -> anyhow::Result<u64> {
        // A clock goes on from where it is, at its right speed.
        let normal = if self.word == Word::ClockRatePpm { NORMAL_PPM } else { 0 };
        let mut effects = 0;
        for &(at, before) in &self.nodes {
            let shim = cluster.nodes.get(at).context("no such node")?.shim()?;
            shim.set(self.word, normal)?;
            effects += shim.get(self.effect)? - before;
        }
        Ok(effects)
    }
}

/// Kills these nodes, and takes from each what it had not synced.
pub fn lose_power(cluster: &mut Cluster, nodes: &[usize], rng: &mut StdRng) -> anyhow::Result<Value> {
    ensure!(!nodes.is_empty(), "no node is awake");
    // All at once: none goes on while another is already without.
    kill(cluster, nodes)?;
    let mut told = Vec::new();
    for &at in nodes {
        let node = cluster.nodes.get(at).context("no such node")?;
        let loss = node.shim()?.lose_power(rng).with_context(|| node.name().to_owned())?;
        told.push(json!({"node": node.name(), "loss": loss}));
    }
    Ok(json!(told))
}

fn kill(cluster: &mut Cluster, nodes: &[usize]) -> anyhow::Result<()> {
    for &at in nodes {
        let node = cluster.nodes.get_mut(at).context("no such node")?;
        if node.running() {
            node.kill()?;
        }
    }
    Ok(())
}

/// Starts nodes again of which an fsync failed, half of the time without what they had not synced.
pub async fn after_failed_syncs(field: &Field<'_>, nodes: &[usize], seed: u64) -> anyhow::Result<Value> {
    let mut rng = StdRng::seed_from_u64(seed);
    // Nobody starts them again before their power is lost.
    let (ended, power) = field.with(|cluster| end_after_failed_syncs(cluster, nodes, &mut rng))?;
    for &at in nodes {
        launch(field, at).await?;
    }
    Ok(json!({"endedThemselves": ended, "powerLost": power}))
}

fn end_after_failed_syncs(
    cluster: &mut Cluster,
    nodes: &[usize],
    rng: &mut StdRng,
) -> anyhow::Result<(Vec<String>, Value)> {
    let (mut members, mut ended) = (Vec::new(), Vec::new());
    for &at in nodes {
        let node = cluster.nodes.get_mut(at).context("no such node")?;
        if node.take_excused()? {
            ended.push(node.name().to_owned());
        }
        if !node.retired {
            members.push(at);
        }
    }
    if rng.random_bool(0.5) && !members.is_empty() {
        return Ok((ended, lose_power(cluster, &members, rng)?));
    }
    kill(cluster, &members)?;
    Ok((ended, Value::Null))
}

/// Starts nodes again that a fault has ended, as a supervisor does, but for those `under` one; their names.
pub async fn restart_excused(field: &Field<'_>, under: &BTreeSet<usize>) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for at in (0..field.with(|cluster| cluster.nodes.len())).filter(|at| !under.contains(at)) {
        let excused = field.with(|cluster| {
            let node = cluster.nodes.get_mut(at).context("no such node")?;
            anyhow::Ok(!node.excused_by()?.is_empty())
        })?;
        if excused {
            names.push(field.name(at));
            damage::launch(field, at).await?;
        }
    }
    Ok(names)
}
