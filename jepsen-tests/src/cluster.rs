//! A cluster of real processes on the command-line contract: nodes, one router, their directories.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use borough_proto::http_api::{ClusterStatus, headers};
use nix::sys::signal::Signal;
use serde::Deserialize;
use tempfile::TempDir;

use crate::http::Http;
use crate::process::{Process, run};
use crate::wait::until;

/// From the start of a process to its ports being bound.
const BIND_LIMIT: Duration = Duration::from_secs(30);
/// From the last change of the cluster to all shards being whole.
pub const HEAL_LIMIT: Duration = Duration::from_secs(90);
/// A graceful stop: leaderships handed over, drained, flushed.
pub const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    pub nodes: usize,
    pub shards: u32,
    pub replicas: u32,
    /// Environment of all nodes.
    pub env: Vec<(String, String)>,
    /// Zones of the nodes in turn; none when empty.
    pub zones: Vec<String>,
}

impl Options {
    /// The environment of the node that is started as the `number`th, from 1.
    fn env_of(&self, number: usize) -> Vec<(String, String)> {
        let zone = self.zones.iter().cycle().nth(number - 1);
        let zone = zone.map(|zone| ("BOROUGH_ZONE".to_owned(), zone.clone()));
        self.env.iter().cloned().chain(zone).collect()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 3, shards: 8, replicas: 3, env: Vec::new(), zones: Vec::new() }
    }
}

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

/// `D/runtime.json`.
#[derive(Debug, Clone, Deserialize)]
struct Runtime {
    pid: u32,
    addr: String,
    admin: String,
}

/// `D/identity.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub cluster_id: String,
    pub node: u64,
}

/// A node's process and what outlives it.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    pub data_dir: PathBuf,
    /// gRPC address; kept over restarts.
    pub addr: String,
    pub admin: String,
    join: Vec<String>,
    env: Vec<(String, String)>,
    process: Option<Process>,
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

impl Node {
    /// Starts a node in `dir/NAME` that joins through `join`, and waits until it is bound.
    ///
    /// # Errors
    /// When it ends or does not bind; with its log.
    pub async fn start(
        dir: &Path,
        name: &str,
        join: &[String],
        env: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let mut node = Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
            data_dir: dir.join(name),
            addr: kept_address()?,
            admin: String::new(),
            join: join.to_vec(),
            env: env.to_vec(),
            process: None,
        };
        node.launch().await?;
        Ok(node)
    }

    /// Starts it again on its data directory and its old address.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn launch(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "{} still runs", self.name);
        let data_dir = self.data_dir.to_string_lossy().into_owned();
        let mut args = strings(&[
            "node",
            "--data-dir",
            &data_dir,
            "--listen",
            &self.addr,
            "--admin-listen",
            "127.0.0.1:0",
        ]);
        if !self.join.is_empty() {
            args.extend(["--join".to_owned(), self.join.join(",")]);
        }
        let mut process = Process::start(&self.name, &self.dir, &args, &self.env)?;
        let (path, pid) = (self.data_dir.join("runtime.json"), process.pid());
        let what = format!("{} to bind", self.name);
        let bound: anyhow::Result<Runtime> = until(BIND_LIMIT, &what, || {
            let looked = process.ended().map(|ended| (ended, read_json::<Runtime>(&path)));
            async move {
                let (ended, runtime) = looked?;
                if let Some(status) = ended {
                    // Ended for good: what comes next would only hide it.
                    return Ok(Err(anyhow::anyhow!("it ended: {status}")));
                }
                let runtime = runtime?;
                // A file of the process before is not yet the new one's.
                ensure!(runtime.pid == pid, "runtime.json is of process {}", runtime.pid);
                Ok(Ok(runtime))
            }
        })
        .await
        .and_then(|bound| bound);
        let runtime = bound.with_context(|| process.log_tail(30))?;
        (self.addr, self.admin) = (runtime.addr, runtime.admin);
        self.process = Some(process);
        Ok(())
    }

    /// Who it is, once it has joined.
    ///
    /// # Errors
    /// When it has not.
    pub fn identity(&self) -> anyhow::Result<Identity> {
        read_json(&self.data_dir.join("identity.json"))
    }

    pub fn running(&self) -> bool {
        self.process.is_some()
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The process, while it runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn process(&mut self) -> anyhow::Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} does not run", self.name))
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process()?.kill()?;
        self.process = None;
        Ok(())
    }

    /// Waits for its end, which it comes to by itself.
    ///
    /// # Errors
    /// When it has not ended after `limit`.
    pub async fn wait_end(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let process = self.process()?;
        let ended = process.wait_end(limit).await.with_context(|| process.log_tail(30))?;
        self.process = None;
        Ok(ended)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        let process = self.process()?;
        let ended = process.terminate(STOP_LIMIT).await.with_context(|| process.log_tail(30));
        if ended.is_ok() {
            self.process = None;
        }
        ended
    }
}

/// A router's process.
#[derive(Debug)]
pub struct Router {
    name: String,
    dir: PathBuf,
    listen: String,
    seeds: Vec<String>,
    args: Vec<String>,
    process: Option<Process>,
    pub http: Http,
}

impl Router {
    /// Starts a router that finds the cluster through `seeds`; its log is named `name`.
    ///
    /// # Errors
    /// When it does not listen; with its log.
    pub async fn start(dir: &Path, name: &str, seeds: &[String]) -> anyhow::Result<Self> {
        Self::start_with(dir, name, seeds, &[]).await
    }

    /// [`Router::start`] with more arguments, such as `--config FILE`.
    ///
    /// # Errors
    /// As [`Router::start`].
    pub async fn start_with(dir: &Path, name: &str, seeds: &[String], args: &[&str]) -> anyhow::Result<Self> {
        let listen = kept_address()?;
        let http = Http::new(&format!("http://{listen}"))?;
        let (name, dir) = (name.to_owned(), dir.to_owned());
        let (seeds, args) = (seeds.to_vec(), strings(args));
        let mut router = Self { name, dir, listen, seeds, args, process: None, http };
        router.launch().await?;
        Ok(router)
    }

    /// Starts it again on its old address.
    ///
    /// # Errors
    /// As [`Router::start`].
    pub async fn launch(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the router still runs");
        let mut args = strings(&["router", "--listen", &self.listen, "--nodes", &self.seeds.join(",")]);
        args.extend_from_slice(&self.args);
        let mut process = Process::start(&self.name, &self.dir, &args, &[])?;
        let base = process.line("listening: ", BIND_LIMIT).await?;
        let address = base.trim_start_matches("http://").trim_end_matches('/').to_owned();
        if self.http.base() != base {
            self.http = Http::new(&base)?;
        }
        self.listen = address;
        self.process = Some(process);
        Ok(())
    }

    /// The nodes that it looks for at its next start: those of before may be gone.
    pub fn reseed(&mut self, seeds: &[String]) {
        self.seeds = seeds.to_vec();
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.process.as_ref().context("the router does not run")?.signal(signal)
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("the router does not run")?.kill()
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        let mut process = self.process.take().context("the router does not run")?;
        process.terminate(STOP_LIMIT).await.with_context(|| process.log_tail(30))
    }
}

/// Nodes, a router and the directory they live in.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: processes before their directory.
    pub router: Router,
    pub nodes: Vec<Node>,
    options: Options,
    dir: Option<TempDir>,
}

impl Cluster {
    /// Starts and initialises a cluster, and waits until all shards are whole.
    ///
    /// # Errors
    /// When a process fails or the cluster does not become whole; with logs.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("borough-").tempdir().context("make a directory")?;
        let first = Node::start(dir.path(), "node-1", &[], &options.env_of(1)).await?;
        init(&first.addr, options.shards, options.replicas).await?;
        let seeds = vec![first.addr.clone()];
        let mut nodes = vec![first];
        for number in 2..=options.nodes {
            let (name, env) = (format!("node-{number}"), options.env_of(number));
            nodes.push(Node::start(dir.path(), &name, &seeds, &env).await?);
        }
        let seeds: Vec<String> = nodes.iter().map(|node| node.addr.clone()).collect();
        let router = Router::start(dir.path(), "router", &seeds).await?;
        let cluster = Self { router, nodes, options, dir: Some(dir) };
        cluster.wait_whole(HEAL_LIMIT).await?;
        Ok(cluster)
    }

    pub fn http(&self) -> Http {
        self.router.http.clone()
    }

    /// Where data directories and logs are.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// Starts one more node, joining through all that run.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn add_node(&mut self) -> anyhow::Result<()> {
        let seeds: Vec<String> =
            self.nodes.iter().filter(|node| node.running()).map(|node| node.addr.clone()).collect();
        let number = self.nodes.len() + 1;
        let (name, env) = (format!("node-{number}"), self.options.env_of(number));
        self.nodes.push(Node::start(self.dir(), &name, &seeds, &env).await?);
        Ok(())
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

    /// The node that leads the meta group: the one that says so in its metrics.
    ///
    /// # Errors
    /// When none does, or a running one does not answer.
    pub async fn meta_leader(&self) -> anyhow::Result<u64> {
        for node in self.nodes.iter().filter(|node| node.running()) {
            let page = reqwest::get(format!("http://{}/metrics", node.admin)).await?.text().await?;
            if page.lines().any(|line| line.trim() == "borough_meta_leader 1") {
                return Ok(node.identity()?.node);
            }
        }
        anyhow::bail!("no node says that it leads the meta group")
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
        nodes.chain(self.router.process.as_ref()).map(|process| process.log_tail(lines_max)).collect()
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

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::env::var_os("JEPSEN_KEEP").is_some()
            && let Some(dir) = self.dir.take()
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
