//! Constant load through a router: writers of values never written before, and readers, on every shard.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use borough_proto::error::Outcome;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::history::{Counts, End, History, Operation};
use crate::http::{Answer, Http, is_connect};
use crate::wait::until;

/// How much load.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub writers_per_shard: usize,
    pub readers_per_shard: usize,
    /// Rest of a task between two calls: leaves the machine to what is tested.
    pub pace: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        Self { writers_per_shard: 2, readers_per_shard: 1, pace: Duration::from_millis(8) }
    }
}

/// Running load; stopped by [`Load::stop`] or when dropped.
#[derive(Debug)]
pub struct Load {
    pub history: Arc<History>,
    http: Http,
    keys: BTreeMap<u32, Vec<String>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Values differ over all loads of a process, so that no key sees one twice.
static NEXT_VALUE: AtomicU64 = AtomicU64::new(1);

struct Worker {
    http: Http,
    history: Arc<History>,
    shard: u32,
    keys: Vec<Arc<str>>,
    writes: bool,
    pace: Duration,
    stop: CancellationToken,
}

impl Load {
    /// Starts load on `keys` (by shard), documents of `users` that do not exist yet.
    pub fn start(http: &Http, keys: BTreeMap<u32, Vec<String>>, shape: Shape) -> Self {
        let load = Self {
            history: Arc::default(),
            http: http.clone(),
            keys,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        for (&shard, keys) in &load.keys {
            for number in 0..shape.writers_per_shard + shape.readers_per_shard {
                let worker = Worker {
                    http: http.clone(),
                    history: Arc::clone(&load.history),
                    shard,
                    keys: keys.iter().map(|key| Arc::from(key.as_str())).collect(),
                    writes: number < shape.writers_per_shard,
                    pace: shape.pace,
                    stop: load.stop.clone(),
                };
                load.tasks.spawn(worker.run());
            }
        }
        load
    }

    /// Waits until `writes` more writes have been acknowledged on each shard.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn progress(&self, writes: usize, limit: Duration) -> anyhow::Result<()> {
        let from = self.history.now();
        until(limit, "writes to be acknowledged on every shard", || async {
            let counts = self.history.acknowledged_since(from);
            let enough =
                self.keys.keys().all(|shard| counts.get(shard).is_some_and(|&count| count >= writes));
            ensure!(enough, "acknowledged so far, by shard: {counts:?}");
            Ok(())
        })
        .await
    }

    /// Stops, reads every key once more, and judges the history.
    ///
    /// # Errors
    /// When a key cannot be read at the end, the history is not linearizable, or holds too little.
    pub async fn stop(self, writes_min: usize) -> anyhow::Result<Counts> {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        for (&shard, keys) in &self.keys {
            for key in keys {
                let key: Arc<str> = Arc::from(key.as_str());
                until(Duration::from_secs(30), "the last read of a key", || async {
                    let operation = read(&self.http, &self.history, shard, &key).await;
                    ensure!(operation.result == End::Done, "{key}: {}", operation.detail);
                    self.history.push(operation);
                    Ok(())
                })
                .await?;
            }
        }
        let counts = self.history.counts();
        println!("        history: {counts:?}");
        // A history in which nothing happened is linearizable.
        ensure!(counts.writes >= writes_min && counts.reads > 0, "too little happened: {counts:?}");
        self.history.check().context("not linearizable")?;
        Ok(counts)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Worker {
    async fn run(self) {
        for key in self.keys.iter().cycle() {
            let operation = if self.writes {
                write(&self.http, &self.history, self.shard, key).await
            } else {
                read(&self.http, &self.history, self.shard, key).await
            };
            self.history.push(operation);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(self.pace) => {}
            }
        }
    }
}

async fn write(http: &Http, history: &History, shard: u32, key: &Arc<str>) -> Operation {
    let value = NEXT_VALUE.fetch_add(1, Ordering::Relaxed);
    let start = history.now();
    let answer = http.put(&format!("/v1/users/{key}"), &json!({"value": value})).send().await;
    let (result, detail) = judge(&answer, &[200, 201]);
    let end = history.now();
    Operation { shard, key: Arc::clone(key), wrote: Some(value), read: None, start, end, result, detail }
}

async fn read(http: &Http, history: &History, shard: u32, key: &Arc<str>) -> Operation {
    let start = history.now();
    let answer = http.get(&format!("/v1/users/{key}")).send().await;
    let (mut result, mut detail) = judge(&answer, &[200, 404]);
    let end = history.now();
    let mut read = None;
    if let Ok(answer) = answer.as_ref()
        && answer.status == 200
    {
        read = answer.json().ok().as_ref().and_then(|document| document.get("value").and_then(Value::as_u64));
        if read.is_none() {
            (result, detail) = (End::Unknown, format!("no value in it: {answer}"));
        }
    }
    Operation { shard, key: Arc::clone(key), wrote: None, read, start, end, result, detail }
}

fn judge(answer: &anyhow::Result<Answer>, success: &[u16]) -> (End, String) {
    match answer {
        Ok(answer) if success.contains(&answer.status) => (End::Done, String::new()),
        Ok(answer) => {
            let problem = answer.problem(answer.status).ok();
            let refused = problem.is_some_and(|problem| problem.outcome == Outcome::NotApplied);
            (if refused { End::NotApplied } else { End::Unknown }, answer.to_string())
        }
        Err(error) if is_connect(error) => (End::NotApplied, format!("{error:#}")),
        Err(error) => (End::Unknown, format!("{error:#}")),
    }
}

/// Adds 1 to the counter at `path` by compare-and-set until acknowledged, each attempt under a key of its own that
/// is resent as long as its outcome is not known. Gives the number of resends.
///
/// # Errors
/// When `limit` passes, or an answer is neither success, a lost race nor worth a retry.
pub async fn increment(http: &Http, path: &str, caller: &str, limit: Duration) -> anyhow::Result<u32> {
    let started = std::time::Instant::now();
    let mut resends = 0;
    for attempt in 0_u32.. {
        ensure!(started.elapsed() < limit, "no increment of {path} within {limit:?}");
        let current = http.get(path).send().await;
        let Some(current) = current.ok().filter(|answer| answer.status == 200) else { continue };
        let (etag, count) =
            (current.etag()?, current.json()?.get("count").and_then(Value::as_u64).context("no count")?);
        let key = format!("{caller}-{attempt}");
        loop {
            ensure!(started.elapsed() < limit, "no outcome of {key} on {path} within {limit:?}");
            let next: Value = json!({"count": count + 1});
            let answer = http.put(path, &next).header("if-match", &etag).key(&key).send().await;
            match answer.map(|answer| (answer.status, answer)) {
                Ok((200, _)) => return Ok(resends),
                Ok((412, _)) => break,
                Ok((503 | 504, _)) | Err(_) => resends += 1,
                Ok((_, answer)) => anyhow::bail!("increment: {answer}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    anyhow::bail!("attempts ran out")
}
