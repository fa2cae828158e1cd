//! The harness finds what it is there to find: nodes that break a rule on purpose do not pass.
//!
//! The binary has the defects built in (the feature `defects`, node/src/defect.rs), and each run tells all nodes to have one.
//! Whether a fault meets a call in the moment that shows it is chance, so a defect has a few seeds to show itself.

use std::time::Duration;

use jepsen_tests::nemesis::Nemesis;
use jepsen_tests::runner::{Plan, Verdict, run};
use jepsen_tests::workload::Workload;

const LENGTH: Duration = Duration::from_secs(12);
const SEEDS: std::ops::RangeInclusive<u64> = 1..=12;

/// One after the other: each takes all of a small machine.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Finds the defect in one of the seeds; what the checkers said must contain `told`.
async fn found(defect: &str, workload: Workload, nemeses: &[Nemesis], told: &str) -> anyhow::Result<()> {
    found_in(Plan::new(workload, nemeses.to_vec(), LENGTH, 0), defect, told).await
}

async fn found_in(plan: Plan, defect: &str, told: &str) -> anyhow::Result<()> {
    let _turn = TURN.lock().await;
    let mut passed = Vec::new();
    for seed in SEEDS {
        let artefacts = tempfile::tempdir()?;
        let plan = Plan {
            artefacts: Some(artefacts.path().to_owned()),
            defect: Some(defect.to_owned()),
            seed,
            ..plan.clone()
        };
        let report = Box::pin(run(&plan)).await;
        match &report.verdict {
            Verdict::Violation(why) => {
                println!("{defect}: found with seed {seed}: {}", why.lines().next().unwrap_or_default());
                anyhow::ensure!(
                    why.contains(told),
                    "{defect}: found by something else than {told:?}: {report}"
                );
                return Ok(());
            }
            Verdict::Passed => passed.push(seed),
            Verdict::Skipped(_) if !cfg!(target_os = "linux") => return Ok(()),
            Verdict::Skipped(_) | Verdict::Broken(_) => anyhow::bail!("{defect}: {report}"),
        }
    }
    anyhow::bail!("{defect} was not found with seeds {passed:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_were_answered_too_early_are_lost_with_the_power() -> anyhow::Result<()> {
    found("answer-before-sync", Workload::Set, &[Nemesis::PowerLossAll], "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_whose_names_were_not_synced_are_lost_with_the_power() -> anyhow::Result<()> {
    found("skip-directory-sync", Workload::Set, &[Nemesis::PowerLossAll], "").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_asks_nobody_reads_what_is_old() -> anyhow::Result<()> {
    // Few keys, so that those who read through the router that is cut off with the leader find the ones that it leads.
    let length = Duration::from_secs(15);
    let plan =
        Plan { shards: 6, ..Plan::new(Workload::Register, vec![Nemesis::PartitionMajority], length, 0) };
    found_in(plan, "read-without-quorum", "linearizable: INVALID").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_are_applied_twice_are_seen() -> anyhow::Result<()> {
    found("apply-twice", Workload::Register, &[Nemesis::None], "INVALID").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_is_not_told_answers_what_is_old() -> anyhow::Result<()> {
    found("stale-cache", Workload::Register, &[Nemesis::None], "INVALID").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_a_moved_shard_has_forgotten_are_answered_anew() -> anyhow::Result<()> {
    // Of few shards, so that each writes more than the log that it keeps, and newcomers are sent a snapshot.
    let plan = Plan { shards: 2, ..Plan::new(Workload::Idempotent, vec![Nemesis::Membership], LENGTH, 0) };
    found_in(plan, "forget-requests", "INVALID").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_forgotten_go_back() -> anyhow::Result<()> {
    found("forget-session", Workload::Session, &[Nemesis::LinkDelay], "session: INVALID").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_that_are_forgotten_are_exceeded() -> anyhow::Result<()> {
    found("forget-staleness", Workload::Stale, &[Nemesis::PartitionMajority], "stale: INVALID").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_answers_by_an_old_map_is_seen() -> anyhow::Result<()> {
    found("ignore-epoch", Workload::Set, &[Nemesis::Membership], "answer at an older epoch").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_goes_back_to_an_old_map_is_seen() -> anyhow::Result<()> {
    found("older-maps", Workload::Set, &[Nemesis::Membership], "epoch went back").await
}
