//! The running node: what its services and loops share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};

use arc_swap::ArcSwap;
use borough_proto::{ClusterMap, GroupId, NodeId, ReplicaId, ShardId, wire};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::Cache;
use crate::config::Config;
use crate::crash;
use crate::defect::{self, Defect};
use crate::identity::{DataDir, Identity};
use crate::placement::catalog_machine::CatalogMachine;
use crate::placement::observe::Observed;
use crate::raft::{AddressBook, Group, Groups, OpenError, Peers};
use crate::registry::{Registry, Standing};
use crate::shard::{Shard, ShardMachine};

/// Shared by everything that runs in the node.
pub struct Node {
    pub config: Config,
    pub dir: DataDir,
    /// Replicas that the directory has held.
    pub registry: Registry,
    pub identity: OnceLock<Identity>,
    /// The address that others are told, once bound.
    pub advertised: OnceLock<Advertised>,
    pub map: MapCell,
    pub groups: Arc<Groups>,
    pub peers: Arc<Peers>,
    pub cache: Arc<Cache>,
    pub wal: crate::wal::Wal,
    pub catalog: Arc<CatalogMachine>,
    pub shards: ArcSwap<HashMap<ShardId, Shard>>,
    /// What this node hears as meta leader.
    pub observed: Mutex<Observed>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    /// Told to go: leaderships are handed over, new ones not taken.
    pub leaving: AtomicBool,
    pub ready: AtomicBool,
    /// Free space is below the limit: writes are refused, reads go on.
    pub disk_full: AtomicBool,
    pub disk_free_bytes: AtomicU64,
    pub requests: Semaphore,
    pub proposed_bytes: AtomicU64,
    /// The newest term of the meta group that this node has heard of: what an older leader decided is refused.
    pub meta_term: AtomicU64,
    /// A node that has a newer map than this one, which did not come by itself.
    pub newer_map: watch::Sender<Option<NodeId>>,
    /// `cluster init` is under way here.
    pub creating: AtomicBool,
    /// Held while the cluster is created.
    pub initialising: tokio::sync::Mutex<()>,
    /// Held from the check of a call that changes operations until it is recorded, so that no two are checked against the
    /// same catalog.
    pub operating: tokio::sync::Mutex<()>,
    /// Held while replicas are opened and removed.
    pub reconciling: tokio::sync::Mutex<()>,
}

/// Where the node can be reached.
#[derive(Debug, Clone)]
pub struct Advertised {
    pub addr: String,
    pub admin: String,
}

/// The newest cluster map that this node has seen (I6: epochs only grow).
#[derive(Clone)]
pub struct MapCell {
    sender: Arc<watch::Sender<Arc<ClusterMap>>>,
}

impl Default for MapCell {
    fn default() -> Self {
        Self { sender: Arc::new(watch::Sender::new(Arc::default())) }
    }
}

impl MapCell {
    pub fn get(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.sender.borrow())
    }

    pub fn watch(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.sender.subscribe()
    }

    /// Takes `map` when it is newer than what is held.
    pub fn offer(&self, map: Arc<ClusterMap>) -> bool {
        self.sender.send_if_modified(|held| {
            let other = defect::has(Defect::OlderMaps) && map.epoch() != held.epoch();
            let newer = (other || map.epoch() > held.epoch())
                && (held.cluster_id().is_empty() || held.cluster_id() == map.cluster_id());
            if newer {
                *held = map;
            }
            newer
        })
    }
}

impl AddressBook for MapCell {
    fn address(&self, node: NodeId) -> Option<String> {
        self.sender.borrow().node(node).map(|info| info.addr.clone())
    }
}

impl Node {
    pub fn node_id(&self) -> NodeId {
        self.identity.get().map_or(NodeId(0), |identity| identity.node)
    }

    /// What this node says of itself when it joins.
    pub fn join_request(&self, advertised: &Advertised) -> wire::JoinRequest {
        let identity = self.identity.get();
        wire::JoinRequest {
            node: identity.map_or(0, |identity| identity.node.get()),
            cluster_id: identity.map(|identity| identity.cluster_id.clone()).unwrap_or_default(),
            addr: advertised.addr.clone(),
            admin_addr: advertised.admin.clone(),
            zone: self.config.zone.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: self.dir.incarnation.clone(),
        }
    }

    pub fn shard(&self, shard: ShardId) -> Option<Shard> {
        self.shards.load().get(&shard).cloned()
    }

    /// This node's replica of the meta group, if it has one.
    pub fn meta(&self) -> Option<Arc<Group>> {
        self.groups.group(GroupId::META)
    }

    /// Opens replicas that the map gives this node and removes those it no longer gives.
    ///
    /// # Errors
    /// A text when a replica cannot be opened; the others are still tried.
    pub async fn reconcile(&self, map: &ClusterMap) -> Result<(), String> {
        if map.epoch() == 0 {
            return Ok(());
        }
        let _one_at_a_time = self.reconciling.lock().await;
        let me = self.node_id();
        let groups = map.meta().map(|info| (GroupId::META, info)).into_iter();
        let groups = groups.chain(map.shards().iter().map(|info| (GroupId::from(ShardId(info.id)), info)));
        let mut wanted: HashMap<ReplicaId, (GroupId, bool)> = HashMap::new();
        for (group, info) in groups {
            // The first replica of a new group makes it; every other one is told by the leader.
            let first = info.replicas.len() == 1 && info.epoch == 1;
            for replica in info.replicas.iter().filter(|replica| replica.node == me.get()) {
                wanted.insert(
                    ReplicaId(replica.id),
                    (group, first && replica.role() == wire::ReplicaRole::Voter),
                );
            }
        }
        let mut failures = Vec::new();
        for running in self.groups.all() {
            // A map that is older than the one which gave us the replica says nothing about it.
            let newer = match self.registry.standing(running.replica) {
                Standing::Held { epoch } => map.epoch() > epoch,
                Standing::New | Standing::Removed => true,
            };
            if !wanted.contains_key(&running.replica) && newer {
                tracing::info!(group = %running.group, replica = %running.replica, "replica is no longer ours");
                self.forget_shard(running.group);
                if let Err(error) = self.remove(running.replica).await {
                    failures.push(error);
                }
            }
        }
        for (replica, (group, first)) in wanted {
            if self.groups.replica(replica).is_none()
                && self.registry.standing(replica) != Standing::Removed
                && let Err(error) = self.open(group, replica, first.then_some(me), map.epoch()).await
            {
                failures.push(error.to_string());
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    /// Gives a replica up for good: first kept as removed, then stopped and its data removed.
    async fn remove(&self, replica: ReplicaId) -> Result<(), String> {
        self.registry.removed(&self.dir, replica).map_err(|error| error.to_string())?;
        crash::reached("replica-given-up");
        self.groups.remove(replica).await.map_err(|error| error.to_string())
    }

    /// Opens one replica, which the map of `epoch` gave this node; `first` makes it the only member of its group, if it
    /// is not a member yet.
    ///
    /// # Errors
    /// [`OpenError`], which names the replica.
    pub async fn open(
        &self,
        group: GroupId,
        replica: ReplicaId,
        first: Option<NodeId>,
        epoch: u64,
    ) -> Result<(), OpenError> {
        self.groups.prepare(group, replica).await?;
        let opened = self.registry.opened(&self.dir, replica, epoch);
        opened.map_err(|source| OpenError::Registry { replica, source })?;
        let opened = match group.shard() {
            None => {
                let machine = Arc::clone(&self.catalog);
                self.groups.open(group, replica, machine).await
            }
            Some(shard) => {
                let machine = ShardMachine::new(replica, Arc::clone(&self.cache));
                let opened = self.groups.open(group, replica, Arc::clone(&machine) as _).await;
                if let Ok(group) = &opened {
                    let served = Shard { group: Arc::clone(group), machine };
                    self.change_shards(|shards| {
                        shards.insert(shard, served);
                    });
                }
                opened
            }
        };
        let opened = opened?;
        crash::reached("replica-opened");
        if let Some(node) = first
            && !opened.is_initialized().await
        {
            let initialised = opened.initialize(node).await;
            initialised.map_err(|detail| OpenError::Raft {
                replica,
                detail: format!("initialise {group}: {detail}"),
            })?;
        }
        Ok(())
    }

    fn forget_shard(&self, group: GroupId) {
        if let Some(shard) = group.shard() {
            self.change_shards(|shards| {
                shards.remove(&shard);
            });
        }
    }

    fn change_shards(&self, change: impl FnOnce(&mut HashMap<ShardId, Shard>)) {
        // Only called while `reconciling` is held or before anything else runs.
        let mut shards = HashMap::clone(&self.shards.load());
        change(&mut shards);
        self.shards.store(Arc::new(shards));
    }
}
