//! Snapshots on the wire: a point in time of one replica, streamed to another.
//!
//! On a connection of its own, in chunks with a crc32 each, acknowledged one by one, at a bounded rate. A
//! transfer that broke is resumed where the receiver stands. The receiver stages into the next
//! generation of its space and installs it at the end, so an unfinished transfer leaves nothing behind.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use borough_proto::limits::MESSAGE_BYTES_MAX;
use borough_proto::wire::raft_client::RaftClient;
use borough_proto::{NodeId, ReplicaId, wire};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::group::Group;
use super::pace::Pace;
use super::peers::{PeerError, Peers};
use super::state_machine::{ReplicaState, SnapshotData};
use super::types::{
    SnapshotMeta, StoredMembership, Vote, log_id_from_wire, log_id_to_wire, membership_from_wire,
    membership_to_wire, vote_from_wire, vote_to_wire,
};
use crate::crash;
use crate::defect::{self, Defect};
use crate::store::snapshot::PointInTime;
use crate::store::{Batch, Space, StoreError};

const CHUNK_BYTES: usize = 256 << 10;
/// Keys and values that go into one engine batch when a chunk is staged.
const STAGED_BATCH_BYTES: usize = 32 << 10;
/// Chunks sent and not yet acknowledged.
const WINDOW: usize = 8;
/// Snapshots sent at once by a node.
const SENDS_MAX: usize = 2;
/// Without an acknowledgement for this long a transfer counts as broken.
const STALL: Duration = Duration::from_secs(20);
const ATTEMPTS_MAX: u32 = 5;
/// How long a resumed transfer waits for the receiver of the broken connection to let go.
const LET_GO_MAX: Duration = Duration::from_secs(10);

/// Counts the bytes of data that this node has sent to new replicas.
pub(super) const MOVED_BYTES: &str = "borough_moved_bytes_total";

/// Why a snapshot was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("scan the replica: {0}")]
    Store(#[from] StoreError),
    #[error("the receiver refused: {0}")]
    Refused(String),
    #[error("the transfer broke: {0}")]
    Broken(Status),
    #[error("no acknowledgement for {STALL:?}")]
    Stalled,
    #[error("the receiver closed the stream")]
    Closed,
    #[error("the scan task ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl SendError {
    fn worth_resuming(&self) -> bool {
        match self {
            Self::Broken(_) | Self::Stalled | Self::Closed => true,
            Self::Peer(_) | Self::Store(_) | Self::Refused(_) | Self::Task(_) => false,
        }
    }
}

/// Sends snapshots, a few at a time, within the node's rate.
pub struct SnapshotSender {
    permits: Semaphore,
    pace: Pace,
}

struct Transfer {
    scan: Arc<Mutex<PointInTime>>,
    header: wire::SnapshotHeader,
    /// Last keys of chunks sent and not acknowledged, with their sequence.
    unacknowledged: VecDeque<(u64, Bytes)>,
    acknowledged: Option<(u64, Bytes)>,
}

impl SnapshotSender {
    /// Sends at most that much; less while requests are slow, if it `gives_way`.
    pub fn new(bytes_per_second: u64, gives_way: bool) -> Arc<Self> {
        Arc::new(Self { permits: Semaphore::new(SENDS_MAX), pace: Pace::new(bytes_per_second, gives_way) })
    }

    /// The pace of all transfers.
    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Part of the rate that is used now; below 1 it gives way.
    pub fn share(&self) -> f64 {
        self.pace.share()
    }

    /// Sends a point in time of `state`; done when it is installed there.
    ///
    /// # Errors
    /// [`SendError`]; the receiver then stands where it stood.
    pub async fn send(
        &self,
        peers: &Peers,
        state: &ReplicaState,
        to: ReplicaId,
        node: NodeId,
        vote: Vote,
    ) -> Result<Vote, SendError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await.map_err(|_| SendError::Closed)?;
        let (scan, meta) = state.begin_scan();
        let header = wire::SnapshotHeader {
            group: state.group.get(),
            from: state.id.get(),
            to: to.get(),
            vote: Some(vote_to_wire(&vote)),
            last: meta.last_log_id.as_ref().map(log_id_to_wire),
            membership_id: meta.last_membership.log_id().as_ref().map(log_id_to_wire),
            membership: Some(membership_to_wire(meta.last_membership.membership())),
            snapshot: rand::rng().random(),
        };
        let mut transfer = Transfer {
            scan: Arc::new(Mutex::new(scan)),
            header,
            unacknowledged: VecDeque::new(),
            acknowledged: None,
        };
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.attempt(peers, node, &mut transfer).await {
                Ok((vote, bytes)) => {
                    tracing::info!(group = %state.group, %to, bytes, ms = started.elapsed().as_millis(), "snapshot installed");
                    return Ok(vote);
                }
                Err(error) if error.worth_resuming() && attempt < ATTEMPTS_MAX => {
                    tracing::info!(group = %state.group, %to, %error, "snapshot transfer is resumed");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn attempt(
        &self,
        peers: &Peers,
        node: NodeId,
        transfer: &mut Transfer,
    ) -> Result<(Vote, u64), SendError> {
        let mut client = RaftClient::new(peers.channel(node)?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (sender, receiver) = mpsc::channel(WINDOW);
        let open = wire::SnapshotChunk { header: Some(transfer.header.clone()), ..Default::default() };
        sender.send(open).await.map_err(|_| SendError::Closed)?;
        let mut acks = client
            .install_snapshot(ReceiverStream::new(receiver))
            .await
            .map_err(SendError::Broken)?
            .into_inner();
        let first = next_ack(&mut acks).await?;
        let mut sequence = transfer.resume(first.next)?;
        let mut bytes = 0_u64;
        let mut ended = false;
        loop {
            if !ended && transfer.unacknowledged.len() < WINDOW {
                let scan = Arc::clone(&transfer.scan);
                let pairs = crate::blocking::spawn(move || scan.lock().next_chunk(CHUNK_BYTES)).await??;
                let chunk = match pairs {
                    Some(mut pairs) => {
                        if defect::has(Defect::ForgetRequests) {
                            pairs.retain(|(key, _)| !crate::state::is_memory_of_requests(key));
                        }
                        let data = encode_pairs(&pairs);
                        bytes += data.len() as u64;
                        if let Some((key, _)) = pairs.last() {
                            transfer.unacknowledged.push_back((sequence, key.clone()));
                        }
                        wire::SnapshotChunk {
                            header: None,
                            sequence,
                            crc32: crc32fast::hash(&data),
                            data,
                            end: false,
                        }
                    }
                    None => {
                        ended = true;
                        wire::SnapshotChunk {
                            sequence,
                            crc32: crc32fast::hash(&[]),
                            end: true,
                            ..Default::default()
                        }
                    }
                };
                sequence += 1;
                self.pace.wait(chunk.data.len()).await;
                let bytes = u64::try_from(chunk.data.len()).unwrap_or(u64::MAX);
                metrics::counter!(MOVED_BYTES, "way" => "snapshot").increment(bytes);
                sender.send(chunk).await.map_err(|_| SendError::Closed)?;
                continue;
            }
            let ack = next_ack(&mut acks).await?;
            if ack.installed {
                return Ok((vote_from_wire(&ack.vote.unwrap_or_default()), bytes));
            }
            transfer.acknowledge(ack.next);
        }
    }
}

async fn next_ack(acks: &mut tonic::Streaming<wire::SnapshotAck>) -> Result<wire::SnapshotAck, SendError> {
    let ack = tokio::time::timeout(STALL, acks.message()).await.map_err(|_| SendError::Stalled)?;
    let ack = ack.map_err(SendError::Broken)?.ok_or(SendError::Closed)?;
    if ack.refused.is_empty() { Ok(ack) } else { Err(SendError::Refused(ack.refused)) }
}

impl Transfer {
    /// All chunks below `next` are staged: the scan need not remember what lies behind them.
    fn acknowledge(&mut self, next: u64) {
        while let Some((sequence, _)) = self.unacknowledged.front() {
            if *sequence >= next {
                break;
            }
            self.acknowledged = self.unacknowledged.pop_front();
        }
        if let Some((_, key)) = &self.acknowledged {
            self.scan.lock().acknowledge(key.clone());
        }
    }

    /// Goes back to where the receiver stands.
    fn resume(&mut self, next: u64) -> Result<u64, SendError> {
        self.acknowledge(next);
        self.unacknowledged.clear();
        let stands = self.acknowledged.as_ref().map_or(0, |(sequence, _)| sequence + 1);
        if stands != next {
            return Err(SendError::Refused(format!("the receiver stands at {next}, the sender at {stands}")));
        }
        self.scan.lock().resume_from(self.acknowledged.as_ref().map(|(_, key)| key.clone()))?;
        Ok(next)
    }
}

pub(crate) fn encode_pairs(pairs: &[(Bytes, Bytes)]) -> Bytes {
    let size = pairs.iter().map(|(key, value)| key.len() + value.len() + 8).sum();
    let mut data = BytesMut::with_capacity(size);
    for part in pairs.iter().flat_map(|(key, value)| [key, value]) {
        data.put_u32(u32::try_from(part.len()).unwrap_or(u32::MAX));
        data.put_slice(part);
    }
    data.freeze()
}

/// Reads what [`encode_pairs`] made; `None` for anything else (I10).
pub(crate) fn decode_pairs(mut data: Bytes) -> Option<Batch> {
    let mut part = move || -> Option<Option<Bytes>> {
        if data.is_empty() {
            return Some(None);
        }
        if data.len() < 4 {
            return None;
        }
        let len = usize::try_from(data.get_u32()).ok()?;
        if len > data.len() { None } else { Some(Some(data.split_to(len))) }
    };
    let mut changes = Vec::new();
    while let Some(key) = part()? {
        let value = part()??;
        changes.push((key, Some(value)));
    }
    Some(Batch { changes })
}

/// Receives snapshots for the replicas of this node.
#[derive(Default)]
pub struct SnapshotReceiver {
    /// What broken transfers have left, one for each replica: it waits to go on, until the replica is where it leads.
    partial: Mutex<HashMap<ReplicaId, Partial>>,
    /// Transfers under way, one for each replica: which snapshot, and cancelled when it has ended.
    receiving: Mutex<HashMap<ReplicaId, (u64, CancellationToken)>>,
}

/// A transfer under way.
struct Receiving<'a> {
    receiver: &'a SnapshotReceiver,
    replica: ReplicaId,
    ended: CancellationToken,
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.ended.cancel();
        let mut receiving = self.receiver.receiving.lock();
        // A later transfer, which has not ended, may have taken the place.
        if receiving.get(&self.replica).is_some_and(|(_, ended)| ended.is_cancelled()) {
            receiving.remove(&self.replica);
        }
    }
}

struct Partial {
    snapshot: u64,
    /// The log index at which the snapshot stands.
    stands: u64,
    next: u64,
    generation: u64,
    space: Arc<dyn Space>,
}

impl SnapshotReceiver {
    /// Receives one snapshot for `group`; `chunks` are those after the header.
    ///
    /// # Errors
    /// A text for the sender; what was staged stays for a resumed transfer.
    pub async fn receive(
        &self,
        group: &Group,
        header: wire::SnapshotHeader,
        mut chunks: tonic::Streaming<wire::SnapshotChunk>,
        acks: mpsc::Sender<Result<wire::SnapshotAck, Status>>,
        disk_full: &AtomicBool,
    ) -> Result<(), String> {
        let meta = snapshot_meta(&header)?;
        let _receiving = self.begin(group.replica, header.snapshot).await;
        let stands = meta.last_log_id.as_ref().map_or(0, |last| last.index);
        let mut partial = self.take(group, header.snapshot, stands).await?;
        let hello = wire::SnapshotAck { next: partial.next, ..Default::default() };
        let mut alive = acks.send(Ok(hello)).await.is_ok();
        while alive {
            let chunk = match chunks.message().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) | Err(_) => break,
            };
            if disk_full.load(Ordering::Relaxed) {
                give_up(&group.state, partial);
                return Err("the disk is full".to_owned());
            }
            if chunk.sequence != partial.next || crc32fast::hash(&chunk.data) != chunk.crc32 {
                self.keep(group, partial);
                return Err(format!("chunk {} is out of order or damaged", chunk.sequence));
            }
            if chunk.end {
                crash::reached("snapshot-staged");
                let data = SnapshotData::Staged { generation: partial.generation };
                let vote = vote_from_wire(&header.vote.unwrap_or_default());
                let installed = group.install_snapshot(vote, meta, data).await;
                if group.state.space().number != partial.generation {
                    give_up(&group.state, partial);
                }
                let vote = installed?;
                crash::reached("snapshot-installed");
                let done = wire::SnapshotAck {
                    next: chunk.sequence + 1,
                    installed: true,
                    vote: Some(vote_to_wire(&vote)),
                    ..Default::default()
                };
                // The sender asks again when it did not hear; the snapshot stays installed.
                let _ = acks.send(Ok(done)).await;
                return Ok(());
            }
            let arrived = chunk.data.len() as u64;
            let space = Arc::clone(&partial.space);
            let staging = move || match decode_pairs(chunk.data) {
                // In short batches: nobody reads it before it is whole.
                Some(batch) => batch
                    .split(STAGED_BATCH_BYTES)
                    // What is due is written here and now: nobody else applies to it, or asks.
                    .try_for_each(|batch| {
                        space.apply(batch)?;
                        if space.drain_due() { space.drain() } else { Ok(()) }
                    })
                    .map_err(|error| error.to_string()),
                None => Err("it is malformed".to_owned()),
            };
            let staged = crate::blocking::spawn(staging).await.map_err(|error| error.to_string());
            if let Err(error) = staged.flatten() {
                // What was staged may lack a part of this chunk, and a full disk needs the room.
                give_up(&group.state, partial);
                return Err(format!("stage chunk {}: {error}", chunk.sequence));
            }
            partial.next += 1;
            crash::reached("snapshot-chunk-staged");
            group.state.staged_bytes.fetch_add(arrived, Ordering::Relaxed);
            let ack = wire::SnapshotAck { next: partial.next, ..Default::default() };
            alive = acks.send(Ok(ack)).await.is_ok();
        }
        self.keep(group, partial);
        Ok(())
    }

    /// Waits until an earlier connection that carried the same snapshot has let go of what it staged: its end may be
    /// noticed here later than at the sender, which would then have to begin anew.
    async fn begin(&self, replica: ReplicaId, snapshot: u64) -> Receiving<'_> {
        let before = self.receiving.lock().get(&replica).cloned();
        if let Some((_, ended)) = before.filter(|(other, _)| *other == snapshot) {
            // If it hangs on, the transfer begins anew, in a space of its own.
            let _ = tokio::time::timeout(LET_GO_MAX, ended.cancelled()).await;
        }
        let ended = CancellationToken::new();
        self.receiving.lock().insert(replica, (snapshot, ended.clone()));
        Receiving { receiver: self, replica, ended }
    }

    /// Keeps what was staged, for the transfer to go on.
    fn keep(&self, group: &Group, partial: Partial) {
        let replaced = self.partial.lock().insert(group.replica, partial);
        // Of a connection that hung while another transfer began.
        if let Some(replaced) = replaced {
            give_up(&group.state, replaced);
        }
    }

    /// Whether a broken transfer has left anything.
    pub fn has_partial(&self) -> bool {
        !self.partial.lock().is_empty()
    }

    /// Removes what a broken transfer has left to a replica that has since come as far by its log, or by a snapshot of another
    /// leader: nobody would go on with it.
    pub async fn discard_useless(&self, group: &Group) {
        let useless = {
            let mut all = self.partial.lock();
            let applied = group.state.applied();
            let useless = all.get(&group.replica).is_some_and(|partial| partial.stands <= applied);
            if useless { all.remove(&group.replica) } else { None }
        };
        if let Some(useless) = useless {
            let state = Arc::clone(&group.state);
            // A failure is told there, and the next start removes what is left.
            let _ = crate::blocking::spawn(move || give_up(&state, useless)).await;
        }
    }

    async fn take(&self, group: &Group, snapshot: u64, stands: u64) -> Result<Partial, String> {
        let old = self.partial.lock().remove(&group.replica);
        if let Some(old) = old {
            if old.snapshot == snapshot {
                return Ok(old);
            }
            give_up(&group.state, old);
        }
        group.state.staged_bytes.store(0, Ordering::Relaxed);
        let state = Arc::clone(&group.state);
        let staged = crate::blocking::spawn(move || state.stage()).await;
        let (generation, space) =
            staged.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        Ok(Partial { snapshot, stands, next: 0, generation, space })
    }

    /// Forgets what was staged for a replica that goes away.
    pub fn forget(&self, replica: ReplicaId) {
        self.partial.lock().remove(&replica);
    }
}

/// Removes what was staged.
fn give_up(state: &ReplicaState, partial: Partial) {
    drop(partial.space);
    if let Err(error) = state.unstage(partial.generation) {
        tracing::warn!(group = %state.group, %error, "a staged snapshot is left until the next start");
    }
}

pub(crate) fn snapshot_meta(header: &wire::SnapshotHeader) -> Result<SnapshotMeta, String> {
    let membership = header.membership.as_ref().ok_or("the header lacks the membership")?;
    let membership = membership_from_wire(membership).map_err(|error| error.to_string())?;
    let stored = StoredMembership::new(header.membership_id.as_ref().map(log_id_from_wire), membership);
    Ok(SnapshotMeta { last_log_id: header.last.as_ref().map(log_id_from_wire), last_membership: stored })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chunks_round_trip(pairs in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..9), proptest::collection::vec(any::<u8>(), 0..9)), 0..9)) {
            let pairs: Vec<(Bytes, Bytes)> = pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
            let batch = decode_pairs(encode_pairs(&pairs)).unwrap();
            let expected: Vec<_> = pairs.into_iter().map(|(key, value)| (key, Some(value))).collect();
            prop_assert_eq!(batch.changes, expected);
        }

        #[test]
        fn hostile_chunks_never_panic(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_pairs(data.into());
        }
    }
}
