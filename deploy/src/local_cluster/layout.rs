//! What a local cluster's directory holds besides the nodes' own data: the ports and the engine,
//! and the two small files that each node writes about itself.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Options, free_port};

/// `layout.json`: what a later start needs to bring up the same cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Layout {
    pub engine: Option<String>,
    /// 0 until one is picked.
    pub router_port: u16,
    /// By number, from 1.
    pub nodes: Vec<Ports>,
}

/// The ports of one node on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub grpc: u16,
    pub admin: u16,
}

/// `identity.json` in a node's directory: it belongs to this node of this cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub cluster_id: String,
    pub node: u64,
}

/// `runtime.json` in a node's directory, from the moment it is bound until it ends gracefully.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    pub pid: u32,
    /// gRPC, as others use it.
    pub addr: String,
    pub admin: String,
}

impl Layout {
    const FILE: &str = "layout.json";

    /// The layout of `dir`, empty when there is none.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(Self::FILE);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// # Errors
    /// When the file cannot be replaced.
    pub fn save(&self, dir: &Path) -> Result<()> {
        replace_json(&dir.join(Self::FILE), self)
    }

    /// Merges what is asked for with what is there, and picks the ports that are missing.
    pub(super) fn complete(&mut self, options: &mut Options) -> Result<()> {
        if options.engine.is_some() {
            self.engine = options.engine.clone();
        }
        if options.router_port != 0 {
            self.router_port = options.router_port;
        } else if self.router_port == 0 {
            self.router_port = free_port(&self.taken())?;
        }
        // Directories that somebody added by hand are nodes of this cluster too.
        let found =
            (1..).take_while(|number| read_identity(&node_dir(&options.data_dir, *number)).is_some()).count();
        while self.nodes.len() < options.nodes.max(found) {
            self.add_node()?;
        }
        Ok(())
    }

    /// Picks ports for one more node and answers its number.
    pub(super) fn add_node(&mut self) -> Result<usize> {
        let grpc = free_port(&self.taken())?;
        let mut taken = self.taken();
        taken.push(grpc);
        self.nodes.push(Ports { grpc, admin: free_port(&taken)? });
        Ok(self.nodes.len())
    }

    fn taken(&self) -> Vec<u16> {
        self.nodes.iter().flat_map(|ports| [ports.grpc, ports.admin]).chain([self.router_port]).collect()
    }
}

/// Where node `number` lives.
pub fn node_dir(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("node-{number}"))
}

/// The node's identity, once it has one.
pub fn read_identity(dir: &Path) -> Option<Identity> {
    read_json(&dir.join("identity.json"))
}

/// What the node last wrote about its process; stale after a kill.
pub fn read_runtime(dir: &Path) -> Option<Runtime> {
    read_json(&dir.join("runtime.json"))
}

/// `None` when the file is absent, or only half there: whoever asks asks again.
fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Replaces a JSON file in one step, so that a reader sees the old or the new one, whole.
///
/// # Errors
/// When it cannot be written or renamed.
pub fn replace_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let context = || format!("write {}", path.display());
    let mut bytes = serde_json::to_vec(value).with_context(context)?;
    bytes.push(b'\n');
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = std::fs::File::create(&temporary).with_context(context)?;
    file.write_all(&bytes).with_context(context)?;
    drop(file);
    std::fs::rename(&temporary, path).with_context(context)
}
