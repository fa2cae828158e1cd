//! Whole clusters of Borough in one process, under a simulated network, clock and disk.
//!
//! ```text
//! cargo run --release -p borough-simulation -- --seeds 1..2000
//! cargo run --release -p borough-simulation -- --seeds 17 --trace
//! ```
//!
//! Each seed is a schedule in a process of its own; the same seed does the same each time, to the last event.

mod caller;
mod cluster;
mod disk;
mod host;
mod load;
mod network;
mod runner;
mod schedule;
mod system;
mod trace;
mod verdict;

use std::process::ExitCode;

use clap::Parser as _;

/// Set for the processes that run one schedule each.
const CHILD: &str = "BOROUGH_SIMULATION_CHILD";

fn main() -> ExitCode {
    let child = std::env::var_os(CHILD).is_some();
    if child {
        // Before anything has asked for chance or time.
        system::simulate();
    }
    let options = runner::Options::parse();
    let result = if child { runner::run_child(&options) } else { runner::run(&options) };
    match result {
        Ok(runner::Shown::Nothing) => ExitCode::SUCCESS,
        Ok(runner::Shown::Violation) => ExitCode::FAILURE,
        Ok(runner::Shown::Unknown) => ExitCode::from(2),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}
