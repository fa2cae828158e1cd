//! What goes wrong during a run, and when.
//!
//! The schedule follows from the seed alone; which node a fault meets also depends on who leads when it comes. Each nemesis
//! has a schedule of its own, and faults of several overlap. Everything is undone before the final reads.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

mod damage;
mod director;
mod field;
mod machine;
mod membership;
mod partitions;
mod processes;
mod reorder;

pub use director::Director;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nemesis {
    None,
    KillMinority,
    KillLeader,
    KillMeta,
    KillAll,
    KillRouter,
    Pause,
    PauseLeader,
    PartitionMajority,
    PartitionOneWay,
    PartitionRing,
    PartitionBridge,
    LinkDelay,
    LinkLoss,
    LinkReorder,
    CutCallers,
    Membership,
    RollingRestart,
    DiskFull,
    SlowFsync,
    FailingFsync,
    PowerLoss,
    PowerLossAll,
    BitFlip,
    ClockJump,
    ClockDrift,
    Upgrade,
    Mix,
}

/// Begin or end of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Begin,
    End,
}

/// A line of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Since the begin of the load.
    pub at: Duration,
    /// Which of the nemeses given it belongs to: each goes through its own events beside the others.
    pub lane: usize,
    /// Number of the fault; its begin and end share it.
    pub fault: usize,
    pub nemesis: Nemesis,
    pub phase: Phase,
    /// Decides what the fault meets.
    pub pick: u64,
}

impl Nemesis {
    pub const ALL: [Self; 28] = [
        Self::None,
        Self::KillMinority,
        Self::KillLeader,
        Self::KillMeta,
        Self::KillAll,
        Self::KillRouter,
        Self::Pause,
        Self::PauseLeader,
        Self::PartitionMajority,
        Self::PartitionOneWay,
        Self::PartitionRing,
        Self::PartitionBridge,
        Self::LinkDelay,
        Self::LinkLoss,
        Self::LinkReorder,
        Self::CutCallers,
        Self::Membership,
        Self::RollingRestart,
        Self::DiskFull,
        Self::SlowFsync,
        Self::FailingFsync,
        Self::PowerLoss,
        Self::PowerLossAll,
        Self::BitFlip,
        Self::ClockJump,
        Self::ClockDrift,
        Self::Upgrade,
        Self::Mix,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::KillMinority => "kill-minority",
            Self::KillLeader => "kill-leader",
            Self::KillMeta => "kill-meta",
            Self::KillAll => "kill-all",
            Self::KillRouter => "kill-router",
            Self::Pause => "pause",
            Self::PauseLeader => "pause-leader",
            Self::PartitionMajority => "partition-majority",
            Self::PartitionOneWay => "partition-one-way",
            Self::PartitionRing => "partition-ring",
            Self::PartitionBridge => "partition-bridge",
            Self::LinkDelay => "link-delay",
            Self::LinkLoss => "link-loss",
            Self::LinkReorder => "link-reorder",
            Self::Membership => "membership",
            Self::RollingRestart => "rolling-restart",
            Self::DiskFull => "disk-full",
            Self::SlowFsync => "slow-fsync",
            Self::FailingFsync => "failing-fsync",
            Self::PowerLoss => "power-loss",
            Self::PowerLossAll => "power-loss-all",
            Self::BitFlip => "bit-flip",
            Self::ClockJump => "clock-jump",
            Self::ClockDrift => "clock-drift",
            Self::Upgrade => "upgrade",
            Self::CutCallers => "cut-callers",
            Self::Mix => "mix",
        }
    }

    /// What it does.
    pub fn about(self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::KillMinority => "kill -9 of less than half of the nodes, started again later",
            Self::KillLeader => "kill -9 of the leader of a random shard",
            Self::KillMeta => "kill -9 of the node that leads the meta group",
            Self::KillAll => "kill -9 of all nodes at once",
            Self::KillRouter => "kill -9 of a router",
            Self::Pause => "SIGSTOP of a node for longer than an election, then SIGCONT",
            Self::PauseLeader => "the same to the leader of a random shard",
            Self::PartitionMajority => "one node, alone or with a router, is cut off from the others",
            Self::PartitionOneWay => "one node no longer hears the others, or they no longer hear it",
            Self::PartitionRing => "each node reaches only its neighbours on a ring (five nodes)",
            Self::PartitionBridge => "two halves that only one node in the middle connects (five nodes)",
            Self::LinkDelay => "slow links between some nodes and routers",
            Self::LinkLoss => "connections between nodes and routers break at random",
            Self::LinkReorder => "messages to some nodes, or to all, and their answers overtake each other",
            Self::Membership => "a node joins, another is drained and removed",
            Self::RollingRestart => "SIGTERM and a new start, node by node, router by router",
            Self::DiskFull => "no file grows on some nodes, or on all",
            Self::SlowFsync => "each fsync takes up to 1.5 s longer on some nodes, or on all",
            Self::FailingFsync => {
                "one or more fsyncs fail on some nodes, or on all; at times their power is lost then"
            }
            Self::PowerLoss => "kill -9 of a node; what it had not synced is gone, or torn",
            Self::PowerLossAll => "the same to all nodes at once",
            Self::BitFlip => "kill -9 of a node, and a bit of its log or engine flips",
            Self::ClockJump => "the wall clocks of some nodes jump by up to 3 h, and back",
            Self::ClockDrift => "the clocks of some nodes go up to a tenth too slowly or too fast",
            Self::CutCallers => {
                "connections of callers break before a request is whole, after it, or within its answer"
            }
            Self::Upgrade => "a rolling restart with another build, and back later (--other-binary)",
            Self::Mix => {
                "all of these at random, one after the other, but for upgrade, bit-flip and wrong clocks; ring and bridge \
                 only with five nodes, faults of the disk only where they can be made"
            }
        }
    }

    /// The nemesis of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|nemesis| nemesis.name() == name)
    }

    /// Whether links must pass proxies for it.
    pub fn needs_links(self) -> bool {
        match self {
            Self::PartitionMajority
            | Self::PartitionOneWay
            | Self::PartitionRing
            | Self::PartitionBridge
            | Self::LinkDelay
            | Self::LinkLoss
            | Self::Mix => true,
            Self::None
            | Self::KillMinority
            | Self::KillLeader
            | Self::KillMeta
            | Self::KillAll
            | Self::KillRouter
            | Self::Pause
            | Self::PauseLeader
            | Self::LinkReorder
            | Self::CutCallers
            | Self::Membership
            | Self::RollingRestart
            | Self::Upgrade
            | Self::DiskFull
            | Self::SlowFsync
            | Self::FailingFsync
            | Self::PowerLoss
            | Self::PowerLossAll
            | Self::BitFlip
            | Self::ClockJump
            | Self::ClockDrift => false,
        }
    }

    /// Whether callers must pass proxies for it.
    pub fn needs_callers(self) -> bool {
        matches!(self, Self::CutCallers | Self::Mix)
    }

    /// Whether it takes another build.
    pub fn needs_other_build(self) -> bool {
        matches!(self, Self::Upgrade)
    }

    /// Whether nodes must run with a library preloaded for it. `mix` goes without where there is none.
    pub fn needs_preload(self) -> bool {
        matches!(self, Self::DiskFull | Self::SlowFsync) || self.needs_journal() || self.needs_clocks()
    }

    /// Whether what is not synced must be kept note of.
    pub fn needs_journal(self) -> bool {
        matches!(self, Self::FailingFsync | Self::PowerLoss | Self::PowerLossAll)
    }

    /// Whether nodes' clocks are wrong under it.
    pub fn needs_clocks(self) -> bool {
        matches!(self, Self::ClockJump | Self::ClockDrift)
    }

    /// Whether `mix` makes it. Flipped bits cost a node, and wrong clocks make for other bounds.
    fn mixes(self) -> bool {
        !matches!(self, Self::None | Self::Mix | Self::BitFlip)
            && !self.needs_clocks()
            && !self.needs_other_build()
    }

    /// Fewest nodes with which it means anything.
    pub fn nodes_min(self) -> usize {
        match self {
            Self::PartitionRing | Self::PartitionBridge => 5,
            _ if self == Self::None => 1,
            _ => 3,
        }
    }

    /// Fewest nodes with which it is all that it can be.
    pub fn nodes_wanted(self) -> usize {
        match self {
            Self::Mix => Self::ALL
                .into_iter()
                .filter(|nemesis| nemesis.mixes())
                .map(Self::nodes_min)
                .max()
                .unwrap_or(3),
            _ => self.nodes_min(),
        }
    }

    /// Whether nodes join and leave, so that replicas are to move without delay.
    pub fn changes_members(self) -> bool {
        matches!(self, Self::Membership | Self::BitFlip | Self::Mix)
    }

    /// Whether it undoes itself and takes as long as it takes.
    pub fn ends_by_itself(self) -> bool {
        matches!(self, Self::Membership | Self::RollingRestart)
    }

    /// Whether it takes its time to begin.
    pub fn takes_time(self) -> bool {
        self.ends_by_itself() || self == Self::Upgrade
    }

    /// How long a fault lasts, in milliseconds.
    fn length_ms(self) -> std::ops::Range<u64> {
        match self {
            Self::None | Self::Mix => 0..1,
            Self::KillMinority | Self::KillLeader | Self::KillMeta => 500..5000,
            Self::KillAll | Self::KillRouter => 100..2500,
            // Longer than leases and election timeouts: it wakes up as an old leader.
            Self::Pause | Self::PauseLeader => 3000..8000,
            Self::PartitionMajority | Self::PartitionOneWay | Self::PartitionRing | Self::PartitionBridge => {
                3000..9000
            }
            Self::LinkDelay | Self::LinkLoss | Self::LinkReorder | Self::CutCallers => 3000..7000,
            Self::DiskFull | Self::SlowFsync => 2000..7000,
            Self::FailingFsync => 1000..4000,
            Self::PowerLoss => 300..4000,
            Self::PowerLossAll => 100..2500,
            Self::BitFlip => 300..2500,
            Self::ClockJump | Self::ClockDrift => 3000..9000,
            // From when all is of the other build.
            Self::Upgrade => 2000..6000,
            // These take as long as they take.
            Self::Membership | Self::RollingRestart => 1000..2000,
        }
    }
}

/// From the begin of the load to the first fault, and between the end of a fault and the next of its nemesis.
const CALM_MS: std::ops::Range<u64> = 1500..3500;

/// What there is to make faults on.
#[derive(Debug, Clone, Copy)]
pub struct Means {
    pub nodes: usize,
    /// Whether nodes run with the library for faults of disk and clocks.
    pub preload: bool,
}

/// All faults of a run of `length`, by time.
pub fn schedule(nemeses: &[Nemesis], seed: u64, length: Duration, means: Means) -> Vec<Event> {
    let mut events = Vec::new();
    let mut fault = 0;
    let end_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    for (number, &nemesis) in nemeses.iter().enumerate().filter(|(_, nemesis)| **nemesis != Nemesis::None) {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(number as u64 * 0x51_7CC1));
        let mut at_ms = rng.random_range(CALM_MS);
        // The first comes whatever the length: a run without a fault shows nothing.
        while at_ms + 1000 < end_ms || events.iter().all(|event: &Event| event.nemesis != nemesis) {
            let met = if nemesis == Nemesis::Mix { any(&mut rng, means) } else { nemesis };
            let lasts_ms = rng.random_range(met.length_ms()).min((end_ms / 2).max(500));
            let pick = rng.random();
            let event = |phase, ms| Event {
                at: Duration::from_millis(ms),
                lane: number,
                fault,
                nemesis: met,
                phase,
                pick,
            };
            events.extend([event(Phase::Begin, at_ms), event(Phase::End, at_ms + lasts_ms)]);
            fault += 1;
            at_ms += lasts_ms + rng.random_range(CALM_MS);
            if at_ms > end_ms {
                break;
            }
        }
    }
    // Stable: the begin of a fault stays before its end.
    events.sort_by_key(|event| event.at);
    events
}

/// What `mix` is made of, and whether these means allow it.
fn mixed(means: Means) -> impl Iterator<Item = (Nemesis, bool)> {
    let mixes = Nemesis::ALL.into_iter().filter(|nemesis| nemesis.mixes());
    mixes.map(move |nemesis| {
        (nemesis, nemesis.nodes_min() <= means.nodes && (means.preload || !nemesis.needs_preload()))
    })
}

/// What `mix` does without, with these means; `no_preload` says why there is no library.
pub fn left_out(means: Means, no_preload: impl Fn() -> String) -> Vec<String> {
    let missing = mixed(means).filter(|(_, possible)| !possible);
    let told = missing.map(|(nemesis, _)| {
        let why = if nemesis.nodes_min() > means.nodes {
            format!("it takes at least {} nodes", nemesis.nodes_min())
        } else {
            no_preload()
        };
        format!("{}: {why}", nemesis.name())
    });
    told.collect()
}

/// What `mix` does next.
fn any(rng: &mut StdRng, means: Means) -> Nemesis {
    let possible: Vec<Nemesis> =
        mixed(means).filter(|(_, possible)| *possible).map(|(nemesis, _)| nemesis).collect();
    let at = rng.random_range(0..possible.len().max(1));
    possible.get(at).copied().unwrap_or(Nemesis::KillLeader)
}

#[cfg(test)]
mod tests;
