//! `borough import`: NDJSON into a collection, in parallel requests, resumable.
//!
//! A blocking thread reads and parses windows of lines ([`lines`]); this task sends each in requests of neighbours ([`requests`]),
//! keeps `--concurrency` of them in flight and a ledger of the windows that are acknowledged ([`progress`]). Two documents with one
//! key are never in flight together, so the later line wins, as it would one by one.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufReader, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use borough_client::{Client, Error, ItemKey};
use borough_proto::http_api::CollectionOptions;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::cli::ImportArgs;
use crate::documents::builder;
use crate::exit::say;
use crate::shutdown;

mod lines;
mod progress;
mod requests;

use lines::{Bad, Document, Key, Position, Rule, Window};
use progress::{Acknowledged, Ledger, Progress};

/// Time for one request, the client's own retries included.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// Requests of a window at most: enough that each of them meets few shards.
const WINDOW_REQUESTS: usize = 64;
/// A window with documents for one request at least does not wait for longer to be filled.
const WINDOW_PATIENCE: Duration = Duration::from_millis(200);
/// A request that has not got through for this long ends the import; what is done stays done.
const STALL_MAX: Duration = Duration::from_secs(120);
/// A collection that was just created is known everywhere after this.
const CREATED_MAX: Duration = Duration::from_secs(5);
/// How often the progress is kept.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// What is in flight when the import is interrupted may take this long; later it counts as not sent.
const INTERRUPTED_GRACE: Duration = Duration::from_secs(3);
/// Pauses between attempts of a request.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Imports a file.
///
/// # Errors
/// When lines could not be imported, the import was interrupted, or the cluster did not take it.
pub async fn run(args: ImportArgs) -> Result<()> {
    // Without keys of their own: a put that is sent twice leaves what it leaves once, and a
    // remembered answer for each of millions of documents would outgrow them.
    let client = builder(&args.target).deadline(REQUEST_DEADLINE).idempotency_keys(false).build()?;
    let cluster = match client.admin().status().await {
        Ok(status) => status.cluster_id,
        // A token without the right to administer: the address is the next best name.
        Err(Error::Forbidden(_)) => args.target.router.clone(),
        Err(error) => return Err(error).context("ask the router for the cluster"),
    };
    prepare(&client, &args).await?;
    let batch = usize::from(args.batch);
    let rule = Rule {
        id: args.id.clone(),
        sort: args.sort.clone(),
        window: batch * WINDOW_REQUESTS,
        enough: batch,
        patience: WINDOW_PATIENCE,
    };
    let (source, ledger) = open(&args, &cluster)?;
    if ledger.progress().offset > 0 {
        say(&format!("going on after line {}", ledger.progress().lines));
    }
    let tasks = TaskTracker::new();
    let stop = shutdown::on_signal(&tasks)?;
    let start = ledger.progress().position();
    let (sender, windows) = mpsc::channel(2);
    let reader = tasks.spawn_blocking(move || match source.file {
        Some(file) => lines::read(BufReader::with_capacity(1 << 20, file), start, &rule, &sender),
        None => lines::read(std::io::stdin().lock(), start, &rule, &sender),
    });
    let bar = bar(source.bytes);
    let mut import = Import {
        client,
        collection: args.collection.clone(),
        ledger,
        bar,
        started: Instant::now(),
        sent: 0,
        documents: 0,
        open: BTreeMap::new(),
    };
    let complete = import.pump(windows, (usize::from(args.concurrency), batch), stop).await;
    import
        .finish(complete, || async { reader.await.context("the reader failed")?.context("read the file") })
        .await
}

/// The collection as the options need it, created when it is missing.
async fn prepare(client: &Client, args: &ImportArgs) -> Result<()> {
    let sort_key = args.sort.is_some();
    let found = match client.admin().collection(&args.collection).await {
        // Then the collection must be there, and the writes tell whether it has a sort key.
        Err(Error::Forbidden(_)) => {
            return match client.raw(&args.collection).list().page_size(1).page().await {
                Err(Error::CollectionNotFound(_)) => bail!(
                    "no such collection: {}, and the token lacks the right `admin`, which creates one",
                    args.collection
                ),
                Ok(_) | Err(_) => Ok(()),
            };
        }
        found => found?,
    };
    match found {
        Some(found) if found.sort_key && !sort_key => {
            bail!("{} has a sort key: name its field with --sort", args.collection)
        }
        Some(found) if !found.sort_key && sort_key => {
            bail!("{} has no sort key: leave --sort out", args.collection)
        }
        Some(_) => Ok(()),
        None if args.no_create && !args.create => bail!("no such collection: {}", args.collection),
        None => {
            // Nothing is made for a file that is not there.
            if args.file != Path::new("-") {
                File::open(&args.file).with_context(|| format!("open {}", args.file.display()))?;
            }
            let options = CollectionOptions { sort_key, ..CollectionOptions::default() };
            client.admin().put_collection(&args.collection, &options).await?;
            Ok(())
        }
    }
}

struct Source {
    /// `None`: stdin.
    file: Option<File>,
    bytes: Option<u64>,
}

fn open(args: &ImportArgs, cluster: &str) -> Result<(Source, Ledger)> {
    if args.file == Path::new("-") {
        return Ok((Source { file: None, bytes: None }, Ledger::new(Progress::default(), None)));
    }
    let name = args.file.display();
    let mut file = File::open(&args.file).with_context(|| format!("open {name}"))?;
    let bytes = file.metadata().with_context(|| format!("look at {name}"))?.len();
    let options = [cluster, &args.collection, &args.id, args.sort.as_deref().unwrap_or_default()];
    let fingerprint = progress::fingerprint(&file, &options)?;
    let path = progress::path_of(&args.file);
    let fresh = || Progress { fingerprint: fingerprint.clone(), ..Progress::default() };
    let progress = progress::load(&path, &fingerprint).unwrap_or_else(fresh);
    file.seek(SeekFrom::Start(progress.offset)).with_context(|| format!("go on in {name}"))?;
    Ok((Source { file: Some(file), bytes: Some(bytes) }, Ledger::new(progress, Some(path))))
}

/// Shown on a terminal only.
fn bar(bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:30} {bytes}/{total_bytes} {msg} {eta}"),
        None => (ProgressBar::no_length(), "{spinner} {bytes} {msg}"),
    };
    // The templates are our own; a fault in one only changes the looks.
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// How the pumping of batches ended.
enum Ended {
    AllSent,
    Interrupted,
    Failed(anyhow::Error),
}

struct Import {
    client: Client,
    collection: String,
    ledger: Ledger,
    bar: ProgressBar,
    started: Instant,
    /// Bytes and documents acknowledged by this run, in any order.
    sent: u64,
    documents: u64,
    /// Windows that are not acknowledged as a whole, by their number.
    open: BTreeMap<u64, Open>,
}

/// A window under way.
struct Open {
    /// Documents without an answer.
    left: usize,
    end: Position,
    written: u64,
    bad: u64,
}

/// Documents for one request.
struct Part {
    window: u64,
    documents: Vec<Document>,
}

type InFlight<'a> = FuturesUnordered<BoxFuture<'a, (Part, Result<Vec<Bad>>)>>;

impl Import {
    async fn pump(
        &mut self,
        mut windows: mpsc::Receiver<Window>,
        (concurrency, batch): (usize, usize),
        stop: tokio_util::sync::CancellationToken,
    ) -> Ended {
        let (client, collection) = (self.client.clone(), self.collection.clone());
        let hasher = RandomState::new();
        let mut in_flight = InFlight::new();
        let mut keys = HashSet::new();
        let (mut held, mut parts): (Option<Window>, VecDeque<Part>) = (None, VecDeque::new());
        let (mut number, mut drained) = (0, false);
        let mut ended = Ended::AllSent;
        let mut save = tokio::time::interval(SAVE_EVERY);
        let interrupted = async {
            stop.cancelled().await;
            tokio::time::sleep(INTERRUPTED_GRACE).await;
        };
        tokio::pin!(interrupted);
        loop {
            let apart = |window: &mut Window| {
                !window.documents.iter().any(|d| keys.contains(&hasher.hash_one(&d.key)))
            };
            if let Some(window) = held.take_if(apart) {
                keys.extend(window.documents.iter().map(|document| hasher.hash_one(&document.key)));
                parts.extend(self.begin(number, window, batch));
                number += 1;
            }
            while in_flight.len() < concurrency
                && let Some(part) = parts.pop_front()
            {
                let (client, collection) = (&client, &collection);
                in_flight.push(Box::pin(async move {
                    let bad = write(client, collection, &part.documents).await;
                    (part, bad)
                }));
            }
            let waiting = !drained && held.is_none() && parts.is_empty();
            if drained && held.is_none() && in_flight.is_empty() {
                return ended;
            }
            tokio::select! {
                window = windows.recv(), if waiting && in_flight.len() < concurrency => match window {
                    Some(window) => held = Some(window),
                    None => drained = true,
                },
                Some((part, bad)) = in_flight.next(), if !in_flight.is_empty() => {
                    for document in &part.documents {
                        keys.remove(&hasher.hash_one(&document.key));
                    }
                    match bad {
                        Ok(bad) => self.acknowledge(&part, &bad),
                        Err(error) => {
                            // What is in flight still counts when it comes back.
                            (ended, drained, held) = (Ended::Failed(error), true, None);
                            parts.clear();
                        }
                    }
                }
                _ = save.tick() => {
                    if let Err(error) = self.ledger.save() {
                        say(&format!("{error:#}"));
                    }
                }
                () = stop.cancelled(), if !drained => {
                    (ended, drained, held) = (Ended::Interrupted, true, None);
                    parts.clear();
                }
                // The cluster is away, or slow: what is sent again later leaves what it leaves once.
                () = &mut interrupted => return Ended::Interrupted,
            }
        }
    }

    /// Takes up a window; its requests.
    fn begin(&mut self, number: u64, window: Window, batch: usize) -> Vec<Part> {
        for bad in &window.bad {
            self.tell(bad);
        }
        let bad = window.bad.len() as u64;
        self.open.insert(number, Open { left: window.documents.len(), end: window.end, written: 0, bad });
        self.close(number);
        let requests = requests::split(window.documents, batch).into_iter();
        requests.map(|documents| Part { window: number, documents }).collect()
    }

    fn acknowledge(&mut self, part: &Part, refused: &[Bad]) {
        for bad in refused {
            self.tell(bad);
        }
        let written = (part.documents.len() - refused.len()) as u64;
        self.documents += written;
        self.sent += part.documents.iter().map(|document| document.json.get().len() as u64 + 1).sum::<u64>();
        if let Some(open) = self.open.get_mut(&part.window) {
            open.left -= part.documents.len();
            open.written += written;
            open.bad += refused.len() as u64;
        }
        self.close(part.window);
    }

    /// Enters the window into the ledger once nothing of it is left.
    fn close(&mut self, number: u64) {
        if self.open.get(&number).is_some_and(|open| open.left == 0)
            && let Some(Open { end, written, bad, .. }) = self.open.remove(&number)
        {
            self.ledger.acknowledge(number, Acknowledged { end, written, bad });
        }
        let progress = self.ledger.progress();
        self.bar.set_position(progress.offset);
        self.bar.set_message(format!("{} documents", HumanCount(progress.written)));
    }

    fn tell(&self, bad: &Bad) {
        self.bar.suspend(|| say(&format!("line {}: {}", bad.line, bad.why)));
    }

    async fn finish<F: Future<Output = Result<()>>>(
        self,
        ended: Ended,
        reader: impl FnOnce() -> F,
    ) -> Result<()> {
        self.bar.finish_and_clear();
        let ended = match ended {
            // A file that breaks off in the middle has not been imported.
            Ended::AllSent => reader().await.map_or_else(Ended::Failed, |()| Ended::AllSent),
            ended => ended,
        };
        let progress = self.ledger.progress();
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        say(&format!(
            "{} documents in all; this run: {} in {seconds:.1} s, {:.0} documents/s, {:.2} MB/s",
            HumanCount(progress.written),
            HumanBytes(self.sent),
            self.documents as f64 / seconds,
            self.sent as f64 / 1e6 / seconds,
        ));
        match ended {
            Ended::AllSent => self.ledger.remove()?,
            Ended::Interrupted => {
                self.ledger.save()?;
                bail!("interrupted after line {}; the same command goes on there", progress.lines);
            }
            Ended::Failed(error) => {
                self.ledger.save()?;
                let place = format!("stopped after line {}; the same command goes on there", progress.lines);
                return Err(error.context(place));
            }
        }
        match progress.bad {
            0 => Ok(()),
            1 => bail!("1 line was not imported"),
            bad => bail!("{bad} lines were not imported"),
        }
    }
}

/// Writes the documents; answers those that the cluster refuses for good.
async fn write(client: &Client, collection: &str, documents: &[Document]) -> Result<Vec<Bad>> {
    let mut pending: Vec<&Document> = documents.iter().collect();
    let mut refused = Vec::new();
    let (mut pause, mut progressed) = (PAUSE_MIN, Instant::now());
    while !pending.is_empty() {
        let before = pending.len();
        let fault = match send(client, collection, &pending).await {
            Ok(results) => sort_out(&mut pending, results, &mut refused),
            Err(error) if retry(&error) => Some(error),
            // Whatever it is about one of them, it must not keep the others out.
            Err(error) if pending.len() > 1 && matches!(error, Error::Invalid(_)) => {
                for document in std::mem::take(&mut pending) {
                    refused
                        .extend(Box::pin(write(client, collection, std::slice::from_ref(document))).await?);
                }
                None
            }
            Err(error @ Error::Invalid(_)) => {
                refused.extend(pending.drain(..).map(|document| bad(document, &error)));
                None
            }
            Err(error) => return Err(error.into()),
        };
        let Some(fault) = fault else { continue };
        if pending.len() < before {
            (pause, progressed) = (PAUSE_MIN, Instant::now());
        }
        let patience = match fault {
            Error::CollectionNotFound(_) => CREATED_MAX,
            _ => STALL_MAX,
        };
        if progressed.elapsed() > patience {
            return Err(anyhow::Error::new(fault).context(format!("nothing was written for {patience:?}")));
        }
        tokio::time::sleep(fault.retry_after().unwrap_or_default().max(pause)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(refused)
}

async fn send(
    client: &Client,
    collection: &str,
    documents: &[&Document],
) -> Result<Vec<Result<borough_client::Written, Error>>, Error> {
    let mut batch = client.raw(collection).batch_write();
    for Document { key: Key { id, sort }, json, .. } in documents {
        let key = match sort {
            Some(sort) => ItemKey::from((id.as_str(), sort.as_str())),
            None => ItemKey::from(id.as_str()),
        };
        batch = batch.put(key, json);
    }
    batch.await
}

/// Keeps in `pending` what may succeed later, and answers the last reason for that.
fn sort_out(
    pending: &mut Vec<&Document>,
    results: Vec<Result<borough_client::Written, Error>>,
    refused: &mut Vec<Bad>,
) -> Option<Error> {
    let mut fault = None;
    let mut later = Vec::new();
    let mut results = results.into_iter();
    for document in pending.drain(..) {
        match results.next() {
            Some(Ok(_)) => {}
            Some(Err(error)) if retry(&error) => {
                later.push(document);
                fault = Some(error);
            }
            Some(Err(error)) => refused.push(bad(document, &error)),
            None => {
                refused.push(Bad { line: document.line, why: "the answer does not mention it".to_owned() })
            }
        }
    }
    *pending = later;
    fault
}

/// A collection that was just created may not be known everywhere yet.
fn retry(error: &Error) -> bool {
    error.is_retryable() || matches!(error, Error::CollectionNotFound(_))
}

fn bad(document: &Document, error: &Error) -> Bad {
    Bad { line: document.line, why: error.to_string() }
}

#[cfg(test)]
mod tests;
