//! The data plane: reads, writes and scans of routers and direct clients.
//!
//! One long-lived stream for each caller; answers leave in the order they are ready, packed together. A node
//! answers only for shards it leads, or replicates for reads that may be stale, at the epoch named or newer (I6).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use borough_proto::exchange::turn::others_first;
use borough_proto::limits::DEADLINE_MAX;
use borough_proto::{ClusterMap, CollectionId, ShardId, wire};
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};
use wire::data_reply::Result as Answer;
use wire::data_request::Op;
use wire::{Fault, FaultCode};

use crate::clock::now_ms;
use crate::defect::{self, Defect};
use crate::node::Node;
use crate::raft::{ProposeError, ReadError, Reply, proposal};
use crate::reorder;
use crate::shard::{Clock, Shard, ShardReadError};
use crate::state;

#[cfg(test)]
mod tests;
mod together;

use together::{Left, Together};

/// Answers waiting to be packed, for one stream.
const REPLIES_QUEUED_MAX: usize = 1024;
/// Answers of a message that are let go at once, at most; below the number of those that may be queued.
const READY_MAX: usize = 32;
/// Messages of one stream being answered; more are not read until answers are taken.
const MESSAGES_MAX: usize = 4096;
/// Answers packed into one message.
const REPLIES_PACKED_MAX: usize = 512;
/// Bytes after which a message is closed; one larger answer still travels, alone.
const REPLIES_PACKED_BYTES_MAX: usize = 1 << 20;
/// How long a replica may wait to catch up with a session before the leader is asked instead.
const CATCH_UP_MAX: Duration = Duration::from_millis(250);
/// Bytes of a command beyond its documents, for the bound on proposed bytes.
const COMMAND_OVERHEAD_BYTES: u64 = 256;

/// Serves `borough.v1.Data`.
pub struct DataService(pub Arc<Node>);

#[tonic::async_trait]
impl wire::data_server::Data for DataService {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<wire::DataReplies, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::DataRequests>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let node = Arc::clone(&self.0);
        let (sender, receiver) = mpsc::channel(REPLIES_QUEUED_MAX);
        let tasks = node.tasks.clone();
        tasks.spawn(receive(node, request.into_inner(), sender));
        Ok(Response::new(Box::pin(packed(receiver))))
    }
}

/// Packs the answers that are ready, at most so many and so many bytes to a message: one that is larger than a
/// message may be would end the stream for all.
fn packed(
    receiver: mpsc::Receiver<wire::DataReply>,
) -> impl Stream<Item = Result<wire::DataReplies, Status>> {
    futures::stream::unfold(
        (receiver, None),
        |(mut receiver, held): (mpsc::Receiver<wire::DataReply>, _)| async move {
            let first = match held {
                Some(reply) => reply,
                None => {
                    let first = receiver.recv().await?;
                    others_first().await;
                    first
                }
            };
            let mut bytes = first.encoded_len();
            let mut replies = vec![first];
            while replies.len() < REPLIES_PACKED_MAX {
                let Ok(next) = receiver.try_recv() else { break };
                bytes += next.encoded_len();
                if bytes > REPLIES_PACKED_BYTES_MAX {
                    return Some((Ok(wire::DataReplies { replies }), (receiver, Some(next))));
                }
                replies.push(next);
            }
            Some((Ok(wire::DataReplies { replies }), (receiver, None)))
        },
    )
}

async fn receive(
    node: Arc<Node>,
    mut requests: Streaming<wire::DataRequests>,
    replies: mpsc::Sender<wire::DataReply>,
) {
    let messages = Arc::new(Semaphore::new(MESSAGES_MAX));
    let carried = Arc::new(reorder::Stream::default());
    loop {
        let message = tokio::select! {
            message = requests.message() => message,
            () = node.stop.cancelled() => return,
        };
        let Ok(Some(message)) = message else { return };
        // I8: a caller that does not take its answers is not read any further. The semaphore is never closed.
        let Ok(place) = Arc::clone(&messages).acquire_owned().await else { return };
        let (batch_node, replies, carried) = (Arc::clone(&node), replies.clone(), Arc::clone(&carried));
        // One task for a message, not for a request: what came together is answered together.
        node.tasks.spawn(async move {
            answer_all(&batch_node, message.requests, &replies, &carried).await;
            drop(place);
        });
    }
}

/// An answer, and the request's place, which it has until the answer is queued.
type Answered<'a> = (wire::DataReply, Option<SemaphorePermit<'a>>);

/// Answers the requests of one message, each when it is ready.
async fn answer_all(
    node: &Arc<Node>,
    requests: Vec<wire::DataRequest>,
    replies: &mpsc::Sender<wire::DataReply>,
    carried: &reorder::Stream,
) {
    let mut together = Together::new(node);
    let mut alone = FuturesUnordered::new();
    let in_order = carried.in_order();
    for request in requests {
        // What overtakes others is not answered together with them.
        let alone_it_is = if in_order { together.take(request) } else { Some(request) };
        if let Some(request) = alone_it_is {
            alone.push(carry(node, Coming::New(request), carried));
        }
    }
    loop {
        let (mut ready, mut left) = (Vec::new(), Vec::new());
        std::future::poll_fn(|cx| {
            // First, so that many reads keep no write waiting.
            take_ready(&mut alone, cx, &mut ready);
            together.poll(cx, &mut ready, &mut left);
            let full = ready.len() + left.len() >= READY_MAX;
            alone.extend(left.drain(..).map(|left| carry(node, Coming::Left(left), carried)));
            take_ready(&mut alone, cx, &mut ready);
            if !ready.is_empty() || (together.is_empty() && alone.is_empty()) {
                return Poll::Ready(());
            }
            if full {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
        if ready.is_empty() {
            return;
        }
        let full = ready.len() >= READY_MAX;
        // When the caller went away: what is left still runs, its writes were accepted.
        if let Ok(room) = replies.reserve_many(ready.len()).await {
            for (room, (reply, _permit)) in room.zip(ready) {
                room.send(reply);
            }
        }
        if full {
            // Much was read at once: others have their turn.
            tokio::task::yield_now().await;
        }
    }
}

/// Adds to `ready` what those that run alone have come to, until it is full.
fn take_ready<'a>(
    alone: &mut FuturesUnordered<impl Future<Output = Answered<'a>>>,
    cx: &mut Context<'_>,
    ready: &mut Vec<Answered<'a>>,
) {
    while ready.len() < READY_MAX
        && let Poll::Ready(Some(answered)) = alone.poll_next_unpin(cx)
    {
        ready.push(answered);
    }
}

/// What is answered by itself.
enum Coming<'a> {
    New(wire::DataRequest),
    Left(Left<'a>),
}

/// Comes to a request's answer, each in the order in which they are let go.
async fn carry<'a>(node: &'a Arc<Node>, coming: Coming<'a>, carried: &reorder::Stream) -> Answered<'a> {
    let request = match coming {
        Coming::New(request) => request,
        Coming::Left(left) => return Box::pin(left.answer(node)).await,
    };
    carried.comes().await;
    let permit = node.requests.try_acquire().ok();
    let call = request.call;
    let served = match permit {
        Some(_) => serve(node, request).await,
        None => Served::fault(Fault::new(FaultCode::Busy, "limits.requests-max requests are in flight")),
    };
    carried.leaves().await;
    (served.into_reply(node, call), permit)
}

struct Served {
    answer: Answer,
    epoch: u64,
    index: u64,
}

impl Served {
    fn fault(fault: Fault) -> Self {
        Self { answer: Answer::Fault(fault), epoch: 0, index: 0 }
    }

    fn read(node: &Node, epoch: u64, arrived: Instant, items: Vec<wire::ReadItem>, index: u64) -> Self {
        node.groups.answered(false, arrived.elapsed());
        Self { answer: Answer::Read(wire::ReadReply { items }), epoch, index }
    }

    fn into_reply(self, node: &Node, call: u64) -> wire::DataReply {
        if matches!(self.answer, Answer::Fault(_)) {
            metrics::counter!("borough_data_faults_total").increment(1);
        }
        wire::DataReply {
            call,
            result: Some(self.answer),
            node: node.node_id().get(),
            epoch: self.epoch,
            index: self.index,
        }
    }
}

/// When the caller has no use for the answer any more. None holds a place for longer than the API's longest deadline,
/// whatever it names.
fn deadline(request: &wire::DataRequest, arrived: Instant) -> Instant {
    arrived + Duration::from_millis(u64::from(request.timeout_ms)).min(DEADLINE_MAX)
}

/// The replica that may answer the request, and its shard's epoch here.
fn admitted(node: &Node, map: &ClusterMap, request: &wire::DataRequest) -> Result<(Shard, u64), Box<Served>> {
    let id = ShardId(request.shard);
    let info = map.shard(id);
    let epoch = info.map_or(0, |info| info.epoch);
    let refused = |epoch: u64, detail: String| {
        Box::new(Served { epoch, ..Served::fault(Fault::new(FaultCode::WrongEpoch, detail)) })
    };
    let Some(shard) = node.shard(id) else {
        return Err(refused(0, format!("this node has no replica of shard {id}")));
    };
    if request.epoch > epoch && !defect::has(Defect::IgnoreEpoch) {
        // I6: an answer from an older map than the caller's could be from the wrong members.
        return Err(refused(
            epoch,
            format!("shard {id} is at epoch {epoch} here, {} was named", request.epoch),
        ));
    }
    let own = node.node_id().get();
    if !info.is_some_and(|info| info.replicas.iter().any(|replica| replica.node == own)) {
        // I6: the map has come, and the replica that it takes away is not closed yet.
        return Err(refused(epoch, format!("this node has no replica of shard {id} at epoch {epoch}")));
    }
    let here = |id: &str| map.shard_of_id(id).is_some_and(|info| info.id == request.shard);
    let all_here = match &request.op {
        Some(Op::Read(read)) => read.keys.iter().all(|key| here(&key.id)),
        Some(Op::Write(write)) => ops(write).all(|op| here(&op.id)),
        Some(Op::Scan(scan)) => scan.partition.as_deref().is_none_or(here),
        None => true,
    };
    if !all_here {
        return Err(refused(epoch, format!("an id of the request does not lie in shard {id}")));
    }
    Ok((shard, epoch))
}

fn ops(write: &wire::Write) -> impl Iterator<Item = &wire::Op> {
    write.command.iter().flat_map(|command| &command.units).flat_map(|unit| &unit.ops)
}

fn knows(map: &ClusterMap, collection: u32) -> bool {
    map.collection_by_id(CollectionId(collection)).is_some()
}

async fn serve(node: &Arc<Node>, request: wire::DataRequest) -> Served {
    let arrived = Instant::now();
    let deadline = deadline(&request, arrived);
    let map = node.map.get();
    let (shard, epoch) = match admitted(node, &map, &request) {
        Ok(admitted) => admitted,
        Err(refused) => return *refused,
    };
    let known = |collection: u32| knows(&map, collection);
    let result = match request.op {
        Some(Op::Read(read)) => {
            if read.keys.iter().all(|key| known(key.collection)) {
                serve_read(&shard, read, deadline).await
            } else {
                Err(unknown_collection())
            }
        }
        Some(Op::Scan(scan)) => {
            if known(scan.collection) {
                Box::pin(serve_scan(&shard, scan, deadline)).await
            } else {
                Err(unknown_collection())
            }
        }
        Some(Op::Write(write)) => {
            if ops(&write).all(|op| known(op.collection)) {
                let command = write.command.unwrap_or_default();
                // Boxed, or each read would take the room of a write.
                Box::pin(serve_write(node, &shard, command, deadline)).await
            } else {
                Err(unknown_collection())
            }
        }
        None => Err(Fault::new(FaultCode::Invalid, "the request names no operation")),
    };
    match result {
        Ok((answer, index)) => {
            match &answer {
                Answer::Read(_) => node.groups.answered(false, arrived.elapsed()),
                Answer::Write(_) => node.groups.answered(true, arrived.elapsed()),
                // How long a listing takes says how much it listed.
                Answer::Scan(_) | Answer::Fault(_) => {}
            }
            Served { answer, epoch, index }
        }
        Err(fault) => Served { epoch, ..Served::fault(fault) },
    }
}

fn unknown_collection() -> Fault {
    Fault::new(FaultCode::UnknownCollection, "there is no such collection")
}

fn late() -> Fault {
    Fault::new(FaultCode::DeadlineExceeded, "the deadline passed")
}

/// A read changes nothing, whatever happened to it.
fn read_late() -> Fault {
    late().with_outcome(wire::Outcome::NotApplied)
}

/// What a read comes to before its deadline.
async fn in_time<T>(deadline: Instant, reading: impl Future<Output = T>) -> Result<T, Fault> {
    tokio::time::timeout_at(deadline, reading).await.map_err(|_| read_late())
}

fn read_fault(error: ReadError) -> Fault {
    match error {
        ReadError::NotLeader { leader } => Fault::not_leader(leader),
        ReadError::NotFresh(detail) => Fault::new(FaultCode::NotFresh, detail),
    }
}

/// Waits until this replica may answer a read of that freshness; whose clock then counts.
async fn barrier(
    shard: &Shard,
    freshness: Option<wire::Freshness>,
    deadline: Instant,
) -> Result<Clock, Fault> {
    let not_fresh = |detail: String| Fault::new(FaultCode::NotFresh, detail);
    let freshness = freshness.unwrap_or_default();
    if freshness.max_stale_ms.is_none() && freshness.min_index.is_none() {
        in_time(deadline, shard.group.read_index()).await?.map_err(read_fault)?;
        return Ok(Clock::Leader);
    }
    let patience = deadline.min(Instant::now() + CATCH_UP_MAX);
    if let Some(index) = freshness.min_index.filter(|_| !defect::has(Defect::ForgetSession)) {
        let waiting = tokio::time::timeout_at(patience, shard.group.wait_applied(index)).await;
        waiting
            .map_err(|_| not_fresh(format!("this replica has not applied entry {index} yet")))?
            .map_err(read_fault)?;
    }
    if let Some(stale) = freshness.max_stale_ms.filter(|_| !defect::has(Defect::ForgetStaleness)) {
        let stale = Duration::from_millis(u64::from(stale));
        let proving = Box::pin(shard.group.fresh_within(stale, patience));
        let proving = tokio::time::timeout_at(patience, proving).await;
        proving.map_err(|_| not_fresh("no leader confirmed in time".to_owned()))?.map_err(read_fault)?;
    }
    Ok(Clock::Local)
}

fn read_failed(error: ShardReadError) -> Fault {
    match error {
        ShardReadError::Barrier(error) => read_fault(error),
        ShardReadError::Time(detail) => Fault::new(FaultCode::NotFresh, detail),
        ShardReadError::Store(error) => {
            tracing::error!(%error, "engine read failed");
            Fault::new(FaultCode::Internal, error.to_string()).with_outcome(wire::Outcome::NotApplied)
        }
    }
}

/// Never behind the shard's own time: what a log entry has made expired stays so.
fn read_time(shard: &Shard) -> u64 {
    now_ms().max(shard.machine.header().time_ms)
}

async fn serve_read(shard: &Shard, read: wire::Read, deadline: Instant) -> Result<(Answer, u64), Fault> {
    let clock = barrier(shard, read.freshness, deadline).await?;
    let reading = shard.read(&read.keys, read_time(shard), clock);
    let (items, index) = in_time(deadline, reading).await?.map_err(read_failed)?;
    Ok((Answer::Read(wire::ReadReply { items }), index))
}

async fn serve_scan(shard: &Shard, scan: wire::Scan, deadline: Instant) -> Result<(Answer, u64), Fault> {
    let clock = barrier(shard, scan.freshness, deadline).await?;
    let scanning = shard.scan(scan, read_time(shard), clock);
    let (items, more, index) = in_time(deadline, scanning).await?.map_err(read_failed)?;
    Ok((Answer::Scan(wire::ScanReply { items, more }), index))
}

/// Bytes of proposals not yet answered; given back when dropped (I8).
struct Proposed<'a> {
    node: &'a Node,
    bytes: u64,
}

impl<'a> Proposed<'a> {
    fn take(node: &'a Node, bytes: u64) -> Option<Self> {
        let before = node.proposed_bytes.fetch_add(bytes, Ordering::AcqRel);
        let taken = Self { node, bytes };
        // One large command still passes when it is alone.
        let fits = before == 0 || before + bytes <= node.config.limits.proposed_bytes_max;
        fits.then_some(taken)
    }
}

impl Drop for Proposed<'_> {
    fn drop(&mut self) {
        self.node.proposed_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Apply cannot refuse, so a session that would be one too many is refused here (I8).
fn admit_session(shard: &Shard, command: &wire::Command) -> Result<(), Fault> {
    let Some(session) = &command.session else { return Ok(()) };
    if shard.machine.header().sessions < state::SESSIONS_MAX {
        return Ok(());
    }
    match state::has_session(&shard.group.state.space().space, session.id) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let mut fault = Fault::new(
                FaultCode::Busy,
                format!("the shard remembers {} sessions, the most it can", state::SESSIONS_MAX),
            );
            fault.retry_after_ms = 1000;
            Err(fault)
        }
        Err(error) => {
            Err(Fault::new(FaultCode::Internal, error.to_string()).with_outcome(wire::Outcome::NotApplied))
        }
    }
}

async fn serve_write(
    node: &Arc<Node>,
    shard: &Shard,
    mut command: wire::Command,
    deadline: Instant,
) -> Result<(Answer, u64), Fault> {
    state::validate(&command).map_err(|detail| Fault::new(FaultCode::Invalid, detail))?;
    if node.disk_full.load(Ordering::Relaxed) {
        let mut fault =
            Fault::new(FaultCode::DiskFull, "the node's disk is full: it serves reads and refuses writes");
        fault.retry_after_ms = 1000;
        return Err(fault);
    }
    if !shard.group.is_leader() {
        return Err(Fault::not_leader(shard.group.leader_node()));
    }
    admit_session(shard, &command)?;
    // The leader stamps (I5).
    command.stamp_ms = now_ms();
    command.sweep = None;
    let proposal = proposal(&command);
    let bytes = proposal.0.len() as u64 + COMMAND_OVERHEAD_BYTES;
    let _proposed = Proposed::take(node, bytes)
        .ok_or_else(|| Fault::new(FaultCode::Busy, "limits.proposed-bytes-max bytes are being written"))?;
    if Instant::now() >= deadline {
        return Err(late().with_outcome(wire::Outcome::NotApplied));
    }
    match tokio::time::timeout_at(deadline, shard.group.propose(proposal)).await {
        // I9: proposed and not answered in time is neither done nor failed.
        Err(_) => Err(late()),
        Ok(Ok((index, Reply::Shard(reply)))) => Ok((Answer::Write(reply), index)),
        Ok(Ok((_, Reply::None | Reply::Catalog(_) | Reply::Undecodable))) => {
            Err(Fault::new(FaultCode::Internal, "the log entry was not understood"))
        }
        Ok(Err(ProposeError::NotLeader { leader })) => Err(Fault::not_leader(leader)),
        Ok(Err(ProposeError::Unknown(detail))) => Err(Fault::new(FaultCode::OutcomeUnknown, detail)),
    }
}
