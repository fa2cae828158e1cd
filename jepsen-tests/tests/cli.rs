//! The command line: `borough dev` and its children, document and collection commands, exit codes.

#![expect(clippy::indexing_slicing, reason = "a field that JSON lacks is null, not a panic")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, HEAL_LIMIT, Node, Options, Router, STOP_LIMIT, status, whole};
use jepsen_tests::http::Http;
use jepsen_tests::process::{Process, alive, run, run_plain};
use jepsen_tests::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { nodes: 1, shards: 2, replicas: 1, ..Options::default() }).await?;
    let http = cluster.http();
    let mut cases = Cases::new();
    cases.run("get, put, patch, delete and list", documents(&http)).await;
    cases.run("items of a sorted collection", items(&http)).await;
    cases.run("collection create, list and delete", collections(&http)).await;
    cases.run("cluster status", cluster_status(&http)).await;
    cases.run("the router is taken from the environment", router_variable(&http)).await;
    cases.run("plans, drains and operations from the command line", placement(&http)).await;
    cases.run("an interrupted import ends and goes on, the router being away", interrupted(&cluster)).await;
    cases.run("what is exported can be imported again", exported(&cluster)).await;
    cases.run("a load is put on the cluster, and its failures are told", bench(&cluster)).await;
    cases.run("usage ends with 2, failure with 1", exit_codes(&http)).await;
    cases.run("the help of every command ends with an example", help()).await;
    if cases.failed() {
        println!("{}", cluster.logs(10));
    }
    cases.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cases = Cases::new();
    cases.run("dev: starts, tells, loses a child, takes a fourth node, stops", dev_life(dir.path())).await;
    cases.run("dev: keeps its data, unless --fresh", dev_again(dir.path())).await;
    cases.run("dev: --restart brings a killed child back", dev_restart(dir.path())).await;
    cases.run("dev: a second one on the same directory is refused", dev_twice(dir.path())).await;
    cases.finish()
}

/// `borough` with `args` against `http`.
async fn borough(http: &Http, args: &[&str]) -> anyhow::Result<Output> {
    let mut all = args.to_vec();
    all.extend(["--router", http.base()]);
    run_plain(&all).await
}

/// The same, and it must succeed; its output.
async fn good(http: &Http, args: &[&str]) -> anyhow::Result<String> {
    let output = borough(http, args).await?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "borough {}: {}: {told}", args.join(" "), output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// The same, and it must fail with `code` and say why on its standard error alone.
async fn bad(http: &Http, args: &[&str], code: i32) -> anyhow::Result<String> {
    let output = borough(http, args).await?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    check_eq!(output.status.code(), Some(code), "exit code of borough {}: {told}", args.join(" "));
    ensure!(
        !told.trim().is_empty() && output.stdout.is_empty(),
        "borough {} says nothing, or in the wrong place",
        args.join(" ")
    );
    Ok(told)
}

fn json_line(text: &str) -> anyhow::Result<Value> {
    serde_json::from_str(text.trim()).with_context(|| format!("no JSON: {text}"))
}

async fn documents(http: &Http) -> anyhow::Result<()> {
    good(http, &["put", "users", "1", r#"{"name":"Ada","age":36}"#]).await?;
    check_eq!(
        json_line(&good(http, &["get", "users", "1"]).await?)?,
        json!({"id": "1", "name": "Ada", "age": 36})
    );
    good(http, &["patch", "users", "1", r#"{"age":null,"title":"Countess"}"#]).await?;
    let expected = json!({"id": "1", "name": "Ada", "title": "Countess"});
    check_eq!(json_line(&good(http, &["get", "users", "1"]).await?)?, expected);
    check_eq!(http.document("/v1/users/1").await?, Some(expected));
    good(http, &["put", "users", "a/b:c ä", "{}"]).await?;
    check_eq!(json_line(&good(http, &["get", "users", "a/b:c ä"]).await?)?, json!({"id": "a/b:c ä"}));
    let listed = good(http, &["list", "users"]).await?;
    let ids: BTreeSet<String> =
        listed.lines().filter_map(|line| Some(json_line(line).ok()?["id"].as_str()?.to_owned())).collect();
    check_eq!(ids, BTreeSet::from(["1".to_owned(), "a/b:c ä".to_owned()]));
    good(http, &["delete", "users", "1"]).await?;
    bad(http, &["get", "users", "1"], 1).await?;
    bad(http, &["delete", "users", "1"], 1).await?;
    bad(http, &["patch", "users", "1", "{}"], 1).await?;
    bad(http, &["get", "nowhere", "1"], 1).await?;
    bad(http, &["put", "users", "1", "{not json"], 1).await?;
    bad(http, &["put", "users", "1", "[1]"], 1).await?;
    check_eq!(http.document("/v1/users/1").await?, None);
    Ok(())
}

async fn items(http: &Http) -> anyhow::Result<()> {
    good(http, &["collection", "create", "posts", "--sort-key"]).await?;
    for sort in ["b", "a", "c"] {
        good(http, &["put", "posts", "u", "{}", "--sort", sort]).await?;
    }
    check_eq!(
        json_line(&good(http, &["get", "posts", "u", "--sort", "b"]).await?)?,
        json!({"id": "u", "sort": "b"})
    );
    let sorts = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| Some(json_line(line).ok()?["sort"].as_str()?.to_owned())).collect()
    };
    check_eq!(sorts(&good(http, &["list", "posts", "--partition", "u"]).await?), ["a", "b", "c"]);
    let reversed = good(http, &["list", "posts", "--partition", "u", "--reverse", "--start", "b"]).await?;
    check_eq!(sorts(&reversed), ["c", "b"]);
    Ok(())
}

async fn interrupted(cluster: &Cluster) -> anyhow::Result<()> {
    const LINES: usize = 4_000;
    let seeds: Vec<String> = cluster.nodes.iter().map(|node| node.addr.clone()).collect();
    let router = Router::start(cluster.dir(), "router-import", &seeds).await?;
    let documents = (0..LINES).map(|id| format!("{{\"id\":\"{id}\"}}\n")).collect::<String>();
    for attempt in 0..5 {
        let collection = format!("imported-{attempt}");
        let file = cluster.dir().join(format!("interrupted-{attempt}.ndjson"));
        std::fs::write(&file, &documents)?;
        let file = file.to_string_lossy().into_owned();
        // One document at a time, so that it is hardly done before it is interrupted.
        let single = ["--batch", "1", "--concurrency", "1", "--router", router.http.base()];
        let args: Vec<String> =
            ["import", &collection, &file].iter().chain(&single).map(|&arg| arg.to_owned()).collect();
        let mut import = Process::start("import", cluster.dir(), &args, &[])?;
        until(LIMIT, "the first documents", || async {
            router.http.document(&format!("/v1/{collection}/9")).await?.context("not there yet")
        })
        .await?;
        router.signal(Signal::SIGSTOP)?;
        // Less than the deadline of a request: it does not wait for the router.
        let ended = import.terminate(Duration::from_secs(15)).await;
        router.signal(Signal::SIGCONT)?;
        let ended = ended?;
        if ended.success() {
            continue;
        }
        check_eq!(ended.code(), Some(1), "exit code: {}", import.stderr());
        ensure!(import.stderr().contains("interrupted after line "), "it says: {}", import.stderr());
        good(&router.http, &["import", &collection, &file]).await?;
        check_eq!(good(&router.http, &["export", &collection]).await?.lines().count(), LINES);
        return Ok(());
    }
    anyhow::bail!("every import was done before it could be interrupted")
}

async fn exported(cluster: &Cluster) -> anyhow::Result<()> {
    let http = cluster.http();
    good(&http, &["collection", "create", "notes", "--sort-key"]).await?;
    for (path, document) in [
        ("/v1/people/a%2Fb", json!({"name": "x"})),
        ("/v1/people/2", json!({"id": 2, "name": "y"})),
        ("/v1/notes/7/2026-01-01", json!({"title": "first"})),
        ("/v1/notes/7/2026-02-01", json!({"title": "second", "sort": "2026-02-01"})),
        ("/v1/notes/ä/z", json!({})),
    ] {
        if path.starts_with("/v1/people")
            && http.get("/admin/v1/collections/people").send().await?.status == 404
        {
            good(&http, &["collection", "create", "people"]).await?;
        }
        http.put(path, &document).expect(201).await?;
    }
    for (from, to, import) in
        [("people", "people2", vec![]), ("notes", "notes2", vec!["--id", "id", "--sort", "sort"])]
    {
        let file = cluster.dir().join(format!("{from}.ndjson"));
        std::fs::write(&file, good(&http, &["export", from]).await?)?;
        let file = file.to_string_lossy().into_owned();
        good(&http, &[&["import", to, &file], &*import].concat()).await?;
        let keyed = |name: &str| format!("/v1/{name}?keys=true");
        let (before, after) = (
            http.get(&keyed(from)).expect(200).await?.json()?,
            http.get(&keyed(to)).expect(200).await?.json()?,
        );
        ensure!(before["items"].as_array().is_some_and(|items| items.len() >= 2), "{before}");
        check_eq!(before["items"], after["items"], "{from}");
    }
    // A document that uses the field for something else is not given a wrong key, nor left without one.
    http.put("/v1/notes/8/a", &json!({"id": 99})).expect(201).await?;
    let told = borough(&http, &["export", "notes"]).await?;
    check_eq!(told.status.code(), Some(1));
    let given = good(&http, &["export", "notes", "--partition", "8", "--id", "of", "--sort", "at"]).await?;
    check_eq!(json_line(&given)?, json!({"of": "8", "at": "a", "id": 99}));
    Ok(())
}

async fn bench(cluster: &Cluster) -> anyhow::Result<()> {
    let http = cluster.http();
    let short = ["bench", "--seconds", "1", "--warm-up", "0", "--connections", "4"];
    let load = [&short[..], &["--keys", "30", "--value-bytes", "50"]].concat();
    // The collection is made by the first run and found by the second.
    let mix = "get=2,put=1,patch=1,batchGet=1";
    let told = json_line(&good(&http, &[&load[..], &["--mix", mix, "--json"]].concat()).await?)?;
    check_eq!(told["errors"], json!({}), "{told}");
    let kinds = told["kinds"].as_object().context("no kinds")?;
    let sum: u64 = kinds.values().filter_map(|kind| kind["requests"].as_u64()).sum();
    ensure!(sum > 0 && Some(sum) == told["all"]["requests"].as_u64(), "{told}");
    let stored = good(&http, &["list", "bench"]).await?;
    check_eq!(stored.lines().count(), 30, "{stored}");
    let told = good(&http, &[&load[..], &["--rate", "100", "--zipf", "0.99"]].concat()).await?;
    ensure!(told.starts_with("open loop at 100/s, 4 connections") && told.contains("p99.9"), "{told}");
    // A service that is not Borough's documents, and has only refusals for this.
    let file = cluster.dir().join("requests.json");
    std::fs::write(&file, r#"{"get": {"method": "DELETE", "path": "/livez?{key}"}}"#)?;
    let file = file.to_string_lossy();
    let refused = [&short[..], &["--requests", &*file, "--no-preload", "--mix", "get=1"]].concat();
    let output = borough(&http, &refused).await?;
    let told = String::from_utf8_lossy(&output.stdout);
    check_eq!(output.status.code(), Some(1), "{told}");
    ensure!(told.contains("get answered 405"), "{told}");
    bad(&http, &["bench", "--requests", &file, "--mix", "put=1"], 2).await?;
    // A collection whose documents have a second key, and a router that is not there.
    let told = bad(&http, &["bench", "--collection", "posts"], 1).await?;
    ensure!(told.contains("sort key"), "{told}");
    let output = run_plain(&["bench", "--router", "http://127.0.0.1:1"]).await?;
    check_eq!(output.status.code(), Some(1), "nobody listens there");
    Ok(())
}

async fn collections(http: &Http) -> anyhow::Result<()> {
    good(http, &["collection", "create", "made"]).await?;
    ensure!(good(http, &["collection", "list"]).await?.contains("made"), "not listed");
    http.put("/v1/made/1", &json!({})).expect(201).await?;
    good(http, &["collection", "delete", "made"]).await?;
    ensure!(!good(http, &["collection", "list"]).await?.contains("made"), "still listed");
    bad(http, &["collection", "delete", "made"], 1).await?;
    Ok(())
}

async fn cluster_status(http: &Http) -> anyhow::Result<()> {
    let shown = json_line(&good(http, &["cluster", "status", "--json"]).await?)?;
    let asked = status(http).await?;
    check_eq!(shown["clusterId"].as_str(), Some(asked.cluster_id.as_str()));
    check_eq!(shown["shards"].as_array().map(Vec::len), Some(2));
    let table = good(http, &["cluster", "status"]).await?;
    ensure!(
        table.contains(&asked.cluster_id) && table.contains(&asked.nodes.first().context("no node")?.addr),
        "{table}"
    );
    Ok(())
}

/// On a cluster that is at rest.
async fn placement(http: &Http) -> anyhow::Result<()> {
    for args in [&["cluster", "rebalance", "--plan"][..], &["cluster", "rebalance", "--yes"]] {
        let told = good(http, args).await?;
        ensure!(told.contains("nothing to move"), "{args:?}: {told}");
    }
    let told = bad(http, &["cluster", "drain", "1", "--wait"], 1).await?;
    ensure!(told.contains("node"), "it says not why: {told}");
    for args in [["cluster", "drain", "99"], ["cluster", "remove", "99"], ["cluster", "cancel", "99999"]] {
        let told = bad(http, &args, 1).await?;
        ensure!(told.contains("99"), "{args:?}: {told}");
    }
    good(http, &["cluster", "undrain", "1"]).await?;
    Ok(())
}

async fn router_variable(http: &Http) -> anyhow::Result<()> {
    let args = ["cluster", "status", "--json"].map(str::to_owned);
    let env = [("BOROUGH_ROUTER".to_owned(), http.base().to_owned())];
    let output = run(&args, &env, b"", LIMIT).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let env = [("BOROUGH_ROUTER".to_owned(), "http://127.0.0.1:1".to_owned())];
    let output = run(&args, &env, b"", LIMIT).await?;
    check_eq!(output.status.code(), Some(1), "nobody listens there");
    Ok(())
}

async fn exit_codes(http: &Http) -> anyhow::Result<()> {
    for args in [
        &["nosuch"][..],
        &["cluster", "nosuch"],
        &["get", "users"],
        &["put", "users"],
        &["cluster", "init"],
        &["cluster", "init", "--node", "127.0.0.1:1", "--shards", "0"],
        &["import", "users"],
        &["node", "--no-such-flag"],
        &["dev", "--nodes", "0"],
        &["bench", "--connections", "0"],
        &["bench", "--mix", "read=1"],
        &["bench", "--router", "localhost:8080"],
    ] {
        let output = run_plain(args).await?;
        check_eq!(output.status.code(), Some(2), "exit code of borough {}", args.join(" "));
    }
    bad(http, &["import", "users", "/nonexistent.ndjson"], 1).await?;
    // Nothing is made for a file that is not there.
    bad(http, &["import", "never-made", "/nonexistent.ndjson"], 1).await?;
    http.get("/admin/v1/collections/never-made").expect(404).await?;
    bad(http, &["export", "nowhere"], 1).await?;
    let output = run_plain(&["cluster", "init", "--node", "127.0.0.1:1"]).await?;
    check_eq!(output.status.code(), Some(1), "init of a node that is not there");
    let output = run_plain(&["router", "--listen", "127.0.0.1:0"]).await?;
    check_eq!(
        output.status.code(),
        Some(78),
        "a router without nodes: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = run_plain(&["node", "--data-dir", "/proc/nowhere", "--listen", "127.0.0.1:0"]).await?;
    check_eq!(output.status.code(), Some(74), "a bad directory: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn help() -> anyhow::Result<()> {
    let commands: [&[&str]; 17] = [
        &[],
        &["dev"],
        &["node"],
        &["router"],
        &["cluster"],
        &["cluster", "init"],
        &["cluster", "status"],
        &["collection"],
        &["collection", "create"],
        &["get"],
        &["put"],
        &["patch"],
        &["list"],
        &["import"],
        &["export"],
        &["delete"],
        &["bench"],
    ];
    let mut missing = Vec::new();
    for command in commands {
        let mut args = command.to_vec();
        args.push("--help");
        let output = run_plain(&args).await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = text.trim_end().lines().last().unwrap_or_default().trim().to_owned();
        if !output.status.success() || !last.contains("borough") {
            missing.push(format!("borough {}: {} {last:?}", args.join(" "), output.status));
        }
    }
    ensure!(missing.is_empty(), "{}", missing.join("; "));
    Ok(())
}

/// `dev.json`.
#[derive(Debug, Clone, Deserialize)]
struct DevFile {
    router: String,
    nodes: Vec<DevNode>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DevNode {
    id: u64,
    pid: Option<u32>,
    addr: String,
    admin: String,
    data_dir: String,
}

/// A running `borough dev`; kills its children too when it is dropped.
struct Dev {
    process: Process,
    file: std::path::PathBuf,
    http: Http,
    children: BTreeSet<u32>,
}

impl Dev {
    async fn start(dir: &Path, more: &[&str]) -> anyhow::Result<Self> {
        let data_dir = dir.join("dev");
        let mut args: Vec<String> =
            ["dev", "--nodes", "3", "--port", "0", "--data-dir"].map(str::to_owned).to_vec();
        args.push(data_dir.to_string_lossy().into_owned());
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        let mut process = Process::start("dev", dir, &args, &[])?;
        let ready = process.line("ready: ", LIMIT).await;
        let file = data_dir.join("dev.json");
        let mut dev =
            Self { process, file, http: Http::new("http://127.0.0.1:0")?, children: BTreeSet::new() };
        // Before anything can fail, so that they are killed.
        dev.children = children_of(dev.process.pid());
        dev.http = Http::new(&ready?)?;
        Ok(dev)
    }

    fn read(&self) -> anyhow::Result<DevFile> {
        let text = std::fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))?;
        serde_json::from_slice(&text).with_context(|| String::from_utf8_lossy(&text).into_owned())
    }

    async fn wait_whole(&self, nodes: usize) -> anyhow::Result<()> {
        until(HEAL_LIMIT, "the dev cluster to be whole", || async {
            let status = status(&self.http).await?;
            whole(&status, u32::try_from(status.shards.len())?, 3, nodes)
        })
        .await
    }

    async fn stop(&mut self) -> anyhow::Result<()> {
        self.children.extend(children_of(self.process.pid()));
        let status = self.process.terminate(STOP_LIMIT).await.with_context(|| self.process.log_tail(20))?;
        check_eq!(status.code(), Some(0), "exit code of dev: {}", self.process.stderr());
        let left: Vec<&u32> = self.children.iter().filter(|pid| alive(**pid)).collect();
        ensure!(left.is_empty(), "children {left:?} still run");
        Ok(())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.children.extend(children_of(self.process.pid()));
        // First dev, so that it starts nothing anew.
        let _ = self.process.kill();
        for pid in self.children.iter().filter(|pid| alive(**pid)) {
            if let Ok(pid) = i32::try_from(*pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// Processes whose parent is `pid`.
fn children_of(pid: u32) -> BTreeSet<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|pids| pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

async fn dev_life(dir: &Path) -> anyhow::Result<()> {
    let mut dev = Dev::start(dir, &[]).await?;
    ensure!(dev.process.stdout().contains("curl"), "no curl to try: {}", dev.process.stdout());
    check_eq!(dev.children.len(), 4, "children: three nodes and a router");
    dev.wait_whole(3).await?;
    let file = dev.read()?;
    check_eq!(file.router, dev.http.base());
    check_eq!(file.nodes.len(), 3);
    let shown = status(&dev.http).await?;
    for node in &file.nodes {
        let pid = node.pid.context("no pid")?;
        ensure!(dev.children.contains(&pid), "{pid} is no child");
        Http::new(&format!("http://{}", node.admin))?.get("/livez").expect(200).await?;
        let told = shown.nodes.iter().find(|told| told.id == node.id).map(|told| told.addr.as_str());
        check_eq!(told, Some(node.addr.as_str()), "address of node {}", node.id);
        let identity: Value =
            serde_json::from_slice(&std::fs::read(Path::new(&node.data_dir).join("identity.json"))?)?;
        check_eq!(identity["node"].as_u64(), Some(node.id), "identity in {}", node.data_dir);
    }
    dev.http.put("/v1/users/kept", &json!({"v": 1})).expect(201).await?;

    let victim = file.nodes.last().context("no node")?.clone();
    let pid = victim.pid.context("no pid")?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    until(LIMIT, "the dead node to be seen", || async {
        let shown = status(&dev.http).await?;
        let node = shown.nodes.iter().find(|node| node.id == victim.id).context("it is gone")?;
        ensure!(matches!(node.state.as_str(), "suspect" | "down"), "node {} is {}", node.id, node.state);
        Ok(())
    })
    .await?;
    ensure!(!alive(pid), "{pid} was killed and is alive");
    until(LIMIT, "dev.json to list no process for it", || async {
        let node = dev.read()?.nodes.into_iter().find(|node| node.id == victim.id).context("it is gone")?;
        ensure!(node.pid.is_none(), "node {} is listed with process {:?}", node.id, node.pid);
        Ok(())
    })
    .await?;
    check_eq!(
        children_of(dev.process.pid()).into_iter().filter(|pid| alive(*pid)).count(),
        3,
        "children left"
    );
    check_eq!(dev.http.document("/v1/users/kept").await?, Some(json!({"id": "kept", "v": 1})));

    // Another terminal adds a node.
    let seeds: Vec<String> = file.nodes.iter().map(|node| node.addr.clone()).collect();
    let fourth = Node::start(dir, "fourth", &seeds, &[]).await?;
    until(LIMIT, "the fourth node to join", || async {
        let shown = status(&dev.http).await?;
        ensure!(
            shown.nodes.iter().any(|node| node.addr == fourth.addr && node.state == "up"),
            "{:?}",
            shown.nodes
        );
        Ok(())
    })
    .await?;
    // It may hold replicas by now, so it goes last.
    dev.stop().await
}

async fn dev_again(dir: &Path) -> anyhow::Result<()> {
    let mut dev = Dev::start(dir, &[]).await?;
    let kept = until(LIMIT, "the data of before", || async {
        let found = dev.http.document("/v1/users/kept").await?;
        Ok(found)
    })
    .await?;
    check_eq!(kept, Some(json!({"id": "kept", "v": 1})));
    dev.stop().await?;
    let mut dev = Dev::start(dir, &["--fresh"]).await?;
    check_eq!(dev.http.document("/v1/users/kept").await?, None, "after --fresh");
    dev.wait_whole(3).await?;
    dev.stop().await
}

async fn dev_restart(dir: &Path) -> anyhow::Result<()> {
    let mut dev = Dev::start(dir, &["--fresh", "--restart"]).await?;
    dev.wait_whole(3).await?;
    let victim = dev.read()?.nodes.first().context("no node")?.clone();
    let pid = victim.pid.context("no pid")?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    until(LIMIT, "another process for the node", || async {
        let node = dev.read()?.nodes.into_iter().find(|node| node.id == victim.id).context("it is gone")?;
        ensure!(node.pid.is_some_and(|new| new != pid && alive(new)), "still {:?}", node.pid);
        Ok(())
    })
    .await?;
    dev.wait_whole(3).await?;
    dev.stop().await
}

async fn dev_twice(dir: &Path) -> anyhow::Result<()> {
    let mut dev = Dev::start(dir, &[]).await?;
    let data_dir = dir.join("dev").to_string_lossy().into_owned();
    let args = ["dev", "--port", "0", "--data-dir", &data_dir].map(str::to_owned);
    let mut second = Process::start("dev-second", dir, &args, &[])?;
    let ended = second.wait_end(LIMIT).await?;
    ensure!(matches!(ended.code(), Some(1 | 74)), "exit code {ended}: {}", second.stderr());
    dev.wait_whole(3).await?;
    dev.stop().await
}
