//! `borough dev`: nodes and a router on this machine, as real processes.
//!
//! It starts them, says when they serve, keeps `dev.json` true, and stops them. What somebody kills
//! stays dead unless `--restart` is given, and what somebody starts again by hand is left alone.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::cli::DevArgs;
use crate::exit::{Failure, print, say};
use crate::local_cluster::{LocalCluster, Options};
use crate::shutdown;

mod describe;

/// From the start of the processes to a cluster that serves.
const READY_TIMEOUT: Duration = Duration::from_secs(180);
/// How often the children and `dev.json` are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A child that lived this long starts again without a pause.
const SETTLED: Duration = Duration::from_secs(30);
/// The setting of nodes and routers.
const THREADS: &str = "BOROUGH_THREADS";
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Runs the cluster until a signal.
///
/// # Errors
/// When the port or the directory is in use, or a process does not come up.
pub async fn run(args: DevArgs) -> Result<(), Failure> {
    let dir = &args.data_dir;
    let _lock = claim(dir).map_err(|error| Failure::DataDir(format!("{error:#}")))?;
    Ok(run_in(&args, dir).await?)
}

async fn run_in(args: &DevArgs, dir: &Path) -> Result<()> {
    let tasks = TaskTracker::new();
    let stop = shutdown::on_signal(&tasks)?;
    check_port(args.port)?;
    if args.fresh {
        clear(dir)?;
    }
    let options = Options {
        nodes: usize::from(args.nodes),
        shards: args.shards,
        engine: args.engine.clone(),
        router_port: args.port,
        env: threads(usize::from(args.nodes) + 1),
        ..Options::new(std::env::current_exe().context("find this program")?, dir)
    };
    say(&format!("borough dev: {} nodes and a router in {}", args.nodes, dir.display()));
    let cluster = tokio::select! {
        cluster = LocalCluster::start(options) => cluster?,
        // What has been started is killed when it is dropped.
        () = stop.cancelled() => bail!("interrupted while starting"),
    };
    let mut description = describe::Description::new(&cluster);
    let served = tokio::select! {
        served = serve(&cluster, &mut description, args.restart) => served,
        () = stop.cancelled() => Ok(()),
    };
    say("borough dev: stopping");
    let stopped = cluster.stop().await;
    description.remove();
    served.and(stopped)
}

/// A share of the processors for each of `processes` on this machine, unless it was said how many threads they are to have:
/// more would only wait for each other.
fn threads(processes: usize) -> Vec<(String, String)> {
    if std::env::var_os(THREADS).is_some() {
        return Vec::new();
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    vec![(THREADS.to_owned(), processors.div_ceil(processes).to_string())]
}

/// Never returns but with an error.
async fn serve(cluster: &LocalCluster, description: &mut describe::Description, restart: bool) -> Result<()> {
    description.refresh(cluster)?;
    announce_ready(cluster, description).await?;
    let mut watched = watch_list(cluster);
    loop {
        description.refresh(cluster)?;
        for watched in &mut watched {
            watched.look(cluster, restart).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn announce_ready(cluster: &LocalCluster, description: &mut describe::Description) -> Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut told = Instant::now();
    loop {
        description.refresh(cluster)?;
        let waits = match cluster.missing().await? {
            Ok(_) => break,
            Err(waits) => waits,
        };
        if Instant::now() >= deadline {
            bail!("the cluster is not ready after {READY_TIMEOUT:?}: {waits}");
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            say(&format!("borough dev: waiting: {waits}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let url = cluster.router_url();
    print(&format!(
        "ready: {url}\n  curl -X PUT {url}/v1/users/1 -H 'Content-Type: application/json' -d '{{\"name\":\"Ada\"}}'\n"
    ))
}

fn claim(dir: &Path) -> Result<File> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    lock(dir)
}

/// Two of them on one directory would fight over the nodes' data.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("dev.lock");
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("another `borough dev` runs in {}; stop it or give another --data-dir", dir.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}

fn check_port(port: u16) -> Result<()> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("port {port} is taken by another process; give another --port")
        }
        Err(error) => Err(error).with_context(|| format!("listen on port {port}")),
    }
}

/// Deletes what a dev cluster leaves, and nothing else that may be in the directory.
fn clear(dir: &Path) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", dir.display()))?;
        let name = entry.file_name();
        let (Some(name), path) = (name.to_str(), entry.path()) else { continue };
        let number = |name: &str| name.strip_prefix("node-").is_some_and(|rest| rest.parse::<u32>().is_ok());
        let removed = if path.is_dir() && number(name) {
            if let Some(pid) = describe::running(&path) {
                bail!("{} is in use by process {pid}; stop it first", path.display());
            }
            std::fs::remove_dir_all(&path)
        } else if matches!(name, "layout.json" | "dev.json" | "router.log")
            || name.strip_suffix(".log").is_some_and(number)
        {
            std::fs::remove_file(&path)
        } else {
            continue;
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// A child that is started again, or whose end is told.
struct Watched {
    child: Child,
    /// The end has been told.
    told: bool,
    started: Instant,
    pause: Duration,
    again_at: Option<Instant>,
}

enum Child {
    Node(usize),
    Router,
}

fn watch_list(cluster: &LocalCluster) -> Vec<Watched> {
    let children = cluster.nodes().into_iter().map(|node| Child::Node(node.number())).chain([Child::Router]);
    let watched =
        |child| Watched { child, told: false, started: Instant::now(), pause: PAUSE_MIN, again_at: None };
    children.map(watched).collect()
}

impl Watched {
    async fn look(&mut self, cluster: &LocalCluster, restart: bool) {
        let (name, pid, log, dir): (String, Option<u32>, PathBuf, Option<PathBuf>) = match self.child {
            Child::Node(number) => {
                let Some(node) = cluster.node(number) else { return };
                (node.name().to_owned(), node.pid(), node.log(), Some(node.data_dir()))
            }
            Child::Router => ("router".to_owned(), cluster.router().pid(), cluster.router().log(), None),
        };
        if pid.is_some() {
            self.told = false;
            return;
        }
        if !self.told {
            self.told = true;
            say(&format!("borough dev: {name} has ended; its log is {}", log.display()));
            if self.started.elapsed() > SETTLED {
                self.pause = PAUSE_MIN;
            }
            self.again_at = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        let due = restart && self.again_at.is_some_and(|at| Instant::now() >= at);
        // Somebody may have started it by hand meanwhile.
        let by_hand = dir.is_some_and(|dir| describe::running(&dir).is_some());
        if !due || by_hand {
            return;
        }
        self.started = Instant::now();
        let started = match self.child {
            Child::Node(number) => match cluster.node(number) {
                Some(node) => node.start().await,
                None => return,
            },
            Child::Router => cluster.router().start().await,
        };
        match started {
            Ok(()) => say(&format!("borough dev: {name} runs again")),
            // Told as ended at the next look, and tried again after a longer pause.
            Err(error) => say(&format!("borough dev: {error:#}")),
        }
        self.told = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_and_a_taken_directory_are_refused_with_a_way_out() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let error = check_port(taken.local_addr().unwrap().port()).unwrap_err().to_string();
        assert!(error.contains("--port"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let error = lock(dir.path()).unwrap_err().to_string();
        assert!(error.contains("--data-dir"), "{error}");
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn fresh_deletes_only_what_a_dev_cluster_leaves() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["node-1", "node-12", "node-x", "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in
            ["node-1.log", "router.log", "layout.json", "dev.json", "node-1/file", "notes.log", "other/file"]
        {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        clear(dir.path()).unwrap();
        let entries = std::fs::read_dir(dir.path()).unwrap();
        let mut left: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["node-x", "notes.log", "other"]);
    }
}
