//! What a cluster is started with.

use std::path::PathBuf;

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    pub nodes: usize,
    pub shards: u32,
    pub replicas: u32,
    /// Environment of all nodes.
    pub env: Vec<(String, String)>,
    /// Zones of the nodes in turn; none when empty.
    pub zones: Vec<String>,
    pub routers: usize,
    /// Whether everything sent to a node passes a proxy that can hold, delay and break it ([`Links`](crate::proxy::Links)).
    pub links: bool,
    /// Whether nodes run with a library that makes faults of disk and clocks ([`Shim`](crate::preload::Shim)).
    pub preload: Option<Preload>,
    /// Whether callers of routers pass proxies that can break their calls ([`Callers`](crate::callers::Callers)), and the seed
    /// of these.
    pub callers: Option<u64>,
    /// Where directories and logs are kept; else they go when the cluster is dropped.
    pub dir: Option<PathBuf>,
}

/// What is preloaded into nodes.
#[derive(Debug, Clone)]
pub struct Preload {
    pub library: PathBuf,
    /// Whether their power can be lost.
    pub journal: bool,
}

impl Options {
    /// The environment of the node that is started as the `number`th, from 1.
    pub(super) fn env_of(&self, number: usize) -> Vec<(String, String)> {
        let zone = self.zones.iter().cycle().nth(number - 1);
        let zone = zone.map(|zone| ("BOROUGH_ZONE".to_owned(), zone.clone()));
        self.env.iter().cloned().chain(zone).collect()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            shards: 8,
            replicas: 3,
            env: Vec::new(),
            zones: Vec::new(),
            routers: 1,
            links: false,
            preload: None,
            callers: None,
            dir: None,
        }
    }
}
