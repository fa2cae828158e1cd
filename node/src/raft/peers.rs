//! Connections to the other nodes: one stream for each peer carries the messages of all groups.
//!
//! A peer is found by its node id; its address is looked up whenever a stream is opened, because it may
//! change. A stream that broke is opened again by the next message, after a pause that grows while the
//! peer stays away, so a dead peer costs nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use borough_proto::exchange::channel::{ChannelSettings, cluster_client};
use borough_proto::exchange::mux::{CallError, Limits, Mux, Protocol, Requests};
use borough_proto::limits::MESSAGE_BYTES_MAX;
use borough_proto::wire::cluster_client::ClusterClient;
use borough_proto::wire::raft_client::RaftClient;
use borough_proto::{NodeId, wire};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(300);

/// Raft frames, many to a message.
#[derive(Debug)]
pub struct RaftProtocol;

impl Protocol for RaftProtocol {
    type Request = wire::RaftFrame;
    type Requests = wire::RaftFrames;
    type Reply = wire::RaftFrame;
    type Replies = wire::RaftFrames;

    fn set_call(request: &mut wire::RaftFrame, call: u64) {
        request.call = call;
    }

    fn call(reply: &wire::RaftFrame) -> u64 {
        reply.call
    }

    fn request_bytes(request: &wire::RaftFrame) -> usize {
        use wire::raft_frame::Body;
        64 + match &request.body {
            Some(Body::Append(append)) => append.entries.iter().map(|entry| entry.payload.len() + 24).sum(),
            Some(Body::Confirm(confirm)) => confirm.leaderships.len() * 24,
            _ => 0,
        }
    }

    fn pack(frames: Vec<wire::RaftFrame>) -> wire::RaftFrames {
        wire::RaftFrames { frames }
    }

    fn unpack(frames: wire::RaftFrames) -> Vec<wire::RaftFrame> {
        frames.frames
    }
}

/// Where nodes are.
pub trait AddressBook: Send + Sync + 'static {
    /// The gRPC address of `node`, `host:port`.
    fn address(&self, node: NodeId) -> Option<String>;
}

/// All peers of this node.
pub struct Peers {
    book: Arc<dyn AddressBook>,
    settings: ChannelSettings,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
    /// For cluster calls: one connection an address.
    channels: Mutex<HashMap<String, Channel>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// One other node.
pub struct Peer {
    node: NodeId,
    mux: ArcSwapOption<Mux<RaftProtocol>>,
    retry: Mutex<Retry>,
}

struct Retry {
    pause: Duration,
    not_before: Instant,
}

/// Why a peer did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("{0} is not in the cluster map")]
    Unknown(NodeId),
    #[error("{node} at {addr:?} is not an address")]
    Address { node: NodeId, addr: String },
    #[error("{0} is away; the next attempt waits")]
    Away(NodeId),
    #[error("call {node}: {source}")]
    Call { node: NodeId, source: CallError },
}

impl Peers {
    pub fn new(
        book: Arc<dyn AddressBook>,
        settings: ChannelSettings,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { book, settings, peers: Mutex::default(), channels: Mutex::default(), tasks, stop })
    }

    /// Those that its connections belong to.
    pub fn tasks(&self) -> TaskTracker {
        self.tasks.clone()
    }

    fn peer(&self, node: NodeId) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        Arc::clone(peers.entry(node).or_insert_with(|| {
            Arc::new(Peer {
                node,
                mux: ArcSwapOption::empty(),
                retry: Mutex::new(Retry { pause: PAUSE_MIN, not_before: Instant::now() }),
            })
        }))
    }

    /// A channel to `addr` that all cluster calls share.
    ///
    /// # Errors
    /// [`PeerError::Address`] for what is no `host:port`.
    pub fn cluster_client(&self, addr: &str) -> Result<ClusterClient<Channel>, PeerError> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(addr) {
            Some(channel) => channel.clone(),
            None => {
                let unknown = |_| PeerError::Address { node: NodeId(0), addr: addr.to_owned() };
                let channel = self.settings.lazy(addr).map_err(unknown)?;
                channels.insert(addr.to_owned(), channel.clone());
                channel
            }
        };
        Ok(cluster_client(channel))
    }

    /// The gRPC address of `node`.
    ///
    /// # Errors
    /// [`PeerError::Unknown`] when the map does not have it.
    pub fn address(&self, node: NodeId) -> Result<String, PeerError> {
        self.book.address(node).ok_or(PeerError::Unknown(node))
    }

    /// A new connection to `node` outside the shared stream, for a snapshot.
    ///
    /// # Errors
    /// [`PeerError`] when the node's address is not known.
    pub fn channel(&self, node: NodeId) -> Result<Channel, PeerError> {
        let addr = self.address(node)?;
        self.settings.lazy(&addr).map_err(|_| PeerError::Address { node, addr })
    }

    /// Sends one frame and waits for its answer.
    ///
    /// # Errors
    /// [`PeerError`]; whether the peer acted on the frame is then unknown.
    pub async fn call(
        &self,
        node: NodeId,
        frame: wire::RaftFrame,
        deadline: Instant,
    ) -> Result<wire::RaftFrame, PeerError> {
        let peer = self.peer(node);
        let mux = match peer.mux.load_full() {
            Some(mux) if mux.is_open() => mux,
            Some(_) | None => self.connect(&peer)?,
        };
        mux.call(frame, deadline).await.map_err(|source| PeerError::Call { node, source })
    }

    fn connect(&self, peer: &Arc<Peer>) -> Result<Arc<Mux<RaftProtocol>>, PeerError> {
        let node = peer.node;
        let mut retry = peer.retry.lock();
        if let Some(mux) = peer.mux.load_full().filter(|mux| mux.is_open()) {
            return Ok(mux);
        }
        let now = Instant::now();
        if now < retry.not_before {
            return Err(PeerError::Away(node));
        }
        // Until a stream proves good, the next attempt waits longer.
        let jitter = rand::rng().random_range(0.5..1.0);
        retry.not_before = now + retry.pause.mul_f64(jitter);
        retry.pause = (retry.pause * 2).min(PAUSE_MAX);
        let channel = self.channel(node)?;
        let limits = Limits { stall: Duration::from_secs(5), ..Limits::default() };
        let (mux, run) = Mux::new(limits, |requests: Requests<RaftProtocol>| async move {
            let mut client = RaftClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            Ok(client.exchange(requests).await?.into_inner())
        });
        let mux = Arc::new(mux);
        peer.mux.store(Some(Arc::clone(&mux)));
        drop(retry);
        let (stop, peer) = (self.stop.clone(), Arc::clone(peer));
        self.tasks.spawn(async move {
            let started = Instant::now();
            tokio::select! {
                ended = run => tracing::debug!(%node, reason = %ended, "stream to peer ended"),
                () = stop.cancelled() => {}
            }
            if started.elapsed() > Duration::from_secs(1) {
                let mut retry = peer.retry.lock();
                *retry = Retry { pause: PAUSE_MIN, not_before: Instant::now() };
            }
        });
        Ok(mux)
    }
}
