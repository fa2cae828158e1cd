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
    let (threads, work) = plan(cli.command)?;
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

/// What a command does, and on how many threads; 0 is one for each processor. Settings are read here: they say it.
fn plan(command: Command) -> Result<(usize, Work), Failure> {
    match command {
        Command::Node(args) => {
            let config = service::node_config(&args)?;
            Ok((config.threads, service::node(config).boxed_local()))
        }
        Command::Router(args) => {
            let config = service::router_config(&args)?;
            Ok((config.threads, service::router(config).boxed_local()))
        }
        Command::Bench(args) => Ok((args.threads, bench::run(args).boxed_local())),
        Command::Dev(args) => Ok((0, dev::run(args).boxed_local())),
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

fn failing(work: impl Future<Output = anyhow::Result<()>> + 'static) -> Result<(usize, Work), Failure> {
    Ok((0, work.map_err(Failure::Failed).boxed_local()))
}
