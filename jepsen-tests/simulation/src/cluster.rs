//! Runs one schedule: all hosts, tick by tick, on one thread.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use borough_node::{Config, blocking};
use serde::{Deserialize, Serialize};

use crate::host::{End, Host, Process, Steps};
use crate::load::{self, NodeOrder, Shared};
use crate::network::{self, HostId, TICK_NS, Weather};
use crate::schedule::{Fault, Schedule, calm};
use crate::{disk, system, trace, verdict};

/// After the faults, everything must be whole again within this.
const WHOLE_MAX_NS: u64 = 120_000_000_000;
/// The cluster must be made within this.
const CREATE_MAX_NS: u64 = 30_000_000_000;
/// Replicas must be the same this long after the last call.
const EQUAL_MAX_NS: u64 = 30_000_000_000;
/// How often that is looked at.
const EQUAL_EVERY_NS: u64 = 250_000_000;

/// What came of a schedule.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub seed: u64,
    /// Of everything that happened.
    pub hash: String,
    pub events: u64,
    pub simulated_ms: u64,
    pub calls_ok: usize,
    pub calls_unknown: usize,
    pub faults: usize,
    /// A key was too hard to decide.
    pub undecided: bool,
    pub violations: Vec<String>,
}

struct Cluster {
    schedule: Schedule,
    hosts: BTreeMap<HostId, Host>,
    clients: Steps,
    shared: Arc<Shared>,
    paused: BTreeMap<HostId, ()>,
    /// Somebody has asked for this one to be removed for good.
    removing: Option<HostId>,
    violations: Vec<String>,
    faults: usize,
}

/// Runs the schedule of `seed` with its files in the current directory; with `lies`, disks acknowledge what they have not written.
///
/// # Errors
/// When the machine does not let it.
pub fn run(seed: u64, lies: bool) -> anyhow::Result<Outcome> {
    blocking::run_inline_on_this_thread();
    let schedule = Schedule::of(seed);
    network::begin(seed ^ 1, schedule.load.hosts + 1, calm());
    disk::begin(seed ^ 2, lies)?;
    let mut cluster = Cluster::new(schedule)?;
    cluster.live()?;
    let Cluster { shared, mut violations, faults, hosts, clients, .. } = cluster;
    let calls = std::mem::take(&mut *shared.calls.lock());
    let (hash, events) = trace::digest();
    let counts = jepsen_tests::checker::counts(&calls);
    let (broken, undecided) = verdict::of_history(calls);
    violations.extend(broken);
    if counts.ok < 50 {
        violations.push(format!("only {} calls were answered: such a run shows nothing", counts.ok));
    }
    drop((hosts, clients));
    Ok(Outcome {
        seed,
        hash,
        events,
        simulated_ms: system::now_ns() / 1_000_000,
        calls_ok: counts.ok,
        calls_unknown: counts.info,
        faults,
        undecided,
        violations,
    })
}

impl Cluster {
    fn new(schedule: Schedule) -> anyhow::Result<Self> {
        let mut hosts = BTreeMap::new();
        for id in 1..=schedule.load.hosts {
            let config = config(id, &schedule);
            let mut host = Host::new(id, config, schedule.load.seed ^ id as u64)?;
            if id <= schedule.first_hosts {
                host.start()?;
            }
            hosts.insert(id, host);
        }
        let _ = network::start(0);
        let clients = Steps::new()?;
        let shared = Arc::new(Shared::default());
        clients.spawn(load::run(schedule.load, Arc::clone(&shared)));
        Ok(Self {
            schedule,
            hosts,
            clients,
            shared,
            paused: BTreeMap::new(),
            removing: None,
            violations: Vec::new(),
            faults: 0,
        })
    }

    /// The cluster is made, suffers, is repaired and looked at.
    fn live(&mut self) -> anyhow::Result<()> {
        let ready = Arc::clone(&self.shared);
        if !self.tick_until(CREATE_MAX_NS, |_| ready.ready.load(Ordering::Relaxed))? {
            self.violations.push("the cluster could not be made".to_owned());
            return Ok(());
        }
        let mut faults: VecDeque<_> = std::mem::take(&mut self.schedule.faults).into();
        let (begin, end) = (system::now_ns(), self.schedule.end_ns);
        while system::now_ns() < begin + end {
            while let Some((_, fault)) = faults.pop_front_if(|(at, _)| begin + *at <= system::now_ns()) {
                self.suffer(fault)?;
            }
            self.tick()?;
        }
        self.repair()?;
        self.shared.stopping.store(true, Ordering::Relaxed);
        let shared = Arc::clone(&self.shared);
        if !self.tick_until(WHOLE_MAX_NS, |_| shared.finished.lock().is_some())? {
            let why = self.shared.waits_for.lock().clone();
            self.violations
                .push(format!("not whole {} s after the last fault: {why}", WHOLE_MAX_NS / 1_000_000_000));
            return Ok(());
        }
        self.compare()
    }

    /// Waits until the replicas are the same.
    fn compare(&mut self) -> anyhow::Result<()> {
        let Some(map) = self.shared.finished.lock().clone() else { return Ok(()) };
        let held = |(&id, host): (&HostId, &Host)| host.held.lock().clone().map(|engine| (id, engine));
        let engines: BTreeMap<_, _> = self.hosts.iter().filter_map(held).collect();
        let end = system::now_ns() + EQUAL_MAX_NS;
        loop {
            let next = system::now_ns() + EQUAL_EVERY_NS;
            while system::now_ns() < next {
                self.tick()?;
            }
            let unlike = verdict::of_replicas(&map, &engines);
            if unlike.is_empty() {
                return Ok(());
            }
            if system::now_ns() > end {
                self.violations.extend(unlike);
                return Ok(());
            }
        }
    }

    fn tick_until(&mut self, most_ns: u64, done: impl Fn(&Self) -> bool) -> anyhow::Result<bool> {
        let end = system::now_ns() + most_ns;
        while system::now_ns() < end {
            if done(self) {
                return Ok(true);
            }
            self.tick()?;
        }
        Ok(false)
    }

    /// Everything that happens within one tick.
    fn tick(&mut self) -> anyhow::Result<()> {
        network::deliver();
        let until = system::now_ns() + TICK_NS;
        self.clients.step(0, until);
        let mut ended = Vec::new();
        for (&id, host) in &mut self.hosts {
            if !self.paused.contains_key(&id)
                && let Some(end) = host.step(until)
            {
                ended.push((id, end));
            }
        }
        for (id, end) in ended {
            self.take_end(id, end)?;
        }
        system::set_now_ns(until);
        Ok(())
    }

    fn take_end(&mut self, id: HostId, end: End) -> anyhow::Result<()> {
        trace::event(format_args!("h{id} ended: {end:?}"));
        let Some(host) = self.hosts.get_mut(&id) else { return Ok(()) };
        match end {
            End::Well => host.ended(true),
            End::Aborted(why) => {
                if !disk::was_cut(&host.root()) {
                    self.violations.push(format!("h{id} aborted: {why}"));
                }
                host.cut_power(0)?;
            }
            // Started once more after it was removed.
            End::Failed(why) if why.contains("was removed from the cluster") && self.removing == Some(id) => {
                host.ended(true);
            }
            End::Failed(why) => {
                self.violations.push(format!("h{id} ended by itself: {why}"));
                host.ended(false);
            }
        }
        Ok(())
    }

    fn suffer(&mut self, fault: Fault) -> anyhow::Result<()> {
        trace::event(format_args!("fault: {fault:?}"));
        self.faults += 1;
        match fault {
            Fault::Partition { side, one_way } => self.partition(&side, one_way),
            Fault::Heal => network::heal(),
            Fault::Weather(usual_ms, late_ms) => {
                network::set_weather(Weather { usual_ms, late_ms, ..calm() });
            }
            Fault::Order(order) => {
                if let NodeOrder::Remove(host) = order {
                    self.removing = Some(host);
                }
                self.shared.orders.lock().push(order);
            }
            Fault::Pause(host) => drop(self.paused.insert(host, ())),
            Fault::Resume(host) => drop(self.paused.remove(&host)),
            Fault::Kill(id, _)
            | Fault::CutPower(id, _)
            | Fault::CutPowerInSync(id)
            | Fault::Stop(id)
            | Fault::Start(id)
            | Fault::Disk(id, _) => {
                if let Some(host) = self.hosts.get_mut(&id) {
                    to_host(host, &fault)?;
                }
            }
        }
        Ok(())
    }

    fn partition(&self, side: &[HostId], one_way: bool) {
        for &one in side {
            for other in (0..=self.schedule.load.hosts).filter(|other| !side.contains(other)) {
                network::block(one, other);
                if !one_way {
                    network::block(other, one);
                }
            }
        }
    }

    /// No fault is left.
    fn repair(&mut self) -> anyhow::Result<()> {
        trace::event(format_args!("all is repaired"));
        network::heal();
        network::set_weather(calm());
        self.paused.clear();
        for host in self.hosts.values_mut() {
            host.disk_ms.store(1, Ordering::Relaxed);
            disk::cut_at_next_sync(&host.root(), false);
        }
        // One that was told to stop is on its way out.
        let ids: Vec<HostId> = self.hosts.keys().copied().collect();
        let stopping =
            |host: &Host| matches!(&host.process, Process::Running(running) if running.stop.is_cancelled());
        self.tick_until(Duration::from_secs(20).as_nanos() as u64, |cluster| {
            !cluster.hosts.values().any(stopping)
        })?;
        // A power loss that met the last fsync of a process that was being killed ends the next one, at its begin: its files are
        // those of before the loss until then. So whoever has ended is started once more.
        for _ in 0..2 {
            for id in &ids {
                if let Some(host) = self.hosts.get_mut(id)
                    && !host.is_running()
                    && !host.is_removed()
                {
                    host.start()?;
                }
            }
            self.tick_until(Duration::from_secs(1).as_nanos() as u64, |_| false)?;
        }
        Ok(())
    }
}

fn to_host(host: &mut Host, fault: &Fault) -> anyhow::Result<()> {
    match *fault {
        Fault::Kill(_, kept) if host.is_running() => host.kill(kept),
        Fault::CutPower(_, kept) if host.is_running() => host.cut_power(kept)?,
        Fault::CutPowerInSync(_) => disk::cut_at_next_sync(&host.root(), true),
        Fault::Start(_) if !host.is_running() && !host.is_removed() => host.start()?,
        Fault::Disk(_, most) => host.disk_ms.store(most, Ordering::Relaxed),
        Fault::Stop(_) => {
            if let Process::Running(running) = &host.process {
                running.stop.cancel();
            }
        }
        _ => {}
    }
    Ok(())
}

fn config(id: HostId, schedule: &Schedule) -> Config {
    let mut config = Config {
        advertise: network::address(id),
        join: (1..=schedule.load.hosts).map(network::address).collect(),
        cache_bytes: 1 << 20,
        ..Config::default()
    };
    config.log.segment_bytes = schedule.segment_bytes;
    config.log.purge_after_bytes = schedule.purge_after_bytes;
    config.log.cache_bytes = 64 << 10;
    config.raft.down_after = Duration::from_millis(schedule.down_after_ms);
    config.raft.suspect_after = Duration::from_secs(2);
    config.placement.settle = Duration::from_secs(2);
    config.limits.disk_free_bytes_min = 0;
    config.limits.engine_buffer_bytes_max = schedule.engine_buffer_bytes;
    config
}
