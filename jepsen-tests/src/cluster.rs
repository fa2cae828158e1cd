//! A cluster of real processes on the command-line contract: nodes, routers, their directories, the links between them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use borough_proto::http_api::{ClusterStatus, headers};
use tempfile::TempDir;

use crate::callers::Callers;
use crate::http::Http;
use crate::preload::Shim;
use crate::process::run;
use crate::proxy::{End, Links};
use crate::wait::until;

mod node;
mod options;
mod router;

pub use node::{Excuse, Identity, Node};
pub use options::{Options, Preload};
pub use router::Router;

/// From the start of a process to its ports being bound.
pub const BIND_LIMIT: Duration = Duration::from_secs(30);
/// From the last change of the cluster to all shards being whole.
pub const HEAL_LIMIT: Duration = Duration::from_secs(90);
/// A graceful stop: leaderships handed over, drained, flushed.
pub const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Ports for what is started again on the same address: below those that the kernel gives to outgoing connections, one of
/// which could hold the port while its owner is dead.
const KEPT_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A loopback address that is free, and is nobody else's in this process.
fn kept_address() -> anyhow::Result<String> {
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..10_000 {
        let port = rand::random_range(KEPT_PORTS);
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.insert(port);
            return Ok(format!("127.0.0.1:{port}"));
        }
    }
    anyhow::bail!("no free port in {KEPT_PORTS:?}")
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// Nodes, routers and the directory they live in.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: processes before their directory.
    pub router: Router,
    pub more_routers: Vec<Router>,
    /// In the order of their names, ended ones among them.
    pub nodes: Vec<Node>,
    pub links: Option<Links>,
    pub callers: Option<Callers>,
    options: Options,
    dir: PathBuf,
    temporary: Option<TempDir>,
}

impl Cluster {
    /// Starts and initialises a cluster, and waits until all shards are whole.
    ///
    /// # Errors
    /// When a process fails or the cluster does not become whole; with logs.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let (dir, temporary) = match &options.dir {
            // The preloaded library compares paths: no links in them.
            Some(dir) => (dir.canonicalize().with_context(|| dir.display().to_string())?, None),
            None => {
                let made =
                    tempfile::Builder::new().prefix("borough-").tempdir().context("make a directory")?;
                (made.path().to_owned(), Some(made))
            }
        };
        let links = options.links.then(Links::default);
        let mut nodes: Vec<Node> = Vec::new();
        let mut seeds = Vec::new();
        for number in 1..=options.nodes {
            let mut node = prepare_node(&dir, number, &seeds, &options, links.as_ref())?;
            node.launch().await?;
            if number == 1 {
                init(&node.addr, options.shards, options.replicas).await?;
                seeds.push(node.addr.clone());
            }
            nodes.push(node);
        }
        let seeds: Vec<String> = nodes.iter().map(|node| node.addr.clone()).collect();
        let router = start_router(&dir, 1, &seeds, options.links).await?;
        let mut more_routers = Vec::new();
        for number in 2..=options.routers {
            more_routers.push(start_router(&dir, number, &seeds, options.links).await?);
        }
        let mut callers = options.callers.map(Callers::new);
        if let Some(callers) = &mut callers {
            for router in std::iter::once(&router).chain(&more_routers) {
                callers.attach(router.http.base())?;
            }
        }
        let cluster = Self { router, more_routers, nodes, links, callers, options, dir, temporary };
        cluster.wait_whole(HEAL_LIMIT).await?;
        Ok(cluster)
    }

    pub fn http(&self) -> Http {
        self.router.http.clone()
    }

    /// Where data directories and logs are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts one more node, joining through all members.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn add_node(&mut self) -> anyhow::Result<()> {
        let mut node = self.another_node()?;
        node.launch().await?;
        self.nodes.push(node);
        Ok(())
    }

    /// One more node that is not started yet, and belongs behind the others.
    ///
    /// # Errors
    /// As [`Node::prepare`].
    pub fn another_node(&self) -> anyhow::Result<Node> {
        // All may be dead at this moment: it waits for them.
        let members = self.nodes.iter().filter(|node| !node.retired);
        let seeds: Vec<String> = members.map(|node| node.addr.clone()).collect();
        let number = self.nodes.len() + 1;
        prepare_node(&self.dir, number, &seeds, &self.options, self.links.as_ref())
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Where callers under test reach the routers: there, or at their proxies.
    pub fn bases(&self) -> Vec<String> {
        match &self.callers {
            Some(callers) => callers.bases().to_vec(),
            None => self.routers().map(|router| router.http.base().to_owned()).collect(),
        }
    }

    pub fn routers(&self) -> impl Iterator<Item = &Router> {
        std::iter::once(&self.router).chain(&self.more_routers)
    }

    pub fn routers_mut(&mut self) -> impl Iterator<Item = &mut Router> {
        std::iter::once(&mut self.router).chain(&mut self.more_routers)
    }

    /// The node that leads the meta group, which is the one that says so in its metrics.
    ///
    /// # Errors
    /// When none says so.
    pub async fn meta_leader(&self) -> anyhow::Result<u64> {
        for node in self.nodes.iter().filter(|node| node.running()) {
            let page = reqwest::get(format!("http://{}/metrics", node.admin)).await?.text().await?;
            if page.lines().any(|line| line.trim() == "borough_meta_leader 1") {
                return Ok(node.identity()?.node);
            }
        }
        anyhow::bail!("no node says that it leads the meta group")
    }

    /// The status document.
    ///
    /// # Errors
    /// When the router does not answer it.
    pub async fn status(&self) -> anyhow::Result<ClusterStatus> {
        status(&self.router.http).await
    }

    /// Waits until every shard is healthy, has a leader, and has as many voters as it should.
    ///
    /// # Errors
    /// What is missing, with the nodes' logs, after `limit`.
    pub async fn wait_whole(&self, limit: Duration) -> anyhow::Result<ClusterStatus> {
        let running = self.nodes.iter().filter(|node| node.running()).count();
        let replicas = usize::try_from(self.options.replicas)?.min(running);
        until(limit, "all shards to be whole", || async {
            let status = self.status().await?;
            whole(&status, self.options.shards, replicas, running)?;
            Ok(status)
        })
        .await
        .with_context(|| self.logs(12))
    }

    /// Waits until no operation is under way, every shard is whole on `nodes`, and replicas and leaders are within one of even.
    ///
    /// # Errors
    /// What is missing, with the nodes' logs, after `limit`.
    pub async fn wait_even(&self, nodes: &[u64], limit: Duration) -> anyhow::Result<ClusterStatus> {
        self.wait_spread(nodes, limit, true).await
    }

    /// [`Self::wait_even`] without regard to who leads, which is settled some seconds later.
    ///
    /// # Errors
    /// As [`Self::wait_even`].
    pub async fn wait_placed(&self, nodes: &[u64], limit: Duration) -> anyhow::Result<ClusterStatus> {
        self.wait_spread(nodes, limit, false).await
    }

    async fn wait_spread(
        &self,
        nodes: &[u64],
        limit: Duration,
        leaders: bool,
    ) -> anyhow::Result<ClusterStatus> {
        let replicas = usize::try_from(self.options.replicas)?.min(nodes.len());
        until(limit, "replicas and leaders to be even", || async {
            let status = self.status().await?;
            even(&status, nodes, replicas, leaders)?;
            Ok(status)
        })
        .await
        .with_context(|| self.logs(12))
    }

    /// Ids of the nodes that run, once all of them have joined.
    ///
    /// # Errors
    /// When one has not after `limit`.
    pub async fn members(&self, limit: Duration) -> anyhow::Result<Vec<u64>> {
        until(limit, "all nodes to have joined", || async {
            let running = self.nodes.iter().filter(|node| node.running());
            running.map(|node| Ok(node.identity()?.node)).collect::<anyhow::Result<Vec<u64>>>()
        })
        .await
    }

    /// The node with this id.
    ///
    /// # Errors
    /// When none has it.
    pub fn node_mut(&mut self, id: u64) -> anyhow::Result<&mut Node> {
        let found =
            self.nodes.iter_mut().find(|node| node.identity().is_ok_and(|identity| identity.node == id));
        found.with_context(|| format!("no node has id {id}"))
    }

    /// The ends of all logs.
    pub fn logs(&self, lines_max: usize) -> String {
        let nodes = self.nodes.iter().filter_map(|node| node.process.as_ref());
        let routers = self.routers().filter_map(|router| router.process.as_ref());
        nodes.chain(routers).map(|process| process.log_tail(lines_max)).collect()
    }

    /// Ids of `collection`, `count` for each shard: those of `prefix` that fall there, as the router tells.
    ///
    /// # Errors
    /// When the router does not tell.
    pub async fn ids_by_shard(
        &self,
        prefix: &str,
        count: usize,
    ) -> anyhow::Result<BTreeMap<u32, Vec<String>>> {
        let shards = usize::try_from(self.options.shards)?;
        let mut ids: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for number in 0..10_000 {
            let id = format!("{prefix}-{number}");
            let answer = self.router.http.get(&format!("/v1/users/{id}")).expect(404).await?;
            let shard: u32 = answer.need(headers::SHARD)?.parse().with_context(|| answer.to_string())?;
            let of_shard = ids.entry(shard).or_default();
            if of_shard.len() < count {
                of_shard.push(id);
            }
            if ids.len() == shards && ids.values().all(|of_shard| of_shard.len() == count) {
                return Ok(ids);
            }
        }
        anyhow::bail!("10,000 ids do not fill {shards} shards: {:?}", ids.keys())
    }
}

fn prepare_node(
    dir: &Path,
    number: usize,
    seeds: &[String],
    options: &Options,
    links: Option<&Links>,
) -> anyhow::Result<Node> {
    let end = End::Node(u8::try_from(number).context("too many nodes")?);
    let on = links.map(|links| (links, end));
    let name = format!("node-{number}");
    let shim = match &options.preload {
        None => None,
        // Beside the data directory, which it must be able to rename files out of.
        Some(Preload { library, journal }) => {
            Some(Shim::create(library, &dir.join(format!("{name}-faults")), &dir.join(&name), *journal)?)
        }
    };
    Node::prepare(dir, &name, seeds, &options.env_of(number), on, shim)
}

async fn start_router(dir: &Path, number: usize, seeds: &[String], links: bool) -> anyhow::Result<Router> {
    let name = if number == 1 { "router".to_owned() } else { format!("router-{number}") };
    let end = End::Router(u8::try_from(number).context("too many routers")?);
    match end.outbound().filter(|_| links) {
        Some(outbound) => {
            let setting = format!("outbound-address={outbound}");
            Router::start_with(dir, &name, seeds, &["--set", &setting]).await
        }
        None => Router::start(dir, &name, seeds).await,
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::env::var_os("JEPSEN_KEEP").is_some()
            && let Some(dir) = self.temporary.take()
        {
            println!("kept: {}", dir.keep().display());
        }
    }
}

/// The status document of the cluster behind `http`.
///
/// # Errors
/// When it is not answered or has another form.
pub async fn status(http: &Http) -> anyhow::Result<ClusterStatus> {
    let answer = http.get("/admin/v1/cluster").expect(200).await?;
    serde_json::from_slice(&answer.body).with_context(|| format!("status document: {answer}"))
}

/// `borough cluster init`.
///
/// # Errors
/// When it does not end with 0.
pub async fn init(node: &str, shards: u32, replicas: u32) -> anyhow::Result<()> {
    let args = init_args(node, shards, replicas);
    let output = run(&args, &[], b"", Duration::from_secs(60)).await?;
    ensure!(
        output.status.success(),
        "cluster init: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Arguments of `borough cluster init`.
pub fn init_args(node: &str, shards: u32, replicas: u32) -> Vec<String> {
    strings(&[
        "cluster",
        "init",
        "--node",
        node,
        "--shards",
        &shards.to_string(),
        "--replicas",
        &replicas.to_string(),
    ])
}

/// Whether `status` shows `shards` healthy shards with `replicas` voters each on `running` nodes that are up.
///
/// # Errors
/// What is not so.
pub fn whole(status: &ClusterStatus, shards: u32, replicas: usize, running: usize) -> anyhow::Result<()> {
    let up = status.nodes.iter().filter(|node| node.state == "up").count();
    ensure!(up == running, "{up} of {running} nodes are up: {:?}", states(status));
    ensure!(status.shards.len() == usize::try_from(shards)?, "{} shards", status.shards.len());
    for shard in &status.shards {
        ensure!(
            shard.state == "healthy"
                && shard.leader.is_some()
                && shard.replicas.len() == replicas
                && shard.learners.is_empty(),
            "shard {} is {}, leader {:?}, voters {:?}, learners {:?}",
            shard.id,
            shard.state,
            shard.leader,
            shard.replicas,
            shard.learners
        );
    }
    Ok(())
}

/// Whether nothing is under way and `nodes`, and no others, hold within one of the same number, and lead it if `leaders`.
fn even(status: &ClusterStatus, nodes: &[u64], replicas: usize, leaders: bool) -> anyhow::Result<()> {
    let under_way = status.operations.iter().find(|operation| operation.ended_ms.is_none());
    ensure!(under_way.is_none(), "under way: {under_way:?}");
    for shard in &status.shards {
        ensure!(shard.state == "healthy" && shard.replicas.len() == replicas, "{shard:?}");
        ensure!(shard.replicas.iter().all(|node| nodes.contains(node)), "{shard:?}");
    }
    let held: Vec<_> = status.nodes.iter().filter(|node| nodes.contains(&node.id)).collect();
    ensure!(held.len() == nodes.len(), "{:?}", states(status));
    for (what, counts) in [
        ("replicas", held.iter().map(|node| node.replicas).collect::<Vec<_>>()),
        ("leaders", held.iter().map(|node| node.leaders).collect()),
    ] {
        let (least, most) = (counts.iter().min(), counts.iter().max());
        let apart = most.zip(least).is_some_and(|(most, least)| most - least > 1);
        let apart = apart && (leaders || what != "leaders");
        ensure!(!apart, "{what} by node: {counts:?}");
    }
    Ok(())
}

fn states(status: &ClusterStatus) -> Vec<(u64, &str)> {
    status.nodes.iter().map(|node| (node.id, node.state.as_str())).collect()
}
