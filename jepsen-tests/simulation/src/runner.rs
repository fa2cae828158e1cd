//! Many schedules, each in a process of its own, a few at a time.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use parking_lot::Mutex;

use crate::cluster::{self, Outcome};
use crate::{CHILD, system, trace};

/// Where temporary files cost no disk.
const MEMORY_DIR: &str = "/dev/shm";

/// Runs schedules; a failing seed repeats exactly.
#[derive(Debug, Clone, Parser)]
pub struct Options {
    /// One seed, or the first and the last, such as 1..2000.
    #[arg(long, default_value = "1..100", value_parser = seeds)]
    seeds: (u64, u64),
    /// Schedules at once; as many as there are processors unless set.
    #[arg(long)]
    jobs: Option<usize>,
    /// Tells every event on standard error, and the nodes' own log as RUST_LOG says.
    #[arg(long)]
    trace: bool,
    /// Disks acknowledge each flush of the log before they have written it: a simulation that finds nothing wrong with that is broken.
    #[arg(long)]
    lying_disks: bool,
    /// Tells the outcome of each seed as a line of JSON.
    #[arg(long)]
    json: bool,
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    match text.split_once("..") {
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last.trim_start_matches('='))?);
            if first > last { Err(format!("{first} is above {last}")) } else { Ok((first, last)) }
        }
        None => number(text).map(|seed| (seed, seed)),
    }
}

/// The process of one schedule.
pub fn run_child(options: &Options) -> anyhow::Result<bool> {
    let seed = options.seeds.0;
    if options.trace {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let shown = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
        shown.with_writer(std::io::stderr).init();
    }
    trace::begin(options.trace);
    // A thread that has drawn no random number yet: whether there is a log to be told must not matter.
    let simulation = std::thread::scope(|scope| {
        let run = || {
            system::seed(seed);
            cluster::run(seed, options.lying_disks)
        };
        scope.spawn(run).join()
    });
    let outcome = simulation.map_err(|_| anyhow::anyhow!("the simulation panicked"))??;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(outcome.violations.is_empty())
}

/// All schedules; whether none showed a violation.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let jobs = options.jobs.or(std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let (first, last) = options.seeds;
    let next = AtomicU64::new(first);
    let totals = Mutex::new(Totals::default());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > last {
                        return;
                    }
                    let outcome = run_one(seed, options).unwrap_or_else(|error| Outcome {
                        seed,
                        violations: vec![format!("the simulation itself failed: {error:#}")],
                        ..Outcome::default()
                    });
                    totals.lock().take(&outcome, options);
                }
            });
        }
    });
    let totals = totals.into_inner();
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    eprintln!(
        "{} schedules, {:.0} a minute; {:.0} simulated minutes, {} calls answered, {} of unknown outcome, {} faults; {} undecided; {} failed",
        totals.schedules,
        totals.schedules as f64 / minutes,
        totals.simulated_ms as f64 / 60_000.0,
        totals.calls_ok,
        totals.calls_unknown,
        totals.faults,
        totals.undecided,
        totals.failed,
    );
    Ok(totals.failed == 0)
}

#[derive(Default)]
struct Totals {
    schedules: u64,
    failed: u64,
    undecided: u64,
    simulated_ms: u64,
    calls_ok: usize,
    calls_unknown: usize,
    faults: usize,
}

impl Totals {
    fn take(&mut self, outcome: &Outcome, options: &Options) {
        self.schedules += 1;
        self.simulated_ms += outcome.simulated_ms;
        self.calls_ok += outcome.calls_ok;
        self.calls_unknown += outcome.calls_unknown;
        self.faults += outcome.faults;
        self.undecided += u64::from(outcome.undecided);
        if options.json
            && let Ok(line) = serde_json::to_string(outcome)
        {
            println!("{line}");
        }
        if !outcome.violations.is_empty() {
            self.failed += 1;
            let lies = if options.lying_disks { " --lying-disks" } else { "" };
            eprintln!("seed {}: {}", outcome.seed, outcome.violations.join("\n  "));
            eprintln!(
                "  repeat it: cargo run --release -p borough-simulation -- --seeds {}{lies} --trace",
                outcome.seed
            );
        }
    }
}

fn run_one(seed: u64, options: &Options) -> anyhow::Result<Outcome> {
    let parent = PathBuf::from(MEMORY_DIR);
    let parent = if parent.is_dir() { parent } else { std::env::temp_dir() };
    let dir = tempfile::Builder::new().prefix("borough-simulation-").tempdir_in(parent.canonicalize()?)?;
    let mut child = Command::new(std::env::current_exe()?);
    child.args(["--seeds", &seed.to_string()]);
    child.args(options.lying_disks.then_some("--lying-disks"));
    child.args(options.trace.then_some("--trace"));
    // Relative paths: no message may depend on where the files happen to be.
    child.env(CHILD, "1").current_dir(dir.path());
    child.stdin(Stdio::null()).stdout(Stdio::piped());
    child.stderr(if options.trace { Stdio::inherit() } else { Stdio::piped() });
    let output = child.output().context("start the process of a schedule")?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim()).with_context(|| {
        let told = String::from_utf8_lossy(&output.stderr);
        format!("{}: {}", output.status, told.lines().rev().take(12).collect::<Vec<_>>().join(" | "))
    })
}
