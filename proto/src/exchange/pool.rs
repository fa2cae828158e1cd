//! One multiplexed stream for each node, opened when it is first needed.
//!
//! A breaker for each node keeps a dead one from costing time: after a failed connect its calls are refused at once
//! while a probe in the background, after a pause that grows, finds out whether it is back.

use std::collections::HashMap;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Response, Status};
use tracing::{debug, info};

use super::DataProtocol;
use super::backoff::Backoff;
use super::channel::{ChannelSettings, data_client};
use super::mux::{Answers, CallError, Ended, Limits, Mux};
use crate::cluster_map::ClusterMap;
use crate::id::NodeId;
use crate::wire;

/// How a node that cannot be reached is probed.
const PROBES: Backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_secs(1) };
/// A stream that broke sooner than this after it was opened counts as a failed connect.
const LIVED_MIN: Duration = Duration::from_millis(500);

/// Settings of the pool's connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolSettings {
    pub channel: ChannelSettings,
    pub mux: Limits,
}

/// Streams to the nodes of the map.
pub struct Pool {
    settings: PoolSettings,
    peers: ArcSwap<HashMap<NodeId, Arc<Peer>>>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// Calls of several nodes made together; dropping it gives up those that still wait.
pub struct Calls {
    streams: Vec<Answers<DataProtocol>>,
    refused: Vec<(usize, CallError)>,
}

impl Calls {
    /// The next call that has ended, in any order; `None` once all have. When `late` ends, those that still wait do.
    pub async fn next(
        &mut self,
        mut late: Pin<&mut tokio::time::Sleep>,
    ) -> Option<(usize, Result<wire::DataReply, CallError>)> {
        if let Some((name, error)) = self.refused.pop() {
            return Some((name, Err(error)));
        }
        poll_fn(|cx| {
            if let Poll::Ready(ended) = self.poll_streams(cx) {
                return Poll::Ready(ended);
            }
            if late.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.streams.iter_mut().for_each(Answers::give_up);
            self.poll_streams(cx)
        })
        .await
    }

    fn poll_streams(
        &mut self,
        cx: &Context<'_>,
    ) -> Poll<Option<(usize, Result<wire::DataReply, CallError>)>> {
        let mut next = 0;
        while let Some(stream) = self.streams.get_mut(next) {
            match stream.poll_next(cx) {
                Poll::Ready(Some(ended)) => return Poll::Ready(Some(ended)),
                Poll::Ready(None) => drop(self.streams.swap_remove(next)),
                Poll::Pending => next += 1,
            }
        }
        if self.streams.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    }
}

/// One node's stream and breaker.
struct Peer {
    addr: String,
    settings: PoolSettings,
    /// Set while calls may use it.
    current: ArcSwapOption<Mux<DataProtocol>>,
    state: Mutex<PeerState>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct PeerState {
    /// A stream that is being opened.
    opening: Option<Arc<Mux<DataProtocol>>>,
    /// Connects failed in a row; above 0 the breaker is open.
    failures: u32,
    /// No probe before this.
    probe_at: Option<Instant>,
    /// The node has left the map, or its address.
    retired: bool,
}

impl Pool {
    /// An empty pool. Its connections are tasks of `tracker` and end with `stop`.
    pub fn new(settings: PoolSettings, tracker: TaskTracker, stop: CancellationToken) -> Self {
        Self { settings, peers: ArcSwap::default(), tracker, stop }
    }

    /// Takes up the nodes of `map` and lets go of others; their calls in flight are still answered.
    pub fn sync(&self, map: &ClusterMap) {
        let old = self.peers.load();
        let members = map.nodes().iter().filter(|node| node.state() != wire::NodeState::Removed);
        let peers = members.map(|node| {
            let id = NodeId(node.id);
            let kept = old.get(&id).filter(|peer| peer.addr == node.addr).cloned();
            (id, kept.unwrap_or_else(|| self.peer(&node.addr)))
        });
        let peers: HashMap<NodeId, Arc<Peer>> = peers.collect();
        let peers = Arc::new(peers);
        self.peers.store(Arc::clone(&peers));
        for (id, peer) in old.iter() {
            if !peers.get(id).is_some_and(|kept| Arc::ptr_eq(kept, peer)) {
                peer.retire();
            }
        }
    }

    fn peer(&self, addr: &str) -> Arc<Peer> {
        Arc::new(Peer {
            addr: addr.to_owned(),
            settings: self.settings,
            current: ArcSwapOption::empty(),
            state: Mutex::default(),
            tracker: self.tracker.clone(),
            stop: self.stop.child_token(),
        })
    }

    /// Sends `request` to `node`.
    ///
    /// # Errors
    /// [`CallError`]; `NotSent` at once when the node is unknown or its breaker is open.
    pub async fn call(
        &self,
        node: NodeId,
        request: wire::DataRequest,
        deadline: Instant,
    ) -> Result<wire::DataReply, CallError> {
        let mux = {
            let peers = self.peers.load();
            let Some(peer) = peers.get(&node) else { return Err(CallError::NotSent) };
            peer.mux()?
        };
        mux.call(request, deadline).await
    }

    /// Sends requests to several nodes at once, each with a name for its answer.
    pub fn call_many(&self, requests: Vec<(NodeId, usize, wire::DataRequest)>) -> Calls {
        let peers = self.peers.load();
        let mut by_node: Vec<(NodeId, Vec<(usize, wire::DataRequest)>)> = Vec::new();
        for (node, name, request) in requests {
            match by_node.iter_mut().find(|(known, _)| *known == node) {
                Some((_, requests)) => requests.push((name, request)),
                None => by_node.push((node, vec![(name, request)])),
            }
        }
        let mut calls = Calls { streams: Vec::with_capacity(by_node.len()), refused: Vec::new() };
        for (node, requests) in by_node {
            match peers.get(&node).ok_or(CallError::NotSent).and_then(Peer::mux) {
                Ok(mux) => calls.streams.push(mux.call_many(requests)),
                Err(error) => calls.refused.extend(requests.into_iter().map(|(name, _)| (name, error))),
            }
        }
        calls
    }

    /// Calls that wait for an answer of `node`; `None` when it cannot be called now. Asking opens its stream.
    pub fn in_flight(&self, node: NodeId) -> Option<usize> {
        let peers = self.peers.load();
        peers.get(&node)?.mux().ok().map(|mux| mux.in_flight())
    }

    /// Nodes with an open stream.
    pub fn connected(&self) -> usize {
        self.peers.load().values().filter(|peer| peer.current.load().is_some()).count()
    }
}

impl Peer {
    fn mux(self: &Arc<Self>) -> Result<Arc<Mux<DataProtocol>>, CallError> {
        match self.current.load_full() {
            Some(mux) => Ok(mux),
            None => self.open(),
        }
    }

    /// The stream being opened, or a new one. While the breaker is open nobody waits for the probe.
    fn open(self: &Arc<Self>) -> Result<Arc<Mux<DataProtocol>>, CallError> {
        let mut state = self.state.lock();
        if let Some(mux) = self.current.load_full() {
            return Ok(mux);
        }
        let probed = state.failures > 0;
        if state.opening.is_none() {
            let early = state.probe_at.is_some_and(|at| Instant::now() < at);
            if early || state.retired || self.stop.is_cancelled() {
                return Err(CallError::NotSent);
            }
            state.opening = Some(self.start()?);
        }
        match &state.opening {
            Some(mux) if !probed => Ok(Arc::clone(mux)),
            Some(_) | None => Err(CallError::NotSent),
        }
    }

    fn start(self: &Arc<Self>) -> Result<Arc<Mux<DataProtocol>>, CallError> {
        let channel = self.settings.channel.lazy(&self.addr).map_err(|error| {
            info!(%error, "node has no usable address");
            CallError::NotSent
        })?;
        let patience = self.settings.channel.connect_timeout;
        let peer = Arc::clone(self);
        let (mux, run) = Mux::new(self.settings.mux, async move |requests| {
            let opened = tokio::time::timeout(patience, data_client(channel).exchange(requests)).await;
            let replies =
                opened.unwrap_or_else(|_| Err(Status::unavailable("no answer to the stream's opening")))?;
            peer.opened();
            Ok(Response::into_inner(replies))
        });
        let peer = Arc::clone(self);
        self.tracker.spawn(async move {
            let started = Instant::now();
            let stop = peer.stop.clone();
            let run = Box::pin(run);
            let ended = stop.run_until_cancelled(run).await.unwrap_or(Ended::Closed);
            peer.ended(&ended, started.elapsed());
        });
        Ok(Arc::new(mux))
    }

    /// Lets the calls in flight be answered and takes no more.
    fn retire(&self) {
        let mut state = self.state.lock();
        state.retired = true;
        for mux in [state.opening.take(), self.current.swap(None)].into_iter().flatten() {
            mux.close();
        }
    }

    fn opened(&self) {
        let mut state = self.state.lock();
        let Some(mux) = state.opening.take() else { return };
        if state.failures > 0 {
            info!(addr = self.addr, "node can be reached again");
        }
        state.failures = 0;
        state.probe_at = None;
        self.current.store(Some(mux));
    }

    fn ended(&self, ended: &Ended, lived: Duration) {
        let mut state = self.state.lock();
        let opened = self.current.swap(None).is_some();
        state.opening = None;
        match ended {
            Ended::Closed => {}
            Ended::Broken(_) | Ended::ClosedByPeer | Ended::Stalled(_) if opened && lived >= LIVED_MIN => {
                // It worked until now: the next call connects anew and waits for that.
                info!(addr = self.addr, %ended, "stream to node lost");
            }
            Ended::NotOpened(_) | Ended::Broken(_) | Ended::ClosedByPeer | Ended::Stalled(_) => {
                if state.failures == 0 {
                    info!(addr = self.addr, %ended, "node cannot be reached");
                } else {
                    debug!(addr = self.addr, %ended, "node still cannot be reached");
                }
                state.probe_at = Some(Instant::now() + PROBES.pause(state.failures));
                state.failures = state.failures.saturating_add(1);
            }
        }
    }
}
