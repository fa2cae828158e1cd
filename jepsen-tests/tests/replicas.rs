//! What replicas hold, as nodes tell it to those who compare: `GET /debug/replicas` and `borough cluster check`.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use borough_proto::replicas::Role;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, HEAL_LIMIT, Options};
use jepsen_tests::process::run_plain;
use jepsen_tests::replicas::{compare, lists};
use jepsen_tests::wait::until;
use serde_json::json;

/// For the command to find all replicas at one index; it fails until then.
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_of_a_shard_hold_the_same_also_after_one_was_away() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { shards: 4, ..Options::default() }).await?;
    write(&cluster, 0).await?;
    same(&cluster).await?;
    pages(&cluster).await?;
    cluster.nodes.last_mut().context("no node")?.kill()?;
    write(&cluster, 1).await?;
    let told = check(&cluster).await?.context("a node that is away was not missed")?;
    ensure!(told.contains("node"), "{told}");
    cluster.nodes.last_mut().context("no node")?.launch().await?;
    cluster.wait_whole(HEAL_LIMIT).await?;
    same(&cluster).await
}

/// Documents of all kinds: their bookkeeping is compared as well.
async fn write(cluster: &Cluster, round: u32) -> anyhow::Result<()> {
    let http = cluster.http();
    http.create_collection("posts", &json!({"sortKey": true})).await?;
    for number in 0..40 {
        let document = json!({"round": round, "text": "x".repeat(number * 50)});
        http.put(&format!("/v1/users/{number}"), &document).send().await?;
        http.put(&format!("/v1/posts/{number}/{round}?ttl=600s"), &document).expect(201).await?;
        let key = format!("key-{round}-{number}");
        http.patch(&format!("/v1/users/{number}"), &json!({"seen": true})).key(&key).expect(200).await?;
    }
    http.delete("/v1/users/1").expect(204).await.map(drop)
}

/// What the command said when it failed.
async fn check(cluster: &Cluster) -> anyhow::Result<Option<String>> {
    let http = cluster.http();
    let output = run_plain(&["cluster", "check", "--wait-seconds", "1", "--router", http.base()]).await?;
    let table = String::from_utf8(output.stdout)?;
    ensure!(table.contains("catalog"), "{table}");
    if output.status.success() {
        check_eq!(table.matches("the same").count(), 5, "{table}");
        return Ok(None);
    }
    check_eq!(output.status.code(), Some(1));
    Ok(Some(format!("{table}{}", String::from_utf8_lossy(&output.stderr))))
}

async fn same(cluster: &Cluster) -> anyhow::Result<()> {
    let report = compare(cluster).await?;
    ensure!(report.is_valid(), "{report}");
    check_eq!(report.counts.ok, 15, "four shards and the catalog on three nodes: {report}");
    until(LIMIT, "the command to find them the same", || async {
        let told = check(cluster).await?;
        ensure!(told.is_none(), "{}", told.unwrap_or_default());
        Ok(())
    })
    .await
}

/// What a node answers.
async fn pages(cluster: &Cluster) -> anyhow::Result<()> {
    for (name, list) in lists(cluster, true).await? {
        check_eq!(list.replicas.len(), 5, "{name}");
        ensure!(list.replicas.iter().all(|replica| replica.role == Role::Voter), "{name}: {list:?}");
        for replica in &list.replicas {
            let content = replica.content.as_ref().context("no hash")?;
            ensure!(
                content.hash.len() == 32 && content.applied_index > 0 && content.records > 0,
                "{content:?}"
            );
        }
    }
    let leaders = lists(cluster, false).await?;
    let leading = leaders.iter().flat_map(|(_, list)| &list.replicas).filter(|replica| replica.leader);
    check_eq!(leading.count(), 5);
    let admin = cluster.nodes.first().context("no node")?.admin.clone();
    for (query, status) in [("replica=999999", 404), ("nosuch=1", 400), ("hash=perhaps", 400)] {
        let answer = reqwest::get(format!("http://{admin}/debug/replicas?{query}")).await?;
        check_eq!(answer.status().as_u16(), status, "{query}");
    }
    Ok(())
}
