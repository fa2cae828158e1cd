//! The simulation itself: seeds repeat, promises hold, and a disk that lies is found out.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic where it does not hold")]

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// The outcome of each seed.
fn run(seeds: &str, more: &[&str]) -> BTreeMap<u64, Value> {
    let mut simulation = Command::new(env!("CARGO_BIN_EXE_borough-simulation"));
    let output = simulation.args(["--json", "--seeds", seeds]).args(more).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let outcomes = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let outcomes: BTreeMap<u64, Value> =
        outcomes.map(|outcome| (outcome["seed"].as_u64().unwrap(), outcome)).collect();
    assert!(!outcomes.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    outcomes
}

#[test]
fn a_seed_does_the_same_each_time_and_another_does_not() {
    let (first, second) = (run("7..8", &[]), run("7..8", &[]));
    assert_eq!(first, second);
    assert!(first[&7]["events"].as_u64().unwrap() > 1000, "{first:?}");
    assert_ne!(first[&7]["hash"], first[&8]["hash"]);
}

#[test]
fn schedules_keep_every_promise() {
    let outcomes = run("1..24", &[]);
    assert_eq!(outcomes.len(), 24);
    let broken: Vec<&Value> =
        outcomes.values().filter(|outcome| !outcome["violations"].as_array().unwrap().is_empty()).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    let sum = |name: &str| outcomes.values().map(|outcome| outcome[name].as_u64().unwrap()).sum::<u64>();
    assert!(sum("calls_ok") > 5000 && sum("faults") > 200, "{outcomes:#?}");
}

/// What a seed leads to changes with every change of what is simulated, and most lies end a node before anybody misses a write.
/// So seeds are tried until one shows it, as about one of sixteen does.
#[test]
fn disks_that_acknowledge_before_they_have_written_are_found_out() {
    let mut told = Vec::new();
    for first in (28..156).step_by(8) {
        let outcomes = run(&format!("{first}..{}", first + 7), &["--lying-disks"]);
        let violations = outcomes.values().flat_map(|outcome| outcome["violations"].as_array().unwrap());
        told.extend(violations.map(|violation| violation.as_str().unwrap().to_owned()));
        // Not only logs that cannot be: also acknowledged writes that are gone.
        if told.iter().any(|told| told.starts_with("lost")) {
            return;
        }
    }
    panic!("no acknowledged write was missed: {told:#?}");
}
