//! A collection that nobody changes, written once and listed again and again: each listing must show all of it, once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::Http;

const BATCH: usize = 100;
/// Batches under way at once.
const CONCURRENT: usize = 8;
const PAGE: usize = 1000;

fn id(number: usize) -> String {
    format!("doc-{number:07}")
}

/// About 300 bytes.
fn document(number: usize) -> Value {
    json!({"number": number, "fill": format!("{number:0>240}")})
}

/// Writes `count` documents into `collection`, which is new.
///
/// # Errors
/// When one is not created.
pub async fn fill(http: &Http, collection: &str, count: usize) -> anyhow::Result<()> {
    http.put(&format!("/admin/v1/collections/{collection}"), &json!({})).expect(201).await?;
    let batches = (0..count).step_by(BATCH).map(|first| async move {
        let put = |number| json!({"put": {"id": id(number), "document": document(number)}});
        let writes: Vec<Value> = (first..count.min(first + BATCH)).map(put).collect();
        let path = format!("/v1/{collection}:batchWrite");
        let answer = http.post(&path, &json!({"writes": writes})).expect(200).await?.json()?;
        let items = answer.get("items").and_then(Value::as_array).context("items")?;
        let created = |item: &Value| item.get("status").and_then(Value::as_u64) == Some(201);
        ensure!(items.iter().all(created), "not all were created: {answer}");
        anyhow::Ok(())
    });
    futures::stream::iter(batches).buffer_unordered(CONCURRENT).try_collect().await
}

/// Reads every document and compares it with what was written.
///
/// # Errors
/// When one is missing or another.
pub async fn verify(http: &Http, collection: &str, count: usize) -> anyhow::Result<()> {
    let batches = (0..count).step_by(BATCH).map(|first| async move {
        let numbers = first..count.min(first + BATCH);
        let ids: Vec<String> = numbers.clone().map(id).collect();
        let path = format!("/v1/{collection}:batchGet");
        let answer = http.post(&path, &json!({"ids": ids})).expect(200).await?.json()?;
        let items = answer.get("items").and_then(Value::as_array).context("items")?;
        for (number, item) in numbers.zip(items) {
            let found = item.get("document").context("no document")?;
            let wanted = document(number);
            let same = ["number", "fill"].iter().all(|field| found.get(field) == wanted.get(field));
            ensure!(same, "{}: {item}", id(number));
        }
        anyhow::Ok(())
    });
    futures::stream::iter(batches).buffer_unordered(CONCURRENT).try_collect().await
}

/// Lists until it is stopped.
#[derive(Debug)]
pub struct Lister {
    stop: CancellationToken,
    passes: Arc<AtomicUsize>,
    faults: Arc<Mutex<Vec<String>>>,
    tasks: TaskTracker,
}

impl Lister {
    /// Starts to list `collection`, which [`fill`] has filled with `count`.
    pub fn start(http: &Http, collection: &str, count: usize) -> Self {
        let (stop, passes, faults) = (CancellationToken::new(), Arc::default(), Arc::default());
        let tasks = TaskTracker::new();
        tasks.spawn(list(
            http.clone(),
            collection.to_owned(),
            count,
            stop.clone(),
            Arc::clone(&passes),
            Arc::clone(&faults),
        ));
        tasks.close();
        Self { stop, passes, faults, tasks }
    }

    /// Whole listings so far.
    pub fn passes(&self) -> usize {
        self.passes.load(Ordering::Relaxed)
    }

    /// What was wrong so far.
    ///
    /// # Errors
    /// The faults.
    pub fn check(&self) -> anyhow::Result<()> {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(faults.is_empty(), "{} faults in listings: {:?}", faults.len(), faults.first());
        Ok(())
    }

    /// Ends after the present listing; how many there were.
    ///
    /// # Errors
    /// What was wrong, or when there was no whole listing.
    pub async fn stop(self) -> anyhow::Result<usize> {
        self.stop.cancel();
        self.tasks.wait().await;
        self.check()?;
        let passes = self.passes();
        ensure!(passes > 0, "nothing was listed to its end");
        Ok(passes)
    }
}

async fn list(
    http: Http,
    collection: String,
    count: usize,
    stop: CancellationToken,
    passes: Arc<AtomicUsize>,
    faults: Arc<Mutex<Vec<String>>>,
) {
    while !stop.is_cancelled() {
        match pass(&http, &collection, count).await {
            Ok(()) => {
                passes.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => faults.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}")),
        }
    }
}

async fn pass(http: &Http, collection: &str, count: usize) -> anyhow::Result<()> {
    let mut seen = HashSet::with_capacity(count);
    let mut token = String::new();
    loop {
        let path = format!("/v1/{collection}?pageSize={PAGE}&pageToken={token}");
        let page = http.get(&path).expect(200).await?.json()?;
        for item in page.get("items").and_then(Value::as_array).context("items")? {
            let id = item.get("id").and_then(Value::as_str).context("id")?;
            ensure!(seen.insert(id.to_owned()), "{id} was listed twice");
        }
        match page.get("nextPageToken").and_then(Value::as_str) {
            Some(next) if !next.is_empty() => next.clone_into(&mut token),
            _ => break,
        }
    }
    ensure!(seen.len() == count, "{} of {count} were listed", seen.len());
    Ok(())
}
