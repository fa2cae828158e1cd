//! Nodes in which messages overtake each other, because a file in their data directory says so.
//!
//! Proxies of TCP keep the order of a stream, so the node itself lets go of what has come, and of its answers, in another one
//! (the feature `reordering` of the binary, node/src/reorder.rs). It counts what was overtaken.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::Context as _;
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::field::Field;
use super::processes::choose;

/// The node's counter.
const OVERTAKEN: &str = "borough_overtaken_messages_total";
/// The slowest message is this late, on each way; most are far quicker.
const LONGEST_MS: std::ops::Range<u64> = 20..400;
/// Share of Raft's messages that come twice.
const TWICE_MAX: f64 = 0.2;

/// Positions of the nodes that have the order, and what they had counted before.
#[derive(Debug, Clone)]
pub struct Order(Vec<(usize, u64)>);

/// Gives the order to some of `awake`; what it is for the history.
pub async fn begin(field: &Field<'_>, awake: &[usize], rng: &mut StdRng) -> anyhow::Result<(Order, Value)> {
    let count = rng.random_range(1..=awake.len().max(1));
    let mut nodes = Vec::new();
    for at in choose(rng, awake, count)? {
        let page = field.metrics(at).await.with_context(|| format!("{} tells no metrics", field.name(at)))?;
        nodes.push((at, overtaken(&page).context("the binary has no feature `reordering`")?));
    }
    let mut told = Vec::new();
    for &(at, _) in &nodes {
        let order = json!({
            "seed": rng.random::<u32>(),
            "longestMs": rng.random_range(LONGEST_MS),
            "twice": rng.random_range(0.0..TWICE_MAX),
        });
        let file = file(field, at)?;
        std::fs::write(&file, order.to_string()).with_context(|| format!("write {}", file.display()))?;
        told.push(json!({"node": field.name(at), "order": order}));
    }
    Ok((Order(nodes), json!(told)))
}

/// Takes the order back; how many messages were overtaken meanwhile.
pub async fn end(field: &Field<'_>, order: &Order) -> anyhow::Result<u64> {
    let mut sum = 0;
    for &(at, before) in &order.0 {
        let file = file(field, at)?;
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", file.display()));
            }
            // Not found: the directory was replaced by an empty one.
            Ok(()) | Err(_) => {}
        }
        // One that is away tells nothing; one that was started anew counts from nothing.
        let now = field.metrics(at).await.and_then(|page| overtaken(&page)).unwrap_or_default();
        sum += now.checked_sub(before).unwrap_or(now);
    }
    Ok(sum)
}

fn file(field: &Field<'_>, at: usize) -> anyhow::Result<PathBuf> {
    field.with(|cluster| Ok(cluster.nodes.get(at).context("no such node")?.data_dir.join("reorder")))
}

/// The count on a page of metrics.
fn overtaken(page: &str) -> Option<u64> {
    page.lines().find_map(|line| line.strip_prefix(OVERTAKEN)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_where_there_is_one() {
        let page = format!("# TYPE {OVERTAKEN} counter\n{OVERTAKEN} 17\n");
        assert_eq!(overtaken(&page), Some(17));
        assert_eq!(overtaken("# TYPE other counter\nother 3\n"), None);
    }
}
