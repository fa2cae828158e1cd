//! What a run found, for people.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::Plan;
use crate::checker::epoch::{self, Probed};
use crate::checker::{self, Counts};
use crate::record::{NEMESIS, Record, calls};
use crate::timeline::write_html;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    /// The product broke a promise.
    Violation(String),
    /// The harness could not do what it should, so nothing was shown.
    Broken(String),
    /// It cannot be run here.
    Skipped(String),
}

impl Verdict {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Violation(_) => "VIOLATION",
            Self::Broken(_) => "broken",
            Self::Skipped(_) => "skipped",
        }
    }

    /// Why it is not passed.
    pub fn reason(&self) -> &str {
        match self {
            Self::Passed => "",
            Self::Violation(reason) | Self::Broken(reason) | Self::Skipped(reason) => reason,
        }
    }
}

/// A run when it is over.
#[derive(Debug, Clone)]
pub struct Report {
    pub name: String,
    pub workload: &'static str,
    pub nemeses: String,
    pub seed: u64,
    /// Of the callers.
    pub counts: Counts,
    /// Of the prober that asks all nodes for epochs.
    pub probed: Probed,
    pub faults: usize,
    /// Faults that could not be made, and why.
    pub missed: Vec<String>,
    /// What `mix` did without, and why.
    pub left_out: Vec<String>,
    pub verdict: Verdict,
    pub dir: Option<PathBuf>,
    /// Runs it again.
    pub command: String,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        verdict: Verdict,
        records: &[Record],
        faults: usize,
        missed: Vec<String>,
        dir: Option<PathBuf>,
    ) -> Self {
        // What cannot be paired is told by the verdict.
        let (calls, probes) = epoch::split(calls(records).unwrap_or_default());
        Self {
            name: plan.name(),
            workload: plan.workload.name(),
            nemeses: plan.nemesis_names(),
            seed: plan.seed,
            counts: checker::counts(&calls),
            probed: epoch::probed(&probes),
            faults,
            missed,
            // A run that was skipped left out everything.
            left_out: if dir.is_some() { plan.left_out() } else { Vec::new() },
            verdict,
            dir,
            command: plan.command(),
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts { ok, fail, info } = self.counts;
        let Probed { asked, answered, grown } = self.probed;
        write!(
            f,
            "{} seed {}: {} ({ok} ok, {fail} fail, {info} info, {} faults; {grown} newer epochs, {answered} of {asked} \
             questions about them answered)",
            self.name,
            self.seed,
            self.word(),
            self.faults
        )?;
        if !self.verdict.reason().is_empty() {
            write!(f, "\n  {}", self.verdict.reason().replace('\n', "\n  "))?;
        }
        for left_out in &self.left_out {
            write!(f, "\n  skipped: {}", left_out.lines().next().unwrap_or_default())?;
        }
        for missed in &self.missed {
            write!(f, "\n  not made: {}", missed.lines().next().unwrap_or_default())?;
        }
        if let Some(dir) = self.dir.as_ref().filter(|_| self.verdict != Verdict::Passed) {
            write!(f, "\n  artefacts: {}\n  again: {}", dir.display(), self.command)?;
        }
        Ok(())
    }
}

impl Report {
    /// The verdict, and how many faults of a mix were skipped.
    fn word(&self) -> String {
        let word = self.verdict.word();
        match self.left_out.len() {
            0 => word.to_owned(),
            skipped => format!("{word}, {skipped} kinds of fault skipped"),
        }
    }
}

/// All runs, a line each.
pub fn table(reports: &[Report]) -> String {
    let mut lines = vec![format!(
        "{:<12} {:<20} {:>8} {:>7} {:>6} {:>6} {:>6} {:>7} {:>6}  verdict",
        "workload", "nemesis", "seed", "ok", "fail", "info", "faults", "probes", "epochs"
    )];
    for report in reports {
        let Counts { ok, fail, info } = report.counts;
        let Probed { asked, grown, .. } = report.probed;
        lines.push(format!(
            "{:<12} {:<20} {:>8} {ok:>7} {fail:>6} {info:>6} {:>6} {asked:>7} {grown:>6}  {}",
            report.workload,
            report.nemeses,
            report.seed,
            report.faults,
            report.word()
        ));
    }
    lines.join("\n")
}

/// `command.txt`, there from the beginning: a run that is cut can be repeated too.
pub(super) fn write_command(plan: &Plan, dir: &Path) -> anyhow::Result<()> {
    save(&dir.join("command.txt"), &format!("{}\n", plan.command()))
}

/// `verdict.txt`, `faults.txt` and `timeline.html`.
pub(super) fn write(
    report: &Report,
    dir: &Path,
    records: &[Record],
    judged: &[String],
) -> anyhow::Result<()> {
    let judged: String = judged.iter().map(|text| format!("{text}\n")).collect();
    save(&dir.join("verdict.txt"), &format!("{report}\n{judged}"))?;
    save(&dir.join("faults.txt"), &faults(records))?;
    let path = dir.join("timeline.html");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let title = format!("{}, seed {}", report.name, report.seed);
    write_html(&title, records, BufWriter::new(file)).with_context(|| format!("write {}", path.display()))
}

fn faults(records: &[Record]) -> String {
    let of_nemesis = records.iter().filter(|record| record.process == NEMESIS);
    let line = |record: &Record| {
        let seconds = record.time_ns as f64 / 1e9;
        let error = record.error.as_deref().unwrap_or_default();
        format!("{seconds:>9.3} s  {:<20} {} {error}\n", record.f, record.value)
    };
    of_nemesis.map(line).collect()
}

fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
