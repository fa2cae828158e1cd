//! Asks every node, all through a run, for reads that name the newest epoch of a shard that anybody has told (I6).
//!
//! It is a caller with the newest map there is: it watches the maps of all nodes, and asks each of them, also those that a
//! shard has left, straight over the data plane. Faults of links do not concern it, so it reaches nodes that hear of no new
//! map. What is asked while a node is stopped waits for it, and is what it meets first when it wakes. Maps and answers go
//! into the history; `checker/epoch.rs` judges them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use borough_proto::exchange::DataProtocol;
use borough_proto::exchange::channel::{ChannelSettings, cluster_client, data_client};
use borough_proto::exchange::mux::{Limits, Mux};
use borough_proto::{ClusterMap, wire};
use futures::future::join_all;
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::data_reply::Result as Answer;
use wire::data_request::Op;

use crate::checker::epoch::{FENCE, MAP};
use crate::cluster::Cluster;
use crate::record::{Kind, Recorder};

mod known;

use known::{Known, Target};

/// Between two questions of one kind, unless a newer epoch is told meanwhile.
const EVERY: Duration = Duration::from_millis(500);
/// For an answer. What waits for longer was asked with too old an epoch to be of use.
const PATIENCE: Duration = Duration::from_millis(500);
/// Before a node that could not be reached, or was lost, is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// So old a state may answer that no replica need refuse for its age what it should refuse for its epoch.
const MAX_STALE_MS: u32 = 60_000;
/// The collection that is read.
const COLLECTION: &str = "users";
/// A stopped node keeps its connections: what was asked meanwhile is to meet it when it wakes.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// What is asked of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// A linearizable read at the newest epoch.
    Leader,
    /// A read that may be stale, at the newest epoch.
    Replica,
    /// A read that may be stale, by one who knows no map: any epoch will do, but it must not go back.
    Stranger,
}

impl Question {
    const ALL: [Self; 3] = [Self::Leader, Self::Replica, Self::Stranger];

    fn max_stale_ms(self) -> Option<u32> {
        match self {
            Self::Leader => None,
            Self::Replica | Self::Stranger => Some(MAX_STALE_MS),
        }
    }
}

/// Asks until it is stopped.
#[derive(Debug)]
pub struct Prober {
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A stream to a node.
struct Stream<'a> {
    address: &'a str,
    /// No other stream has it.
    number: u64,
    mux: Mux<DataProtocol>,
}

/// What all tasks share.
#[derive(Debug)]
struct Shared {
    known: Known,
    recorder: Recorder,
    channel: ChannelSettings,
}

impl Prober {
    /// Starts to watch and to ask the nodes of a cluster that is whole.
    ///
    /// # Errors
    /// When the cluster does not tell which ids are in which shard.
    pub async fn start(cluster: &Cluster, recorder: Recorder) -> anyhow::Result<Self> {
        let ids = cluster.ids_by_shard("fence", 1).await?;
        let targets = ids.into_iter().filter_map(|(shard, ids)| Some((shard, ids.into_iter().next()?)));
        let channel = ChannelSettings {
            keepalive_interval: SILENCE_MAX,
            keepalive_timeout: SILENCE_MAX,
            ..ChannelSettings::default()
        };
        let shared = Arc::new(Shared { known: Known::new(targets), recorder, channel });
        let this = Self { tasks: TaskTracker::new(), stop: CancellationToken::new() };
        let seeds: Vec<String> = cluster.nodes.iter().map(|node| node.addr.clone()).collect();
        let attending = attend_all(shared, seeds, this.tasks.clone(), this.stop.clone());
        this.tasks.spawn(this.stop.clone().run_until_cancelled_owned(attending));
        Ok(this)
    }

    /// Ends; questions that are not answered yet stay open in the history.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Has every node attended to that is a seed or comes up in a map.
async fn attend_all(shared: Arc<Shared>, seeds: Vec<String>, tasks: TaskTracker, stop: CancellationToken) {
    let mut maps = shared.known.maps();
    let mut attended = BTreeSet::new();
    loop {
        let map = Arc::clone(&maps.borrow_and_update());
        let members = map.nodes().iter().filter(|node| node.state() != wire::NodeState::Removed);
        let addresses = members.map(|node| node.addr.clone()).chain(seeds.iter().cloned());
        for address in addresses.collect::<BTreeSet<_>>() {
            if attended.insert(address.clone()) {
                let (shared, stop) = (Arc::clone(&shared), stop.clone());
                tasks.spawn(async move {
                    let both = async { tokio::join!(watch_map(&shared, &address), ask(&shared, &address)) };
                    stop.run_until_cancelled(both).await
                });
            }
        }
        if maps.changed().await.is_err() {
            return;
        }
    }
}

/// Takes down every map that the node at `address` tells, as far as it has news of a shard, until the node is gone for good.
async fn watch_map(shared: &Shared, address: &str) {
    while !shared.known.is_removed(address) {
        let _ = watch_once(shared, address).await;
        tokio::time::sleep(RETRY).await;
    }
}

async fn watch_once(shared: &Shared, address: &str) -> anyhow::Result<()> {
    let mut client = cluster_client(shared.channel.lazy(address)?);
    let mut updates = client.watch(wire::WatchRequest::default()).await?.into_inner();
    let process = shared.recorder.process();
    let mut theirs = ClusterMap::default();
    while let Some(update) = updates.message().await? {
        let newer = theirs.updated(update)?;
        for shard in newer.shards() {
            if theirs.shards().iter().any(|before| before == shard) {
                continue;
            }
            let key = key(shard.id);
            let nodes: BTreeSet<u64> = shard.replicas.iter().map(|replica| replica.node).collect();
            let told = json!({"epoch": shard.epoch, "replicas": nodes});
            shared.recorder.invoke(process, MAP, &key, json!({"of": address}));
            shared.recorder.end(process, Kind::Ok, MAP, &key, told, None);
        }
        theirs = newer;
        shared.known.learn_map(&theirs);
    }
    Ok(())
}

/// Asks the node at `address`, over one stream after the other, until it is gone for good.
async fn ask(shared: &Shared, address: &str) {
    loop {
        let opened = ask_once(shared, address).await;
        if !opened && shared.known.is_removed(address) {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether a stream was opened.
async fn ask_once(shared: &Shared, address: &str) -> bool {
    let Ok(channel) = shared.channel.lazy(address) else { return false };
    let (opened, opening) = oneshot::channel();
    let limits = Limits { stall: SILENCE_MAX, ..Limits::default() };
    let (mux, run) = Mux::<DataProtocol>::new(limits, async move |requests| {
        let replies = data_client(channel).exchange(requests).await?.into_inner();
        // Who waits for it is there as long as the stream.
        let _ = opened.send(());
        Ok(replies)
    });
    let mut run = std::pin::pin!(run);
    tokio::select! {
        opened = opening => if opened.is_err() { return false },
        _ = &mut run => return false,
    }
    let targets = shared.known.targets();
    let lanes = targets.flat_map(|target| Question::ALL.map(|question| (target, question)));
    let stream = Stream { address, number: shared.recorder.process(), mux };
    let asking = join_all(lanes.map(|(target, question)| keep_asking(shared, &stream, target, question)));
    tokio::select! {
        _ = asking => {}
        _ = run => {}
    }
    true
}

/// Asks one question about one shard, at once when a newer epoch is told.
async fn keep_asking(shared: &Shared, stream: &Stream<'_>, target: &Target, question: Question) {
    let process = shared.recorder.process();
    let mut epochs = target.epochs();
    while stream.mux.is_open() {
        let named = match question {
            Question::Leader | Question::Replica => *epochs.borrow_and_update(),
            Question::Stranger => 0,
        };
        if let Some(collection) = shared.known.collection(COLLECTION) {
            ask_now(shared, stream, target, (process, question, named, collection)).await;
        }
        let news = async {
            match question {
                Question::Leader | Question::Replica => {
                    // Who tells them lives as long as this.
                    let _ = epochs.changed().await;
                }
                Question::Stranger => std::future::pending().await,
            }
        };
        tokio::select! {
            () = news => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// One question and its answer. A read changes nothing, so one that is not answered has failed.
async fn ask_now(
    shared: &Shared,
    stream: &Stream<'_>,
    target: &Target,
    (process, question, named, collection): (u64, Question, u64, u32),
) {
    let max_stale_ms = question.max_stale_ms();
    let document = wire::DocumentKey { collection, id: target.id.clone(), sort: None };
    let freshness = max_stale_ms.map(|ms| wire::Freshness { max_stale_ms: Some(ms), min_index: None });
    let request = wire::DataRequest {
        call: 0,
        shard: target.shard,
        epoch: named,
        timeout_ms: u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX),
        op: Some(Op::Read(wire::Read { keys: vec![document], freshness })),
    };
    let key = key(target.shard);
    let input = json!({
        "of": stream.address,
        "stream": stream.number,
        "named": named,
        "maxStaleMs": max_stale_ms,
    });
    shared.recorder.invoke(process, FENCE, &key, input.clone());
    let (kind, value, error) = match stream.mux.call(request, Instant::now() + PATIENCE).await {
        Ok(wire::DataReply { result: Some(Answer::Fault(fault)), .. }) => {
            (Kind::Fail, input, Some(format!("{:?}: {}", fault.code(), fault.detail)))
        }
        Ok(reply) => {
            let told = json!({"node": reply.node, "epoch": reply.epoch, "index": reply.index});
            (Kind::Ok, told, None)
        }
        Err(error) => (Kind::Fail, input, Some(error.to_string())),
    };
    shared.recorder.end(process, kind, FENCE, &key, value, error);
}

fn key(shard: u32) -> String {
    format!("shard-{shard}")
}
