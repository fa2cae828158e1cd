//! A node that keeps documents in memory: just enough of the data plane to hold the router against.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;

use borough_proto::key::{hash_id, ranges};
use borough_proto::wire::{self, OpStatus, data_reply, data_request, op::Action};
use futures::Stream;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, WatchStream};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

pub const SHARDS: u32 = 4;

type Key = (u32, u64, String, Option<String>);
type Keyed = HashMap<(String, u32), (u64, wire::UnitReply)>;

#[derive(Default)]
pub struct Store {
    documents: BTreeMap<Key, wire::Document>,
    keyed: Keyed,
    version: u64,
    /// Answered instead of the next requests.
    pub faults: Vec<wire::Fault>,
    /// Answered instead of a later request: after so many.
    pub faults_after: Option<(usize, wire::Fault)>,
    pub requests: Vec<wire::DataRequest>,
    /// Epoch of the catalog when it is ahead of what is pushed.
    pub ahead: u64,
    /// Status documents asked for.
    pub looks: usize,
}

#[derive(Clone)]
pub struct FakeNode {
    pub store: Arc<Mutex<Store>>,
    pub map: watch::Sender<wire::ClusterMap>,
    tasks: TaskTracker,
}

impl FakeNode {
    /// Serves on a port of its own; answers the address.
    pub async fn start(tasks: &TaskTracker) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let map = watch::Sender::new(first_map(&addr));
        let node = Self { store: Arc::default(), map, tasks: tasks.clone() };
        let server = tonic::transport::Server::builder()
            .add_service(wire::data_server::DataServer::new(node.clone()))
            .add_service(wire::cluster_server::ClusterServer::new(node.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tasks.spawn(server);
        (node, addr)
    }

    fn answer(&self, request: wire::DataRequest) -> wire::DataReply {
        let mut store = self.store.lock();
        store.requests.push(request.clone());
        let (call, shard) = (request.call, request.shard);
        match store.faults_after.take() {
            Some((0, fault)) => store.faults.push(fault),
            Some((left, fault)) => store.faults_after = Some((left - 1, fault)),
            None => {}
        }
        let result = match store.faults.pop() {
            Some(fault) => data_reply::Result::Fault(fault),
            None => match request.op.unwrap() {
                data_request::Op::Read(read) => data_reply::Result::Read(store.read(read)),
                data_request::Op::Write(write) => {
                    data_reply::Result::Write(store.write(write.command.unwrap()))
                }
                data_request::Op::Scan(scan) => {
                    let (first, last) = ranges(SHARDS)[shard as usize];
                    data_reply::Result::Scan(store.scan(scan, first, last))
                }
            },
        };
        wire::DataReply { call, result: Some(result), node: 1, epoch: 1, index: store.version + 100 }
    }
}

fn first_map(addr: &str) -> wire::ClusterMap {
    let replica = wire::ReplicaInfo { id: 1, node: 1, role: wire::ReplicaRole::Voter.into() };
    let shards = ranges(SHARDS).into_iter().zip(0..);
    let shards = shards.map(|((first, last), id)| wire::ShardInfo {
        id,
        first,
        last,
        epoch: 1,
        replicas: vec![replica],
    });
    let users = wire::CollectionInfo { id: 1, name: "users".to_owned(), ..Default::default() };
    let posts =
        wire::CollectionInfo { id: 2, name: "posts".to_owned(), sort_key: true, ..Default::default() };
    let node = wire::NodeInfo {
        id: 1,
        addr: addr.to_owned(),
        state: wire::NodeState::Member.into(),
        ..Default::default()
    };
    wire::ClusterMap {
        cluster_id: "fake".to_owned(),
        epoch: 1,
        replication_factor: 1,
        nodes: vec![node],
        shards: shards.collect(),
        collections: vec![users, posts],
        meta: None,
        next_collection: 0,
    }
}

fn place(collection: u32, id: &str, sort: Option<&str>) -> Key {
    (collection, hash_id(id), id.to_owned(), sort.map(str::to_owned))
}

impl Store {
    fn read(&self, read: wire::Read) -> wire::ReadReply {
        let item = |key: &wire::DocumentKey| {
            let document = self.documents.get(&place(key.collection, &key.id, key.sort.as_deref())).cloned();
            wire::ReadItem { cache_hit: document.is_some(), document }
        };
        wire::ReadReply { items: read.keys.iter().map(item).collect() }
    }

    fn scan(&self, scan: wire::Scan, first: u64, last: u64) -> wire::ScanReply {
        let inside = |key: &Key| {
            key.0 == scan.collection
                && (first..=last).contains(&key.1)
                && scan.partition.as_ref().is_none_or(|id| *id == key.2)
                && scan.start.as_ref().is_none_or(|start| key.3.as_ref().is_some_and(|sort| sort >= start))
                && scan.end.as_ref().is_none_or(|end| key.3.as_ref().is_some_and(|sort| sort < end))
        };
        let mut keys: Vec<&Key> = self.documents.keys().filter(|key| inside(key)).collect();
        if scan.reverse {
            keys.reverse();
        }
        if let Some(after) = &scan.after {
            let after = place(after.collection, &after.id, after.sort.as_deref());
            keys.retain(|key| if scan.reverse { **key < after } else { **key > after });
        }
        let more = keys.len() > scan.limit as usize;
        let items = keys.iter().take(scan.limit as usize).map(|key| self.documents[*key].clone()).collect();
        wire::ScanReply { items, more }
    }

    fn write(&mut self, command: wire::Command) -> wire::CommandReply {
        wire::CommandReply {
            units: command.units.iter().map(|unit| self.unit(unit)).collect(),
            stale_duplicate: false,
        }
    }

    fn unit(&mut self, unit: &wire::Unit) -> wire::UnitReply {
        if let Some(key) = &unit.idempotency
            && let Some((fingerprint, reply)) = self.keyed.get(&(key.key.clone(), key.position))
        {
            if *fingerprint == key.fingerprint {
                return wire::UnitReply { replayed: true, ..reply.clone() };
            }
            return wire::UnitReply { ops: vec![failed(OpStatus::KeyReused, 0)], ..Default::default() };
        }
        let before = self.documents.clone();
        let mut ops: Vec<wire::OpReply> = unit.ops.iter().map(|op| self.op(op)).collect();
        if ops.iter().any(|op| op.status >= OpStatus::NotFound as i32) {
            self.documents = before;
            for op in ops.iter_mut().filter(|op| op.status < OpStatus::NotFound as i32) {
                *op = failed(OpStatus::Aborted, 0);
            }
        }
        let note = unit.idempotency.as_ref().and_then(|key| key.note.clone());
        let reply = wire::UnitReply { ops, replayed: false, note };
        if let Some(key) = &unit.idempotency {
            self.keyed.insert((key.key.clone(), key.position), (key.fingerprint, reply.clone()));
        }
        reply
    }

    fn op(&mut self, op: &wire::Op) -> wire::OpReply {
        let key = place(op.collection, &op.id, op.sort.as_deref());
        let old = self.documents.get(&key).cloned();
        let version = old.as_ref().map_or(0, |old| old.version);
        if let Some(condition) = &op.precondition {
            if condition.if_absent && old.is_some() {
                return failed(OpStatus::Exists, version);
            }
            let unmatched = !condition.if_match.is_empty() && !condition.if_match.contains(&version);
            if unmatched
                || (condition.if_present && old.is_none())
                || condition.if_none_match.contains(&version)
            {
                return failed(OpStatus::PreconditionFailed, version);
            }
        }
        self.version += 1;
        let expires_ms = op.ttl_ms.map(|ttl| 1_000_000 + ttl);
        let new = wire::Document {
            id: op.id.clone(),
            sort: op.sort.clone(),
            version: self.version,
            expires_ms,
            ..Default::default()
        };
        match op.action.as_ref().unwrap() {
            Action::Put(put) => {
                let status = if old.is_some() { OpStatus::Replaced } else { OpStatus::Created };
                self.documents
                    .insert(key, wire::Document { flags: put.flags, body: put.document.clone(), ..new });
                wire::OpReply {
                    status: status.into(),
                    version: self.version,
                    expires_ms,
                    ..Default::default()
                }
            }
            Action::Merge(merge) => {
                let Some(old) = old else { return failed(OpStatus::NotFound, 0) };
                let mut value: serde_json::Value = serde_json::from_slice(&old.body).unwrap();
                let patch: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_slice(&merge.patch).unwrap();
                if op.sort.is_none() && patch.get("id").is_some_and(|new| *new != op.id.as_str()) {
                    return failed(OpStatus::InvalidMerge, version);
                }
                value.as_object_mut().unwrap().extend(patch);
                let body = bytes::Bytes::from(serde_json::to_vec(&value).unwrap());
                self.documents.insert(key, wire::Document { flags: old.flags, body: body.clone(), ..new });
                let status = OpStatus::Merged.into();
                wire::OpReply { status, version: self.version, expires_ms, document: body, flags: old.flags }
            }
            Action::Delete(_) => match self.documents.remove(&key) {
                Some(_) => wire::OpReply {
                    status: OpStatus::Deleted.into(),
                    version: self.version,
                    ..Default::default()
                },
                None => failed(OpStatus::NotFound, 0),
            },
            Action::Check(_) => {
                wire::OpReply { status: OpStatus::Checked.into(), version, ..Default::default() }
            }
        }
    }
}

fn failed(status: OpStatus, version: u64) -> wire::OpReply {
    wire::OpReply { status: status.into(), version, ..Default::default() }
}

#[tonic::async_trait]
impl wire::data_server::Data for FakeNode {
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
                let replies = message.requests.into_iter().map(|request| this.answer(request)).collect();
                if sender.send(Ok(wire::DataReplies { replies })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl wire::cluster_server::Cluster for FakeNode {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::MapUpdate, Status>> + Send>>;

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let maps = WatchStream::new(self.map.subscribe());
        let updates =
            maps.map(|map| Ok(wire::MapUpdate { epoch: map.epoch, full: Some(map), ..Default::default() }));
        Ok(Response::new(Box::pin(updates)))
    }
    async fn put_collection(
        &self,
        request: Request<wire::PutCollectionRequest>,
    ) -> Result<Response<wire::PutCollectionReply>, Status> {
        let mut info = request.into_inner().collection.unwrap();
        let mut reply = wire::PutCollectionReply::default();
        self.map.send_modify(|map| {
            map.epoch += 1;
            info.id = map.epoch as u32 + 10;
            if let Some(old) = map.collections.iter_mut().find(|old| old.name == info.name) {
                if old.sort_key != info.sort_key {
                    reply.refused = "the order of a collection cannot change".to_owned();
                }
                *old = info.clone();
            } else {
                reply.created = true;
                map.collections.push(info.clone());
            }
            reply.epoch = map.epoch;
        });
        reply.collection = Some(info);
        Ok(Response::new(reply))
    }
    async fn delete_collection(
        &self,
        request: Request<wire::DeleteCollectionRequest>,
    ) -> Result<Response<wire::DeleteCollectionReply>, Status> {
        let name = request.into_inner().name;
        let mut reply = wire::DeleteCollectionReply::default();
        self.map.send_modify(|map| {
            map.epoch += 1;
            reply.existed = map.collections.iter().any(|info| info.name == name);
            map.collections.retain(|info| info.name != name);
            reply.epoch = map.epoch;
        });
        Ok(Response::new(reply))
    }
    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusReply>, Status> {
        let mut store = self.store.lock();
        store.looks += 1;
        let epoch = store.ahead.max(self.map.borrow().epoch);
        let json = format!("{{\"clusterId\":\"fake\",\"epoch\":{epoch}}}");
        Ok(Response::new(wire::StatusReply { json, ..Default::default() }))
    }
    async fn init(&self, _: Request<wire::InitRequest>) -> Result<Response<wire::InitReply>, Status> {
        Err(Status::unimplemented("fake"))
    }
    async fn join(&self, _: Request<wire::JoinRequest>) -> Result<Response<wire::JoinReply>, Status> {
        Err(Status::unimplemented("fake"))
    }
    async fn report(&self, _: Request<wire::NodeReport>) -> Result<Response<wire::ReportReply>, Status> {
        Err(Status::unimplemented("fake"))
    }
    async fn propose(
        &self,
        _: Request<wire::CatalogCommand>,
    ) -> Result<Response<wire::ProposeReply>, Status> {
        Err(Status::unimplemented("fake"))
    }
    async fn operate(
        &self,
        request: Request<wire::OperateRequest>,
    ) -> Result<Response<wire::OperateReply>, Status> {
        use wire::operate_reply::Result as Kind;
        use wire::operate_request::Call;
        let reply = |result: Kind, json: &str, refused: &str, operation| wire::OperateReply {
            result: result.into(),
            json: json.to_owned(),
            refused: refused.to_owned(),
            operation,
            ..Default::default()
        };
        Ok(Response::new(match request.into_inner().call.unwrap() {
            Call::Rebalance(wire::Rebalance { validate_only: true }) => {
                reply(Kind::Ok, "{\"plan\":true}", "", 0)
            }
            Call::Undrain(_) => reply(Kind::Ok, "", "", 0),
            Call::Drain(1) => reply(Kind::Refused, "", "too few nodes", 0),
            Call::Get(8) => reply(Kind::NotFound, "", "there is no operation 8", 0),
            _ => reply(Kind::Ok, "{\"id\":\"7\"}", "", 7),
        }))
    }
    async fn reconfigure(
        &self,
        _: Request<wire::ReconfigureRequest>,
    ) -> Result<Response<wire::ReconfigureReply>, Status> {
        Err(Status::unimplemented("fake"))
    }
}
