//! The schedule: what the seed decides, begins and ends, lanes, what `mix` makes.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const FIVE: Means = Means { nodes: 5, preload: true };

#[test]
fn the_seed_decides_the_schedule() {
    let both = [Nemesis::KillLeader, Nemesis::Mix];
    assert_eq!(schedule(&both, 7, MINUTE, FIVE), schedule(&both, 7, MINUTE, FIVE));
    assert_ne!(schedule(&both, 7, MINUTE, FIVE), schedule(&both, 8, MINUTE, FIVE));
    assert!(schedule(&[Nemesis::None], 7, MINUTE, FIVE).is_empty());
}

#[test]
fn every_fault_begins_once_and_ends_once_after_it_in_the_order_of_time() {
    for nemesis in Nemesis::ALL {
        for seed in 0..20 {
            for seconds in [3, 15, 90] {
                let length = Duration::from_secs(seconds);
                let events = schedule(&[nemesis], seed, length, FIVE);
                assert!(events.is_sorted_by_key(|event| event.at));
                assert_eq!(events.is_empty(), nemesis == Nemesis::None, "{nemesis:?} {seed} {seconds}");
                for fault in 0..events.len() / 2 {
                    let phases: Vec<Phase> =
                        events.iter().filter(|event| event.fault == fault).map(|event| event.phase).collect();
                    assert_eq!(phases, [Phase::Begin, Phase::End], "{nemesis:?} {seed}: {events:?}");
                }
            }
        }
    }
}

#[test]
fn what_mix_makes_and_what_it_leaves_out_are_all_that_it_mixes() {
    for (nodes, preload, missing) in [(5, true, 0), (3, true, 2), (5, false, 5), (3, false, 7)] {
        let left_out = left_out(Means { nodes, preload }, || "no library".to_owned());
        assert_eq!(left_out.len(), missing, "{left_out:?}");
        assert_eq!(
            left_out.iter().filter(|told| told.ends_with(": no library")).count(),
            if preload { 0 } else { 5 }
        );
    }
}

#[test]
fn mix_makes_what_the_machine_can() {
    let met = |preload| {
        let means = Means { nodes: 5, preload };
        let events = (0..100).flat_map(|seed| schedule(&[Nemesis::Mix], seed, MINUTE, means));
        events.map(|event| event.nemesis).collect::<std::collections::BTreeSet<_>>()
    };
    let (with, without) = (met(true), met(false));
    assert!(with.contains(&Nemesis::PowerLossAll) && with.contains(&Nemesis::DiskFull));
    for nemesis in [Nemesis::BitFlip, Nemesis::ClockJump, Nemesis::Upgrade] {
        assert!(!with.contains(&nemesis), "{nemesis:?}");
    }
    assert!(without.iter().all(|nemesis| !nemesis.needs_preload()), "{without:?}");
}

#[test]
fn each_nemesis_has_a_schedule_of_its_own_beside_the_others() {
    let both = schedule(&[Nemesis::KillLeader, Nemesis::Membership], 7, MINUTE, FIVE);
    let of_lane = |events: &[Event], lane: usize| -> Vec<(Duration, Nemesis, Phase, u64)> {
        let of_lane = events.iter().filter(|event| event.lane == lane);
        of_lane.map(|event| (event.at, event.nemesis, event.phase, event.pick)).collect()
    };
    let alone = schedule(&[Nemesis::KillLeader], 7, MINUTE, FIVE);
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
