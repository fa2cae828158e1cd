//! The meta leader's loop: plan purely, then act. Every step is recorded in the catalog or can be repeated, so
//! a new leader goes on where the old one was.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use borough_proto::{GroupId, NodeId, ReplicaId, ShardId, wire};
use parking_lot::Mutex;
use tokio::time::Instant;
use wire::catalog_command::Change;

use super::observe::Observed;
use super::plan::{Step, plan};
use crate::meta_leader::propose_local;
use crate::node::Node;
use crate::rpc::cluster::reconfigure;

const TICK: Duration = Duration::from_millis(200);
/// One step's time with the group's leader; it is asked again at the next tick.
const STEP_MAX: Duration = Duration::from_secs(30);
/// Leaders are moved only when no leader and no node has changed for this long: right after a failure the elections
/// sort themselves out, and a node that comes back must first be heard again.
const LEADERS_SETTLE: Duration = Duration::from_secs(5);
/// After a transfer a group's leader is left alone for this long, so that reports can follow.
const TRANSFER_REST: Duration = Duration::from_secs(3);

/// Groups that are worked on, and groups whose leader was just moved.
#[derive(Default)]
struct Busy {
    working: Mutex<HashMap<GroupId, ()>>,
    rested: Mutex<HashMap<GroupId, Instant>>,
}

/// Runs until the node stops; acts only while this node leads the meta group.
pub async fn run(node: Arc<Node>) {
    let busy = Arc::new(Busy::default());
    let mut led_term = None;
    let mut seen = (Vec::new(), Instant::now());
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = node.stop.cancelled() => return,
        }
        let view = node.meta().map(|meta| meta.view()).filter(|view| view.is_leader);
        let Some(view) = view else {
            led_term = None;
            continue;
        };
        if led_term != Some(view.term) {
            led_term = Some(view.term);
            node.observed.lock().restart();
        }
        if node.leaving.load(std::sync::atomic::Ordering::Relaxed) {
            continue;
        }
        let map = node.catalog.map();
        let (steps, picture) = {
            let mut observed = node.observed.lock();
            observed.tick();
            (plan(&map, &observed), picture(&map, &observed))
        };
        if seen.0 != picture {
            seen = (picture, Instant::now());
        }
        let settled = seen.1.elapsed() >= LEADERS_SETTLE;
        for step in steps.into_iter().filter(|step| settled || !matches!(step, Step::Transfer { .. })) {
            start(&node, &busy, step);
        }
    }
}

/// Who leads what, and who is up.
fn picture(map: &wire::ClusterMap, observed: &Observed) -> Vec<Option<NodeId>> {
    let leaders = map.shards.iter().map(|info| observed.leader(ShardId(info.id)));
    let up = map.nodes.iter().map(|info| Some(NodeId(info.id)).filter(|&node| observed.is_up(node)));
    leaders.chain(up).collect()
}

fn start(node: &Arc<Node>, busy: &Arc<Busy>, step: Step) {
    let group = match &step {
        Step::AddReplica { group, .. } | Step::Promote { group, .. } | Step::Transfer { group, .. } => *group,
    };
    if matches!(step, Step::Transfer { .. }) {
        let mut rested = busy.rested.lock();
        rested.retain(|_, since| since.elapsed() < TRANSFER_REST);
        if rested.contains_key(&group) {
            return;
        }
        rested.insert(group, Instant::now());
    }
    if busy.working.lock().insert(group, ()).is_some() {
        return;
    }
    let (node, busy) = (Arc::clone(node), Arc::clone(busy));
    let tasks = node.tasks.clone();
    tasks.spawn(async move {
        let working = tokio::select! {
            result = tokio::time::timeout(STEP_MAX, act(&node, &step)) => result,
            () = node.stop.cancelled() => Ok(()),
        };
        if working.is_err() {
            tracing::warn!(%group, ?step, "a placement step took too long and is tried again");
        }
        busy.working.lock().remove(&group);
    });
}

async fn act(node: &Arc<Node>, step: &Step) {
    match step {
        Step::AddReplica { group, epoch, node: target } => {
            let add = wire::AddReplica { group: group.get(), epoch: *epoch, node: target.get() };
            tracing::info!(%group, node = %target, "adding a replica");
            record(node, Change::AddReplica(add)).await;
        }
        Step::Promote { group, epoch, learner, voters } => {
            let request = wire::ReconfigureRequest { group: group.get(), voters: members(voters), leader: 0 };
            match ask_leader(node, *group, voters.values().copied().collect(), request).await {
                Ok(()) => {
                    tracing::info!(%group, replica = %learner, "the replica votes");
                    let promote =
                        wire::PromoteReplica { group: group.get(), epoch: *epoch, replica: learner.get() };
                    record(node, Change::PromoteReplica(promote)).await;
                }
                Err(waits) => {
                    tracing::debug!(%group, replica = %learner, %waits, "the replica does not vote yet")
                }
            }
        }
        Step::Transfer { group, to } => {
            let map = node.map.get();
            let info = group.shard().and_then(|shard| map.shard(shard));
            let nodes =
                info.iter().flat_map(|info| &info.replicas).map(|replica| NodeId(replica.node)).collect();
            let request =
                wire::ReconfigureRequest { group: group.get(), voters: Vec::new(), leader: to.get() };
            if let Err(waits) = ask_leader(node, *group, nodes, request).await {
                tracing::debug!(%group, %to, %waits, "leadership was not moved");
            }
        }
    }
}

fn members(voters: &BTreeMap<ReplicaId, NodeId>) -> Vec<wire::ReplicaInfo> {
    let role = wire::ReplicaRole::Voter.into();
    voters
        .iter()
        .map(|(replica, node)| wire::ReplicaInfo { id: replica.get(), node: node.get(), role })
        .collect()
}

async fn record(node: &Arc<Node>, change: Change) {
    let reply = propose_local(node, &wire::CatalogCommand { change: Some(change) }).await;
    if let Some(refused) = reply.reply.map(|reply| reply.refused).filter(|refused| !refused.is_empty()) {
        tracing::warn!(%refused, "the catalog refused a placement step");
    }
}

/// Asks the nodes of a group, the one that leads first, to do the next step.
async fn ask_leader(
    node: &Arc<Node>,
    group: GroupId,
    mut nodes: Vec<NodeId>,
    request: wire::ReconfigureRequest,
) -> Result<(), String> {
    let leader = match group.shard() {
        Some(shard) => node.observed.lock().leader(shard),
        None => Some(node.node_id()),
    };
    nodes.sort_by_key(|&candidate| Some(candidate) != leader);
    let mut waits = "no replica leads".to_owned();
    for candidate in nodes {
        let reply = if candidate == node.node_id() {
            reconfigure(node, request.clone()).await
        } else {
            let client = node.peers.address(candidate).and_then(|addr| node.peers.cluster_client(&addr));
            let mut client = client.map_err(|error| error.to_string())?;
            match client.reconfigure(request.clone()).await {
                Ok(reply) => reply.into_inner(),
                Err(status) => {
                    status.message().clone_into(&mut waits);
                    continue;
                }
            }
        };
        if reply.done {
            return Ok(());
        }
        waits = reply.waits;
        if reply.leader_node == candidate.get() {
            break;
        }
    }
    Err(waits)
}
