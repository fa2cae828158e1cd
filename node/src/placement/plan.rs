//! What the meta leader does next, decided purely from the catalog and what nodes report.
//!
//! Where replicas should be is [`super::balance`]'s decision; here it becomes operations with moves, and each move the next
//! step of its way. All that was decided is in the catalog, so that a new meta leader decides the same.

use std::collections::{BTreeMap, BTreeSet};

use borough_proto::wire::{self, MoveStep, NodeState, OperationKind, OperationState, ReplicaRole};
use borough_proto::{GroupId, NodeId, ReplicaId, ShardId};

use super::balance::{self, Cluster, Standing};
use super::catalog::operations::{holds_replicas, is_open, is_unfinished};
use super::observe::{Health, Observed};

/// Most members of the meta group.
const META_REPLICAS_MAX: usize = 5;

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Record moves that are to be made.
    Start(wire::StartOperation),
    /// The next step of a move: `wait` tells why there is none to do now.
    Move { operation: u64, position: u32, group: GroupId, epoch: u64, act: Act },
    /// Record that an operation has ended.
    End { operation: u64 },
    /// Move the leadership.
    Transfer { group: GroupId, epoch: u64, to: ReplicaId },
}

/// What a move needs next.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Record that it begins.
    Begin,
    /// Bring the group's voters to these, then record that it is done.
    Switch { voters: BTreeMap<ReplicaId, NodeId> },
    /// Record that it is taken back, or needs nothing more.
    TakeBack,
    /// Bring the group's voters back to these, then record it.
    Undo { voters: BTreeMap<ReplicaId, NodeId> },
    /// Nothing now.
    Wait(String),
}

/// What the driver's settings and clock allow now.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    /// Judge nodes as gone and operations as over: not before every node could report in this term.
    pub judge: bool,
    /// Look for moves that are missing: where none were, none are until something changes.
    pub plan: bool,
    /// Start a rebalance that nobody asked for.
    pub rebalance: bool,
    /// Move leaders.
    pub leaders: bool,
    /// Moves under way at once.
    pub moves_max: usize,
}

/// A node's moves under way at once.
const MOVES_PER_NODE_MAX: usize = 2;

/// The operation to which moves belong: its kind, and the node for a drain.
type Belongs = (OperationKind, u64);

/// Moves and bytes of operations from the first to the last, as of the last plan. A group has one recorded move at a
/// time, and what it needs besides is recorded when that is made: this counts both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outlook(BTreeMap<Belongs, (u64, u64)>);

impl Outlook {
    fn new(
        catalog: &wire::Catalog,
        map: &wire::ClusterMap,
        observed: &Observed,
        missing: &[wire::Move],
    ) -> Self {
        let mut totals: BTreeMap<Belongs, (u64, u64)> = BTreeMap::new();
        let missing = missing.iter().map(|step| (belongs(step, map, observed), count(step)));
        let recorded = catalog
            .operations
            .iter()
            .filter(|operation| goes_on(operation))
            .map(|operation| ((operation.kind(), operation.node), recorded(operation)));
        for (belongs, (moves, bytes)) in missing.chain(recorded) {
            let (all_moves, all_bytes) = totals.entry(belongs).or_default();
            *all_moves += moves;
            *all_bytes += bytes;
        }
        Self(totals)
    }

    /// Moves and bytes that the operation has in all.
    pub fn total(&self, operation: &wire::Operation) -> (u64, u64) {
        let planned = self.0.get(&(operation.kind(), operation.node)).filter(|_| goes_on(operation));
        most(recorded(operation), planned.copied().unwrap_or_default())
    }

    /// Whether moves of the operation have yet to be recorded. What is even is known when replicas that are missing are made.
    pub fn has_more(&self, operation: &wire::Operation) -> bool {
        let repairs = || operation.kind() == OperationKind::Rebalance && self.repairs();
        self.total(operation).0 > recorded(operation).0 || (goes_on(operation) && repairs())
    }

    /// Whether replicas are being made anew, or are to be.
    pub fn repairs(&self) -> bool {
        self.0.keys().any(|(kind, _)| *kind == OperationKind::Repair)
    }
}

/// Moves and bytes that the operation has in all, as far as that is known.
pub fn total(map: &wire::ClusterMap, observed: &Observed, operation: &wire::Operation) -> (u64, u64) {
    let planned = observed.outlook().map_or_else(|| recorded(operation), |outlook| outlook.total(operation));
    if operation.kind() != OperationKind::Drain || !goes_on(operation) {
        return planned;
    }
    // What is still there has to go, whether a place for it is known now or not.
    let made = operation.moves.iter().filter(|step| step.step() == MoveStep::Moved).map(count);
    // One that is on its way there is taken back.
    let leaves = |replica: &wire::ReplicaInfo| {
        replica.node == operation.node && replica.role() != ReplicaRole::Learner
    };
    let here = |info: &wire::ShardInfo| info.replicas.iter().any(leaves);
    let recorded = |info: &wire::ShardInfo| {
        let group = GroupId::from(ShardId(info.id)).get();
        let step = operation.moves.iter().find(|step| step.group == group && is_unfinished(step));
        step.map_or_else(|| bytes_of(ShardId(info.id), observed), |step| step.bytes)
    };
    let held = map.shards.iter().filter(|info| here(info)).map(|info| (1, recorded(info)));
    let catalog = map.meta.iter().filter(|info| here(info)).map(|_| (1, 0));
    sum(made.chain(held).chain(catalog))
}

fn sum(counts: impl Iterator<Item = (u64, u64)>) -> (u64, u64) {
    counts.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

fn most(one: (u64, u64), other: (u64, u64)) -> (u64, u64) {
    (one.0.max(other.0), one.1.max(other.1))
}

/// Whether more moves may be recorded for the operation.
fn goes_on(operation: &wire::Operation) -> bool {
    matches!(operation.state(), OperationState::Running | OperationState::Paused)
}

fn count(step: &wire::Move) -> (u64, u64) {
    (1, step.bytes)
}

/// Recorded moves and their bytes.
fn recorded(operation: &wire::Operation) -> (u64, u64) {
    sum(listed(operation).map(|(_, step)| count(step)))
}

/// The operation's moves with their positions, without those that were dropped, as what is still missing is planned anew. Of
/// a cancelled operation the last of each group is what became of it; those before it had been planned anew.
pub fn listed(operation: &wire::Operation) -> impl Iterator<Item = (u32, &wire::Move)> {
    let cancelled = matches!(operation.state(), OperationState::Cancelling | OperationState::Cancelled);
    let mut last: BTreeMap<u32, u32> = BTreeMap::new();
    if cancelled {
        last.extend((0..).zip(&operation.moves).map(|(position, step)| (step.group, position)));
    }
    (0..).zip(&operation.moves).filter(move |(position, step)| {
        step.step() != MoveStep::Dropped || last.get(&step.group) == Some(position)
    })
}

/// The next steps, and what all of them amount to: `None` when nothing was planned.
pub fn next(catalog: &wire::Catalog, observed: &Observed, allowed: Allowed) -> (Vec<Step>, Option<Outlook>) {
    let Some(map) = &catalog.map else { return (Vec::new(), None) };
    let look = allowed.judge && allowed.plan;
    let missing = if look { all_missing(catalog, observed, Silent::Closed) } else { Vec::new() };
    // What is even depends on who stays: while that is not known of somebody, nothing is moved for it.
    let known = all_up(map, observed);
    let anew = look && known && is_shorter_anew(catalog, observed, &missing);
    let mut moves = moves(catalog, map, observed, anew, allowed.moves_max);
    if !allowed.judge {
        moves.retain(|step| !matches!(step, Step::Move { act: Act::TakeBack, .. }));
    }
    let acts = |which: fn(&Act) -> bool| {
        moves.iter().any(|step| matches!(step, Step::Move { act, .. } if which(act)))
    };
    // What is about to be taken back is planned anew when it is.
    let taking_back = acts(|act| matches!(act, Act::TakeBack));
    let (mut steps, outlook) = if look && !taking_back {
        let outlook =
            if known { Outlook::new(catalog, map, observed, &missing) } else { outlook(catalog, observed) };
        (start(catalog, map, observed, missing, allowed, known), Some(outlook))
    } else {
        (Vec::new(), None)
    };
    let starting = !steps.is_empty();
    steps.extend(moves);
    if allowed.judge
        && !starting
        && let Some(outlook) = outlook.as_ref().or_else(|| observed.outlook())
    {
        steps.extend(ended(catalog, map, outlook));
    }
    if allowed.leaders && !starting {
        steps.extend(leaders(map, observed));
    }
    (steps, outlook)
}

fn belongs(step: &wire::Move, map: &wire::ClusterMap, observed: &Observed) -> Belongs {
    match map.nodes.iter().find(|node| node.id == step.from) {
        Some(node) if node.state() == NodeState::Draining => (OperationKind::Drain, node.id),
        Some(node) if step.to != 0 && observed.health(NodeId(node.id)) != Health::Down => {
            (OperationKind::Rebalance, 0)
        }
        Some(_) | None => (OperationKind::Repair, 0),
    }
}

/// Moves that are missing from the operations.
fn start(
    catalog: &wire::Catalog,
    map: &wire::ClusterMap,
    observed: &Observed,
    missing: Vec<wire::Move>,
    allowed: Allowed,
    known: bool,
) -> Vec<Step> {
    let mut wanted: BTreeMap<Belongs, Vec<wire::Move>> = BTreeMap::new();
    let mut seen: BTreeSet<u32> = moving_groups(catalog).into_iter().map(GroupId::get).collect();
    for step in missing {
        // A group has one move at a time, and the most urgent comes first.
        if seen.insert(step.group) {
            wanted.entry(belongs(&step, map, observed)).or_default().push(step);
        }
    }
    let rebalance = |state: OperationState| {
        let mut operations = catalog.operations.iter();
        operations.any(|operation| operation.kind() == OperationKind::Rebalance && operation.state() == state)
    };
    let asked = rebalance(OperationState::Running);
    // What is missing is seen when it is resumed.
    let paused = rebalance(OperationState::Paused);
    if paused || !known || (!asked && (!allowed.rebalance || catalog.balance_held)) {
        wanted.remove(&(OperationKind::Rebalance, 0));
    }
    let start = |((kind, node), moves): (Belongs, _)| {
        Step::Start(wire::StartOperation { kind: kind.into(), node, moves, ..Default::default() })
    };
    wanted.into_iter().map(start).collect()
}

/// What operations have in all, by what is missing now. It does not change with each silence: a node that may be down has
/// neither lost its replicas nor the place for others until it is.
pub fn outlook(catalog: &wire::Catalog, observed: &Observed) -> Outlook {
    let missing = all_missing(catalog, observed, Silent::Open);
    catalog.map.as_ref().map(|map| Outlook::new(catalog, map, observed, &missing)).unwrap_or_default()
}

/// What is between where replicas will be, once all recorded moves are made, and where they should be, as far as it
/// can be recorded now: a group that is being moved comes later.
pub fn missing_moves(catalog: &wire::Catalog, observed: &Observed) -> Vec<wire::Move> {
    let moving = moving_groups(catalog);
    let mut missing = all_missing(catalog, observed, Silent::Closed);
    missing.retain(|step| !moving.contains(&GroupId(step.group)));
    missing
}

/// What a node counts as that is neither up nor down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silent {
    /// It keeps what it has, and gets nothing.
    Closed,
    /// It will be up again.
    Open,
}

/// Whether every node is up, of those that stay.
fn all_up(map: &wire::ClusterMap, observed: &Observed) -> bool {
    map.nodes.iter().all(|node| {
        node.state() == NodeState::Removed || standing(node, observed, Silent::Closed) != Standing::Closed
    })
}

/// All of it, the most urgent first.
fn all_missing(catalog: &wire::Catalog, observed: &Observed, silent: Silent) -> Vec<wire::Move> {
    let Some(map) = &catalog.map else { return Vec::new() };
    let mut cluster = cluster_with(catalog, map, observed, silent);
    for node in cluster.nodes.iter_mut().filter(|node| drain_paused(catalog, node.id)) {
        // It keeps what it has until the drain goes on, or its moves would stand in the way of repairs.
        if observed.health(node.id) != Health::Down {
            node.standing = Standing::Closed;
        }
    }
    let node = |node: Option<NodeId>| node.map_or(0, NodeId::get);
    let shards = balance::plan(&cluster).moves.into_iter().map(|step| wire::Move {
        group: step.group.get(),
        from: node(step.from),
        to: node(step.to),
        bytes: step.bytes,
        step: MoveStep::Pending.into(),
        learner: 0,
    });
    // The replica that a group has lost may be the one that its move takes away.
    let moving = moving_groups(catalog);
    let lost = lost_replicas(map, observed).filter(|step| !moving.contains(&GroupId(step.group)));
    let of_catalog = meta_moves(map, &cluster, unfinished(catalog).get(&GroupId::META.get()));
    lost.chain(of_catalog).chain(shards).collect()
}

/// Voters whose data is gone: they leave, and the group gets another one in their place.
fn lost_replicas<'a>(
    map: &'a wire::ClusterMap,
    observed: &'a Observed,
) -> impl Iterator<Item = wire::Move> + 'a {
    let meta = map.meta.iter().map(|info| (GroupId::META, info));
    let groups = meta.chain(map.shards.iter().map(|info| (GroupId::from(ShardId(info.id)), info)));
    groups.filter_map(|(group, info)| {
        let lost = |replica: &&wire::ReplicaInfo| observed.has_lost(NodeId(replica.node), replica.id);
        let lost = info.replicas.iter().find(lost).filter(|_| info.replicas.len() > 1)?;
        let (group, step) = (group.get(), MoveStep::Pending.into());
        Some(wire::Move { group, from: lost.node, to: 0, bytes: 0, step, learner: 0 })
    })
}

/// The shards as they will be once all recorded moves are made.
pub fn cluster(catalog: &wire::Catalog, map: &wire::ClusterMap, observed: &Observed) -> Cluster {
    cluster_with(catalog, map, observed, Silent::Closed)
}

fn cluster_with(
    catalog: &wire::Catalog,
    map: &wire::ClusterMap,
    observed: &Observed,
    silent: Silent,
) -> Cluster {
    let moving = unfinished(catalog);
    let groups = map.shards.iter().map(|info| {
        let shard = ShardId(info.id);
        let leader = observed.leader(shard);
        let report = furthest(shard, observed);
        let group = GroupId::from(shard);
        balance::Group {
            id: group,
            bytes: report.map_or(0, |report| report.bytes),
            load: report.map_or(0.0, |report| report.reads_per_second + report.writes_per_second),
            replicas: settled(info, moving.get(&group.get())),
            leader,
        }
    });
    let nodes =
        map.nodes.iter().filter(|node| node.state() != NodeState::Removed).map(|node| balance::Node {
            id: NodeId(node.id),
            zone: node.zone.clone(),
            standing: standing(node, observed, silent),
        });
    Cluster {
        replication_factor: map.replication_factor as usize,
        nodes: nodes.collect(),
        groups: groups.collect(),
    }
}

/// What the leader says of the shard; without one, the replica that is furthest.
fn furthest(shard: ShardId, observed: &Observed) -> Option<&wire::ReplicaReport> {
    let leader = observed.leader(shard);
    let reports = observed.replicas(shard);
    let last = reports.max_by_key(|(node, report)| (Some(*node) == leader, report.applied_index));
    last.map(|(_, report)| report)
}

fn bytes_of(shard: ShardId, observed: &Observed) -> u64 {
    furthest(shard, observed).map_or(0, |report| report.bytes)
}

fn drain_paused(catalog: &wire::Catalog, node: NodeId) -> bool {
    catalog.operations.iter().any(|operation| {
        operation.kind() == OperationKind::Drain
            && operation.state() == OperationState::Paused
            && operation.node == node.get()
    })
}

fn standing(node: &wire::NodeInfo, observed: &Observed, silent: Silent) -> Standing {
    let id = NodeId(node.id);
    if node.state() == NodeState::Draining || observed.health(id) == Health::Down {
        Standing::Leaving
    } else if silent == Silent::Open || (observed.is_up(id) && !observed.is_leaving(id)) {
        Standing::Open
    } else {
        Standing::Closed
    }
}

/// Unfinished moves by group; there is at most one of each.
fn unfinished(catalog: &wire::Catalog) -> BTreeMap<u32, &wire::Move> {
    let operations = catalog.operations.iter().filter(|operation| is_open(operation));
    let moves = operations.flat_map(|operation| &operation.moves).filter(|step| is_unfinished(step));
    moves.map(|step| (step.group, step)).collect()
}

/// Where a group's replicas will be once its move is made.
fn settled(info: &wire::ShardInfo, step: Option<&&wire::Move>) -> Vec<NodeId> {
    let undoing = step.is_some_and(|step| step.step() == MoveStep::Undoing);
    let stays = |replica: &&wire::ReplicaInfo| match replica.role() {
        ReplicaRole::Learner => !undoing,
        ReplicaRole::Leaving => undoing,
        ReplicaRole::Voter | ReplicaRole::Unspecified => true,
    };
    let mut nodes: Vec<u64> = info.replicas.iter().filter(stays).map(|replica| replica.node).collect();
    if let Some(step) = step.filter(|step| step.step() == MoveStep::Pending) {
        nodes.retain(|&node| node != step.from);
        nodes.extend(Some(step.to).filter(|&to| to != 0 && !nodes.contains(&to)));
    }
    nodes.into_iter().map(NodeId).collect()
}

/// Members that the meta group should have: an even number above two only adds a node that can fail.
fn meta_target(nodes: usize) -> usize {
    match nodes.min(META_REPLICAS_MAX) {
        4 => 3,
        count => count,
    }
}

/// The meta group's moves, one after the other, once the one under way is made.
fn meta_moves(map: &wire::ClusterMap, cluster: &Cluster, under_way: Option<&&wire::Move>) -> Vec<wire::Move> {
    let Some(info) = map.meta.as_ref() else { return Vec::new() };
    let mut members = settled(info, under_way);
    let mut moves = Vec::new();
    // Each brings it nearer to where it should be: in no more steps than there are nodes to leave and to enter.
    while moves.len() <= map.nodes.len() * 2
        && let Some(step) = meta_move(&members, cluster)
    {
        members.retain(|member| member.get() != step.from);
        members.extend(Some(NodeId(step.to)).filter(|_| step.to != 0));
        moves.push(step);
    }
    moves
}

/// The meta group's next move: off nodes that leave, to as many members as there should be.
fn meta_move(members: &[NodeId], cluster: &Cluster) -> Option<wire::Move> {
    let standing: BTreeMap<NodeId, (Standing, &str)> =
        cluster.nodes.iter().map(|node| (node.id, (node.standing, node.zone.as_str()))).collect();
    let leaves =
        |node: &NodeId| standing.get(node).is_none_or(|(standing, _)| *standing == Standing::Leaving);
    let staying = standing.values().filter(|(standing, _)| *standing != Standing::Leaving).count();
    let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
    for node in cluster.groups.iter().flat_map(|group| &group.replicas) {
        *load.entry(*node).or_default() += 1;
    }
    let zone_of = |node: &NodeId| standing.get(node).map(|(_, zone)| *zone);
    let in_zone =
        |zone: &str| members.iter().filter(|&node| !leaves(node) && zone_of(node) == Some(zone)).count();
    // Of a zone that has none if possible, then the one with the fewest replicas.
    let newcomer = standing
        .iter()
        .filter(|(node, (standing, _))| *standing == Standing::Open && !members.contains(node))
        .min_by_key(|(node, (_, zone))| (in_zone(zone), load.get(node).copied().unwrap_or(0), **node))
        .map(|(node, _)| node.get());
    let gone = members.iter().find(|node| leaves(node)).map(|node| node.get());
    let keep = members.iter().filter(|node| !leaves(node)).count();
    let target = meta_target(staying);
    let (from, to) = match (gone, newcomer) {
        (Some(gone), _) if keep >= target && keep > 0 => (gone, 0),
        (Some(gone), Some(to)) => (gone, to),
        (None, Some(to)) if keep < target => (0, to),
        (None, _) if keep > target => {
            let zones = |node: &&NodeId| zone_of(node).map_or(0, in_zone);
            (members.iter().max_by_key(|node| (zones(node), **node))?.get(), 0)
        }
        _ => return None,
    };
    Some(wire::Move {
        group: GroupId::META.get(),
        from,
        to,
        bytes: 0,
        step: MoveStep::Pending.into(),
        learner: 0,
    })
}

/// Whether a replica of a shard goes from one node to another; one too few or too many is another matter.
fn relocates(step: &wire::Move) -> bool {
    step.from != 0 && step.to != 0 && step.group != GroupId::META.get()
}

/// Whether fewer moves are left to make if those that have not begun are planned anew: better places may have come up since.
/// What is paused is left as it is.
fn is_shorter_anew(catalog: &wire::Catalog, observed: &Observed, missing: &[wire::Move]) -> bool {
    let waits = |step: &wire::Move| step.step() == MoveStep::Pending && relocates(step);
    let waiting = unfinished(catalog).values().filter(|step| waits(step)).count();
    let mut open = catalog.operations.iter().filter(|operation| is_open(operation));
    if waiting == 0 || !open.all(|operation| operation.state() == OperationState::Running) {
        return false;
    }
    let mut anew = catalog.clone();
    for step in
        anew.operations.iter_mut().flat_map(|operation| &mut operation.moves).filter(|step| waits(step))
    {
        step.step = MoveStep::Dropped.into();
    }
    let of_shards =
        |moves: &[wire::Move]| moves.iter().filter(|step| step.group != GroupId::META.get()).count();
    of_shards(&all_missing(&anew, observed, Silent::Closed)) < waiting + of_shards(missing)
}

/// The next step of every move that is not finished.
fn moves(
    catalog: &wire::Catalog,
    map: &wire::ClusterMap,
    observed: &Observed,
    anew: bool,
    moves_max: usize,
) -> Vec<Step> {
    let mut busy: BTreeMap<u64, usize> = BTreeMap::new();
    let mut under_way = 0;
    let counted = |step: &&&wire::Move| step.step() != MoveStep::Pending && step.group != GroupId::META.get();
    for step in unfinished(catalog).values().filter(counted) {
        under_way += 1;
        for node in [step.from, step.to] {
            *busy.entry(node).or_default() += 1;
        }
    }
    let mut steps = Vec::new();
    for operation in catalog.operations.iter().filter(|operation| is_open(operation)) {
        for (position, step) in (0_u32..).zip(&operation.moves).filter(|(_, step)| is_unfinished(step)) {
            let group = GroupId(step.group);
            let info = match group.shard() {
                Some(shard) => map.shards.iter().find(|info| info.id == shard.get()),
                None => map.meta.as_ref(),
            };
            let Some(info) = info else { continue };
            let act = match step.step() {
                MoveStep::Pending
                    if pointless(operation, step, map, observed) || (anew && relocates(step)) =>
                {
                    Act::TakeBack
                }
                // The group has another need, which is not to wait until somebody resumes this. It is planned anew then.
                MoveStep::Pending
                    if operation.state() == OperationState::Paused && needs_repair(info, observed) =>
                {
                    Act::TakeBack
                }
                MoveStep::Pending => {
                    let crowded =
                        |node: &u64| *node != 0 && busy.get(node).copied().unwrap_or(0) >= MOVES_PER_NODE_MAX;
                    let target_up = step.to == 0 || observed.is_up(NodeId(step.to));
                    if operation.state() == OperationState::Paused {
                        Act::Wait("the operation is paused".to_owned())
                    // The catalog's is small, and everything else hangs on it.
                    } else if group != GroupId::META
                        && (under_way >= moves_max || [step.from, step.to].iter().any(crowded))
                    {
                        Act::Wait("other moves are under way".to_owned())
                    } else if !target_up {
                        Act::Wait(format!("node {} is not up", step.to))
                    } else if !led(group, observed) {
                        Act::Wait(format!("{} has no leader", group.title()))
                    } else {
                        if group != GroupId::META {
                            under_way += 1;
                            for node in [step.from, step.to] {
                                *busy.entry(node).or_default() += 1;
                            }
                        }
                        Act::Begin
                    }
                }
                MoveStep::Copying if lost(step.to, map, observed) => Act::TakeBack,
                MoveStep::Copying if observed.has_lost(NodeId(step.to), step.learner) => Act::TakeBack,
                MoveStep::Copying => Act::Switch { voters: voters(info, ReplicaRole::Leaving) },
                _ => Act::Undo { voters: voters(info, ReplicaRole::Learner) },
            };
            steps.push(Step::Move { operation: operation.id, position, group, epoch: info.epoch, act });
        }
    }
    steps
}

fn led(group: GroupId, observed: &Observed) -> bool {
    group.shard().is_none_or(|shard| observed.leader(shard).is_some())
}

/// All replicas but those of that role.
fn voters(info: &wire::ShardInfo, without: ReplicaRole) -> BTreeMap<ReplicaId, NodeId> {
    let stay = info.replicas.iter().filter(|replica| replica.role() != without);
    stay.map(|replica| (ReplicaId(replica.id), NodeId(replica.node))).collect()
}

/// Whether a node that was to get a replica cannot be expected to any more.
fn lost(node: u64, map: &wire::ClusterMap, observed: &Observed) -> bool {
    let member = map.nodes.iter().any(|info| info.id == node && info.state() == NodeState::Member);
    node != 0 && (!member || observed.health(NodeId(node)) == Health::Down)
}

/// Whether a move that has not begun is not worth it any more: its target is lost, or the node that was down is back.
fn pointless(
    operation: &wire::Operation,
    step: &wire::Move,
    map: &wire::ClusterMap,
    observed: &Observed,
) -> bool {
    let back = operation.kind() == OperationKind::Repair
        && step.from != 0
        && step.to != 0
        && observed.is_up(NodeId(step.from));
    lost(step.to, map, observed) || back
}

/// Whether a replica of the group is gone, with its node or without.
fn needs_repair(info: &wire::ShardInfo, observed: &Observed) -> bool {
    let gone = |replica: &wire::ReplicaInfo| {
        let node = NodeId(replica.node);
        observed.health(node) == Health::Down || observed.has_lost(node, replica.id)
    };
    info.replicas.iter().any(gone)
}

/// Operations whose moves have all ended and that have nothing else to wait for.
fn ended(catalog: &wire::Catalog, map: &wire::ClusterMap, outlook: &Outlook) -> Vec<Step> {
    let over = |operation: &&wire::Operation| match operation.state() {
        OperationState::Running if operation.kind() == OperationKind::Drain => {
            !holds_replicas(map, operation.node)
        }
        OperationState::Running => !outlook.has_more(operation),
        OperationState::Cancelling => true,
        _ => false,
    };
    let idle = |operation: &&wire::Operation| !operation.moves.iter().any(is_unfinished);
    let ended = catalog.operations.iter().filter(over).filter(idle);
    ended.map(|operation| Step::End { operation: operation.id }).collect()
}

/// Transfers that bring the leaders per node within one of even, as far as the replicas allow.
fn leaders(map: &wire::ClusterMap, observed: &Observed) -> Vec<Step> {
    let cluster = cluster(&wire::Catalog::default(), map, observed);
    let replica_of = |group: GroupId, node: NodeId| {
        let info = group.shard().and_then(|shard| map.shards.iter().find(|info| info.id == shard.get()))?;
        // One that is on its way has other members soon.
        info.replicas.iter().all(|replica| replica.role() == ReplicaRole::Voter).then_some(())?;
        let replica = info.replicas.iter().find(|replica| replica.node == node.get())?;
        Some((info.epoch, ReplicaId(replica.id)))
    };
    let transfers = balance::spread_leaders(&cluster).into_iter();
    transfers
        .filter_map(|transfer| {
            let (epoch, to) = replica_of(transfer.group, transfer.to)?;
            Some(Step::Transfer { group: transfer.group, epoch, to })
        })
        .collect()
}

/// The groups of all shards, in the map's order, and the meta group after them.
pub fn groups_of(map: &wire::ClusterMap) -> impl Iterator<Item = GroupId> + '_ {
    let shards = map.shards.iter().map(|info| GroupId::from(ShardId(info.id)));
    shards.chain(map.meta.iter().map(|_| GroupId::META))
}

/// Groups that are being moved.
pub fn moving_groups(catalog: &wire::Catalog) -> BTreeSet<GroupId> {
    unfinished(catalog).into_keys().map(GroupId).collect()
}

/// Members that are neither up nor down: what becomes of them decides on moves.
pub fn silent_members(map: &wire::ClusterMap, observed: &Observed) -> Vec<NodeId> {
    let members = map.nodes.iter().filter(|info| info.state() == NodeState::Member);
    let ids = members.map(|info| NodeId(info.id));
    ids.filter(|&id| !observed.is_up(id) && observed.health(id) != Health::Down).collect()
}

/// Why a drain of `node` could not end.
pub fn cannot_drain(catalog: &wire::Catalog, observed: &Observed, node: NodeId) -> Option<String> {
    let map = catalog.map.as_ref()?;
    let mut replicas = map.shards.iter().flat_map(|info| &info.replicas);
    if !replicas.any(|replica| replica.node == node.get()) {
        // The catalog's group does with fewer members, and of nothing else there is less without it.
        return None;
    }
    let why = balance::cannot_leave(&cluster(catalog, map, observed), node)?;
    let silent = map.nodes.iter().filter(|info| {
        info.state() == NodeState::Member && info.id != node.get() && !observed.is_up(NodeId(info.id))
    });
    let silent: Vec<NodeId> = silent.map(|info| NodeId(info.id)).collect();
    if silent.is_empty() { Some(why) } else { Some(format!("{why} Not up: {}.", balance::list(&silent))) }
}

#[cfg(test)]
mod tests;
