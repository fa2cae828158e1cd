//! The node's own loops: following the map, reporting to the meta leader, housekeeping, watching for failure.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use borough_proto::limits::DEADLINE_MAX;
use borough_proto::{ClusterMap, CollectionId, NodeId, ReplicaId, wire};
use prost::Message;
use rand::seq::SliceRandom;
use tokio::time::Instant;

use crate::clock::now_ms;
use crate::identity::{DataDir, DataDirError, Identity};
use crate::meta_leader;
use crate::node::Node;
use crate::raft::proposal;
use crate::registry::Standing;
use crate::rpc::cluster::take_report;
use crate::shard::ShardMachine;
use crate::state::SweepLimits;

const REPORT_EVERY: Duration = Duration::from_millis(500);
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(1);
const COMPACT_EVERY: Duration = Duration::from_millis(100);
const LEADER_CHECK_EVERY: Duration = Duration::from_millis(50);
/// Between candidates of one group, so that the first has won before the second asks.
const ELECTION_RANK_PAUSE: Duration = Duration::from_millis(120);
/// How old a follower's proof of its freshness gets while all is well: reads that may be this stale need no round.
const PROOF_EVERY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(200);
const CALL_MAX: Duration = Duration::from_secs(5);
/// A map stream that says nothing for this long is given up; the other side speaks every five seconds.
const WATCH_SILENCE_MAX: Duration = Duration::from_secs(15);
/// Another node is asked for the map after this long: what one follows may itself follow one that hears nothing new.
const FOLLOW_MAX: Duration = Duration::from_secs(5);
/// File that keeps the last map, to find the others after a restart.
const MAP_FILE: &str = "map.bin";

/// Opens and removes replicas whenever the map changes, and keeps the map for the next start.
pub async fn follow_map(node: Arc<Node>) {
    let mut maps = node.map.watch();
    let mut failed = false;
    // What is kept already need not be written again, which a full disk would not allow.
    let mut kept = kept_map(&node.dir).map_or(0, |map| map.epoch());
    loop {
        let map = Arc::clone(&maps.borrow_and_update());
        if map.epoch() > 0 && node.identity.get().is_some() {
            // First kept, then acted on: after a restart the node must not know an older map than its replicas do.
            let result = match keep_map(&node, &map, &mut kept) {
                Ok(()) => node.reconcile(&map).await,
                Err(error) => Err(format!("the map was not kept: {error}")),
            };
            failed = result.is_err();
            match result {
                Ok(()) => node.ready.store(true, Ordering::Relaxed),
                Err(error) => tracing::error!(%error, "not every replica of this node runs"),
            }
        }
        tokio::select! {
            changed = maps.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed || (map.epoch() > 0 && node.identity.get().is_none()) => {}
            () = node.stop.cancelled() => return,
        }
    }
}

/// The map of the last run, if there is one that can be read. Only a hint where the others are; the meta group tells the truth.
pub fn kept_map(dir: &DataDir) -> Option<ClusterMap> {
    let bytes = dir.read(MAP_FILE).ok()??;
    let map = wire::ClusterMap::decode(bytes.as_slice()).ok().map(ClusterMap::try_from);
    if !matches!(map, Some(Ok(_))) {
        tracing::warn!("{MAP_FILE} cannot be read and is left out");
    }
    map?.ok()
}

fn keep_map(node: &Node, map: &ClusterMap, kept: &mut u64) -> Result<(), DataDirError> {
    if map.epoch() != *kept {
        node.dir.write(MAP_FILE, &map.wire().encode_to_vec())?;
        *kept = map.epoch();
    }
    Ok(())
}

/// Joins the cluster: asks for an identity when there is none, and says where this node is now.
///
/// # Errors
/// A sentence when the cluster refuses this node for good.
pub async fn join(node: Arc<Node>) -> Result<(), String> {
    let Some(advertised) = node.advertised.get() else { return Ok(()) };
    let mut waiting_told = false;
    loop {
        // The seeds first: they tell at once when the directory belongs to another cluster.
        for seed in &node.config.join {
            if seed == &advertised.addr {
                continue;
            }
            let Ok(mut client) = node.peers.cluster_client(seed) else {
                return Err(format!("join: {seed:?} is not an address such as 10.0.0.1:7070"));
            };
            let joining = tokio::time::timeout(CALL_MAX, client.join(node.join_request(advertised)));
            match joining.await {
                Ok(Ok(reply)) => return joined(&node, reply.into_inner()).await,
                Ok(Err(status)) if status.code() == tonic::Code::PermissionDenied => {
                    return Err(status.message().to_owned());
                }
                Ok(Err(status)) => {
                    tracing::debug!(%seed, reason = status.message(), "seed does not admit this node yet")
                }
                Err(_) => tracing::debug!(%seed, "seed does not answer"),
            }
        }
        if node.identity.get().is_some_and(|_| node.map.get().epoch() > 0) {
            // A member: through the meta group, by whatever way leads there.
            let join = wire::CatalogCommand {
                change: Some(wire::catalog_command::Change::Join(node.join_request(advertised))),
            };
            match meta_leader::propose(&node, join, Instant::now() + CALL_MAX).await {
                Ok(reply) if reply.refused.is_empty() => return Ok(()),
                Ok(reply) => return Err(reply.refused),
                Err(error) => tracing::debug!(%error, "the meta group does not answer yet"),
            }
        }
        if node.identity.get().is_none() && !std::mem::replace(&mut waiting_told, true) {
            tracing::info!(
                "waiting for an initialised cluster among the seeds, or for `borough cluster init`"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = node.stop.cancelled() => return Ok(()),
        }
    }
}

async fn joined(node: &Arc<Node>, reply: wire::JoinReply) -> Result<(), String> {
    let identity = Identity { cluster_id: reply.cluster_id, node: NodeId(reply.node) };
    {
        let _not_while_initialising = node.initialising.lock().await;
        match node.identity.get() {
            Some(kept) if *kept == identity => {}
            Some(kept) => {
                return Err(format!(
                    "the data directory belongs to node {} of cluster {}, the seeds to cluster {}",
                    kept.node.get(),
                    kept.cluster_id,
                    identity.cluster_id
                ));
            }
            None => {
                node.dir.keep_identity(&identity).map_err(|error| error.to_string())?;
                tracing::info!(node = %identity.node, cluster = %identity.cluster_id, "joined");
                // Only here and in init, both under the same lock.
                let _ = node.identity.set(identity);
            }
        }
    }
    let map = reply.map.map(ClusterMap::try_from).transpose().map_err(|error| error.to_string())?;
    if let Some(map) = map {
        node.map.offer(Arc::new(map));
    }
    Ok(())
}

/// Waits until the map says that this node was removed from the cluster, and until that is kept for the next start.
pub async fn removed(node: &Node) {
    let mut maps = node.map.watch();
    let gone = |map: &Arc<ClusterMap>| {
        map.node(node.node_id()).is_some_and(|info| info.state() == wire::NodeState::Removed)
    };
    if maps.wait_for(gone).await.is_err() {
        std::future::pending().await
    }
    let deadline = Instant::now() + CALL_MAX;
    while Instant::now() < deadline && !kept_map(&node.dir).is_some_and(|map| gone(&Arc::new(map))) {
        tokio::time::sleep(RETRY).await;
    }
}

/// Keeps the map current from other nodes. Members of the meta group have it first hand, but one that was taken out of the group
/// hears nothing more there, not even that. Two such nodes may have chosen each other, and would tell each other for ever
/// that nothing has changed: nobody is followed for long, and whoever is known to have a newer map comes first.
pub async fn watch_map(node: Arc<Node>) {
    let mut told = node.newer_map.subscribe();
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
        if node.identity.get().is_none() {
            continue;
        }
        let map = node.map.get();
        let newer = node.newer_map.send_replace(None);
        told.mark_unchanged();
        // The meta group's members know first; any other node will do.
        let mut members: Vec<u64> =
            map.meta().iter().flat_map(|meta| &meta.replicas).map(|replica| replica.node).collect();
        members.retain(|&member| member != node.node_id().get());
        members.shuffle(&mut rand::rng());
        let members = newer.into_iter().chain(members.into_iter().map(NodeId));
        let addresses = members.filter_map(|member| node.peers.address(member).ok());
        let addresses = addresses.chain(node.config.join.iter().cloned());
        // The seeds may name this node too.
        let own = node.advertised.get().map(|own| own.addr.clone());
        for address in addresses.filter(|address| Some(address) != own.as_ref()).collect::<Vec<_>>() {
            tokio::select! {
                () = node.stop.cancelled() => return,
                () = follow(&node, &address) => {}
                () = tokio::time::sleep(FOLLOW_MAX) => {}
                _ = told.changed() => break,
            }
        }
    }
}

async fn follow(node: &Arc<Node>, address: &str) {
    let Ok(mut client) = node.peers.cluster_client(address) else { return };
    let held = node.map.get();
    let request = wire::WatchRequest { epoch: held.epoch(), cluster_id: held.cluster_id().to_owned() };
    let Ok(Ok(updates)) = tokio::time::timeout(CALL_MAX, client.watch(request)).await else { return };
    let mut updates = updates.into_inner();
    // What the sender of this stream holds; the node's own map may be newer from elsewhere.
    let mut theirs = ClusterMap::default();
    while let Ok(Ok(Some(update))) = tokio::time::timeout(WATCH_SILENCE_MAX, updates.message()).await {
        if update.full.is_none() && update.epoch == theirs.epoch() {
            continue;
        }
        match theirs.updated(update) {
            Ok(map) => theirs = map,
            Err(error) => {
                tracing::debug!(%address, %error, "map stream starts again");
                return;
            }
        }
        node.map.offer(Arc::new(theirs.clone()));
    }
}

/// Raft's clock, one for all groups: heartbeats of those led here, elections where a leader has fallen silent.
pub async fn keep_leaders(node: Arc<Node>) {
    let raft = &node.config.raft;
    // As many as there are in an election timeout, and one for the answer.
    let answers_due = raft.election_timeout_max.div_duration_f64(raft.heartbeat).ceil() as u32 + 1;
    let mut heartbeats = tokio::time::interval(raft.heartbeat);
    let mut checks = tokio::time::interval(LEADER_CHECK_EVERY);
    for timer in [&mut heartbeats, &mut checks] {
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    loop {
        tokio::select! {
            biased;
            () = node.stop.cancelled() => return,
            _ = heartbeats.tick() => {
                for group in node.groups.all().into_iter().filter(|group| group.is_leader()) {
                    group.heartbeat(answers_due).await;
                }
            }
            _ = checks.tick() => {
                if !node.leaving.load(Ordering::Relaxed) {
                    for group in node.groups.all() {
                        group.elect_if_silent(raft.election_timeout_max, ELECTION_RANK_PAUSE).await;
                    }
                }
            }
        }
    }
}

/// Keeps followers able to say how stale they are, without a round and after the quorum is gone too.
pub async fn keep_proofs(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(PROOF_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = node.stop.cancelled() => return,
        }
        let deadline = Instant::now() + PROOF_EVERY;
        let followers =
            node.groups.all().into_iter().filter(|group| group.group.shard().is_some() && !group.is_leader());
        futures::future::join_all(followers.map(|group| async move {
            // Without a leader there is nothing to ask; a read that needs more says so itself.
            let _ = group.refresh_proof(deadline).await;
        }))
        .await;
    }
}

/// What was counted at the last report, for rates.
#[derive(Default)]
struct Counted {
    at: Option<Instant>,
    shards: HashMap<ReplicaId, (u64, u64)>,
}

/// Reports to the meta leader.
pub async fn report(node: Arc<Node>) {
    let mut counted = Counted::default();
    let mut heard = Heard::default();
    let mut ticks = tokio::time::interval(REPORT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = node.stop.cancelled() => return,
        }
        if node.identity.get().is_none() {
            continue;
        }
        let report = make_report(&node, &mut counted);
        send_report(&node, report, &mut heard).await;
    }
}

/// Says at once that this node is going down.
pub async fn report_leaving(node: &Arc<Node>) {
    let report = make_report(node, &mut Counted::default());
    send_report(node, report, &mut Heard::default()).await;
}

/// What the meta leader said last.
#[derive(Default)]
struct Heard {
    leader: Option<NodeId>,
    /// The epoch of its map.
    map_epoch: u64,
}

async fn send_report(node: &Arc<Node>, report: wire::NodeReport, heard: &mut Heard) {
    let map = node.map.get();
    let members = map
        .meta()
        .iter()
        .flat_map(|meta| &meta.replicas)
        .map(|replica| NodeId(replica.node))
        .collect::<Vec<_>>();
    let local = node.meta().and_then(|meta| meta.leader_node());
    let mut hint = local.or(heard.leader.take());
    // The hint, where it points to, and then each member once.
    let mut left = members.clone();
    for _ in 0..members.len() + 2 {
        let Some(target) = hint.take().or_else(|| left.pop()) else { return };
        let reply = if target == node.node_id() {
            take_report(node, report.clone())
        } else {
            let client = node.peers.address(target).and_then(|addr| node.peers.cluster_client(&addr));
            let Ok(mut client) = client else { continue };
            match tokio::time::timeout(REPORT_EVERY * 2, client.report(report.clone())).await {
                Ok(Ok(reply)) => reply.into_inner(),
                Ok(Err(_)) | Err(_) => continue,
            }
        };
        if reply.accepted {
            node.meta_term.fetch_max(reply.term, Ordering::SeqCst);
            if target != node.node_id() {
                node.observed.lock().hear_of(reply.term, target, &reply.silences);
            }
            // What it had at the last report should have come by now.
            if node.map.get().epoch() < heard.map_epoch {
                node.newer_map.send_replace(Some(target));
            }
            *heard = Heard { leader: Some(target), map_epoch: reply.map_epoch };
            return;
        }
        hint = (reply.leader_node != 0 && reply.leader_node != target.get())
            .then_some(NodeId(reply.leader_node));
    }
}

fn make_report(node: &Node, counted: &mut Counted) -> wire::NodeReport {
    let now = Instant::now();
    let seconds = counted.at.map(|at| now.duration_since(at).as_secs_f64());
    counted.at = Some(now);
    let shards = node.shards.load();
    let replicas = node.groups.all().into_iter().map(|group| {
        let view = group.view();
        let machine = group.group.shard().and_then(|shard| shards.get(&shard)).map(|shard| &shard.machine);
        let (reads_per_second, writes_per_second) =
            machine.map_or((0.0, 0.0), |machine| rates(counted, group.replica, machine, seconds));
        let header = machine.map(|machine| machine.header()).unwrap_or_default();
        wire::ReplicaReport {
            shard: group.group.shard().map_or(0, |shard| shard.get()),
            replica: group.replica.get(),
            leader: view.is_leader,
            term: view.term,
            applied_index: *group.state.applied_index().borrow(),
            keys: header.documents,
            // Nothing is in a new replica before its snapshot is whole.
            bytes: match header.document_bytes {
                0 => group.state.staged_bytes.load(Ordering::Relaxed),
                bytes => bytes,
            },
            reads_per_second,
            writes_per_second,
            voters: view.voters.iter().map(|replica| replica.get()).collect(),
            learners: view.learners.iter().map(|replica| replica.get()).collect(),
            meta: group.group.shard().is_none(),
        }
    });
    let map = node.map.get();
    let own = map.shards().iter().chain(map.meta()).flat_map(|group| &group.replicas);
    let lost = own
        .filter(|replica| replica.node == node.node_id().get())
        .filter(|replica| node.registry.standing(ReplicaId(replica.id)) == Standing::Removed)
        .map(|replica| replica.id);
    wire::NodeReport {
        lost: lost.collect(),
        node: node.node_id().get(),
        map_epoch: node.map.get().epoch(),
        disk_free_bytes: node.disk_free_bytes.load(Ordering::Relaxed),
        disk_used_bytes: node.wal.disk_bytes(),
        cache_bytes: node.cache.bytes(),
        cache_hit_ratio: node.cache.hit_ratio(),
        replicas: replicas.collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        leaving: node.leaving.load(Ordering::Relaxed),
        silences: node.observed.lock().told(),
    }
}

fn rates(
    counted: &mut Counted,
    replica: ReplicaId,
    machine: &ShardMachine,
    seconds: Option<f64>,
) -> (f64, f64) {
    let now = (machine.reads.load(Ordering::Relaxed), machine.writes.load(Ordering::Relaxed));
    let before = counted.shards.insert(replica, now).unwrap_or(now);
    match seconds {
        Some(seconds) if seconds > 0.0 => {
            ((now.0 - before.0) as f64 / seconds, (now.1 - before.1) as f64 / seconds)
        }
        Some(_) | None => (0.0, 0.0),
    }
}

/// Sweeps shards that this node leads, lets logs go, watches the disk and the groups.
///
/// # Errors
/// Why the node must end: a group that stopped by itself cannot be trusted to go on.
pub async fn keep_house(node: Arc<Node>) -> Result<(), String> {
    let mut ticks = tokio::time::interval(HOUSEKEEPING_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut registered = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = node.stop.cancelled() => return Ok(()),
        }
        watch_disk(&node);
        taken_over(&node, &mut registered)?;
        if let Some((group, failure)) = node.groups.failure() {
            if node.stop.is_cancelled() {
                return Ok(());
            }
            return Err(format!("{group} stopped: {failure}"));
        }
        if !node.disk_full.load(Ordering::Relaxed) {
            sweep(&node).await;
        }
        node.groups.learn_latency();
        gauges(&node);
    }
}

/// Lets logs go as they grow, and what broken transfers have left.
pub async fn compact(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(COMPACT_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = node.stop.cancelled() => return,
        }
        tokio::select! {
            () = async {
                node.groups.compact_where_due().await;
                node.groups.discard_useless_snapshots().await;
            } => {}
            () = node.stop.cancelled() => return,
        }
    }
}

/// Once the map names this node's own address, another one there means that a second process has this node's identity.
pub(crate) fn taken_over(node: &Node, registered: &mut bool) -> Result<(), String> {
    let map = node.map.get();
    let (Some(named), Some(own)) = (map.node(node.node_id()), node.advertised.get()) else { return Ok(()) };
    if named.addr == own.addr {
        *registered = true;
    } else if *registered && !node.leaving.load(Ordering::Relaxed) {
        // Both would vote as one replica: this one, whose data is no copy, must not go on beside the other.
        return Err(format!(
            "another process has joined at {} as node {}, which is this one at {}: was the data directory copied? Stop that \
             process for good before this node is started again",
            named.addr,
            node.node_id().get(),
            own.addr
        ));
    }
    Ok(())
}

fn watch_disk(node: &Node) {
    let Ok(stat) = nix::sys::statvfs::statvfs(node.dir.path()) else { return };
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    node.disk_free_bytes.store(free, Ordering::Relaxed);
    let full = free < node.config.limits.disk_free_bytes_min;
    if node.disk_full.swap(full, Ordering::Relaxed) != full {
        if full {
            tracing::error!(free, "disk is full: writes are refused, reads are served");
        } else {
            tracing::info!(free, "disk has room again: writes are taken");
        }
    }
}

async fn sweep(node: &Arc<Node>) {
    let limits = SweepLimits::new(node.config.limits.idempotency_bytes_max);
    let map = node.map.get();
    for shard in node.shards.load().values().filter(|shard| shard.group.is_leader()) {
        let now = now_ms();
        let deleted = |id| map.collection_deleted(CollectionId(id));
        // Writes may still be under way that the leader before has answered and whose answer was lost. This leader's clock
        // may be ahead of its: what tells those writes from new ones must outlive every one of them.
        let settled = shard.group.led_for().is_some_and(|led| led > DEADLINE_MAX);
        let limits = if settled { limits } else { limits.documents_only() };
        match shard.sweep_due(now, limits, deleted) {
            Ok(None) => {}
            Ok(Some(sweep)) => {
                let command = wire::Command { stamp_ms: now, sweep: Some(sweep), ..Default::default() };
                // Not led any more: the next leader sweeps.
                let _ = tokio::time::timeout(CALL_MAX, shard.group.propose(proposal(&command))).await;
            }
            Err(error) => {
                tracing::error!(group = %shard.group.group, %error, "housekeeping could not read the shard")
            }
        }
    }
}

fn gauges(node: &Node) {
    metrics::gauge!("borough_cache_bytes").set(node.cache.bytes() as f64);
    metrics::gauge!("borough_cache_entries").set(node.cache.entries() as f64);
    metrics::counter!("borough_cache_hits_total").absolute(node.cache.hits());
    metrics::counter!("borough_cache_misses_total").absolute(node.cache.misses());
    metrics::gauge!("borough_log_disk_bytes").set(node.wal.disk_bytes() as f64);
    metrics::gauge!("borough_disk_free_bytes").set(node.disk_free_bytes.load(Ordering::Relaxed) as f64);
    metrics::gauge!("borough_proposed_bytes").set(node.proposed_bytes.load(Ordering::Relaxed) as f64);
    let groups = node.groups.all();
    metrics::gauge!("borough_replicas").set(groups.len() as f64);
    metrics::gauge!("borough_snapshot_rate_share").set(node.groups.snapshot_share());
    let leads_meta = node.meta().is_some_and(|meta| meta.is_leader());
    metrics::gauge!("borough_meta_leader").set(f64::from(u8::from(leads_meta)));
    metrics::gauge!("borough_leaders").set(groups.iter().filter(|group| group.is_leader()).count() as f64);
}
