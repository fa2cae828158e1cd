//! What the replicas of each shard hold when nothing is written any more: all the same.
//!
//! A difference that no caller has read yet is one all the same: the next leader would answer from it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use borough_proto::replicas::{ContentHash, ReplicaList, Role};
use futures::future::try_join_all;

use crate::checker::{Report, equality};
use crate::cluster::Cluster;
use crate::wait::until;

/// For all replicas to have applied what is committed, in a cluster that is whole and is not written.
const REST_LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Hashes by shard and node.
type Hashes = BTreeMap<String, BTreeMap<String, ContentHash>>;

/// The replicas of every running node, by the node's name; with hashes of what they hold, if asked for.
///
/// # Errors
/// When a node does not tell.
pub async fn lists(cluster: &Cluster, hash: bool) -> anyhow::Result<Vec<(String, ReplicaList)>> {
    let http = reqwest::Client::builder().no_proxy().timeout(ANSWER_LIMIT).build()?;
    let running = cluster.nodes.iter().filter(|node| node.running());
    let asked = running.map(|node| {
        let (http, name) = (http.clone(), node.name().to_owned());
        let url = format!("http://{}/debug/replicas?hash={hash}", node.admin);
        async move {
            let response = http.get(&url).send().await.with_context(|| name.clone())?;
            let (status, body) = (response.status(), response.bytes().await?);
            ensure!(status.is_success(), "{name} answered {status}: {}", String::from_utf8_lossy(&body));
            let list: ReplicaList =
                serde_json::from_slice(&body).with_context(|| format!("replicas of {name}"))?;
            anyhow::Ok((name, list))
        }
    });
    try_join_all(asked).await
}

/// Waits until all replicas of each shard have applied the same, and compares what they hold.
///
/// # Errors
/// When they do not come to stand at the same index.
pub async fn compare(cluster: &Cluster) -> anyhow::Result<Report> {
    let hashes = until(REST_LIMIT, "all replicas of a shard to stand at the same index", || async {
        // The cheap question first.
        let lists_now = lists(cluster, false).await?;
        let indexes = lists_now.iter().flat_map(|(node, list)| {
            list.replicas.iter().map(move |replica| (replica.shard, (node.clone(), replica.applied_index)))
        });
        let mut by_shard: BTreeMap<Option<u32>, Vec<(String, u64)>> = BTreeMap::new();
        for (shard, at) in indexes {
            by_shard.entry(shard).or_default().push(at);
        }
        for (shard, at) in &by_shard {
            let distinct: BTreeSet<u64> = at.iter().map(|(_, index)| *index).collect();
            ensure!(distinct.len() == 1, "{}: {at:?}", name(*shard));
        }
        let hashes = by_node(lists(cluster, true).await?)?;
        still(&hashes)?;
        Ok(hashes)
    })
    .await?;
    let told = |hash: ContentHash| format!("{} at {}.{}", hash.hash, hash.applied_term, hash.applied_index);
    let shards = hashes
        .into_iter()
        .map(|(shard, nodes)| (shard, nodes.into_iter().map(|(node, hash)| (node, told(hash))).collect()));
    Ok(equality::check(&shards.collect()))
}

fn name(shard: Option<u32>) -> String {
    shard.map_or_else(|| "catalog".to_owned(), |shard| shard.to_string())
}

fn by_node(lists: Vec<(String, ReplicaList)>) -> anyhow::Result<Hashes> {
    let mut hashes = Hashes::new();
    for (node, list) in lists {
        for replica in list.replicas {
            ensure!(replica.role != Role::None, "replica {} on {node} is no member", replica.replica);
            let content = replica.content.with_context(|| format!("{node} told no hash"))?;
            hashes.entry(name(replica.shard)).or_default().insert(node.clone(), content);
        }
    }
    Ok(hashes)
}

/// Whether nothing was applied between the hashes of a shard.
fn still(hashes: &Hashes) -> anyhow::Result<()> {
    for (shard, nodes) in hashes {
        let indexes: BTreeSet<u64> = nodes.values().map(|hash| hash.applied_index).collect();
        ensure!(indexes.len() == 1, "{shard}: {indexes:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use borough_proto::replicas::ReplicaReport;

    use super::*;

    fn list(role: Role, index: u64) -> ReplicaList {
        let content = Some(ContentHash { applied_index: index, ..ContentHash::default() });
        let report = ReplicaReport { shard: Some(2), role, content, ..ReplicaReport::default() };
        ReplicaList { node: 1, replicas: vec![report] }
    }

    #[test]
    fn only_members_at_one_index_are_compared() {
        let lists =
            |role, index| vec![("a".to_owned(), list(Role::Voter, 7)), ("b".to_owned(), list(role, index))];
        let hashes = by_node(lists(Role::Learner, 7)).unwrap();
        assert_eq!(hashes["2"].len(), 2);
        still(&hashes).unwrap();
        assert!(by_node(lists(Role::None, 7)).is_err());
        assert!(still(&by_node(lists(Role::Voter, 8)).unwrap()).is_err());
    }
}
