//! A cluster of real processes on this machine: nodes and a router, started, killed, paused and
//! started again. `borough dev` and the chaos runs are built on it.
//!
//! Everything is kept in one directory: `node-1`, `node-2`, … with their logs beside them, and
//! `layout.json` with the ports, so that a later start finds the same cluster at the same addresses.
//! Dropping a [`LocalCluster`] kills and reaps what still runs.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use borough_proto::http_api::ClusterStatus;
use borough_proto::wire;
use borough_proto::wire::cluster_client::ClusterClient;
use tokio::time::Instant;

mod layout;
mod node;
mod router;

pub use layout::{Identity, Layout, Ports, Runtime, node_dir, read_identity, read_runtime, replace_json};
pub use node::LocalNode;
pub use router::LocalRouter;

use crate::process::poll_until;

/// How long a process gets to end by itself before it is killed.
pub const STOP_GRACE: Duration = Duration::from_secs(20);

/// Variables that would give all children the same identity.
const ENV_REMOVED: &[&str] = &[
    "BOROUGH_DATA_DIR",
    "BOROUGH_LISTEN",
    "BOROUGH_ADMIN_LISTEN",
    "BOROUGH_ADVERTISE",
    "BOROUGH_JOIN",
    "BOROUGH_NODES",
    "BOROUGH_CONFIG",
];

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `borough` binary.
    pub binary: PathBuf,
    /// Made when absent. What an earlier run left is started again.
    pub data_dir: PathBuf,
    /// At least this many nodes; those that the directory has already are all started.
    pub nodes: usize,
    /// Of a new cluster.
    pub shards: u32,
    /// Target replication factor of a new cluster.
    pub replicas: u32,
    /// `sled` or `fjall`; `None` keeps what the directory has.
    pub engine: Option<String>,
    /// Port of the router on 127.0.0.1; 0 keeps the one of the last time or picks a free one.
    pub router_port: u16,
    /// More arguments for every node, such as `--set raft.heartbeat=100ms`.
    pub node_args: Vec<String>,
    /// More arguments for the router.
    pub router_args: Vec<String>,
    /// More environment for every process.
    pub env: Vec<(String, String)>,
    /// For each step of the start: one process bound, the cluster initialised.
    pub step_timeout: Duration,
}

impl Options {
    /// Three nodes with the defaults of a real cluster.
    pub fn new(binary: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            data_dir: data_dir.into(),
            nodes: 3,
            shards: 32,
            replicas: 3,
            engine: None,
            router_port: 0,
            node_args: Vec::new(),
            router_args: Vec::new(),
            env: Vec::new(),
            step_timeout: Duration::from_secs(60),
        }
    }
}

/// What every process of the cluster needs to know to be started.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) layout: Mutex<Layout>,
}

impl Shared {
    pub(crate) fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn env_removed() -> Vec<String> {
        ENV_REMOVED.iter().map(|name| (*name).to_owned()).collect()
    }
}

/// Nodes and a router as child processes. All methods take `&self`, so that load, faults and
/// checks can share it.
#[derive(Debug)]
pub struct LocalCluster {
    shared: Arc<Shared>,
    nodes: Mutex<Vec<Arc<LocalNode>>>,
    router: LocalRouter,
    http: reqwest::Client,
}

impl LocalCluster {
    /// Starts the nodes and the router, and initialises the cluster if it is new. What has been
    /// started is bound and answers; [`Self::wait_ready`] waits until it serves.
    ///
    /// # Errors
    /// When the directory cannot be used or a process does not come up; the message ends with the
    /// last lines of its log. Nothing is left running.
    pub async fn start(mut options: Options) -> Result<Self> {
        let dir = &options.data_dir;
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        options.data_dir = dir.canonicalize().with_context(|| format!("resolve {}", dir.display()))?;
        let mut layout = Layout::load(&options.data_dir)?;
        layout.complete(&mut options)?;
        layout.save(&options.data_dir)?;
        let count = layout.nodes.len();
        let shared = Arc::new(Shared { options, layout: Mutex::new(layout) });
        let nodes = (1..=count).map(|number| Arc::new(LocalNode::new(number, Arc::clone(&shared)))).collect();
        let router = LocalRouter::new(Arc::clone(&shared));
        let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build();
        let http = http.context("make the HTTP client")?;
        let cluster = Self { shared, nodes: Mutex::new(nodes), router, http };
        cluster.start_all().await?;
        Ok(cluster)
    }

    async fn start_all(&self) -> Result<()> {
        let nodes = self.nodes();
        let Some(first) = nodes.first() else { bail!("a cluster needs at least one node") };
        if first.identity().is_none() {
            if let Some(other) = nodes.iter().find(|node| node.identity().is_some()) {
                bail!("{} belongs to a cluster but {} does not", other.name(), first.name());
            }
            first.start().await?;
            self.init(first).await?;
        }
        let missing: Vec<_> = nodes.iter().filter(|node| node.pid().is_none()).collect();
        // Together: after a stop of all, no quorum exists before the second one is up.
        futures::future::try_join_all(missing.iter().map(|node| node.start())).await?;
        self.router.start().await
    }

    async fn init(&self, node: &LocalNode) -> Result<()> {
        let options = &self.shared.options;
        let deadline = Instant::now() + options.step_timeout;
        let request =
            wire::InitRequest { shards: options.shards, replicas: options.replicas, ..Default::default() };
        loop {
            let url = format!("http://{}", node.addr());
            let answer = async {
                Ok::<_, anyhow::Error>(ClusterClient::connect(url).await?.init(request.clone()).await)
            };
            match answer.await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) if status.code() == tonic::Code::AlreadyExists => return Ok(()),
                Ok(Err(status)) if Instant::now() >= deadline => {
                    bail!("initialise the cluster on {}: {}", node.name(), status.message());
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(format!("initialise the cluster on {}", node.name())));
                }
                Ok(Err(_)) | Err(_) => {}
            }
            node.check_alive()?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Of the router, without a slash at the end.
    pub fn router_url(&self) -> String {
        self.router.url()
    }

    pub fn router(&self) -> &LocalRouter {
        &self.router
    }

    /// All nodes, running or not, by number.
    pub fn nodes(&self) -> Vec<Arc<LocalNode>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Node number `number`, counted from 1 like its directory `node-1`.
    pub fn node(&self, number: usize) -> Option<Arc<LocalNode>> {
        self.nodes().into_iter().find(|node| node.number() == number)
    }

    /// The directory of everything.
    pub fn data_dir(&self) -> &Path {
        &self.shared.options.data_dir
    }

    /// Starts one more node, which joins the cluster.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn add_node(&self) -> Result<Arc<LocalNode>> {
        let number = {
            let mut layout = self.shared.layout();
            let number = layout.add_node()?;
            layout.save(self.data_dir())?;
            number
        };
        let node = Arc::new(LocalNode::new(number, Arc::clone(&self.shared)));
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&node));
        node.start().await?;
        Ok(node)
    }

    /// The status document, by way of the router.
    ///
    /// # Errors
    /// When the router or the cluster does not answer within five seconds.
    pub async fn status(&self) -> Result<ClusterStatus> {
        let url = format!("{}/admin/v1/cluster", self.router_url());
        let mut request = self.http.get(&url);
        // A router that was told by its environment to ask for tokens asks us too.
        if let Ok(token) = std::env::var("BOROUGH_TOKEN") {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.context("ask the router for the status")?;
        let answer = answer.error_for_status().context("ask the router for the status")?;
        answer.json().await.context("read the status")
    }

    /// Whether the router answers 200 on `/readyz`.
    pub async fn router_ready(&self) -> bool {
        let url = format!("{}/readyz", self.router_url());
        self.http.get(url).send().await.is_ok_and(|answer| answer.status().is_success())
    }

    /// Returns when the router is ready and every shard has a leader and as many voters as the
    /// replication factor and the number of nodes allow.
    ///
    /// # Errors
    /// When that takes longer than `timeout`, saying what is missing, or when a process has ended.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<ClusterStatus> {
        let mut missing = String::new();
        let ready = async || match self.missing().await {
            Ok(Ok(status)) => Some(Ok(status)),
            Ok(Err(waits)) => {
                missing = waits;
                None
            }
            Err(ended) => Some(Err(ended)),
        };
        match poll_until(Instant::now() + timeout, ready).await {
            Some(answer) => answer,
            None => bail!("the cluster is not ready after {timeout:?}: {missing}"),
        }
    }

    /// The status when ready, else what is missing.
    ///
    /// # Errors
    /// When a process has ended.
    pub async fn missing(&self) -> Result<Result<ClusterStatus, String>> {
        for node in self.nodes() {
            node.check_alive()?;
        }
        self.router.check_alive()?;
        if !self.router_ready().await {
            return Ok(Err("the router is not ready".to_owned()));
        }
        let status = match self.status().await {
            Ok(status) => status,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        let nodes = self.nodes().len();
        Ok(match unready(&status, nodes) {
            Some(waits) => Err(waits),
            None => Ok(status),
        })
    }

    /// Stops the router, then all nodes at once, each with [`STOP_GRACE`].
    ///
    /// # Errors
    /// When a process cannot be signalled or waited for.
    pub async fn stop(&self) -> Result<()> {
        self.router.terminate().await?;
        let nodes = self.nodes();
        futures::future::try_join_all(nodes.iter().map(|node| node.terminate())).await?;
        Ok(())
    }

    /// Kills everything at once, as a power cut would (but for what the kernel still writes out).
    ///
    /// # Errors
    /// When a process cannot be signalled or waited for.
    pub async fn kill9(&self) -> Result<()> {
        let nodes = self.nodes();
        futures::future::try_join_all(nodes.iter().map(|node| node.kill9())).await?;
        self.router.kill9().await
    }
}

/// What a cluster of `nodes` nodes still lacks to be ready.
fn unready(status: &ClusterStatus, nodes: usize) -> Option<String> {
    let up = status.nodes.iter().filter(|node| node.state == "up").count();
    if up < nodes {
        return Some(format!("{up} of {nodes} nodes are up"));
    }
    let voters = nodes.min(usize::try_from(status.replication_factor).unwrap_or(usize::MAX));
    let whole = |shard: &&borough_proto::http_api::ShardStatus| {
        shard.leader.is_some() && shard.replicas.len() >= voters
    };
    let done = status.shards.iter().filter(whole).count();
    let all = status.shards.len();
    if done < all || all == 0 {
        return Some(format!("{done} of {all} shards have a leader and {voters} voters"));
    }
    None
}

/// A port that is free now and that the kernel gives to no outgoing connection: with one from its
/// ephemeral range, a peer that reconnects to a dead node can take the node's own port.
fn free_port(taken: &[u16]) -> Result<u16> {
    use std::hash::{BuildHasher, Hasher};
    const FIRST: u64 = 15_000;
    const COUNT: u64 = 15_000;
    for _ in 0..200 {
        let random = std::hash::RandomState::new().build_hasher().finish();
        let Ok(port) = u16::try_from(FIRST + random % COUNT) else { continue };
        if !taken.contains(&port) && TcpListener::bind(local(port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port found between {FIRST} and {}", FIRST + COUNT)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests;
