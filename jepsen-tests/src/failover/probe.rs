//! One prober for each shard: writes, one after the other, all the time, and takes down when each was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::Cluster;
use crate::http::Http;
use crate::wait::until;

/// Between two writes to a shard: what the figures are exact to.
const PAUSE: Duration = Duration::from_millis(10);
/// Longer than the router's own deadline.
const ANSWER_LIMIT: Duration = Duration::from_secs(12);

/// When a write was sent and when it was acknowledged.
type Ack = (Instant, Instant);

/// All probers; they end when this is dropped.
#[derive(Debug)]
pub struct Probes {
    acks: BTreeMap<u32, Arc<Mutex<Vec<Ack>>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Probes {
    /// Starts a prober for every shard, and waits until each has been acknowledged a write.
    ///
    /// # Errors
    /// When a shard takes no writes.
    pub async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut probes =
            Self { acks: BTreeMap::new(), tasks: TaskTracker::new(), stop: CancellationToken::new() };
        for (shard, ids) in cluster.ids_by_shard("probe", 1).await? {
            let id = ids.first().context("a shard without ids")?;
            let path = format!("/v1/users/{id}");
            let acks = Arc::default();
            let http = Http::with_limit(cluster.router.http.base(), ANSWER_LIMIT)?;
            let probing = probe(http, path, Arc::clone(&acks));
            probes.tasks.spawn(probes.stop.clone().run_until_cancelled_owned(probing));
            probes.acks.insert(shard, acks);
        }
        let started = Instant::now();
        let all: BTreeSet<u32> = probes.acks.keys().copied().collect();
        probes.back(&all, started, ANSWER_LIMIT).await.context("shards take no writes")?;
        Ok(probes)
    }

    pub fn shards(&self) -> Vec<u32> {
        self.acks.keys().copied().collect()
    }

    /// Waits until each of `shards` has acknowledged a write that was sent after `since`: how long after `since` each did.
    ///
    /// # Errors
    /// Those that have not, after `limit`.
    pub async fn back(
        &self,
        shards: &BTreeSet<u32>,
        since: Instant,
        limit: Duration,
    ) -> anyhow::Result<BTreeMap<u32, Duration>> {
        until(limit, "writes to be acknowledged again", || async {
            let back: BTreeMap<u32, Duration> =
                shards.iter().filter_map(|&shard| Some((shard, self.first_after(shard, since)?))).collect();
            let missing: Vec<&u32> = shards.iter().filter(|shard| !back.contains_key(shard)).collect();
            ensure!(missing.is_empty(), "shards {missing:?} acknowledge nothing");
            Ok(back)
        })
        .await
    }

    fn with<T>(&self, shard: u32, look: impl FnOnce(&mut Vec<Ack>) -> T) -> Option<T> {
        let acks = self.acks.get(&shard)?;
        Some(look(&mut acks.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn first_after(&self, shard: u32, since: Instant) -> Option<Duration> {
        self.with(shard, |acks| {
            acks.iter().find(|(sent, _)| *sent >= since).map(|(_, acknowledged)| *acknowledged - since)
        })?
    }

    /// The longest time without an acknowledgement that touches `from` to `to`.
    pub fn longest_gap(&self, shard: u32, from: Instant, to: Instant) -> Option<Duration> {
        let moments =
            self.with(shard, |acks| acks.iter().map(|(_, acknowledged)| *acknowledged).collect::<Vec<_>>());
        longest_gap(&moments?, from, to, Instant::now())
    }

    /// Forgets what was acknowledged before, but the last of it.
    pub fn forget(&self, before: Instant) {
        for &shard in self.acks.keys() {
            let _ = self.with(shard, |acks| {
                let old = acks.iter().take_while(|(_, acknowledged)| *acknowledged < before).count();
                acks.drain(..old.saturating_sub(1));
            });
        }
    }

    /// Ends the probers.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn probe(http: Http, path: String, acks: Arc<Mutex<Vec<Ack>>>) {
    for number in 0_u64.. {
        let sent = Instant::now();
        let answer = http.put(&path, &json!({"probe": number})).send().await;
        if answer.is_ok_and(|answer| matches!(answer.status, 200 | 201)) {
            acks.lock().unwrap_or_else(PoisonError::into_inner).push((sent, Instant::now()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// `moments` are in order. A gap that is still open lasts until `now`.
fn longest_gap(moments: &[Instant], from: Instant, to: Instant, now: Instant) -> Option<Duration> {
    let pairs = moments.iter().zip(moments.iter().skip(1).chain([&now]));
    let touching = pairs.filter(|(begin, end)| **begin <= to && **end >= from);
    touching.map(|(begin, end)| *end - *begin).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_count_in_full_when_they_touch_the_time() {
        let origin = Instant::now();
        let at = |millis| origin + Duration::from_millis(millis);
        let moments = [at(0), at(500), at(510), at(900), at(910)];
        let gap = |from, to| longest_gap(&moments, at(from), at(to), at(950)).unwrap().as_millis();
        assert_eq!(gap(505, 600), 390);
        assert_eq!(gap(490, 505), 500, "it began before");
        assert_eq!(gap(905, 960), 40, "it is still open");
        assert_eq!(longest_gap(&[], at(0), at(9), at(9)), None);
    }
}
