//! The cluster as several nemeses at once have it: each looks and changes for a moment, and waits without holding it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use borough_proto::http_api::ClusterStatus;

use crate::cluster::{Cluster, status};
use crate::http::Http;
use crate::wait::until;

/// For one answer, while other faults last.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// For a node that was stopped to have its shards again.
const REST_LIMIT: Duration = Duration::from_secs(30);

/// A cluster that faults are made on.
#[derive(Debug)]
pub struct Field<'a> {
    cluster: Mutex<&'a mut Cluster>,
}

impl<'a> Field<'a> {
    pub fn new(cluster: &'a mut Cluster) -> Self {
        Self { cluster: Mutex::new(cluster) }
    }

    /// Looks at the cluster or changes it; nothing else happens to it meanwhile, so this is to be short.
    pub fn with<T>(&self, work: impl FnOnce(&mut Cluster) -> T) -> T {
        work(&mut self.cluster.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Positions of nodes that run.
    pub fn running(&self) -> Vec<usize> {
        self.with(|cluster| {
            let running = cluster.nodes.iter().enumerate().filter(|(_, node)| node.running());
            running.map(|(at, _)| at).collect()
        })
    }

    /// A node's name.
    pub fn name(&self, at: usize) -> String {
        self.with(|cluster| cluster.nodes.get(at).map_or_else(String::new, |node| node.name().to_owned()))
    }

    /// Callers of the routers that run.
    pub fn routers(&self) -> Vec<Http> {
        self.with(|cluster| {
            let running = cluster.routers().filter(|router| router.running());
            running.map(|router| router.http.clone()).collect()
        })
    }

    /// The status document, from whichever router answers.
    ///
    /// # Errors
    /// When none does.
    pub async fn status(&self) -> anyhow::Result<ClusterStatus> {
        let mut last = anyhow::anyhow!("no router runs");
        for http in self.routers() {
            match tokio::time::timeout(ANSWER_LIMIT, status(&http)).await {
                Ok(Ok(status)) => return Ok(status),
                Ok(Err(error)) => last = error,
                Err(_) => last = anyhow::anyhow!("a router does not answer"),
            }
        }
        Err(last.context("status document"))
    }

    /// Where the node of this id stands.
    ///
    /// # Errors
    /// When none has it.
    pub fn position(&self, id: u64) -> anyhow::Result<usize> {
        let of_id = |node: &crate::cluster::Node| node.identity().is_ok_and(|identity| identity.node == id);
        let found = self.with(|cluster| cluster.nodes.iter().position(of_id));
        found.with_context(|| format!("no node has id {id}"))
    }

    /// What a node tells in its metrics; nothing when it does not answer.
    pub async fn metrics(&self, at: usize) -> Option<String> {
        let admin = self.with(|cluster| cluster.nodes.get(at).map(|node| node.admin.clone()))?;
        let page = async { reqwest::get(format!("http://{admin}/metrics")).await?.text().await };
        tokio::time::timeout(ANSWER_LIMIT, page).await.ok()?.ok()
    }

    /// Where the node stands that says in its metrics that it leads the meta group.
    ///
    /// # Errors
    /// When none says so.
    pub async fn meta_leader(&self) -> anyhow::Result<usize> {
        for at in self.running() {
            // One that is stopped does not answer, and is not the one that is looked for.
            let Some(page) = self.metrics(at).await else { continue };
            if page.lines().any(|line| line.trim() == "borough_meta_leader 1") {
                return Ok(at);
            }
        }
        anyhow::bail!("no node says that it leads the meta group")
    }

    /// Waits until every shard has a leader and all its voters, as somebody who restarts nodes one by one would.
    ///
    /// # Errors
    /// What is missing when the time is over.
    pub async fn rest(&self) -> anyhow::Result<()> {
        until(REST_LIMIT, "shards to be healthy", || async {
            let status = self.status().await?;
            let ill = status.shards.iter().find(|shard| shard.state != "healthy" || shard.leader.is_none());
            ensure!(ill.is_none(), "{ill:?}");
            let away = status.nodes.iter().find(|node| node.state == "suspect" || node.state == "down");
            ensure!(away.is_none(), "{away:?}");
            Ok(())
        })
        .await
    }
}
