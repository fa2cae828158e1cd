//! `jepsen-tests`: runs a workload under faults on a cluster of real processes, and judges what was answered.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use jepsen_tests::failover::{self, Failover};
use jepsen_tests::nemesis::Nemesis;
use jepsen_tests::runner::{Engine, Plan, Report, check_file, list, run, run_all, table};
use jepsen_tests::say;
use jepsen_tests::workload::{Through, Workload};
use tokio::signal::unix::{SignalKind, signal};

/// A week.
const SECONDS_MAX: u64 = 7 * 24 * 3600;
/// Exit code after SIGINT, SIGTERM or SIGHUP.
const INTERRUPTED: u8 = 130;

/// Chaos runs against real borough processes.
///
/// Exit codes: 0 all passed or skipped; 1 a promise was broken; 2 the harness failed, so nothing was shown;
/// 130 interrupted.
#[derive(Debug, Parser)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Example:\n  jepsen-tests --workload register --nemesis kill-leader,partition-one-way --seconds 60 --seed 7"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every workload under every nemesis, and a table at the end
    All(AllArgs),
    /// Kill leaders again and again, and tell how long their shards stood still
    Failover(FailoverArgs),
    /// Judge the history of an earlier run again
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct Common {
    /// Length of the load with its faults; starting, healing and judging come on top
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: u64,
    /// Decides the schedule of faults and what callers ask
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Under which each run gets a directory
    #[arg(long, value_name = "DIR")]
    artefacts: Option<PathBuf>,
    /// Storage engine of the nodes, `sled` or `fjall`
    #[arg(long, value_parser = engine)]
    engine: Option<Engine>,
    /// Call through the client crate instead of REST
    #[arg(long)]
    client: bool,
    /// The same, straight to the nodes
    #[arg(long, conflicts_with = "client")]
    direct: bool,
    /// Another build of borough, for the nemesis `upgrade`; else JEPSEN_OTHER_BIN. See jepsen-tests/other-build
    #[arg(long, value_name = "FILE")]
    other_binary: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A rule that all nodes break (a binary with the feature `defects`; node/src/defect.rs names them): to be found
    #[arg(long, value_name = "NAME")]
    defect: Option<String>,
    /// See --list
    #[arg(long, value_parser = workload, required_unless_present = "list")]
    workload: Option<Workload>,
    /// See --list; several overlap
    #[arg(long, value_parser = nemesis, value_delimiter = ',', default_value = "none")]
    nemesis: Vec<Nemesis>,
    /// Nodes; 3, or as many as the nemesis takes
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=15))]
    nodes: Option<u8>,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    shards: u32,
    /// Sequential callers
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=500))]
    concurrency: u64,
    /// Calls a second that all callers together aim at
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    routers: u8,
    /// Show workloads and nemeses
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Of the run
    #[arg(long, value_parser = workload)]
    workload: Workload,
    /// Its `history.jsonl`
    history: PathBuf,
}

/// Exit codes: 0 the 99th percentile is within two election timeouts; 1 it is not, or the cluster did not come back;
/// 130 interrupted.
#[derive(Debug, Args)]
struct FailoverArgs {
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,
    /// Decides which shard's leader dies, and when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=15))]
    nodes: u8,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    shards: u32,
    /// The nodes' longest election timeout, in milliseconds
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(200..))]
    election_timeout_ms: u64,
    /// Storage engine of the nodes, `sled` or `fjall`
    #[arg(long, value_parser = engine)]
    engine: Option<Engine>,
    /// For `failover.jsonl`, a line a kill, and `failover.txt`
    #[arg(long, value_name = "DIR", default_value = "target/jepsen/failover")]
    artefacts: PathBuf,
}

#[derive(Debug, Args)]
struct AllArgs {
    /// Only runs whose WORKLOAD/NEMESIS contains one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    #[command(flatten)]
    common: Common,
}

impl Common {
    fn through(&self) -> Through {
        match (self.client, self.direct) {
            (_, true) => Through::Direct,
            (true, false) => Through::Client,
            (false, false) => Through::Rest,
        }
    }
}

fn workload(name: &str) -> Result<Workload, String> {
    Workload::named(name).ok_or_else(|| "see --list".to_owned())
}

fn nemesis(name: &str) -> Result<Nemesis, String> {
    Nemesis::named(name).ok_or_else(|| "see --list".to_owned())
}

fn engine(name: &str) -> Result<Engine, String> {
    Engine::named(name).ok_or_else(|| "sled or fjall".to_owned())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        // It starts nothing that would have to be ended: signals end it as they do any program.
        Some(Command::Check(args)) => check(args),
        _ => drive(cli),
    }
}

#[tokio::main]
async fn drive(cli: Cli) -> ExitCode {
    // What is dropped kills its processes: a run that is interrupted leaves none behind.
    tokio::select! {
        code = Box::pin(carry_out(cli)) => code,
        () = interrupted() => {
            eprintln!("interrupted");
            ExitCode::from(INTERRUPTED)
        }
    }
}

/// Ends with the first SIGINT or SIGTERM, or when the terminal is closed.
async fn interrupted() {
    let (terminate, hang_up) = (signal(SignalKind::terminate()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut hang_up)) = (terminate, hang_up) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}

async fn carry_out(cli: Cli) -> ExitCode {
    let reports = match cli.command {
        Some(Command::All(AllArgs { only, common })) => {
            let length = Duration::from_secs(common.seconds);
            let through = common.through();
            let Common { seed, artefacts, engine, other_binary, .. } = common;
            let reports = run_all(length, seed, &only, artefacts, engine, other_binary, through).await;
            if reports.is_empty() {
                eprintln!("no run's WORKLOAD/NEMESIS contains any of {only:?}; see --list");
            }
            say(format_args!("\n{}", table(&reports)));
            reports
        }
        Some(Command::Check(args)) => return check(&args),
        Some(Command::Failover(args)) => return measure(args).await,
        None => {
            let Some(workload) = cli.run.workload.filter(|_| !cli.run.list) else {
                say(list());
                return ExitCode::SUCCESS;
            };
            let report = run(&plan(workload, cli.run)).await;
            say(&report);
            vec![report]
        }
    };
    ExitCode::from(Report::exit_code(&reports))
}

/// `dir`, or the first of `dir.2`, `dir.3`… that is not there.
fn fresh(dir: &std::path::Path) -> PathBuf {
    let mut dirs = (1_u32..).map(|number| match number {
        1 => dir.to_owned(),
        _ => dir.with_extension(number.to_string()),
    });
    dirs.find(|dir| !dir.exists()).unwrap_or_else(|| dir.to_owned())
}

async fn measure(args: FailoverArgs) -> ExitCode {
    let wanted = Failover {
        kills: args.kills,
        seed: args.seed,
        nodes: usize::from(args.nodes),
        shards: args.shards,
        election_timeout: Duration::from_millis(args.election_timeout_ms),
        engine: args.engine,
        dir: fresh(&args.artefacts.join(format!("seed-{}", args.seed))),
    };
    match Box::pin(failover::run(&wanted)).await {
        Ok(summary) => {
            say(&summary);
            if summary.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error:#}");
            let broken = error.downcast_ref::<failover::NotHealed>().is_some();
            ExitCode::from(if broken { 1 } else { 2 })
        }
    }
}

fn check(args: &CheckArgs) -> ExitCode {
    match check_file(args.workload, &args.history) {
        Ok((told, code)) => {
            say(told);
            ExitCode::from(code)
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn plan(workload: Workload, args: RunArgs) -> Plan {
    let common = args.common;
    let through = common.through();
    let plan = Plan::new(workload, args.nemesis, Duration::from_secs(common.seconds), common.seed);
    Plan {
        nodes: args.nodes.map_or(plan.nodes, usize::from),
        shards: args.shards,
        callers: args.concurrency,
        rate: f64::from(args.rate),
        routers: usize::from(args.routers),
        artefacts: common.artefacts,
        engine: common.engine,
        other_binary: common.other_binary,
        defect: args.defect,
        through,
        ..plan
    }
}
