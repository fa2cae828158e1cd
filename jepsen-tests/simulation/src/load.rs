//! What happens on the clients' host: the cluster is made, callers write and read, orders are given, and in the end
//! everything is read once more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use borough_client::Client;
use borough_proto::exchange::channel::{ChannelSettings, cluster_client};
use borough_proto::http_api::ClusterStatus;
use borough_proto::wire::operate_request::Call as Order;
use borough_proto::{ClusterMap, wire};
use jepsen_tests::record::Call;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::caller::Caller;
use crate::network::{self, HostId, SimulatedNetwork};

pub const COLLECTION: &str = "users";
/// Between attempts at what must succeed in the end.
const PAUSE: Duration = Duration::from_millis(100);
/// For one call to the cluster service.
const CALL_MAX: Duration = Duration::from_secs(3);
/// An order that is refused for so long is given up: it may have become senseless.
const ORDER_MAX: Duration = Duration::from_secs(10);
/// What those wait who wait.
const DEADLINE: Duration = Duration::from_secs(8);
/// What those wait who do not: their calls are cut in the middle.
const IMPATIENT: Duration = Duration::from_millis(400);

/// What the clients' host and the schedule say to each other.
#[derive(Debug, Default)]
pub struct Shared {
    /// The cluster is made; faults may begin.
    pub ready: AtomicBool,
    /// No new calls.
    pub stopping: AtomicBool,
    /// The map when everything was whole and had been read again.
    pub finished: Mutex<Option<Arc<ClusterMap>>>,
    pub calls: Mutex<Vec<Call>>,
    pub orders: Mutex<Vec<NodeOrder>>,
    /// Why the cluster is not whole, as it was seen last.
    pub waits_for: Mutex<String>,
}

/// An order for the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeOrder {
    Remove(HostId),
    Rebalance,
}

/// Sizes of a run.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub seed: u64,
    pub shards: u32,
    pub replicas: u32,
    pub callers: u64,
    pub hosts: usize,
}

fn channel() -> ChannelSettings {
    ChannelSettings { connector: Some(&SimulatedNetwork), ..ChannelSettings::default() }
}

/// A client that goes straight to the nodes.
fn client(load: Load, deadline: Duration) -> anyhow::Result<Client> {
    let nodes = (1..=load.hosts).map(network::address);
    Client::builder()
        .direct(nodes)
        .node_channel(channel())
        .deadline(deadline)
        .build()
        .context("build a client")
}

/// All of it.
///
/// # Errors
/// When a client cannot be built.
pub async fn run(load: Load, shared: Arc<Shared>) -> anyhow::Result<()> {
    create(load).await;
    shared.ready.store(true, Ordering::Relaxed);
    let clients = [client(load, DEADLINE)?, client(load, IMPATIENT)?];
    let tasks = TaskTracker::new();
    for number in 0..load.callers {
        let client = clients.get(usize::from(number % 4 == 3)).or(clients.first()).cloned();
        let Some(client) = client else { continue };
        tasks.spawn(Caller::new(number, load, client, Arc::clone(&shared)).run());
    }
    tasks.spawn(give_orders(load, Arc::clone(&shared)));
    tasks.close();
    tasks.wait().await;
    let map = whole(load, &shared).await;
    let [patient, _] = clients;
    Caller::new(load.callers, load, patient, Arc::clone(&shared)).read_all().await;
    *shared.finished.lock() = Some(map);
    Ok(())
}

/// Makes the cluster and a collection, trying until both are there.
async fn create(load: Load) {
    loop {
        let request =
            wire::InitRequest { shards: load.shards, replicas: load.replicas, ..Default::default() };
        match asked(1, async |mut client| client.init(request.clone()).await).await {
            Ok(_) => break,
            Err(error) if error.contains("created once") => break,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    let collection = wire::CollectionInfo { name: COLLECTION.to_owned(), ..Default::default() };
    let request = wire::PutCollectionRequest { collection: Some(collection) };
    while asked(1, async |mut client| client.put_collection(request.clone()).await).await.is_err() {
        tokio::time::sleep(PAUSE).await;
    }
}

type ClusterClient = wire::cluster_client::ClusterClient<tonic::transport::Channel>;

/// One call to the cluster service of a host.
async fn asked<T>(
    host: HostId,
    call: impl AsyncFnOnce(ClusterClient) -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, String> {
    let channel = channel().lazy(&network::address(host)).map_err(|error| error.to_string())?;
    match tokio::time::timeout(CALL_MAX, call(cluster_client(channel))).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// Gives the schedule's orders, each until it is taken or it is time to go on.
async fn give_orders(load: Load, shared: Arc<Shared>) {
    let mut host = 0;
    while !shared.stopping.load(Ordering::Relaxed) {
        tokio::time::sleep(PAUSE).await;
        let next = shared.orders.lock().pop();
        let Some(order) = next else { continue };
        let begun = Instant::now();
        while begun.elapsed() < ORDER_MAX && !shared.stopping.load(Ordering::Relaxed) {
            host = host % load.hosts + 1;
            if give(host, order).await.is_ok_and(|taken| taken) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn give(host: HostId, order: NodeOrder) -> Result<bool, String> {
    let call = match order {
        NodeOrder::Rebalance => Order::Rebalance(wire::Rebalance { validate_only: false }),
        NodeOrder::Remove(gone) => {
            let map = map_from(host).await?;
            let address = network::address(gone);
            let node = map.nodes().iter().find(|node| node.addr == address);
            Order::Remove(node.ok_or("it has not joined yet")?.id)
        }
    };
    let request = wire::OperateRequest { forwarded: false, call: Some(call) };
    let reply = asked(host, async |mut client| client.operate(request).await).await?;
    Ok(reply.result() == wire::operate_reply::Result::Ok)
}

async fn map_from(host: HostId) -> Result<Arc<ClusterMap>, String> {
    let request = wire::WatchRequest::default();
    let mut updates = asked(host, async |mut client| client.watch(request).await).await?;
    let first = tokio::time::timeout(CALL_MAX, updates.message()).await.map_err(|_| "no map")?;
    let update = first.map_err(|status| status.message().to_owned())?.ok_or("no map")?;
    ClusterMap::default().updated(update).map(Arc::new).map_err(|error| error.to_string())
}

/// Waits until every shard is as it should be and nothing is under way.
async fn whole(load: Load, shared: &Shared) -> Arc<ClusterMap> {
    let mut host = 0;
    loop {
        host = host % load.hosts + 1;
        match look(host).await {
            Ok(map) => return map,
            Err(reason) => *shared.waits_for.lock() = format!("h{host}: {reason}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The map, if the host says that all is whole.
async fn look(host: HostId) -> Result<Arc<ClusterMap>, String> {
    let request = wire::StatusRequest::default();
    let reply = asked(host, async |mut client| client.status(request).await).await?;
    let status: ClusterStatus = serde_json::from_str(&reply.json).map_err(|error| error.to_string())?;
    if let Some(shard) = status.shards.iter().find(|shard| shard.state != "healthy") {
        return Err(format!("shard {} is {}: {}", shard.id, shard.state, reply.json));
    }
    if let Some(operation) = status.operations.iter().find(|operation| operation.ended_ms.is_none()) {
        return Err(format!("operation {} is under way: {}", operation.id, reply.json));
    }
    let map = map_from(host).await?;
    if map.epoch() == status.epoch { Ok(map) } else { Err("its map is not the newest".to_owned()) }
}
