//! Start and stop: lock → identity → recover the log → open the engine → open the groups → bind → join → ready;
//! and back: hand leaderships over → answer what is in flight → flush → exit.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use borough_proto::exchange::channel::ChannelSettings;
use borough_proto::limits::MESSAGE_BYTES_MAX;
use borough_proto::wire::cluster_server::ClusterServer;
use borough_proto::wire::data_server::DataServer;
use borough_proto::wire::raft_server::RaftServer;
use borough_proto::{ClusterMap, ReplicaId, wire};
use futures::Stream;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;

use crate::cache::Cache;
use crate::config::Config;
use crate::crash;
use crate::environment::{Environment, Incoming};
use crate::identity::{DataDir, DataDirError, Runtime};
use crate::loops;
use crate::node::{Advertised, MapCell, Node};
use crate::placement::catalog_machine::CatalogMachine;
use crate::placement::drive;
use crate::placement::observe::Observed;
use crate::raft::{Groups, Peers};
use crate::registry::{Registry, Standing};
use crate::reorder;
use crate::rpc::admin;
use crate::rpc::cluster::ClusterService;
use crate::rpc::data::DataService;
use crate::rpc::raft::RaftService;
use crate::store::{BufferedEngine, Engine, open_engine};
use crate::wal::{Options, Wal};

const LOG_DIR: &str = "log";
const ENGINE_DIR: &str = "engine";
/// For sizing the engine's page cache at the start.
const SPACES_EXPECTED: usize = 33;
/// How long a leaving node waits for others to take over what it leads.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);
/// How long it then waits for requests in flight.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Why the node ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Exit code 74.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("listen on {addr}: {source}")]
    Listen { addr: String, source: std::io::Error },
    #[error("configuration: {0}")]
    Config(String),
    #[error("join: {0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
}

/// Runs a node until `shutdown` is cancelled, then leaves gracefully.
///
/// # Errors
/// [`RunError`]; the data directory is then as a crash would leave it, which the next start recovers.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    run_in(config, Environment::default(), shutdown).await
}

/// [`run`], on a machine that may be simulated.
///
/// # Errors
/// As [`run`].
pub async fn run_in(
    config: Config,
    mut environment: Environment,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let dir = DataDir::open(&config.data_dir)?;
    crash::watch(dir.path());
    reorder::watch(dir.path());
    let incoming = environment.incoming.take();
    let node = build(config, dir, environment).await?;
    let result = serve(&node, &shutdown, incoming).await;
    stop(&node).await;
    result
}

/// The recorder of the process; a second node in it shares the first one's.
fn metrics() -> PrometheusHandle {
    let metrics = PrometheusBuilder::new().build_recorder();
    let handle = metrics.handle();
    let _ = ::metrics::set_global_recorder(metrics);
    handle
}

/// Opens what the directory holds; nothing listens yet.
pub(crate) async fn build(
    config: Config,
    dir: DataDir,
    environment: Environment,
) -> Result<Arc<Node>, RunError> {
    let identity = dir.identity()?;
    let fail = |detail: String| DataDirError { path: dir.path().to_owned(), detail };
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let map = MapCell::default();
    if let Some(kept) = loops::kept_map(&dir) {
        map.offer(Arc::new(kept));
    }
    let own = identity.as_ref().map(|identity| identity.node);
    let kept = map.get();
    if let Some(node) =
        own.and_then(|own| kept.node(own)).filter(|node| node.state() == wire::NodeState::Removed)
    {
        return Err(fail(format!(
            "node {} was removed from the cluster for good; start it with an empty directory",
            node.id
        ))
        .into());
    }
    let registry = Registry::open(&dir)?;
    let log_dir = dir.path().join(LOG_DIR);
    let mut options = Options::from(&config.log);
    options.driver = environment.log;
    options.on_fatal = environment.on_fatal.unwrap_or(options.on_fatal);
    let opening = crate::blocking::spawn(move || Wal::open_with(&log_dir, options)).await;
    let (wal, recovered) =
        opening.map_err(|error| RunError::Failed(error.to_string()))?.map_err(|error| {
            fail(format!("log: {error}; restore the file, or remove this node and let it join anew"))
        })?;
    for damage in &recovered.damaged {
        let kept = map.get();
        match damage.replica.filter(|&replica| has_peers(&kept, replica)) {
            Some(replica) => {
                tracing::error!(%replica, %damage, "a replica is damaged: it is given up and rebuilt from its peers");
                registry.removed(&dir, replica)?;
            }
            None => {
                return Err(fail(format!(
                    "log: {damage}; restore the file, or remove this node and let it join anew"
                ))
                .into());
            }
        }
    }
    let lost = registry.lost(&wal.groups());
    if !lost.is_empty() {
        let lost = lost.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(fail(format!(
            "{LOG_DIR} lacks replicas that this node holds ({lost}): without it their votes and what they acknowledged \
             are lost. Restore it, or remove this node from the cluster and start it with an empty directory"
        ))
        .into());
    }
    let engine_dir = dir.path().join(ENGINE_DIR);
    let (kind, cache_bytes) = (config.engine, config.engine_cache_bytes);
    let opening = crate::blocking::spawn(move || match environment.engine {
        Some(engine) => Ok(engine),
        None => open_engine(kind, &engine_dir, cache_bytes, SPACES_EXPECTED),
    });
    let engine = opening
        .await
        .map_err(|error| RunError::Failed(error.to_string()))?
        .map_err(|error| fail(format!("engine: {error}")))?;
    let engine: Arc<dyn Engine> =
        Arc::new(BufferedEngine::new(engine, config.limits.engine_buffer_bytes_max));
    if let Some(opened) = environment.on_engine {
        opened(Arc::clone(&engine));
    }
    let channel = ChannelSettings { connector: environment.connector, ..config.channel() };
    let peers = Peers::new(Arc::new(map.clone()), channel, tasks.clone(), stop.clone());
    let groups = Groups::new(&config, wal.clone(), engine, Arc::clone(&peers)).map_err(RunError::Config)?;
    let node = Arc::new(Node {
        cache: Arc::new(Cache::new(config.cache_bytes)),
        catalog: CatalogMachine::new(map.clone()),
        observed: Mutex::new(Observed::new(config.raft.suspect_after, config.raft.down_after)),
        requests: Semaphore::new(config.limits.requests_max),
        config,
        dir,
        registry,
        identity: identity.map_or_else(OnceLock::new, OnceLock::from),
        advertised: OnceLock::new(),
        map,
        groups,
        peers,
        wal,
        shards: ArcSwap::default(),
        tasks,
        stop,
        leaving: AtomicBool::new(false),
        ready: AtomicBool::new(false),
        disk_full: AtomicBool::new(false),
        disk_free_bytes: AtomicU64::new(0),
        proposed_bytes: AtomicU64::new(0),
        meta_term: AtomicU64::new(0),
        newer_map: tokio::sync::watch::Sender::new(None),
        creating: AtomicBool::new(false),
        initialising: tokio::sync::Mutex::default(),
        operating: tokio::sync::Mutex::default(),
        reconciling: tokio::sync::Mutex::default(),
    });
    Ok(node)
}

async fn serve(
    node: &Arc<Node>,
    shutdown: &CancellationToken,
    incoming: Option<Incoming>,
) -> Result<(), RunError> {
    let opening = Instant::now();
    let server: Serving = match incoming {
        Some(incoming) => {
            let addr = node.config.advertise.clone();
            let _ = node.advertised.set(Advertised { addr, admin: String::new() });
            open_stored(node).await?;
            Box::pin(grpc(node, incoming))
        }
        None => listen(node).await?,
    };
    tracing::info!(ms = opening.elapsed().as_millis(), "opened");
    node.tasks.spawn(loops::follow_map(Arc::clone(node)));
    node.tasks.spawn(loops::watch_map(Arc::clone(node)));
    node.tasks.spawn(loops::report(Arc::clone(node)));
    node.tasks.spawn(loops::compact(Arc::clone(node)));
    node.tasks.spawn(loops::keep_leaders(Arc::clone(node)));
    node.tasks.spawn(loops::keep_proofs(Arc::clone(node)));
    node.tasks.spawn(drive::run(Arc::clone(node)));
    let mut house = std::pin::pin!(loops::keep_house(Arc::clone(node)));
    let mut joining = std::pin::pin!(loops::join(Arc::clone(node)));
    let mut server = server;
    let mut join_pending = true;
    loop {
        tokio::select! {
            result = &mut server => return result,
            result = &mut house => return result.map_err(RunError::Failed),
            result = &mut joining, if join_pending => {
                join_pending = false;
                result.map_err(RunError::Refused)?;
            }
            () = shutdown.cancelled(), if !node.leaving.load(Ordering::Relaxed) => {
                node.leaving.store(true, Ordering::Relaxed);
                break;
            }
            () = loops::removed(node) => {
                tracing::info!("this node was removed from the cluster: it ends, and its directory can go");
                node.leaving.store(true, Ordering::Relaxed);
                break;
            }
        }
    }
    // The server goes on while leaderships are handed over.
    tokio::select! {
        () = hand_over(node) => {}
        result = &mut server => return result,
    }
    node.stop.cancel();
    let _ = tokio::time::timeout(DRAIN_MAX, &mut server).await;
    Ok(())
}

type Serving = Pin<Box<dyn Future<Output = Result<(), RunError>> + Send>>;

/// Binds the addresses, opens the stored replicas, and serves.
async fn listen(node: &Arc<Node>) -> Result<Serving, RunError> {
    let bind = |addr: std::net::SocketAddr| async move {
        TcpListener::bind(addr).await.map_err(|source| RunError::Listen { addr: addr.to_string(), source })
    };
    // Bound before the groups open, so that peers find a port; served only after, so that nobody is told
    // that a replica is not here while it is being opened.
    let listener = bind(node.config.listen).await?;
    let admin_listener = bind(node.config.admin_listen).await?;
    let local =
        |listener: &TcpListener| listener.local_addr().map_err(|error| RunError::Failed(error.to_string()));
    let (addr, admin_addr) = (local(&listener)?, local(&admin_listener)?);
    let advertise = &node.config.advertise;
    let advertised = Advertised {
        addr: if advertise.is_empty() { addr.to_string() } else { advertise.clone() },
        admin: admin_addr.to_string(),
    };
    let _ = node.advertised.set(advertised.clone());
    open_stored(node).await?;
    let runtime =
        Runtime { pid: std::process::id(), addr: advertised.addr.clone(), admin: advertised.admin.clone() };
    node.dir.keep_runtime(&runtime)?;
    tracing::info!(%addr, admin = %admin_addr, "listening");
    let admin = axum::serve(admin_listener, admin::routes(Arc::clone(node), metrics()))
        .with_graceful_shutdown(node.stop.clone().cancelled_owned());
    node.tasks.spawn(async move {
        if let Err(error) = admin.await {
            tracing::error!(%error, "admin pages ended");
        }
    });
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(Box::pin(grpc(node, incoming)))
}

fn grpc<I, S>(node: &Arc<Node>, incoming: I) -> impl Future<Output = Result<(), RunError>> + Send + use<I, S>
where
    I: Stream<Item = std::io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let data = DataServer::new(DataService(Arc::clone(node)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let raft = RaftServer::new(RaftService(Arc::clone(node)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let cluster = ClusterServer::new(ClusterService(Arc::clone(node)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let served = tonic::transport::Server::builder()
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .add_service(data)
        .add_service(raft)
        .add_service(cluster)
        .serve_with_incoming_shutdown(incoming, node.stop.clone().cancelled_owned());
    async { served.await.map_err(|error| RunError::Failed(format!("serve: {error}"))) }
}

/// Opens the replicas that the log knows. Removes spaces that none of them uses.
pub(crate) async fn open_stored(node: &Arc<Node>) -> Result<(), RunError> {
    let fail = |detail: String| RunError::DataDir(DataDirError { path: node.dir.path().to_owned(), detail });
    // What was given up goes, also where that was interrupted.
    for replica in node.wal.groups() {
        if node.registry.standing(replica) == Standing::Removed {
            node.groups.forget_log(replica).await.map_err(|error| fail(error.to_string()))?;
        }
    }
    let stored = node.groups.stored().map_err(|error| fail(error.to_string()))?;
    node.groups.sweep_spaces().map_err(|error| fail(error.to_string()))?;
    let mut damaged = false;
    for (replica, group) in stored {
        match node.open(group, replica, None, 0).await {
            Ok(()) => {}
            // Only what a checksum proves: any other error may pass, and a replica that is given up is gone.
            Err(error) if error.is_damage() && has_peers(&node.map.get(), replica) => {
                tracing::error!(%group, %replica, %error, "a replica is damaged: it is given up and rebuilt from its peers");
                node.registry.removed(&node.dir, replica)?;
                node.groups.forget_log(replica).await.map_err(|error| fail(error.to_string()))?;
                damaged = true;
            }
            Err(error) => return Err(fail(error.to_string())),
        }
    }
    if damaged {
        node.groups.sweep_spaces().map_err(|error| fail(error.to_string()))?;
    }
    Ok(())
}

/// Whether a quorum of the replica's group does without it, as far as this node's map knows; or the map does not give
/// it to anybody any more.
fn has_peers(map: &ClusterMap, replica: ReplicaId) -> bool {
    let mut groups = map.shards().iter().chain(map.meta());
    let group = groups.find(|group| group.replicas.iter().any(|member| member.id == replica.get()));
    let Some(group) = group else { return map.epoch() > 0 };
    let votes = |member: &&wire::ReplicaInfo| member.role() != wire::ReplicaRole::Learner;
    let voters = group.replicas.iter().filter(votes).count();
    let others = group.replicas.iter().filter(votes).filter(|member| member.id != replica.get()).count();
    others > voters / 2
}

/// Gives every leadership to the follower that is furthest, so that nobody waits for an election.
async fn hand_over(node: &Arc<Node>) {
    tracing::info!("leaving: handing leaderships over");
    loops::report_leaving(node).await;
    let deadline = Instant::now() + HAND_OVER_MAX;
    loop {
        let led: Vec<_> = node.groups.all().into_iter().filter(|group| group.is_leader()).collect();
        let mut waiting = false;
        for group in &led {
            if let Some(follower) = group.best_follower() {
                waiting = true;
                if let Err(error) = group.transfer_leader(follower).await {
                    tracing::debug!(group = %group.group, %error, "leadership was not handed over");
                }
            }
        }
        if !waiting || Instant::now() >= deadline {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Ends every task and makes the data durable.
async fn stop(node: &Arc<Node>) {
    node.stop.cancel();
    node.groups.shutdown().await;
    node.tasks.close();
    if tokio::time::timeout(DRAIN_MAX, node.tasks.wait()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    let groups = node.groups.all();
    let wal = node.wal.clone();
    let flushing = crate::blocking::spawn(move || {
        for group in groups {
            if let Err(error) = crate::store::Space::flush(&group.state.space().space) {
                tracing::warn!(group = %group.group, %error, "engine was not flushed; the log covers it");
            }
        }
        wal.close();
    });
    if let Err(error) = flushing.await {
        tracing::warn!(%error, "flush at the end failed");
    }
    node.dir.forget_runtime();
}

#[cfg(test)]
mod tests {
    use borough_proto::key;

    use super::*;

    #[test]
    fn a_damaged_replica_is_given_up_only_where_a_quorum_does_without_it() {
        use wire::ReplicaRole::{Learner, Leaving, Voter};
        let (first, last) = key::ranges(1)[0];
        let map = |roles: &[wire::ReplicaRole]| {
            let replicas = roles.iter().zip(1..).map(|(&role, id)| wire::ReplicaInfo {
                id,
                node: id,
                role: role.into(),
            });
            let replicas: Vec<_> = replicas.collect();
            let nodes = replicas.iter().map(|replica| wire::NodeInfo {
                id: replica.node,
                state: wire::NodeState::Member.into(),
                ..Default::default()
            });
            ClusterMap::try_from(wire::ClusterMap {
                cluster_id: "c".to_owned(),
                epoch: 1,
                replication_factor: 3,
                nodes: nodes.collect(),
                shards: vec![wire::ShardInfo { id: 0, first, last, epoch: 1, replicas }],
                ..Default::default()
            })
            .unwrap()
        };
        for (roles, given_up) in [
            (&[Voter][..], false),
            (&[Voter, Voter], false),
            (&[Voter, Learner, Learner], false),
            (&[Voter, Voter, Voter], true),
            (&[Voter, Voter, Leaving], true),
            (&[Voter, Voter, Learner], false),
            (&[Learner, Voter], true),
            (&[Voter; 4], true),
            (&[Voter; 5], true),
        ] {
            assert_eq!(has_peers(&map(roles), ReplicaId(1)), given_up, "{roles:?}");
        }
        assert!(has_peers(&map(&[Voter]), ReplicaId(9)), "the map gives it to nobody");
        assert!(!has_peers(&ClusterMap::default(), ReplicaId(9)), "there is no map to say so");
    }
}
