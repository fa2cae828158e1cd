//! Real records in through `borough import`, out through `borough export` and the API, equal to the files.
//!
//! The files are JSONPlaceholder's (`data/jsonplaceholder`): users are documents; posts, albums and todos lie in the
//! partition of their user, comments in that of their post, photos in that of their album.

#![expect(clippy::indexing_slicing, reason = "a field that JSON lacks is null, not a panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, Options};
use jepsen_tests::http::{Http, segment};
use jepsen_tests::process::{Process, run};
use jepsen_tests::wait::until;
use serde_json::{Value, json};

/// Longest import or export.
const LIMIT: Duration = Duration::from_secs(180);

/// File and collection, field of the id, field of the sort key, lines.
const FILES: [(&str, &str, Option<&str>, usize); 6] = [
    ("users", "id", None, 10),
    ("posts", "userId", Some("id"), 100),
    ("albums", "userId", Some("id"), 100),
    ("todos", "userId", Some("id"), 200),
    ("comments", "postId", Some("id"), 500),
    ("photos", "albumId", Some("id"), 5000),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_input() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let http = cluster.http();
    let mut cases = Cases::new();
    for (collection, id, sort, lines) in FILES {
        let case = format!("{collection}: what is imported is exported");
        cases.run(&case, round_trip(&cluster, collection, id, sort, lines)).await;
    }
    cases.run("each user is read by its id, alone and in a batch", users(&http)).await;
    for (collection, id, sort, _) in FILES {
        if let Some(sort) = sort {
            let case = format!("{collection}: partitions are whole and in order");
            cases.run(&case, partitions(&http, collection, id, sort)).await;
        }
    }
    cases.run("an import that is imported again changes nothing", again(&cluster)).await;
    cases.run("an import that was killed is finished by the next", killed(&cluster)).await;
    cases.run("an import names a bad line", bad_lines(&cluster)).await;
    if cases.failed() {
        println!("{}", cluster.logs(10));
    }
    cases.finish()
}

fn source(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/jsonplaceholder").join(format!("{file}.ndjson"))
}

fn parse_lines(text: &str) -> anyhow::Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("line {line:?}"))).collect()
}

fn records(file: &str) -> anyhow::Result<Vec<Value>> {
    parse_lines(&std::fs::read_to_string(source(file)).with_context(|| format!("read {file}"))?)
}

/// Texts that are equal exactly when the documents are, whatever the order of fields or lines; without the field that is
/// added to show the sort key.
fn comparable(documents: &[Value]) -> Vec<String> {
    let mut texts: Vec<String> = documents
        .iter()
        .map(|document| {
            let fields = document.as_object().cloned().unwrap_or_default();
            let fields: BTreeMap<String, Value> =
                fields.into_iter().filter(|(name, _)| name != "sort").collect();
            serde_json::to_string(&fields).unwrap_or_default()
        })
        .collect();
    texts.sort_unstable();
    texts
}

fn same(found: &[Value], expected: &[Value]) -> anyhow::Result<()> {
    let (found, expected) = (comparable(found), comparable(expected));
    for (found, expected) in found.iter().zip(&expected) {
        check_eq!(found, expected, "a record");
    }
    check_eq!(found.len(), expected.len(), "records");
    Ok(())
}

fn import_args(http: &Http, collection: &str, file: &Path, id: &str, sort: Option<&str>) -> Vec<String> {
    let file = file.to_string_lossy();
    let mut args = vec!["import", collection, &file, "--router", http.base(), "--id", id];
    args.extend(sort.iter().flat_map(|sort| ["--sort", sort]));
    args.into_iter().map(str::to_owned).collect()
}

async fn import(
    http: &Http,
    collection: &str,
    file: &Path,
    id: &str,
    sort: Option<&str>,
) -> anyhow::Result<()> {
    let output = run(&import_args(http, collection, file, id, sort), &[], b"", LIMIT).await?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "import of {collection}: {}: {told}", output.status);
    Ok(())
}

async fn export(http: &Http, collection: &str) -> anyhow::Result<Vec<Value>> {
    let args = ["export", collection, "--router", http.base()].map(str::to_owned);
    let output = run(&args, &[], b"", LIMIT).await?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "export of {collection}: {}: {told}", output.status);
    parse_lines(std::str::from_utf8(&output.stdout)?)
}

/// The file at a place of its own: an import may leave its progress beside it.
fn copy(cluster: &Cluster, file: &str, name: &str) -> anyhow::Result<PathBuf> {
    let path = cluster.dir().join(format!("{name}.ndjson"));
    std::fs::copy(source(file), &path).with_context(|| format!("copy {file}"))?;
    Ok(path)
}

async fn round_trip(
    cluster: &Cluster,
    collection: &str,
    id: &str,
    sort: Option<&str>,
    lines: usize,
) -> anyhow::Result<()> {
    let http = cluster.http();
    let expected = records(collection)?;
    check_eq!(expected.len(), lines, "lines of the file");
    if sort.is_some() {
        http.create_collection(collection, &json!({"sortKey": true})).await?;
    }
    import(&http, collection, &copy(cluster, collection, collection)?, id, sort).await?;
    same(&export(&http, collection).await?, &expected)
}

async fn users(http: &Http) -> anyhow::Result<()> {
    let users = records("users")?;
    let mut ids = Vec::new();
    for user in &users {
        let id = user["id"].to_string();
        check_eq!(http.document(&format!("/v1/users/{id}")).await?.as_ref(), Some(user), "user {id}");
        ids.push(id);
    }
    let answer = http.post("/v1/users:batchGet", &json!({"ids": ids})).expect(200).await?.json()?;
    let documents: Vec<Value> =
        answer["items"].as_array().context("items")?.iter().map(|item| item["document"].clone()).collect();
    check_eq!(documents, users, "batchGet in order");
    let listed = http.get("/v1/users?pageSize=1000").expect(200).await?.json()?;
    same(listed["items"].as_array().context("items")?, &users)
}

async fn partition(http: &Http, collection: &str, id: &str, page_size: usize) -> anyhow::Result<Vec<Value>> {
    let mut items = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/v1/{collection}/{}?pageSize={page_size}{after}", segment(id));
        let page = http.get(&path).expect(200).await?.json()?;
        items.extend(page["items"].as_array().context("items")?.iter().cloned());
        match page["nextPageToken"].as_str() {
            Some(token) => after = format!("&pageToken={}", segment(token)),
            None => return Ok(items),
        }
    }
}

async fn partitions(http: &Http, collection: &str, id: &str, sort: &str) -> anyhow::Result<()> {
    let mut expected: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for record in records(collection)? {
        expected.entry(record[id].to_string()).or_default().push(record);
    }
    for (partition_id, mut records) in expected {
        // Sort keys are texts.
        records.sort_by_key(|record| record[sort].to_string());
        let found = partition(http, collection, &partition_id, 37).await?;
        check_eq!(found.len(), records.len(), "items of {collection}/{partition_id}");
        for (found, record) in found.iter().zip(&records) {
            check_eq!(
                found["sort"].as_str(),
                Some(record[sort].to_string().as_str()),
                "order of {partition_id}"
            );
            for (name, value) in record.as_object().context("object")? {
                check_eq!(found[name], *value, "{name} in {found}");
            }
        }
        if let Some(record) = records.first() {
            let path = format!("/v1/{collection}/{partition_id}/{}", record[sort]);
            check_eq!(http.document(&path).await?.context("gone")?["title"], record["title"], "{path}");
        }
    }
    Ok(())
}

async fn again(cluster: &Cluster) -> anyhow::Result<()> {
    let http = cluster.http();
    import(&http, "albums", &copy(cluster, "albums", "albums-again")?, "userId", Some("id")).await?;
    same(&export(&http, "albums").await?, &records("albums")?)
}

/// Documents in the whole cluster, as the router lists them.
async fn first_page(http: &Http, collection: &str) -> anyhow::Result<usize> {
    let page = http.get(&format!("/v1/{collection}?pageSize=1000")).expect(200).await?.json()?;
    Ok(page["items"].as_array().map_or(0, Vec::len))
}

async fn killed(cluster: &Cluster) -> anyhow::Result<()> {
    let http = cluster.http();
    let expected = records("photos")?;
    for attempt in 0..5 {
        let collection = format!("photos-{attempt}");
        http.create_collection(&collection, &json!({"sortKey": true})).await?;
        let file = copy(cluster, "photos", &collection)?;
        let args = import_args(&http, &collection, &file, "albumId", Some("id"));
        let mut process = Process::start("import", cluster.dir(), &args, &[])?;
        until(LIMIT, "the import to begin", || async {
            ensure!(first_page(&http, &collection).await? > 0, "nothing yet: {}", process.stderr());
            Ok(())
        })
        .await?;
        process.kill()?;
        let left = export(&http, &collection).await?.len();
        println!("        killed after {left} of {} records", expected.len());
        import(&http, &collection, &file, "albumId", Some("id")).await?;
        same(&export(&http, &collection).await?, &expected)?;
        if left < expected.len() {
            return Ok(());
        }
    }
    anyhow::bail!("every import was done before it could be killed")
}

async fn bad_lines(cluster: &Cluster) -> anyhow::Result<()> {
    let http = cluster.http();
    http.create_collection("bad-lines", &json!({})).await?;
    let path = cluster.dir().join("bad-lines.ndjson");
    for (text, line) in [
        ("{\"id\":1}\n{\"id\":2\n{\"id\":3}\n", "2"),
        ("{\"id\":1}\n{\"name\":\"no id\"}\n", "2"),
        ("[]\n", "1"),
    ] {
        std::fs::write(&path, text)?;
        let output = run(&import_args(&http, "bad-lines", &path, "id", None), &[], b"", LIMIT).await?;
        let told = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(1), "exit code for {text:?}: {told}");
        ensure!(told.contains(line), "line {line} is not named: {told}");
    }
    Ok(())
}
