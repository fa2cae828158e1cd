//! Carries a schedule out on a running cluster, takes every fault down, and undoes it.
//!
//! Each nemesis goes through its own schedule beside the others, so faults of several overlap whatever each takes. Only
//! what changes every node in turn, or who belongs to the cluster, is one at a time: two of these would wait for each other.
//! Nodes that a fault has ended with every right are started again meanwhile, as a supervisor does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::field::Field;
use super::machine::{self, Order, restart_excused};
use super::processes::{DoesNotStart, choose, kill, kill_router, launch, launch_router, roll, roll_back};
use super::{Event, Nemesis, Phase, damage, membership, partitions, reorder};
use crate::cluster::{Cluster, HEAL_LIMIT};
use crate::record::{Kind, NEMESIS, Recorder};
use crate::wait::until;

/// For a router to tell who leads, while other faults last.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at whether a fault has ended a node.
const SUPERVISE_EVERY: Duration = Duration::from_millis(500);
/// The same while the cluster heals.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// How a fault is undone.
#[derive(Debug, Clone)]
enum Undo {
    /// Positions of nodes that were killed.
    Launch(Vec<usize>),
    Resume(usize),
    LaunchRouter(usize),
    Links,
    Callers,
    /// Everything goes back to the build under test.
    Build,
    /// Messages keep their order again.
    Reorder(reorder::Order),
    /// To the library that is preloaded.
    Order(Order),
    /// Nodes of which an fsync failed; whatever it is that they do then, they are started again, by this seed without what
    /// they had not synced.
    Failing(Order, u64),
    /// A node with a flipped bit.
    Damaged(usize),
}

/// What has been done so far.
#[derive(Debug, Default)]
struct Done {
    open: BTreeMap<usize, (Nemesis, Undo)>,
    paused: BTreeSet<usize>,
    /// Faults that took effect, by nemesis.
    injected: BTreeMap<&'static str, usize>,
    failures: Vec<String>,
}

/// Makes the faults of a run.
#[derive(Debug)]
pub struct Director {
    recorder: Recorder,
    /// For `upgrade`.
    other_binary: Option<PathBuf>,
    done: Mutex<Done>,
    /// Held by what goes through all nodes.
    in_turn: tokio::sync::Mutex<()>,
}

impl Director {
    pub fn new(recorder: Recorder, other_binary: Option<PathBuf>) -> Self {
        Self { recorder, other_binary, done: Mutex::default(), in_turn: tokio::sync::Mutex::default() }
    }

    fn done<T>(&self, work: impl FnOnce(&mut Done) -> T) -> T {
        work(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Faults that took effect.
    pub fn injected(&self) -> usize {
        self.done(|done| done.injected.values().sum())
    }

    /// Faults of one nemesis that took effect.
    pub fn injected_by(&self, nemesis: Nemesis) -> usize {
        self.done(|done| done.injected.get(nemesis.name()).copied().unwrap_or(0))
    }

    /// Why others did not.
    pub fn failures(&self) -> Vec<String> {
        self.done(|done| done.failures.clone())
    }

    /// Carries out the schedule, and waits for the end of the run.
    ///
    /// # Errors
    /// What the cluster should have survived: a node or router that does not start again.
    pub async fn run(&self, cluster: &mut Cluster, events: &[Event], length: Duration) -> anyhow::Result<()> {
        let (field, started) = (Field::new(cluster), Instant::now());
        let lanes: BTreeSet<usize> = events.iter().map(|event| event.lane).collect();
        let lanes = lanes.into_iter().map(|lane| {
            let events: Vec<&Event> = events.iter().filter(|event| event.lane == lane).collect();
            self.run_lane(&field, events, started, length)
        });
        let faults = async {
            try_join_all(lanes).await?;
            tokio::time::sleep_until((started + length).into()).await;
            Ok(())
        };
        self.supervised(&field, faults).await
    }

    /// Does `work`; meanwhile nodes that a fault of before has ended are started again.
    async fn supervised(
        &self,
        field: &Field<'_>,
        work: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let supervise = async {
            loop {
                tokio::time::sleep(SUPERVISE_EVERY).await;
                if let Err(error) = self.restart_ended(field).await {
                    return error;
                }
            }
        };
        tokio::select! {
            done = work => done,
            error = supervise => Err(error),
        }
    }

    /// Starts nodes again that a fault of before has ended; whether there were any.
    async fn restart_ended(&self, field: &Field<'_>) -> anyhow::Result<bool> {
        let again = restart_excused(field, &self.ordered()).await?;
        if !again.is_empty() {
            self.record("started again", json!({"met": again}), None);
        }
        Ok(!again.is_empty())
    }

    /// Nodes under a fault that may end them, and that would end them again.
    fn ordered(&self) -> BTreeSet<usize> {
        self.done(|done| {
            let orders = done.open.values().filter_map(|(_, undo)| match undo {
                Undo::Order(order) | Undo::Failing(order, _) => Some(order.nodes()),
                _ => None,
            });
            orders.flatten().collect()
        })
    }

    /// One nemesis' part of the schedule.
    async fn run_lane(
        &self,
        field: &Field<'_>,
        events: Vec<&Event>,
        started: Instant,
        length: Duration,
    ) -> anyhow::Result<()> {
        for event in events {
            tokio::time::sleep_until((started + event.at.min(length)).into()).await;
            match event.phase {
                // Behind the schedule: what ends a fault counts, what begins one comes too late.
                Phase::Begin if started.elapsed() > length => {}
                Phase::Begin => Box::pin(self.begin(field, event)).await?,
                Phase::End => Box::pin(self.end(field, event.fault)).await?,
            }
        }
        Ok(())
    }

    fn record(&self, f: &str, value: Value, error: Option<String>) {
        self.recorder.end(NEMESIS, Kind::Info, f, "", value, error);
    }

    async fn begin(&self, field: &Field<'_>, event: &Event) -> anyhow::Result<()> {
        let (name, fault) = (event.nemesis.name(), event.fault);
        let long = event.nemesis.takes_time();
        if long {
            self.record(name, json!({"phase": "start", "fault": fault}), None);
        }
        let phase = match (long, event.nemesis.ends_by_itself()) {
            (_, true) => "end",
            (true, false) => "done",
            (false, false) => "start",
        };
        match Box::pin(self.inject(field, event)).await {
            Ok((undo, met)) => {
                self.done(|done| {
                    *done.injected.entry(name).or_default() += 1;
                    if let Some(undo) = undo {
                        done.open.insert(fault, (event.nemesis, undo));
                    }
                });
                self.record(name, json!({"phase": phase, "fault": fault, "met": met}), None);
                Ok(())
            }
            Err(error) => {
                let told = format!("{error:#}");
                self.done(|done| done.failures.push(format!("{name}: {told}")));
                let phase = if long { phase } else { "failed" };
                self.record(name, json!({"phase": phase, "fault": fault}), Some(told));
                if error.is::<DoesNotStart>() { Err(error.context(name)) } else { Ok(()) }
            }
        }
    }

    async fn end(&self, field: &Field<'_>, fault: usize) -> anyhow::Result<()> {
        let Some((nemesis, undo)) = self.done(|done| done.open.remove(&fault)) else { return Ok(()) };
        let mut ended = json!({"phase": "end", "fault": fault});
        let met = |met: Value| json!({"phase": "end", "fault": fault, "met": met});
        match undo {
            Undo::Launch(nodes) => {
                for node in nodes {
                    launch(field, node).await?;
                }
            }
            Undo::Resume(node) => self.resume(field, node)?,
            Undo::LaunchRouter(at) => launch_router(field, at).await?,
            Undo::Links => field.with(|cluster| cluster.links.iter().for_each(|links| links.clear(fault))),
            Undo::Callers => {
                let cuts = field.with(|cluster| {
                    let callers = cluster.callers.as_ref();
                    callers.inspect(|callers| callers.clear(fault)).map(crate::callers::Callers::cuts)
                });
                ended = json!({"phase": "end", "fault": fault, "callsCutSoFar": cuts});
            }
            Undo::Build => {
                let _in_turn = self.in_turn.lock().await;
                roll_back(field).await?;
            }
            Undo::Reorder(order) => {
                let overtaken = reorder::end(field, &order).await?;
                self.took_effect(nemesis, overtaken);
                ended = met(json!({"overtaken": overtaken}));
            }
            Undo::Order(order) => {
                self.took_effect(nemesis, field.with(|cluster| order.take_back(cluster))?);
                let again = restart_excused(field, &self.ordered()).await?;
                ended = met(json!({"startedAgain": again}));
            }
            Undo::Failing(order, seed) => {
                self.took_effect(nemesis, field.with(|cluster| order.take_back(cluster))?);
                ended = met(machine::after_failed_syncs(field, &order.nodes(), seed).await?);
            }
            Undo::Damaged(node) => ended = met(json!({"refused": damage::launch(field, node).await?})),
        }
        self.record(nemesis.name(), ended, None);
        Ok(())
    }

    /// An order that nothing was done upon was no fault.
    fn took_effect(&self, nemesis: Nemesis, effects: u64) {
        if effects == 0 {
            self.done(|done| {
                let injected = done.injected.entry(nemesis.name()).or_default();
                *injected = injected.saturating_sub(1);
                done.failures.push(format!("{}: nothing met it", nemesis.name()));
            });
        }
    }

    /// Undoes everything, and waits until the cluster is whole.
    ///
    /// # Errors
    /// What does not start again or does not become whole.
    pub async fn heal(&self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let field = Field::new(cluster);
        for fault in self.done(|done| done.open.keys().copied().collect::<Vec<_>>()) {
            Box::pin(self.end(&field, fault)).await?;
        }
        field.with(|cluster| {
            cluster.links.iter().for_each(crate::proxy::Links::heal);
            cluster.callers.iter().for_each(crate::callers::Callers::heal);
        });
        self.record("heal", json!({"phase": "start"}), None);
        for node in 0..field.with(|cluster| cluster.nodes.len()) {
            launch(&field, node).await?;
        }
        self.supervised(&field, membership::finish(&field)).await.context("finish drains")?;
        self.wait_whole(cluster).await?;
        self.record("heal", json!({"phase": "end"}), None);
        Ok(())
    }

    /// Waits until all is whole. What a fault has done to a node may end it only now.
    async fn wait_whole(&self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let started = Instant::now();
        while let Err(error) = cluster.wait_whole(LOOK_LIMIT).await {
            let again = self.restart_ended(&Field::new(cluster)).await?;
            if !again && started.elapsed() > HEAL_LIMIT {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Starts nodes again that a fault has ended after all was healed, and waits until all is whole; whether there were any.
    ///
    /// # Errors
    /// As [`Self::heal`].
    pub async fn revive(&self, cluster: &mut Cluster) -> anyhow::Result<bool> {
        let again = self.restart_ended(&Field::new(cluster)).await?;
        if again {
            self.wait_whole(cluster).await?;
        }
        Ok(again)
    }

    fn resume(&self, field: &Field<'_>, at: usize) -> anyhow::Result<()> {
        self.done(|done| done.paused.remove(&at));
        field.with(|cluster| {
            let node = cluster.nodes.get_mut(at).context("no such node")?;
            // Killed meanwhile by another fault, or ended by one after a new start.
            if !node.running() || node.process()?.ended()?.is_some() {
                return Ok(());
            }
            node.signal(Signal::SIGCONT)
        })
    }

    /// Nodes that run and are not paused.
    fn awake(&self, field: &Field<'_>) -> Vec<usize> {
        let running = field.running();
        self.done(|done| running.into_iter().filter(|at| !done.paused.contains(at)).collect())
    }

    async fn inject(&self, field: &Field<'_>, event: &Event) -> anyhow::Result<(Option<Undo>, Value)> {
        let mut rng = StdRng::seed_from_u64(event.pick);
        let killed = |nodes: Vec<usize>| kill(field, &nodes).map(|met| (Some(Undo::Launch(nodes)), met));
        match event.nemesis {
            Nemesis::None | Nemesis::Mix => anyhow::bail!("no fault of its own"),
            Nemesis::KillMinority => {
                let members = field.with(|cluster| cluster.nodes.iter().filter(|node| !node.retired).count());
                let count = members.saturating_sub(1) / 2;
                killed(choose(&mut rng, &self.awake(field), count.max(1))?)
            }
            Nemesis::KillAll => killed(self.awake(field)),
            Nemesis::KillLeader => killed(vec![self.leader(field, &mut rng).await?]),
            Nemesis::KillMeta => {
                killed(vec![until(STATUS_LIMIT, "a meta leader", || field.meta_leader()).await?])
            }
            Nemesis::KillRouter => {
                let at = kill_router(field, &mut rng)?;
                Ok((Some(Undo::LaunchRouter(at)), json!(format!("router-{}", at + 1))))
            }
            Nemesis::Pause => {
                let node = choose(&mut rng, &self.awake(field), 1)?;
                self.pause(field, *node.first().context("no node")?)
            }
            Nemesis::PauseLeader => {
                let leader = self.leader(field, &mut rng).await?;
                self.pause(field, leader)
            }
            Nemesis::PartitionMajority
            | Nemesis::PartitionOneWay
            | Nemesis::PartitionRing
            | Nemesis::PartitionBridge
            | Nemesis::LinkDelay
            | Nemesis::LinkLoss => field.with(|cluster| {
                let (rules, met) = partitions::rules(event.nemesis, cluster, &mut rng)?;
                cluster.links.as_ref().context("links have no proxies")?.set(event.fault, rules);
                Ok((Some(Undo::Links), met))
            }),
            Nemesis::LinkReorder => {
                let (order, met) = reorder::begin(field, &self.awake(field), &mut rng).await?;
                Ok((Some(Undo::Reorder(order)), met))
            }
            Nemesis::CutCallers => {
                let share = rng.random_range(0.02..0.25);
                field.with(|cluster| {
                    cluster.callers.as_ref().context("callers have no proxies")?.set(event.fault, share);
                    Ok((Some(Undo::Callers), json!({"ofCalls": share})))
                })
            }
            Nemesis::Membership => {
                let _in_turn = self.in_turn.lock().await;
                let met = membership::replace_one(field, &self.awake(field), &mut rng).await?;
                Ok((None, met))
            }
            Nemesis::RollingRestart => {
                let _in_turn = self.in_turn.lock().await;
                let met = roll(field, &self.awake(field), None).await?;
                Ok((None, met))
            }
            Nemesis::Upgrade => {
                let _in_turn = self.in_turn.lock().await;
                let binary = self.other_binary.as_deref().context("there is no other build")?;
                // Before it begins: what is done in part must be undone as well.
                self.done(|done| done.open.insert(event.fault, (event.nemesis, Undo::Build)));
                let awake = self.awake(field);
                let nodes = choose(&mut rng, &awake, awake.len())?;
                let met = roll(field, &nodes, Some(binary)).await?;
                Ok((Some(Undo::Build), met))
            }
            Nemesis::DiskFull
            | Nemesis::SlowFsync
            | Nemesis::FailingFsync
            | Nemesis::PowerLoss
            | Nemesis::PowerLossAll
            | Nemesis::BitFlip
            | Nemesis::ClockJump
            | Nemesis::ClockDrift => self.inject_into_machine(field, event.nemesis, &mut rng).await,
        }
    }

    /// Faults of disk and clocks.
    async fn inject_into_machine(
        &self,
        field: &Field<'_>,
        nemesis: Nemesis,
        rng: &mut StdRng,
    ) -> anyhow::Result<(Option<Undo>, Value)> {
        if nemesis == Nemesis::BitFlip {
            damage::repaired(field).await?;
            let (node, met) = damage::flip(field, &self.awake(field), rng).await?;
            return Ok((Some(Undo::Damaged(node)), met));
        }
        let awake = self.awake(field);
        if matches!(nemesis, Nemesis::PowerLoss | Nemesis::PowerLossAll) {
            let count = if nemesis == Nemesis::PowerLoss { 1 } else { awake.len() };
            let nodes = choose(rng, &awake, count)?;
            let met = field.with(|cluster| machine::lose_power(cluster, &nodes, rng))?;
            return Ok((Some(Undo::Launch(nodes)), met));
        }
        let (order, met) = field.with(|cluster| machine::order(nemesis, cluster, &awake, rng))?;
        let failing = nemesis == Nemesis::FailingFsync;
        let undo = if failing { Undo::Failing(order, rng.random()) } else { Undo::Order(order) };
        Ok((Some(undo), met))
    }

    /// The leader of a random shard, as long as it is awake.
    async fn leader(&self, field: &Field<'_>, rng: &mut StdRng) -> anyhow::Result<usize> {
        let pick: usize = rng.random_range(0..usize::MAX);
        until(STATUS_LIMIT, "a leader", || async {
            let status = field.status().await?;
            let leaders: Vec<u64> = status.shards.iter().filter_map(|shard| shard.leader).collect();
            let leader = leaders.get(pick % leaders.len().max(1)).context("no shard has a leader")?;
            let at = field.position(*leader)?;
            ensure!(self.awake(field).contains(&at), "node {leader} is away already");
            Ok(at)
        })
        .await
    }

    fn pause(&self, field: &Field<'_>, at: usize) -> anyhow::Result<(Option<Undo>, Value)> {
        let name = field.with(|cluster| {
            let node = cluster.nodes.get(at).context("no such node")?;
            node.signal(Signal::SIGSTOP)?;
            anyhow::Ok(node.name().to_owned())
        })?;
        self.done(|done| done.paused.insert(at));
        Ok((Some(Undo::Resume(at)), json!(name)))
    }
}
