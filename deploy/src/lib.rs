//! The `borough` binary as a library: the command line, settings, and clusters of real processes.
//!
//! [`run`] is all of `main`; [`local_cluster`] is what `borough dev` and chaos runs share.

use std::process::ExitCode;

use clap::Parser;

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
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Command::Bench(args) = &cli.command {
        runtime.worker_threads(args.threads);
    }
    let runtime = runtime.enable_all().build();
    let runtime = runtime.map_err(|error| anyhow::Error::new(error).context("start the runtime"))?;
    let done = runtime.block_on(Box::pin(dispatch(cli.command)));
    // Services have ended in order by now; a thread that still reads stdin would be waited for in vain.
    runtime.shutdown_background();
    done
}

async fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Node(args) => return service::node(args).await,
        Command::Router(args) => return service::router(args).await,
        Command::Dev(args) => return dev::run(args).await,
        Command::Bench(args) => return bench::run(args).await,
        Command::Cluster(ClusterCommand::Init(args)) => cluster::init(args).await,
        Command::Cluster(ClusterCommand::Status(args)) => cluster::status(args).await,
        Command::Cluster(ClusterCommand::Check(args)) => check::check(args).await,
        Command::Cluster(ClusterCommand::Rebalance(args)) => operations::rebalance(args).await,
        Command::Cluster(ClusterCommand::Pause(args)) => operations::pause(args).await,
        Command::Cluster(ClusterCommand::Resume(args)) => operations::resume(args).await,
        Command::Cluster(ClusterCommand::Cancel(args)) => operations::cancel(args).await,
        Command::Cluster(ClusterCommand::Drain(args)) => operations::drain(args).await,
        Command::Cluster(ClusterCommand::Undrain(args)) => operations::undrain(args).await,
        Command::Cluster(ClusterCommand::Remove(args)) => operations::remove(args).await,
        Command::Collection(command) => collections::run(command).await,
        Command::Get(args) => documents::get(args).await,
        Command::Put(args) => documents::put(args).await,
        Command::Patch(args) => documents::patch(args).await,
        Command::Delete(args) => documents::delete(args).await,
        Command::List(args) => documents::list(args).await,
        Command::Import(args) => import::run(args).await,
        Command::Export(args) => export::run(args).await,
    }
    .map_err(Failure::Failed)
}
