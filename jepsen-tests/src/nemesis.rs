//! What goes wrong during a run, and when.
//!
//! The schedule follows from the seed alone; which node a fault meets also depends on who leads when it comes. Each nemesis
//! has a schedule of its own, and faults of several overlap. Everything is undone before the final reads.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

mod director;
mod field;
mod membership;
mod partitions;
mod processes;

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
    CutCallers,
    Membership,
    RollingRestart,
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
    pub const ALL: [Self; 19] = [
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
        Self::CutCallers,
        Self::Membership,
        Self::RollingRestart,
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
            Self::Membership => "membership",
            Self::RollingRestart => "rolling-restart",
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
            Self::PartitionMajority => "one node is cut off from the others, at times from routers too",
            Self::PartitionOneWay => "one node no longer hears the others, or they no longer hear it",
            Self::PartitionRing => "each node reaches only its neighbours on a ring (five nodes)",
            Self::PartitionBridge => "two halves that only one node in the middle connects (five nodes)",
            Self::LinkDelay => "slow links between some nodes and routers",
            Self::LinkLoss => "connections between nodes and routers break at random",
            Self::Membership => "a node joins, another is drained and removed",
            Self::RollingRestart => "SIGTERM and a new start, node by node, router by router",
            Self::CutCallers => {
                "connections of callers break before a request is whole, after it, or within its answer"
            }
            Self::Upgrade => "the same, with another build, and back later (--other-binary)",
            Self::Mix => "all of these at random, one after the other; upgrade is not among them",
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
            | Self::CutCallers
            | Self::Membership
            | Self::RollingRestart
            | Self::Upgrade => false,
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

    /// Fewest nodes with which it means anything.
    pub fn nodes_min(self) -> usize {
        match self {
            Self::PartitionRing | Self::PartitionBridge => 5,
            _ if self == Self::None => 1,
            _ => 3,
        }
    }

    /// Whether nodes join and leave, so that replicas are to move without delay.
    pub fn changes_members(self) -> bool {
        matches!(self, Self::Membership | Self::Mix)
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
            Self::LinkDelay | Self::LinkLoss | Self::CutCallers => 3000..7000,
            // From when all is of the other build.
            Self::Upgrade => 2000..6000,
            // These take as long as they take.
            Self::Membership | Self::RollingRestart => 1000..2000,
        }
    }
}

/// From the begin of the load to the first fault, and between the end of a fault and the next of its nemesis.
const CALM_MS: std::ops::Range<u64> = 1500..3500;

/// All faults of a run of `length` on `nodes` nodes, by time.
pub fn schedule(nemeses: &[Nemesis], seed: u64, length: Duration, nodes: usize) -> Vec<Event> {
    let mut events = Vec::new();
    let mut fault = 0;
    let end_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    for (number, &nemesis) in nemeses.iter().enumerate().filter(|(_, nemesis)| **nemesis != Nemesis::None) {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(number as u64 * 0x51_7CC1));
        let mut at_ms = rng.random_range(CALM_MS);
        // The first comes whatever the length: a run without a fault shows nothing.
        while at_ms + 1000 < end_ms || events.iter().all(|event: &Event| event.nemesis != nemesis) {
            let met = if nemesis == Nemesis::Mix { any(&mut rng, nodes) } else { nemesis };
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

/// What `mix` does next.
fn any(rng: &mut StdRng, nodes: usize) -> Nemesis {
    let possible: Vec<Nemesis> = Nemesis::ALL
        .into_iter()
        .filter(|nemesis| !matches!(nemesis, Nemesis::None | Nemesis::Mix) && !nemesis.needs_other_build())
        .filter(|nemesis| nemesis.nodes_min() <= nodes)
        .collect();
    let at = rng.random_range(0..possible.len().max(1));
    possible.get(at).copied().unwrap_or(Nemesis::KillLeader)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_seed_decides_the_schedule() {
        let both = [Nemesis::KillLeader, Nemesis::Mix];
        assert_eq!(schedule(&both, 7, MINUTE, 5), schedule(&both, 7, MINUTE, 5));
        assert_ne!(schedule(&both, 7, MINUTE, 5), schedule(&both, 8, MINUTE, 5));
        assert!(schedule(&[Nemesis::None], 7, MINUTE, 5).is_empty());
    }

    #[test]
    fn every_fault_begins_once_and_ends_once_after_it_in_the_order_of_time() {
        for nemesis in Nemesis::ALL {
            for seed in 0..20 {
                for seconds in [3, 15, 90] {
                    let length = Duration::from_secs(seconds);
                    let events = schedule(&[nemesis], seed, length, 5);
                    assert!(events.is_sorted_by_key(|event| event.at));
                    assert_eq!(events.is_empty(), nemesis == Nemesis::None, "{nemesis:?} {seed} {seconds}");
                    for fault in 0..events.len() / 2 {
                        let phases: Vec<Phase> = events
                            .iter()
                            .filter(|event| event.fault == fault)
                            .map(|event| event.phase)
                            .collect();
                        assert_eq!(phases, [Phase::Begin, Phase::End], "{nemesis:?} {seed}: {events:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_nemesis_has_a_schedule_of_its_own_beside_the_others() {
        let both = schedule(&[Nemesis::KillLeader, Nemesis::Membership], 7, MINUTE, 3);
        let of_lane = |events: &[Event], lane: usize| -> Vec<(Duration, Nemesis, Phase, u64)> {
            let of_lane = events.iter().filter(|event| event.lane == lane);
            of_lane.map(|event| (event.at, event.nemesis, event.phase, event.pick)).collect()
        };
        let alone = schedule(&[Nemesis::KillLeader], 7, MINUTE, 3);
        assert_eq!(of_lane(&both, 0), of_lane(&alone, 0));
        assert!(of_lane(&both, 1).iter().all(|(_, nemesis, ..)| *nemesis == Nemesis::Membership));
        let faults: std::collections::BTreeSet<usize> = both.iter().map(|event| event.fault).collect();
        assert_eq!(faults.len() * 2, both.len(), "their numbers are distinct");
    }

    #[test]
    fn names_are_read_back() {
        for nemesis in Nemesis::ALL {
            assert_eq!(Nemesis::named(nemesis.name()), Some(nemesis));
        }
    }
}
