//! The types that Raft runs with, and their forms on the wire and in the log.
//!
//! Raft's node id is a *replica id*: given out once by the catalog, never reused. A member's
//! metadata is the id of its node; addresses come from the cluster map, because they change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use borough_proto::{NodeId, wire};
use bytes::{BufMut, Bytes, BytesMut};
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, RaftTypeConfig};
use prost::Message;

/// Raft's type parameters for every group of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Reply;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Proposal, u64, Member>;
    type Entry = openraft::impls::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = openraft::TokioRuntime;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = openraft::AnyError;
}

pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type Membership = openraft::Membership<u64, Member>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// A command as the log keeps it: encoded once by the proposer, shared from there to log and followers.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry answers to its proposer.
#[derive(Debug, Clone, Default)]
pub enum Reply {
    /// Of blank and membership entries.
    #[default]
    None,
    Shard(wire::CommandReply),
    Catalog(wire::CatalogReply),
    /// The entry was not understood and changed nothing.
    Undecodable,
}

/// Where a replica lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
}

/// Bytes from disk or a peer that are not what they should be (I10).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("decode {what}: {detail}")]
pub struct DecodeError {
    pub what: &'static str,
    pub detail: String,
}

const KIND_BLANK: u8 = 0;
const KIND_NORMAL: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// The log's form of a payload: a kind byte, then the command or the membership.
pub fn encode_payload(payload: &EntryPayload<Proposal, u64, Member>) -> Bytes {
    match payload {
        EntryPayload::Blank => Bytes::from_static(&[KIND_BLANK]),
        // Proposals are made with their kind byte in front, so nothing is copied here.
        EntryPayload::Normal(proposal) => proposal.0.clone(),
        EntryPayload::Membership(membership) => {
            let wire = membership_to_wire(membership);
            let mut bytes = BytesMut::with_capacity(wire.encoded_len() + 1);
            bytes.put_u8(KIND_MEMBERSHIP);
            bytes.put(wire.encode_to_vec().as_slice());
            bytes.freeze()
        }
    }
}

/// A proposal of `message`, with the log's kind byte already in front.
pub fn proposal(message: &impl Message) -> Proposal {
    let mut bytes = BytesMut::with_capacity(message.encoded_len() + 1);
    bytes.put_u8(KIND_NORMAL);
    // Encoding into a growing buffer cannot fail; a message that did not fit would be undecodable.
    let _ = message.encode(&mut bytes);
    Proposal(bytes.freeze())
}

/// The command inside a proposal.
pub fn proposal_message(proposal: &Proposal) -> Bytes {
    if proposal.0.is_empty() { Bytes::new() } else { proposal.0.slice(1..) }
}

/// Reads what [`encode_payload`] made.
pub fn decode_payload(bytes: &Bytes) -> Result<EntryPayload<Proposal, u64, Member>, DecodeError> {
    match bytes.first() {
        Some(&KIND_BLANK) => Ok(EntryPayload::Blank),
        Some(&KIND_NORMAL) => Ok(EntryPayload::Normal(Proposal(bytes.clone()))),
        Some(&KIND_MEMBERSHIP) => {
            let wire = wire::Membership::decode(bytes.slice(1..))
                .map_err(|error| DecodeError { what: "membership", detail: error.to_string() })?;
            Ok(EntryPayload::Membership(membership_from_wire(&wire)?))
        }
        Some(kind) => Err(DecodeError { what: "log payload", detail: format!("unknown kind {kind}") }),
        None => Err(DecodeError { what: "log payload", detail: "empty".to_owned() }),
    }
}

pub fn entry(term: u64, index: u64, payload: &Bytes) -> Result<Entry, DecodeError> {
    Ok(Entry { log_id: log_id(term, index), payload: decode_payload(payload)? })
}

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

/// (term, index) of a log id.
pub fn parts(log_id: &LogId) -> (u64, u64) {
    (log_id.leader_id.term, log_id.index)
}

pub fn log_id_to_wire(log_id: &LogId) -> wire::LogId {
    let (term, index) = parts(log_id);
    wire::LogId { term, index }
}

pub fn log_id_from_wire(wire: &wire::LogId) -> LogId {
    log_id(wire.term, wire.index)
}

pub fn vote_to_wire(vote: &Vote) -> wire::Vote {
    wire::Vote { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, committed: vote.committed }
}

pub fn vote_from_wire(wire: &wire::Vote) -> Vote {
    if wire.committed {
        Vote::new_committed(wire.term, wire.voted_for)
    } else {
        Vote::new(wire.term, wire.voted_for)
    }
}

pub fn membership_to_wire(membership: &Membership) -> wire::Membership {
    let configs = membership.get_joint_config().iter();
    wire::Membership {
        configs: configs.map(|set| wire::VoterSet { replicas: set.iter().copied().collect() }).collect(),
        members: membership
            .nodes()
            .map(|(&replica, member)| wire::Member { replica, node: member.node.get() })
            .collect(),
    }
}

pub fn membership_from_wire(wire: &wire::Membership) -> Result<Membership, DecodeError> {
    let configs: Vec<BTreeSet<u64>> =
        wire.configs.iter().map(|set| set.replicas.iter().copied().collect()).collect();
    let members: BTreeMap<u64, Member> =
        wire.members.iter().map(|member| (member.replica, Member { node: NodeId(member.node) })).collect();
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, members)
        .map_err(|error| DecodeError { what: "membership", detail: error.to_string() })
}

/// The applied position and membership as they are kept beside the data (I4).
pub fn applied_to_wire(applied: Option<&LogId>, membership: &StoredMembership) -> wire::AppliedState {
    wire::AppliedState {
        applied: applied.map(log_id_to_wire),
        membership_id: membership.log_id().as_ref().map(log_id_to_wire),
        membership: Some(membership_to_wire(membership.membership())),
    }
}

pub fn applied_from_wire(
    wire: &wire::AppliedState,
) -> Result<(Option<LogId>, StoredMembership), DecodeError> {
    let membership = match &wire.membership {
        Some(membership) => membership_from_wire(membership)?,
        None => Membership::default(),
    };
    let stored = StoredMembership::new(wire.membership_id.as_ref().map(log_id_from_wire), membership);
    Ok((wire.applied.as_ref().map(log_id_from_wire), stored))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn payloads_round_trip() {
        let membership = Membership::new(
            vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])],
            BTreeMap::from([1, 2, 3, 4].map(|id| (id, Member { node: NodeId(id + 10) }))),
        )
        .unwrap();
        let command = wire::CatalogReply { epoch: 7, ..Default::default() };
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(proposal(&command)),
            EntryPayload::Membership(membership),
        ] {
            assert!(decode_payload(&encode_payload(&payload)).unwrap() == payload, "{payload:?}");
        }
        let bytes = proposal_message(&proposal(&command));
        assert_eq!(wire::CatalogReply::decode(bytes).unwrap(), command);
    }

    proptest! {
        #[test]
        fn hostile_payloads_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_payload(&Bytes::from(bytes));
        }
    }
}
