//! Time to live, bounded-stale and session reads, the cache as it shows from outside.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use borough_proto::error::ProblemType as P;
use borough_proto::http_api::headers;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::http::{Answer, Http};
use jepsen_tests::wait::until;
use serde_json::json;

pub async fn run(cases: &mut Cases, http: &Http) {
    cases.run("a time to live is told and hides the document when it has passed", ttl(http)).await;
    cases.run("an expired document can be created again", ttl_again(http)).await;
    cases.run("put clears the time to live, patch keeps it", ttl_kept(http)).await;
    cases.run("a default time to live", default_ttl(http)).await;
    cases.run("max-stale reads are answered and at most that stale", max_stale(http)).await;
    cases.run("a session token reads its writes from any replica", session(http)).await;
    cases.run("a session of many shards", session_of_shards(http)).await;
    cases.run("the cache: miss, hit, and never what was before a write", cache(http)).await;
    cases.run("a remembered absence ends with the write", cached_absence(http)).await;
}

/// `Borough-Expires`, as time since the epoch.
fn expires(answer: &Answer) -> anyhow::Result<Duration> {
    let text = answer.need(headers::EXPIRES)?;
    parse_rfc3339(text).with_context(|| format!("{text:?} is no RFC 3339 time"))
}

/// `YYYY-MM-DDTHH:MM:SS[.fff]Z` as time since the epoch.
fn parse_rfc3339(text: &str) -> Option<Duration> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (hms, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut hms = hms.split(':').map(str::parse::<i64>);
    let (hours, minutes, seconds) = (hms.next()?.ok()?, hms.next()?.ok()?, hms.next()?.ok()?);
    // Days since 1970-03-01 in a calendar whose years begin in March, so that leap days come last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = |year: i64| year / 4 - year / 100 + year / 400;
    let days = 365 * (year - 1970) + leaps(year) - leaps(1970) + (153 * month + 2) / 5 + day - 1 + 59;
    let fraction: f64 = format!("0.{fraction}").parse().ok()?;
    let whole = ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
    Some(Duration::from_secs(u64::try_from(whole).ok()?) + Duration::from_secs_f64(fraction))
}

fn now() -> anyhow::Result<Duration> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?)
}

/// Waits until `expires` has passed, by the clock that nodes of this machine share with the test.
async fn wait_for(expires: Duration) -> anyhow::Result<()> {
    until(Duration::from_secs(20), "the time to live to pass", || async {
        ensure!(now()? > expires + Duration::from_millis(2), "not yet");
        Ok(())
    })
    .await
}

/// Puts a document with a time to live and reads it before that has passed; the id, and the answer to the put.
async fn seen_while_it_lives(http: &Http) -> anyhow::Result<(String, Answer)> {
    let mut ttl = Duration::from_millis(1500);
    for attempt in 0..6 {
        let id = format!("a{attempt}");
        let path = format!("/v1/ttl/{id}");
        let before = now()?;
        let put = http.put(&format!("{path}?ttl={:.1}s", ttl.as_secs_f64()), &json!({"v": 1}));
        let made = put.expect(201).await?;
        let (end, slack) = (expires(&made)?, Duration::from_millis(100));
        let (least, most) = (before + ttl - slack, now()? + ttl + slack);
        ensure!(end >= least && end <= most, "expires {end:?}, expected {least:?} to {most:?}");
        let got = http.get(&path).send().await?;
        if now()? < end {
            ensure!(got.status == 200, "before its time to live has passed: {got}");
            check_eq!(expires(&got)?, end, "Borough-Expires of the read");
            return Ok((id, made));
        }
        // Whoever is this slow may find it or not: again, with more time.
        ttl *= 2;
    }
    anyhow::bail!("never read within its time to live")
}

async fn ttl(http: &Http) -> anyhow::Result<()> {
    check_eq!(
        parse_rfc3339("2023-11-14T22:13:20.123Z"),
        Some(Duration::from_millis(1_700_000_000_123)),
        "the test's own"
    );
    http.create_collection("ttl", &json!({})).await?;
    let (id, made) = seen_while_it_lives(http).await?;
    let (path, end) = (format!("/v1/ttl/{id}"), expires(&made)?);
    let path = path.as_str();
    http.put("/v1/ttl/stays", &json!({})).expect(201).await?;
    ensure!(
        http.get("/v1/ttl/stays").expect(200).await?.header(headers::EXPIRES).is_none(),
        "expires without a ttl"
    );
    wait_for(end).await?;
    // At once, for every kind of reader, without any write in between.
    http.get(path).refused(P::DocumentNotFound).await?;
    http.get(path).header("cache-control", "max-stale=60").expect(404).await?;
    let batch = http.post("/v1/ttl:batchGet", &json!({"ids": [id]})).expect(200).await?;
    check_eq!(crate::batches::items(&batch, 1)?.first().map(|item| item["status"].clone()), Some(json!(404)));
    check_eq!(crate::lists::list(http, "/v1/ttl", 10).await?, [json!({"id": "stays"})]);
    http.patch(path, &json!({"v": 2})).refused(P::DocumentNotFound).await?;
    http.delete(path).refused(P::DocumentNotFound).await?;
    http.put(path, &json!({})).header("if-match", &made.etag()?).refused(P::PreconditionFailed).await?;
    Ok(())
}

async fn ttl_again(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/ttl-again";
    let made = http.put(&format!("{path}?ttl=0.3s"), &json!({"v": 1})).expect(201).await?;
    wait_for(expires(&made)?).await?;
    let again = http.put(path, &json!({"v": 2})).header("if-none-match", "*").expect(201).await?;
    ensure!(again.etag()? != made.etag()?, "the version came back");
    ensure!(again.header(headers::EXPIRES).is_none(), "the new document expires");
    let made = http.post("/v1/users?ttl=0.3s", &json!({"id": "ttl-post"})).expect(201).await?;
    wait_for(expires(&made)?).await?;
    http.post("/v1/users", &json!({"id": "ttl-post"})).expect(201).await?;
    check_eq!(http.document(path).await?, Some(json!({"id": "ttl-again", "v": 2})));
    Ok(())
}

async fn ttl_kept(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/ttl-kept";
    let made = http.put(&format!("{path}?ttl=3600s"), &json!({"v": 1})).expect(201).await?;
    let patched = http.patch(path, &json!({"w": 1})).expect(200).await?;
    check_eq!(expires(&patched)?, expires(&made)?, "after a patch");
    let longer = http.patch(&format!("{path}?ttl=7200s"), &json!({"w": 2})).expect(200).await?;
    ensure!(expires(&longer)? > expires(&made)? + Duration::from_secs(3500), "a patch with a ttl sets it");
    http.put(path, &json!({"v": 2})).expect(200).await?;
    ensure!(
        http.get(path).expect(200).await?.header(headers::EXPIRES).is_none(),
        "a put without a ttl clears it"
    );
    Ok(())
}

async fn default_ttl(http: &Http) -> anyhow::Result<()> {
    http.create_collection("ttl-default", &json!({"defaultTtl": "0.5s"})).await?;
    let made = http.put("/v1/ttl-default/a", &json!({})).expect(201).await?;
    let own = http.put("/v1/ttl-default/b?ttl=3600s", &json!({})).expect(201).await?;
    let posted = http.post("/v1/ttl-default", &json!({"id": "c"})).expect(201).await?;
    ensure!(expires(&own)? > expires(&made)? + Duration::from_secs(3500), "the write's own ttl goes first");
    wait_for(expires(&made)?.max(expires(&posted)?)).await?;
    check_eq!(http.document("/v1/ttl-default/a").await?, None);
    check_eq!(http.document("/v1/ttl-default/c").await?, None);
    check_eq!(http.document("/v1/ttl-default/b").await?, Some(json!({"id": "b"})));
    Ok(())
}

async fn max_stale(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/stale-1";
    let mut acknowledged = Instant::now();
    for version in 0..10 {
        let put = http.put(path, &json!({"v": version})).send().await?;
        ensure!(matches!(put.status, 200 | 201), "{put}");
        acknowledged = Instant::now();
        let strict = http.get(path).expect(200).await?;
        check_eq!(strict.json()?["v"], json!(version), "a plain read after the write");
        for seconds in ["0", "1", "60"] {
            let header = format!("max-stale={seconds}");
            http.get(path).header("cache-control", &header).send().await.and_then(|answer| {
                // Right after the first write the document may not be there yet for a stale reader.
                ensure!(answer.status == 200 || version == 0 && answer.status == 404, "{header}: {answer}");
                Ok(())
            })?;
        }
    }
    until(Duration::from_secs(20), "the last write to be older than the bound", || async {
        ensure!(acknowledged.elapsed() > Duration::from_secs(1), "not yet");
        Ok(())
    })
    .await?;
    // From now on nobody may answer with what was before it, whichever replica is asked.
    for read in 0..24 {
        let got = http.get(path).header("cache-control", "max-stale=1").expect(200).await?;
        check_eq!(got.json()?["v"], json!(9), "read {read}, of node {:?}", got.header(headers::NODE));
    }
    http.get("/v1/users/stale-none").header("cache-control", "max-stale=5").expect(404).await?;
    Ok(())
}

async fn session(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/session-1";
    let mut nodes = BTreeSet::new();
    for version in 0..60 {
        let written = http.put(path, &json!({"v": version})).send().await?;
        let token = written.need(headers::SESSION)?.to_owned();
        for _ in 0..3 {
            let lines = [(headers::SESSION, token.as_str()), ("cache-control", "max-stale=60")];
            let read = http.get(path).headers(&lines).expect(200).await?;
            check_eq!(
                read.json()?["v"],
                json!(version),
                "read with the token of the write, of node {:?}",
                read.header(headers::NODE)
            );
            read.need(headers::SESSION)?;
            nodes.insert(read.need(headers::NODE)?.to_owned());
        }
        let plain = http.get(path).header(headers::SESSION, &token).expect(200).await?;
        check_eq!(plain.json()?["v"], json!(version), "read with the token alone");
    }
    println!("        session reads were answered by nodes {nodes:?}");
    ensure!(nodes.len() > 1, "180 session reads were all answered by node {nodes:?}");
    // A token of a delete hides the document.
    let gone = http.delete(path).expect(204).await?;
    let token = gone.need(headers::SESSION)?;
    http.get(path)
        .headers(&[(headers::SESSION, token), ("cache-control", "max-stale=60")])
        .expect(404)
        .await?;
    Ok(())
}

async fn session_of_shards(http: &Http) -> anyhow::Result<()> {
    let mut token = String::new();
    for number in 0..24 {
        let mut call = http.put(&format!("/v1/users/session-s{number}"), &json!({"v": number}));
        if !token.is_empty() {
            call = call.header(headers::SESSION, &token);
        }
        token = call.expect(201).await?.need(headers::SESSION)?.to_owned();
    }
    for number in 0..24 {
        let lines = [(headers::SESSION, token.as_str()), ("cache-control", "max-stale=60")];
        let read = http.get(&format!("/v1/users/session-s{number}")).headers(&lines).expect(200).await?;
        check_eq!(read.json()?["v"], json!(number));
    }
    Ok(())
}

/// Whether the answer says that it came from the cache.
fn hit(answer: &Answer) -> anyhow::Result<bool> {
    match answer.need(headers::CACHE_STATUS)? {
        "borough; hit" => Ok(true),
        "borough; fwd=miss" => Ok(false),
        other => anyhow::bail!("Cache-Status: {other}"),
    }
}

/// Reads `path` again after `last`, its last answer: that must be a hit. Where another node answers, a new leader say, its
/// cache may rightly lack the document, and the next read is looked at.
async fn hit_again(http: &Http, path: &str, last: Answer) -> anyhow::Result<()> {
    let mut last = last;
    for _ in 0..10 {
        let again = http.get(path).expect(last.status).await?;
        if again.need(headers::NODE)? == last.need(headers::NODE)? {
            ensure!(hit(&again)?, "the second read of one node missed: {:?}", again.headers);
            return Ok(());
        }
        last = again;
    }
    anyhow::bail!("no node answered two reads of {path} in a row")
}

async fn cache(http: &Http) -> anyhow::Result<()> {
    let path = "/v1/users/cache-1";
    http.put(path, &json!({"v": 0})).expect(201).await?;
    let first = http.get(path).expect(200).await?;
    // It may be in the cache already, or not; the answer says which.
    hit(&first)?;
    hit_again(http, path, first).await?;
    for version in 1..30 {
        let etag = http.put(path, &json!({"v": version})).expect(200).await?.etag()?;
        let read = http.get(path).expect(200).await?;
        check_eq!(read.json()?["v"], json!(version), "after a write");
        check_eq!(read.etag()?, etag);
        hit_again(http, path, read).await.with_context(|| format!("after write {version}"))?;
    }
    http.patch(path, &json!({"w": 1})).expect(200).await?;
    check_eq!(http.document(path).await?, Some(json!({"id": "cache-1", "v": 29, "w": 1})));
    http.delete(path).expect(204).await?;
    http.get(path).expect(404).await?;
    Ok(())
}

async fn cached_absence(http: &Http) -> anyhow::Result<()> {
    let mut missed = false;
    for number in 0..5 {
        let path = format!("/v1/users/cache-never-{number}");
        let first = http.get(&path).expect(404).await?;
        // A read that the router had to send twice may meet what its first attempt left.
        missed |= !hit(&first)?;
        hit_again(http, &path, first).await?;
    }
    ensure!(missed, "the first reads of keys that never were are all hits");
    let path = "/v1/users/cache-absent";
    for round in 0..10 {
        let absent = http.get(path).expect(404).await?;
        hit_again(http, path, absent).await.with_context(|| format!("round {round}"))?;
        http.put(path, &json!({"round": round})).expect(201).await?;
        check_eq!(http.document(path).await?, Some(json!({"id": "cache-absent", "round": round})));
        http.delete(path).expect(204).await?;
    }
    Ok(())
}
