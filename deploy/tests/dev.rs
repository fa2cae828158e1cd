//! `borough dev` and local clusters with stand-ins for the node and the router.
//!
//! `dev` starts its own binary, so this test's binary plays all parts: with `dev` as its first argument it
//! is the real command, with `node` or `router` a stand-in that binds, writes what a node writes, and
//! answers what a router answers. What is tested is the handling of processes, not of data.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, reason = "this is a test")]

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use axum::routing::get;
use axum::{Json, Router};
use borough::local_cluster::{LocalCluster, Options};
use borough::process::is_alive;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("dev") => return borough::run(),
        Some("node") => runtime().block_on(stand_in_node(&args)),
        Some("router") => runtime().block_on(stand_in_router(&args)),
        _ => tests(),
    }
    ExitCode::SUCCESS
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn option<'a>(args: &'a [String], name: &str) -> &'a str {
    let at = args.iter().position(|arg| arg == name).expect(name);
    &args[at + 1]
}

async fn until_terminated() {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    terminate.recv().await;
}

async fn stand_in_node(args: &[String]) {
    assert!(borough::process::die_with_parent(option(args, "--die-with-parent").parse().unwrap()));
    let dir = Path::new(option(args, "--data-dir"));
    std::fs::create_dir_all(dir).unwrap();
    let number: u64 =
        dir.file_name().unwrap().to_str().unwrap().strip_prefix("node-").unwrap().parse().unwrap();
    let listener = tokio::net::TcpListener::bind(option(args, "--listen")).await.unwrap();
    let identity = dir.join("identity.json");
    if !identity.exists() {
        std::fs::write(&identity, json!({"clusterId": "c", "node": number}).to_string()).unwrap();
    }
    let addr = listener.local_addr().unwrap().to_string();
    let runtime = json!({"pid": std::process::id(), "addr": addr, "admin": option(args, "--admin-listen")});
    std::fs::write(dir.join("runtime.json"), runtime.to_string()).unwrap();
    until_terminated().await;
    std::fs::remove_file(dir.join("runtime.json")).unwrap();
}

async fn stand_in_router(args: &[String]) {
    assert!(borough::process::die_with_parent(option(args, "--die-with-parent").parse().unwrap()));
    let nodes = option(args, "--nodes").split(',').count() as u64;
    let node = |id| {
        json!({"id": id, "addr": "", "zone": "", "version": "", "state": "up", "replicas": 1, "leaders": 0,
        "bytes": 0, "keys": 0, "diskFreeBytes": 0, "cache": {"bytes": 0, "hitRatio": 0.0}})
    };
    let shard = json!({"id": 0, "range": ["", ""], "epoch": 1, "leader": 1, "replicas": (1..=nodes.min(3)).collect::<Vec<_>>(),
        "learners": [], "state": "healthy", "keys": 0, "bytes": 0, "appliedIndex": 0, "readsPerSecond": 0.0, "writesPerSecond": 0.0});
    let status = json!({"clusterId": "c", "epoch": 1, "replicationFactor": 3, "operations": [],
        "nodes": (1..=nodes).map(node).collect::<Vec<_>>(), "shards": [shard]});
    let app = Router::new()
        .route("/readyz", get(|| async { "ok" }))
        .route("/admin/v1/cluster", get(move || async move { Json(status) }));
    let listener = tokio::net::TcpListener::bind(option(args, "--listen")).await.unwrap();
    axum::serve(listener, app).with_graceful_shutdown(until_terminated()).await.unwrap();
}

/// A directory in which the cluster exists already: the stand-ins cannot be initialised.
fn directory(nodes: u64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for number in 1..=nodes {
        let node = dir.path().join(format!("node-{number}"));
        std::fs::create_dir(&node).unwrap();
        std::fs::write(node.join("identity.json"), json!({"clusterId": "c", "node": number}).to_string())
            .unwrap();
    }
    dir
}

/// Polls, for the ends of processes that are nobody's children here.
fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct Dev {
    child: Child,
    url: String,
    dir: PathBuf,
}

impl Dev {
    fn start(dir: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["dev", "--port", "0", "--data-dir", dir.to_str().unwrap()])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let ready = lines.next().unwrap();
        let url = ready.strip_prefix("ready: ").expect(&ready).to_owned();
        assert!(lines.next().unwrap().contains("curl"));
        Self { child, url, dir: dir.to_owned() }
    }

    fn description(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir.join("dev.json")).unwrap()).unwrap()
    }

    fn pid_of(&self, index: usize) -> Option<u32> {
        let pid = &self.description()["nodes"][index]["pid"];
        pid.as_u64().map(|pid| u32::try_from(pid).unwrap())
    }

    fn pids(&self) -> Vec<u32> {
        let description = self.description();
        let nodes = description["nodes"].as_array().unwrap().iter().map(|node| node["pid"].clone());
        let pids = nodes.chain([description["routerPid"].clone()]).filter_map(|pid| pid.as_u64());
        pids.map(|pid| u32::try_from(pid).unwrap()).collect()
    }

    fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

fn tests() {
    dev_tells_what_runs_and_stops_all_of_it();
    nothing_outlives_a_killed_dev_not_even_a_paused_node();
    dev_restarts_killed_children_only_when_asked();
    runtime().block_on(a_local_cluster_survives_its_faults());
    println!("dev: ok");
}

fn dev_tells_what_runs_and_stops_all_of_it() {
    let dir = directory(3);
    let mut dev = Dev::start(dir.path(), &[]);
    let description = dev.description();
    assert_eq!(description["router"], dev.url);
    let nodes = description["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3);
    for (node, id) in nodes.iter().zip(1..) {
        assert_eq!(node["id"], id);
        assert!(is_alive(u32::try_from(node["pid"].as_u64().unwrap()).unwrap()));
        assert!(node["addr"].as_str().unwrap().starts_with("127.0.0.1:"));
        let own = dir.path().canonicalize().unwrap().join(format!("node-{id}"));
        assert_eq!(node["dataDir"], own.to_str().unwrap());
    }
    // Killed: it stays dead, and the description says so.
    let killed = dev.pid_of(1).unwrap();
    send(killed, Signal::SIGKILL);
    until("dev.json names the dead node's process", || dev.pid_of(1).is_none().then_some(()));
    assert_eq!(dev.description()["nodes"][1]["addr"], nodes[1]["addr"]);
    // Started by hand: it is there again.
    let by_hand = by_hand(dir.path(), 2, nodes[1]["addr"].as_str().unwrap());
    until("dev.json does not name the new process", || (dev.pid_of(1) == Some(by_hand.id())).then_some(()));
    let others: Vec<_> = dev.pids().into_iter().filter(|&pid| pid != by_hand.id()).collect();
    assert_eq!(others.len(), 3);
    dev.signal(Signal::SIGTERM);
    assert!(dev.child.wait().unwrap().success());
    assert!(others.iter().all(|&pid| !is_alive(pid)));
    assert!(!dir.path().join("dev.json").exists());
    assert!(is_alive(by_hand.id()), "what others started is theirs");
    // Again: the same addresses.
    drop(Reaped(by_hand));
    let again = Dev::start(dir.path(), &[]);
    assert_eq!(again.url, dev.url);
    assert_eq!(again.description()["nodes"][1]["addr"], nodes[1]["addr"]);
}

/// Killed and reaped when dropped.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn by_hand(dir: &Path, number: u64, addr: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["node", "--data-dir", dir.join(format!("node-{number}")).to_str().unwrap(), "--listen", addr])
        .args(["--admin-listen", "127.0.0.1:1", "--die-with-parent", &std::process::id().to_string()])
        .spawn()
        .unwrap()
}

fn nothing_outlives_a_killed_dev_not_even_a_paused_node() {
    let dir = directory(3);
    let mut dev = Dev::start(dir.path(), &[]);
    let pids = dev.pids();
    assert_eq!(pids.len(), 4);
    send(pids[1], Signal::SIGSTOP);
    dev.signal(Signal::SIGKILL);
    assert_eq!(dev.child.wait().unwrap().signal(), Some(9));
    for pid in pids {
        until("a child outlives dev", || (!is_alive(pid)).then_some(()));
    }
}

fn dev_restarts_killed_children_only_when_asked() {
    let dir = directory(2);
    let dev = Dev::start(dir.path(), &["--nodes", "2", "--restart"]);
    let pids = dev.pids();
    for pid in &pids {
        send(*pid, Signal::SIGKILL);
    }
    let again = until("the children do not come back", || {
        let now = dev.pids();
        (now.len() == 3 && now.iter().all(|pid| !pids.contains(pid))).then_some(now)
    });
    assert!(again.iter().all(|&pid| is_alive(pid)));
}

async fn a_local_cluster_survives_its_faults() {
    let dir = directory(3);
    let options = Options::new(std::env::current_exe().unwrap(), dir.path());
    let cluster = LocalCluster::start(options).await.unwrap();
    let status = cluster.wait_ready(Duration::from_secs(30)).await.unwrap();
    assert_eq!(status.nodes.len(), 3);
    let node = cluster.node(2).unwrap();
    let (pid, addr) = (node.pid().unwrap(), node.addr());
    node.pause().unwrap();
    node.cont().unwrap();
    assert_eq!(node.kill9().await.unwrap().unwrap().signal(), Some(9));
    let error = cluster.wait_ready(Duration::from_secs(30)).await.unwrap_err();
    assert!(error.to_string().contains("node-2"), "{error:#}");
    node.restart().await.unwrap();
    assert_ne!(node.pid(), Some(pid));
    assert_eq!(node.runtime().unwrap().addr, addr.to_string());
    let added = cluster.add_node().await.unwrap();
    assert_eq!((added.number(), added.identity().unwrap().node), (4, 4));
    let url = cluster.router_url();
    cluster.router().restart().await.unwrap();
    assert_eq!(cluster.router_url(), url);
    cluster.wait_ready(Duration::from_secs(30)).await.unwrap();
    let ended = node.terminate().await.unwrap().unwrap();
    assert!(!ended.forced && ended.status.success());
    let left = cluster.node(1).unwrap().pid().unwrap();
    drop((node, added, cluster));
    assert!(!is_alive(left), "dropping leaves nothing running");
}
