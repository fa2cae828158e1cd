//! Messages as nodes and routers exchange them.

use borough_node::raft::types::{Membership, membership_to_wire};
use borough_proto::key::ranges;
use borough_proto::wire::{self, catalog_command::Change, op::Action, raft_frame::Body};
use bytes::Bytes;
use prost::Message;

use super::Seed;
use crate::wire::{NAMES, catalog};

/// The message of that name, as the target takes it.
fn message(name: &str, message: &impl Message) -> Vec<u8> {
    let number = NAMES.iter().position(|known| *known == name).and_then(|at| u8::try_from(at).ok());
    let number = number.unwrap_or_else(|| panic!("{name} is no message of the target"));
    [vec![0, number], message.encode_to_vec()].concat()
}

fn script(kind: u8, messages: &[impl Message]) -> Vec<u8> {
    let mut bytes = vec![kind];
    messages.iter().for_each(|message| bytes.extend(message.encode_length_delimited_to_vec()));
    bytes
}

fn behind(kind: &[u8], message: &impl Message) -> Vec<u8> {
    [kind, &message.encode_to_vec()].concat()
}

fn frames() -> wire::RaftFrames {
    let vote = Some(wire::Vote { term: 5, voted_for: 11, committed: true });
    let at = |index| Some(wire::LogId { term: 5, index });
    let entry = wire::LogEntry { term: 5, index: 8, payload: Bytes::from_static(&[1, 8, 7]) };
    let append = wire::AppendRequest { vote, previous: at(7), commit: at(6), entries: vec![entry] };
    let bodies = [
        Body::Append(append),
        Body::Vote(wire::VoteRequest { vote, last: at(8), transfer: true }),
        Body::ReadIndexReply(wire::ReadIndexReply { index: Some(9), age_ms: 3 }),
        Body::Refused("no such replica".to_owned()),
        Body::Confirm(wire::ConfirmRequest {
            leaderships: vec![wire::Leadership { group: 2, leader: 11, term: 5, voter: 12 }],
        }),
        Body::ConfirmReply(wire::ConfirmReply { holds: vec![true, false] }),
    ];
    let frame = |(call, body)| wire::RaftFrame { call, group: 2, from: 11, to: 12, body: Some(body) };
    wire::RaftFrames { frames: (1..).zip(bodies).map(frame).collect() }
}

fn op(id: &str, sort: Option<&str>, action: Action) -> wire::Op {
    let sort = sort.map(str::to_owned);
    wire::Op { collection: 1, id: id.to_owned(), sort, action: Some(action), ..Default::default() }
}

fn put(json: &'static str) -> Action {
    Action::Put(wire::Put { document: Bytes::from_static(json.as_bytes()), flags: 1 })
}

fn commands() -> Vec<wire::Command> {
    let unit = |ops| wire::Unit { ops, idempotency: None };
    let key = wire::Idempotency {
        key: "k".to_owned(),
        position: 3,
        fingerprint: 7,
        note: Some(Bytes::from_static(b"n")),
    };
    let session = |sequence, acknowledged| Some(wire::Session { id: 77, sequence, acknowledged });
    let command = |stamp_ms, units| wire::Command { stamp_ms, units, ..Default::default() };
    let ttl = |op: wire::Op, ttl_ms| wire::Op { ttl_ms: Some(ttl_ms), ..op };
    let absent = wire::Precondition { if_absent: true, ..Default::default() };
    let conditional = wire::Op { precondition: Some(absent), ..op("a", None, put("{}")) };
    let patch = Action::Merge(wire::Merge { patch: Bytes::from_static(b"{\"n\":{\"m\":2},\"x\":null}") });
    let sweep = wire::Sweep {
        expire_max: 10,
        keys_before_ms: 50,
        keys_bytes_max: 10,
        sessions_before_ms: 60,
        collections: vec![2],
    };
    vec![
        wire::Command {
            session: session(1, 0),
            ..command(10, vec![unit(vec![op("a", None, put("{\"n\":1}"))])])
        },
        wire::Command { session: session(1, 0), ..command(11, vec![unit(vec![op("a", None, put("{}"))])]) },
        command(12, vec![unit(vec![op("a", None, patch), ttl(op("b", Some("s"), put("{}")), 5)])]),
        command(13, vec![wire::Unit { ops: vec![op("c", None, put("{}"))], idempotency: Some(key.clone()) }]),
        command(14, vec![wire::Unit { ops: vec![op("c", None, put("{}"))], idempotency: Some(key) }]),
        command(15, vec![unit(vec![op("d", None, put("{}")), conditional])]),
        wire::Command {
            session: session(66, 64),
            ..command(16, vec![unit(vec![op("a", None, Action::Delete(wire::Delete {}))])])
        },
        wire::Command { sweep: Some(sweep), ..command(100, Vec::new()) },
    ]
}

fn changes() -> Vec<wire::CatalogCommand> {
    let join = |number: u64| {
        let (incarnation, addr) = (format!("n{number}"), format!("127.0.0.1:{number}"));
        Change::Join(wire::JoinRequest { incarnation, addr, zone: "z".to_owned(), ..Default::default() })
    };
    let step = |group, from, to| wire::Move {
        group,
        from,
        to,
        step: wire::MoveStep::Pending.into(),
        ..Default::default()
    };
    let start = |kind: wire::OperationKind, node, moves| {
        Change::StartOperation(wire::StartOperation {
            kind: kind.into(),
            node,
            moves,
            asked: true,
            ..Default::default()
        })
    };
    let notes = wire::CollectionInfo { name: "notes".to_owned(), sort_key: true, ..Default::default() };
    let control = |control: wire::Control| {
        Change::ControlOperation(wire::ControlOperation { operation: 1, control: control.into() })
    };
    let all = [
        join(2),
        join(3),
        Change::PutCollection(wire::PutCollectionRequest { collection: Some(notes) }),
        start(wire::OperationKind::Rebalance, 0, vec![step(1, 1, 2), step(2, 0, 3)]),
        Change::BeginMove(wire::BeginMove { operation: 1, r#move: 0, epoch: 1 }),
        Change::FinishMove(wire::FinishMove { operation: 1, r#move: 0, epoch: 2 }),
        control(wire::Control::Pause),
        control(wire::Control::Resume),
        control(wire::Control::Cancel),
        Change::UndoMove(wire::UndoMove { operation: 1, r#move: 1, undone: true, epoch: 1 }),
        Change::EndOperation(wire::EndOperation { operation: 1, stamp_ms: 9 }),
        start(wire::OperationKind::Drain, 3, vec![step(0, 3, 2)]),
        Change::Undrain(wire::Undrain { node: 3 }),
        Change::RemoveNode(wire::RemoveNode { node: 3 }),
        Change::DeleteCollection(wire::DeleteCollectionRequest { name: "notes".to_owned() }),
    ];
    let commands = all.into_iter().map(|change| wire::CatalogCommand { change: Some(change) });
    std::iter::once(catalog::init()).chain(commands).collect()
}

fn map() -> wire::ClusterMap {
    let shard = |(id, (first, last))| wire::ShardInfo { id, first, last, epoch: 1, replicas: Vec::new() };
    let users = wire::CollectionInfo { id: 1, name: "users".to_owned(), ..Default::default() };
    wire::ClusterMap {
        cluster_id: "c".to_owned(),
        epoch: 4,
        replication_factor: 3,
        nodes: vec![wire::NodeInfo { id: 1, addr: "127.0.0.1:1".to_owned(), ..Default::default() }],
        shards: (0..).zip(ranges(3)).map(shard).collect(),
        collections: vec![users],
        meta: None,
        next_collection: 2,
    }
}

fn updates() -> Vec<u8> {
    let node = wire::NodeInfo { id: 2, addr: "127.0.0.1:2".to_owned(), ..Default::default() };
    let update = wire::MapUpdate {
        since: 4,
        epoch: 5,
        nodes: vec![node],
        removed_collections: vec![1],
        ..Default::default()
    };
    [script(7, &[map()]), update.encode_length_delimited_to_vec()].concat()
}

fn membership() -> wire::Membership {
    let set = |replicas: &[u64]| wire::VoterSet { replicas: replicas.to_vec() };
    let member = |replica| wire::Member { replica, node: replica + 10 };
    wire::Membership { configs: vec![set(&[1, 2]), set(&[2, 3])], members: (1..5).map(member).collect() }
}

pub fn seeds() -> Vec<Seed> {
    let header = wire::SnapshotHeader {
        group: 1,
        from: 2,
        to: 3,
        membership: Some(membership()),
        snapshot: 9,
        ..Default::default()
    };
    let chunk = wire::SnapshotChunk {
        header: Some(header),
        data: Bytes::from_static(b"\0\0\0\x01k\0\0\0\x01v"),
        ..Default::default()
    };
    let applied = wire::AppliedState {
        applied: Some(wire::LogId { term: 2, index: 9 }),
        membership_id: Some(wire::LogId { term: 1, index: 3 }),
        membership: Some(membership()),
    };
    let key = wire::DocumentKey { collection: 1, id: "a".to_owned(), sort: Some("s".to_owned()) };
    let scan = wire::Scan { collection: 1, after: Some(key), limit: 5, reverse: true, ..Default::default() };
    let request = wire::DataRequest {
        call: 1,
        shard: 2,
        epoch: 3,
        timeout_ms: 50,
        op: Some(wire::data_request::Op::Scan(scan)),
    };
    let fault = wire::Fault::not_leader(Some(borough_proto::NodeId(3)));
    let reply = wire::DataReply {
        call: 1,
        node: 2,
        result: Some(wire::data_reply::Result::Fault(fault)),
        ..Default::default()
    };
    let empty = membership_to_wire(&Membership::default());
    vec![
        ("raft-frames", message("RaftFrames", &frames())),
        ("snapshot-chunk", message("SnapshotChunk", &chunk)),
        ("data-requests", message("DataRequests", &wire::DataRequests { requests: vec![request] })),
        ("data-replies", message("DataReplies", &wire::DataReplies { replies: vec![reply] })),
        ("cluster-map", message("ClusterMap", &map())),
        (
            "report",
            message("NodeReport", &wire::NodeReport { cache_hit_ratio: f64::NAN, ..Default::default() }),
        ),
        ("entry-blank", vec![3, 0]),
        ("entry-normal", behind(&[3, 1], &commands().first().cloned().unwrap_or_default())),
        ("entry-membership", behind(&[3, 2], &membership())),
        ("membership", behind(&[3], &membership())),
        ("membership-none", behind(&[3, 2], &empty)),
        ("applied", behind(&[3], &applied)),
        ("chunk", b"\x04\0\0\0\x01k\0\0\0\0".to_vec()),
        ("commands", script(5, &commands())),
        ("catalog", script(6, &changes())),
        ("updates", updates()),
    ]
}
