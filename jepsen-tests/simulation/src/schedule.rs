//! What happens when: a schedule is made from its seed alone, before anything runs.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::load::{Load, NodeOrder};
use crate::network::{HostId, TICK_NS, Weather};

const SECOND_NS: u64 = 1_000_000_000;

/// Something done to the cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// `kill -9`; of what the engine has not flushed, so many batches are left.
    Kill(HostId, usize),
    /// The power goes.
    CutPower(HostId, usize),
    /// The power goes in the middle of the next `fsync`.
    CutPowerInSync(HostId),
    /// Told to end, as by `SIGTERM`.
    Stop(HostId),
    /// Starts what does not run.
    Start(HostId),
    /// What a host's process does not get to do for a while, as by `SIGSTOP`.
    Pause(HostId),
    Resume(HostId),
    /// Nothing comes through between these and all others, or only not from these.
    Partition {
        side: Vec<HostId>,
        one_way: bool,
    },
    Heal,
    /// Each `fsync` takes up to so many milliseconds.
    Disk(HostId, u64),
    Weather(u64, u64),
    Order(NodeOrder),
}

/// A cluster, a load and what is done to it.
#[derive(Debug)]
pub struct Schedule {
    pub load: Load,
    /// Hosts that are there from the beginning; the others join.
    pub first_hosts: usize,
    pub segment_bytes: u64,
    pub purge_after_bytes: u64,
    /// From where engines are written now and then to where they are written only when they are flushed.
    pub engine_buffer_bytes: u64,
    /// When a silent node counts as down, in milliseconds.
    pub down_after_ms: u64,
    /// By the time since the cluster was made, in nanoseconds.
    pub faults: Vec<(u64, Fault)>,
    /// Then everything is repaired.
    pub end_ns: u64,
}

/// Chunks arrive soon, some a little later.
pub fn calm() -> Weather {
    Weather { usual_ms: 1, late_ms: 8, late_share: 0.05 }
}

impl Schedule {
    /// The schedule of this seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let first_hosts = rng.random_range(3..=4);
        let hosts = first_hosts + rng.random_range(0..=1);
        let load = Load {
            seed,
            shards: rng.random_range(2..=4),
            replicas: 3,
            callers: rng.random_range(4..=8),
            hosts,
        };
        let end_ns = rng.random_range(12..=25) * SECOND_NS;
        let mut schedule = Self {
            load,
            first_hosts,
            segment_bytes: 64 << 10,
            purge_after_bytes: rng.random_range(1..=6) * (16 << 10),
            engine_buffer_bytes: 0,
            down_after_ms: rng.random_range(4..=20) * 1000,
            faults: Vec::new(),
            end_ns,
        };
        schedule.membership(&mut rng);
        let mut at = SECOND_NS / 2;
        while at < end_ns {
            schedule.add(at, &mut rng);
            at += rng.random_range(200..2500) * TICK_NS;
        }
        schedule.faults.sort_by_key(|(at, _)| *at);
        // Drawn last, so that seeds from before it was drawn mean what they meant.
        schedule.engine_buffer_bytes = 1 << rng.random_range(16..=21);
        schedule
    }

    /// Hosts that join, and perhaps one that is removed then.
    fn membership(&mut self, rng: &mut StdRng) {
        for host in self.first_hosts + 1..=self.load.hosts {
            self.faults.push((rng.random_range(0..self.end_ns / 2), Fault::Start(host)));
        }
        if self.load.hosts > 3 && rng.random_bool(0.5) {
            let gone = rng.random_range(1..=self.load.hosts);
            let at = rng.random_range(self.end_ns / 4..self.end_ns);
            self.faults.push((at, Fault::Order(NodeOrder::Remove(gone))));
        }
        if rng.random_bool(0.3) {
            self.faults.push((rng.random_range(0..self.end_ns), Fault::Order(NodeOrder::Rebalance)));
        }
    }

    fn add(&mut self, at: u64, rng: &mut StdRng) {
        let host = rng.random_range(1..=self.load.hosts);
        let later = at + rng.random_range(50..4000) * TICK_NS;
        let kept = rng.random_range(0..30);
        let pair = match rng.random_range(0..100_u32) {
            0..18 => (Fault::Kill(host, kept), Fault::Start(host)),
            18..32 => (Fault::CutPower(host, kept), Fault::Start(host)),
            32..44 => (Fault::CutPowerInSync(host), Fault::Start(host)),
            44..50 => (Fault::Stop(host), Fault::Start(host)),
            50..58 => (Fault::Pause(host), Fault::Resume(host)),
            58..78 => (self.partition(rng), Fault::Heal),
            78..86 => (Fault::Disk(host, rng.random_range(20..300)), Fault::Disk(host, 1)),
            86..95 => {
                (Fault::Weather(rng.random_range(1..40), rng.random_range(50..500)), Fault::Weather(1, 8))
            }
            _ => {
                // All at once, as in a fire.
                for host in 1..=self.load.hosts {
                    let kept = rng.random_range(0..30);
                    self.faults.push((at, Fault::CutPower(host, kept)));
                    self.faults.push((later + rng.random_range(0..500) * TICK_NS, Fault::Start(host)));
                }
                return;
            }
        };
        self.faults.push((at, pair.0));
        self.faults.push((later, pair.1));
    }

    fn partition(&self, rng: &mut StdRng) -> Fault {
        let mut side: Vec<HostId> = (1..=self.load.hosts).filter(|_| rng.random_bool(0.4)).collect();
        if side.is_empty() {
            side.push(rng.random_range(1..=self.load.hosts));
        }
        // The clients are on some side, too: they reach those with whom they are.
        if rng.random_bool(0.2) {
            side.push(0);
        }
        Fault::Partition { side, one_way: rng.random_bool(0.3) }
    }
}
