//! What lies behind the messages of Raft: log entries' payloads, memberships, applied positions, heads of snapshots.

use borough_node::raft::types::{
    applied_from_wire, applied_to_wire, decode_payload, encode_payload, membership_from_wire,
    membership_to_wire,
};
use borough_proto::wire;
use bytes::Bytes;
use prost::Message;

pub fn run(bytes: &[u8]) {
    payload(&Bytes::copy_from_slice(bytes));
    if let Ok(wire) = wire::Membership::decode(bytes) {
        membership(&wire);
    }
    if let Ok(wire) = wire::AppliedState::decode(bytes)
        && let Ok((applied, membership)) = applied_from_wire(&wire)
    {
        let again = applied_to_wire(applied.as_ref(), &membership);
        assert_eq!(applied_from_wire(&again), Ok((applied, membership)));
    }
    if let Ok(header) = wire::SnapshotHeader::decode(bytes)
        && let Ok(meta) = borough_node::fuzzing::snapshot_header(&header)
    {
        assert_eq!(meta.last_log_id.is_some(), header.last.is_some());
    }
}

fn payload(bytes: &Bytes) {
    let Ok(payload) = decode_payload(bytes) else { return };
    let encoded = encode_payload(&payload);
    let again = decode_payload(&encoded).unwrap_or_else(|error| panic!("what was encoded: {error}"));
    assert!(again == payload, "{payload:?} became {again:?}");
}

fn membership(wire: &wire::Membership) {
    let Ok(membership) = membership_from_wire(wire) else { return };
    let again = membership_from_wire(&membership_to_wire(&membership));
    assert_eq!(again, Ok(membership));
}
