//! A few runs of the chaos harness, short enough for every change; `cargo run -p jepsen-tests` makes longer ones.

use std::time::Duration;

use jepsen_tests::nemesis::Nemesis;
use jepsen_tests::runner::{Plan, Verdict, run};
use jepsen_tests::workload::Workload;

const LENGTH: Duration = Duration::from_secs(15);

/// One after the other: each takes all of a small machine.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn passes(workload: Workload, nemeses: &[Nemesis], seed: u64) {
    let _turn = TURN.lock().await;
    let artefacts = tempfile::tempdir().unwrap();
    let root = artefacts.path().to_owned();
    let plan = Plan { artefacts: Some(root), ..Plan::new(workload, nemeses.to_vec(), LENGTH, seed) };
    let report = Box::pin(run(&plan)).await;
    println!("{report}");
    match report.verdict {
        Verdict::Passed => {}
        // Told as what it is; other systems do not bind all of 127.0.0.0/8.
        Verdict::Skipped(_) => assert!(!cfg!(target_os = "linux"), "{report}"),
        Verdict::Violation(_) | Verdict::Broken(_) => {
            panic!("{report}\nkept: {}", artefacts.keep().display())
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_are_linearizable_while_leaders_die() {
    passes(Workload::Register, &[Nemesis::KillLeader], 11).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_serializable_across_partitions() {
    passes(Workload::Append, &[Nemesis::PartitionMajority], 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resent_writes_apply_once_over_lossy_links() {
    passes(Workload::Idempotent, &[Nemesis::LinkLoss], 13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_are_complete_while_nodes_come_and_go() {
    passes(Workload::Scan, &[Nemesis::Membership], 14).await;
}
