//! Looks at the status document again and again: while everything is served it must say so.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use borough_proto::http_api::ClusterStatus;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::status;
use crate::http::Http;

/// Between two looks: more often than nodes report.
const PAUSE: Duration = Duration::from_millis(100);

/// What the status must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// Every shard has a quorum and a leader but for an election: none is unavailable, and no node is down.
    Served,
    /// This node is dead and was found so: it is not up.
    Dead(u64),
}

/// Looks until it is stopped.
#[derive(Debug)]
pub struct Looker {
    stop: CancellationToken,
    seen: Arc<Mutex<Seen>>,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct Seen {
    looks: usize,
    faults: Vec<String>,
}

impl Looker {
    /// Starts to look whether the status is true.
    pub fn start(http: &Http, truth: Truth) -> Self {
        let (stop, seen, tasks) = (CancellationToken::new(), Arc::default(), TaskTracker::new());
        tasks.spawn(look(http.clone(), truth, stop.clone(), Arc::clone(&seen)));
        tasks.close();
        Self { stop, seen, tasks }
    }

    /// Ends; how often it looked.
    ///
    /// # Errors
    /// What was said wrongly, or when nothing was said.
    pub async fn stop(self) -> anyhow::Result<usize> {
        self.stop.cancel();
        self.tasks.wait().await;
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(
            seen.faults.is_empty(),
            "{} of {} looks: {:?}",
            seen.faults.len(),
            seen.looks,
            seen.faults.first()
        );
        ensure!(seen.looks > 0, "the status was never told");
        Ok(seen.looks)
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn look(http: Http, truth: Truth, stop: CancellationToken, seen: Arc<Mutex<Seen>>) {
    while !stop.is_cancelled() {
        // While the meta group elects there is nobody to say anything.
        if let Ok(status) = status(&http).await {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.looks += 1;
            seen.faults.extend(fault(&status, truth));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn fault(status: &ClusterStatus, truth: Truth) -> Option<String> {
    let node = |wrong: &str, id: Option<u64>| {
        let mut nodes = status.nodes.iter().filter(|node| id.is_none_or(|id| node.id == id));
        nodes.find(|node| node.state == wrong)
    };
    let (shard, node) = match truth {
        Truth::Served => {
            (status.shards.iter().find(|shard| shard.state == "unavailable"), node("down", None))
        }
        Truth::Dead(id) => (None, node("up", Some(id))),
    };
    let wrong = shard.is_some() || node.is_some();
    wrong.then(|| format!("{shard:?} {node:?} at epoch {}", status.epoch))
}

#[cfg(test)]
mod tests {
    use borough_proto::http_api::{NodeStatus, ShardStatus};

    use super::*;

    #[test]
    fn it_sees_what_is_wrong() {
        let told = |node: &str, shard: &str| ClusterStatus {
            nodes: vec![NodeStatus { id: 2, state: node.to_owned(), ..NodeStatus::default() }],
            shards: vec![ShardStatus { state: shard.to_owned(), ..ShardStatus::default() }],
            ..ClusterStatus::default()
        };
        for (status, truth, wrong) in [
            (told("up", "healthy"), Truth::Served, false),
            (told("suspect", "moving"), Truth::Served, false),
            (told("down", "healthy"), Truth::Served, true),
            (told("up", "unavailable"), Truth::Served, true),
            (told("up", "healthy"), Truth::Dead(2), true),
            (told("up", "healthy"), Truth::Dead(3), false),
            (told("down", "unavailable"), Truth::Dead(2), false),
        ] {
            assert_eq!(fault(&status, truth).is_some(), wrong, "{status:?} {truth:?}");
        }
    }
}
