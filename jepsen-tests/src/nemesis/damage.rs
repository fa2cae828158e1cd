//! A bit that flips on a node's disk while the node is down.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::field::Field;
use super::processes::{self, choose};
use crate::cluster::{Cluster, Excuse, whole};
use crate::wait::until;

/// For the damage of before to be repaired: with two damaged replicas of three, data may be lost with every right.
const REPAIR_LIMIT: Duration = Duration::from_secs(20);
/// The fault's name, and how a node tells of damage that ends it or that it refuses.
const EXCUSE: Excuse = Excuse {
    fault: "bit-flip",
    told_by: &["damaged", "checksum", "corrupt", "does not match", "belongs to the engine"],
};

/// Waits until the damage of before is repaired.
pub async fn repaired(field: &Field<'_>) -> anyhow::Result<()> {
    let (shards, replicas) = field.with(|cluster| (cluster.options().shards, cluster.options().replicas));
    let replicas = usize::try_from(replicas)?;
    until(REPAIR_LIMIT, "all shards to be whole", || async {
        let running = field.running().len();
        whole(&field.status().await?, shards, replicas.min(running), running)
    })
    .await
}

/// Kills one of `awake` and flips a bit of its log or engine.
pub async fn flip(field: &Field<'_>, awake: &[usize], rng: &mut StdRng) -> anyhow::Result<(usize, Value)> {
    let at = *choose(rng, awake, 1)?.first().context("no node")?;
    // Nobody starts it again before the bit has flipped.
    let flipped = field.with(|cluster| kill_and_flip(cluster, at, rng));
    if flipped.is_err() {
        processes::launch(field, at).await?;
    }
    Ok((at, flipped?))
}

fn kill_and_flip(cluster: &mut Cluster, at: usize, rng: &mut StdRng) -> anyhow::Result<Value> {
    let node = cluster.nodes.get_mut(at).context("no such node")?;
    node.kill()?;
    node.excuse(EXCUSE);
    let (path, offset, bit) = flip_below(&node.data_dir, rng)?;
    let path = path.strip_prefix(&node.data_dir).unwrap_or(&path).display().to_string();
    Ok(json!({"node": node.name(), "file": path, "offset": offset, "bit": bit}))
}

/// Flips a random bit of what is in use in the log or the engine: no byte of zeros, of which segments have many.
fn flip_below(data_dir: &Path, rng: &mut StdRng) -> anyhow::Result<(PathBuf, u64, u32)> {
    let mut files = Vec::new();
    let part = if rng.random_bool(0.5) { "log" } else { "engine" };
    list(&data_dir.join(part), &mut files).context("list the files")?;
    files.sort_unstable();
    files.retain(|path| path.extension().is_none_or(|extension| extension != "spare"));
    while !files.is_empty() {
        let path = files.swap_remove(rng.random_range(0..files.len()));
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let Some(last) = bytes.iter().rposition(|&byte| byte != 0) else { continue };
        let from = rng.random_range(0..=last);
        let found = bytes.iter().enumerate().skip(from).find(|(_, byte)| **byte != 0);
        let (offset, byte) = found.context("no byte in use")?;
        let (offset, bit) = (offset as u64, rng.random_range(0..8));
        let file = OpenOptions::new().write(true).open(&path);
        file.and_then(|file| file.write_all_at(&[byte ^ (1 << bit)], offset))
            .with_context(|| format!("flip a bit of {}", path.display()))?;
        return Ok((path, offset, bit));
    }
    anyhow::bail!("nothing but zeros in the {part}")
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Starts a node again that was killed or that a fault has ended. Refuses it its directory as damaged, the node gets an empty
/// one, as the README tells an operator; what it said then.
///
/// # Errors
/// When it ends for another reason, or without saying where the damage is.
pub async fn launch(field: &Field<'_>, at: usize) -> anyhow::Result<Option<String>> {
    field.with(|cluster| cluster.nodes.get_mut(at).context("no such node")?.take_excused())?;
    processes::launch(field, at).await?;
    let Some((told, newcomer)) = field.with(|cluster| replace_refused(cluster, at))? else { return Ok(None) };
    let name = field.name(at);
    processes::launch(field, newcomer).await.with_context(|| format!("a new node in place of {name}"))?;
    Ok(Some(told))
}

/// Gives up a node that has refused its directory; what it said, and where the one stands that is to replace it.
fn replace_refused(cluster: &mut Cluster, at: usize) -> anyhow::Result<Option<(String, usize)>> {
    let node = cluster.nodes.get_mut(at).context("no such node")?;
    if !node.excused_by()?.contains(&EXCUSE.fault) {
        return Ok(None);
    }
    let told = node.process()?.log_tail(30);
    node.take_excused()?;
    node.retired = true;
    let newcomer = cluster.another_node()?;
    cluster.nodes.push(newcomer);
    Ok(Some((told, cluster.nodes.len() - 1)))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn one_bit_that_is_in_use_flips() {
        let dir = tempfile::tempdir().unwrap();
        let mut content = vec![0; 200_000];
        content[150_000] = 0b1000;
        for part in ["log", "engine"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
            std::fs::write(dir.path().join(part).join("1"), &content).unwrap();
            std::fs::write(dir.path().join(part).join("2.spare"), "not this").unwrap();
        }
        let (path, offset, bit) = flip_below(dir.path(), &mut StdRng::seed_from_u64(5)).unwrap();
        assert_eq!(offset, 150_000);
        let flipped = std::fs::read(&path).unwrap();
        assert_eq!(flipped[150_000], 0b1000 ^ (1 << bit));
        let differ = flipped.iter().zip(&content).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 1, "{}", path.display());
    }
}
