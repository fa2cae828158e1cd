//! Options of `borough bench`.

use std::path::PathBuf;

use borough_benches::options::Options;
use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::{Secret, Target};

const THREADS_MAX: u64 = 256;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough bench --seconds 30 --mix get=80,put=20")]
pub struct BenchArgs {
    #[command(flatten)]
    pub load: Options,
    /// The collection, made when it is missing; what is written stays there
    #[arg(long, default_value = "bench", value_name = "NAME", conflicts_with = "requests")]
    pub collection: String,
    /// Put the load on another service than Borough, whose requests this JSON file describes by kind
    #[arg(long, value_name = "FILE")]
    pub requests: Option<PathBuf>,
    /// The router; several share the connections
    #[arg(
        long,
        env = "BOROUGH_ROUTER",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL,…",
        value_delimiter = ','
    )]
    pub router: Vec<String>,
    /// Where the cluster asks for one; best left in the environment, as everybody on this machine sees arguments
    #[arg(long, env = "BOROUGH_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<Secret>,
    /// Threads that send; more than one takes processor time from servers on this machine
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=THREADS_MAX))]
    pub threads: usize,
    /// One JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

impl BenchArgs {
    /// Each of the routers, as other commands know one.
    pub fn targets(&self) -> impl Iterator<Item = Target> {
        self.router.iter().map(|router| Target { router: router.clone(), token: self.token.clone() })
    }
}
