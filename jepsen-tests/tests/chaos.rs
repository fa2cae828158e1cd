//! A few runs of the chaos harness, short enough for every change; `cargo run -p jepsen-tests` makes longer ones.

use std::time::Duration;

use jepsen_tests::nemesis::Nemesis;
use jepsen_tests::runner::{Engine, Plan, Verdict, run};
use jepsen_tests::workload::{Through, Workload};

const LENGTH: Duration = Duration::from_secs(15);

/// One after the other: each takes all of a small machine.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn passes(workload: Workload, nemeses: &[Nemesis], seed: u64) -> anyhow::Result<()> {
    passes_with(None, Through::Rest, workload, nemeses, seed).await
}

async fn passes_through(
    through: Through,
    workload: Workload,
    nemeses: &[Nemesis],
    seed: u64,
) -> anyhow::Result<()> {
    passes_with(None, through, workload, nemeses, seed).await
}

async fn passes_with(
    engine: Option<Engine>,
    through: Through,
    workload: Workload,
    nemeses: &[Nemesis],
    seed: u64,
) -> anyhow::Result<()> {
    let _turn = TURN.lock().await;
    let artefacts = tempfile::tempdir()?;
    let root = artefacts.path().to_owned();
    let plan = Plan {
        artefacts: Some(root),
        engine,
        through,
        ..Plan::new(workload, nemeses.to_vec(), LENGTH, seed)
    };
    let report = Box::pin(run(&plan)).await;
    println!("{report}");
    match report.verdict {
        Verdict::Passed => Ok(()),
        // Other systems do not bind all of 127.0.0.0/8.
        Verdict::Skipped(_) if !cfg!(target_os = "linux") => Ok(()),
        Verdict::Skipped(_) | Verdict::Violation(_) | Verdict::Broken(_) => {
            anyhow::bail!("{report}\nkept: {}", artefacts.keep().display())
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_are_linearizable_while_leaders_die() -> anyhow::Result<()> {
    passes(Workload::Register, &[Nemesis::KillLeader], 11).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_serializable_across_partitions() -> anyhow::Result<()> {
    passes_through(Through::Direct, Workload::Append, &[Nemesis::PartitionMajority], 12).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resent_writes_apply_once_over_lossy_links() -> anyhow::Result<()> {
    passes(Workload::Idempotent, &[Nemesis::LinkLoss], 13).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_items_outlive_a_loss_of_power() -> anyhow::Result<()> {
    passes(Workload::Set, &[Nemesis::PowerLossAll], 15).await
}

/// fjall once refused its directory here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_outlive_a_loss_of_power_with_the_other_engine() -> anyhow::Result<()> {
    passes_with(Some(Engine::Fjall), Through::Rest, Workload::Append, &[Nemesis::PowerLossAll], 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_are_complete_while_nodes_come_and_go() -> anyhow::Result<()> {
    passes_through(Through::Client, Workload::Scan, &[Nemesis::Membership], 14).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_cut_in_the_middle_count_once_while_leaders_die() -> anyhow::Result<()> {
    passes(Workload::Counter, &[Nemesis::CutCallers, Nemesis::KillLeader], 15).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_serializable_while_messages_overtake_each_other() -> anyhow::Result<()> {
    passes(Workload::Append, &[Nemesis::LinkReorder], 17).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_the_client_read_their_own_writes_while_leaders_die() -> anyhow::Result<()> {
    passes_through(Through::Direct, Workload::Session, &[Nemesis::KillLeader], 18).await
}
