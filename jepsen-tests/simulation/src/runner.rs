//! Many schedules, each in a process of its own, a few at a time.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
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
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
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

/// What schedules have shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    Nothing,
    Violation,
    /// A schedule could not be run or judged.
    Unknown,
}

/// The process of one schedule.
pub fn run_child(options: &Options) -> anyhow::Result<Shown> {
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
    Ok(if outcome.violations.is_empty() { Shown::Nothing } else { Shown::Violation })
}

/// All schedules.
pub fn run(options: &Options) -> anyhow::Result<Shown> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = options.jobs.map_or(processors, usize::from);
    let (first, last) = options.seeds;
    let seeds = Mutex::new(first..=last);
    let totals = Mutex::new(Totals::default());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let Some(seed) = seeds.lock().next() else { return };
                    match run_one(seed, options) {
                        Ok(outcome) => totals.lock().take(&outcome, options),
                        Err(error) => totals.lock().broke(seed, &error),
                    }
                }
            });
        }
    });
    let totals = totals.into_inner();
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    eprintln!(
        "{} schedules, {:.0} a minute; {:.0} simulated minutes, {} calls answered, {} of unknown outcome, {} faults; {} undecided; {} not run; {} failed",
        totals.schedules,
        totals.schedules as f64 / minutes,
        totals.simulated_ms as f64 / 60_000.0,
        totals.calls_ok,
        totals.calls_unknown,
        totals.faults,
        totals.undecided,
        totals.broken,
        totals.failed,
    );
    Ok(match (totals.failed, totals.broken + totals.undecided) {
        (0, 0) => Shown::Nothing,
        (0, _) => Shown::Unknown,
        _ => Shown::Violation,
    })
}

#[derive(Default)]
struct Totals {
    schedules: u64,
    failed: u64,
    /// The simulation itself failed.
    broken: u64,
    undecided: u64,
    simulated_ms: u64,
    calls_ok: usize,
    calls_unknown: usize,
    faults: usize,
}

impl Totals {
    fn broke(&mut self, seed: u64, error: &anyhow::Error) {
        self.broken += 1;
        eprintln!("seed {seed}: the simulation itself failed: {error:#}");
    }

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
            // Whoever reads may have gone.
            let _gone = writeln!(std::io::stdout(), "{line}");
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
