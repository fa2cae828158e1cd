//! The data plane as a [`Protocol`] of the multiplexer.

use prost::Message as _;

use super::mux::Protocol;
use crate::wire;

/// `Data.Exchange`.
pub struct DataProtocol;

impl Protocol for DataProtocol {
    type Request = wire::DataRequest;
    type Requests = wire::DataRequests;
    type Reply = wire::DataReply;
    type Replies = wire::DataReplies;

    fn set_call(request: &mut wire::DataRequest, call: u64) {
        request.call = call;
    }

    fn call(reply: &wire::DataReply) -> u64 {
        reply.call
    }

    fn request_bytes(request: &wire::DataRequest) -> usize {
        request.encoded_len()
    }

    fn pack(requests: Vec<wire::DataRequest>) -> wire::DataRequests {
        wire::DataRequests { requests }
    }

    fn unpack(replies: wire::DataReplies) -> Vec<wire::DataReply> {
        replies.replies
    }
}
