//! Keeps the cluster map current from `Cluster.Watch` of any node.
//!
//! Epochs only grow (I6): an older map is ignored, an update that does not fit makes the whole map be fetched again. On a loss
//! the next node is asked, those of the map and the configured seeds in turn.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::channel::{BadAddr, ChannelSettings, cluster_client};
use super::pool::Pool;
use super::topology::Topology;
use crate::cluster_map::{ClusterMap, MapError};
use crate::id::{NodeId, ShardId};
use crate::wire;

const RECONNECTS: Backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_secs(1) };
/// A refresh asked for by a request is done at most this often.
const REFRESH_EVERY: Duration = Duration::from_millis(250);
/// A watched node answers with the map at once; one that does not is left for another.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// The map as this process knows it.
pub struct MapWatch {
    seeds: Vec<String>,
    channel: ChannelSettings,
    topology: ArcSwap<Topology>,
    epoch: watch::Sender<u64>,
    refresh: Notify,
}

/// Why one watched stream ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Addr(#[from] BadAddr),
    #[error("watch the cluster map: {0}")]
    Rpc(#[from] Status),
    #[error("no map within {FIRST_ANSWER:?}")]
    Silent,
    #[error("use the cluster map: {0}")]
    Map(#[from] MapError),
    #[error("the node ended the watch")]
    Closed,
    #[error("a request met a newer or older epoch")]
    Refresh,
}

impl MapWatch {
    /// Knows nothing until [`Self::run`] has reached one of `seeds` (`host:port` of nodes).
    pub fn new(seeds: Vec<String>, channel: ChannelSettings) -> Self {
        let (epoch, _) = watch::channel(0);
        Self { seeds, channel, topology: ArcSwap::default(), epoch, refresh: Notify::new() }
    }

    /// The map now.
    pub fn topology(&self) -> Guard<Arc<Topology>> {
        self.topology.load()
    }

    /// The map now, to be kept across awaits.
    pub fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(self.topology.load().map())
    }

    /// The map's epoch, and every later one; 0 before there is a map.
    pub fn epochs(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// Asks for a fresh look at the map, from another node than the one watched.
    pub fn refresh(&self) {
        self.refresh.notify_one();
    }

    /// Waits until the map's epoch is at least `epoch` (at least 1: until there is a map), or `deadline`. Answers whether it is.
    pub async fn reached(&self, epoch: u64, deadline: Instant) -> bool {
        let mut epochs = self.epochs();
        let wait = epochs.wait_for(|&now| now >= epoch);
        matches!(tokio::time::timeout_at(deadline, wait).await, Ok(Ok(_)))
    }

    /// Watches until `stop`. New nodes go into `pool`.
    pub async fn run(&self, pool: &Pool, stop: &CancellationToken) {
        let mut turn = rand::random_range(0..1024_usize);
        let mut failures = 0;
        let mut whole = false;
        while !stop.is_cancelled() {
            let started = Instant::now();
            let Some(addr) = self.candidate(turn) else {
                warn!("no node to ask for the cluster map");
                return;
            };
            turn = turn.wrapping_add(1);
            let mut heard = false;
            let watched = self.watch(&addr, whole, pool, &mut heard);
            let Some(ended) = stop.run_until_cancelled(Box::pin(watched)).await else { return };
            let Err(error) = ended;
            failures = if heard { 0 } else { failures + 1 };
            whole = matches!(error, WatchError::Map(MapError::Gap { .. }));
            let pause = match &error {
                WatchError::Refresh => REFRESH_EVERY.saturating_sub(started.elapsed()),
                WatchError::Map(MapError::Gap { .. }) if heard => Duration::ZERO,
                WatchError::Addr(_) | WatchError::Map(_) => {
                    warn!(addr, %error, "cluster map cannot be used");
                    RECONNECTS.pause(failures)
                }
                WatchError::Rpc(_) | WatchError::Silent | WatchError::Closed => {
                    if heard {
                        info!(addr, %error, "watch lost")
                    } else {
                        debug!(addr, %error, "watch failed")
                    }
                    RECONNECTS.pause(failures)
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// Whom to ask: nodes of the map and seeds, in turn.
    fn candidate(&self, turn: usize) -> Option<String> {
        let topology = self.topology.load();
        let members = topology.map().nodes().iter().filter(|node| node.state() != wire::NodeState::Removed);
        let mut addrs: Vec<&str> = members.map(|node| node.addr.as_str()).collect();
        addrs.extend(
            self.seeds
                .iter()
                .map(String::as_str)
                .filter(|seed| !topology.map().nodes().iter().any(|n| n.addr == *seed)),
        );
        if addrs.is_empty() {
            return None;
        }
        addrs.get(turn % addrs.len()).map(|&addr| addr.to_owned())
    }

    async fn watch(
        &self,
        addr: &str,
        whole: bool,
        pool: &Pool,
        heard: &mut bool,
    ) -> Result<std::convert::Infallible, WatchError> {
        let map = self.map();
        let request = wire::WatchRequest {
            epoch: if whole { 0 } else { map.epoch() },
            cluster_id: map.cluster_id().to_owned(),
        };
        let mut client = cluster_client(self.channel.lazy(addr)?);
        let opening = tokio::time::timeout(FIRST_ANSWER, client.watch(request))
            .await
            .map_err(|_| WatchError::Silent)?;
        let mut updates = opening?.into_inner();
        let silence = tokio::time::sleep(FIRST_ANSWER);
        tokio::pin!(silence);
        // Who has a map may wait for news for ever; who has none must not wait for a node that has none either.
        let mut content = map.epoch() > 0 && !whole;
        loop {
            tokio::select! {
                update = updates.message() => {
                    let update = update?.ok_or(WatchError::Closed)?;
                    self.apply(update, pool)?;
                    (content, *heard) = (true, true);
                }
                () = self.refresh.notified() => return Err(WatchError::Refresh),
                () = &mut silence, if !content => return Err(WatchError::Silent),
            }
        }
    }

    /// Takes `update` up unless it is older than what is held.
    fn apply(&self, mut update: wire::MapUpdate, pool: &Pool) -> Result<(), MapError> {
        let leaders = std::mem::take(&mut update.leaders);
        let old = self.topology.load_full();
        let held = old.map().epoch();
        let news = match &update.full {
            Some(full) => full.epoch > held || full.cluster_id != old.map().cluster_id(),
            None => update.epoch != held || update.since != held,
        };
        let topology = if news {
            let map = Arc::new(old.map().updated(update)?);
            debug!(
                epoch = map.epoch(),
                shards = map.shards().len(),
                nodes = map.nodes().len(),
                "cluster map"
            );
            pool.sync(&map);
            let topology = Arc::new(Topology::new(map, &old));
            self.topology.store(Arc::clone(&topology));
            topology
        } else {
            old
        };
        for (shard, node) in leaders {
            topology.set_leader(ShardId(shard), NodeId(node));
        }
        if news {
            self.epoch.send_replace(topology.map().epoch());
        }
        Ok(())
    }
}
