//! `borough cluster init` and `borough cluster status`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use borough_proto::http_api::ClusterStatus;
use borough_proto::wire;
use borough_proto::wire::cluster_client::ClusterClient;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use indicatif::HumanBytes;

use crate::cli::{InitArgs, StatusArgs};
use crate::documents::client;
use crate::exit::print;

/// How long `init` waits for the node.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks of `status --watch`.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// Creates the cluster and prints its id.
///
/// # Errors
/// When the node cannot be reached, or belongs to a cluster already.
pub async fn init(args: InitArgs) -> Result<()> {
    let url = if args.node.contains("://") { args.node.clone() } else { format!("http://{}", args.node) };
    let request = wire::InitRequest { shards: args.shards, replicas: args.replicas, ..Default::default() };
    let call = async {
        let mut node =
            ClusterClient::connect(url).await.with_context(|| format!("connect to {}", args.node))?;
        match node.init(request).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => bail!("initialise the cluster on {}: {}", args.node, status.message()),
        }
    };
    let reply = tokio::time::timeout(INIT_TIMEOUT, call);
    let reply =
        reply.await.with_context(|| format!("no answer from {} within {INIT_TIMEOUT:?}", args.node))??;
    print(&format!("{}\n", reply.cluster_id))
}

/// Prints the status, once or again and again.
///
/// # Errors
/// When the router does not answer.
pub async fn status(args: StatusArgs) -> Result<()> {
    let admin = client(&args.target)?.admin();
    loop {
        let answer = admin.get("cluster").await.map_err(anyhow::Error::from);
        let text = match (&answer, args.json) {
            (Ok(json), true) => format!("{}\n", String::from_utf8_lossy(json).trim_end()),
            (Ok(json), false) => table(&serde_json::from_slice(json).context("read the status document")?),
            (Err(error), _) => format!("{error:#}\n"),
        };
        if !args.watch {
            answer?;
            return print(&text);
        }
        // Clear and home for the table; JSON goes on line by line.
        print(&if args.json { text } else { format!("\x1b[2J\x1b[H{text}") })?;
        tokio::time::sleep(WATCH_PAUSE).await;
    }
}

/// The status document for people.
fn table(status: &ClusterStatus) -> String {
    let mut text = format!(
        "cluster {}  epoch {}  replication factor {}\n",
        status.cluster_id, status.epoch, status.replication_factor
    );
    text.push_str(&nodes(status));
    text.push_str(&shards(status));
    if !status.operations.is_empty() {
        text.push_str(&operations(status));
    }
    text
}

pub(crate) fn new_table(header: &[&str], numbers: std::ops::Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header.to_vec());
    for index in numbers {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn nodes(status: &ClusterStatus) -> String {
    let header = [
        "node",
        "address",
        "zone",
        "state",
        "version",
        "replicas",
        "leaders",
        "keys",
        "bytes",
        "disk free",
        "hits",
    ];
    let mut table = new_table(&header, 5..11);
    for node in &status.nodes {
        table.add_row(vec![
            node.id.to_string(),
            node.addr.clone(),
            node.zone.clone(),
            node.state.clone(),
            node.version.clone(),
            node.replicas.to_string(),
            node.leaders.to_string(),
            node.keys.to_string(),
            HumanBytes(node.bytes).to_string(),
            HumanBytes(node.disk_free_bytes).to_string(),
            format!("{:.1} %", node.cache.hit_ratio * 100.0),
        ]);
    }
    format!("{table}\n")
}

fn shards(status: &ClusterStatus) -> String {
    let header =
        ["shard", "from", "epoch", "leader", "replicas", "state", "keys", "bytes", "reads/s", "writes/s"];
    let mut table = new_table(&header, 6..10);
    for shard in &status.shards {
        let [first, _] = &shard.range;
        let list = |ids: &[u64]| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        let mut replicas = list(&shard.replicas);
        if !shard.learners.is_empty() {
            replicas = format!("{replicas} + {}", list(&shard.learners));
        }
        table.add_row(vec![
            shard.id.to_string(),
            first.clone(),
            shard.epoch.to_string(),
            shard.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
            replicas,
            shard.state.clone(),
            shard.keys.to_string(),
            HumanBytes(shard.bytes).to_string(),
            format!("{:.0}", shard.reads_per_second),
            format!("{:.0}", shard.writes_per_second),
        ]);
    }
    format!("{table}\n")
}

fn operations(status: &ClusterStatus) -> String {
    let mut table = new_table(&["operation", "kind", "state", "moves", "bytes", "waits"], 3..5);
    for operation in &status.operations {
        table.add_row(vec![
            operation.id.clone(),
            operation.kind.clone(),
            operation.state.clone(),
            format!("{} / {}", operation.moves_done, operation.moves_total),
            format!("{} / {}", HumanBytes(operation.bytes_done), HumanBytes(operation.bytes_total)),
            operation.waits.clone().unwrap_or_default(),
        ]);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use borough_proto::http_api::{NodeStatus, OperationStatus, ShardStatus};

    use super::*;

    #[test]
    fn the_table_shows_nodes_shards_and_operations() {
        let status = ClusterStatus {
            cluster_id: "c-1".to_owned(),
            nodes: vec![NodeStatus { id: 1, addr: "10.0.0.1:7070".to_owned(), ..NodeStatus::default() }],
            shards: vec![ShardStatus {
                id: 7,
                replicas: vec![1, 2],
                learners: vec![3],
                ..ShardStatus::default()
            }],
            operations: vec![OperationStatus {
                id: "op-9".to_owned(),
                moves_total: 16,
                waits: Some("node 4 is silent".to_owned()),
                ..OperationStatus::default()
            }],
            ..ClusterStatus::default()
        };
        let text = table(&status);
        for part in ["c-1", "10.0.0.1:7070", "1 2 + 3", "none", "op-9", "0 / 16", "node 4 is silent"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
