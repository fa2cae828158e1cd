//! Whole nodes in one process: a cluster grows from one to three replicas while writes go on. The log is
//! purged, so the new replicas live by snapshots; one transfer is cut and goes on where it stood.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use borough_proto::exchange::channel::{ChannelSettings, cluster_client};
use borough_proto::exchange::{ForwardSettings, Forwarder};
use borough_proto::{NodeId, ShardId};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::{data_reply, data_request};

use super::*;
use crate::config::{Config, LimitsConfig};
use crate::lifecycle;
use crate::state::tests::{put, unit};

const PATIENCE: Duration = Duration::from_secs(90);
const SHARD: ShardId = ShardId(0);
/// More than are kept behind a flush.
const LOADED: u64 = 1_500;
const BODY_BYTES: usize = 4_000;
/// The first connection to carry so many bytes to the second node, which only a snapshot does, is cut.
const CUT_AFTER_BYTES: u64 = 4 << 20;

pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < give_up, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A node that runs in this process.
pub struct Running {
    data: PathBuf,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<Result<(), lifecycle::RunError>>,
}

impl Running {
    pub fn start(tasks: &TaskTracker, config: Config) -> Self {
        let (data, stop) = (config.data_dir.clone(), CancellationToken::new());
        let done = tasks.spawn(Box::pin(lifecycle::run(config, stop.clone())));
        Self { data, stop, done }
    }

    pub async fn address(&self) -> String {
        let mut address = None;
        until("the node listens", async || {
            assert!(!self.done.is_finished(), "the node ended");
            let text = std::fs::read(self.data.join("runtime.json")).unwrap_or_default();
            let runtime: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
            address = runtime["addr"].as_str().map(str::to_owned);
            address.is_some()
        })
        .await;
        address.unwrap()
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.done.await.unwrap().unwrap();
    }
}

pub fn config(data_dir: &Path, engine: EngineKind, join: &[String]) -> Config {
    Config {
        data_dir: data_dir.to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        admin_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        join: join.to_vec(),
        engine,
        log: LogConfig { purge_after_bytes: 1 << 16, ..log_config() },
        limits: LimitsConfig {
            disk_free_bytes_min: 1,
            snapshot_bytes_per_second: 4 << 20,
            ..LimitsConfig::default()
        },
        ..Config::default()
    }
}

/// A proxy in front of a node, which cuts one connection in the middle.
#[derive(Default)]
struct Cutter {
    cut: AtomicBool,
}

impl Cutter {
    async fn serve(self: Arc<Self>, listener: TcpListener, to: SocketAddr, tasks: TaskTracker) {
        while let Ok((from, _)) = listener.accept().await {
            let this = Arc::clone(&self);
            tasks.spawn(async move {
                let Ok(to) = TcpStream::connect(to).await else { return };
                let ((mut from_read, mut from_write), (mut to_read, mut to_write)) =
                    (from.into_split(), to.into_split());
                tokio::select! {
                    () = this.carry(&mut from_read, &mut to_write) => {}
                    _ = tokio::io::copy(&mut to_read, &mut from_write) => {}
                }
            });
        }
    }

    async fn carry(&self, from: &mut (impl AsyncReadExt + Unpin), to: &mut (impl AsyncWriteExt + Unpin)) {
        let (mut buffer, mut here) = (vec![0; 16 << 10], 0);
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            here += read as u64;
            if here > CUT_AFTER_BYTES && !self.cut.swap(true, Ordering::Relaxed) {
                return;
            }
            if to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    }
}

type Documents = BTreeMap<String, Bytes>;

/// A caller of the cluster.
#[derive(Clone)]
struct Caller {
    forwarder: Arc<Forwarder>,
    collection: u32,
}

impl Caller {
    fn new(seed: String, collection: u32, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let forwarder = Forwarder::start(vec![seed], ForwardSettings::default(), tasks, stop);
        Self { forwarder, collection }
    }

    /// Writes until it is acknowledged: the log index.
    async fn write(&self, id: &str, body: &str) -> u64 {
        let op = wire::Op { collection: self.collection, ..put(id, body) };
        let give_up = Instant::now() + PATIENCE;
        loop {
            let deadline = Instant::now() + Duration::from_secs(10);
            match self.forwarder.write(SHARD, vec![unit(vec![op.clone()])], deadline).await {
                Ok(answer) => return answer.index,
                Err(error) => assert!(Instant::now() < give_up, "write {id}: {error}"),
            }
        }
    }

    async fn load(&self, name: &str, count: u64, padding: usize) -> (Documents, u64) {
        let writes = futures::stream::iter(0..count).map(|n| async move {
            let (id, body) = (format!("{name}{n}"), format!(r#"{{"n":{n},"x":"{}"}}"#, "x".repeat(padding)));
            let index = self.write(&id, &body).await;
            (id, Bytes::from(body), index)
        });
        let done: Vec<_> = writes.buffer_unordered(32).collect().await;
        let last = done.iter().map(|(_, _, index)| *index).max().unwrap();
        (done.into_iter().map(|(id, body, _)| (id, body)).collect(), last)
    }

    async fn voters(&self, count: usize) {
        until(&format!("the shard has {count} voters"), async || {
            let map = self.forwarder.watch().map();
            map.shard(SHARD).is_some_and(|shard| {
                let voter = |replica: &wire::ReplicaInfo| replica.role() == wire::ReplicaRole::Voter;
                shard.replicas.len() == count && shard.replicas.iter().all(voter)
            })
        })
        .await;
    }

    /// All documents that `node` answers with from its own replica, which has applied `min_index`.
    async fn documents_on(&self, node: NodeId, min_index: u64) -> Documents {
        let mut found = Documents::new();
        let mut after = None;
        loop {
            let freshness = wire::Freshness { max_stale_ms: None, min_index: Some(min_index) };
            let scan = wire::Scan {
                collection: self.collection,
                after: after.take(),
                limit: 500,
                limit_bytes: 1 << 20,
                freshness: Some(freshness),
                ..Default::default()
            };
            let request = wire::DataRequest {
                call: 0,
                shard: SHARD.get(),
                epoch: 0,
                timeout_ms: 10_000,
                op: Some(data_request::Op::Scan(scan)),
            };
            let mut answer = None;
            until("the node answers", async || {
                let deadline = Instant::now() + Duration::from_secs(10);
                match self.forwarder.pool().call(node, request.clone(), deadline).await {
                    Ok(wire::DataReply {
                        result: Some(data_reply::Result::Scan(page)), node: by, ..
                    }) => {
                        assert_eq!(by, node.get());
                        answer = Some(page);
                        true
                    }
                    Ok(_) | Err(_) => false,
                }
            })
            .await;
            let page = answer.unwrap();
            let last = page.items.last().map(|document| document.id.clone());
            found.extend(page.items.into_iter().map(|document| (document.id, document.body)));
            match last {
                Some(id) if page.more => {
                    after = Some(wire::DocumentKey { collection: self.collection, id, sort: None });
                }
                Some(_) | None => return found,
            }
        }
    }
}

/// Whether the stopped node's log of the shard begins later than it once did.
fn is_purged(data: &Path) -> bool {
    let wal = open_wal(&data.join("log"));
    let purged = wal.groups().into_iter().any(|replica| {
        let state = wal.group(replica).unwrap().state();
        state.snapshot.last() == Some(&1) && state.purged.is_some()
    });
    wal.close();
    purged
}

/// Spaces of a node on sled, as their directories are named.
pub fn generations(data: &Path) -> Vec<String> {
    let names = std::fs::read_dir(data.join("engine")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| Some(name.to_str()?.split_once("-g")?.1.to_owned())).collect()
}

pub fn boxed<'a>(test: impl Future<Output = ()> + 'a) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>> {
    Box::pin(test)
}

#[test]
fn replicas_that_are_far_behind_are_caught_up_by_snapshot_while_writes_go_on() {
    runtime().block_on(boxed(grow()));
}

async fn grow() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());

    let alone = config(dirs[0].path(), EngineKind::Sled, &[]);
    let mut first = Running::start(&tasks, alone.clone());
    let address = first.address().await;
    let mut cluster = cluster_client(ChannelSettings::default().lazy(&address).unwrap());
    cluster.init(wire::InitRequest { shards: 1, replicas: 3, ..Default::default() }).await.unwrap();
    let collection = wire::CollectionInfo { name: "users".to_owned(), ..Default::default() };
    let request = wire::PutCollectionRequest { collection: Some(collection) };
    let collection = cluster.put_collection(request).await.unwrap().into_inner().collection.unwrap().id;
    drop(cluster);
    let loading = CancellationToken::new();
    let (mut expected, _) =
        Caller::new(address, collection, &tasks, &loading).load("old", LOADED, BODY_BYTES).await;
    loading.cancel();

    // The restart shows that the log is purged, and makes a leader that has flushed nothing itself.
    until("the log is purged", async || {
        let running = std::mem::replace(
            &mut first,
            Running {
                data: PathBuf::new(),
                stop: CancellationToken::new(),
                done: tasks.spawn(async { Ok(()) }),
            },
        );
        running.stop().await;
        let purged = is_purged(dirs[0].path());
        first = Running::start(&tasks, alone.clone());
        first.address().await;
        purged
    })
    .await;
    let address = first.address().await;
    let caller = Caller::new(address.clone(), collection, &tasks, &stop);
    let (fresh, _) = caller.load("fresh", 10, 10).await;
    expected.extend(fresh);

    let writing = CancellationToken::new();
    let meanwhile = tasks.spawn({
        let (caller, writing) = (caller.clone(), writing.clone());
        async move {
            let (mut written, mut last) = (Documents::new(), 0);
            for n in 0.. {
                if writing.is_cancelled() {
                    break;
                }
                // New documents and overwritten old ones, before and behind the scan. The old ones stay as large as
                // they were: writes must not shrink the snapshot below what the cut waits for.
                let id = if n % 2 == 0 { format!("new{n}") } else { format!("old{}", n * 37 % LOADED) };
                let padding = if n % 2 == 0 { 0 } else { BODY_BYTES };
                let body = format!(r#"{{"meanwhile":{n},"x":"{}"}}"#, "x".repeat(padding));
                last = caller.write(&id, &body).await;
                written.insert(id, Bytes::from(body));
            }
            (written, last)
        }
    });

    // Another loopback address has the proxy's port free.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let behind = SocketAddr::from(([127, 0, 0, 2], proxy.port()));
    let cutter = Arc::<Cutter>::default();
    let proxying = tasks.spawn(Arc::clone(&cutter).serve(listener, behind, tasks.clone()));
    let seeds = [address];
    let second = Running::start(
        &tasks,
        Config {
            listen: behind,
            advertise: proxy.to_string(),
            ..config(dirs[1].path(), EngineKind::Sled, &seeds)
        },
    );
    caller.voters(2).await;
    assert!(cutter.cut.load(Ordering::Relaxed), "the transfer was cut");
    let mut found = generations(dirs[1].path());
    found.sort();
    assert_eq!(found, ["0", "1"], "the catalog by log, the shard by one resumed snapshot");
    let third = Running::start(&tasks, config(dirs[2].path(), EngineKind::Fjall, &seeds));
    caller.voters(3).await;
    writing.cancel();
    let (written, last) = meanwhile.await.unwrap();
    assert!(written.len() > 10, "writes went on: {}", written.len());
    expected.extend(written);
    for node in 1..=3 {
        let found = caller.documents_on(NodeId(node), last).await;
        assert_eq!(found.len(), expected.len(), "node {node}");
        assert!(found == expected, "node {node} holds other documents");
    }
    stop.cancel();
    proxying.abort();
    for node in [third, second, first] {
        node.stop().await;
    }
}

/// What a new replica lacks of the log when it comes.
const BACKLOG: u64 = 300;
const BACKLOG_BYTES_PER_SECOND: u64 = 512 << 10;
/// What is written meanwhile, three times as much: this many at a time, with pauses.
const ROUND: u64 = 8;
const ROUND_PAUSE: Duration = Duration::from_millis(20);

#[test]
fn the_log_goes_to_a_new_replica_at_the_pace_of_snapshots_and_keeps_up_with_faster_writers() {
    runtime().block_on(boxed(catch_up_by_log()));
}

async fn catch_up_by_log() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let config = |place: usize, join: &[String]| {
        let config = config(dirs[place].path(), EngineKind::Sled, join);
        Config {
            log: LogConfig { purge_after_bytes: 64 << 20, ..config.log },
            limits: LimitsConfig { snapshot_bytes_per_second: BACKLOG_BYTES_PER_SECOND, ..config.limits },
            ..config
        }
    };
    let first = Running::start(&tasks, config(0, &[]));
    let address = first.address().await;
    let mut cluster = cluster_client(ChannelSettings::default().lazy(&address).unwrap());
    cluster.init(wire::InitRequest { shards: 1, replicas: 2, ..Default::default() }).await.unwrap();
    let caller = Caller::new(address.clone(), 1, &tasks, &stop);
    let (mut expected, _) = caller.load("old", BACKLOG, BODY_BYTES).await;

    let started = Instant::now();
    let second = Running::start(&tasks, config(1, &[address]));
    until("the new replica is in the map", async || {
        caller.forwarder.watch().map().shard(SHARD).is_some_and(|shard| shard.replicas.len() == 2)
    })
    .await;
    let writing = CancellationToken::new();
    let meanwhile = tasks.spawn({
        let (caller, writing) = (caller.clone(), writing.clone());
        async move {
            let (mut written, mut last, mut rounds) = (Documents::new(), 0, 0);
            while !writing.is_cancelled() {
                let (round, index) = caller.load(&format!("new{rounds}-"), ROUND, BODY_BYTES).await;
                written.extend(round);
                (last, rounds) = (index, rounds + 1);
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            (written, last)
        }
    });
    caller.voters(2).await;
    let took = started.elapsed();
    writing.cancel();
    let (written, last) = meanwhile.await.unwrap();
    let backlog = Duration::from_secs(BACKLOG * BODY_BYTES as u64 / BACKLOG_BYTES_PER_SECOND);
    // The last piece leaves when those before it have.
    assert!(took >= backlog - Duration::from_millis(250), "{took:?}, at most so fast: {backlog:?}");
    expected.extend(written);
    assert!(caller.documents_on(NodeId(2), last).await == expected, "node 2 holds other documents");
    assert_eq!(generations(dirs[1].path()), ["0", "0"], "catalog and shard by log");
    stop.cancel();
    for node in [second, first] {
        node.stop().await;
    }
}

/// I6: what an older meta leader still asks for, or one that knows an older map, is not done any more.
#[test]
fn members_do_not_change_for_an_older_term_or_another_epoch() {
    runtime().block_on(boxed(async {
        let dir = tempfile::tempdir().unwrap();
        let tasks = TaskTracker::new();
        let node = Running::start(&tasks, config(dir.path(), EngineKind::Sled, &[]));
        let mut cluster = cluster_client(ChannelSettings::default().lazy(&node.address().await).unwrap());
        cluster.init(wire::InitRequest { shards: 1, replicas: 1, ..Default::default() }).await.unwrap();
        let mut updates = cluster.watch(wire::WatchRequest::default()).await.unwrap().into_inner();
        let map = updates.message().await.unwrap().unwrap().full.unwrap();
        let shard = &map.shards[0];
        let request = |term, epoch| wire::ReconfigureRequest {
            group: borough_proto::GroupId::from(SHARD).get(),
            voters: shard.replicas.clone(),
            leader: 0,
            epoch,
            term,
        };
        // The replica may still be opening when the map names it.
        until("the leader does it", async || {
            cluster.reconfigure(request(1_000, shard.epoch)).await.unwrap().into_inner().done
        })
        .await;
        for (term, epoch, why) in [
            (999, shard.epoch, "another leader"),
            (1_000, shard.epoch + 1, "another epoch"),
            (1_000, 0, "another epoch"),
        ] {
            let reply = cluster.reconfigure(request(term, epoch)).await.unwrap().into_inner();
            assert!(!reply.done && reply.waits.contains(why), "{term}, {epoch}: {reply:?}");
        }
        assert!(cluster.reconfigure(request(1_000, shard.epoch)).await.unwrap().into_inner().done);
        drop((updates, cluster));
        node.stop().await;
    }));
}

/// A node with one replica is sent a snapshot that ends after `data`, again until the last answer is `enough`. Nothing of it
/// stays staged; what is refused goes `at_once`.
fn send_broken_snapshot(data: &'static [u8], enough: impl Fn(&wire::SnapshotAck) -> bool, at_once: bool) {
    runtime().block_on(boxed(async {
        let dir = tempfile::tempdir().unwrap();
        let tasks = TaskTracker::new();
        let node = Running::start(&tasks, config(dir.path(), EngineKind::Sled, &[]));
        let channel = ChannelSettings::default().lazy(&node.address().await).unwrap();
        let mut cluster = cluster_client(channel.clone());
        cluster.init(wire::InitRequest { shards: 1, replicas: 1, ..Default::default() }).await.unwrap();
        let mut updates = cluster.watch(wire::WatchRequest::default()).await.unwrap().into_inner();
        let map = updates.message().await.unwrap().unwrap().full.unwrap();
        let header = wire::SnapshotHeader {
            group: GROUP.get(),
            to: map.shards[0].replicas[0].id,
            membership: Some(wire::Membership::default()),
            snapshot: 7,
            ..Default::default()
        };
        let data = Bytes::from_static(data);
        let chunk = wire::SnapshotChunk { crc32: crc32fast::hash(&data), data, ..Default::default() };
        let open = wire::SnapshotChunk { header: Some(header), ..Default::default() };
        let mut raft = wire::raft_client::RaftClient::new(channel);
        let mut last = wire::SnapshotAck::default();
        // The replica may still be opening when the map names it.
        until("the chunk is answered", async || {
            let sent = futures::stream::iter([open.clone(), chunk.clone()]);
            let mut acks = raft.install_snapshot(sent).await.unwrap().into_inner();
            while let Some(ack) = acks.message().await.unwrap() {
                last = ack;
            }
            enough(&last)
        })
        .await;
        assert!(!at_once || generations(dir.path()) == ["0", "0"]);
        until("nothing is staged", async || generations(dir.path()) == ["0", "0"]).await;
        drop((updates, raft, cluster));
        node.stop().await;
    }));
}

#[test]
fn malformed_snapshot_is_refused_and_leaves_nothing_staged() {
    let refused = |ack: &wire::SnapshotAck| ack.refused.contains("malformed");
    send_broken_snapshot(&[0, 0, 0, 9, 1], refused, true);
}

/// Where the snapshot stands that ended in its midst, the replica was at its beginning.
#[test]
fn a_broken_transfer_leaves_nothing_to_a_replica_that_is_further() {
    let taken = |ack: &wire::SnapshotAck| ack.next == 1;
    send_broken_snapshot(&[0, 0, 0, 1, 9, 0, 0, 0, 1, 9], taken, false);
}
