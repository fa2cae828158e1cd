//! All workloads under all nemeses, one run after the other.

use std::path::PathBuf;
use std::time::Duration;

use super::{Engine, Plan, Report, Verdict, run};
use crate::nemesis::Nemesis;
use crate::workload::{Through, Workload};

/// Runs every workload under every nemesis whose `WORKLOAD/NEMESIS` contains one of `only` (all when there is none).
pub async fn run_all(
    length: Duration,
    seed: u64,
    only: &[String],
    artefacts: Option<PathBuf>,
    engine: Option<Engine>,
    other_binary: Option<PathBuf>,
    through: Through,
) -> Vec<Report> {
    let mut reports = Vec::new();
    for workload in Workload::ALL {
        for nemesis in Nemesis::ALL {
            let plan = Plan {
                artefacts: artefacts.clone(),
                engine,
                other_binary: other_binary.clone(),
                through,
                ..Plan::new(workload, vec![nemesis], length, seed)
            };
            let name = plan.name();
            if !only.is_empty() && !only.iter().any(|part| name.contains(part.as_str())) {
                continue;
            }
            let report = Box::pin(run(&plan)).await;
            crate::say(&report);
            reports.push(report);
        }
    }
    reports
}

impl Report {
    /// Exit code for these runs: 1 when a promise was broken, 2 when the harness failed, else 0.
    pub fn exit_code(reports: &[Self]) -> u8 {
        let any = |wanted: fn(&Verdict) -> bool| reports.iter().any(|report| wanted(&report.verdict));
        match () {
            () if any(|verdict| matches!(verdict, Verdict::Violation(_))) => 1,
            () if any(|verdict| matches!(verdict, Verdict::Broken(_))) || reports.is_empty() => 2,
            () => 0,
        }
    }
}
