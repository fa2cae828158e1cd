//! The node's configuration: one struct, all faults reported together before anything binds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use borough_proto::exchange::channel::{ChannelSettings, outbound_address};
use garde::Validate;
use serde::{Deserialize, Serialize};

/// Which storage engine keeps the documents. A cluster may mix them, so it can change over node by node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    #[default]
    Sled,
    Fjall,
}

/// Settings of `borough node`.
#[derive(Debug, Clone, Serialize, Deserialize, Validate)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Belongs to one node of one cluster.
    #[garde(custom(not_empty_path))]
    pub data_dir: PathBuf,
    /// gRPC: data plane, Raft, cluster.
    #[garde(skip)]
    pub listen: SocketAddr,
    /// HTTP: `/livez`, `/readyz`, `/metrics`.
    #[garde(skip)]
    pub admin_listen: SocketAddr,
    /// The gRPC address that others use, `host:port`; the bound one when empty.
    #[garde(skip)]
    pub advertise: String,
    /// The machine's IP address that connections to other nodes are made from, where it has several; the system's choice when empty.
    #[garde(skip)]
    pub outbound_address: String,
    /// Replicas of a shard are spread over zones.
    #[garde(length(max = 64))]
    pub zone: String,
    /// gRPC addresses of other nodes. Empty: this node may only be initialised by `cluster init`.
    #[garde(length(max = 64))]
    pub join: Vec<String>,
    #[garde(skip)]
    pub engine: EngineKind,
    /// Threads that serve requests, besides those that wait for the disk; 0 is one for each processor. Fewer cost less where
    /// several processes share the processors.
    #[garde(range(max = 1024))]
    pub threads: usize,
    /// Whether threads that wake wait until others on their processor have used up their time (`SCHED_BATCH`, Linux): more
    /// requests then travel and are written together.
    #[garde(skip)]
    pub batch_scheduling: bool,
    /// Bound of the document cache, in bytes.
    #[garde(range(min = 1 << 20))]
    pub cache_bytes: u64,
    /// Bound of the engine's own page cache, over all shards, in bytes.
    #[garde(range(min = 8 << 20))]
    pub engine_cache_bytes: u64,
    #[garde(dive)]
    pub log: LogConfig,
    #[garde(dive)]
    pub raft: RaftConfig,
    #[garde(dive)]
    pub placement: PlacementConfig,
    #[garde(dive)]
    pub limits: LimitsConfig,
}

/// Where replicas go. The settings of the node that leads the meta group count, so give all nodes the same.
#[derive(Debug, Clone, Serialize, Deserialize, Validate)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PlacementConfig {
    /// Whether replicas are spread evenly by themselves when nodes have come or gone.
    #[garde(skip)]
    pub rebalance: bool,
    /// For how long no node may have come, gone or fallen silent before a rebalance starts by itself.
    #[serde(with = "humantime_serde")]
    #[garde(skip)]
    pub settle: Duration,
    /// Replicas on their way at once, over the whole cluster; of each node two at most.
    #[garde(range(min = 1, max = 64))]
    pub moves_max: usize,
}

/// The write-ahead log.
#[derive(Debug, Clone, Serialize, Deserialize, Validate)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct LogConfig {
    /// Size of a segment file, in bytes.
    #[garde(range(min = 1 << 20, max = 1 << 30))]
    pub segment_bytes: u64,
    /// Log bytes of one shard after which its engine is flushed and its log purged.
    #[garde(range(min = 1 << 16))]
    pub purge_after_bytes: u64,
    /// Recent entries kept in memory, over all shards, in bytes.
    #[garde(range(min = 1 << 20))]
    pub cache_bytes: u64,
    /// A flush that takes longer ends the process: a disk that hangs must not hold leases (I1).
    #[serde(with = "humantime_serde")]
    #[garde(custom(at_least::<1000>))]
    pub flush_deadline: Duration,
}

/// Timing of the Raft groups.
#[derive(Debug, Clone, Serialize, Deserialize, Validate)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RaftConfig {
    #[serde(with = "humantime_serde")]
    #[garde(custom(at_least::<10>))]
    pub heartbeat: Duration,
    #[serde(with = "humantime_serde")]
    #[garde(custom(at_least::<50>))]
    pub election_timeout_min: Duration,
    #[serde(with = "humantime_serde")]
    #[garde(custom(at_least::<50>))]
    pub election_timeout_max: Duration,
    /// A node that has not reported for this long is suspect.
    #[serde(with = "humantime_serde")]
    #[garde(custom(at_least::<100>))]
    pub suspect_after: Duration,
    /// A node that has not reported for this long is down.
    #[serde(with = "humantime_serde")]
    #[garde(custom(at_least::<100>))]
    pub down_after: Duration,
}

/// Bounds on what a node holds at once (I8).
#[derive(Debug, Clone, Serialize, Deserialize, Validate)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct LimitsConfig {
    /// Data requests in flight; more are refused with `busy`.
    #[garde(range(min = 16))]
    pub requests_max: usize,
    /// Bytes of writes proposed and not yet applied; more are refused with `busy`.
    #[garde(range(min = 2 << 20))]
    pub proposed_bytes_max: u64,
    /// Applied writes that the engine has yet to be given, over all shards, in bytes. The log has them, too.
    #[garde(range(min = 1 << 16))]
    pub engine_buffer_bytes_max: u64,
    /// Idempotency records of one shard, in bytes; the oldest go first.
    #[garde(range(min = 1 << 16))]
    pub idempotency_bytes_max: u64,
    /// Writes are refused while the disk has fewer free bytes than this.
    #[garde(skip)]
    pub disk_free_bytes_min: u64,
    /// What this node sends to new replicas, all together, in bytes a second: snapshots, and the log of before they came.
    #[garde(range(min = 1 << 16))]
    pub snapshot_bytes_per_second: u64,
    /// Whether snapshots take less of that while requests take twice as long as usual or the processors are taken. Off, replicas are whole sooner at the
    /// requests' cost.
    #[garde(skip)]
    pub snapshots_give_way: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 7071)),
            advertise: String::new(),
            outbound_address: String::new(),
            zone: String::new(),
            join: Vec::new(),
            engine: EngineKind::Sled,
            threads: 0,
            batch_scheduling: true,
            cache_bytes: 256 << 20,
            engine_cache_bytes: 256 << 20,
            log: LogConfig::default(),
            raft: RaftConfig::default(),
            placement: PlacementConfig::default(),
            limits: LimitsConfig::default(),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 32 << 20,
            purge_after_bytes: 8 << 20,
            cache_bytes: 64 << 20,
            flush_deadline: Duration::from_secs(20),
        }
    }
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            election_timeout_min: Duration::from_millis(750),
            election_timeout_max: Duration::from_millis(1000),
            suspect_after: Duration::from_secs(3),
            down_after: Duration::from_secs(60),
        }
    }
}

impl Default for PlacementConfig {
    fn default() -> Self {
        Self { rebalance: true, settle: Duration::from_secs(10), moves_max: 4 }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            requests_max: 16_384,
            proposed_bytes_max: 64 << 20,
            engine_buffer_bytes_max: 64 << 20,
            idempotency_bytes_max: 16 << 20,
            disk_free_bytes_min: 256 << 20,
            snapshot_bytes_per_second: 64 << 20,
            snapshots_give_way: true,
        }
    }
}

impl Config {
    /// How connections to other nodes are made.
    pub fn channel(&self) -> ChannelSettings {
        let local_address = outbound_address(&self.outbound_address).unwrap_or_default();
        ChannelSettings { local_address, ..ChannelSettings::default() }
    }

    /// Faults that concern more than one field; the fields' own come from [`Validate`].
    pub fn cross_field_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let is_address = |text: &str| {
            text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        for seed in self.join.iter().filter(|seed| !is_address(seed)) {
            faults.push(format!("join: {seed:?} is not an address such as 10.0.0.1:7070"));
        }
        if !self.advertise.is_empty() && !is_address(&self.advertise) {
            faults.push(format!("advertise: {:?} is not an address such as 10.0.0.1:7070", self.advertise));
        }
        faults.extend(outbound_address(&self.outbound_address).err());
        let raft = &self.raft;
        if raft.election_timeout_min < raft.heartbeat * 2 {
            faults.push("raft.election-timeout-min: must be at least twice raft.heartbeat".to_owned());
        }
        if raft.election_timeout_max <= raft.election_timeout_min {
            faults
                .push("raft.election-timeout-max: must be longer than raft.election-timeout-min".to_owned());
        }
        if raft.down_after < raft.suspect_after {
            faults.push("raft.down-after: must not be shorter than raft.suspect-after".to_owned());
        }
        faults
    }
}

#[expect(clippy::ptr_arg, reason = "garde passes the field's own type")]
fn not_empty_path(path: &PathBuf, (): &()) -> garde::Result {
    if path.as_os_str().is_empty() { Err(garde::Error::new("must be set")) } else { Ok(()) }
}

fn at_least<const MILLIS: u64>(duration: &Duration, (): &()) -> garde::Result {
    let min = Duration::from_millis(MILLIS);
    if *duration < min { Err(garde::Error::new(format!("must be at least {min:?}"))) } else { Ok(()) }
}
