//! The harness finds what it is there to find: nodes that break a rule on purpose do not pass.
//!
//! The binary has the defects built in (the feature `defects`, node/src/defect.rs), and each run tells all nodes to have one.
//! Whether a fault meets a call in the moment that shows it is chance, so a defect has a few seeds to show itself.

use std::time::Duration;

use jepsen_tests::nemesis::Nemesis;
use jepsen_tests::runner::{Plan, Verdict, run};
use jepsen_tests::workload::Workload;

const LENGTH: Duration = Duration::from_secs(12);
const SEEDS: std::ops::RangeInclusive<u64> = 1..=5;

/// One after the other: each takes all of a small machine.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Finds the defect in one of the seeds; what the checkers said must contain `told`.
async fn found(defect: &str, workload: Workload, nemeses: &[Nemesis], told: &str) -> anyhow::Result<()> {
    let _turn = TURN.lock().await;
    let mut passed = Vec::new();
    for seed in SEEDS {
        let artefacts = tempfile::tempdir()?;
        let plan = Plan {
            artefacts: Some(artefacts.path().to_owned()),
            defect: Some(defect.to_owned()),
            ..Plan::new(workload, nemeses.to_vec(), LENGTH, seed)
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
async fn sessions_that_are_forgotten_go_back() -> anyhow::Result<()> {
    found("forget-session", Workload::Session, &[Nemesis::LinkDelay], "session: INVALID").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_that_are_forgotten_are_exceeded() -> anyhow::Result<()> {
    found("forget-staleness", Workload::Stale, &[Nemesis::PartitionMajority], "stale: INVALID").await
}
