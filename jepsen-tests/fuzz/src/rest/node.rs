//! The node behind the router: all shards, one replica, documents kept in memory by the state machine that real nodes have.
//! It answers at once, refuses nothing, and remembers what a real node would have refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use borough_node::state::{self, Header};
use borough_node::store::Space;
use borough_proto::key::ranges;
use borough_proto::wire::{self, data_reply, data_request};
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::wire::shard;

const SHARDS: u32 = 4;
/// The time there is: nothing expires.
const NOW_MS: u64 = 1_700_000_000_000;

/// One shard's state: a space of its own, because a sender counts its writes per shard.
struct Shard {
    space: Arc<dyn Space>,
    header: Header,
    index: u64,
}

/// The shards, by id; those that were never asked for are not there yet.
#[derive(Default)]
struct Store {
    shards: BTreeMap<u32, Shard>,
    complaint: Option<String>,
}

impl Shard {
    fn new() -> Self {
        Self { space: shard::space(), header: Header::default(), index: 0 }
    }
}

/// The node; clones are the same one.
#[derive(Clone)]
pub struct Node {
    store: Arc<Mutex<Store>>,
    map: wire::ClusterMap,
}

impl Node {
    /// Serves on a port of its own; answers the address.
    pub async fn start(tasks: &TaskTracker) -> (Self, String) {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(any).await.unwrap_or_else(|error| panic!("bind: {error}"));
        let addr = listener.local_addr().unwrap_or_else(|error| panic!("bind: {error}")).to_string();
        let node = Self { store: Arc::default(), map: map(&addr) };
        let server = tonic::transport::Server::builder()
            .add_service(wire::data_server::DataServer::new(node.clone()))
            .add_service(wire::cluster_server::ClusterServer::new(node.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tasks.spawn(server);
        (node, addr)
    }

    /// Forgets everything.
    pub fn reset(&self) {
        *self.store.lock() = Store::default();
    }

    /// What a real node would have refused since the last reset.
    pub fn complaint(&self) -> Option<String> {
        self.store.lock().complaint.clone()
    }

    fn answer(&self, request: wire::DataRequest) -> wire::DataReply {
        let mut store = self.store.lock();
        let Store { shards, complaint } = &mut *store;
        let shard = shards.entry(request.shard).or_insert_with(Shard::new);
        let result = shard.result(request.op, complaint);
        wire::DataReply {
            call: request.call,
            result: Some(result),
            node: 1,
            epoch: 1,
            index: shard.index.max(1),
        }
    }
}

impl Shard {
    fn result(&mut self, op: Option<data_request::Op>, complaint: &mut Option<String>) -> data_reply::Result {
        match op {
            Some(data_request::Op::Read(read)) => {
                let item = |key: &wire::DocumentKey| {
                    let document = state::read(&*self.space, key, NOW_MS)
                        .unwrap_or_else(|error| panic!("memory: {error}"));
                    wire::ReadItem { document, cache_hit: false }
                };
                data_reply::Result::Read(wire::ReadReply { items: read.keys.iter().map(item).collect() })
            }
            Some(data_request::Op::Scan(scan)) => {
                let page = state::scan(&*self.space, &scan, NOW_MS);
                let (items, more) = page.unwrap_or_else(|error| panic!("memory: {error}"));
                data_reply::Result::Scan(wire::ScanReply { items, more })
            }
            Some(data_request::Op::Write(write)) => data_reply::Result::Write(self.write(write, complaint)),
            None => {
                *complaint = Some("a request without an operation".to_owned());
                data_reply::Result::Fault(wire::Fault::new(wire::FaultCode::Invalid, "no operation"))
            }
        }
    }

    fn write(&mut self, write: wire::Write, complaint: &mut Option<String>) -> wire::CommandReply {
        let command = wire::Command { stamp_ms: NOW_MS, ..write.command.unwrap_or_default() };
        if let Err(reason) = state::validate(&command) {
            *complaint = Some(format!("{reason}: {command:?}"));
        }
        self.index += 1;
        let (header, replies) = shard::apply(&*self.space, self.header, self.index, &[command]);
        self.header = header;
        replies.into_iter().next().unwrap_or_default()
    }
}

fn map(addr: &str) -> wire::ClusterMap {
    let replica = wire::ReplicaInfo { id: 1, node: 1, role: wire::ReplicaRole::Voter.into() };
    let shards = ranges(SHARDS).into_iter().zip(0..);
    let collection = |(id, name): (u32, &str)| wire::CollectionInfo {
        id,
        name: name.to_owned(),
        sort_key: name == "posts",
        require_preconditions: name == "strict",
        default_ttl_ms: (name == "short").then_some(5000),
    };
    let node = wire::NodeInfo {
        id: 1,
        addr: addr.to_owned(),
        state: wire::NodeState::Member.into(),
        ..Default::default()
    };
    wire::ClusterMap {
        cluster_id: "fuzz".to_owned(),
        epoch: 1,
        replication_factor: 1,
        nodes: vec![node],
        shards: shards
            .map(|((first, last), id)| wire::ShardInfo { id, first, last, epoch: 1, replicas: vec![replica] })
            .collect(),
        collections: (1..).zip(["users", "posts", "strict", "short"]).map(collection).collect(),
        meta: None,
        next_collection: 5,
    }
}

#[tonic::async_trait]
impl wire::data_server::Data for Node {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<wire::DataReplies, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::DataRequests>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let node = self.clone();
        let answers = request.into_inner().map(move |message| {
            let replies = message?.requests.into_iter().map(|request| node.answer(request)).collect();
            Ok(wire::DataReplies { replies })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("no router asks for this"))
}

#[tonic::async_trait]
impl wire::cluster_server::Cluster for Node {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::MapUpdate, Status>> + Send>>;

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let update = wire::MapUpdate { epoch: 1, full: Some(self.map.clone()), ..Default::default() };
        let updates = futures::stream::iter([Ok(update)]).chain(futures::stream::pending());
        Ok(Response::new(Box::pin(updates)))
    }

    async fn put_collection(
        &self,
        request: Request<wire::PutCollectionRequest>,
    ) -> Result<Response<wire::PutCollectionReply>, Status> {
        let collection = request.into_inner().collection;
        Ok(Response::new(wire::PutCollectionReply {
            collection,
            created: true,
            epoch: 1,
            ..Default::default()
        }))
    }

    async fn delete_collection(
        &self,
        request: Request<wire::DeleteCollectionRequest>,
    ) -> Result<Response<wire::DeleteCollectionReply>, Status> {
        let name = request.into_inner().name;
        let existed = self.map.collections.iter().any(|info| info.name == name);
        Ok(Response::new(wire::DeleteCollectionReply { existed, epoch: 1, ..Default::default() }))
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusReply>, Status> {
        let json = r#"{"clusterId":"fuzz","epoch":1}"#.to_owned();
        Ok(Response::new(wire::StatusReply { json, ..Default::default() }))
    }

    async fn operate(
        &self,
        request: Request<wire::OperateRequest>,
    ) -> Result<Response<wire::OperateReply>, Status> {
        use wire::operate_reply::Result as Kind;
        use wire::operate_request::Call;
        let (result, refused) = match request.into_inner().call {
            Some(Call::Get(8..)) => (Kind::NotFound, "there is no such operation"),
            Some(Call::Drain(_)) => (Kind::Refused, "too few nodes"),
            _ => (Kind::Ok, ""),
        };
        Ok(Response::new(wire::OperateReply {
            result: result.into(),
            refused: refused.to_owned(),
            json: r#"{"id":"7"}"#.to_owned(),
            operation: 7,
            ..Default::default()
        }))
    }

    async fn init(&self, _: Request<wire::InitRequest>) -> Result<Response<wire::InitReply>, Status> {
        not_here()
    }

    async fn join(&self, _: Request<wire::JoinRequest>) -> Result<Response<wire::JoinReply>, Status> {
        not_here()
    }

    async fn report(&self, _: Request<wire::NodeReport>) -> Result<Response<wire::ReportReply>, Status> {
        not_here()
    }

    async fn propose(
        &self,
        _: Request<wire::CatalogCommand>,
    ) -> Result<Response<wire::ProposeReply>, Status> {
        not_here()
    }

    async fn reconfigure(
        &self,
        _: Request<wire::ReconfigureRequest>,
    ) -> Result<Response<wire::ReconfigureReply>, Status> {
        not_here()
    }
}
