//! The library that makes faults of disk and clocks, in a real process: this test binary starts itself under it.
#![cfg(target_os = "linux")]

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, HEAL_LIMIT, Options, Preload};
use jepsen_tests::http::Http;
use jepsen_tests::preload::layout::Word;
use jepsen_tests::preload::{Shim, library};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::json;
use tempfile::TempDir;

/// What the child is to do; it finds its directory in `JEPSEN_CHILD_DIR`.
const TASK: &str = "JEPSEN_CHILD";
const TASK_DIR: &str = "JEPSEN_CHILD_DIR";

/// A directory under the library.
struct Bench {
    dir: TempDir,
    shim: Shim,
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().canonicalize()?.join("data");
        fs::create_dir(&root)?;
        let shim = Shim::create(library()?, &dir.path().join("faults"), &root, true)?;
        Ok(Self { dir, shim })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    /// Runs a task of [`child`] to its end.
    fn child(&self, task: &str) -> anyhow::Result<Output> {
        let output = Command::new(std::env::current_exe()?)
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .envs(self.shim.env())
            .env(TASK, task)
            .env(TASK_DIR, self.dir.path().canonicalize()?.join("data"))
            .output()?;
        anyhow::ensure!(output.status.success(), "{task}: {output:?}");
        anyhow::ensure!(self.shim.get(Word::Loaded)? != 0, "the library was not loaded");
        Ok(output)
    }

    fn lose_power(&self, seed: u64) -> anyhow::Result<()> {
        self.shim.lose_power(&mut StdRng::seed_from_u64(seed))?;
        Ok(())
    }
}

/// Not a test of its own: what the tests below run in a process under the library.
#[test]
fn child() -> anyhow::Result<()> {
    let (Ok(task), Ok(dir)) = (std::env::var(TASK), std::env::var(TASK_DIR)) else { return Ok(()) };
    let dir = Path::new(&dir);
    match task.as_str() {
        "write" => write_some(dir)?,
        "fail" => fail_to_sync(dir)?,
        "grow" => grow(dir)?,
        "clock" => tell_times(),
        task => anyhow::bail!("no task {task}"),
    }
    Ok(())
}

fn write_some(dir: &Path) -> anyhow::Result<()> {
    let mut synced = File::create(dir.join("synced"))?;
    synced.write_all(b"durable")?;
    synced.sync_data()?;
    fs::write(dir.join("state"), "old")?;
    File::open(dir.join("state"))?.sync_all()?;
    fs::write(dir.join("removed"), "still here")?;
    File::open(dir.join("removed"))?.sync_all()?;
    File::open(dir)?.sync_all()?;

    synced.write_all(&[b'x'; 4096])?;
    synced.write_all_at(b"D", 0)?;
    fs::write(dir.join("state.new"), "new")?;
    File::open(dir.join("state.new"))?.sync_all()?;
    fs::rename(dir.join("state.new"), dir.join("state"))?;
    fs::remove_file(dir.join("removed"))?;
    fs::create_dir_all(dir.join("sub/sub"))?;
    fs::write(dir.join("sub/sub/file"), "x")?;
    fs::remove_dir_all(dir.join("sub"))?;
    fs::create_dir(dir.join("made"))?;
    Ok(())
}

/// Prints how each fsync ended.
fn fail_to_sync(dir: &Path) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().write(true).open(dir.join("file"))?;
    file.write_all(b"lost")?;
    let first = file.sync_all();
    println!("first: {:?}", first.map_err(|error| error.raw_os_error()));
    println!("second: {:?}", file.sync_all().map_err(|error| error.raw_os_error()));
    Ok(())
}

fn grow(dir: &Path) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).open(dir.join("file"))?;
    let told = |result: std::io::Result<()>| format!("{:?}", result.map_err(|error| error.raw_os_error()));
    println!("within: {}", told(file.write_all_at(b"y", 0)));
    println!("behind: {}", told(file.write_all_at(b"y", 4096)));
    println!("directory: {}", told(fs::create_dir(dir.join("new"))));
    println!("free: {}", nix::sys::statvfs::statvfs(dir)?.blocks_available());
    println!("elsewhere: {}", told(fs::write(dir.join("../elsewhere"), "x")));
    Ok(())
}

/// Prints wall time, and how long a wait of 200 ms took by both clocks; the monotonic one never goes back meanwhile.
fn tell_times() {
    let (wall, start) = (SystemTime::now(), Instant::now());
    let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    println!("wall: {}", since.as_millis());
    let (pair, wait) = ((std::sync::Mutex::new(()), std::sync::Condvar::new()), Duration::from_millis(200));
    let mut last = start;
    while start.elapsed() < wait {
        // Waits on a futex until a moment that this clock named.
        let left = wait.saturating_sub(start.elapsed());
        drop(pair.1.wait_timeout(pair.0.lock().unwrap_or_else(PoisonError::into_inner), left));
        let now = Instant::now();
        assert!(now >= last, "the monotonic clock went back");
        last = now;
    }
    println!("waited: {}", start.elapsed().as_micros());
}

/// What the child printed behind `name: `.
fn said(output: &Output, name: &str) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().find_map(|line| line.split_once(&format!("{name}: ")));
    found.map_or_else(|| format!("nothing of {name} in {text}"), |(_, said)| said.to_owned())
}

#[test]
fn what_is_not_synced_is_gone_and_what_is_stays() -> anyhow::Result<()> {
    let (mut old, mut new, mut torn) = (0, 0, 0);
    for seed in 0..16 {
        let bench = Bench::new()?;
        bench.child("write")?;
        assert_eq!(fs::read(bench.path("state"))?, b"new", "without a loss of power all is there");
        bench.lose_power(seed)?;
        let synced = fs::read(bench.path("synced"))?;
        assert_eq!(&synced[1..7], b"urable", "seed {seed}");
        torn += usize::from(synced.len() != 7 + 4096);
        match fs::read(bench.path("state"))?.as_slice() {
            b"old" => old += 1,
            b"new" => new += 1,
            other => panic!("seed {seed}: {other:?}"),
        }
        // Names go back in the reverse of their order.
        if bench.path("made").exists() {
            assert!(!bench.path("removed").exists() && !bench.path("sub").exists(), "seed {seed}");
        }
        if fs::read(bench.path("state"))? == b"old" {
            assert_eq!(fs::read(bench.path("removed"))?, b"still here", "seed {seed}");
            assert!(!bench.path("sub").exists(), "seed {seed}");
        }
        // Once lost, what is left is durable.
        assert!(bench.lose_power(seed).is_err(), "the journal begins anew");
    }
    assert!(old > 0 && new > 0 && torn > 0, "of 16: {old} old, {new} new, {torn} torn");
    Ok(())
}

#[test]
fn an_fsync_fails_once_and_its_pages_are_lost() -> anyhow::Result<()> {
    let bench = Bench::new()?;
    fs::write(bench.path("file"), "disk")?;
    bench.shim.set(Word::SyncFailures, 1)?;
    let output = bench.child("fail")?;
    assert_eq!(said(&output, "first"), format!("Err(Some({}))", nix::errno::Errno::EIO as i32));
    assert_eq!(said(&output, "second"), "Ok(())");
    assert_eq!(bench.shim.get(Word::Failed)?, 1);
    assert_eq!(fs::read(bench.path("file"))?, b"lost", "the page cache has it");
    bench.lose_power(3)?;
    assert_eq!(fs::read(bench.path("file"))?, b"disk");
    Ok(())
}

#[test]
fn a_slow_fsync_is_slow() -> anyhow::Result<()> {
    let bench = Bench::new()?;
    fs::write(bench.path("file"), "disk")?;
    bench.shim.set(Word::SyncDelayMs, 100)?;
    let start = Instant::now();
    bench.child("fail")?;
    assert_eq!(bench.shim.get(Word::Delayed)?, 2);
    assert!(start.elapsed() >= Duration::from_millis(200));
    Ok(())
}

#[test]
fn nothing_grows_on_a_full_disk() -> anyhow::Result<()> {
    let bench = Bench::new()?;
    fs::write(bench.path("file"), [b'x'; 4096])?;
    bench.shim.set(Word::DiskFull, 1)?;
    let output = bench.child("grow")?;
    let full = format!("Err(Some({}))", nix::errno::Errno::ENOSPC as i32);
    assert_eq!(said(&output, "within"), "Ok(())");
    assert_eq!(said(&output, "behind"), full);
    assert_eq!(said(&output, "directory"), full);
    assert_eq!(said(&output, "free"), "0");
    assert_eq!(said(&output, "elsewhere"), "Ok(())");
    assert!(bench.shim.get(Word::Refused)? >= 3);
    bench.shim.set(Word::DiskFull, 0)?;
    assert_eq!(said(&bench.child("grow")?, "behind"), "Ok(())");
    Ok(())
}

#[test]
fn clocks_jump_and_drift() -> anyhow::Result<()> {
    let bench = Bench::new()?;
    let hour_ns = 3_600_000_000_000_i64;
    bench.shim.set(Word::WallOffsetNs, u64::from_ne_bytes((-hour_ns).to_ne_bytes()))?;
    // Twice as fast: 200 ms of it pass in 100 ms.
    bench.shim.set(Word::ClockRatePpm, 2_000_000)?;
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
    let output = bench.child("clock")?;
    let wall: u128 = said(&output, "wall").parse()?;
    let back = before.saturating_sub(wall);
    assert!((3_500_000..=3_600_000).contains(&back), "{back} ms back");
    let waited: u128 = said(&output, "waited").parse()?;
    assert!(waited >= 200_000, "{waited} us");
    assert!(bench.shim.get(Word::WrongTimes)? > 0);
    Ok(())
}

/// For a node whose fsync failed to end.
const END_LIMIT: Duration = Duration::from_secs(30);

/// What a failed fsync has left in the page cache counts as clean: a node that finds it there at its next start must not take
/// it for durable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_build_on_what_a_failed_fsync_left() -> anyhow::Result<()> {
    let preload = Some(Preload { library: library()?.to_owned(), journal: true });
    let options = Options { nodes: 1, shards: 1, replicas: 1, preload, ..Options::default() };
    let mut cluster = Cluster::start(options).await?;
    let http = cluster.http();
    http.put("/v1/users/before", &json!({"v": 1})).expect(201).await?;
    let node = cluster.node_mut(1)?;
    node.shim()?.set(Word::SyncFailures, 1)?;
    // Whoever asks gets no answer before the node is back: its outcome is unknown.
    let unknown = http.put("/v1/users/unknown", &json!({"v": 2}));
    let (ended, _) = tokio::join!(node.wait_end(END_LIMIT), unknown.send());
    assert!(!ended?.success(), "it ends by a failure");
    assert_eq!(node.shim()?.get(Word::Failed)?, 1);
    node.launch().await?;
    cluster.wait_whole(HEAL_LIMIT).await?;
    http.put("/v1/users/after", &json!({"v": 3})).expect(201).await?;
    let node = cluster.node_mut(1)?;
    node.kill()?;
    // Nothing unsynced reaches the disk.
    node.shim()?.lose_power(&mut StdRng::seed_from_u64(0))?;
    node.launch().await?;
    cluster.wait_whole(HEAL_LIMIT).await?;
    for id in ["before", "after"] {
        http.get(&format!("/v1/users/{id}")).expect(200).await?;
    }
    Ok(())
}

/// So much, 2.4 MB, is written into a log that is let go every MiB: several segments of sled's between two syncs.
const ROUND: usize = 80;
const VALUE_BYTES: usize = 30_000;
const PURGE_AFTER_BYTES: &str = "1048576";

async fn write_round(http: &Http, round: &str) -> anyhow::Result<()> {
    for number in 0..ROUND {
        let path = format!("/v1/users/{round}-{number}");
        http.put(&path, &json!({"x": "x".repeat(VALUE_BYTES)})).expect(201).await?;
    }
    Ok(())
}

/// The same for the engine's files: the log is let go for what they hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_not_let_go_for_what_a_failed_fsync_of_the_engine_left() -> anyhow::Result<()> {
    for engine in ["sled", "fjall"] {
        let preload = Some(Preload { library: library()?.to_owned(), journal: true });
        let env = [("BOROUGH_LOG__PURGE_AFTER_BYTES", PURGE_AFTER_BYTES), ("BOROUGH_ENGINE", engine)];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let options = Options { nodes: 1, shards: 1, replicas: 1, preload, env, ..Options::default() };
        let mut cluster = Cluster::start(options).await?;
        let http = cluster.http();
        write_round(&http, "before").await?;
        let node = cluster.node_mut(1)?;
        node.shim()?.set(Word::SyncFailuresOfEngine, 1)?;
        node.shim()?.set(Word::SyncFailures, 1)?;
        // Enough that the engine must be durable; from then on nobody answers.
        let unknown = write_round(&http, "unknown");
        let ended = tokio::select! {
            ended = node.wait_end(END_LIMIT) => ended?,
            written = unknown => match written {
                Ok(()) | Err(_) => node.wait_end(END_LIMIT).await?,
            },
        };
        anyhow::ensure!(!ended.success(), "{engine}: it ends by a failure");
        check_eq!(node.shim()?.get(Word::Failed)?, 1, "{engine}");
        node.launch().await?;
        cluster.wait_whole(HEAL_LIMIT).await?;
        // The log of before is let go.
        write_round(&http, "after").await?;
        let node = cluster.node_mut(1)?;
        node.kill()?;
        node.shim()?.lose_power(&mut StdRng::seed_from_u64(0))?;
        node.launch().await?;
        cluster.wait_whole(HEAL_LIMIT).await.with_context(|| engine)?;
        for round in ["before", "after"] {
            for number in 0..ROUND {
                http.get(&format!("/v1/users/{round}-{number}")).expect(200).await.with_context(|| engine)?;
            }
        }
    }
    Ok(())
}
