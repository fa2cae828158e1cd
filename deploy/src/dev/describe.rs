//! `dev.json`: where the router is, and each node's id, process, addresses and directory.
//!
//! It tells what is, not what was started: a node that was killed has `"pid": null`, and one that was
//! started again or added by hand, in a `node-N` beside the others, is there with its own process.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use crate::local_cluster::{LocalCluster, Runtime, node_dir, read_identity, read_runtime, replace_json};
use crate::process::is_alive;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Dev {
    router: String,
    router_pid: Option<u32>,
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    id: u64,
    pid: Option<u32>,
    addr: String,
    admin: String,
    data_dir: PathBuf,
}

/// The file and what was last written to it.
#[derive(Debug)]
pub struct Description {
    path: PathBuf,
    written: Option<Dev>,
}

impl Description {
    pub fn new(cluster: &LocalCluster) -> Self {
        Self { path: cluster.data_dir().join("dev.json"), written: None }
    }

    /// Writes the file when something has changed.
    ///
    /// # Errors
    /// When it cannot be replaced.
    pub fn refresh(&mut self, cluster: &LocalCluster) -> Result<()> {
        let now = look(cluster);
        // Somebody may have removed it, too.
        if self.written.as_ref() != Some(&now) || !self.path.exists() {
            replace_json(&self.path, &now)?;
            self.written = Some(now);
        }
        Ok(())
    }

    /// Nothing runs any more.
    pub fn remove(&self) {
        // Absent already, or on a disk that fails: nothing would be gained by saying so at the end.
        let _absent = std::fs::remove_file(&self.path);
    }
}

fn look(cluster: &LocalCluster) -> Dev {
    let children = cluster.nodes();
    let mut nodes = Vec::new();
    for number in 1.. {
        let dir = node_dir(cluster.data_dir(), number);
        let child = children.iter().find(|child| child.number() == number);
        let Some(identity) = read_identity(&dir) else {
            // Started and not yet told who it is; or the end of the row.
            if child.is_some() { continue } else { break }
        };
        let runtime = read_runtime(&dir);
        let own = child.and_then(|child| child.pid());
        let pid = own.or_else(|| running(&dir));
        let addr = |of_runtime: fn(&Runtime) -> &str, of_child: Option<String>| {
            runtime.as_ref().map(|runtime| of_runtime(runtime).to_owned()).or(of_child).unwrap_or_default()
        };
        nodes.push(Node {
            id: identity.node,
            pid,
            addr: addr(|runtime| &runtime.addr, child.map(|child| child.addr().to_string())),
            admin: addr(|runtime| &runtime.admin, child.map(|child| child.admin().to_string())),
            data_dir: dir,
        });
    }
    Dev { router: cluster.router_url(), router_pid: cluster.router().pid(), nodes }
}

/// The process that a node's directory says it belongs to, if it is alive and one of ours: after a kill the
/// file is stale, and its pid may be anybody's.
pub fn running(dir: &Path) -> Option<u32> {
    let pid = read_runtime(dir)?.pid;
    (is_alive(pid) && is_borough(pid)).then_some(pid)
}

/// A binary that was replaced while it runs is called `borough (deleted)`; a process on its way out has none
/// any more, though for a moment it does not count as dead yet; and that of another user may not be looked at.
fn is_borough(pid: u32) -> bool {
    let binary = match std::fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(binary) => binary,
        Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
    };
    let own = std::env::current_exe().is_ok_and(|own| own == binary);
    own || binary.file_name().is_some_and(|name| name.to_string_lossy().starts_with("borough"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_file_that_names_a_stranger_is_no_running_node() {
        let dir = tempfile::tempdir().unwrap();
        let names = |pid: u32| {
            let json = format!(r#"{{"pid":{pid},"addr":"127.0.0.1:1","admin":"127.0.0.1:2"}}"#);
            std::fs::write(dir.path().join("runtime.json"), json).unwrap();
            running(dir.path())
        };
        assert_eq!(running(dir.path()), None);
        let own = std::process::id();
        assert_eq!(names(own), Some(own));
        let mut stranger = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let seen = names(stranger.id());
        stranger.kill().unwrap();
        assert_eq!(seen, None);
        // On its way out, and then a zombie until it is waited for.
        for _look in 0..1_000 {
            assert_eq!(names(stranger.id()), None, "killed");
        }
        stranger.wait().unwrap();
        assert_eq!(names(stranger.id()), None);
    }
}
