//! Raft messages from other nodes, and snapshots.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use borough_proto::exchange::turn::others_first;
use borough_proto::{ReplicaId, wire};
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::raft_frame::Body;

use crate::node::Node;
use crate::reorder;

const REPLIES_QUEUED_MAX: usize = 4096;
const REPLIES_PACKED_MAX: usize = 512;
const ACKS_QUEUED_MAX: usize = 16;

/// Serves `borough.v1.Raft`.
pub struct RaftService(pub Arc<Node>);

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl wire::raft_server::Raft for RaftService {
    type ExchangeStream = Replies<wire::RaftFrames>;
    type InstallSnapshotStream = Replies<wire::SnapshotAck>;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::RaftFrames>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let (sender, receiver) = mpsc::channel(REPLIES_QUEUED_MAX);
        let node = Arc::clone(&self.0);
        let tasks = node.tasks.clone();
        tasks.spawn(receive(node, request.into_inner(), sender));
        Ok(Response::new(Box::pin(packed(receiver))))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotChunk>>,
    ) -> Result<Response<Self::InstallSnapshotStream>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.and_then(|chunk| chunk.header);
        let header = first.ok_or_else(|| Status::invalid_argument("the first message has no header"))?;
        let (sender, receiver) = mpsc::channel(ACKS_QUEUED_MAX);
        let node = Arc::clone(&self.0);
        let tasks = node.tasks.clone();
        tasks.spawn(async move {
            let refused = match node.groups.replica(ReplicaId(header.to)) {
                Some(group) if group.group.get() == header.group => {
                    let receiving =
                        node.groups.receiver.receive(&group, header, chunks, sender.clone(), &node.disk_full);
                    tokio::select! {
                        result = receiving => result.err(),
                        () = node.stop.cancelled() => Some("the node is stopping".to_owned()),
                    }
                }
                Some(_) | None => Some(format!("there is no replica r{} here", header.to)),
            };
            if let Some(refused) = refused {
                tracing::warn!(reason = %refused, "snapshot refused");
                // The sender may be gone.
                let _ = sender.send(Ok(wire::SnapshotAck { refused, ..Default::default() })).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Packs the answers that are ready.
fn packed(receiver: mpsc::Receiver<wire::RaftFrame>) -> impl Stream<Item = Result<wire::RaftFrames, Status>> {
    futures::stream::unfold(receiver, |mut receiver| async move {
        let mut frames = vec![receiver.recv().await?];
        others_first().await;
        while frames.len() < REPLIES_PACKED_MAX
            && let Ok(next) = receiver.try_recv()
        {
            frames.push(next);
        }
        Some((Ok(wire::RaftFrames { frames }), receiver))
    })
}

async fn receive(
    node: Arc<Node>,
    mut frames: Streaming<wire::RaftFrames>,
    replies: mpsc::Sender<wire::RaftFrame>,
) {
    let carried = Arc::new(reorder::Stream::default());
    loop {
        let message = tokio::select! {
            message = frames.message() => message,
            () = node.stop.cancelled() => return,
        };
        let Ok(Some(message)) = message else { return };
        let (serving, replies, carried) = (Arc::clone(&node), replies.clone(), Arc::clone(&carried));
        node.tasks.spawn(async move {
            let frames = message.frames.into_iter();
            let mut pending: FuturesUnordered<_> =
                frames.map(|frame| carry(&serving, frame, &carried)).collect();
            while let Some(reply) = pending.next().await {
                // The peer went away; Raft asks again on the next stream.
                let _ = replies.send(reply).await;
            }
        });
    }
}

/// Comes to a frame's answer, each in the order in which they are let go.
async fn carry(node: &Arc<Node>, frame: wire::RaftFrame, carried: &Arc<reorder::Stream>) -> wire::RaftFrame {
    carried.comes().await;
    if reorder::twice() {
        let (node, again, carried) = (Arc::clone(node), frame.clone(), Arc::clone(carried));
        node.tasks.clone().spawn(async move {
            carried.comes().await;
            // Its answer is to a call that has one.
            answer(&node, again).await
        });
    }
    let reply = answer(node, frame).await;
    carried.leaves().await;
    reply
}

async fn answer(node: &Node, frame: wire::RaftFrame) -> wire::RaftFrame {
    let (call, group, from, to) = (frame.call, frame.group, frame.from, frame.to);
    if let Some(Body::Confirm(request)) = &frame.body {
        let body = Some(Body::ConfirmReply(node.groups.confirm(request)));
        return wire::RaftFrame { call, body, ..Default::default() };
    }
    // Replica ids are never reused: a frame for another replica of the group is not ours to answer.
    let body = match node.groups.replica(ReplicaId(to)) {
        Some(replica) if replica.group.get() == group => {
            let grows = matches!(&frame.body, Some(Body::Append(append)) if !append.entries.is_empty());
            if grows && node.disk_full.load(Ordering::Relaxed) {
                // What is left belongs to housekeeping; the leader sends it again when there is room.
                Body::Refused("the disk is full".to_owned())
            } else {
                replica.handle(frame).await
            }
        }
        Some(_) | None => Body::Refused(format!("there is no replica r{to} of group {group} here")),
    };
    wire::RaftFrame { call, group, from: to, to: from, body: Some(body) }
}
