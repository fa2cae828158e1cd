//! What two nodes answer to the messages of one stream.

use std::net::SocketAddr;
use std::slice;
use std::time::Duration;

use borough_proto::exchange::channel::{ChannelSettings, cluster_client, data_client};
use borough_proto::exchange::{ForwardSettings, Forwarder};
use borough_proto::{ClusterMap, ShardId, wire};
use futures::stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::data_reply::Result as Answer;
use wire::data_request::Op;
use wire::{FaultCode, Outcome};

use crate::config::{Config, EngineKind};
use crate::raft::tests::growth::{Running, boxed, config, until};
use crate::raft::tests::runtime;
use crate::state::tests::{put, unit};

const SHARDS: u32 = 4;
/// Of one shard in one message: more than are answered at once, and more than may be queued.
const SAME: u64 = 1_500;
const COLLECTION: u32 = 1;
const BODY: &str = "{\"n\":1}";

fn read(shard: u32, ids: &[&str]) -> wire::DataRequest {
    let key = |id: &&str| wire::DocumentKey { collection: COLLECTION, id: (*id).to_owned(), sort: None };
    let read = wire::Read { keys: ids.iter().map(key).collect(), freshness: None };
    wire::DataRequest { call: 0, shard, epoch: 0, timeout_ms: 20_000, op: Some(Op::Read(read)) }
}

fn change_read(mut request: wire::DataRequest, change: impl FnOnce(&mut wire::Read)) -> wire::DataRequest {
    let Some(Op::Read(read)) = &mut request.op else { panic!("no read: {request:?}") };
    change(read);
    request
}

/// Sends `requests` as one message and ends the stream: what is answered until the other side ends it, too.
async fn answers(address: &str, requests: Vec<wire::DataRequest>) -> Vec<wire::DataReply> {
    answers_timed(address, requests).await.into_iter().map(|(reply, _)| reply).collect()
}

/// [`answers`], each with when it came.
async fn answers_timed(address: &str, requests: Vec<wire::DataRequest>) -> Vec<(wire::DataReply, Instant)> {
    let count = requests.len();
    let number = |(call, request)| wire::DataRequest { call: call as u64, ..request };
    let requests = requests.into_iter().enumerate().map(number).collect();
    let mut client = data_client(ChannelSettings::default().lazy(address).unwrap());
    let message = stream::iter([wire::DataRequests { requests }]);
    let mut messages = client.exchange(message).await.unwrap().into_inner();
    let mut replies = Vec::new();
    while let Some(message) = messages.message().await.unwrap() {
        let now = Instant::now();
        replies.extend(message.replies.into_iter().map(|reply| (reply, now)));
    }
    replies.sort_by_key(|(reply, _)| reply.call);
    let calls: Vec<_> = replies.iter().map(|(reply, _)| reply.call).collect();
    assert_eq!(calls, (0..count as u64).collect::<Vec<_>>(), "each call is answered once");
    replies
}

fn fault(reply: &wire::DataReply) -> Option<FaultCode> {
    match &reply.result {
        Some(Answer::Fault(fault)) => Some(fault.code()),
        _ => None,
    }
}

/// The bodies that a read found.
fn bodies(reply: &wire::DataReply) -> Vec<Option<String>> {
    let Some(Answer::Read(read)) = &reply.result else { panic!("no read: {reply:?}") };
    let body = |item: &wire::ReadItem| {
        let document = item.document.as_ref()?;
        Some(String::from_utf8(document.body.to_vec()).unwrap())
    };
    read.items.iter().map(body).collect()
}

/// An id that lies in `shard`.
fn id(map: &ClusterMap, shard: u32, name: &str) -> String {
    let mut ids = (0..).map(|n| format!("{name}{n}"));
    ids.find(|id| map.shard_of_id(id).is_some_and(|info| info.id == shard)).unwrap()
}

/// Stands in front of a node. While it is not open, what comes is kept.
async fn serve(listener: TcpListener, to: SocketAddr, open: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((from, _)) = listener.accept().await {
        let open = open.clone();
        connections.spawn(async move {
            let Ok(to) = TcpStream::connect(to).await else { return };
            let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
            tokio::join!(carry(from_read, to_write, open.clone()), carry(to_read, from_write, open));
        });
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut open: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if open.wait_for(|open| *open).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

struct Two {
    running: Vec<Running>,
    /// Of the nodes themselves; others reach them by way of what can be closed.
    addresses: Vec<String>,
    open: watch::Sender<bool>,
    forwarder: std::sync::Arc<Forwarder>,
    stop: CancellationToken,
    /// Of each shard, an id that is written.
    ids: Vec<String>,
    /// And the log index of that.
    index: Vec<u64>,
}

impl Two {
    async fn start(dirs: &[tempfile::TempDir], tasks: &TaskTracker) -> Self {
        let stop = CancellationToken::new();
        let open = watch::Sender::new(true);
        let behind = async |config: Config| {
            // Another loopback address has the proxy's port free.
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let proxy = listener.local_addr().unwrap();
            let listen = SocketAddr::from(([127, 0, 0, 2], proxy.port()));
            tasks.spawn(stop.clone().run_until_cancelled_owned(serve(listener, listen, open.subscribe())));
            Config { listen, advertise: proxy.to_string(), ..config }
        };
        let alone = behind(config(dirs[0].path(), EngineKind::Sled, &[])).await;
        let mut addresses = vec![alone.listen.to_string()];
        let first = Running::start(tasks, alone);
        let address = first.address().await;
        let mut cluster = cluster_client(ChannelSettings::default().lazy(&address).unwrap());
        let init = wire::InitRequest { shards: SHARDS, replicas: 2, ..Default::default() };
        cluster.init(init).await.unwrap();
        let joining = behind(config(dirs[1].path(), EngineKind::Fjall, slice::from_ref(&address))).await;
        addresses.push(joining.listen.to_string());
        let second = Running::start(tasks, joining);
        second.address().await;
        let collection = wire::CollectionInfo { name: "users".to_owned(), ..Default::default() };
        let request = wire::PutCollectionRequest { collection: Some(collection) };
        let made = cluster.put_collection(request).await.unwrap().into_inner();
        assert_eq!(made.collection.unwrap().id, COLLECTION);
        let forwarder = Forwarder::start(vec![address], ForwardSettings::default(), tasks, &stop);
        until("every shard has two voters", async || {
            let map = forwarder.watch().map();
            let voter = |replica: &wire::ReplicaInfo| replica.role() == wire::ReplicaRole::Voter;
            let both = |shard: &wire::ShardInfo| shard.replicas.iter().filter(|r| voter(r)).count() == 2;
            map.shards().len() == SHARDS as usize && map.shards().iter().all(both)
        })
        .await;
        let map = forwarder.watch().map();
        let ids: Vec<_> = (0..SHARDS).map(|shard| id(&map, shard, "there")).collect();
        let mut two =
            Self { running: vec![first, second], addresses, forwarder, open, stop, ids, index: Vec::new() };
        for shard in 0..SHARDS {
            let op = put(&two.ids[shard as usize], BODY);
            let index = two.write(shard, op).await;
            two.index.push(index);
        }
        two
    }

    async fn write(&self, shard: u32, op: wire::Op) -> u64 {
        let mut index = None;
        until("a write is acknowledged", async || {
            let deadline = Instant::now() + Duration::from_secs(10);
            let units = vec![unit(vec![op.clone()])];
            let answer = self.forwarder.write(ShardId(shard), units, deadline).await;
            index = answer.ok().map(|answer| answer.index);
            index.is_some()
        })
        .await;
        index.unwrap()
    }

    /// The place of the node that leads `shard` now.
    async fn leader(&self, shard: u32) -> usize {
        let mut found = None;
        until("a node leads the shard", async || {
            for (place, address) in self.addresses.iter().enumerate() {
                let replies = answers(address, vec![read(shard, &[&self.ids[shard as usize]])]).await;
                if fault(&replies[0]).is_none() {
                    found = Some(place);
                }
            }
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        for node in self.running {
            node.stop().await;
        }
    }
}

#[test]
fn what_came_in_one_message_is_answered_each_in_its_own_way() {
    runtime().block_on(boxed(async {
        let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
        let two = Two::start(&dirs, &TaskTracker::new()).await;
        let map = two.forwarder.watch().map();
        let (shard, other) = (2, 1);
        let there = two.ids[shard as usize].as_str();
        let (absent, gone, new) =
            (id(&map, shard, "absent"), id(&map, shard, "gone"), id(&map, shard, "new"));
        two.write(shard, wire::Op { ttl_ms: Some(1), ..put(&gone, BODY) }).await;

        let freshness = wire::Freshness { max_stale_ms: None, min_index: Some(two.index[shard as usize]) };
        let command = wire::Command { units: vec![unit(vec![put(&new, BODY)])], ..Default::default() };
        let mut requests: Vec<_> = (0..SAME).map(|_| read(shard, &[there, &absent])).collect();
        requests.extend([
            change_read(read(shard, &[there]), |read| read.keys[0].collection = 99),
            wire::DataRequest { epoch: u64::MAX, ..read(shard, &[there]) },
            read(shard, &[there, &two.ids[other as usize]]),
            read(77, &[there]),
            change_read(read(shard, &[there]), |read| read.freshness = Some(freshness)),
            wire::DataRequest {
                op: Some(Op::Write(wire::Write { command: Some(command) })),
                ..read(shard, &[])
            },
            read(shard, &[&gone]),
            read(shard, &[]),
            wire::DataRequest { op: None, ..read(shard, &[]) },
        ]);
        until("the shard kept its leader for a message and a document has expired", async || {
            let leader = two.leader(shard).await;
            let replies = answers(&two.addresses[leader], requests.clone()).await;
            let moved = [FaultCode::NotLeader, FaultCode::NotFresh, FaultCode::OutcomeUnknown].map(Some);
            if replies.iter().any(|reply| moved.contains(&fault(reply))) {
                return false;
            }
            let (same, rest) = replies.split_at(SAME as usize);
            for reply in same {
                assert_eq!(bodies(reply), [Some(BODY.to_owned()), None]);
                assert!(reply.index > 0 && reply.epoch > 0);
                assert_eq!(reply.node, leader as u64 + 1);
            }
            let faults: Vec<_> = rest.iter().map(fault).collect();
            assert_eq!(
                faults,
                [
                    Some(FaultCode::UnknownCollection),
                    Some(FaultCode::WrongEpoch),
                    Some(FaultCode::WrongEpoch),
                    Some(FaultCode::WrongEpoch),
                    None,
                    None,
                    None,
                    None,
                    Some(FaultCode::Invalid),
                ]
            );
            assert_eq!(bodies(&rest[4]), [Some(BODY.to_owned())]);
            assert!(matches!(&rest[5].result, Some(Answer::Write(_))), "{:?}", rest[5]);
            assert!(bodies(&rest[7]).is_empty());

            // A replica that does not lead answers none of those that must be fresh.
            let follower = &two.addresses[1 - leader];
            let replies = answers(follower, requests[..3].to_vec()).await;
            let refused = replies.iter().all(|reply| fault(reply) == Some(FaultCode::NotLeader));
            refused && bodies(&rest[6]) == [None]
        })
        .await;
        two.end().await;
    }));
}

/// Without a quorum nothing is read that must be fresh. While the question for one hangs, a read is answered at its own
/// deadline, however many there are and whatever others of the message wait for.
#[test]
fn reads_of_one_message_end_without_a_quorum_each_at_its_deadline() {
    runtime().block_on(boxed(async {
        let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
        let two = Two::start(&dirs, &TaskTracker::new()).await;
        let of_shard = |timeout_ms: u32| {
            let ids = &two.ids;
            let reads = (0..SHARDS).map(move |shard| read(shard, &[&ids[shard as usize]]));
            reads.map(move |read| wire::DataRequest { timeout_ms, ..read })
        };
        until("a read is answered before the question is given up", async || {
            let leader = two.leader(0).await;
            // Frozen, not closed: whoever is asked does not answer.
            two.open.send_replace(false);
            let mut some_in_time = false;
            let short = read(0, &[&two.ids[0]]);
            let short = (0..SAME).map(|_| wire::DataRequest { timeout_ms: 5, ..short.clone() });
            let requests = short.chain([5, 10, 3_000].into_iter().flat_map(of_shard)).collect();
            let first = Instant::now();
            let replies = answers_timed(&two.addresses[leader], requests).await;
            for (reply, at) in replies {
                let Some(Answer::Fault(fault)) = &reply.result else { panic!("answered: {reply:?}") };
                let codes = [FaultCode::DeadlineExceeded, FaultCode::NotLeader, FaultCode::NotFresh];
                assert!(codes.contains(&fault.code()), "{fault:?}");
                if fault.code() == FaultCode::DeadlineExceeded {
                    assert_eq!(fault.outcome(), Outcome::NotApplied);
                    some_in_time |= at - first < Duration::from_millis(100);
                }
            }
            two.open.send_replace(true);
            some_in_time
        })
        .await;
        two.end().await;
    }));
}
