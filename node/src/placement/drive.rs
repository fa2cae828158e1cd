//! The meta leader's loop: plan purely, then act. Every step is recorded in the catalog or can be repeated, so
//! a new leader goes on where the old one was.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use borough_proto::{GroupId, NodeId, ReplicaId, ShardId, wire};
use parking_lot::Mutex;
use tokio::time::Instant;
use wire::catalog_command::Change;

use super::observe::{Observed, Standing};
use super::plan::{self, Act, Allowed, Step};
use crate::clock::now_ms;
use crate::crash;
use crate::meta_leader::propose_local;
use crate::node::Node;
use crate::rpc::cluster::reconfigure;

const TICK: Duration = Duration::from_millis(200);
/// One step's time with the group's leader; it is asked again at the next tick.
const STEP_MAX: Duration = Duration::from_secs(30);
/// A record's time in the catalog.
const RECORD_MAX: Duration = Duration::from_secs(5);
/// Leaders are moved only when no leader and no node has changed for this long: right after a failure the elections
/// sort themselves out, and a node that comes back must first be heard again.
const LEADERS_SETTLE: Duration = Duration::from_secs(5);
/// After a transfer a group's leader is left alone for this long, so that reports can follow.
const TRANSFER_REST: Duration = Duration::from_secs(3);

/// Groups that are worked on, and groups whose leader was just moved.
#[derive(Default)]
struct Busy {
    working: Mutex<HashSet<GroupId>>,
    rested: Mutex<HashMap<GroupId, Instant>>,
}

/// Something watched, and since when it has been the same.
struct Since<T>(T, Instant);

impl<T: PartialEq> Since<T> {
    fn new(value: T) -> Self {
        Self(value, Instant::now())
    }

    fn settled(&mut self, now: T, time: Duration) -> bool {
        if self.0 != now {
            *self = Self::new(now);
        }
        self.1.elapsed() >= time
    }
}

/// Runs until the node stops; acts only while this node leads the meta group.
pub async fn run(node: Arc<Node>) {
    let busy = Arc::new(Busy::default());
    let mut led_term = None;
    // What was asked last when nothing was missing, and who led what when that was even: planning is not for nothing.
    let mut complete = None;
    let mut even = None;
    let mut leaders = Since::new(Vec::new());
    let mut members = Since::new(Vec::new());
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
            complete = None;
        }
        if node.leaving.load(std::sync::atomic::Ordering::Relaxed) {
            continue;
        }
        let catalog = node.catalog.catalog();
        let Some(map) = &catalog.map else { continue };
        let (steps, asked, judge) = {
            let mut observed = node.observed.lock();
            observed.lead(view.term).tick(map);
            let judge = observed.knows_all(map);
            let placement = &node.config.placement;
            let standings = observed.standings(map);
            let settled = members.settled(standings.clone(), placement.settle);
            let asked =
                Asked { catalog: catalog.clone(), standings, rebalance: settled && placement.rebalance };
            let led = picture(map, &observed);
            let leaders_settled = leaders.settled(led.clone(), LEADERS_SETTLE);
            // Who may lead depends on where replicas are, too.
            let led = (map.epoch, asked.standings.clone(), led);
            let allowed = Allowed {
                judge,
                plan: complete.as_ref() != Some(&asked),
                rebalance: asked.rebalance,
                leaders: leaders_settled && even.as_ref() != Some(&led),
                moves_max: placement.moves_max,
            };
            let (steps, outlook) = plan::next(&catalog, &observed, allowed);
            if let Some(outlook) = outlook {
                observed.expects(outlook);
            }
            if allowed.leaders
                && !steps.iter().any(|step| matches!(step, Step::Start(_) | Step::Transfer { .. }))
            {
                even = Some(led);
            }
            (steps, asked, judge)
        };
        let changes = |step: &Step| matches!(step, Step::Start(_) | Step::Move { act: Act::TakeBack, .. });
        if judge && !steps.iter().any(changes) {
            complete = Some(asked);
        }
        for step in steps {
            carry_out(&node, &busy, view.term, step).await;
        }
    }
}

/// Who leads what, and who is up.
fn picture(map: &wire::ClusterMap, observed: &Observed) -> Vec<Option<NodeId>> {
    let leaders = map.shards.iter().map(|info| observed.leader(ShardId(info.id)));
    let up = map.nodes.iter().map(|info| Some(NodeId(info.id)).filter(|&node| observed.is_up(node)));
    leaders.chain(up).collect()
}

/// What a plan for moves is made from, figures apart.
#[derive(PartialEq)]
struct Asked {
    catalog: wire::Catalog,
    standings: Vec<Standing>,
    rebalance: bool,
}

async fn carry_out(node: &Arc<Node>, busy: &Arc<Busy>, term: u64, step: Step) {
    match step {
        Step::Start(mut start) => {
            start.stamp_ms = now_ms();
            tracing::info!(kind = ?start.kind(), node = start.node, moves = start.moves.len(), "moves are planned");
            record(node, Change::StartOperation(start)).await;
        }
        Step::End { operation } => {
            tracing::info!(operation, "the operation has ended");
            record(node, Change::EndOperation(wire::EndOperation { operation, stamp_ms: now_ms() })).await;
        }
        Step::Move { operation, position, act: Act::Wait(why), .. } => {
            node.observed.lock().waits(operation, position, Some(why));
        }
        Step::Move { operation, position, epoch, act: Act::Begin, group } => {
            tracing::info!(operation, %group, "a move begins");
            node.observed.lock().waits(operation, position, None);
            record(node, Change::BeginMove(wire::BeginMove { operation, r#move: position, epoch })).await;
            crash::reached("move-begun");
        }
        Step::Move { operation, position, act: Act::TakeBack, group, .. } => {
            tracing::info!(operation, %group, "a move is taken back");
            node.observed.lock().waits(operation, position, None);
            let undo = wire::UndoMove { operation, r#move: position, undone: false, epoch: 0 };
            record(node, Change::UndoMove(undo)).await;
            crash::reached("move-taken-back");
        }
        Step::Move { operation, position, group, epoch, act: Act::Switch { voters } } => {
            let finish = wire::FinishMove { operation, r#move: position, epoch };
            let request = wire::ReconfigureRequest {
                group: group.get(),
                voters: members(&voters),
                leader: 0,
                epoch,
                term,
            };
            switch(node, busy, (operation, position), request, Change::FinishMove(finish));
        }
        Step::Move { operation, position, group, epoch, act: Act::Undo { voters } } => {
            let undo = wire::UndoMove { operation, r#move: position, undone: true, epoch };
            let request = wire::ReconfigureRequest {
                group: group.get(),
                voters: members(&voters),
                leader: 0,
                epoch,
                term,
            };
            switch(node, busy, (operation, position), request, Change::UndoMove(undo));
        }
        Step::Transfer { group, epoch, to } => {
            let mut rested = busy.rested.lock();
            rested.retain(|_, since| since.elapsed() < TRANSFER_REST);
            if let Entry::Vacant(place) = rested.entry(group) {
                place.insert(Instant::now());
                drop(rested);
                let leader = to.get();
                let request =
                    wire::ReconfigureRequest { group: group.get(), voters: Vec::new(), leader, epoch, term };
                transfer(node, busy, request);
            }
        }
    }
}

/// Works on a group in the background, once at a time.
fn work(node: &Arc<Node>, busy: &Arc<Busy>, group: GroupId, work: impl Future<Output = ()> + Send + 'static) {
    if !busy.working.lock().insert(group) {
        return;
    }
    let (stopping, busy) = (Arc::clone(node), Arc::clone(busy));
    node.tasks.spawn(async move {
        let working = tokio::select! {
            result = tokio::time::timeout(STEP_MAX, work) => result,
            () = stopping.stop.cancelled() => Ok(()),
        };
        if working.is_err() {
            tracing::warn!(%group, "a placement step took too long and is tried again");
        }
        busy.working.lock().remove(&group);
    });
}

/// Brings the group's members to what `request` says, then records it.
fn switch(
    node: &Arc<Node>,
    busy: &Arc<Busy>,
    (operation, position): (u64, u32),
    request: wire::ReconfigureRequest,
    done: Change,
) {
    let driver = Arc::clone(node);
    let group = GroupId(request.group);
    work(node, busy, group, async move {
        // Before the change its leader may be one that is to go.
        let nodes = replica_nodes(&driver, group);
        match ask_leader(&driver, group, nodes, request).await {
            Ok(()) => {
                tracing::info!(operation, %group, "the members have changed");
                let of_catalog = group == GroupId::META;
                crash::reached(if of_catalog { "catalog-members-changed" } else { "members-changed" });
                driver.observed.lock().waits(operation, position, None);
                record(&driver, done).await;
                crash::reached(if of_catalog { "catalog-change-recorded" } else { "change-recorded" });
            }
            Err(why) => driver.observed.lock().waits(operation, position, Some(why)),
        }
    });
}

fn transfer(node: &Arc<Node>, busy: &Arc<Busy>, request: wire::ReconfigureRequest) {
    let driver = Arc::clone(node);
    let (group, to) = (GroupId(request.group), ReplicaId(request.leader));
    work(node, busy, group, async move {
        if let Err(waits) = ask_leader(&driver, group, replica_nodes(&driver, group), request).await {
            tracing::debug!(%group, %to, %waits, "leadership was not moved");
        }
    });
}

/// The nodes of all replicas of the group, whatever their role.
fn replica_nodes(node: &Node, group: GroupId) -> Vec<NodeId> {
    let map = node.catalog.map();
    let info = match group.shard() {
        Some(shard) => map.shards.into_iter().find(|info| info.id == shard.get()),
        None => map.meta,
    };
    info.iter().flat_map(|info| &info.replicas).map(|replica| NodeId(replica.node)).collect()
}

fn members(voters: &BTreeMap<ReplicaId, NodeId>) -> Vec<wire::ReplicaInfo> {
    let role = wire::ReplicaRole::Voter.into();
    voters
        .iter()
        .map(|(replica, node)| wire::ReplicaInfo { id: replica.get(), node: node.get(), role })
        .collect()
}

async fn record(node: &Arc<Node>, change: Change) {
    let command = wire::CatalogCommand { change: Some(change) };
    let Ok(reply) = tokio::time::timeout(RECORD_MAX, propose_local(node, &command)).await else {
        tracing::warn!("a placement step could not be recorded in time and is decided again");
        return;
    };
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
