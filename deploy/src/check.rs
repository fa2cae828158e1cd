//! `borough cluster check`: whether the replicas of each shard hold the same.
//!
//! Replicas that have applied the same log entries hold the same records, so hashes are compared at equal applied index
//! alone. Which index that is cannot be chosen: as long as a shard is written, its replicas are asked again until they
//! are met at the same one, or the time is over.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use borough_proto::http_api::{ClusterStatus, NodeStatus};
use borough_proto::replicas::{ContentHash, ReplicaList, Role};
use futures::future::join_all;
use tokio::time::Instant;

use crate::cli::CheckArgs;
use crate::cluster::new_table;
use crate::documents::client;
use crate::exit::print;

/// For a node to tell where its replicas stand.
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// For a node to hash one replica: it reads all of it.
const HASH_LIMIT: Duration = Duration::from_secs(600);
/// Between two questions about a replica that stood elsewhere than its peers, or a node that was busy.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A replica that is to be compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Replica {
    node: u64,
    id: u64,
    admin: String,
}

/// What was found of a shard (`None`: the catalog).
#[derive(Debug)]
struct Found {
    shard: Option<u32>,
    verdict: Verdict,
    /// The last hash of each node that told one.
    hashes: BTreeMap<u64, ContentHash>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Different,
    /// There is only one voter.
    Alone,
    /// And why.
    NotCompared(String),
}

/// Compares all replicas and prints what was found.
///
/// # Errors
/// When replicas differ, or some could not be compared.
pub async fn check(args: CheckArgs) -> Result<()> {
    let json = client(&args.target)?.admin().get("cluster").await?;
    let status: ClusterStatus = serde_json::from_slice(&json).context("read the status document")?;
    let http = reqwest::Client::builder().no_proxy().build().context("build the HTTP client")?;
    let (shards, silent) = replicas(&http, &status).await?;
    let mut found = Vec::new();
    for (shard, replicas) in shards {
        found.push(compare(&http, shard, &replicas, args.wait_seconds).await);
    }
    print(&table(&found))?;
    conclude(&found, &silent)
}

/// The voters of each shard, and what was said of nodes that did not answer.
async fn replicas(
    http: &reqwest::Client,
    status: &ClusterStatus,
) -> Result<(BTreeMap<Option<u32>, Vec<Replica>>, Vec<String>)> {
    let nodes = status.nodes.iter().filter(|node| node.state != "removed");
    let asked = join_all(nodes.map(|node| async move { (node.id, list(http, node).await) })).await;
    // Shards that no node told of must not pass for checked.
    let mut shards: BTreeMap<_, Vec<Replica>> =
        status.shards.iter().map(|shard| (Some(shard.id), Vec::new())).collect();
    let mut silent = Vec::new();
    for (node, answer) in asked {
        match answer {
            Ok((admin, list)) => {
                let voters = list.replicas.iter().filter(|replica| replica.role == Role::Voter);
                for replica in voters {
                    let replica_of = Replica { node, id: replica.replica, admin: admin.clone() };
                    shards.entry(replica.shard).or_default().push(replica_of);
                }
            }
            Err(error) => silent.push(format!("node {node}: {error:#}")),
        }
    }
    ensure!(!shards.is_empty(), "no node told of a replica: {}", silent.join("; "));
    Ok((shards, silent))
}

async fn list(http: &reqwest::Client, node: &NodeStatus) -> Result<(String, ReplicaList)> {
    let admin = admin_address(node)?;
    let list = ask(http, &format!("http://{admin}/debug/replicas"), LIST_LIMIT).await?;
    Ok((admin, list))
}

/// Where a node's admin pages are: a node that listens on all addresses is reached at the one it advertises.
fn admin_address(node: &NodeStatus) -> Result<String> {
    let (host, port) = node.admin_addr.rsplit_once(':').context("its admin address is not known")?;
    if !matches!(host, "0.0.0.0" | "[::]") {
        return Ok(node.admin_addr.clone());
    }
    let (host, _) = node.addr.rsplit_once(':').with_context(|| format!("{} is no address", node.addr))?;
    Ok(format!("{host}:{port}"))
}

async fn ask(http: &reqwest::Client, url: &str, limit: Duration) -> Result<ReplicaList> {
    let response = http.get(url).timeout(limit).send().await.with_context(|| format!("ask {url}"))?;
    let status = response.status();
    let body = response.bytes().await.with_context(|| format!("ask {url}"))?;
    if !status.is_success() {
        bail!("{url} answered {status}: {}", String::from_utf8_lossy(&body).trim());
    }
    serde_json::from_slice(&body).with_context(|| format!("read the answer of {url}"))
}

/// Asks the replicas of a shard until all are met at the same index.
async fn compare(
    http: &reqwest::Client,
    shard: Option<u32>,
    replicas: &[Replica],
    wait_seconds: u64,
) -> Found {
    let end = Instant::now() + Duration::from_secs(wait_seconds);
    let mut hashes = BTreeMap::new();
    loop {
        let verdict = match replicas {
            [] => Verdict::NotCompared("no node told of a voter".to_owned()),
            [_] => Verdict::Alone,
            [..] => {
                let asked =
                    replicas.iter().map(|replica| async move { (replica.node, hash(http, replica).await) });
                let answers = join_all(asked).await;
                judge(answers, &mut hashes)
            }
        };
        let again = matches!(verdict, Verdict::NotCompared(_)) && !replicas.is_empty();
        if !again || Instant::now() >= end {
            return Found { shard, verdict, hashes };
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn hash(http: &reqwest::Client, replica: &Replica) -> Result<ContentHash> {
    let url = format!("http://{}/debug/replicas?hash=true&replica={}", replica.admin, replica.id);
    let list = ask(http, &url, HASH_LIMIT).await?;
    let content = list.replicas.into_iter().find_map(|found| found.content);
    content.with_context(|| format!("{url} answered no hash"))
}

fn judge(answers: Vec<(u64, Result<ContentHash>)>, hashes: &mut BTreeMap<u64, ContentHash>) -> Verdict {
    hashes.clear();
    let mut failures = Vec::new();
    for (node, answer) in answers {
        match answer {
            Ok(hash) => {
                hashes.insert(node, hash);
            }
            Err(error) => failures.push(format!("node {node}: {error:#}")),
        }
    }
    // Those at one index are compared whatever the others do: a difference is one.
    let mut by_index: BTreeMap<u64, Vec<&ContentHash>> = BTreeMap::new();
    for hash in hashes.values() {
        by_index.entry(hash.applied_index).or_default().push(hash);
    }
    let differ =
        |same_index: &Vec<&ContentHash>| same_index.iter().any(|hash| Some(hash) != same_index.first());
    if by_index.values().any(differ) {
        return Verdict::Different;
    }
    if !failures.is_empty() {
        return Verdict::NotCompared(failures.join("; "));
    }
    match by_index.keys().collect::<Vec<_>>().as_slice() {
        [_] => Verdict::Same,
        indexes => Verdict::NotCompared(format!("they stand at {indexes:?}: it is being written")),
    }
}

fn name(shard: Option<u32>) -> String {
    shard.map_or_else(|| "catalog".to_owned(), |shard| shard.to_string())
}

/// Nodes by what they hold, such as `1 2: 3f…` and `3: 90…`.
fn told(hashes: &BTreeMap<u64, ContentHash>) -> Vec<(String, &ContentHash)> {
    let mut by_content: Vec<(Vec<u64>, &ContentHash)> = Vec::new();
    for (&node, hash) in hashes {
        match by_content.iter_mut().find(|(_, held)| *held == hash) {
            Some((nodes, _)) => nodes.push(node),
            None => by_content.push((vec![node], hash)),
        }
    }
    let names = |nodes: Vec<u64>| nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    by_content.into_iter().map(|(nodes, hash)| (names(nodes), hash)).collect()
}

fn table(found: &[Found]) -> String {
    let mut table = new_table(&["shard", "nodes", "index", "records", "hash", "found"], 2..4);
    for one in found {
        let verdict = match &one.verdict {
            Verdict::Same => "the same".to_owned(),
            Verdict::Different => "DIFFERENT".to_owned(),
            Verdict::Alone => "one replica alone".to_owned(),
            Verdict::NotCompared(reason) => format!("not compared: {reason}"),
        };
        let rows = told(&one.hashes);
        if rows.is_empty() {
            table.add_row(vec![
                name(one.shard),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                verdict.clone(),
            ]);
        }
        for (nodes, hash) in rows {
            let index = format!("{}.{}", hash.applied_term, hash.applied_index);
            let records = hash.records.to_string();
            table.add_row(vec![name(one.shard), nodes, index, records, hash.hash.clone(), verdict.clone()]);
        }
    }
    format!("{table}\n")
}

/// Fails unless everything was found the same.
fn conclude(found: &[Found], silent: &[String]) -> Result<()> {
    let of = |wanted: fn(&Verdict) -> bool| {
        found.iter().filter(|one| wanted(&one.verdict)).map(|one| name(one.shard)).collect::<Vec<_>>()
    };
    let different = of(|verdict| *verdict == Verdict::Different);
    if !different.is_empty() {
        bail!("replicas differ that should be the same: {}", different.join(", "));
    }
    let unknown = of(|verdict| matches!(verdict, Verdict::NotCompared(_)));
    if !unknown.is_empty() {
        bail!("not compared: {}", unknown.join(", "));
    }
    if !silent.is_empty() {
        bail!("not asked: {}", silent.join("; "));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
