//! More documents than the cache holds.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use borough::local_cluster::{LocalCluster, LocalNode};
use borough_benches::options::Options;
use borough_benches::report::Report;
use borough_benches::zipf::Zipf;
use lru::LruCache;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use crate::{READY_WITHIN, Usage, on};

/// Accesses before those that count, and as many that do, for the cache that is compared with.
const LRU_ACCESSES: usize = 2_000_000;

/// Imports the documents, reads them with all in the cache and with a part, and kills a node.
///
/// # Errors
/// When a step fails.
pub async fn run(cluster: &LocalCluster, binary: &Path, load: Options, cache_bytes: u64) -> Result<()> {
    let bytes = import(cluster, binary, &load).await?;
    Usage::of(cluster)?.print_memory("after the import");
    disk(cluster, bytes)?;
    let all = read(cluster, &load, "all in the cache").await?;
    Usage::of(cluster)?.print_memory("after reads");
    for node in cluster.nodes() {
        node.set_extra(vec!["--set".to_owned(), format!("cache-bytes={cache_bytes}")], Vec::new());
        node.terminate().await?;
        node.start().await?;
        cluster.wait_ready(READY_WITHIN).await?;
    }
    let part = read(cluster, &load, "a part in the cache").await?;
    println!(
        "p99 is {:.2} times that of all in the cache",
        part.all.p99_us as f64 / all.all.p99_us.max(1) as f64
    );
    Usage::of(cluster)?.print_memory("after reads with a small cache");
    disk(cluster, bytes)?;
    for node in cluster.nodes() {
        node.kill9().await?;
        let begin = Instant::now();
        node.start().await?;
        ready(&node).await?;
        println!(
            "{} is ready {:.2} s after its start behind kill -9",
            node.name(),
            begin.elapsed().as_secs_f64()
        );
        cluster.wait_ready(READY_WITHIN).await?;
    }
    Ok(())
}

/// Writes a file of the documents and has `borough import` read it; the documents' bytes.
async fn import(cluster: &LocalCluster, binary: &Path, load: &Options) -> Result<u64> {
    let path = cluster.data_dir().join("documents.ndjson");
    let mut file = BufWriter::new(File::create(&path).context("make the file to import")?);
    let mut bytes = 0;
    for number in 0..load.keys {
        let head = format!(r#"{{"id":"load-{number}","text":""#);
        let rest = load.value_bytes.saturating_sub(head.len() + 2);
        // Hardly two are alike, so nothing is won by compressing them.
        let mut text = String::with_capacity(rest);
        let mut state = number;
        while text.len() < rest {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(&format!("{:016x}", state ^ (state >> 29)));
        }
        text.truncate(rest);
        let line = format!("{head}{text}\"}}\n");
        bytes += line.len() as u64 - 1;
        file.write_all(line.as_bytes())?;
    }
    file.into_inner().context("write the file to import")?;
    let before = Usage::of(cluster)?;
    let begin = Instant::now();
    let status = tokio::process::Command::new(binary)
        .args(["import", "users"])
        .arg(&path)
        .args(["--id", "id", "--router", &cluster.router_url()])
        .stdout(std::process::Stdio::null())
        .status();
    ensure!(status.await.context("run borough import")?.success(), "the import failed");
    let seconds = begin.elapsed().as_secs_f64();
    let spent = Usage::of(cluster)?.since(&before);
    println!(
        "import: {} documents of {} bytes in {seconds:.1} s, {:.0}/s; {:.1} µs of processor time in all servers for each",
        load.keys,
        load.value_bytes,
        load.keys as f64 / seconds,
        (spent.nodes() + spent.router()) * 1e6 / load.keys as f64,
    );
    std::fs::remove_file(&path).context("remove the file that was imported")?;
    Ok(bytes)
}

async fn read(cluster: &LocalCluster, load: &Options, what: &str) -> Result<Report> {
    let warm = Options { seconds: load.warm_up, warm_up: 0.0, ..load.clone() };
    on(cluster, &warm)?.measure().await?;
    let before = Cached::of(cluster).await?;
    let report = on(cluster, &Options { warm_up: 0.0, ..load.clone() })?.measure().await?;
    let after = Cached::of(cluster).await?;
    ensure!(report.failed() == 0, "requests failed:\n{report}");
    let (hits, misses) = (after.hits - before.hits, after.misses - before.misses);
    println!(
        "{what}: {:.0} reads/s, p50 {:.2} ms, p99 {:.2} ms",
        report.all.per_second,
        report.all.p50_us as f64 / 1e3,
        report.all.p99_us as f64 / 1e3
    );
    println!(
        "  hit ratio {:.4}, {} entries and {:.1} MB in the caches of all nodes; an LRU of as many entries: {:.4}",
        hits / (hits + misses).max(1.0),
        after.entries,
        after.bytes / 1e6,
        lru(load, after.entries as usize)?,
    );
    Ok(report)
}

/// The hit ratio of one LRU of so many entries.
fn lru(load: &Options, entries: usize) -> Result<f64> {
    let keys = Zipf::new(load.keys, load.zipf).map_err(anyhow::Error::msg)?;
    let mut cache = LruCache::new(NonZeroUsize::new(entries).context("the caches are empty")?);
    let mut random = StdRng::seed_from_u64(1);
    let mut hits = 0_usize;
    for access in 0..2 * LRU_ACCESSES {
        let key = keys.sample(&mut random);
        let hit = cache.get(&key).is_some();
        if !hit {
            cache.put(key, ());
        }
        hits += usize::from(hit && access >= LRU_ACCESSES);
    }
    Ok(hits as f64 / LRU_ACCESSES as f64)
}

/// What the nodes' metrics say of their caches, together.
#[derive(Debug, Default)]
struct Cached {
    hits: f64,
    misses: f64,
    entries: f64,
    bytes: f64,
}

impl Cached {
    async fn of(cluster: &LocalCluster) -> Result<Self> {
        let mut all = Self::default();
        for node in cluster.nodes() {
            let page = page(&node, "metrics").await?.1;
            let value = |name: &str| {
                let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
                line.and_then(|value| value.trim().parse::<f64>().ok()).with_context(|| format!("no {name}"))
            };
            all.hits += value("borough_cache_hits_total")?;
            all.misses += value("borough_cache_misses_total")?;
            all.entries += value("borough_cache_entries")?;
            all.bytes += value("borough_cache_bytes")?;
        }
        Ok(all)
    }
}

async fn page(node: &LocalNode, path: &str) -> Result<(bool, String)> {
    let answer = reqwest::get(format!("http://{}/{path}", node.admin())).await?;
    Ok((answer.status().is_success(), answer.text().await?))
}

async fn ready(node: &LocalNode) -> Result<()> {
    let begin = Instant::now();
    while !page(node, "readyz").await.is_ok_and(|(ready, _)| ready) {
        ensure!(begin.elapsed() < READY_WITHIN, "{} is not ready", node.name());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn disk(cluster: &LocalCluster, documents: u64) -> Result<()> {
    for node in cluster.nodes() {
        let bytes = taken(&node.data_dir())?;
        println!(
            "{} takes {:.0} MB on disk, {:.2} times the documents",
            node.name(),
            bytes as f64 / 1e6,
            bytes as f64 / documents as f64
        );
    }
    Ok(())
}

/// Bytes that all files under `dir` take.
fn taken(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        // A running node renames and removes files.
        let Ok(meta) = entry.metadata() else { continue };
        bytes += if meta.is_dir() { taken(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(bytes)
}
