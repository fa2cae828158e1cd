//! The `borough` binary as a library: the command line, settings, and clusters of real processes.
//!
//! [`run`] is all of `main`; [`local_cluster`] is what `borough dev` and chaos runs share.

use std::process::ExitCode;

use clap::Parser;
use futures::FutureExt as _;
use futures::TryFutureExt as _;
use futures::future::LocalBoxFuture;

mod bench;
mod check;
pub mod cli;
mod cluster;
mod collections;
mod dev;
mod documents;
pub mod exit;
mod export;
mod import;
pub mod local_cluster;
mod logging;
mod operations;
pub mod process;
mod scheduling;
mod service;
pub mod settings;
mod shutdown;

use cli::{Cli, ClusterCommand, Command};
use exit::Failure;

/// Parses the command line, runs the command and answers the exit code.
pub fn run() -> ExitCode {
    // Wrong usage ends here, with exit code 2.
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    let is_service = matches!(cli.command, Command::Node(_) | Command::Router(_));
    logging::init(&cli.log, if is_service { logging::SERVICE } else { logging::COMMAND })?;
    let Plan { threads, batch, work } = plan(cli.command)?;
    if batch && let Err(why) = scheduling::batch() {
        tracing::warn!(%why, "threads are scheduled as by default");
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        runtime.worker_threads(threads);
    }
    let runtime = runtime.enable_all().build();
    let runtime = runtime.map_err(|error| anyhow::Error::new(error).context("start the runtime"))?;
    let done = runtime.block_on(work);
    // Services have ended in order by now; a thread that still reads stdin would be waited for in vain.
    runtime.shutdown_background();
    done
}

type Work = LocalBoxFuture<'static, Result<(), Failure>>;

/// What a command does, and on what threads. Settings are read for it: they say it.
struct Plan {
    /// 0 is one for each processor.
    threads: usize,
    /// Whether they are scheduled as batch work.
    batch: bool,
    work: Work,
}

impl Plan {
    /// On a thread for each processor, as by default.
    fn new(work: Work) -> Self {
        Self { threads: 0, batch: false, work }
    }
}

fn plan(command: Command) -> Result<Plan, Failure> {
    match command {
        Command::Node(args) => {
            let config = service::node_config(&args)?;
            let (threads, batch) = (config.threads, config.batch_scheduling);
            Ok(Plan { threads, batch, work: service::node(config).boxed_local() })
        }
        Command::Router(args) => {
            let config = service::router_config(&args)?;
            let (threads, batch) = (config.threads, config.batch_scheduling);
            Ok(Plan { threads, batch, work: service::router(config).boxed_local() })
        }
        Command::Bench(args) => {
            Ok(Plan { threads: args.threads, ..Plan::new(bench::run(args).boxed_local()) })
        }
        Command::Dev(args) => Ok(Plan::new(dev::run(args).boxed_local())),
        Command::Cluster(ClusterCommand::Init(args)) => failing(cluster::init(args)),
        Command::Cluster(ClusterCommand::Status(args)) => failing(cluster::status(args)),
        Command::Cluster(ClusterCommand::Check(args)) => failing(check::check(args)),
        Command::Cluster(ClusterCommand::Rebalance(args)) => failing(operations::rebalance(args)),
        Command::Cluster(ClusterCommand::Pause(args)) => failing(operations::pause(args)),
        Command::Cluster(ClusterCommand::Resume(args)) => failing(operations::resume(args)),
        Command::Cluster(ClusterCommand::Cancel(args)) => failing(operations::cancel(args)),
        Command::Cluster(ClusterCommand::Drain(args)) => failing(operations::drain(args)),
        Command::Cluster(ClusterCommand::Undrain(args)) => failing(operations::undrain(args)),
        Command::Cluster(ClusterCommand::Remove(args)) => failing(operations::remove(args)),
        Command::Collection(command) => failing(collections::run(command)),
        Command::Get(args) => failing(documents::get(args)),
        Command::Put(args) => failing(documents::put(args)),
        Command::Patch(args) => failing(documents::patch(args)),
        Command::Delete(args) => failing(documents::delete(args)),
        Command::List(args) => failing(documents::list(args)),
        Command::Import(args) => failing(import::run(args)),
        Command::Export(args) => failing(export::run(args)),
    }
}

fn failing(work: impl Future<Output = anyhow::Result<()>> + 'static) -> Result<Plan, Failure> {
    Ok(Plan::new(work.map_err(Failure::Failed).boxed_local()))
}
