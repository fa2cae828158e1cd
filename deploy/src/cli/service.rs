//! Options of the commands that run services.

use std::path::PathBuf;

use clap::Args;

use crate::settings::{Flag, FlagValue};

#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  borough dev --nodes 3 --port 8080 --fresh")]
pub struct DevArgs {
    /// How many nodes; those that the directory has already are all started
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nodes: u16,
    /// Where the nodes keep their data and logs
    #[arg(long, default_value = "./borough-dev", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Port of the router on 127.0.0.1; 0 picks one
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Delete what an earlier run left
    #[arg(long)]
    pub fresh: bool,
    /// Start a child again when it ends
    #[arg(long)]
    pub restart: bool,
    /// Storage engine, `sled` or `fjall`
    #[arg(long, env = "BOROUGH_ENGINE", value_parser = ["sled", "fjall"])]
    pub engine: Option<String>,
    /// Into how many shards a new cluster is cut
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=i64::from(borough_proto::limits::SHARDS_MAX)))]
    pub shards: u32,
}

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  borough node --data-dir /var/lib/borough --join 10.0.0.1:7070,10.0.0.2:7070"
)]
pub struct NodeArgs {
    /// Belongs to one node of one cluster
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// gRPC: data, Raft, cluster
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// HTTP: /livez, /readyz, /metrics
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// The gRPC address that others use
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Replicas of a shard are spread over zones
    #[arg(long)]
    pub zone: Option<String>,
    /// gRPC addresses of nodes of the cluster; without it the node waits for `cluster init`
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    pub join: Vec<String>,
    /// Storage engine, `sled` or `fjall`
    #[arg(long)]
    pub engine: Option<String>,
    #[command(flatten)]
    pub common: ServiceArgs,
}

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  borough router --listen 0.0.0.0:8080 --nodes 10.0.0.1:7070,10.0.0.2:7070"
)]
pub struct RouterArgs {
    /// HTTP: the REST API, /livez, /readyz, /metrics
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// gRPC addresses of some nodes; the others are found through them
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    pub nodes: Vec<String>,
    #[command(flatten)]
    pub common: ServiceArgs,
}

/// What a node and a router share.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// Settings as TOML
    #[arg(long, env = "BOROUGH_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Any setting of the file, for example `raft.heartbeat=250ms`
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Be killed when the process with this id ends, which must be the parent
    #[arg(long, hide = true, value_name = "PID")]
    pub die_with_parent: Option<u32>,
}

impl NodeArgs {
    /// Those that were given, as settings.
    pub fn flags(&self) -> Vec<Flag> {
        let mut flags = self.common.flags();
        push(&mut flags, "data-dir", self.data_dir.as_ref());
        push(&mut flags, "listen", self.listen.as_ref());
        push(&mut flags, "admin-listen", self.admin_listen.as_ref());
        push(&mut flags, "advertise", self.advertise.as_ref());
        push(&mut flags, "zone", self.zone.as_ref());
        push_list(&mut flags, "join", &self.join);
        push(&mut flags, "engine", self.engine.as_ref());
        flags
    }
}

impl RouterArgs {
    /// Those that were given, as settings.
    pub fn flags(&self) -> Vec<Flag> {
        let mut flags = self.common.flags();
        push(&mut flags, "listen", self.listen.as_ref());
        push_list(&mut flags, "nodes", &self.nodes);
        flags
    }
}

impl ServiceArgs {
    fn flags(&self) -> Vec<Flag> {
        let flag = |pair: &String| {
            let (key, text) = pair.split_once('=').unwrap_or((pair, ""));
            Flag {
                name: "--set".to_owned(),
                key: key.trim().to_owned(),
                value: FlagValue::Text(text.to_owned()),
            }
        };
        self.set.iter().map(flag).collect()
    }
}

fn push(flags: &mut Vec<Flag>, key: &str, text: Option<&String>) {
    if let Some(text) = text {
        let value = FlagValue::Text(text.clone());
        flags.push(Flag { name: format!("--{key}"), key: key.to_owned(), value });
    }
}

fn push_list(flags: &mut Vec<Flag>, key: &str, items: &[String]) {
    if !items.is_empty() {
        let value = FlagValue::List(items.to_vec());
        flags.push(Flag { name: format!("--{key}"), key: key.to_owned(), value });
    }
}
