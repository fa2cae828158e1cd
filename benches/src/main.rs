//! `borough-load`: a load on a cluster's REST API, with latencies that a stall cannot hide from.
//!
//! Exit code 0: every request was answered as it should; 1: some were not; 2: wrong usage.

use std::process::ExitCode;

use anyhow::{Context, Result};
use borough_benches::load::{self, Options};
use borough_benches::report::Report;
use clap::Parser;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Puts a load on a Borough router and reports requests a second, latency and failures.
#[derive(Debug, Parser)]
#[command(name = "borough-load", version)]
struct Cli {
    #[command(flatten)]
    load: Options,
    /// Threads that send. More than one takes the servers' processor time on a small machine.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(report) if report.failed() > 0 => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("borough-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cli.threads.max(1))
        .enable_all()
        .build()
        .context("start the runtime")?;
    let report = runtime.block_on(Box::pin(async {
        if !cli.load.no_preload {
            load::preload(&cli.load).await?;
        }
        load::measure(&cli.load).await
    }))?;
    if cli.json {
        println!("{}", serde_json::to_string(&report).context("print the report")?);
    } else {
        print!("{report}");
    }
    Ok(report)
}
