//! Every message of the contract that a node, a router or a client takes from outside, or reads back from its log.

use borough_proto::wire;
use prost::Message;

/// Decodes, encodes and decodes again. Compared as bytes: not-a-number is not equal to itself.
fn again<M: Message + Default>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else { return };
    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    let decoded = M::decode(encoded.as_slice()).unwrap_or_else(|error| panic!("what was encoded: {error}"));
    assert_eq!(decoded.encode_to_vec(), encoded);
}

macro_rules! messages {
    ($($name:ident)*) => {
        /// The messages by their numbers in an input.
        pub const NAMES: &[&str] = &[$(stringify!($name),)*];
        const AGAIN: &[fn(&[u8])] = &[$(again::<wire::$name>,)*];
    };
}

// Corpus files hold these numbers: add at the end.
messages! {
    RaftFrames SnapshotChunk SnapshotAck AppliedState Membership
    DataRequests DataReplies Command CommandReply Fault
    Catalog CatalogCommand CatalogReply ClusterMap MapUpdate WatchRequest
    InitRequest InitReply JoinRequest JoinReply PutCollectionRequest PutCollectionReply
    DeleteCollectionRequest DeleteCollectionReply StatusRequest StatusReply NodeReport ReportReply
    ProposeReply ReconfigureRequest ReconfigureReply OperateRequest OperateReply
}

pub fn round_trip(message: u8, bytes: &[u8]) {
    if let Some(again) = AGAIN.get(usize::from(message) % AGAIN.len()) {
        again(bytes);
    }
}
