//! Disk use is bounded by what lives, not by what was written: the same keys overwritten for many log segments.

#![expect(clippy::indexing_slicing, reason = "a field that JSON lacks is null, not a panic")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, HEAL_LIMIT, Options};
use jepsen_tests::http::Http;
use jepsen_tests::wait::until;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

const MIB: u64 = 1 << 20;
const SEGMENT_BYTES: u64 = MIB;
const PURGE_AFTER_BYTES: u64 = 256 << 10;
const SHARDS: u32 = 4;
const KEYS: usize = 60;
const DOCUMENT_BYTES: usize = 32 << 10;
/// Log of a node at rest: per shard what may await its purge, twice for what comes in meanwhile, and segments in use or spare.
const LOG_BYTES_MAX: u64 = SHARDS as u64 * PURGE_AFTER_BYTES * 2 + 14 * SEGMENT_BYTES;
/// Log of a node at any time. Purging waits for the engine's flush, and no write waits for that: on a slow disk it runs ahead.
const LOG_BYTES_PEAK: u64 = 64 * MIB;
/// Rounds between two rests. They write more than [`LOG_BYTES_PEAK`], so the log must be purged while they go on.
const ROUNDS_ON_END: usize = 36;
/// The engine at its peak, in terms of its bound at rest.
const ENGINE_PEAK: u64 = 2;
/// Longest time that flush and purge may take once writes rest.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// An engine, how often the 2 MiB of documents are written, and what the engine of a node may take at rest.
struct Engine {
    name: &'static str,
    rounds: usize,
    bytes_max: u64,
}

const ENGINES: [Engine; 2] = [
    // The bound on its journals (64 MiB), and as much again while one is being retired.
    Engine { name: "fjall", rounds: 144, bytes_max: 128 * MIB },
    // The live data, as often as it was seen to keep them, and its empty files.
    Engine { name: "sled", rounds: 48, bytes_max: 40 * MIB },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounded_disk() -> anyhow::Result<()> {
    let mut cases = Cases::new();
    for engine in &ENGINES {
        cases
            .run(&format!("{}: overwrites do not grow the disk's use", engine.name), overwrite(engine))
            .await;
    }
    cases.finish()
}

/// Bytes that the files below `path` take on the disk, sparse ones included only where they are written.
fn bytes_of(path: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut total = 0;
    let Ok(entries) = std::fs::read_dir(path) else { return Ok(0) };
    for entry in entries {
        let entry = entry?;
        // A file may go while we look.
        let Ok(metadata) = entry.metadata() else { continue };
        total += if metadata.is_dir() { bytes_of(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(total)
}

/// Log and the rest of a data directory.
fn usage(data_dir: &Path) -> anyhow::Result<(u64, u64)> {
    let log = ["log", "wal"].iter().map(|name| data_dir.join(name)).find(|path| path.is_dir());
    let log = bytes_of(&log.with_context(|| format!("no log directory in {}", data_dir.display()))?)?;
    Ok((log, bytes_of(data_dir)? - log))
}

fn id(key: usize) -> String {
    format!("disk-{key}")
}

/// Incompressible and told apart by `round`.
fn document(random: &mut StdRng, round: usize) -> serde_json::Value {
    let fill: String = (0..DOCUMENT_BYTES).map(|_| char::from(random.random_range(b'!'..=b'~'))).collect();
    json!({"round": round, "fill": fill.replace(['"', '\\'], "x")})
}

async fn write_round(http: &Http, random: &mut StdRng, round: usize) -> anyhow::Result<()> {
    let documents: Vec<_> = (0..KEYS).map(|key| (key, document(random, round))).collect();
    let writes = documents.iter().map(|(key, document)| async move {
        let answer = http.put(&format!("/v1/users/{}", id(*key)), document).send().await?;
        ensure!(matches!(answer.status, 200 | 201), "{answer}");
        Ok(())
    });
    let mut writes = futures::stream::iter(writes).buffer_unordered(8);
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
}

async fn overwrite(tested: &Engine) -> anyhow::Result<()> {
    let env = [
        ("BOROUGH_ENGINE", tested.name.to_owned()),
        ("BOROUGH_LOG__SEGMENT_BYTES", SEGMENT_BYTES.to_string()),
        ("BOROUGH_LOG__PURGE_AFTER_BYTES", PURGE_AFTER_BYTES.to_string()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let mut cluster =
        Cluster::start(Options { nodes: 1, shards: SHARDS, replicas: 1, env, ..Options::default() }).await?;
    let http = cluster.http();
    let mut random = StdRng::seed_from_u64(7);
    let data_dir = cluster.nodes.first().context("no node")?.data_dir.clone();
    let (mut log_most, mut engine_most) = (0, 0);
    for round in 0..tested.rounds {
        write_round(&http, &mut random, round).await?;
        let (log, engine) = usage(&data_dir)?;
        log_most = log.max(log_most);
        engine_most = engine.max(engine_most);
        if (round + 1) % ROUNDS_ON_END == 0 || round + 1 == tested.rounds {
            until(SETTLE_LIMIT, "the disk's use to be within its bounds", || async {
                let (log, engine) = usage(&data_dir)?;
                ensure!(log <= LOG_BYTES_MAX, "log takes {log} bytes, more than {LOG_BYTES_MAX}");
                let engine_max = tested.bytes_max;
                ensure!(engine <= engine_max, "engine takes {engine} bytes, more than {engine_max}");
                Ok(())
            })
            .await
            .with_context(|| format!("after round {round}\n{}", cluster.logs(10)))?;
        }
    }
    let written = (tested.rounds * KEYS * DOCUMENT_BYTES) as u64;
    let logs = cluster.logs(10);
    println!(
        "        {}: wrote {} MiB, log at most {:.1} MiB, engine at most {:.1} MiB",
        tested.name,
        written / MIB,
        log_most as f64 / MIB as f64,
        engine_most as f64 / MIB as f64
    );
    ensure!(written > LOG_BYTES_PEAK && written > ENGINE_PEAK * tested.bytes_max, "too little was written");
    ensure!(log_most <= LOG_BYTES_PEAK, "log took {log_most} bytes, more than {LOG_BYTES_PEAK}\n{logs}");
    let engine_peak = ENGINE_PEAK * tested.bytes_max;
    ensure!(engine_most <= engine_peak, "engine took {engine_most} bytes, more than {engine_peak}\n{logs}");

    // What was purged is not needed: killed and started again, everything is there.
    let node = cluster.nodes.first_mut().context("no node")?;
    node.kill()?;
    node.launch().await?;
    cluster.wait_whole(HEAL_LIMIT).await?;
    for key in 0..KEYS {
        let path = format!("/v1/users/{}", id(key));
        let document = until(HEAL_LIMIT, "a document", || async {
            http.document(&path).await?.with_context(|| format!("{path} is gone"))
        })
        .await?;
        check_eq!(document["round"], json!(tested.rounds - 1), "{path}");
    }
    Ok(())
}
