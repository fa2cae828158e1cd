//! The control plane: init, join, map, collections, status, reports, reconfiguration.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use borough_proto::{ClusterMap, GroupId, NodeId, ReplicaId, http_api, limits, wire};
use futures::Stream;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use wire::catalog_command::Change;

use crate::identity::Identity;
use crate::meta_leader::{self, Asked, MetaError, Target};
use crate::node::Node;
use crate::placement::operate::{REPORTS_DUE, hear_all, operate};
use crate::placement::status;

/// How long a control call looks for the meta leader.
const PATIENCE: Duration = Duration::from_secs(10);
/// One seed's time to say whether it has a cluster; one that is away has none to speak of.
const SEED_MAX: Duration = Duration::from_secs(1);
/// Replica id of the meta group's first member.
const FIRST_META_REPLICA: ReplicaId = ReplicaId(1);
/// A watcher hears at least this often, so that a dead connection is noticed.
const WATCH_KEEPALIVE: Duration = Duration::from_secs(5);

/// Serves `borough.v1.Cluster`.
pub struct ClusterService(pub Arc<Node>);

fn meta_status(error: &MetaError) -> Status {
    match error {
        MetaError::NoCluster => Status::failed_precondition(error.to_string()),
        MetaError::NoLeader => Status::unavailable(error.to_string()),
    }
}

impl ClusterService {
    async fn propose(&self, change: Change) -> Result<wire::CatalogReply, Status> {
        let command = wire::CatalogCommand { change: Some(change) };
        meta_leader::propose(&self.0, command, Instant::now() + PATIENCE)
            .await
            .map_err(|error| meta_status(&error))
    }
}

#[tonic::async_trait]
impl wire::cluster_server::Cluster for ClusterService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::MapUpdate, Status>> + Send>>;

    async fn init(&self, request: Request<wire::InitRequest>) -> Result<Response<wire::InitReply>, Status> {
        let (node, request) = (&self.0, request.into_inner());
        if !request.asking.is_empty() {
            let cluster_id = node.identity.get().map(|identity| identity.cluster_id.clone());
            let own = node.advertised.get().filter(|_| node.creating.load(Ordering::SeqCst));
            return Ok(Response::new(wire::InitReply {
                cluster_id: cluster_id.unwrap_or_default(),
                creating: own.map(|own| own.addr.clone()).unwrap_or_default(),
            }));
        }
        let cluster_id = init(node, &request).await?;
        Ok(Response::new(wire::InitReply { cluster_id, creating: String::new() }))
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinReply>, Status> {
        let node = &self.0;
        if node.map.get().epoch() == 0 {
            return Err(meta_status(&MetaError::NoCluster));
        }
        let reply = self.propose(Change::Join(request.into_inner())).await?;
        if !reply.refused.is_empty() {
            return Err(Status::permission_denied(reply.refused));
        }
        let map = node.map.get();
        Ok(Response::new(wire::JoinReply {
            node: reply.node,
            cluster_id: map.cluster_id().to_owned(),
            map: Some(map.wire().clone()),
        }))
    }

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let held = self.0.map.get();
        if !request.cluster_id.is_empty() && held.epoch() > 0 && request.cluster_id != held.cluster_id() {
            return Err(Status::failed_precondition(format!("this is cluster {}", held.cluster_id())));
        }
        let watching = Watching {
            node: Arc::clone(&self.0),
            map: self.0.map.watch(),
            sent: Arc::default(),
            first: true,
        };
        let updates = futures::stream::unfold(watching, |mut watching| async move {
            let update = watching.next().await?;
            Some((Ok(update), watching))
        });
        Ok(Response::new(Box::pin(updates)))
    }

    async fn put_collection(
        &self,
        request: Request<wire::PutCollectionRequest>,
    ) -> Result<Response<wire::PutCollectionReply>, Status> {
        let reply = self.propose(Change::PutCollection(request.into_inner())).await?;
        Ok(Response::new(wire::PutCollectionReply {
            collection: reply.collection,
            created: reply.changed,
            refused: reply.refused,
            epoch: reply.epoch,
        }))
    }

    async fn delete_collection(
        &self,
        request: Request<wire::DeleteCollectionRequest>,
    ) -> Result<Response<wire::DeleteCollectionReply>, Status> {
        let request = request.into_inner();
        // A meta leader that dies after it deleted the collection cannot say so, and the next one finds nothing to delete.
        let known = self.0.map.get().collection(&request.name).is_some();
        let reply = self.propose(Change::DeleteCollection(request)).await?;
        Ok(Response::new(wire::DeleteCollectionReply {
            existed: reply.changed || known,
            refused: reply.refused,
            epoch: reply.epoch,
        }))
    }

    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusReply>, Status> {
        let node = &self.0;
        if request.get_ref().forwarded {
            return Ok(Response::new(status_local(node).await?));
        }
        let reply = meta_leader::ask(node, Instant::now() + PATIENCE, |target| async move {
            let reply = match target {
                Target::Local => status_local(node).await.ok()?,
                Target::Remote(mut client) => {
                    client.status(wire::StatusRequest { forwarded: true }).await.ok()?.into_inner()
                }
            };
            Some(if reply.not_leader {
                Asked::Elsewhere((reply.leader_node != 0).then_some(NodeId(reply.leader_node)))
            } else {
                Asked::Done(reply)
            })
        })
        .await
        .map_err(|error| meta_status(&error))?;
        Ok(Response::new(reply))
    }

    async fn report(
        &self,
        request: Request<wire::NodeReport>,
    ) -> Result<Response<wire::ReportReply>, Status> {
        Ok(Response::new(take_report(&self.0, request.into_inner())))
    }

    async fn propose(
        &self,
        request: Request<wire::CatalogCommand>,
    ) -> Result<Response<wire::ProposeReply>, Status> {
        Ok(Response::new(meta_leader::propose_local(&self.0, request.get_ref()).await))
    }

    async fn reconfigure(
        &self,
        request: Request<wire::ReconfigureRequest>,
    ) -> Result<Response<wire::ReconfigureReply>, Status> {
        Ok(Response::new(reconfigure(&self.0, request.into_inner()).await))
    }

    async fn operate(
        &self,
        request: Request<wire::OperateRequest>,
    ) -> Result<Response<wire::OperateReply>, Status> {
        let (node, request) = (&self.0, request.into_inner());
        let Some(call) = request.call else {
            return Err(Status::invalid_argument("the call is not known to this build"));
        };
        if request.forwarded {
            return Ok(Response::new(operate(node, call).await));
        }
        let reply = meta_leader::ask(node, Instant::now() + PATIENCE, |target| async move {
            let reply = match target {
                Target::Local => operate(node, call).await,
                Target::Remote(mut client) => {
                    let request = wire::OperateRequest { forwarded: true, call: Some(call) };
                    client.operate(request).await.ok()?.into_inner()
                }
            };
            Some(if reply.not_leader {
                Asked::Elsewhere((reply.leader_node != 0).then_some(NodeId(reply.leader_node)))
            } else {
                Asked::Done(reply)
            })
        })
        .await
        .map_err(|error| meta_status(&error))?;
        Ok(Response::new(reply))
    }
}

/// A watcher of the map and what it was sent.
struct Watching {
    node: Arc<Node>,
    map: tokio::sync::watch::Receiver<Arc<ClusterMap>>,
    sent: Arc<ClusterMap>,
    first: bool,
}

impl Watching {
    async fn next(&mut self) -> Option<wire::MapUpdate> {
        if !std::mem::replace(&mut self.first, false) {
            tokio::select! {
                changed = self.map.changed() => changed.ok()?,
                () = tokio::time::sleep(WATCH_KEEPALIVE) => {}
                () = self.node.stop.cancelled() => return None,
            }
        }
        let now = Arc::clone(&self.map.borrow_and_update());
        let mut update = now.update_since(&self.sent);
        if now.epoch() == 0 {
            update.full = None;
        }
        update.leaders = self
            .node
            .shards
            .load()
            .iter()
            .filter_map(|(shard, served)| Some((shard.get(), served.group.leader_node()?.get())))
            .collect();
        self.sent = now;
        Some(update)
    }
}

/// Says that this node is creating a cluster, until it is dropped.
struct Creating<'a>(&'a Node);

impl<'a> Creating<'a> {
    fn announce(node: &'a Node) -> Self {
        node.creating.store(true, Ordering::SeqCst);
        Self(node)
    }
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.0.creating.store(false, Ordering::SeqCst);
    }
}

/// Makes sure that no seed that answers belongs to a cluster or makes one. This node has announced itself before it asks:
/// of two that do so at once each sees the other, or one sees that the other has done it. The lower address goes on.
async fn nowhere_else(node: &Node) -> Result<(), Status> {
    let own = node.advertised.get().ok_or_else(|| Status::unavailable("the node is starting"))?.addr.clone();
    let deadline = Instant::now() + PATIENCE;
    for seed in node.config.join.iter().filter(|&seed| *seed != own) {
        loop {
            let Ok(mut client) = node.peers.cluster_client(seed) else { break };
            let request = wire::InitRequest { asking: own.clone(), ..Default::default() };
            let Ok(Ok(reply)) = tokio::time::timeout(SEED_MAX, client.init(request)).await else { break };
            let wire::InitReply { cluster_id, creating } = reply.into_inner();
            if !cluster_id.is_empty() {
                return Err(Status::already_exists(format!(
                    "{seed} belongs to cluster {cluster_id}, which this node joins; a cluster is created once"
                )));
            }
            // It may be this node by another name.
            if creating.is_empty() || creating == own {
                break;
            }
            if creating < own || Instant::now() >= deadline {
                return Err(Status::already_exists(format!(
                    "a cluster is being created at {creating}, which this node joins; a cluster is created once"
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

async fn init(node: &Arc<Node>, request: &wire::InitRequest) -> Result<String, Status> {
    let exists = |cluster: &str| {
        Status::already_exists(format!(
            "this node belongs to cluster {cluster} already; a cluster is created once"
        ))
    };
    if !(1..=limits::SHARDS_MAX).contains(&request.shards) {
        return Err(Status::invalid_argument(format!("shards: must be 1 to {}", limits::SHARDS_MAX)));
    }
    if !(1..=limits::REPLICAS_MAX).contains(&request.replicas) {
        return Err(Status::invalid_argument(format!("replicas: must be 1 to {}", limits::REPLICAS_MAX)));
    }
    let _one_at_a_time = node.initialising.lock().await;
    let _creating = Creating::announce(node);
    if node.identity.get().is_none() {
        nowhere_else(node).await?;
    }
    let cluster_id = match node.identity.get() {
        // An earlier attempt that died between identity and catalog is finished here.
        Some(identity) if identity.node == NodeId(1) && node.map.get().epoch() == 0 => {
            identity.cluster_id.clone()
        }
        Some(identity) => return Err(exists(&identity.cluster_id)),
        None => uuid::Uuid::new_v4().to_string(),
    };
    let identity = Identity { cluster_id: cluster_id.clone(), node: NodeId(1) };
    node.dir.keep_identity(&identity).map_err(|error| Status::internal(error.to_string()))?;
    let kept = node.identity.get_or_init(|| identity);
    if kept.cluster_id != cluster_id {
        return Err(exists(&kept.cluster_id));
    }
    if node.meta().is_none() {
        let opened = node.open(GroupId::META, FIRST_META_REPLICA, Some(NodeId(1)), 0).await;
        opened.map_err(|error| Status::internal(error.to_string()))?;
    }
    let advertised = node.advertised.get().ok_or_else(|| Status::unavailable("the node is starting"))?;
    let command = wire::CatalogCommand {
        change: Some(Change::Init(wire::InitCatalog {
            cluster_id: cluster_id.clone(),
            shards: request.shards,
            replicas: request.replicas,
            node: Some(node.join_request(advertised)),
            meta_replica: FIRST_META_REPLICA.get(),
        })),
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reply = meta_leader::propose_local(node, &command).await;
        match reply.reply {
            Some(done) if done.refused.is_empty() => return Ok(cluster_id),
            Some(_) => return Err(exists(&cluster_id)),
            // The group's first election is under way.
            None if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(20)).await,
            None => return Err(Status::unavailable("the meta group elected no leader in time; try again")),
        }
    }
}

/// Takes a node's report if this node leads the meta group.
pub fn take_report(node: &Node, report: wire::NodeReport) -> wire::ReportReply {
    let map_epoch = node.map.get().epoch();
    let meta = node.meta();
    if let Some(view) = meta.as_ref().map(|meta| meta.view()).filter(|view| view.is_leader) {
        let mut observed = node.observed.lock();
        observed.lead(view.term).report(report);
        let silences = observed.silences().to_vec();
        let leader_node = node.node_id().get();
        return wire::ReportReply { map_epoch, leader_node, accepted: true, term: view.term, silences };
    }
    let leader = meta.and_then(|meta| meta.leader_node());
    wire::ReportReply { map_epoch, leader_node: leader.map_or(0, NodeId::get), ..Default::default() }
}

async fn status_local(node: &Node) -> Result<wire::StatusReply, Status> {
    let Some(meta) = meta_leader::leading(node).await else {
        let leader = node.meta().and_then(|meta| meta.leader_node());
        return Ok(wire::StatusReply {
            not_leader: true,
            leader_node: leader.map_or(0, NodeId::get),
            ..Default::default()
        });
    };
    hear_all(node, meta.view().term, REPORTS_DUE).await;
    let document: http_api::ClusterStatus = status::document(&node.catalog.catalog(), &node.observed.lock());
    let json = serde_json::to_string(&document).map_err(|error| Status::internal(error.to_string()))?;
    Ok(wire::StatusReply { json, ..Default::default() })
}

/// Does the next step towards the membership or leader asked for, if this node leads the group.
pub async fn reconfigure(node: &Node, request: wire::ReconfigureRequest) -> wire::ReconfigureReply {
    let waits = |waits: String, leader: Option<NodeId>| wire::ReconfigureReply {
        done: false,
        waits,
        leader_node: leader.map_or(0, NodeId::get),
    };
    let Some(group) = node.groups.group(GroupId(request.group)) else {
        return waits(format!("no replica of group {} here", request.group), None);
    };
    if !group.is_leader() {
        return waits("this replica does not lead".to_owned(), group.leader_node());
    }
    // A meta leader that was paused must not bring back what the next one has undone (I6).
    if node.meta_term.fetch_max(request.term, Ordering::SeqCst) > request.term {
        return waits("the meta group has another leader".to_owned(), Some(node.node_id()));
    }
    let map = node.map.get();
    let info = match group.group.shard() {
        Some(shard) => map.shard(shard),
        None => map.meta(),
    };
    if info.is_none_or(|info| info.epoch != request.epoch) {
        return waits("the node's map is at another epoch".to_owned(), Some(node.node_id()));
    }
    if !request.voters.is_empty() {
        let voters: BTreeMap<_, _> =
            request.voters.iter().map(|voter| (ReplicaId(voter.id), NodeId(voter.node))).collect();
        if let Err(reason) = group.reconfigure(&voters).await {
            return waits(reason, Some(node.node_id()));
        }
    }
    if request.leader != 0
        && request.leader != group.replica.get()
        && let Err(reason) = group.transfer_leader(ReplicaId(request.leader)).await
    {
        return waits(reason, Some(node.node_id()));
    }
    wire::ReconfigureReply { done: true, waits: String::new(), leader_node: node.node_id().get() }
}
