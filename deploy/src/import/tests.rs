use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json as Body, Router};
use borough_proto::error::{Problem, ProblemType};
use borough_proto::http_api::{
    BatchItem, BatchReply, BatchWrite, BatchWriteRequest, ClusterStatus, Collection,
};

use super::*;

fn rule(id: &str, sort: Option<&str>, batch: usize) -> Rule {
    Rule {
        id: id.to_owned(),
        sort: sort.map(str::to_owned),
        window: batch,
        enough: batch,
        patience: Duration::MAX,
    }
}

fn batches(text: &[u8], start: Position, rule: &Rule) -> Vec<Window> {
    let (sender, mut receiver) = mpsc::channel(1000);
    let offset = usize::try_from(start.offset).unwrap();
    lines::read(&text[offset..], start, rule, &sender).unwrap();
    drop(sender);
    std::iter::from_fn(|| receiver.blocking_recv()).collect()
}

fn keys(batches: &[Window]) -> Vec<Vec<String>> {
    let key = |document: &Document| match &document.key.sort {
        Some(sort) => format!("{}/{sort}", document.key.id),
        None => document.key.id.clone(),
    };
    batches.iter().map(|batch| batch.documents.iter().map(key).collect()).collect()
}

#[test]
fn documents_are_taken_exactly_as_they_are_in_the_file() {
    let text = b"\xef\xbb\xbf{\"id\": 1, \"x\":1.00}\r\n\n{ \"id\":\"a\\u0062\" }\n  {\"y\":[1, 2],\"id\":2}";
    let batches = batches(text, Position::default(), &rule("id", None, 100));
    assert_eq!(keys(&batches), [["1", "ab", "2"]]);
    let json: Vec<_> = batches[0].documents.iter().map(|document| document.json.get()).collect();
    assert_eq!(json, ["{\"id\": 1, \"x\":1.00}", "{ \"id\":\"a\\u0062\" }", "{\"y\":[1, 2],\"id\":2}"]);
    let lines: Vec<_> = batches[0].documents.iter().map(|document| document.line).collect();
    assert_eq!(lines, [1, 3, 4]);
    assert_eq!(batches[0].end, Position { offset: text.len() as u64, line: 4 });
}

#[test]
fn keys_are_strings_or_integers_of_the_named_fields() {
    let text = b"{\"id\":7,\"userId\":3}\n{\"userId\":\"u\",\"id\":-5}\n{\"userId\":18446744073709551615,\"id\":\"s\"}\n";
    let batches = batches(text, Position::default(), &rule("userId", Some("id"), 100));
    assert_eq!(keys(&batches), [["3/7", "u/-5", "18446744073709551615/s"]]);
}

#[test]
fn bad_lines_are_named_and_nothing_else_is_lost() {
    let long = format!("{{\"id\":\"{}\"}}", "x".repeat(300));
    let huge = format!("{{\"id\":3,\"x\":\"{}\"}}", "x".repeat(2 << 20));
    let lines = [
        "{\"id\":1}",
        "nonsense",
        "[]",
        "{\"x\":1}",
        "{\"id\":1.5}",
        "{\"id\":\"\"}",
        &long,
        &huge,
        "{\"id\":{}}",
        "{\"id\":2}",
    ];
    let text = lines.join("\n");
    for id in [rule("id", None, 100), rule("id", Some("id"), 100)] {
        let batches = batches(text.as_bytes(), Position::default(), &id);
        let written: Vec<_> = batches[0].documents.iter().map(|document| document.line).collect();
        assert_eq!(written, [1, 10]);
        let bad: Vec<_> = batches[0].bad.iter().map(|bad| bad.line).collect();
        assert_eq!(bad, [2, 3, 4, 5, 6, 7, 8, 9]);
    }
    let mismatch = batches(b"{\"id\":1,\"name\":\"a\"}\n", Position::default(), &rule("name", None, 100));
    assert!(mismatch[0].bad[0].why.contains("id"), "an unsorted document's own id names it: {mismatch:?}");
}

#[test]
fn a_key_that_comes_again_is_not_in_the_same_batch() {
    let text = b"{\"id\":1}\n{\"id\":2}\n{\"id\":1}\n{\"id\":3}\n{\"id\":4}\n";
    let read = batches(text, Position::default(), &rule("id", None, 3));
    assert_eq!(keys(&read), [vec!["1", "2"], vec!["1", "3", "4"]]);
    // From any batch's end on, the rest and only the rest is read.
    let again = batches(text, read[0].end, &rule("id", None, 3));
    assert_eq!(keys(&again), [["1", "3", "4"]]);
    assert_eq!(again[0].documents[0].line, 3);
}

#[test]
fn a_window_is_not_filled_where_lines_come_slowly() {
    let text = b"{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n{\"id\":4}\n{\"id\":5}\n";
    let slow = Rule { window: 100, enough: 2, patience: Duration::ZERO, ..rule("id", None, 100) };
    assert_eq!(keys(&batches(text, Position::default(), &slow)), [vec!["1", "2"], vec!["3", "4"], vec!["5"]]);
    let fast = Rule { patience: Duration::MAX, ..slow };
    assert_eq!(keys(&batches(text, Position::default(), &fast)).len(), 1);
}

#[test]
fn a_request_meets_few_shards_and_none_is_too_large() {
    let text: String = (0..3200).map(|id| format!("{{\"id\":\"user-{id}\"}}\n")).collect();
    let window = batches(text.as_bytes(), Position::default(), &rule("id", None, 10_000)).remove(0);
    let requests = requests::split(window.documents, 100);
    assert_eq!(requests.len(), 32);
    // Of 32 equal parts of the space.
    let shards = |request: &Vec<Document>| {
        let shard = |document: &Document| borough_proto::key::hash_id(&document.key.id) >> 59;
        request.iter().map(shard).collect::<std::collections::BTreeSet<_>>().len()
    };
    let met: usize = requests.iter().map(shards).sum();
    assert!(met <= 64, "{met} entries of logs; in the file's order there are about 30 for each request");
    let mut lines: Vec<_> = requests.iter().flatten().map(|document| document.line).collect();
    lines.sort_unstable();
    assert!(lines.into_iter().eq(1..=3200), "each once");
    let large: String =
        (0..12).map(|id| format!("{{\"id\":{id},\"x\":\"{}\"}}\n", "x".repeat(900_000))).collect();
    let window = batches(large.as_bytes(), Position::default(), &rule("id", None, 100)).remove(0);
    let sizes: Vec<_> = requests::split(window.documents, 100).iter().map(Vec::len).collect();
    assert_eq!(sizes, [4, 4, 4]);
}

#[test]
fn a_gap_in_what_is_acknowledged_is_never_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("progress");
    let mut ledger =
        Ledger::new(Progress { fingerprint: "f".to_owned(), ..Progress::default() }, Some(path.clone()));
    let done = |offset| Acknowledged { end: Position { offset, line: offset / 10 }, written: 1, bad: 0 };
    ledger.acknowledge(1, done(20));
    ledger.acknowledge(3, done(40));
    assert_eq!(ledger.progress().offset, 0);
    ledger.acknowledge(0, done(10));
    ledger.save().unwrap();
    let kept = progress::load(&path, "f").unwrap();
    assert_eq!((kept.offset, kept.lines, kept.written), (20, 2, 2));
    assert_eq!(progress::load(&path, "another"), None);
    ledger.acknowledge(2, done(30));
    assert_eq!(ledger.progress().offset, 40);
    ledger.remove().unwrap();
    assert_eq!(progress::load(&path, "f"), None);
}

/// A router that keeps documents in memory and fails as it is told.
#[derive(Debug, Default)]
struct Scripted {
    collections: BTreeMap<String, bool>,
    documents: BTreeMap<(String, Option<String>), String>,
    /// Of that many items to come, every other one is refused for load.
    refusals: u32,
    /// Requests that are answered with 503 as a whole.
    outages: u32,
    /// This id is refused for good.
    hated: Option<String>,
    items: u64,
}

type Shared = State<Arc<Mutex<Scripted>>>;

fn problem(kind: ProblemType) -> Response {
    (StatusCode::from_u16(kind.status()).unwrap(), Body(Problem::new(kind, "as scripted"))).into_response()
}

async fn get_collection(State(script): Shared, UrlPath(name): UrlPath<String>) -> Response {
    match script.lock().unwrap().collections.get(&name) {
        Some(&sort_key) => {
            Body(Collection { name, sort_key, default_ttl: None, require_preconditions: false })
                .into_response()
        }
        None => problem(ProblemType::CollectionNotFound),
    }
}

async fn put_collection(
    State(script): Shared,
    UrlPath(name): UrlPath<String>,
    Body(options): Body<CollectionOptions>,
) -> Response {
    script.lock().unwrap().collections.insert(name.clone(), options.sort_key);
    let collection =
        Collection { name, sort_key: options.sort_key, default_ttl: None, require_preconditions: false };
    (StatusCode::CREATED, Body(collection)).into_response()
}

async fn batch_write(State(script): Shared, Body(request): Body<BatchWriteRequest>) -> Response {
    let mut script = script.lock().unwrap();
    if script.outages > 0 {
        script.outages -= 1;
        return problem(ProblemType::Unavailable);
    }
    let mut reply = BatchReply::default();
    for write in request.writes {
        let BatchWrite::Put(put) = write else { panic!("only puts are expected") };
        script.items += 1;
        let kind = if script.hated.as_ref() == Some(&put.id) {
            Some(ProblemType::InvalidMerge)
        } else if script.refusals > 0 {
            script.refusals -= 1;
            (script.refusals % 2 == 0).then_some(ProblemType::Overloaded)
        } else {
            None
        };
        if kind.is_none() {
            script.documents.insert((put.id.clone(), put.sort.clone()), put.document.get().to_owned());
        }
        reply.items.push(BatchItem {
            id: put.id,
            sort: put.sort,
            status: kind.map_or(201, ProblemType::status),
            etag: Some("\"1\"".to_owned()),
            document: None,
            problem: kind.map(|kind| Box::new(Problem::new(kind, "as scripted"))),
        });
    }
    Body(reply).into_response()
}

async fn serve(script: Scripted) -> (Arc<Mutex<Scripted>>, String, TaskTracker) {
    let script = Arc::new(Mutex::new(script));
    let app = Router::new()
        .route("/admin/v1/cluster", get(|| async { Body(ClusterStatus::default()) }))
        .route("/admin/v1/collections/{name}", get(get_collection).put(put_collection))
        .route("/v1/{call}", post(batch_write))
        .with_state(Arc::clone(&script));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let tasks = TaskTracker::new();
    tasks.spawn(async move { axum::serve(listener, app).await });
    (script, url, tasks)
}

fn arguments(url: &str, file: PathBuf) -> ImportArgs {
    ImportArgs {
        collection: "posts".to_owned(),
        file,
        id: "userId".to_owned(),
        sort: Some("id".to_owned()),
        batch: 10,
        concurrency: 4,
        create: false,
        no_create: false,
        target: crate::cli::Target { router: url.to_owned(), token: None },
    }
}

fn posts(dir: &std::path::Path, count: u64) -> (PathBuf, Vec<String>) {
    let lines: Vec<_> =
        (0..count).map(|n| format!("{{\"userId\": {}, \"id\":{n}, \"n\":{n}.50}}", n % 7)).collect();
    let path = dir.join("posts.ndjson");
    std::fs::write(&path, lines.join("\n")).unwrap();
    (path, lines)
}

#[tokio::test]
async fn every_document_arrives_although_the_cluster_refuses_for_load() {
    let dir = tempfile::tempdir().unwrap();
    let (file, lines) = posts(dir.path(), 205);
    let (script, url, _tasks) = serve(Scripted { refusals: 100, outages: 3, ..Scripted::default() }).await;
    run(arguments(&url, file.clone())).await.unwrap();
    let script = script.lock().unwrap();
    assert_eq!(script.collections.get("posts"), Some(&true), "created, with a sort key");
    let mut stored: Vec<_> = script.documents.values().cloned().collect();
    let mut sent = lines;
    stored.sort();
    sent.sort();
    assert_eq!(stored, sent);
    assert!(!progress::path_of(&file).exists());
}

#[tokio::test]
async fn a_refused_document_is_reported_and_the_others_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = posts(dir.path(), 70);
    let (script, url, _tasks) = serve(Scripted { hated: Some("3".to_owned()), ..Scripted::default() }).await;
    let error = run(arguments(&url, file)).await.unwrap_err();
    assert!(error.to_string().contains("10 lines"), "{error:#}");
    assert_eq!(script.lock().unwrap().documents.len(), 60);
}

#[tokio::test]
async fn a_later_run_goes_on_where_the_first_one_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (file, lines) = posts(dir.path(), 100);
    let (script, url, _tasks) = serve(Scripted::default()).await;
    let args = arguments(&url, file.clone());
    // What a run leaves that was stopped after 40 lines.
    let (_, mut ledger) = open(&args, "").unwrap();
    let offset = lines.iter().take(40).map(|line| line.len() as u64 + 1).sum();
    ledger.acknowledge(0, Acknowledged { end: Position { offset, line: 40 }, written: 39, bad: 1 });
    ledger.save().unwrap();
    let error = run(args).await.unwrap_err();
    assert!(error.to_string().contains("1 line was not"), "the first run's bad line still counts: {error:#}");
    assert_eq!(script.lock().unwrap().items, 60);
    // Other options are another import.
    let mut args = arguments(&url, file);
    args.collection = "others".to_owned();
    run(args).await.unwrap();
    assert_eq!(script.lock().unwrap().items, 160);
}

#[tokio::test]
async fn a_collection_of_the_other_kind_and_a_missing_one_are_refused_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = posts(dir.path(), 10);
    let (script, url, _tasks) = serve(Scripted::default()).await;
    let error = run(ImportArgs { no_create: true, ..arguments(&url, file.clone()) }).await.unwrap_err();
    assert!(error.to_string().contains("no such collection"), "{error:#}");
    script.lock().unwrap().collections.insert("posts".to_owned(), false);
    let error = run(arguments(&url, file.clone())).await.unwrap_err();
    assert!(error.to_string().contains("--sort"), "{error:#}");
    script.lock().unwrap().collections.insert("posts".to_owned(), true);
    let error = run(ImportArgs { sort: None, ..arguments(&url, file) }).await.unwrap_err();
    assert!(error.to_string().contains("--sort"), "{error:#}");
    assert_eq!(script.lock().unwrap().items, 0);
}
