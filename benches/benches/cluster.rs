//! A cluster of real processes on this machine, measured from outside: what it costs to be idle, what a request costs, what
//! requests notice of a node that joins, what the client crate gains by going straight to the nodes, and a million documents. Needs the `borough` binary of the same profile: `cargo build --release -p borough` first.
//!
//! `cargo bench -p borough-benches --bench cluster -- idle`, `cost`, `join`, `steady`, `direct` or `large`, with `--engine sled` or `fjall`.
//! Processor time is user + system of all processes, from `/proc` (Linux).

#[path = "cluster/direct.rs"]
mod direct;
#[path = "cluster/large.rs"]
mod large;
#[path = "cluster/usage.rs"]
mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use borough::local_cluster::{self, LocalCluster};
use borough_benches::load::Load;
use borough_benches::mix::{Kind, Mix};
use borough_benches::options::Options;
use borough_benches::report::Report;
use borough_benches::service::Service;
use borough_proto::replicas::ReplicaList;
use clap::{Args, Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const READY_WITHIN: Duration = Duration::from_secs(120);
/// Seconds of load that are judged together while a node joins.
const SLICE: f64 = 1.0;
const SLICES_BEFORE: usize = 10;

/// Measures a local cluster.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Given by `cargo bench`.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Processor time and memory of an idle cluster.
    Idle {
        /// How long to watch, in seconds.
        #[arg(long, default_value_t = 30.0)]
        seconds: f64,
    },
    /// Processor time of a GET and of a PUT, closed loop, one kind after the other.
    Cost {
        /// For each kind, in seconds.
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        #[arg(long, default_value_t = 64)]
        connections: usize,
        #[arg(long, default_value_t = 10_000)]
        keys: u64,
        #[arg(long, default_value_t = 300)]
        value_bytes: usize,
    },
    /// A load that keeps all processors busy, closed loop, and how many elections there are meanwhile: none is needed.
    Steady {
        #[arg(long, default_value_t = 3600.0)]
        seconds: f64,
        #[arg(long, default_value_t = 64)]
        connections: usize,
    },
    /// The client crate through the router and straight to the nodes, in turns, closed loop: GET and PUT.
    Direct {
        /// For each of them in each round, in seconds.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Calls under way at once.
        #[arg(long, default_value_t = 64)]
        callers: usize,
        #[arg(long, default_value_t = 10_000)]
        keys: u64,
        #[arg(long, default_value_t = 300)]
        value_bytes: usize,
    },
    /// More documents than the cache holds: import, zipfian reads with everything and with a part in the cache, memory, disk,
    /// restart of a killed node.
    Large {
        #[arg(long, default_value_t = 1_000_000)]
        documents: u64,
        #[arg(long, default_value_t = 300)]
        value_bytes: usize,
        /// The node's `cache-bytes` for the second part: what a tenth of the documents that it leads takes.
        #[arg(long, default_value_t = 16 << 20)]
        cache_bytes: u64,
        #[arg(long, default_value_t = 0.99)]
        zipf: f64,
        /// For each load, in seconds.
        #[arg(long, default_value_t = 20.0)]
        seconds: f64,
        #[arg(long, default_value_t = 64)]
        connections: usize,
    },
    /// Latency of a steady load before a node joins and while replicas move to it, open loop.
    Join {
        /// Requests a second, half of them GET, half PUT.
        #[arg(long, default_value_t = 500.0)]
        rate: f64,
        #[arg(long, default_value_t = 64)]
        connections: usize,
        #[arg(long, default_value_t = 100_000)]
        keys: u64,
        #[arg(long, default_value_t = 2000)]
        value_bytes: usize,
    },
}

#[derive(Debug, Args)]
struct ClusterArgs {
    #[arg(long, global = true, default_value_t = 3)]
    nodes: usize,
    #[arg(long, global = true, default_value_t = 32)]
    shards: u32,
    /// `sled` or `fjall`.
    #[arg(long, global = true, default_value = "sled")]
    engine: String,
    /// Rest between the start and the first figure, in seconds.
    #[arg(long, global = true, default_value_t = 10.0)]
    settle: f64,
    /// The `borough` binary; the one beside this benchmark's directory when not given.
    #[arg(long, global = true)]
    binary: Option<PathBuf>,
    /// More arguments for every node, such as `--node-arg=--set --node-arg=raft.heartbeat=500ms`.
    #[arg(long, global = true, allow_hyphen_values = true)]
    node_arg: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.context("start the runtime")?.block_on(Box::pin(async {
        let dir = tempfile::tempdir().context("make a directory for the cluster")?;
        let args = &cli.cluster;
        let options = local_cluster::Options {
            nodes: args.nodes,
            shards: args.shards,
            engine: Some(args.engine.clone()),
            node_args: args.node_arg.clone(),
            ..local_cluster::Options::new(binary(args)?, dir.path())
        };
        let cluster = LocalCluster::start(options).await?;
        cluster.wait_ready(READY_WITHIN).await?;
        tokio::time::sleep(Duration::from_secs_f64(args.settle)).await;
        println!("{} nodes, {} shards, engine {}", args.nodes, args.shards, args.engine);
        match &cli.command {
            Command::Idle { seconds } => idle(&cluster, *seconds).await?,
            Command::Cost { seconds, connections, keys, value_bytes } => {
                let load = Options {
                    seconds: *seconds,
                    warm_up: 0.0,
                    connections: *connections,
                    keys: *keys,
                    value_bytes: *value_bytes,
                    ..Options::default()
                };
                cost(&cluster, load).await?;
            }
            Command::Steady { seconds, connections } => {
                let load = Options {
                    seconds: *seconds,
                    warm_up: 0.0,
                    connections: *connections,
                    mix: "get=50,put=50".parse().map_err(|fault| anyhow!("the mix: {fault}"))?,
                    ..Options::default()
                };
                steady(&cluster, load).await?;
            }
            Command::Direct { seconds, rounds, callers, keys, value_bytes } => {
                let load = direct::Load {
                    time: Duration::from_secs_f64(*seconds),
                    rounds: *rounds,
                    callers: *callers,
                    keys: *keys,
                    value_bytes: *value_bytes,
                };
                direct::run(&cluster, load).await?;
            }
            Command::Large { documents, value_bytes, cache_bytes, zipf, seconds, connections } => {
                let load = Options {
                    seconds: *seconds,
                    warm_up: *seconds,
                    connections: *connections,
                    keys: *documents,
                    value_bytes: *value_bytes,
                    zipf: *zipf,
                    preloaded: true,
                    ..Options::default()
                };
                large::run(&cluster, &binary(args)?, load, *cache_bytes).await?;
            }
            Command::Join { rate, connections, keys, value_bytes } => {
                let load = Options {
                    seconds: SLICE,
                    warm_up: 0.0,
                    connections: *connections,
                    rate: Some(*rate),
                    keys: *keys,
                    value_bytes: *value_bytes,
                    mix: "get=50,put=50".parse().map_err(|fault| anyhow!("the mix: {fault}"))?,
                    ..Options::default()
                };
                join(&cluster, load).await?;
            }
        }
        cluster.stop().await
    }))
}

/// `target/<profile>/borough`, seen from `target/<profile>/deps/cluster-…`.
fn binary(args: &ClusterArgs) -> Result<PathBuf> {
    let found = match &args.binary {
        Some(path) => path.clone(),
        None => {
            let own = std::env::current_exe().context("find this benchmark's own path")?;
            let profile = own.parent().and_then(|deps| deps.parent());
            profile.ok_or(anyhow!("{} has no directory", own.display()))?.join("borough")
        }
    };
    ensure!(found.is_file(), "{} is missing: cargo build --release -p borough", found.display());
    Ok(found)
}

fn on(cluster: &LocalCluster, options: &Options) -> Result<Load> {
    let service = Service::borough(&[cluster.router_url()], "users").map_err(|fault| anyhow!(fault))?;
    Load::new(service, options.clone())
}

async fn idle(cluster: &LocalCluster, seconds: f64) -> Result<()> {
    let before = Usage::of(cluster)?;
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    let spent = Usage::of(cluster)?.since(&before);
    println!("idle for {seconds} s, in % of one core:");
    for (name, cpu) in &spent.cpu {
        println!("  {name:8} {:6.2} %", cpu / seconds * 100.0);
    }
    println!("  nodes    {:6.2} % together", spent.nodes() / seconds * 100.0);
    spent.print_memory("idle");
    Ok(())
}

async fn cost(cluster: &LocalCluster, load: Options) -> Result<()> {
    Usage::of(cluster)?.print_memory("idle");
    on(cluster, &load)?.preload().await?;
    for kind in [Kind::Get, Kind::Put] {
        let load = Options { mix: Mix::only(kind), ..load.clone() };
        on(cluster, &Options { seconds: 2.0, ..load.clone() })?.measure().await?;
        let before = Usage::of(cluster)?;
        let report = on(cluster, &load)?.measure().await?;
        let spent = Usage::of(cluster)?.since(&before);
        ensure!(report.failed() == 0, "requests failed:\n{report}");
        print_cost(kind, &report, &spent);
    }
    Usage::of(cluster)?.print_memory("after load");
    Ok(())
}

async fn steady(cluster: &LocalCluster, load: Options) -> Result<()> {
    on(cluster, &load)?.preload().await?;
    let before = terms(cluster).await?;
    let report = on(cluster, &load)?.measure().await?;
    let after = terms(cluster).await?;
    println!("{report}");
    let grown =
        |(group, term): (&Option<u32>, &u64)| term.saturating_sub(before.get(group).copied().unwrap_or(0));
    println!("elections of {} groups meanwhile: {}", after.len(), after.iter().map(grown).sum::<u64>());
    ensure!(report.failed() == 0, "requests failed");
    Ok(())
}

/// The highest term of each group.
async fn terms(cluster: &LocalCluster) -> Result<BTreeMap<Option<u32>, u64>> {
    let mut terms = BTreeMap::new();
    for node in cluster.nodes() {
        let list: ReplicaList =
            reqwest::get(format!("http://{}/debug/replicas", node.admin())).await?.json().await?;
        for replica in list.replicas {
            let term = terms.entry(replica.shard).or_default();
            *term = replica.applied_term.max(*term);
        }
    }
    Ok(terms)
}

/// Slices of load before a node joins and while operations run after it; who comes is measured second by second, so that
/// a short disturbance is not averaged away.
async fn join(cluster: &LocalCluster, load: Options) -> Result<()> {
    on(cluster, &load)?.preload().await?;
    on(cluster, &load)?.measure().await?;
    let mut before = Vec::new();
    for _ in 0..SLICES_BEFORE {
        before.push(on(cluster, &load)?.measure().await?);
    }
    let known = cluster.status().await?.operations.len();
    cluster.add_node().await?;
    let mut during = Vec::new();
    let operations = loop {
        let slice = on(cluster, &load)?.measure().await?;
        let operations = cluster.status().await?.operations;
        let new = operations.len().saturating_sub(known);
        if new > 0 {
            during.push(slice);
            if operations.iter().all(|operation| operation.ended_ms.is_some()) {
                break operations;
            }
        }
    };
    let bytes: u64 = operations.iter().map(|operation| operation.bytes_done).sum();
    let begun = operations.iter().map(|operation| operation.started_ms).max().unwrap_or_default();
    let ended = operations.iter().filter_map(|operation| operation.ended_ms).max().unwrap_or_default();
    println!("moved: {:.1} MB in {:.1} s", bytes as f64 / 1e6, (ended.saturating_sub(begun)) as f64 / 1e3);
    for (when, slices) in [("before", &before), ("during", &during)] {
        let failed: u64 = slices.iter().map(Report::failed).sum();
        let sorted = |quantile: fn(&Report) -> u64| {
            let mut all: Vec<u64> = slices.iter().map(quantile).collect();
            all.sort_unstable();
            all
        };
        let millis = |micros: Option<&u64>| micros.map_or(0.0, |&micros| micros as f64 / 1e3);
        let (p50, p99) = (sorted(|slice| slice.all.p50_us), sorted(|slice| slice.all.p99_us));
        println!(
            "{when}: {} slices of {SLICE} s, p50 {:.2} ms, p99 {:.2} ms (medians of the slices), worst p99 {:.2} ms, {failed} failed",
            slices.len(),
            millis(p50.get(p50.len() / 2)),
            millis(p99.get(p99.len() / 2)),
            millis(p99.last()),
        );
    }
    Ok(())
}

fn print_cost(kind: Kind, report: &Report, spent: &Usage) {
    print!("{report}");
    let per_request = |seconds: f64| seconds * 1e6 / report.all.requests.max(1) as f64;
    println!(
        "a {}: {:.1} µs of processor time in all servers ({:.1} router, {:.1} nodes together)",
        kind.name(),
        per_request(spent.router() + spent.nodes()),
        per_request(spent.router()),
        per_request(spent.nodes()),
    );
}

/// What the cluster's processes have used.
#[derive(Debug, Default)]
struct Usage {
    /// Seconds of processor time by process, the router last.
    cpu: Vec<(String, f64)>,
    /// Resident bytes by process.
    memory: Vec<(String, u64)>,
}

impl Usage {
    fn of(cluster: &LocalCluster) -> Result<Self> {
        let mut usage = Self::default();
        let nodes = cluster.nodes();
        let nodes = nodes.iter().map(|node| (node.name().to_owned(), node.pid()));
        for (name, pid) in nodes.chain([("router".to_owned(), cluster.router().pid())]) {
            let pid = pid.with_context(|| format!("{name} has ended"))?;
            usage.cpu.push((name.clone(), usage::cpu_seconds(pid)?));
            usage.memory.push((name, resident_bytes(pid)?));
        }
        Ok(usage)
    }

    /// Processor time since `before`; memory as it is now.
    fn since(mut self, before: &Self) -> Self {
        for ((_, cpu), (_, earlier)) in self.cpu.iter_mut().zip(&before.cpu) {
            *cpu -= earlier;
        }
        self
    }

    fn router(&self) -> f64 {
        self.cpu.last().map_or(0.0, |(_, cpu)| *cpu)
    }

    fn nodes(&self) -> f64 {
        self.cpu.iter().map(|(_, cpu)| cpu).sum::<f64>() - self.router()
    }

    fn print_memory(&self, when: &str) {
        let each: Vec<_> =
            self.memory.iter().map(|(name, bytes)| format!("{name} {:.0}", *bytes as f64 / 1e6)).collect();
        println!("resident memory {when}, MB: {}", each.join(", "));
    }
}

/// Resident memory of a process, in bytes.
fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} names no VmRSS in kB"))? * 1024)
}
