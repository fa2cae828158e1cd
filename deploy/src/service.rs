//! `borough node` and `borough router`: settings, then the service until a signal.

use std::path::PathBuf;

use borough_node::RunError;
use tokio_util::task::TaskTracker;

use crate::cli::{NodeArgs, RouterArgs};
use crate::exit::{Failure, print};
use crate::process::die_with_parent;
use crate::settings::{self, Flag, Settings, Sources};
use crate::shutdown;

/// What a node is told by its flags, its environment and its file.
///
/// # Errors
/// Bad configuration, all faults at once.
pub fn node_config(args: &NodeArgs) -> Result<borough_node::Config, Failure> {
    follow(args.common.die_with_parent)?;
    let others = vec![settings::defaults::<borough_router::Config>()];
    load(args.common.config.clone(), args.flags(), others)
}

/// Runs a node until it is told to end.
///
/// # Errors
/// A data directory that cannot be used, or whatever ended the node.
pub async fn node(config: borough_node::Config) -> Result<(), Failure> {
    let shutdown = shutdown::on_signal(&TaskTracker::new())?;
    borough_node::run(config, shutdown).await.map_err(|error| match error {
        RunError::DataDir(_) | RunError::Refused(_) => Failure::DataDir(error.to_string()),
        RunError::Config(_) | RunError::Listen { .. } | RunError::Failed(_) => Failure::Failed(error.into()),
    })
}

/// What a router is told by its flags, its environment and its file.
///
/// # Errors
/// Bad configuration, all faults at once.
pub fn router_config(args: &RouterArgs) -> Result<borough_router::Config, Failure> {
    follow(args.common.die_with_parent)?;
    let others = vec![settings::defaults::<borough_node::Config>()];
    load(args.common.config.clone(), args.flags(), others)
}

/// Runs a router until it is told to end.
///
/// # Errors
/// Whatever ended the router.
pub async fn router(config: borough_router::Config) -> Result<(), Failure> {
    let shutdown = shutdown::on_signal(&TaskTracker::new())?;
    let announce = |addr| {
        // Whoever started a router with nobody at its stdout does not want to know.
        let _unread = print(&format!("listening: http://{addr}\n"));
    };
    borough_router::run_with(config, shutdown, announce).await.map_err(|error| Failure::Failed(error.into()))
}

fn follow(parent: Option<u32>) -> Result<(), Failure> {
    match parent {
        Some(parent) if !die_with_parent(parent) => Err(Failure::Failed(anyhow::anyhow!(
            "the process {parent}, which was to be followed, is not the parent"
        ))),
        Some(_) | None => Ok(()),
    }
}

fn load<T: Settings>(
    file: Option<PathBuf>,
    flags: Vec<Flag>,
    others: Vec<figment::value::Dict>,
) -> Result<T, Failure> {
    let environment = std::env::vars_os().collect();
    Ok(settings::load(&Sources { file, environment, others, flags })?)
}
