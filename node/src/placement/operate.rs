//! What people ask of placement: plans, operations, drains; answered by the meta leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use borough_proto::http_api::{
    MoveStatus, OperationList, OperationStatus, PlannedNode, PlannedShare, RebalancePlan,
};
use borough_proto::wire::{self, MoveStep, OperationKind, OperationState};
use borough_proto::{GroupId, NodeId};
use serde::Serialize;
use wire::catalog_command::Change;
use wire::operate_reply::Result as Kind;
use wire::operate_request::Call;

use super::balance;
use super::catalog;
use super::catalog::operations::{holds_replicas, is_open, is_unfinished};
use super::observe::Observed;
use super::plan;
use crate::clock::now_ms;
use crate::crash;
use crate::meta_leader::{self, propose_local};
use crate::node::Node;
use crate::raft::CATCHING_UP;

/// What an operation waits for that has yet to say how it goes on.
const PLANNED: &str = "its moves are being planned";
/// Between two looks at who has reported.
const HEAR_EVERY: Duration = Duration::from_millis(20);
/// Who is up has reported to a new leader by then: two reports' time.
pub const REPORTS_DUE: Duration = Duration::from_secs(1);

fn refused(result: Kind, why: impl Into<String>) -> wire::OperateReply {
    wire::OperateReply { result: result.into(), refused: why.into(), ..Default::default() }
}

fn answer(body: &impl Serialize) -> wire::OperateReply {
    match serde_json::to_string(body) {
        Ok(json) => wire::OperateReply { result: Kind::Ok.into(), json, ..Default::default() },
        Err(error) => refused(Kind::Refused, error.to_string()),
    }
}

/// Answers a call if this node leads the meta group.
pub async fn operate(node: &Arc<Node>, call: Call) -> wire::OperateReply {
    let Some(meta) = meta_leader::leading(node).await else {
        let leader = node.meta().and_then(|meta| meta.leader_node());
        return wire::OperateReply {
            not_leader: true,
            leader_node: leader.map_or(0, NodeId::get),
            ..Default::default()
        };
    };
    let term = meta.view().term;
    match call {
        Call::Rebalance(_) | Call::Drain(_) | Call::Remove(_) => hear_all(node, term, Duration::MAX).await,
        Call::Get(_) | Call::Undrain(_) | Call::Control(_) => hear_all(node, term, REPORTS_DUE).await,
    }
    let _one_at_a_time = match &call {
        Call::Get(_) | Call::Rebalance(wire::Rebalance { validate_only: true }) => None,
        _ => Some(node.operating.lock().await),
    };
    let catalog = node.catalog.catalog();
    let Some(map) = &catalog.map else {
        return refused(Kind::Refused, "the cluster is not initialised");
    };
    let known = |id: u64| map.nodes.iter().any(|info| info.id == id);
    let change = match call {
        Call::Get(0) => {
            let observed = node.observed.lock();
            let items =
                catalog.operations.iter().rev().map(|operation| status(&catalog, operation, &observed, true));
            return answer(&OperationList { items: items.collect() });
        }
        Call::Get(id) => return show(node, &catalog, id),
        Call::Rebalance(wire::Rebalance { validate_only: true }) => {
            return answer(&rebalance_plan(&catalog, map, &node.observed.lock()));
        }
        Call::Rebalance(wire::Rebalance { validate_only: false }) => {
            let moves = {
                let observed = node.observed.lock();
                // While it is not known who stays, it waits.
                let known = plan::silent_members(map, &observed).is_empty();
                if known { plan::missing_moves(&catalog, &observed) } else { Vec::new() }
            };
            // Repairs go on by themselves, and drains are asked for.
            Change::StartOperation(wire::StartOperation {
                kind: OperationKind::Rebalance.into(),
                moves: moves.into_iter().filter(|step| step.from != 0 && step.to != 0).collect(),
                stamp_ms: now_ms(),
                asked: true,
                ..Default::default()
            })
        }
        Call::Drain(id) | Call::Remove(id) | Call::Undrain(id) if !known(id) => {
            return refused(Kind::NotFound, format!("there is no node {id}"));
        }
        Call::Remove(id) if !holds_replicas(map, id) => Change::RemoveNode(wire::RemoveNode { node: id }),
        Call::Drain(id) => match drain(&catalog, map, &node.observed.lock(), id, false) {
            Ok(start) => start,
            Err(why) => return refused(Kind::Refused, why),
        },
        Call::Remove(id) => match drain(&catalog, map, &node.observed.lock(), id, true) {
            Ok(start) => start,
            Err(why) => return refused(Kind::Refused, why),
        },
        Call::Undrain(id) => Change::Undrain(wire::Undrain { node: id }),
        Call::Control(control) => {
            if !catalog.operations.iter().any(|operation| operation.id == control.operation) {
                return refused(Kind::NotFound, format!("there is no operation {}", control.operation));
            }
            Change::ControlOperation(control)
        }
    };
    let proposed = propose_local(node, &wire::CatalogCommand { change: Some(change) }).await;
    let Some(reply) = proposed.reply else {
        return wire::OperateReply {
            not_leader: true,
            leader_node: proposed.leader_node,
            ..Default::default()
        };
    };
    if !reply.refused.is_empty() {
        return refused(Kind::Refused, reply.refused);
    }
    crash::reached("call-recorded");
    {
        let mut observed = node.observed.lock();
        // Why its moves waited may no longer be so.
        observed.forget_waits(reply.operation);
        let outlook = plan::outlook(&node.catalog.catalog(), &observed);
        observed.expects(outlook);
    }
    let shown = match reply.operation {
        0 => wire::OperateReply { result: Kind::Ok.into(), ..Default::default() },
        operation => show(node, &node.catalog.catalog(), operation),
    };
    wire::OperateReply { epoch: reply.epoch, ..shown }
}

/// Waits until it is known how each node stands, at the beginning of a `term` that this node leads: at most until a node
/// that has not reported would be silent, and no longer than `patience` from that beginning.
pub async fn hear_all(node: &Node, term: u64, patience: Duration) {
    let catalog = node.catalog.catalog();
    let Some(map) = &catalog.map else { return };
    loop {
        {
            let mut observed = node.observed.lock();
            observed.lead(term).tick(map);
            if observed.knows_all(map) || observed.listens_for() >= patience {
                if observed.outlook().is_none() {
                    let outlook = plan::outlook(&catalog, &observed);
                    observed.expects(outlook);
                }
                return;
            }
        }
        tokio::time::sleep(HEAR_EVERY).await;
    }
}

fn show(node: &Node, catalog: &wire::Catalog, id: u64) -> wire::OperateReply {
    match catalog.operations.iter().find(|operation| operation.id == id) {
        Some(operation) => {
            let shown = answer(&status(catalog, operation, &node.observed.lock(), true));
            wire::OperateReply { operation: id, ..shown }
        }
        None => refused(Kind::NotFound, format!("there is no operation {id}")),
    }
}

fn drain(
    catalog: &wire::Catalog,
    map: &wire::ClusterMap,
    observed: &Observed,
    id: u64,
    remove: bool,
) -> Result<Change, String> {
    let info = map.nodes.iter().find(|info| info.id == id);
    if info.is_some_and(|info| info.state() == wire::NodeState::Removed) {
        return Err(format!("node {id} was removed from the cluster"));
    }
    if info.is_some_and(|info| info.state() != wire::NodeState::Draining)
        && let Some(why) = plan::cannot_drain(catalog, observed, NodeId(id))
    {
        return Err(why);
    }
    let start = wire::StartOperation {
        kind: OperationKind::Drain.into(),
        node: id,
        remove,
        stamp_ms: now_ms(),
        ..Default::default()
    };
    // Its moves are those that are missing once the node counts as leaving.
    let mut leaving = catalog.clone();
    catalog::apply(
        &mut leaving,
        wire::CatalogCommand { change: Some(Change::StartOperation(start.clone())) },
    );
    let moves = plan::missing_moves(&leaving, observed).into_iter().filter(|step| step.from == id);
    Ok(Change::StartOperation(wire::StartOperation { moves: moves.collect(), ..start }))
}

fn some(node: u64) -> Option<u64> {
    (node != 0).then_some(node)
}

fn move_status(step: &wire::Move) -> MoveStatus {
    let name = match step.step() {
        MoveStep::Pending | MoveStep::Unspecified => "planned",
        MoveStep::Copying => "copying",
        MoveStep::Undoing => "undoing",
        MoveStep::Moved => "done",
        MoveStep::Dropped => "cancelled",
    };
    MoveStatus {
        shard: GroupId(step.group).shard().map(|shard| shard.get()),
        from: some(step.from),
        to: some(step.to),
        bytes: step.bytes,
        step: name.to_owned(),
        waits: None,
    }
}

/// An operation for people, with its moves or without.
pub fn status(
    catalog: &wire::Catalog,
    operation: &wire::Operation,
    observed: &Observed,
    with_moves: bool,
) -> OperationStatus {
    let counted = || operation.moves.iter().filter(|step| step.step() != MoveStep::Dropped);
    let done = |step: &&wire::Move| step.step() == MoveStep::Moved;
    let arrived = |step: &wire::Move| match step.step() {
        MoveStep::Moved => step.bytes,
        MoveStep::Copying => {
            let report = observed.latest(NodeId(step.to));
            let replica =
                report.and_then(|report| report.replicas.iter().find(|it| it.replica == step.learner));
            replica.map_or(0, |replica| replica.bytes.min(step.bytes))
        }
        _ => 0,
    };
    let moves = plan::listed(operation).map(|(position, step)| MoveStatus {
        waits: waiting(observed, operation, position, step).filter(|_| is_unfinished(step)),
        ..move_status(step)
    });
    let kind = match operation.kind() {
        OperationKind::Rebalance | OperationKind::Unspecified => "rebalance",
        OperationKind::Drain => "drain",
        OperationKind::Repair => "repair",
    };
    let state = match operation.state() {
        OperationState::Running | OperationState::Cancelling | OperationState::Unspecified => "running",
        OperationState::Paused => "paused",
        OperationState::Done => "done",
        OperationState::Failed => "failed",
        OperationState::Cancelled => "cancelled",
    };
    let empty = wire::ClusterMap::default();
    let (moves_total, bytes_total) = plan::total(catalog.map.as_ref().unwrap_or(&empty), observed, operation);
    OperationStatus {
        id: operation.id.to_string(),
        kind: kind.to_owned(),
        state: state.to_owned(),
        moves_done: counted().filter(done).count() as u64,
        moves_total,
        bytes_done: counted().map(arrived).sum(),
        bytes_total,
        node: some(operation.node),
        started_ms: operation.started_ms,
        ended_ms: some(operation.ended_ms),
        waits: why_it_waits(catalog, operation, observed),
        moves: with_moves.then(|| moves.collect()),
    }
}

/// Why nothing of it moves, when nothing does.
fn why_it_waits(catalog: &wire::Catalog, operation: &wire::Operation, observed: &Observed) -> Option<String> {
    if !is_open(operation) {
        return Some(operation.reason.clone()).filter(|reason| !reason.is_empty());
    }
    match operation.state() {
        OperationState::Cancelling => return Some("it is being cancelled".to_owned()),
        OperationState::Paused => return Some("it is paused".to_owned()),
        _ => {}
    }
    let mut unfinished = (0_u32..).zip(&operation.moves).filter(|(_, step)| is_unfinished(step)).peekable();
    if unfinished.peek().is_none() {
        let map = catalog.map.as_ref()?;
        if operation.kind() != OperationKind::Drain {
            let more = observed.outlook().is_some_and(|outlook| outlook.has_more(operation));
            if !more {
                return None;
            }
            let silent = plan::silent_members(map, observed);
            let repairs = operation.kind() == OperationKind::Rebalance
                && observed.outlook().is_some_and(plan::Outlook::repairs);
            return Some(match silent.first() {
                _ if repairs => "missing replicas are made anew first".to_owned(),
                _ if !plan::moving_groups(catalog).is_empty() => {
                    "other operations are moving the shards that it has left".to_owned()
                }
                Some(node) => format!("node {node} is silent"),
                None => PLANNED.to_owned(),
            });
        }
        return holds_replicas(map, operation.node).then(|| {
            let moving = plan::moving_groups(catalog);
            let other = map.shards.iter().chain(&map.meta).zip(plan::groups_of(map)).find(|(info, group)| {
                moving.contains(group) && info.replicas.iter().any(|replica| replica.node == operation.node)
            });
            if let Some((_, group)) = other {
                return format!("{} is being moved by another operation", group.title());
            }
            let cannot = plan::cannot_drain(catalog, observed, NodeId(operation.node));
            cannot.unwrap_or_else(|| PLANNED.to_owned())
        });
    }
    // Something moves as long as one of them does not wait.
    let whys: Option<Vec<String>> = unfinished
        .map(|(position, step)| {
            waiting(observed, operation, position, step).filter(|why| !why.starts_with(CATCHING_UP))
        })
        .collect();
    whys.and_then(|whys| whys.into_iter().next())
}

/// Why a move waits. What a silent node lacks says nothing: it does not come nearer to it.
fn waiting(
    observed: &Observed,
    operation: &wire::Operation,
    position: u32,
    step: &wire::Move,
) -> Option<String> {
    if step.step() == MoveStep::Copying && step.to != 0 && !observed.is_up(NodeId(step.to)) {
        return Some(format!("node {} is silent", step.to));
    }
    observed.waiting(operation.id, position).map(str::to_owned)
}

/// What a rebalance would do now.
fn rebalance_plan(catalog: &wire::Catalog, map: &wire::ClusterMap, observed: &Observed) -> RebalancePlan {
    let cluster = plan::cluster(catalog, map, observed);
    let plan = balance::plan(&cluster);
    let mut nodes: BTreeMap<NodeId, PlannedNode> = cluster
        .nodes
        .iter()
        .map(|node| (node.id, PlannedNode { id: node.id.get(), ..Default::default() }))
        .collect();
    let mut leaders: BTreeMap<GroupId, NodeId> = BTreeMap::new();
    for group in &cluster.groups {
        for replica in &group.replicas {
            if let Some(node) = nodes.get_mut(replica) {
                for share in [&mut node.before, &mut node.after] {
                    share.replicas += 1;
                    share.bytes += group.bytes;
                }
            }
        }
        if let Some(leader) = group.leader {
            leaders.insert(group.id, leader);
            if let Some(node) = nodes.get_mut(&leader) {
                node.before.leaders += 1;
            }
        }
    }
    let size = |group: GroupId| cluster.groups.iter().find(|it| it.id == group).map_or(0, |it| it.bytes);
    for step in &plan.moves {
        let change = |share: &mut PlannedShare, sign: bool| {
            let bytes = size(step.group);
            if sign {
                share.replicas += 1;
                share.bytes += bytes;
            } else {
                share.replicas = share.replicas.saturating_sub(1);
                share.bytes = share.bytes.saturating_sub(bytes);
            }
        };
        for (node, sign) in [(step.from, false), (step.to, true)] {
            if let Some(node) = node.and_then(|node| nodes.get_mut(&node)) {
                change(&mut node.after, sign);
            }
        }
    }
    for transfer in &plan.transfers {
        leaders.insert(transfer.group, transfer.to);
    }
    for leader in leaders.values() {
        if let Some(node) = nodes.get_mut(leader) {
            node.after.leaders += 1;
        }
    }
    let moves: Vec<MoveStatus> = plan::missing_moves(catalog, observed).iter().map(move_status).collect();
    RebalancePlan {
        transfers: plan.transfers.len() as u64,
        bytes: plan.moves.iter().map(|step| step.bytes).sum(),
        moves,
        nodes: nodes.into_values().collect(),
        short: plan.short.iter().filter_map(|group| group.shard()).map(|shard| shard.get()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_move_to_a_silent_node_waits_for_that_whatever_it_lacks() {
        let mut observed = Observed::new(Duration::from_secs(3), Duration::from_secs(60));
        let step =
            wire::Move { group: 2, from: 1, to: 4, step: MoveStep::Copying.into(), ..Default::default() };
        let operation = wire::Operation {
            id: 7,
            kind: OperationKind::Rebalance.into(),
            state: OperationState::Running.into(),
            moves: vec![step],
            ..Default::default()
        };
        let map = wire::ClusterMap {
            nodes: vec![wire::NodeInfo { id: 4, ..Default::default() }],
            ..Default::default()
        };
        let catalog = wire::Catalog {
            map: Some(map.clone()),
            operations: vec![operation.clone()],
            ..Default::default()
        };
        observed.lead(1).report(wire::NodeReport { node: 4, ..Default::default() });
        let catching_up = format!("{CATCHING_UP}replica r9 is at entry 116 of 832");
        observed.waits(7, 0, Some(catching_up.clone()));
        let told = |observed: &Observed| {
            let told = status(&catalog, &operation, observed, true);
            (told.waits, told.moves.unwrap_or_default().pop().and_then(|step| step.waits))
        };
        assert_eq!(told(&observed), (None, Some(catching_up)));
        tokio::time::advance(Duration::from_secs(10)).await;
        observed.tick(&map);
        let silent = Some("node 4 is silent".to_owned());
        assert_eq!(told(&observed), (silent.clone(), silent));
    }
}
