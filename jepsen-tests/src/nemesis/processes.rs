//! Processes that are killed, ended and started, while other faults may do the same to them.
//!
//! What another fault has done already is no failure here: a node that is dead need not be ended, one that runs need not be
//! started. So two faults that meet the same node leave it as the last one wants it, and the end of the run starts them all.
//! Nor is it one when a fault has ended a node that says so: that fault's end, or who supervises the nodes, starts it again.

use std::path::Path;

use anyhow::{Context as _, ensure};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::field::Field;
use crate::cluster::{BIND_LIMIT, Cluster, STOP_LIMIT};
use crate::wait::until;

/// A process did not start: the product's failure, whatever the fault.
#[derive(Debug, thiserror::Error)]
#[error("{who} does not start: {reason}")]
pub struct DoesNotStart {
    who: String,
    reason: String,
}

/// `count` of `from`.
pub fn choose(rng: &mut StdRng, from: &[usize], count: usize) -> anyhow::Result<Vec<usize>> {
    ensure!(!from.is_empty(), "no node is awake");
    let mut left = from.to_vec();
    let mut chosen = Vec::new();
    while chosen.len() < count && !left.is_empty() {
        chosen.push(left.swap_remove(rng.random_range(0..left.len())));
    }
    Ok(chosen)
}

/// Kills nodes, and tells their names.
pub fn kill(field: &Field<'_>, nodes: &[usize]) -> anyhow::Result<Value> {
    ensure!(!nodes.is_empty(), "no node is awake");
    field.with(|cluster| {
        let mut names = Vec::new();
        for &at in nodes {
            let node = cluster.nodes.get_mut(at).context("no such node")?;
            node.kill()?;
            names.push(node.name().to_owned());
        }
        Ok(json!(names))
    })
}

/// Kills one of the routers that run, and tells which.
pub fn kill_router(field: &Field<'_>, rng: &mut StdRng) -> anyhow::Result<usize> {
    field.with(|cluster| {
        let running: Vec<usize> =
            cluster.routers().enumerate().filter(|(_, router)| router.running()).map(|(at, _)| at).collect();
        let at = *choose(rng, &running, 1)?.first().context("no router")?;
        cluster.routers_mut().nth(at).context("no such router")?.kill()?;
        Ok(at)
    })
}

/// Starts a node again unless it runs or has been removed. It may end at once by a fault that entitles it to.
pub async fn launch(field: &Field<'_>, at: usize) -> anyhow::Result<()> {
    let started = field.with(|cluster| -> anyhow::Result<_> {
        let node = cluster.nodes.get_mut(at).context("no such node")?;
        if node.running() || node.retired {
            return Ok(None);
        }
        node.spawn()?;
        Ok(node.pid())
    })?;
    let Some(pid) = started else { return Ok(()) };
    let who = field.name(at);
    until(BIND_LIMIT, &format!("{who} to bind"), || async {
        field.with(|cluster| -> anyhow::Result<anyhow::Result<()>> {
            let node = cluster.nodes.get_mut(at).context("no such node")?;
            // Another fault has killed it, or it was removed while it started and says so.
            if node.pid() != Some(pid) || node.retired {
                return Ok(Ok(()));
            }
            match node.look_bound() {
                Ok(bound) => bound.map(Ok),
                Err(_) if !node.excused_by()?.is_empty() => Ok(Ok(())),
                Err(ended) => {
                    let tail = node.process()?.log_tail(30);
                    Ok(Err(DoesNotStart { who: who.clone(), reason: format!("{ended:#}: {tail}") }.into()))
                }
            }
        })
    })
    .await
    .and_then(|bound| bound)
}

/// Starts a router again unless it runs.
pub async fn launch_router(field: &Field<'_>, at: usize) -> anyhow::Result<()> {
    let started = field.with(|cluster| -> anyhow::Result<_> {
        // Those of the beginning may have been removed.
        let seeds: Vec<String> =
            cluster.nodes.iter().filter(|node| !node.retired).map(|node| node.addr.clone()).collect();
        let router = cluster.routers_mut().nth(at).context("no such router")?;
        if router.running() {
            return Ok(None);
        }
        router.reseed(&seeds);
        router.spawn()?;
        Ok(router.pid())
    })?;
    let Some(pid) = started else { return Ok(()) };
    let who = format!("router-{}", at + 1);
    until(BIND_LIMIT, &format!("{who} to listen"), || async {
        field.with(|cluster| -> anyhow::Result<anyhow::Result<()>> {
            let router = cluster.routers_mut().nth(at).context("no such router")?;
            if router.pid() != Some(pid) {
                return Ok(Ok(()));
            }
            match router.look_bound() {
                Ok(true) => Ok(Ok(())),
                Ok(false) => anyhow::bail!("it does not listen yet"),
                Err(ended) => Ok(Err(DoesNotStart { who: who.clone(), reason: format!("{ended:#}") }.into())),
            }
        })
    })
    .await
    .and_then(|bound| bound)
}

/// SIGTERM, the end, and a new start, of `binary` or of the build under test.
pub async fn restart(field: &Field<'_>, at: usize, binary: Option<&Path>) -> anyhow::Result<()> {
    let pid = field.with(|cluster| -> anyhow::Result<_> {
        let node = cluster.nodes.get_mut(at).context("no such node")?;
        node.binary = binary.map(Path::to_owned);
        if node.running() && !node.take_excused()? {
            node.stop()?;
        }
        Ok(node.pid())
    })?;
    if let Some(pid) = pid {
        until(STOP_LIMIT, &format!("{} to end", field.name(at)), || async {
            let gone =
                field.with(|cluster| cluster.nodes.get_mut(at).context("no such node")?.look_ended(pid))?;
            ensure!(gone, "it still runs");
            Ok(())
        })
        .await?;
    }
    launch(field, at).await
}

/// The same for a router.
pub async fn restart_router(field: &Field<'_>, at: usize, binary: Option<&Path>) -> anyhow::Result<()> {
    let pid = field.with(|cluster| -> anyhow::Result<_> {
        let router = cluster.routers_mut().nth(at).context("no such router")?;
        router.binary = binary.map(Path::to_owned);
        if router.running() {
            router.signal(nix::sys::signal::Signal::SIGTERM)?;
        }
        Ok(router.pid())
    })?;
    if let Some(pid) = pid {
        until(STOP_LIMIT, &format!("router-{} to end", at + 1), || async {
            let gone = field
                .with(|cluster| cluster.routers_mut().nth(at).context("no such router")?.look_ended(pid))?;
            ensure!(gone, "it still runs");
            Ok(())
        })
        .await?;
    }
    launch_router(field, at).await
}

/// Restarts nodes one by one, each when all shards are well again, and then the routers.
///
/// # Errors
/// [`DoesNotStart`]; else what the cluster was not in time, as happens under other faults: the rest is restarted all the same.
pub async fn roll(field: &Field<'_>, nodes: &[usize], binary: Option<&Path>) -> anyhow::Result<Value> {
    let mut names = Vec::new();
    let mut unwell = Ok(());
    for &at in nodes {
        let retired = field.with(|cluster| cluster.nodes.get(at).is_none_or(|node| node.retired));
        if retired {
            continue;
        }
        let restarted = restart(field, at, binary).await;
        let rested = match restarted {
            Err(error) if error.is::<DoesNotStart>() => return Err(error),
            Err(error) => Err(error),
            Ok(()) => field.rest().await,
        };
        names.push(field.name(at));
        unwell = unwell.and(rested);
    }
    let routers = field.with(|cluster| cluster.routers().count());
    for at in 0..routers {
        unwell = match restart_router(field, at, binary).await {
            Err(error) if error.is::<DoesNotStart>() => return Err(error),
            restarted => unwell.and(restarted),
        };
    }
    unwell.map(|()| json!(names))
}

/// Restarts, one by one, what is of another build.
pub async fn roll_back(field: &Field<'_>) -> anyhow::Result<()> {
    for at in 0..field.with(|cluster| cluster.nodes.len()) {
        if field.with(|cluster| cluster.nodes.get(at).is_some_and(|node| node.binary.is_some())) {
            restart(field, at, None).await?;
            // Under other faults it may not be well in time; the end of the run waits for that.
            let _ = field.rest().await;
        }
    }
    for at in 0..field.with(|cluster| cluster.routers().count()) {
        let other =
            |cluster: &mut Cluster| cluster.routers().nth(at).is_some_and(|router| router.binary.is_some());
        if field.with(other) {
            restart_router(field, at, None).await?;
        }
    }
    Ok(())
}
