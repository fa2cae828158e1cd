//! Nodes that do what a test's script says, as real tonic servers on ports of their own.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::channel::ChannelSettings;
use super::forward::{ForwardSettings, Forwarder};
use super::mux::Limits;
use super::pool::PoolSettings;
use crate::key;
use crate::wire::{self, data_reply};

/// No node is silent for so long but by its script, however slow the machine: tests count attempts.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The same for connections.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a node does with a request.
pub(super) enum Act {
    Answer(data_reply::Result),
    /// Breaks the connection without an answer.
    Break,
    Silence,
}

type Script = Box<dyn FnMut(u64, &wire::DataRequest) -> Act + Send>;

/// A cluster of scripted nodes; every shard has a replica on each.
pub(super) struct Cluster {
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) seen: Arc<Mutex<Vec<(u64, wire::DataRequest)>>>,
    pub(super) map: watch::Sender<wire::ClusterMap>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

#[derive(Clone)]
struct Node {
    id: u64,
    script: Arc<Mutex<Script>>,
    seen: Arc<Mutex<Vec<(u64, wire::DataRequest)>>>,
    map: watch::Sender<wire::ClusterMap>,
    tasks: TaskTracker,
}

impl Cluster {
    /// `nodes` nodes and one shard. `script` is asked for every request: (node, request).
    pub(super) async fn start(
        nodes: u64,
        script: impl FnMut(u64, &wire::DataRequest) -> Act + Send + 'static,
    ) -> Self {
        Self::with_attempt(ATTEMPT, nodes, script).await
    }

    /// [`Self::start`], with a forwarder that leaves a silent node after `attempt`.
    pub(super) async fn with_attempt(
        attempt: Duration,
        nodes: u64,
        script: impl FnMut(u64, &wire::DataRequest) -> Act + Send + 'static,
    ) -> Self {
        let (tasks, stop, seen) = (TaskTracker::new(), CancellationToken::new(), Arc::default());
        let map = watch::Sender::new(wire::ClusterMap::default());
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(script)));
        let mut addrs = Vec::new();
        for id in 1..=nodes {
            let node = Node {
                id,
                script: Arc::clone(&script),
                seen: Arc::clone(&seen),
                map: map.clone(),
                tasks: tasks.clone(),
            };
            addrs.push(serve(node, &tasks, &stop).await.to_string());
        }
        map.send_replace(one_shard(&addrs));
        let channel = ChannelSettings {
            connect_timeout: PATIENCE,
            keepalive_timeout: PATIENCE,
            ..ChannelSettings::default()
        };
        let pool = PoolSettings { channel, mux: Limits { stall: PATIENCE, ..Limits::default() } };
        let settings = ForwardSettings { pool, attempt };
        let forwarder = Forwarder::start(addrs, settings, &tasks, &stop);
        assert!(forwarder.watch().reached(1, Instant::now() + Duration::from_secs(10)).await, "no map");
        Self { forwarder, seen, map, tasks, stop }
    }
}

fn one_shard(addrs: &[String]) -> wire::ClusterMap {
    let ids = 1..=addrs.len() as u64;
    let replica = |node| wire::ReplicaInfo { id: node * 10, node, role: wire::ReplicaRole::Voter.into() };
    let (first, last) = key::ranges(1)[0];
    let node = |(id, addr): (u64, &String)| wire::NodeInfo {
        id,
        addr: addr.clone(),
        state: wire::NodeState::Member.into(),
        ..Default::default()
    };
    wire::ClusterMap {
        cluster_id: "scripted".to_owned(),
        epoch: 1,
        replication_factor: 3,
        nodes: ids.clone().zip(addrs).map(node).collect(),
        shards: vec![wire::ShardInfo { id: 0, first, last, epoch: 4, replicas: ids.map(replica).collect() }],
        ..Default::default()
    }
}

async fn serve(node: Node, tasks: &TaskTracker, stop: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(wire::data_server::DataServer::new(node.clone()))
        .add_service(wire::cluster_server::ClusterServer::new(node))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
    tasks.spawn(server);
    addr
}

#[tonic::async_trait]
impl wire::data_server::Data for Node {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<wire::DataReplies, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::DataRequests>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut stream = request.into_inner();
        let (sender, receiver) = mpsc::channel(16);
        let this = self.clone();
        self.tasks.spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                for request in message.requests {
                    this.seen.lock().push((this.id, request.clone()));
                    let act = (this.script.lock())(this.id, &request);
                    let result = match act {
                        Act::Answer(result) => Some(result),
                        Act::Break => return,
                        Act::Silence => continue,
                    };
                    let reply =
                        wire::DataReply { call: request.call, result, node: this.id, epoch: 4, index: 77 };
                    let _ = sender.send(Ok(wire::DataReplies { replies: vec![reply] })).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl wire::cluster_server::Cluster for Node {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::MapUpdate, Status>> + Send>>;

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let maps = WatchStream::new(self.map.subscribe());
        let updates =
            maps.map(|map| Ok(wire::MapUpdate { epoch: map.epoch, full: Some(map), ..Default::default() }));
        Ok(Response::new(Box::pin(updates)))
    }
    async fn init(&self, _: Request<wire::InitRequest>) -> Result<Response<wire::InitReply>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn join(&self, _: Request<wire::JoinRequest>) -> Result<Response<wire::JoinReply>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn put_collection(
        &self,
        _: Request<wire::PutCollectionRequest>,
    ) -> Result<Response<wire::PutCollectionReply>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn delete_collection(
        &self,
        _: Request<wire::DeleteCollectionRequest>,
    ) -> Result<Response<wire::DeleteCollectionReply>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusReply>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn report(&self, _: Request<wire::NodeReport>) -> Result<Response<wire::ReportReply>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn propose(
        &self,
        _: Request<wire::CatalogCommand>,
    ) -> Result<Response<wire::ProposeReply>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn operate(
        &self,
        _: Request<wire::OperateRequest>,
    ) -> Result<Response<wire::OperateReply>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn reconfigure(
        &self,
        _: Request<wire::ReconfigureRequest>,
    ) -> Result<Response<wire::ReconfigureReply>, Status> {
        Err(Status::unimplemented("scripted"))
    }
}
