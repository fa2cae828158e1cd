//! Listing a collection: complete, nothing twice, whatever the page size.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use borough_proto::error::ProblemType as P;
use futures::StreamExt as _;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::http::{Http, segment};
use serde_json::{Value, json};

pub async fn run(cases: &mut Cases, http: &Http) {
    cases.run("an empty collection lists nothing", empty(http)).await;
    cases.run("pages of every size give every document once", complete(http)).await;
    cases.run("a listing under writes misses nothing that stays", under_writes(http)).await;
    cases.run("a page token belongs to its collection", foreign_token(http)).await;
}

/// All documents of `path` (which may hold a query), page by page.
pub async fn list(http: &Http, path: &str, page_size: usize) -> anyhow::Result<Vec<Value>> {
    let mut items = Vec::new();
    let mut token: Option<String> = None;
    for page in 0.. {
        ensure!(page < 10_000, "{path} never ends");
        let mark = if path.contains('?') { '&' } else { '?' };
        let after =
            token.as_deref().map(|token| format!("&pageToken={}", segment(token))).unwrap_or_default();
        let answer = http.get(&format!("{path}{mark}pageSize={page_size}{after}")).expect(200).await?;
        let body = answer.json()?;
        let found = body["items"].as_array().with_context(|| format!("no items: {answer}"))?;
        ensure!(found.len() <= page_size, "{} items on a page of {page_size}", found.len());
        items.extend(found.iter().cloned());
        match body["nextPageToken"].as_str() {
            None | Some("") => break,
            Some(next) => token = Some(next.to_owned()),
        }
    }
    Ok(items)
}

async fn empty(http: &Http) -> anyhow::Result<()> {
    http.create_collection("list-empty", &json!({})).await?;
    check_eq!(list(http, "/v1/list-empty", 10).await?, Vec::<Value>::new());
    let whole = http.get("/v1/list-empty").expect(200).await?.json()?;
    check_eq!(whole["items"], json!([]));
    Ok(())
}

async fn fill(http: &Http, collection: &str, count: usize) -> anyhow::Result<()> {
    http.create_collection(collection, &json!({})).await?;
    let writes = (0..count).map(|number| async move {
        http.put(&format!("/v1/{collection}/item-{number}"), &json!({"number": number})).expect(201).await
    });
    let mut writes = futures::stream::iter(writes).buffer_unordered(16);
    while let Some(answer) = writes.next().await {
        answer?;
    }
    Ok(())
}

fn by_id(items: &[Value]) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for item in items {
        let id = item["id"].as_str().context("id")?.to_owned();
        ensure!(found.insert(id.clone(), item.clone()).is_none(), "{id} is listed twice");
    }
    Ok(found)
}

async fn complete(http: &Http) -> anyhow::Result<()> {
    const COUNT: usize = 257;
    fill(http, "list-full", COUNT).await?;
    let expected: BTreeMap<String, Value> = (0..COUNT)
        .map(|number| (format!("item-{number}"), json!({"id": format!("item-{number}"), "number": number})))
        .collect();
    for page_size in [1, 7, 100, 256, 257, 1000] {
        check_eq!(by_id(&list(http, "/v1/list-full", page_size).await?)?, expected, "pages of {page_size}");
    }
    let first = http.get("/v1/list-full").expect(200).await?.json()?;
    check_eq!(first["items"].as_array().map(Vec::len), Some(100), "default page");
    ensure!(first["nextPageToken"].is_string(), "no token though there is more");
    Ok(())
}

/// Longest time in which the listings of one page size meet writes.
const MEET_LIMIT: Duration = Duration::from_secs(50);

async fn under_writes(http: &Http) -> anyhow::Result<()> {
    const COUNT: usize = 200;
    /// Listings of each page size that must have met an acknowledged write.
    const LISTINGS: usize = 3;
    fill(http, "list-busy", COUNT).await?;
    let (written, looked) = (AtomicUsize::new(0), AtomicBool::new(false));
    let churn = async {
        for number in (0..).take_while(|_| !looked.load(Ordering::Relaxed)) {
            let path = format!("/v1/list-busy/passing-{number}");
            let item = format!("/v1/list-busy/item-{}", number % COUNT);
            for (write, status) in [
                (http.put(&path, &json!({})), 201),
                (http.put(&item, &json!({"number": number})), 200),
                (http.delete(&path), 204),
            ] {
                write.expect(status).await?;
                written.fetch_add(1, Ordering::Relaxed);
            }
        }
        anyhow::Ok(())
    };
    let look = async {
        for page_size in [3, 10, 50, 100] {
            let (mut met, begun) = (0, Instant::now());
            while met < LISTINGS {
                ensure!(
                    begun.elapsed() < MEET_LIMIT,
                    "pages of {page_size}: only {met} listings met a write"
                );
                let before = written.load(Ordering::Relaxed);
                let found = by_id(&list(http, "/v1/list-busy", page_size).await?)?;
                let missing: Vec<usize> =
                    (0..COUNT).filter(|number| !found.contains_key(&format!("item-{number}"))).collect();
                ensure!(missing.is_empty(), "pages of {page_size} missed {missing:?}");
                met += usize::from(written.load(Ordering::Relaxed) > before);
            }
        }
        looked.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    futures::try_join!(churn, look)?;
    Ok(())
}

async fn foreign_token(http: &Http) -> anyhow::Result<()> {
    for collection in ["list-token-a", "list-token-b"] {
        fill(http, collection, 5).await?;
    }
    let page = http.get("/v1/list-token-a?pageSize=2").expect(200).await?.json()?;
    let token = segment(page["nextPageToken"].as_str().context("token")?);
    http.get(&format!("/v1/list-token-a?pageSize=1&pageToken={token}")).expect(200).await?;
    http.get(&format!("/v1/list-token-b?pageSize=2&pageToken={token}")).refused(P::BadPageToken).await?;
    let cut = token.get(..token.len() / 2).context("half a token")?;
    http.get(&format!("/v1/list-token-a?pageToken={cut}")).refused(P::BadPageToken).await?;
    Ok(())
}
