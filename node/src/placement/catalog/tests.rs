use proptest::prelude::*;
use wire::{MoveStep, NodeState, OperationKind, OperationState, ReplicaRole};

use super::*;

fn join(incarnation: &str, node: u64) -> wire::JoinRequest {
    wire::JoinRequest {
        node,
        addr: format!("127.0.0.1:{}", incarnation.len()),
        incarnation: incarnation.to_owned(),
        ..Default::default()
    }
}

fn command(change: Change) -> wire::CatalogCommand {
    wire::CatalogCommand { change: Some(change) }
}

fn initialized() -> wire::Catalog {
    let mut catalog = wire::Catalog::default();
    let init = wire::InitCatalog {
        cluster_id: "c".to_owned(),
        shards: 4,
        replicas: 3,
        node: Some(join("first", 0)),
        meta_replica: 1,
    };
    assert!(apply(&mut catalog, command(Change::Init(init.clone()))).changed);
    let again = apply(&mut catalog, command(Change::Init(init)));
    assert!(!again.refused.is_empty(), "a second init must be refused");
    catalog
}

#[test]
fn a_cluster_begins_with_replica_ids_to_give_out() {
    let init =
        |meta_replica| Change::Init(wire::InitCatalog { meta_replica, shards: 4, ..Default::default() });
    for last in [u64::MAX, u64::MAX - 1, u64::MAX - 4] {
        let mut catalog = wire::Catalog::default();
        assert!(!apply(&mut catalog, command(init(last))).refused.is_empty());
        assert_eq!(catalog, wire::Catalog::default());
    }
}

#[test]
fn a_resent_join_gets_the_same_id_and_a_foreign_id_is_refused() {
    let mut catalog = initialized();
    let first = apply(&mut catalog, command(Change::Join(join("second", 0))));
    let again = apply(&mut catalog, command(Change::Join(join("second", 0))));
    assert_eq!((first.node, again.node, again.changed), (2, 2, false));
    assert_eq!(first.epoch, again.epoch);
    let moved = wire::JoinRequest { addr: "127.0.0.1:99".to_owned(), ..join("second", 2) };
    assert!(apply(&mut catalog, command(Change::Join(moved))).changed);
    for bad in [join("second", 3), join("unknown", 2)] {
        assert!(!apply(&mut catalog, command(Change::Join(bad))).refused.is_empty());
    }
    let other = wire::JoinRequest { cluster_id: "d".to_owned(), ..join("third", 0) };
    assert!(!apply(&mut catalog, command(Change::Join(other))).refused.is_empty());
}

#[test]
fn collections_keep_their_ids_and_sort_key() {
    let mut catalog = initialized();
    let put = |catalog: &mut wire::Catalog, name: &str, sort_key| {
        let collection = wire::CollectionInfo { name: name.to_owned(), sort_key, ..Default::default() };
        apply(
            catalog,
            command(Change::PutCollection(wire::PutCollectionRequest { collection: Some(collection) })),
        )
    };
    let posts = put(&mut catalog, "posts", true).collection.unwrap().id;
    assert!(!put(&mut catalog, "posts", false).refused.is_empty());
    assert!(!put(&mut catalog, "Posts", false).refused.is_empty());
    let delete = wire::DeleteCollectionRequest { name: "posts".to_owned() };
    assert!(apply(&mut catalog, command(Change::DeleteCollection(delete.clone()))).changed);
    assert!(!apply(&mut catalog, command(Change::DeleteCollection(delete))).changed);
    assert!(put(&mut catalog, "posts", true).collection.unwrap().id > posts);
}

/// Three nodes, four shards and the meta group with one replica each on node 1.
fn three_nodes() -> wire::Catalog {
    let mut catalog = initialized();
    apply(&mut catalog, command(Change::Join(join("second", 0))));
    apply(&mut catalog, command(Change::Join(join("third", 0))));
    catalog
}

fn moving(group: u32, from: u64, to: u64) -> wire::Move {
    wire::Move { group, from, to, bytes: 10, ..Default::default() }
}

fn start(
    catalog: &mut wire::Catalog,
    kind: OperationKind,
    node: u64,
    moves: Vec<wire::Move>,
) -> wire::CatalogReply {
    let start = wire::StartOperation { kind: kind.into(), node, moves, stamp_ms: 5, ..Default::default() };
    apply(catalog, command(Change::StartOperation(start)))
}

fn shard(catalog: &wire::Catalog, id: usize) -> wire::ShardInfo {
    catalog.map.as_ref().unwrap().shards[id].clone()
}

fn nodes_of(catalog: &wire::Catalog, id: usize) -> Vec<(u64, ReplicaRole)> {
    shard(catalog, id).replicas.iter().map(|replica| (replica.node, replica.role())).collect()
}

fn begin(catalog: &mut wire::Catalog, operation: u64, position: u32, id: usize) -> wire::CatalogReply {
    let epoch = shard(catalog, id).epoch;
    apply(catalog, command(Change::BeginMove(wire::BeginMove { operation, r#move: position, epoch })))
}

fn finish(catalog: &mut wire::Catalog, operation: u64, position: u32, epoch: u64) -> wire::CatalogReply {
    apply(catalog, command(Change::FinishMove(wire::FinishMove { operation, r#move: position, epoch })))
}

fn undo(
    catalog: &mut wire::Catalog,
    operation: u64,
    position: u32,
    undone: bool,
    epoch: u64,
) -> wire::CatalogReply {
    apply(catalog, command(Change::UndoMove(wire::UndoMove { operation, r#move: position, undone, epoch })))
}

fn control(catalog: &mut wire::Catalog, operation: u64, control: wire::Control) -> wire::CatalogReply {
    apply(
        catalog,
        command(Change::ControlOperation(wire::ControlOperation { operation, control: control.into() })),
    )
}

fn end(catalog: &mut wire::Catalog, operation: u64) -> wire::CatalogReply {
    apply(catalog, command(Change::EndOperation(wire::EndOperation { operation, stamp_ms: 9 })))
}

#[test]
fn a_move_goes_step_by_step_and_each_step_once() {
    use ReplicaRole::{Learner, Leaving, Voter};
    let mut catalog = three_nodes();
    let id = start(
        &mut catalog,
        OperationKind::Rebalance,
        0,
        vec![moving(2, 1, 2), moving(2, 1, 3), moving(3, 1, 3)],
    )
    .operation;
    assert_eq!(catalog.operations[0].moves.len(), 2, "one move of a group at a time");
    assert!(begin(&mut catalog, id, 0, 1).changed);
    assert!(!begin(&mut catalog, id, 0, 1).changed, "it has begun");
    assert_eq!(nodes_of(&catalog, 1), [(1, Leaving), (2, Learner)]);
    assert!(!end(&mut catalog, id).changed, "moves are under way");
    let epoch = shard(&catalog, 1).epoch;
    assert!(!finish(&mut catalog, id, 0, epoch - 1).changed, "of an epoch that has passed");
    assert!(finish(&mut catalog, id, 0, epoch).changed);
    assert!(!finish(&mut catalog, id, 0, epoch + 1).changed);
    assert_eq!(nodes_of(&catalog, 1), [(2, Voter)]);
    assert!(begin(&mut catalog, id, 1, 2).changed);
    let epoch = shard(&catalog, 2).epoch;
    assert!(finish(&mut catalog, id, 1, epoch).changed);
    assert!(end(&mut catalog, id).changed);
    assert_eq!((catalog.operations[0].state(), catalog.operations[0].ended_ms), (OperationState::Done, 9));
}

#[test]
fn a_group_gains_a_replica_and_loses_one_too_many() {
    use ReplicaRole::{Learner, Leaving, Voter};
    let mut catalog = three_nodes();
    let id = start(&mut catalog, OperationKind::Repair, 0, vec![moving(1, 0, 2)]).operation;
    begin(&mut catalog, id, 0, 0);
    assert_eq!(nodes_of(&catalog, 0), [(1, Voter), (2, Learner)]);
    let epoch = shard(&catalog, 0).epoch;
    finish(&mut catalog, id, 0, epoch);
    start(&mut catalog, OperationKind::Repair, 0, vec![moving(1, 1, 0)]);
    begin(&mut catalog, id, 1, 0);
    assert_eq!(nodes_of(&catalog, 0), [(1, Leaving), (2, Voter)]);
    let epoch = shard(&catalog, 0).epoch;
    finish(&mut catalog, id, 1, epoch);
    assert_eq!(nodes_of(&catalog, 0), [(2, Voter)]);
    start(&mut catalog, OperationKind::Repair, 0, vec![moving(1, 2, 0)]);
    begin(&mut catalog, id, 2, 0);
    assert_eq!(nodes_of(&catalog, 0), [(2, Voter)], "the last one stays");
    assert_eq!(catalog.operations[0].moves[2].step(), MoveStep::Dropped);
}

#[test]
fn what_is_cancelled_leaves_the_map_as_it_was() {
    let mut catalog = three_nodes();
    let before = nodes_of(&catalog, 1);
    let id =
        start(&mut catalog, OperationKind::Rebalance, 0, vec![moving(2, 1, 2), moving(3, 1, 3)]).operation;
    begin(&mut catalog, id, 0, 1);
    assert!(control(&mut catalog, id, wire::Control::Pause).changed);
    assert!(!begin(&mut catalog, id, 1, 2).changed, "it is paused");
    assert!(control(&mut catalog, id, wire::Control::Resume).changed);
    assert!(control(&mut catalog, id, wire::Control::Cancel).changed);
    assert!(catalog.balance_held);
    let steps = |catalog: &wire::Catalog| {
        catalog.operations[0].moves.iter().map(wire::Move::step).collect::<Vec<_>>()
    };
    assert_eq!(steps(&catalog), [MoveStep::Undoing, MoveStep::Dropped]);
    let epoch = shard(&catalog, 1).epoch;
    assert!(!finish(&mut catalog, id, 0, epoch).changed, "it is being taken back");
    assert!(undo(&mut catalog, id, 0, true, epoch).changed);
    assert_eq!(nodes_of(&catalog, 1), before);
    assert!(end(&mut catalog, id).changed);
    assert_eq!(catalog.operations[0].state(), OperationState::Cancelled);
    assert!(!control(&mut catalog, id, wire::Control::Resume).refused.is_empty(), "it has ended");
}

#[test]
fn a_drained_node_is_removed_when_it_is_empty() {
    let mut catalog = three_nodes();
    let moves = (1..=5).map(|group| moving(group % 5, 1, 2 + u64::from(group % 2))).collect();
    let id = start(&mut catalog, OperationKind::Drain, 1, moves).operation;
    assert_eq!(catalog.map.as_ref().unwrap().nodes[0].state(), NodeState::Draining);
    assert!(
        !apply(&mut catalog, command(Change::RemoveNode(wire::RemoveNode { node: 1 }))).refused.is_empty()
    );
    let again = wire::StartOperation {
        kind: OperationKind::Drain.into(),
        node: 1,
        remove: true,
        ..Default::default()
    };
    assert_eq!(apply(&mut catalog, command(Change::StartOperation(again))).operation, id);
    for position in 0..5 {
        let group = catalog.operations[0].moves[position as usize].group;
        let epoch =
            |catalog: &mut wire::Catalog| group_mut(catalog.map.as_mut().unwrap(), group).unwrap().epoch;
        let at = epoch(&mut catalog);
        let begin = wire::BeginMove { operation: id, r#move: position, epoch: at };
        assert!(apply(&mut catalog, command(Change::BeginMove(begin))).changed);
        assert!(!end(&mut catalog, id).changed);
        let at = epoch(&mut catalog);
        assert!(finish(&mut catalog, id, position, at).changed);
    }
    assert!(end(&mut catalog, id).changed);
    assert_eq!(catalog.map.as_ref().unwrap().nodes[0].state(), NodeState::Removed);
    assert!(!apply(&mut catalog, command(Change::Join(join("first", 1)))).refused.is_empty(), "for good");
}

#[test]
fn an_undrained_node_is_a_member_again() {
    let mut catalog = three_nodes();
    let id = start(&mut catalog, OperationKind::Drain, 1, vec![moving(1, 1, 2), moving(2, 1, 3)]).operation;
    begin(&mut catalog, id, 0, 0);
    assert!(apply(&mut catalog, command(Change::Undrain(wire::Undrain { node: 1 }))).changed);
    assert_eq!(catalog.map.as_ref().unwrap().nodes[0].state(), NodeState::Member);
    assert_eq!(catalog.operations[0].state(), OperationState::Cancelling);
    assert!(!apply(&mut catalog, command(Change::Undrain(wire::Undrain { node: 1 }))).changed);
    let target = wire::Undrain { node: 9 };
    assert!(!apply(&mut catalog, command(Change::Undrain(target))).refused.is_empty());
}

#[test]
fn of_ended_operations_the_last_are_kept() {
    let mut catalog = three_nodes();
    for _ in 0..60 {
        let asked =
            wire::StartOperation { kind: OperationKind::Rebalance.into(), asked: true, ..Default::default() };
        let id = apply(&mut catalog, command(Change::StartOperation(asked))).operation;
        end(&mut catalog, id);
    }
    assert_eq!((catalog.operations.len(), catalog.operations.last().unwrap().id), (51, 60));
}

proptest! {
    /// I6; ids are never given out twice; a node has a group once; no group is without a voter, whatever is sent and how often.
    #[test]
    fn whatever_comes_the_map_stays_sound(
        steps in proptest::collection::vec((0_u8..11, 0_u64..5, 0_u32..6, 0_u64..5, 0_u64..12), 0..120),
    ) {
        let mut catalog = initialized();
        for (kind, node, group, other, epoch) in steps {
            let position = group % 3;
            let operation = other;
            let change = match kind {
                0 => Change::Join(join(&format!("n{node}"), 0)),
                1 | 2 => {
                    let kind = [OperationKind::Rebalance, OperationKind::Drain, OperationKind::Repair][(epoch % 3) as usize];
                    let moves = vec![moving(group, node, other), moving(position, other, node)];
                    let node = if kind == OperationKind::Drain { node } else { 0 };
                    Change::StartOperation(wire::StartOperation { kind: kind.into(), node, moves, remove: epoch > 8, ..Default::default() })
                }
                3 | 4 => Change::BeginMove(wire::BeginMove { operation, r#move: position, epoch }),
                5 | 6 => Change::FinishMove(wire::FinishMove { operation, r#move: position, epoch }),
                7 => Change::UndoMove(wire::UndoMove { operation, r#move: position, undone: epoch % 2 == 0, epoch: epoch / 2 }),
                8 => Change::ControlOperation(wire::ControlOperation { operation, control: i32::try_from(epoch % 4).unwrap() }),
                9 => Change::EndOperation(wire::EndOperation { operation, stamp_ms: 1 }),
                _ => if epoch % 2 == 0 { Change::Undrain(wire::Undrain { node }) } else { Change::RemoveNode(wire::RemoveNode { node }) },
            };
            let before = catalog.clone();
            let reply = apply(&mut catalog, command(change));
            prop_assert_eq!(reply.changed, (&catalog.map, &catalog.operations) != (&before.map, &before.operations));
            let (old, new) = (before.map.unwrap(), catalog.map.clone().unwrap());
            prop_assert!(new.epoch >= old.epoch && (new.epoch > old.epoch) == (new != old));
            for (old, new) in old.shards.iter().chain(&old.meta).zip(new.shards.iter().chain(&new.meta)) {
                prop_assert!(new.epoch >= old.epoch && (new.epoch > old.epoch) == (new != old));
                let votes = |info: &wire::ShardInfo| info.replicas.iter().filter(|replica| replica.role() != ReplicaRole::Learner).count();
                prop_assert!(votes(new) > 0);
                let mut nodes = new.replicas.iter().map(|replica| replica.node).collect::<Vec<_>>();
                nodes.sort_unstable();
                nodes.dedup();
                prop_assert_eq!(nodes.len(), new.replicas.len(), "a node has a group once");
            }
            let mut ids: Vec<_> = new.shards.iter().chain(&new.meta).flat_map(|shard| &shard.replicas).map(|replica| replica.id).collect();
            let all = ids.len();
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), all);
            prop_assert!(new.shards.iter().flat_map(|shard| &shard.replicas).all(|replica| replica.id < catalog.next_replica));
            let gone = |id: u64| new.nodes.iter().any(|node| node.id == id && node.state() == NodeState::Removed);
            prop_assert!(new.shards.iter().flat_map(|shard| &shard.replicas).all(|replica| !gone(replica.node)), "the removed have nothing");
        }
    }
}
