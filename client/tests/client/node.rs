//! A cluster of one node in memory: enough of the data plane for a client to be told from a wrong one.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use borough_proto::key::{hash_id, ranges};
use borough_proto::wire::{self, data_reply, data_request, op};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

/// When the node says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuse {
    Never,
    Always(wire::FaultCode),
    /// Applies the next write, breaks the connection instead of answering, and behaves from then on.
    CutAfterApplyOnce,
}

/// (collection, hash, id, sort), the order of scans.
type Key = (u32, u64, String, Option<String>);

struct State {
    shards: Vec<(u64, u64)>,
    documents: BTreeMap<Key, wire::Document>,
    answered: HashMap<(u64, u32, u64), wire::CommandReply>,
    /// Outcomes under callers' keys, by key and position, with the fingerprint.
    keyed: HashMap<(String, u32), (u64, wire::UnitReply)>,
    index: u64,
    applied: u64,
    refuse: Refuse,
    freshness: Option<wire::Freshness>,
}

#[derive(Clone)]
struct Node {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    tasks: TaskTracker,
}

pub struct Nodes {
    node: Node,
    _stop: DropGuard,
}

impl Nodes {
    pub async fn start(shards: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = State {
            shards: ranges(shards),
            documents: BTreeMap::new(),
            answered: HashMap::new(),
            keyed: HashMap::new(),
            index: 0,
            applied: 0,
            refuse: Refuse::Never,
            freshness: None,
        };
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let node = Node {
            addr: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(state)),
            tasks: tasks.clone(),
        };
        let server = tonic::transport::Server::builder()
            .add_service(wire::data_server::DataServer::new(node.clone()))
            .add_service(wire::cluster_server::ClusterServer::new(node.clone()))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        tasks.spawn(server);
        Self { node, _stop: stop.drop_guard() }
    }

    pub fn addrs(&self) -> [String; 1] {
        [self.node.addr.to_string()]
    }

    pub fn refuse(&self, refuse: Refuse) {
        self.node.state.lock().unwrap().refuse = refuse;
    }

    /// Writes applied, resent ones once.
    pub fn applied(&self) -> u64 {
        self.node.state.lock().unwrap().applied
    }

    pub fn index(&self) -> u64 {
        self.node.state.lock().unwrap().index
    }

    /// What the last read asked for.
    pub fn last_freshness(&self) -> Option<wire::Freshness> {
        self.node.state.lock().unwrap().freshness
    }
}

impl State {
    /// `None`: break the connection.
    fn answer(&mut self, request: wire::DataRequest) -> Option<data_reply::Result> {
        if let Refuse::Always(code) = self.refuse {
            return Some(data_reply::Result::Fault(wire::Fault::new(code, "on demand")));
        }
        Some(match request.op.unwrap() {
            data_request::Op::Read(read) => {
                self.freshness = read.freshness;
                let items = read.keys.into_iter().map(|key| wire::ReadItem {
                    document: self.documents.get(&place(key.collection, &key.id, key.sort)).cloned(),
                    cache_hit: true,
                });
                data_reply::Result::Read(wire::ReadReply { items: items.collect() })
            }
            data_request::Op::Scan(scan) => data_reply::Result::Scan(self.scan(request.shard, scan)),
            data_request::Op::Write(write) => {
                let command = write.command.unwrap();
                let session = command.session.unwrap();
                let known = (session.id, request.shard, session.sequence);
                let reply = match self.answered.get(&known) {
                    Some(reply) => reply.clone(),
                    None => {
                        let units = command.units.into_iter().map(|unit| self.apply(unit)).collect();
                        self.applied += 1;
                        wire::CommandReply { units, stale_duplicate: false }
                    }
                };
                self.answered.insert(known, reply.clone());
                if self.refuse == Refuse::CutAfterApplyOnce {
                    self.refuse = Refuse::Never;
                    return None;
                }
                data_reply::Result::Write(reply)
            }
        })
    }

    fn scan(&self, shard: u32, scan: wire::Scan) -> wire::ScanReply {
        let (first, last) = self.shards[shard as usize];
        let in_scan = |key: &&Key| {
            let sort = key.3.as_deref().unwrap_or("");
            key.0 == scan.collection
                && (first..=last).contains(&key.1)
                && scan.partition.as_ref().is_none_or(|id| *id == key.2)
                && scan.start.as_ref().is_none_or(|start| sort >= start.as_str())
                && scan.end.as_ref().is_none_or(|end| sort < end.as_str())
        };
        let after = scan.after.as_ref().map(|key| place(key.collection, &key.id, key.sort.clone()));
        let from = match &after {
            Some(key) if !scan.reverse => (Bound::Excluded(key), Bound::Unbounded),
            Some(key) => (Bound::Unbounded, Bound::Excluded(key)),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let mut keys: Vec<&Key> =
            self.documents.range::<Key, _>(from).map(|(key, _)| key).filter(in_scan).collect();
        if scan.reverse {
            keys.reverse();
        }
        let more = keys.len() > scan.limit as usize;
        let items =
            keys.into_iter().take(scan.limit as usize).map(|key| self.documents[key].clone()).collect();
        wire::ScanReply { items, more }
    }

    fn apply(&mut self, unit: wire::Unit) -> wire::UnitReply {
        self.index += 1;
        if let Some(key) = &unit.idempotency
            && let Some((fingerprint, first)) = self.keyed.get(&(key.key.clone(), key.position))
        {
            if *fingerprint == key.fingerprint {
                return wire::UnitReply { replayed: true, ..first.clone() };
            }
            let ops = vec![reply(wire::OpStatus::KeyReused, 0); unit.ops.len()];
            return wire::UnitReply { ops, ..Default::default() };
        }
        let failures: Vec<_> = unit.ops.iter().map(|op| self.check(op)).collect();
        let failed = failures.iter().any(Option::is_some);
        let ops = unit.ops.into_iter().zip(failures).map(|(op, failure)| match failure {
            Some(reply) => reply,
            None if failed => reply(wire::OpStatus::Aborted, 0),
            None => self.do_it(op),
        });
        let reply = wire::UnitReply { ops: ops.collect(), replayed: false, note: None };
        let Some(key) = unit.idempotency else { return reply };
        let reply = wire::UnitReply { note: key.note, ..reply };
        self.keyed.insert((key.key, key.position), (key.fingerprint, reply.clone()));
        reply
    }

    fn check(&self, op: &wire::Op) -> Option<wire::OpReply> {
        let version =
            self.documents.get(&place(op.collection, &op.id, op.sort.clone())).map(|found| found.version);
        let condition = op.precondition.clone().unwrap_or_default();
        let needs_one = matches!(op.action, Some(op::Action::Merge(_) | op::Action::Delete(_)));
        match version {
            Some(version) if condition.if_absent => Some(reply(wire::OpStatus::Exists, version)),
            Some(version) if !condition.if_match.is_empty() && !condition.if_match.contains(&version) => {
                Some(reply(wire::OpStatus::PreconditionFailed, version))
            }
            None if needs_one => Some(reply(wire::OpStatus::NotFound, 0)),
            None if condition.if_present || !condition.if_match.is_empty() => {
                Some(reply(wire::OpStatus::PreconditionFailed, 0))
            }
            Some(_) | None => None,
        }
    }

    fn do_it(&mut self, op: wire::Op) -> wire::OpReply {
        let key = place(op.collection, &op.id, op.sort.clone());
        let expires_ms = op.ttl_ms;
        let (status, body, flags) = match op.action.unwrap() {
            op::Action::Put(put) => {
                let there = self.documents.contains_key(&key);
                let status = if there { wire::OpStatus::Replaced } else { wire::OpStatus::Created };
                (status, put.document, put.flags)
            }
            op::Action::Merge(merge) => {
                let old = &self.documents[&key];
                let mut object: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_slice(&old.body).unwrap();
                let patch: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_slice(&merge.patch).unwrap();
                object.extend(patch);
                (wire::OpStatus::Merged, Bytes::from(serde_json::to_vec(&object).unwrap()), old.flags)
            }
            op::Action::Delete(_) => {
                self.documents.remove(&key);
                return reply(wire::OpStatus::Deleted, self.index);
            }
            op::Action::Check(_) => {
                return reply(wire::OpStatus::Checked, self.documents.get(&key).map_or(0, |d| d.version));
            }
        };
        let document = wire::Document {
            id: op.id,
            sort: op.sort,
            version: self.index,
            expires_ms,
            flags,
            body: body.clone(),
        };
        self.documents.insert(key, document);
        wire::OpReply { expires_ms, document: body, flags, ..reply(status, self.index) }
    }
}

fn place(collection: u32, id: &str, sort: Option<String>) -> Key {
    (collection, hash_id(id), id.to_owned(), sort)
}

fn reply(status: wire::OpStatus, version: u64) -> wire::OpReply {
    wire::OpReply { status: status.into(), version, ..Default::default() }
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
        let state = Arc::clone(&self.state);
        self.tasks.spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                for request in message.requests {
                    let (call, epoch) = (request.call, request.epoch);
                    let (result, index) = {
                        let mut state = state.lock().unwrap();
                        (state.answer(request), state.index)
                    };
                    let Some(result) = result else { return };
                    let reply = wire::DataReply { call, result: Some(result), node: 1, epoch, index };
                    let _ = sender.send(Ok(wire::DataReplies { replies: vec![reply] })).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl Node {
    fn map(&self) -> wire::ClusterMap {
        let replicas = vec![wire::ReplicaInfo { id: 1, node: 1, role: wire::ReplicaRole::Voter.into() }];
        let shard = |(id, &(first, last)): (usize, &(u64, u64))| wire::ShardInfo {
            id: id as u32,
            first,
            last,
            epoch: 1,
            replicas: replicas.clone(),
        };
        let collection = |id, name: &str, sort_key, require_preconditions| wire::CollectionInfo {
            id,
            name: name.to_owned(),
            sort_key,
            default_ttl_ms: None,
            require_preconditions,
        };
        wire::ClusterMap {
            cluster_id: "memory".to_owned(),
            epoch: 1,
            replication_factor: 1,
            nodes: vec![wire::NodeInfo {
                id: 1,
                addr: self.addr.to_string(),
                state: wire::NodeState::Member.into(),
                ..Default::default()
            }],
            shards: self.state.lock().unwrap().shards.iter().enumerate().map(shard).collect(),
            collections: vec![
                collection(1, "users", false, false),
                collection(2, "posts", true, false),
                collection(3, "strict", false, true),
            ],
            meta: None,
            next_collection: 4,
        }
    }
}

macro_rules! not_here {
    ($($method:ident: $request:ident -> $reply:ident),*) => {
        #[tonic::async_trait]
        impl wire::cluster_server::Cluster for Node {
            type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::MapUpdate, Status>> + Send>>;

            async fn watch(&self, _: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
                let update = wire::MapUpdate { epoch: 1, full: Some(self.map()), ..Default::default() };
                let updates = futures::stream::iter([Ok(update)]).chain(futures::stream::pending());
                Ok(Response::new(Box::pin(updates)))
            }
            $(
                async fn $method(&self, _: Request<wire::$request>) -> Result<Response<wire::$reply>, Status> {
                    Err(Status::unimplemented("in memory"))
                }
            )*
        }
    };
}

not_here! {
    operate: OperateRequest -> OperateReply,
    init: InitRequest -> InitReply,
    join: JoinRequest -> JoinReply,
    put_collection: PutCollectionRequest -> PutCollectionReply,
    delete_collection: DeleteCollectionRequest -> DeleteCollectionReply,
    status: StatusRequest -> StatusReply,
    report: NodeReport -> ReportReply,
    propose: CatalogCommand -> ProposeReply,
    reconfigure: ReconfigureRequest -> ReconfigureReply
}
