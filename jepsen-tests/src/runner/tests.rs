//! Exit codes, what is skipped, and the command that repeats a run.

use super::*;

fn plan() -> Plan {
    Plan::new(Workload::Set, vec![Nemesis::KillLeader, Nemesis::Membership], Duration::from_secs(5), 9)
}

fn report(verdict: Verdict) -> Report {
    Report::new(&plan(), verdict, &[], 1, Vec::new(), None)
}

#[test]
fn a_violation_goes_before_a_failure_of_the_harness_and_nothing_run_is_no_pass() {
    let passed = report(Verdict::Passed);
    let skipped = report(Verdict::Skipped("no rights".to_owned()));
    let broken = report(Verdict::Broken("no port".to_owned()));
    let violation = report(Verdict::Violation("lost".to_owned()));
    assert_eq!(Report::exit_code(&[passed.clone(), skipped.clone()]), 0);
    assert_eq!(Report::exit_code(&[passed.clone(), broken.clone()]), 2);
    assert_eq!(Report::exit_code(&[broken.clone(), violation.clone(), passed]), 1);
    assert_eq!(Report::exit_code(&[]), 2);
    let shown = table(&[skipped, broken, violation]);
    for word in ["skipped", "broken", "VIOLATION", "kill-leader,membership"] {
        assert!(shown.contains(word), "{word} in {shown}");
    }
}

#[test]
fn what_takes_more_nodes_is_skipped_when_it_is_given_fewer() {
    let five = Plan::new(Workload::Set, vec![Nemesis::PartitionRing], Duration::from_secs(5), 9);
    assert_eq!(five.nodes, 5);
    assert!(Plan { nodes: 4, ..five }.skipped().is_some());
    assert!(plan().skipped().is_none());
    assert!(Plan { through: crate::workload::Through::Direct, ..plan() }.skipped().is_some());
}

#[test]
fn the_command_repeats_the_run() {
    let plan = Plan { engine: Some(Engine::Fjall), shards: 3, ..plan() };
    let command = plan.command();
    for part in [
        "--workload set",
        "--nemesis kill-leader,membership",
        "--seconds 5",
        "--seed 9",
        "--shards 3",
        "--engine fjall",
    ] {
        assert!(command.contains(part), "{part} in {command}");
    }
}
