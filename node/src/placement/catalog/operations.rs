//! Operations and their moves in the catalog: what may follow what.
//!
//! A move's step says what may have happened to the group's members, so a new meta leader knows where to go on: PENDING
//! nothing, COPYING a learner and perhaps the changed membership, UNDOING the way back, MOVED and DROPPED nothing more.

use borough_proto::wire::{self, MoveStep, NodeState, OperationKind, OperationState, ReplicaRole};

use super::{changed, group_mut, refuse};

/// Ended operations that are kept to be looked at.
const ENDED_MAX: usize = 50;

/// Whether moves of the operation may still change.
pub fn is_open(operation: &wire::Operation) -> bool {
    matches!(operation.state(), OperationState::Running | OperationState::Paused | OperationState::Cancelling)
}

/// Whether the move has yet to end.
pub fn is_unfinished(step: &wire::Move) -> bool {
    matches!(step.step(), MoveStep::Pending | MoveStep::Copying | MoveStep::Undoing)
}

/// Whether the node has a replica of any group.
pub fn holds_replicas(map: &wire::ClusterMap, node: u64) -> bool {
    let groups = map.shards.iter().chain(&map.meta);
    groups.flat_map(|group| &group.replicas).any(|replica| replica.node == node)
}

fn operation_mut(catalog: &mut wire::Catalog, id: u64) -> Option<&mut wire::Operation> {
    catalog.operations.iter_mut().find(|operation| operation.id == id)
}

fn node_mut(map: &mut wire::ClusterMap, id: u64) -> Option<&mut wire::NodeInfo> {
    map.nodes.iter_mut().find(|node| node.id == id && node.state() != NodeState::Removed)
}

pub(super) fn start(catalog: &mut wire::Catalog, start: wire::StartOperation) -> wire::CatalogReply {
    let Some(map) = catalog.map.as_mut() else { return refuse("the cluster is not initialised") };
    let kind = start.kind();
    let mut touched = false;
    if kind == OperationKind::Drain {
        let Some(node) = node_mut(map, start.node) else {
            return refuse(format!("there is no node {}", start.node));
        };
        if node.state() != NodeState::Draining {
            node.state = NodeState::Draining.into();
            map.epoch += 1;
            touched = true;
        }
    }
    if start.asked || kind == OperationKind::Drain {
        catalog.balance_held = false;
    }
    let moving: Vec<u32> = catalog
        .operations
        .iter()
        .flat_map(|operation| &operation.moves)
        .filter(|step| is_unfinished(step))
        .map(|step| step.group)
        .collect();
    let is_member = |id: u64| map.nodes.iter().any(|node| node.id == id && node.state() == NodeState::Member);
    let mut seen = Vec::new();
    let mut moves = start.moves;
    moves.retain(|step| {
        let fits = !moving.contains(&step.group)
            && !seen.contains(&step.group)
            && (step.to == 0 || is_member(step.to))
            && (step.from != 0 || step.to != 0);
        seen.push(step.group);
        fits
    });
    for step in &mut moves {
        step.step = MoveStep::Pending.into();
        step.learner = 0;
    }
    let same = |operation: &&mut wire::Operation| {
        matches!(operation.state(), OperationState::Running | OperationState::Paused)
            && operation.kind() == kind
            && operation.node == start.node
    };
    if let Some(operation) = catalog.operations.iter_mut().find(same) {
        touched |= !moves.is_empty() || (start.remove && !operation.remove);
        operation.remove |= start.remove;
        operation.moves.extend(moves);
        return wire::CatalogReply { changed: touched, operation: operation.id, ..Default::default() };
    }
    if moves.is_empty() && !start.asked && kind != OperationKind::Drain {
        return wire::CatalogReply::default();
    }
    let id = catalog.next_operation.max(1);
    catalog.next_operation = id + 1;
    catalog.operations.push(wire::Operation {
        id,
        kind: kind.into(),
        state: OperationState::Running.into(),
        node: start.node,
        remove: start.remove,
        moves,
        started_ms: start.stamp_ms,
        ended_ms: 0,
        reason: String::new(),
    });
    let ended = catalog.operations.iter().filter(|operation| !is_open(operation)).count();
    let mut forget = ended.saturating_sub(ENDED_MAX);
    catalog.operations.retain(|operation| {
        let forgotten = forget > 0 && !is_open(operation);
        forget -= usize::from(forgotten);
        !forgotten
    });
    wire::CatalogReply { operation: id, ..changed() }
}

pub(super) fn begin_move(catalog: &mut wire::Catalog, begin: &wire::BeginMove) -> wire::CatalogReply {
    let learner = catalog.next_replica;
    let wire::Catalog { map: Some(map), operations, next_replica, .. } = catalog else {
        return refuse("the cluster is not initialised");
    };
    let Some(step) = pending(operations, begin.operation, begin.r#move) else {
        return wire::CatalogReply::default();
    };
    let takes = |id: u64| map.nodes.iter().any(|node| node.id == id && node.state() == NodeState::Member);
    let open = step.to == 0 || takes(step.to);
    let Some(group) = group_mut(map, step.group) else {
        step.step = MoveStep::Dropped.into();
        return changed();
    };
    if group.epoch != begin.epoch || group.replicas.iter().any(|replica| replica.role() != ReplicaRole::Voter)
    {
        return wire::CatalogReply::default();
    }
    let held = |node: u64| group.replicas.iter().any(|replica| replica.node == node);
    // The last voter only goes when another comes.
    let last = step.to == 0 && group.replicas.len() < 2;
    if !open || last || (step.from != 0 && !held(step.from)) || (step.to != 0 && held(step.to)) {
        step.step = MoveStep::Dropped.into();
        return changed();
    }
    for replica in group.replicas.iter_mut().filter(|replica| replica.node == step.from) {
        replica.role = ReplicaRole::Leaving.into();
    }
    if step.to != 0 {
        group.replicas.push(wire::ReplicaInfo {
            id: learner,
            node: step.to,
            role: ReplicaRole::Learner.into(),
        });
        step.learner = learner;
        *next_replica += 1;
    }
    step.step = MoveStep::Copying.into();
    group.epoch += 1;
    map.epoch += 1;
    changed()
}

fn pending(operations: &mut [wire::Operation], id: u64, position: u32) -> Option<&mut wire::Move> {
    let operation = operations.iter_mut().find(|operation| operation.id == id)?;
    if operation.state() != OperationState::Running {
        return None;
    }
    let step = operation.moves.get_mut(usize::try_from(position).ok()?)?;
    (step.step() == MoveStep::Pending).then_some(step)
}

pub(super) fn finish_move(catalog: &mut wire::Catalog, finish: &wire::FinishMove) -> wire::CatalogReply {
    settle(catalog, finish.operation, finish.r#move, finish.epoch, MoveStep::Copying)
}

pub(super) fn undo_move(catalog: &mut wire::Catalog, undo: &wire::UndoMove) -> wire::CatalogReply {
    if undo.undone {
        return settle(catalog, undo.operation, undo.r#move, undo.epoch, MoveStep::Undoing);
    }
    let Some(operation) = operation_mut(catalog, undo.operation) else {
        return wire::CatalogReply::default();
    };
    let position = usize::try_from(undo.r#move).unwrap_or(usize::MAX);
    let Some(step) = operation.moves.get_mut(position) else { return wire::CatalogReply::default() };
    if take_back(step) { changed() } else { wire::CatalogReply::default() }
}

/// The move goes no further.
fn take_back(step: &mut wire::Move) -> bool {
    let to = match step.step() {
        MoveStep::Pending => MoveStep::Dropped,
        MoveStep::Copying => MoveStep::Undoing,
        MoveStep::Undoing | MoveStep::Moved | MoveStep::Dropped | MoveStep::Unspecified => return false,
    };
    step.step = to.into();
    true
}

/// The membership has become what a move in the step `at` wants: the map says so.
fn settle(
    catalog: &mut wire::Catalog,
    id: u64,
    position: u32,
    epoch: u64,
    at: MoveStep,
) -> wire::CatalogReply {
    let wire::Catalog { map: Some(map), operations, .. } = catalog else {
        return refuse("the cluster is not initialised");
    };
    let position = usize::try_from(position).unwrap_or(usize::MAX);
    let step = operations
        .iter_mut()
        .find(|operation| operation.id == id)
        .and_then(|operation| operation.moves.get_mut(position))
        .filter(|step| step.step() == at);
    let Some(step) = step else { return wire::CatalogReply::default() };
    let Some(group) = group_mut(map, step.group).filter(|group| group.epoch == epoch) else {
        return wire::CatalogReply::default();
    };
    let moved = at == MoveStep::Copying;
    let gone = if moved { ReplicaRole::Leaving } else { ReplicaRole::Learner };
    group.replicas.retain(|replica| replica.role() != gone);
    for replica in &mut group.replicas {
        replica.role = ReplicaRole::Voter.into();
    }
    step.step = if moved { MoveStep::Moved } else { MoveStep::Dropped }.into();
    group.epoch += 1;
    map.epoch += 1;
    changed()
}

pub(super) fn control(catalog: &mut wire::Catalog, control: &wire::ControlOperation) -> wire::CatalogReply {
    use wire::Control::{Cancel, Pause, Resume, Unspecified};
    let Some(operation) = operation_mut(catalog, control.operation) else {
        return refuse(format!("there is no operation {}", control.operation));
    };
    let id = operation.id;
    let done = |changed| wire::CatalogReply { operation: id, changed, ..Default::default() };
    match (control.control(), operation.state()) {
        (_, OperationState::Done | OperationState::Failed | OperationState::Cancelled) => {
            refuse(format!("operation {id} has ended"))
        }
        (Pause, OperationState::Running) => {
            operation.state = OperationState::Paused.into();
            done(true)
        }
        (Resume, OperationState::Paused) => {
            operation.state = OperationState::Running.into();
            done(true)
        }
        (Pause, OperationState::Paused)
        | (Resume, OperationState::Running)
        | (Cancel, OperationState::Cancelling) => done(false),
        (Pause | Resume, _) => refuse(format!("operation {id} is being cancelled")),
        (Cancel, _) if operation.kind() == OperationKind::Repair => refuse(format!(
            "operation {id} makes missing replicas anew and would start again at once; pause it instead"
        )),
        (Cancel, _) => {
            cancel(operation);
            if operation.kind() == OperationKind::Drain {
                let node = operation.node;
                reinstate(catalog, node);
            } else {
                catalog.balance_held = true;
            }
            done(true)
        }
        (Unspecified, _) => refuse("the control is not known to this build"),
    }
}

fn cancel(operation: &mut wire::Operation) {
    operation.state = OperationState::Cancelling.into();
    for step in &mut operation.moves {
        take_back(step);
    }
}

fn reinstate(catalog: &mut wire::Catalog, node: u64) -> bool {
    let Some(map) = catalog.map.as_mut() else { return false };
    let Some(info) = node_mut(map, node).filter(|info| info.state() == NodeState::Draining) else {
        return false;
    };
    info.state = NodeState::Member.into();
    map.epoch += 1;
    true
}

pub(super) fn undrain(catalog: &mut wire::Catalog, node: u64) -> wire::CatalogReply {
    if catalog.map.as_mut().is_none_or(|map| node_mut(map, node).is_none()) {
        return refuse(format!("node {node} was removed from the cluster"));
    }
    let drains = catalog.operations.iter_mut().filter(|operation| {
        operation.kind() == OperationKind::Drain
            && operation.node == node
            && matches!(operation.state(), OperationState::Running | OperationState::Paused)
    });
    let mut operation = 0;
    for drain in drains {
        cancel(drain);
        operation = drain.id;
    }
    let reinstated = reinstate(catalog, node);
    catalog.balance_held &= !reinstated;
    wire::CatalogReply { changed: reinstated || operation != 0, operation, ..Default::default() }
}

pub(super) fn remove_node(catalog: &mut wire::Catalog, node: u64) -> wire::CatalogReply {
    let Some(map) = catalog.map.as_mut() else { return refuse("the cluster is not initialised") };
    if !map.nodes.iter().any(|info| info.id == node) {
        return refuse(format!("there is no node {node}"));
    }
    if holds_replicas(map, node) {
        return refuse(format!("node {node} still has replicas; drain it first"));
    }
    let Some(info) = node_mut(map, node) else { return wire::CatalogReply::default() };
    info.state = NodeState::Removed.into();
    map.epoch += 1;
    changed()
}

pub(super) fn end(catalog: &mut wire::Catalog, end: &wire::EndOperation) -> wire::CatalogReply {
    let Some(operation) = operation_mut(catalog, end.operation) else { return wire::CatalogReply::default() };
    if operation.moves.iter().any(is_unfinished) {
        return wire::CatalogReply::default();
    }
    let (id, node, drain, remove) =
        (operation.id, operation.node, operation.kind() == OperationKind::Drain, operation.remove);
    let state = match operation.state() {
        OperationState::Running => OperationState::Done,
        OperationState::Cancelling => OperationState::Cancelled,
        _ => return wire::CatalogReply::default(),
    };
    if drain && state == OperationState::Done {
        if catalog.map.as_ref().is_some_and(|map| holds_replicas(map, node)) {
            return wire::CatalogReply::default();
        }
        if remove {
            let removed = remove_node(catalog, node);
            if !removed.refused.is_empty() {
                return removed;
            }
        }
    }
    if let Some(operation) = operation_mut(catalog, id) {
        operation.state = state.into();
        operation.ended_ms = end.stamp_ms;
    }
    wire::CatalogReply { operation: id, ..changed() }
}
