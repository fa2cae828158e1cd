//! A cluster that grows from one node to three under load, and what a node refuses at its start.

#![expect(clippy::indexing_slicing, reason = "a field that JSON lacks is null, not a panic")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, HEAL_LIMIT, Node, Options, init, init_args};
use jepsen_tests::history::Rest;
use jepsen_tests::http::Http;
use jepsen_tests::lister::{self, Lister};
use jepsen_tests::load::{Load, Shape};
use jepsen_tests::process::{Process, run};
use jepsen_tests::stall::Stalls;
use serde_json::{Value, json};

/// A collection that is listed throughout.
const LISTED: &str = "listed";
const LISTED_DOCUMENTS: usize = 3_000;
const LIMIT: Duration = Duration::from_secs(60);
/// Longest time in which writes of a shard may rest while it grows, stalls of the machine apart.
const REST_LIMIT: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn growth() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 1, ..Options::default() }).await?;
    let mut cases = Cases::new();
    cases.run("a cluster is initialised once", init_twice(&cluster)).await;
    cases
        .run(
            "replication grows from one to three under writes, and the first node may go",
            grow(&mut cluster),
        )
        .await;
    cases.run("a data directory in use is refused (74)", locked(&cluster)).await;
    cases.run("a data directory of another cluster is refused (74)", foreign(&cluster)).await;
    cases.run("bad configuration is refused (78), all faults at once", bad_config(cluster.dir())).await;
    if cases.failed() {
        println!("{}", cluster.logs(25));
    }
    cases.finish()
}

/// Copied at this rate, a shard's documents take four seconds: longer than writes may rest for a voter that lacks them.
const SLOW_BYTES_PER_SECOND: &str = "100000";
const SLOW_BATCH: usize = 100;
const SLOW_DOCUMENT_BYTES: usize = 4_000;

/// A shard's first log is short and its entries are long: by their number a new replica has hardly missed anything, and yet it
/// lacks all that is sent at a low rate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_while_replicas_are_copied_slowly() -> anyhow::Result<()> {
    let env =
        vec![("BOROUGH_LIMITS__SNAPSHOT_BYTES_PER_SECOND".to_owned(), SLOW_BYTES_PER_SECOND.to_owned())];
    let mut cluster = Cluster::start(Options { nodes: 1, env, ..Options::default() }).await?;
    let http = cluster.http();
    for batch in 0..4 {
        let put = |n| json!({"put": {"id": format!("{batch}-{n}"), "document": {"fill": "x".repeat(SLOW_DOCUMENT_BYTES)}}});
        let writes: Vec<Value> = (0..SLOW_BATCH).map(put).collect();
        http.post("/v1/users:batchWrite", &json!({"writes": writes})).expect(200).await?;
    }
    let keys = cluster.ids_by_shard("slow", 2).await?;
    let stalls = Stalls::start(cluster.dir())?;
    let load = Load::start(&http, keys, Shape::default());
    load.progress(20, LIMIT).await?;
    let begin = load.history.now();
    cluster.add_node().await?;
    cluster.wait_whole(HEAL_LIMIT).await?;
    let took = load.history.now() - begin;
    ensure!(took > REST_LIMIT, "replicas were not copied slowly: {took:.1?}");
    no_rest(&load, begin, &stalls)?;
    load.stop(100).await.map(drop)
}

/// No shard's writes rested for too long since `begin`, and no call failed.
fn no_rest(load: &Load, begin: Duration, stalls: &Stalls) -> anyhow::Result<()> {
    let failures = load.history.failures(begin, load.history.now());
    ensure!(failures.is_empty(), "{} calls failed while growing: {:?}", failures.len(), failures.first());
    for rest in load.history.rests(begin).iter().filter(|rest| rest.length() >= REST_LIMIT) {
        let stalled = stalls.between(load.history.moment(rest.begin), load.history.moment(rest.end));
        ensure!(
            rest.length() < REST_LIMIT + stalled,
            "writes rested {:.2?}, the machine {stalled:.2?} of it: {rest:?}",
            rest.length()
        );
    }
    Ok(())
}

async fn init_twice(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.status().await?;
    let first = cluster.nodes.first().context("no node")?;
    let output = run(&init_args(&first.addr, 4, 3), &[], b"", LIMIT).await?;
    let told = String::from_utf8_lossy(&output.stderr);
    check_eq!(output.status.code(), Some(1), "exit code: {told}");
    ensure!(told.to_lowercase().contains("initiali") || told.contains("already"), "says not why: {told}");
    let after = cluster.status().await?;
    check_eq!((after.cluster_id, after.shards.len()), (before.cluster_id, before.shards.len()));
    Ok(())
}

/// Documents that are written once and must be there at the end.
async fn fill(http: &Http, name: &str) -> anyhow::Result<()> {
    for batch in 0..5 {
        let writes: Vec<Value> = (0..100)
            .map(|n| json!({"put": {"id": format!("{name}-{batch}-{n}"), "document": {"fill": "x".repeat(500), "n": n}}}))
            .collect();
        let answer =
            http.post("/v1/users:batchWrite", &json!({"writes": writes})).expect(200).await?.json()?;
        let items = answer["items"].as_array().context("items")?;
        ensure!(items.iter().all(|item| item["status"] == 201), "{answer}");
    }
    Ok(())
}

async fn filled(http: &Http, name: &str) -> anyhow::Result<()> {
    for batch in 0..5 {
        let ids: Vec<String> = (0..100).map(|n| format!("{name}-{batch}-{n}")).collect();
        let answer = http.post("/v1/users:batchGet", &json!({"ids": ids})).expect(200).await?.json()?;
        for (n, item) in answer["items"].as_array().context("items")?.iter().enumerate() {
            check_eq!(item["document"]["n"].as_u64(), Some(n as u64), "{name}-{batch}-{n}: {item}");
        }
    }
    Ok(())
}

async fn grow(cluster: &mut Cluster) -> anyhow::Result<()> {
    let http = cluster.http();
    let keys = cluster.ids_by_shard("grow", 2).await?;
    let stalls = Stalls::start(cluster.dir())?;
    let load = Load::start(&http, keys, Shape::default());
    load.progress(20, LIMIT).await?;
    fill(&http, "one").await?;
    lister::fill(&http, LISTED, LISTED_DOCUMENTS).await?;
    let lister = Lister::start(&http, LISTED, LISTED_DOCUMENTS);
    for nodes in 2..=3 {
        let begin = load.history.now();
        cluster.add_node().await?;
        // Whole means: as many voters in every shard as there are nodes.
        let status = cluster.wait_whole(HEAL_LIMIT).await?;
        let grown = load.history.now();
        check_eq!(status.nodes.len(), nodes);
        ensure!(status.shards.iter().all(|shard| shard.replicas.len() == nodes), "{:?}", status.shards);
        load.progress(20, LIMIT).await?;
        fill(&http, if nodes == 2 { "two" } else { "three" }).await?;
        let rests = load.history.rests(begin);
        let longest = rests.iter().map(Rest::length).max().unwrap_or_default();
        println!(
            "        {nodes} replicas after {:.1?}, longest gap between writes {longest:.2?}",
            grown - begin
        );
        lister.check()?;
        no_rest(&load, begin, &stalls)?;
    }
    cluster.nodes.first_mut().context("no node")?.kill()?;
    load.progress(30, LIMIT).await.with_context(|| cluster.logs(25))?;
    for name in ["one", "two", "three"] {
        filled(&http, name).await?;
    }
    cluster.nodes.first_mut().context("no node")?.launch().await?;
    cluster.wait_whole(HEAL_LIMIT).await?;
    let passes = lister.stop().await?;
    println!("        {passes} whole listings");
    load.stop(500).await?;
    lister::verify(&http, LISTED, LISTED_DOCUMENTS).await
}

fn node_args(data_dir: &Path, more: &[&str]) -> Vec<String> {
    let dir = data_dir.to_string_lossy();
    let mut args =
        vec!["node", "--data-dir", &dir, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    args.extend(more);
    args.into_iter().map(str::to_owned).collect()
}

async fn locked(cluster: &Cluster) -> anyhow::Result<()> {
    let running = cluster.nodes.last().context("no node")?;
    let mut second = Process::start("second", cluster.dir(), &node_args(&running.data_dir, &[]), &[])?;
    let status = second.wait_end(LIMIT).await?;
    check_eq!(status.code(), Some(74), "exit code: {}", second.stderr());
    let dir = running.data_dir.to_string_lossy().into_owned();
    ensure!(second.stderr().contains(&dir), "the directory is not named: {}", second.stderr());
    // The one that has it goes on, under its own name.
    let runtime: Value = serde_json::from_slice(&std::fs::read(running.data_dir.join("runtime.json"))?)?;
    check_eq!(runtime["pid"].as_u64().map(|pid| pid as u32), running.pid(), "pid in runtime.json");
    cluster.wait_whole(HEAL_LIMIT).await?;
    Ok(())
}

async fn foreign(cluster: &Cluster) -> anyhow::Result<()> {
    let dir = cluster.dir().join("other");
    std::fs::create_dir(&dir)?;
    let mut other = Node::start(&dir, "node-1", &[], &[]).await?;
    init(&other.addr, 2, 1).await?;
    let identity = other.identity()?;
    let own = cluster.nodes.last().context("no node")?;
    ensure!(identity.cluster_id != own.identity()?.cluster_id, "two clusters with one id");
    check_eq!(other.terminate().await?.code(), Some(0), "exit code");
    let args = node_args(&other.data_dir, &["--join", &own.addr]);
    let mut process = Process::start("foreign", cluster.dir(), &args, &[])?;
    let status = process.wait_end(LIMIT).await?;
    check_eq!(status.code(), Some(74), "exit code: {}", process.stderr());
    ensure!(
        process.stderr().contains(&identity.cluster_id),
        "the cluster is not named: {}",
        process.stderr()
    );
    check_eq!(other.identity()?, identity, "the directory's identity afterwards");
    let nodes = cluster.status().await?.nodes.len();
    check_eq!(nodes, cluster.nodes.len(), "nodes of the cluster");
    Ok(())
}

async fn bad_config(dir: &Path) -> anyhow::Result<()> {
    let file = dir.join("bad.toml");
    std::fs::write(
        &file,
        "cache-bytes = 1\n\n[log]\nsegment-bytes = 17\n\n[raft]\nheartbeat = \"900ms\"\nelection-timeout-min = \"1s\"\n",
    )?;
    let path = file.to_string_lossy().into_owned();
    let data_dir = dir.join("never");
    let args = node_args(&data_dir, &["--config", &path]);
    let env = [("BOROUGH_LOG__PURGE_AFTER_BYTES".to_owned(), "3".to_owned())];
    let output = run(&args, &env, b"", LIMIT).await?;
    let told = String::from_utf8_lossy(&output.stderr);
    check_eq!(output.status.code(), Some(78), "exit code: {told}");
    for fault in ["cache-bytes", "segment-bytes", "purge-after-bytes", "election-timeout-min"] {
        let field = fault.replace('-', "_");
        ensure!(told.contains(fault) || told.contains(&field), "{fault} is not told: {told}");
    }
    ensure!(!data_dir.join("runtime.json").exists(), "it has bound all the same");
    for (text, named) in [
        ("no-such-field = 1\n", "no-such-field"),
        ("cache-bytes = \n", "bad.toml"),
        ("engine = \"x\"\n", "engine"),
    ] {
        std::fs::write(&file, text)?;
        let output = run(&args, &[], b"", LIMIT).await?;
        let told = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(78), "exit code for {text:?}: {told}");
        ensure!(told.contains(named), "{named} is not named: {told}");
    }
    let missing = node_args(&data_dir, &["--config", "/nonexistent.toml"]);
    let output = run(&missing, &[], b"", LIMIT).await?;
    check_eq!(output.status.code(), Some(78), "a missing file: {}", String::from_utf8_lossy(&output.stderr));
    let output = run(&node_args(&data_dir, &["--listen", "nowhere"]), &[], b"", LIMIT).await?;
    ensure!(matches!(output.status.code(), Some(2 | 78)), "a bad address: {}", output.status);
    Ok(())
}
