//! What peers ask of a replica.

use std::time::Duration;

use borough_proto::wire::{self, raft_frame::Body};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};
use tokio::time::Instant;

use super::Group;
use crate::raft::types::{TypeConfig, entry, log_id_from_wire, log_id_to_wire, vote_from_wire, vote_to_wire};

/// How long the next leader waits for the rest of the log, and between looks.
const TAKE_OVER_MAX: Duration = Duration::from_millis(500);
const TAKE_OVER_RETRY: Duration = Duration::from_millis(2);

impl Group {
    /// Answers a peer's message.
    pub async fn handle(&self, frame: wire::RaftFrame) -> Body {
        let Some(body) = frame.body else { return refused("an empty frame") };
        match body {
            Body::Append(request) => self.handle_append(request).await,
            other => Box::pin(self.handle_rare(other)).await,
        }
    }

    async fn handle_rare(&self, body: Body) -> Body {
        match body {
            Body::Vote(request) => {
                let voting = self.contact.asked();
                match self.raft.vote(vote_request(&request)).await {
                    Ok(response) => {
                        if response.vote_granted {
                            voting.granted(Instant::now());
                        }
                        vote_reply(&response)
                    }
                    Err(error) => refused(error),
                }
            }
            Body::PreVote(request) => match self.raft.pre_vote(vote_request(&request)).await {
                Ok(response) => vote_reply(&response),
                Err(error) => refused(error),
            },
            Body::Transfer(request) => {
                let transfer = TransferLeaderRequest::new(
                    vote_from_wire(&request.from.unwrap_or_default()),
                    request.to,
                    request.last.as_ref().map(log_id_from_wire),
                );
                self.take_over(transfer).await
            }
            Body::ReadIndex(request) if request.standing => {
                let proof = self.standing_proof();
                // Rounded up: the bound must hold.
                let age_ms = proof.map_or(0, |(_, age)| {
                    u64::try_from(age.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
                });
                Body::ReadIndexReply(wire::ReadIndexReply { index: proof.map(|(index, _)| index), age_ms })
            }
            Body::ReadIndex(_) => {
                let index = self.confirmed_index().await.ok();
                Body::ReadIndexReply(wire::ReadIndexReply { index, age_ms: 0 })
            }
            // Of no one group: the node answers it.
            Body::Confirm(_) => refused("a question to the node, not to a replica"),
            Body::Append(_)
            | Body::AppendReply(_)
            | Body::VoteReply(_)
            | Body::TransferReply(_)
            | Body::ReadIndexReply(_)
            | Body::ConfirmReply(_)
            | Body::Refused(_) => refused("an answer where a request was expected"),
        }
    }

    /// Takes the leadership over. The leader has stopped proposing and goes on sending its log, so what is missing
    /// here arrives in a moment; refusing at once would leave the group to wait for an election.
    async fn take_over(&self, transfer: TransferLeaderRequest<TypeConfig>) -> Body {
        let deadline = Instant::now() + TAKE_OVER_MAX;
        loop {
            match self.raft.handle_transfer_leader(transfer.clone()).await {
                Ok(Err(TransferLeaderError::LogNotFlushed { .. })) if Instant::now() < deadline => {
                    tokio::time::sleep(TAKE_OVER_RETRY).await;
                }
                Ok(result) => return Body::TransferReply(wire::TransferReply { accepted: result.is_ok() }),
                Err(error) => return refused(error),
            }
        }
    }

    async fn handle_append(&self, request: wire::AppendRequest) -> Body {
        let entries: Result<Vec<_>, _> =
            request.entries.iter().map(|wire| entry(wire.term, wire.index, &wire.payload)).collect();
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return refused(error),
        };
        // I10: the log takes no gaps, whatever a peer sends.
        let first = request.previous.as_ref().map_or(Some(0), |previous| previous.index.checked_add(1));
        let mut expected = first;
        for entry in &request.entries {
            if expected != Some(entry.index) {
                return refused("the entries do not follow each other");
            }
            expected = entry.index.checked_add(1);
        }
        let rpc = AppendEntriesRequest {
            vote: vote_from_wire(&request.vote.unwrap_or_default()),
            prev_log_id: request.previous.as_ref().map(log_id_from_wire),
            entries,
            leader_commit: request.commit.as_ref().map(log_id_from_wire),
        };
        use wire::append_reply::Kind;
        let result = self.raft.append_entries(rpc).await;
        if matches!(result, Ok(AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_))) {
            self.contact.heard(Instant::now());
        }
        let (kind, matching, vote) = match result {
            Ok(AppendEntriesResponse::Success) => (Kind::Success, None, None),
            Ok(AppendEntriesResponse::PartialSuccess(matching)) => (Kind::Partial, matching, None),
            Ok(AppendEntriesResponse::Conflict) => (Kind::Conflict, None, None),
            Ok(AppendEntriesResponse::HigherVote(vote)) => (Kind::HigherVote, None, Some(vote)),
            Err(error) => return refused(error),
        };
        Body::AppendReply(wire::AppendReply {
            kind: kind.into(),
            matching: matching.as_ref().map(log_id_to_wire),
            vote: vote.as_ref().map(vote_to_wire),
        })
    }
}

fn refused(reason: impl ToString) -> Body {
    Body::Refused(reason.to_string())
}

fn vote_request(request: &wire::VoteRequest) -> VoteRequest<TypeConfig> {
    VoteRequest {
        vote: vote_from_wire(&request.vote.unwrap_or_default()),
        last_log_id: request.last.as_ref().map(log_id_from_wire),
        leadership_transfer: request.transfer,
    }
}

fn vote_reply(response: &VoteResponse<TypeConfig>) -> Body {
    Body::VoteReply(wire::VoteReply {
        vote: Some(vote_to_wire(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(log_id_to_wire),
    })
}
