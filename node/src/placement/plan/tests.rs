use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::placement::catalog;
use wire::catalog_command::Change;

fn observed(nodes: &[u64], leaders: &[(u32, u64)]) -> Observed {
    let mut observed = Observed::new(Duration::from_secs(60), Duration::from_secs(120));
    for &node in nodes {
        let replicas = leaders
            .iter()
            .filter(|(_, leader)| *leader == node)
            .map(|&(shard, _)| wire::ReplicaReport { shard, leader: true, term: 1, ..Default::default() })
            .collect();
        observed.report(wire::NodeReport { node, replicas, ..Default::default() });
    }
    observed
}

fn cluster(nodes: u64, shards: u32) -> wire::Catalog {
    let mut catalog = wire::Catalog::default();
    let join = |node: u64| wire::JoinRequest { incarnation: format!("i{node}"), ..Default::default() };
    let init = wire::InitCatalog {
        cluster_id: "c".to_owned(),
        shards,
        replicas: 3,
        node: Some(join(1)),
        meta_replica: 1,
    };
    let mut apply = |change| catalog::apply(&mut catalog, wire::CatalogCommand { change: Some(change) });
    apply(wire::catalog_command::Change::Init(init));
    for node in 2..=nodes {
        apply(wire::catalog_command::Change::Join(join(node)));
    }
    catalog
}

const ALL: Allowed = Allowed { judge: true, plan: true, rebalance: true, leaders: true, moves_max: 4 };

fn commit(catalog: &mut wire::Catalog, change: Change) -> wire::CatalogReply {
    catalog::apply(catalog, wire::CatalogCommand { change: Some(change) })
}

/// The next steps, whatever is to follow them.
fn decided(catalog: &wire::Catalog, observed: &Observed, allowed: Allowed) -> Vec<Step> {
    next(catalog, observed, allowed).0
}

/// The moves that people are told of each operation under way: first and last.
#[derive(Debug, Default)]
struct Told {
    outlook: Outlook,
    totals: BTreeMap<u64, (u64, u64)>,
}

impl Told {
    fn look(&mut self, catalog: &wire::Catalog, outlook: Option<&Outlook>) {
        if let Some(outlook) = outlook {
            self.outlook = outlook.clone();
        }
        for operation in &catalog.operations {
            let total = self.outlook.total(operation).0;
            self.totals.entry(operation.id).or_insert((total, total)).1 = total;
        }
    }
}

/// What the driver records once the step is made; `None` when there is nothing to record.
fn recorded(step: Step) -> Option<Change> {
    Some(match step {
        Step::Start(start) => Change::StartOperation(start),
        Step::End { operation } => Change::EndOperation(wire::EndOperation { operation, stamp_ms: 1 }),
        Step::Move { operation, position, epoch, act, .. } => match act {
            Act::Begin => Change::BeginMove(wire::BeginMove { operation, r#move: position, epoch }),
            Act::Switch { .. } => Change::FinishMove(wire::FinishMove { operation, r#move: position, epoch }),
            Act::TakeBack => {
                Change::UndoMove(wire::UndoMove { operation, r#move: position, undone: false, epoch: 0 })
            }
            Act::Undo { .. } => {
                Change::UndoMove(wire::UndoMove { operation, r#move: position, undone: true, epoch })
            }
            Act::Wait(_) => return None,
        },
        Step::Transfer { .. } => return None,
    })
}

/// All groups led by their first replica of `nodes`.
fn leaders_in(catalog: &wire::Catalog, nodes: &[u64]) -> Vec<(u32, u64)> {
    let leads = |replica: &&wire::ReplicaInfo| {
        nodes.contains(&replica.node) && replica.role() != ReplicaRole::Learner
    };
    let shards = catalog.map.iter().flat_map(|map| &map.shards);
    shards.filter_map(|info| Some((info.id, info.replicas.iter().find(leads)?.node))).collect()
}

/// Every node of `nodes` up, those of the rest down, all groups led by their first replica that is up.
fn seen(catalog: &wire::Catalog, nodes: &[u64]) -> Observed {
    let map = catalog.map.as_ref().unwrap();
    let mut observed = observed(nodes, &leaders_in(catalog, nodes));
    for info in &map.nodes {
        if !nodes.contains(&info.id) {
            observed.lose(NodeId(info.id));
        }
    }
    observed
}

/// Carries the steps out as the driver does, until nothing is left but leaders and waiting; what was told meanwhile.
fn run(catalog: &mut wire::Catalog, nodes: &[u64]) -> Told {
    run_allowed(catalog, nodes, ALL)
}

fn run_allowed(catalog: &mut wire::Catalog, nodes: &[u64], allowed: Allowed) -> Told {
    let mut told = Told::default();
    for _round in 0..10_000 {
        let (steps, outlook) = next(catalog, &seen(catalog, nodes), allowed);
        told.look(catalog, outlook.as_ref());
        let changes: Vec<_> = steps.into_iter().filter_map(recorded).collect();
        if changes.is_empty() {
            return told;
        }
        for change in changes {
            let before = catalog.clone();
            commit(catalog, change);
            sound(&before, catalog, nodes);
        }
    }
    let last: Vec<_> = catalog.operations.iter().map(|operation| operation.moves.last()).collect();
    panic!("the plan does not come to rest: {last:?}");
}

fn groups(catalog: &wire::Catalog) -> impl Iterator<Item = &wire::ShardInfo> {
    let map = catalog.map.as_ref().unwrap();
    map.shards.iter().chain(&map.meta)
}

/// No step takes a voter away without putting one in its place, but where there are more than the factor; nor does
/// any step leave a group with fewer voters that are up.
fn sound(before: &wire::Catalog, after: &wire::Catalog, up: &[u64]) {
    let votes = |info: &wire::ShardInfo, counts: &dyn Fn(u64) -> bool| {
        let voters = info.replicas.iter().filter(|replica| replica.role() != ReplicaRole::Learner);
        voters.filter(|replica| counts(replica.node)).count()
    };
    let factor = before.map.as_ref().unwrap().replication_factor as usize;
    for (old, new) in groups(before).zip(groups(after)) {
        for counts in [&(|_: u64| true) as &dyn Fn(u64) -> bool, &|node| up.contains(&node)] {
            let (had, has) = (votes(old, counts), votes(new, counts));
            // The meta group shrinks with the cluster, one by one.
            let least = if old.first == old.last { had.saturating_sub(1) } else { had.min(factor) };
            assert!(has >= least, "{up:?} {old:?} {new:?}");
        }
        assert!(votes(new, &|_| true) >= 1, "{old:?} {new:?}");
    }
    // The meta group's move waits for no other.
    let counted = |step: &&&wire::Move| step.step() != MoveStep::Pending && step.group != GroupId::META.get();
    let copying = unfinished(after).values().filter(counted).count();
    assert!(copying <= ALL.moves_max, "{copying} at once");
}

fn counts(catalog: &wire::Catalog) -> BTreeMap<u64, usize> {
    let map = catalog.map.as_ref().unwrap();
    let mut counts: BTreeMap<u64, usize> =
        map.nodes.iter().filter(|node| node.state() == NodeState::Member).map(|node| (node.id, 0)).collect();
    for replica in map.shards.iter().flat_map(|info| &info.replicas) {
        *counts.entry(replica.node).or_default() += 1;
    }
    counts
}

fn all_voters(catalog: &wire::Catalog) -> bool {
    groups(catalog).flat_map(|info| &info.replicas).all(|replica| replica.role() == ReplicaRole::Voter)
}

fn drain(catalog: &mut wire::Catalog, node: u64, remove: bool) -> u64 {
    let start =
        wire::StartOperation { kind: OperationKind::Drain.into(), node, remove, ..Default::default() };
    commit(catalog, Change::StartOperation(start)).operation
}

fn state_of(catalog: &wire::Catalog, id: u64) -> OperationState {
    catalog.operations.iter().find(|operation| operation.id == id).unwrap().state()
}

/// One round of steps, all of them recorded.
fn tick(catalog: &mut wire::Catalog, nodes: &[u64]) -> Vec<Step> {
    let steps = decided(catalog, &seen(catalog, nodes), ALL);
    for change in steps.clone().into_iter().filter_map(recorded) {
        commit(catalog, change);
    }
    steps
}

proptest! {
    #[test]
    fn replication_grows_to_its_target_one_replica_a_node(nodes in 1_u64..8, shards in 1_u32..40) {
        let mut catalog = cluster(nodes, shards);
        run(&mut catalog, &(1..=nodes).collect::<Vec<_>>());
        for info in &catalog.map.as_ref().unwrap().shards {
            prop_assert_eq!(info.replicas.len() as u64, nodes.min(3));
        }
        prop_assert!(all_voters(&catalog));
        let counts = counts(&catalog);
        prop_assert!(counts.values().max().unwrap() - counts.values().min().unwrap() <= 1, "{:?}", counts);
        let meta = catalog.map.unwrap().meta.unwrap().replicas.len() as u64;
        prop_assert_eq!(meta, match nodes { 1..=3 => nodes, 4 => 3, _ => 5 });
        prop_assert!(catalog.operations.iter().all(|operation| operation.state() == OperationState::Done));
    }

    /// What an operation will take is told when it begins, although a group's second move is recorded after its first.
    #[test]
    fn the_moves_told_first_are_those_made(
        first in 1_u64..5, joins in 0_u64..5, drains in 0_u64..3, shards in 1_u32..40,
    ) {
        let mut catalog = cluster(first, shards);
        run(&mut catalog, &(1..=first).collect::<Vec<_>>());
        for node in first + 1..=first + joins {
            let incarnation = format!("i{node}");
            commit(&mut catalog, Change::Join(wire::JoinRequest { incarnation, ..Default::default() }));
        }
        let nodes: Vec<u64> = (1..=first + joins).collect();
        for &node in nodes.iter().take(drains as usize) {
            if cannot_drain(&catalog, &seen(&catalog, &nodes), NodeId(node)).is_none() {
                drain(&mut catalog, node, false);
            }
        }
        let told = run(&mut catalog, &nodes);
        for operation in &catalog.operations {
            let (first, last) = told.totals[&operation.id];
            prop_assert_eq!(first, last, "{:?}", operation);
            let made = operation.moves.iter().filter(|step| step.step() == MoveStep::Moved).count() as u64;
            prop_assert_eq!(made, last, "{:?}", operation);
        }
    }

    #[test]
    fn leaders_come_within_one_of_even(nodes in 1_u64..4, owners in proptest::collection::vec(0_u64..3, 1..40)) {
        let mut catalog = cluster(nodes, owners.len() as u32);
        let all: Vec<_> = (1..=nodes).collect();
        run(&mut catalog, &all);
        let mut leaders: Vec<(u32, u64)> = owners.iter().zip(0..).map(|(owner, shard)| (shard, owner % nodes + 1)).collect();
        let map = catalog.map.clone().unwrap();
        let mut moves = 0;
        loop {
            let steps = decided(&catalog, &observed(&all, &leaders), ALL);
            if steps.is_empty() { break; }
            for step in steps {
                let Step::Transfer { group, to, .. } = step else { panic!("{step:?}") };
                let shard = group.shard().unwrap().get();
                let node = map.shards[shard as usize].replicas.iter().find(|replica| replica.id == to.get()).unwrap().node;
                leaders[shard as usize].1 = node;
                moves += 1;
            }
            prop_assert!(moves <= owners.len(), "leaders wander");
        }
        let count = |node: u64| leaders.iter().filter(|(_, leader)| *leader == node).count();
        let (least, most) = (all.iter().map(|&node| count(node)).min().unwrap(), all.iter().map(|&node| count(node)).max().unwrap());
        prop_assert!(most - least <= 1, "{least}..{most}");
    }

    /// Nodes come, drain, die and come back, operations are paused and cancelled, records get lost: once that is over, the
    /// cluster comes to rest with all replicas where they should be and nothing half done.
    #[test]
    fn whatever_happens_it_comes_to_rest(
        first in 1_u64..5,
        events in proptest::collection::vec((0_u8..8, 1_u64..8, any::<u64>()), 0..40),
    ) {
        let mut catalog = cluster(first, 12);
        let mut down: BTreeSet<u64> = BTreeSet::new();
        let known = |catalog: &wire::Catalog| catalog.map.as_ref().unwrap().nodes.iter().map(|node| node.id).collect::<Vec<_>>();
        for (event, pick, lost) in events {
            let last = known(&catalog).len() as u64;
            let node = pick % last + 1;
            let open: Vec<u64> = catalog.operations.iter().filter(|it| is_open(it)).map(|it| it.id).collect();
            let operation = open.get(pick as usize % open.len().max(1)).copied().unwrap_or(0);
            let up = |down: &BTreeSet<u64>, catalog: &wire::Catalog| known(catalog).into_iter().filter(|node| !down.contains(node)).collect::<Vec<_>>();
            match event {
                0 if last < 8 => {
                    let join = wire::JoinRequest { incarnation: format!("i{}", last + 1), ..Default::default() };
                    commit(&mut catalog, Change::Join(join));
                }
                1 => {
                    let observed = seen(&catalog, &up(&down, &catalog));
                    if cannot_drain(&catalog, &observed, NodeId(node)).is_none() {
                        drain(&mut catalog, node, false);
                    }
                }
                2 => { commit(&mut catalog, Change::Undrain(wire::Undrain { node })); }
                3 => { down.insert(node); }
                4 => { down.remove(&node); }
                5 | 6 => {
                    let control = i32::try_from(lost % 3 + 1).unwrap();
                    commit(&mut catalog, Change::ControlOperation(wire::ControlOperation { operation, control }));
                }
                _ => {}
            }
            let steps = decided(&catalog, &seen(&catalog, &up(&down, &catalog)), ALL);
            for (index, change) in steps.into_iter().filter_map(recorded).enumerate() {
                // A third of what is decided is not recorded: the leader died, or the group was not ready.
                if !(lost >> (index % 60)).is_multiple_of(3) {
                    let before = catalog.clone();
                    commit(&mut catalog, change);
                    sound(&before, &catalog, &up(&down, &catalog));
                }
            }
        }
        for operation in catalog.operations.clone() {
            let control = wire::Control::Resume.into();
            commit(&mut catalog, Change::ControlOperation(wire::ControlOperation { operation: operation.id, control }));
        }
        for node in known(&catalog) {
            commit(&mut catalog, Change::Undrain(wire::Undrain { node }));
        }
        let asked = wire::StartOperation { kind: OperationKind::Rebalance.into(), asked: true, ..Default::default() };
        commit(&mut catalog, Change::StartOperation(asked));
        let nodes = known(&catalog);
        run(&mut catalog, &nodes);
        prop_assert!(all_voters(&catalog));
        prop_assert!(catalog.operations.iter().all(|operation| !is_open(operation)), "{:?}", catalog.operations);
        let counts = counts(&catalog);
        prop_assert!(counts.values().max().unwrap() - counts.values().min().unwrap() <= 1, "{:?}", counts);
        for info in &catalog.map.as_ref().unwrap().shards {
            prop_assert_eq!(info.replicas.len(), nodes.len().min(3));
        }
    }
}

#[test]
fn a_zone_without_a_replica_goes_first() {
    let mut catalog = cluster(4, 8);
    for (node, zone) in catalog.map.as_mut().unwrap().nodes.iter_mut().zip(["a", "a", "b", "c"]) {
        node.zone = zone.to_owned();
    }
    run(&mut catalog, &[1, 2, 3, 4]);
    for info in &catalog.map.unwrap().shards {
        let nodes: Vec<_> = info.replicas.iter().map(|replica| replica.node).collect();
        assert!(nodes.contains(&3) && nodes.contains(&4), "{nodes:?}");
    }
}

#[test]
fn before_all_could_report_nothing_is_taken_back_or_over() {
    let mut catalog = cluster(4, 4);
    run(&mut catalog, &[1, 2, 3]);
    let observed = seen(&catalog, &[1, 2]);
    let early = Allowed { judge: false, leaders: false, ..ALL };
    assert_eq!(decided(&catalog, &observed, early), [], "no repair yet");
    let repairs = decided(&catalog, &seen(&catalog, &[1, 2, 4]), ALL);
    assert!(repairs.iter().any(|step| matches!(step, Step::Start(_))), "{repairs:?}");
    let start = repairs.into_iter().find_map(|step| match step {
        Step::Start(start) => Some(start),
        Step::Move { .. } | Step::End { .. } | Step::Transfer { .. } => None,
    });
    commit(&mut catalog, Change::StartOperation(start.unwrap()));
    // The node that was to get the replicas is silent, too.
    let judged = decided(&catalog, &observed, ALL);
    let takes_back = |step: &Step| matches!(step, Step::Move { act: Act::TakeBack, .. });
    assert!(judged.iter().any(takes_back), "{judged:?}");
    assert!(!decided(&catalog, &observed, early).iter().any(takes_back));
}

#[test]
fn silent_and_leaving_nodes_get_nothing() {
    let catalog = cluster(3, 4);
    assert_eq!(decided(&catalog, &observed(&[1], &[]), ALL), Vec::new());
    let mut catalog = cluster(2, 4);
    run(&mut catalog, &[1, 2]);
    let mut leaving = observed(&[1, 2], &[(0, 1), (1, 1), (2, 1), (3, 1)]);
    leaving.report(wire::NodeReport { node: 2, leaving: true, ..Default::default() });
    assert_eq!(decided(&catalog, &leaving, ALL), Vec::new());
}

#[test]
fn a_joined_node_gets_its_share_and_nobody_else_moves() {
    let mut catalog = cluster(3, 32);
    run(&mut catalog, &[1, 2, 3]);
    let before = catalog.operations.len();
    commit(
        &mut catalog,
        Change::Join(wire::JoinRequest { incarnation: "i4".to_owned(), ..Default::default() }),
    );
    let alone = Allowed { rebalance: false, leaders: false, ..ALL };
    let held = decided(&catalog, &seen(&catalog, &[1, 2, 3, 4]), alone);
    assert_eq!(held, Vec::new(), "not by itself");
    run(&mut catalog, &[1, 2, 3, 4]);
    assert_eq!(counts(&catalog), BTreeMap::from([(1, 24), (2, 24), (3, 24), (4, 24)]));
    let [rebalance] = &catalog.operations[before..] else { panic!("{:?}", catalog.operations) };
    assert_eq!((rebalance.kind(), rebalance.state()), (OperationKind::Rebalance, OperationState::Done));
    assert_eq!(rebalance.moves.len(), 24, "as many as the newcomer's share");
}

#[test]
fn a_drained_node_is_empty_in_the_end_and_removed_if_asked() {
    let mut catalog = cluster(5, 16);
    run(&mut catalog, &[1, 2, 3, 4, 5]);
    let id = drain(&mut catalog, 1, true);
    run(&mut catalog, &[1, 2, 3, 4, 5]);
    assert_eq!(state_of(&catalog, id), OperationState::Done);
    let map = catalog.map.as_ref().unwrap();
    assert!(!holds_replicas(map, 1));
    assert_eq!(map.nodes[0].state(), NodeState::Removed);
    assert_eq!(map.meta.as_ref().unwrap().replicas.len(), 3, "the meta group shrinks with the cluster");
}

#[test]
fn moves_that_have_not_begun_go_where_there_is_a_better_place_since() {
    let mut catalog = cluster(4, 16);
    run(&mut catalog, &[1, 2, 3, 4]);
    let id = drain(&mut catalog, 4, false);
    run_allowed(&mut catalog, &[1, 2, 3, 4], Allowed { moves_max: 0, ..ALL });
    let moves = |catalog: &wire::Catalog, step: MoveStep| -> Vec<wire::Move> {
        let all = catalog.operations.iter().flat_map(|operation| &operation.moves);
        let shards = all.filter(|found| found.step() == step && found.group != GroupId::META.get());
        shards.cloned().collect()
    };
    let waiting = moves(&catalog, MoveStep::Pending);
    assert_eq!(waiting.len(), 12, "{waiting:?}");
    let made_before = moves(&catalog, MoveStep::Moved).len();
    commit(
        &mut catalog,
        Change::Join(wire::JoinRequest { incarnation: "i5".to_owned(), ..Default::default() }),
    );
    run(&mut catalog, &[1, 2, 3, 4, 5]);
    assert_eq!(state_of(&catalog, id), OperationState::Done);
    let made = moves(&catalog, MoveStep::Moved).split_off(made_before);
    // The node that is drained has twelve, and the one that joined takes them.
    assert_eq!(made.len(), 12, "{made:?}");
    assert!(made.iter().all(|step| (step.from, step.to) == (4, 5)), "{made:?}");
}

#[test]
fn a_drain_that_cannot_end_is_refused() {
    let mut catalog = cluster(3, 4);
    run(&mut catalog, &[1, 2, 3]);
    let why = cannot_drain(&catalog, &seen(&catalog, &[1, 2, 3]), NodeId(2)).unwrap();
    assert!(why.contains('3'), "{why}");
    let mut catalog = cluster(4, 4);
    run(&mut catalog, &[1, 2, 3, 4]);
    assert_eq!(cannot_drain(&catalog, &seen(&catalog, &[1, 2, 3, 4]), NodeId(2)), None);
    // The fourth has not been heard for a moment, or for long.
    let why = cannot_drain(&catalog, &observed(&[1, 2, 3], &[]), NodeId(2)).unwrap();
    assert!(why.ends_with(" Not up: 4."), "{why}");
    assert!(cannot_drain(&catalog, &seen(&catalog, &[1, 2, 3]), NodeId(2)).is_some());
}

#[test]
fn a_node_without_shards_leaves_however_few_are_up() {
    let mut catalog = cluster(5, 1);
    run(&mut catalog, &[1, 2, 3, 4, 5]);
    let map = catalog.map.as_ref().unwrap();
    let holders: Vec<u64> = map.shards[0].replicas.iter().map(|replica| replica.node).collect();
    let empty = (1..=5).find(|node| !holders.contains(node)).unwrap();
    assert!(holds_replicas(map, empty), "it is to be in the catalog's group");
    let up = &holders[..2];
    assert_eq!(cannot_drain(&catalog, &seen(&catalog, up), NodeId(empty)), None);
    let id = drain(&mut catalog, empty, true);
    run(&mut catalog, up);
    assert_eq!(state_of(&catalog, id), OperationState::Done);
}

#[test]
fn a_node_that_is_down_is_replaced_and_one_that_comes_back_is_left_alone() {
    let mut catalog = cluster(4, 16);
    run(&mut catalog, &[1, 2, 3, 4]);
    let whole = catalog.clone();
    // Back before anything begins.
    let steps = tick(&mut catalog, &[1, 2, 3]);
    assert!(
        matches!(&steps[..], [Step::Start(start), ..] if start.kind() == OperationKind::Repair),
        "{steps:?}"
    );
    run(&mut catalog, &[1, 2, 3, 4]);
    assert_eq!(catalog.map.as_ref().unwrap().shards, whole.map.as_ref().unwrap().shards);
    // Gone for good.
    run(&mut catalog, &[1, 2, 3]);
    assert_eq!(counts(&catalog).get(&4), Some(&0));
    assert!(catalog.map.as_ref().unwrap().shards.iter().all(|info| info.replicas.len() == 3));
    assert!(
        catalog.map.as_ref().unwrap().meta.as_ref().unwrap().replicas.iter().all(|replica| replica.node != 4)
    );
}

#[test]
fn a_replica_whose_data_is_gone_is_made_anew() {
    let mut catalog = cluster(3, 4);
    run(&mut catalog, &[1, 2, 3]);
    let replica = |catalog: &wire::Catalog| {
        let info = &catalog.map.as_ref().unwrap().shards[1];
        info.replicas.iter().find(|replica| replica.node == 2).map(|replica| replica.id)
    };
    let lost = replica(&catalog).unwrap();
    for _ in 0..20 {
        let mut observed = seen(&catalog, &[1, 2, 3]);
        observed.report(wire::NodeReport { node: 2, lost: vec![lost], ..Default::default() });
        for change in decided(&catalog, &observed, ALL).into_iter().filter_map(recorded) {
            commit(&mut catalog, change);
        }
    }
    assert!(replica(&catalog).is_some_and(|id| id != lost), "{:?}", catalog.map);
    assert!(all_voters(&catalog) && catalog.operations.iter().all(|operation| !is_open(operation)));
    assert!(catalog.map.as_ref().unwrap().shards.iter().all(|info| info.replicas.len() == 3));
}

#[test]
fn a_target_that_dies_is_given_up_and_the_move_planned_anew() {
    let mut catalog = cluster(5, 8);
    run(&mut catalog, &[1, 2, 3, 4, 5]);
    drain(&mut catalog, 1, false);
    let all = [1, 2, 3, 4, 5];
    tick(&mut catalog, &all);
    tick(&mut catalog, &all);
    let targets: Vec<u64> = unfinished(&catalog)
        .values()
        .filter(|step| step.step() == MoveStep::Copying)
        .map(|step| step.to)
        .collect();
    let dead = *targets.iter().find(|&&to| to != 0).unwrap();
    let left: Vec<u64> = all.into_iter().filter(|&node| node != dead).collect();
    run(&mut catalog, &left);
    assert!(
        !holds_replicas(catalog.map.as_ref().unwrap(), 1)
            && !holds_replicas(catalog.map.as_ref().unwrap(), dead)
    );
    assert!(all_voters(&catalog));
}

#[test]
fn paused_it_finishes_what_has_begun_and_cancelled_it_takes_it_back() {
    let mut catalog = cluster(3, 32);
    run(&mut catalog, &[1, 2, 3]);
    let before = catalog.map.clone().unwrap().shards;
    commit(
        &mut catalog,
        Change::Join(wire::JoinRequest { incarnation: "i4".to_owned(), ..Default::default() }),
    );
    let all = [1, 2, 3, 4];
    tick(&mut catalog, &all);
    tick(&mut catalog, &all);
    let operation = catalog.operations.last().unwrap().id;
    let control = |catalog: &mut wire::Catalog, control: wire::Control| {
        let control = wire::ControlOperation { operation, control: control.into() };
        assert!(commit(catalog, Change::ControlOperation(control)).changed);
    };
    control(&mut catalog, wire::Control::Pause);
    run(&mut catalog, &all);
    assert_eq!(counts(&catalog).get(&4), Some(&2), "those that had begun");
    control(&mut catalog, wire::Control::Resume);
    tick(&mut catalog, &all);
    control(&mut catalog, wire::Control::Cancel);
    run(&mut catalog, &all);
    assert_eq!(state_of(&catalog, operation), OperationState::Cancelled);
    assert!(all_voters(&catalog));
    let changed = catalog.map.as_ref().unwrap().shards.iter().zip(&before).filter(|(new, old)| {
        let nodes = |info: &wire::ShardInfo| {
            info.replicas.iter().map(|replica| replica.node).collect::<BTreeSet<_>>()
        };
        nodes(new) != nodes(old)
    });
    assert_eq!(changed.count(), 2, "only those done before it was cancelled");
    let still = decided(&catalog, &seen(&catalog, &all), Allowed { leaders: false, ..ALL });
    assert_eq!(still, Vec::new(), "it does not start by itself again");
}

#[test]
fn a_dead_node_is_replaced_while_other_operations_are_paused() {
    for drains in [false, true] {
        // Nodes 5 and 6 have joined and nothing has moved to them yet; or 5 nodes, one of which is drained.
        let mut catalog = cluster(3, 12);
        run(&mut catalog, &[1, 2, 3]);
        for node in [4, 5, 6] {
            let incarnation = format!("i{node}");
            commit(&mut catalog, Change::Join(wire::JoinRequest { incarnation, ..Default::default() }));
        }
        let all = [1, 2, 3, 4, 5, 6];
        let id = if drains {
            run(&mut catalog, &all);
            drain(&mut catalog, 1, false)
        } else {
            let moves = missing_moves(&catalog, &seen(&catalog, &all));
            let kind = OperationKind::Rebalance.into();
            let start = wire::StartOperation { kind, moves, asked: true, ..Default::default() };
            commit(&mut catalog, Change::StartOperation(start)).operation
        };
        let control = |control: wire::Control| {
            Change::ControlOperation(wire::ControlOperation { operation: id, control: control.into() })
        };
        tick(&mut catalog, &all);
        commit(&mut catalog, control(wire::Control::Pause));
        run(&mut catalog, &[1, 3, 4, 5, 6]);
        assert_eq!(state_of(&catalog, id), OperationState::Paused);
        let dead = groups(&catalog).filter(|info| info.replicas.iter().any(|replica| replica.node == 2));
        assert_eq!(dead.count(), 0, "drains {drains}");
        assert!(all_voters(&catalog));
        assert!(holds_replicas(catalog.map.as_ref().unwrap(), 1), "it went on although it is paused");
        commit(&mut catalog, control(wire::Control::Resume));
        run(&mut catalog, &[1, 3, 4, 5, 6]);
        assert_eq!(state_of(&catalog, id), OperationState::Done);
        assert_eq!(holds_replicas(catalog.map.as_ref().unwrap(), 1), !drains);
    }
}

/// What people are told of an operation by one leader, whose last look for moves counts until the next.
#[derive(Default)]
struct Leader {
    outlook: Option<Outlook>,
}

impl Leader {
    /// The operation's moves in all.
    fn tells(&mut self, catalog: &wire::Catalog, mut observed: Observed, id: u64) -> u64 {
        self.outlook = next(catalog, &observed, ALL).1.or(self.outlook.take());
        if let Some(outlook) = self.outlook.clone() {
            observed.expects(outlook);
        }
        let operation = catalog.operations.iter().find(|operation| operation.id == id).unwrap();
        total(catalog.map.as_ref().unwrap(), &observed, operation).0
    }
}

#[test]
fn what_an_operation_has_in_all_does_not_change_with_a_silence() {
    let up: Vec<u64> = (1..=6).collect();
    let joined = || {
        let mut catalog = cluster(3, 32);
        run(&mut catalog, &[1, 2, 3]);
        for node in 4..=6 {
            let incarnation = format!("i{node}");
            commit(&mut catalog, Change::Join(wire::JoinRequest { incarnation, ..Default::default() }));
        }
        catalog
    };
    let rebalanced = {
        let mut catalog = joined();
        let asked =
            wire::StartOperation { kind: OperationKind::Rebalance.into(), asked: true, ..Default::default() };
        let id = commit(&mut catalog, Change::StartOperation(asked)).operation;
        (catalog, id)
    };
    let drained = {
        let mut catalog = joined();
        run(&mut catalog, &up);
        let id = drain(&mut catalog, 1, false);
        (catalog, id)
    };
    for (mut catalog, id) in [rebalanced, drained] {
        let mut leader = Leader::default();
        let first = leader.tells(&catalog, seen(&catalog, &up), id);
        assert!(first >= 16, "{first} moves");
        while state_of(&catalog, id) == OperationState::Running {
            for silent in 1..=6 {
                // It has not been heard, nor for long enough to be down.
                let heard: Vec<u64> = up.iter().copied().filter(|&node| node != silent).collect();
                let told = leader.tells(&catalog, observed(&heard, &leaders_in(&catalog, &heard)), id);
                assert_eq!(told, first, "while node {silent} is silent");
            }
            assert!(!tick(&mut catalog, &up).is_empty());
        }
        assert_eq!(leader.tells(&catalog, seen(&catalog, &up), id), first);
    }
}

#[test]
fn a_silence_makes_no_moves_and_a_cancelled_operation_tells_each_group_once() {
    let mut catalog = cluster(3, 32);
    run(&mut catalog, &[1, 2, 3]);
    commit(
        &mut catalog,
        Change::Join(wire::JoinRequest { incarnation: "i4".to_owned(), ..Default::default() }),
    );
    let up = [1, 2, 3, 4];
    let id = loop {
        assert!(!tick(&mut catalog, &up).is_empty(), "nothing is rebalanced");
        let begun = |it: &&wire::Operation| {
            it.kind() == OperationKind::Rebalance
                && it.moves.iter().any(|step| step.step() == MoveStep::Moved)
        };
        if let Some(operation) = catalog.operations.iter().find(begun) {
            break operation.id;
        }
    };
    let heard = [1, 3, 4];
    let steps = decided(&catalog, &observed(&heard, &leaders_in(&catalog, &heard)), ALL);
    let plans = |step: &Step| matches!(step, Step::Start(_) | Step::Move { act: Act::TakeBack, .. });
    assert!(!steps.iter().any(plans), "{steps:?}");
    // Planned anew again and again, as when somebody else is down each time, and then cancelled.
    for down in [1, 2, 3] {
        let left: Vec<u64> = up.iter().copied().filter(|&node| node != down).collect();
        for nodes in [&left[..], &up[..]] {
            for _ in 0..3 {
                tick(&mut catalog, nodes);
            }
        }
    }
    let control = wire::Control::Cancel.into();
    let cancelled =
        commit(&mut catalog, Change::ControlOperation(wire::ControlOperation { operation: id, control }));
    if cancelled.refused.is_empty() {
        let operation = catalog.operations.iter().find(|operation| operation.id == id).unwrap();
        let mut groups: Vec<u32> = listed(operation)
            .filter(|(_, step)| step.step() != MoveStep::Moved)
            .map(|(_, step)| step.group)
            .collect();
        let all = groups.len();
        groups.sort_unstable();
        groups.dedup();
        assert_eq!(groups.len(), all, "{:?}", operation.moves);
    }
}

#[test]
fn a_rebalance_is_not_over_before_what_is_missing_is_made() {
    let mut catalog = cluster(3, 32);
    run(&mut catalog, &[1, 2, 3]);
    commit(
        &mut catalog,
        Change::Join(wire::JoinRequest { incarnation: "i4".to_owned(), ..Default::default() }),
    );
    let allowed = Allowed { rebalance: false, ..ALL };
    let asked =
        wire::StartOperation { kind: OperationKind::Rebalance.into(), asked: true, ..Default::default() };
    let id = commit(&mut catalog, Change::StartOperation(asked)).operation;
    // A node dies at once: what it held is to be made on the new one, so that nothing is uneven for now.
    for _ in 0..3 {
        let steps = decided(&catalog, &seen(&catalog, &[1, 2, 4]), allowed);
        for change in steps.into_iter().filter_map(recorded) {
            commit(&mut catalog, change);
        }
    }
    assert_eq!(state_of(&catalog, id), OperationState::Running);
    run_allowed(&mut catalog, &[1, 2, 3, 4], allowed);
    assert_eq!(state_of(&catalog, id), OperationState::Done);
    assert_eq!(counts(&catalog).into_values().collect::<Vec<_>>(), [24; 4]);
}

#[test]
fn a_dead_node_is_replaced_although_nothing_is_rebalanced() {
    let mut catalog = cluster(3, 12);
    run(&mut catalog, &[1, 2, 3]);
    for node in [4, 5, 6] {
        let incarnation = format!("i{node}");
        commit(&mut catalog, Change::Join(wire::JoinRequest { incarnation, ..Default::default() }));
    }
    run_allowed(&mut catalog, &[1, 3, 4, 5, 6], Allowed { rebalance: false, ..ALL });
    let dead = groups(&catalog).filter(|info| info.replicas.iter().any(|replica| replica.node == 2));
    assert_eq!(dead.count(), 0);
    let rebalance = |operation: &&wire::Operation| operation.kind() == OperationKind::Rebalance;
    assert_eq!(catalog.operations.iter().find(rebalance), None, "nobody asked");
}
