//! The Rust client against real nodes, through a router and straight to the leaders: the same calls, the same answers,
//! and no write applied twice while a leader dies.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use borough_client::http_api::CollectionOptions;
use borough_client::{Client, Collection, Error, Outcome};
use borough_proto::http_api::ClusterStatus;
use borough_proto::key::hash_id;
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, HEAL_LIMIT, Options};
use jepsen_tests::wait::until;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Above a failover, so that every call has time to be sent again.
const DEADLINE: Duration = Duration::from_secs(30);
/// Writers of each kind while a leader dies.
const WRITERS: usize = 4;
/// Writes of each of them before the kill at least, and after it.
const WRITES: usize = 40;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct User {
    name: String,
    visits: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    writer: usize,
    number: usize,
}

fn user(name: &str, visits: u32) -> User {
    User { name: name.to_owned(), visits }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let mut cases = Cases::new();
    let router = cluster.http().base().to_owned();
    let nodes: Vec<String> = cluster.nodes.iter().map(|node| node.addr.clone()).collect();
    let builder = || Client::builder().router(&router).deadline(DEADLINE);
    for (way, client) in [("router", builder().build()?), ("direct", builder().direct(nodes).build()?)] {
        let named = |case: &str| format!("{way}: {case}");
        cases.run(&named("put, get, create, patch, delete"), documents(&client, way)).await;
        cases.run(&named("compare-and-set loses no update"), compare_and_set(&client, way)).await;
        cases.run(&named("batches answer each item"), batches(&client, way)).await;
        cases.run(&named("a list streams every document once"), lists(&client, way)).await;
        cases.run(&named("partitions and transactions"), transactions(&client, way)).await;
        cases
            .run(&named("a session reads its writes, continued from its token"), sessions(&client, way))
            .await;
        cases.run(&named("a leader's death doubles no write"), kill(&mut cluster, &client, way)).await;
    }
    if cases.failed() {
        println!("{}", cluster.logs(15));
    }
    cases.finish()
}

async fn documents(client: &Client, way: &str) -> anyhow::Result<()> {
    let users: Collection<User> = client.collection("users");
    let id = format!("{way}/ann:1");
    let put = users.put(&id, &user("Ann", 1)).await?;
    ensure!(put.created && put.id == id, "{put:?}");
    let got = users.get(&id).await?.context("no ann")?;
    check_eq!((&got.value, &got.etag), (&user("Ann", 1), &put.etag));
    ensure!(!users.put(&id, &user("Ann", 2)).await?.created, "created twice");
    let patched = users.patch(&id, &json!({"visits": 7})).await?;
    check_eq!(patched.value, user("Ann", 7));
    match users.put(&id, &user("?", 0)).if_absent().await {
        Err(error @ Error::AlreadyExists { .. }) => check_eq!(error.outcome(), Outcome::NotApplied),
        other => anyhow::bail!("if_absent of a document that exists: {other:?}"),
    }
    match users.put(&id, &user("?", 0)).if_match(&put).await {
        Err(Error::PreconditionFailed { current, .. }) => check_eq!(current, Some(patched.etag)),
        other => anyhow::bail!("a put at an old version: {other:?}"),
    }
    let guest = users.create(&user("Guest", 0)).ttl(Duration::from_secs(600)).await?;
    ensure!(guest.expires.is_some(), "{guest:?}");
    check_eq!(users.get(&guest.id).await?.map(|guest| guest.into_value()), Some(user("Guest", 0)));
    for id in [&id, &guest.id] {
        check_eq!((users.delete(id).await?, users.delete(id).await?), (true, false), "delete {id}");
    }
    check_eq!(users.get(&id).await?.is_none(), true);
    match users.patch(&id, &json!({})).await {
        Err(Error::NotFound(_)) => {}
        other => anyhow::bail!("patch of nothing: {other:?}"),
    }
    match client.raw("nowhere").get("1").await {
        Err(Error::CollectionNotFound(_)) => Ok(()),
        other => anyhow::bail!("a collection that is not: {other:?}"),
    }
}

/// Adds 1 by compare-and-set until it is taken; gives the races lost.
async fn increment(users: &Collection<User>, id: &str) -> anyhow::Result<usize> {
    let mut lost = 0;
    loop {
        let mut seen = users.get(id).await?.context("the counter vanished")?;
        seen.visits += 1;
        match users.put(id, &seen).if_match(&seen).await {
            Ok(_) => return Ok(lost),
            Err(Error::PreconditionFailed { .. }) => lost += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

async fn compare_and_set(client: &Client, way: &str) -> anyhow::Result<()> {
    let users: Collection<User> = client.collection("users");
    let id = format!("{way}-counter");
    users.put(&id, &user("counter", 0)).await?;
    let lost = try_join_all((0..8).map(|_| async {
        let mut lost = 0;
        for _ in 0..10 {
            lost += increment(&users, &id).await?;
        }
        anyhow::Ok(lost)
    }))
    .await?;
    ensure!(lost.iter().sum::<usize>() > 0, "no race took place");
    check_eq!(users.get(&id).await?.map(|counter| counter.visits), Some(80));
    Ok(())
}

async fn batches(client: &Client, way: &str) -> anyhow::Result<()> {
    let users: Collection<User> = client.collection("users");
    let id = |number: usize| format!("{way}-batch-{number}");
    let mut writes = users.batch_write();
    for number in 0..50 {
        writes = writes.put(id(number), &user("Batch", u32::try_from(number)?)).if_absent();
    }
    for written in writes.await? {
        ensure!(written?.created, "not created");
    }
    let mixed = users
        .batch_write()
        .put(id(0), &user("again", 0))
        .if_absent()
        .patch(id(1), &json!({"visits": 100}))
        .delete(id(2))
        .delete(id(99));
    let results = mixed.await?;
    let told: Vec<&str> = results
        .iter()
        .map(|result| match result {
            Ok(_) => "done",
            Err(Error::AlreadyExists { .. }) => "exists",
            Err(Error::NotFound(_)) => "absent",
            Err(_) => "other",
        })
        .collect();
    check_eq!(told, ["exists", "done", "done", "absent"], "{results:?}");
    let got = users.batch_get([id(2), id(1), id(49), id(0)]).await?;
    let got: Vec<Option<u32>> =
        got.into_iter().map(|got| Ok(got?.map(|user| user.visits))).collect::<anyhow::Result<_>>()?;
    check_eq!(got, [None, Some(100), Some(49), Some(0)]);
    Ok(())
}

async fn lists(client: &Client, way: &str) -> anyhow::Result<()> {
    let name = format!("{way}-list");
    client.admin().put_collection(&name, &CollectionOptions::default()).await?;
    let listed: Collection<Value> = client.collection(&name);
    for chunk in 0..3 {
        let mut writes = listed.batch_write();
        for number in 0..90 {
            writes = writes.put(format!("{chunk}-{number}"), &json!({"n": number}));
        }
        for written in writes.await? {
            written?;
        }
    }
    let ids = |documents: &[Value]| -> BTreeSet<String> {
        documents.iter().filter_map(|document| Some(document.get("id")?.as_str()?.to_owned())).collect()
    };
    for page_size in [7, 100, 1000] {
        let all: Vec<Value> = listed.list().page_size(page_size).try_collect().await?;
        check_eq!((all.len(), ids(&all).len()), (270, 270), "pages of {page_size}");
    }
    let first = listed.list().page_size(100).page().await?;
    let token = first.next.context("there is no second page")?;
    let rest: Vec<Value> = listed.list().page_token(token).try_collect().await?;
    check_eq!((first.items.len(), rest.len()), (100, 170));
    ensure!(ids(&first.items).is_disjoint(&ids(&rest)), "a document on two pages");
    ensure!(client.admin().delete_collection(&name).await?, "it was not there");
    Ok(())
}

async fn transactions(client: &Client, way: &str) -> anyhow::Result<()> {
    let name = format!("{way}-posts");
    client.admin().put_collection(&name, &CollectionOptions { sort_key: true, ..Default::default() }).await?;
    let posts = client.sorted::<Value>(&name);
    let id = format!("{way}-carla");
    let mut unit = client.partition(&id).transact().put("users", &user("Carla", 3)).if_absent();
    for sort in ["2026-01-05", "2026-02-11", "2026-03-20"] {
        unit = unit.put((name.as_str(), sort), &json!({"title": sort}));
    }
    unit.commit().await?;
    let sorts = |found: Vec<Value>| -> Vec<String> {
        found.iter().filter_map(|post| Some(post.get("sort")?.as_str()?.to_owned())).collect()
    };
    let newest: Vec<Value> =
        posts.partition(&id).range("2026-02".."2026-12").reverse().stream().try_collect().await?;
    check_eq!(sorts(newest), ["2026-03-20", "2026-02-11"]);

    let carla = client.raw("users").get(&id).await?.context("no carla")?;
    client.raw("users").patch(&id, &json!({"visits": 4})).await?;
    let late = client
        .partition(&id)
        .transact()
        .put((name.as_str(), "2026-04-01"), &json!({}))
        .check("users")
        .if_match(&carla)
        .commit()
        .await;
    match late {
        Err(error @ Error::PreconditionFailed { op: Some(1), .. }) => {
            check_eq!(error.outcome(), Outcome::NotApplied)
        }
        other => anyhow::bail!("a check of an old version: {other:?}"),
    }
    check_eq!(posts.get(&id, "2026-04-01").await?.is_none(), true);
    check_eq!(posts.delete(&id, "2026-01-05").await?, true);
    check_eq!(posts.partition(&id).count().await, 2);
    Ok(())
}

async fn sessions(client: &Client, way: &str) -> anyhow::Result<()> {
    let session = client.session();
    let mut written = BTreeMap::new();
    for number in 0..40 {
        let id = format!("{way}-session-{number}");
        session.collection("users").put(&id, &user("Session", number)).await?;
        written.insert(id, number);
    }
    let token = session.token().context("a session without a token")?;
    let resumed = client.resume(&token)?;
    for (id, number) in written {
        for reader in [&session, &resumed] {
            let seen = reader.collection::<User>("users").get(&id).await?;
            check_eq!(seen.map(|seen| seen.visits), Some(number), "{id}");
        }
    }
    ensure!(client.resume("no token").is_err(), "a token of nobody was taken");
    Ok(())
}

/// The node that leads the most shards, and their ranges of hashes.
fn leads_most(status: &ClusterStatus) -> anyhow::Result<(u64, Vec<RangeInclusive<u64>>)> {
    let mut led: BTreeMap<u64, Vec<RangeInclusive<u64>>> = BTreeMap::new();
    let bound = |text: &str| {
        u64::from_str_radix(text.trim_start_matches("0x"), 16).with_context(|| format!("hash {text:?}"))
    };
    for shard in &status.shards {
        let [first, last] = &shard.range;
        if let Some(leader) = shard.leader {
            led.entry(leader).or_default().push(bound(first)?..=bound(last)?);
        }
    }
    led.into_iter().max_by_key(|(_, ranges)| ranges.len()).context("nobody leads")
}

/// Creates and counts while the counter's leader dies by kill -9 and comes back.
async fn kill(cluster: &mut Cluster, client: &Client, way: &str) -> anyhow::Result<()> {
    cluster.wait_whole(HEAL_LIMIT).await?;
    let log_name = format!("{way}-log");
    client.admin().put_collection(&log_name, &CollectionOptions::default()).await?;
    let log: Collection<Entry> = client.collection(&log_name);
    let users: Collection<User> = client.collection("users");
    let counters: Vec<String> = (0..WRITERS).map(|number| format!("{way}-killed-{number}")).collect();
    for id in &counters {
        users.put(id, &user("counter", 0)).await?;
    }
    let (created, counted, killed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let create = async |writer: usize| {
        let (mut entries, mut late, mut slowest) = (Vec::new(), Vec::new(), Duration::ZERO);
        for number in 0.. {
            // Begun after the kill, so whoever answers is not the one that was killed.
            let after = killed.load(Ordering::Relaxed) > 0;
            let began = Instant::now();
            let id = log.create(&Entry { writer, number }).await?.id;
            slowest = slowest.max(began.elapsed());
            created.fetch_add(1, Ordering::Relaxed);
            if after {
                late.push(id.clone());
            }
            entries.push((id, Entry { writer, number }));
            if late.len() >= WRITES {
                break;
            }
        }
        anyhow::Ok((entries, late, slowest))
    };
    let count = async |id: &String| {
        let (mut times, mut after) = (0_u32, 0);
        while after < WRITES {
            increment(&users, id).await?;
            times += 1;
            counted.fetch_add(1, Ordering::Relaxed);
            after += killed.load(Ordering::Relaxed);
        }
        anyhow::Ok(times)
    };
    let fault = async {
        until(DEADLINE, "writes before the kill", || async {
            let (created, counted) = (created.load(Ordering::Relaxed), counted.load(Ordering::Relaxed));
            ensure!(created.min(counted) >= WRITERS * WRITES, "{created} created, {counted} counted");
            Ok(())
        })
        .await?;
        // Every write goes on past the kill; a node leads some of the eight shards, so some of them meet it.
        let (victim, ranges) = leads_most(&cluster.wait_whole(HEAL_LIMIT).await?)?;
        cluster.node_mut(victim)?.kill()?;
        killed.store(1, Ordering::Relaxed);
        anyhow::Ok((victim, ranges))
    };
    let creators = try_join_all((0..WRITERS).map(create));
    let counting = try_join_all(counters.iter().map(count));
    let (created, counted, (victim, ranges)) = tokio::try_join!(creators, counting, fault)?;
    cluster.node_mut(victim)?.launch().await?;
    cluster.wait_whole(HEAL_LIMIT).await?;

    let slowest = created.iter().map(|(_, _, slowest)| *slowest).max().unwrap_or_default();
    let met = created.iter().flat_map(|(_, late, _)| late);
    let met = met.filter(|id| ranges.iter().any(|range| range.contains(&hash_id(id)))).count();
    let acknowledged: BTreeMap<String, Entry> =
        created.into_iter().flat_map(|(entries, _, _)| entries).collect();
    println!(
        "        {} created, {met} of them where the dead one led, and {counted:?} counted; the slowest took {slowest:.2?}",
        acknowledged.len()
    );
    // A kill that no write met would show nothing.
    ensure!(met > 0, "nothing was created after the kill in a shard that node {victim} led");
    for (id, counted) in counters.iter().zip(counted) {
        check_eq!(users.get(id).await?.map(|counter| counter.visits), Some(counted), "{id}");
    }
    let mut found = BTreeMap::new();
    let mut listing = client.raw(&log_name).list().page_size(50);
    while let Some(document) = listing.try_next().await? {
        let document: Value = serde_json::from_str(document.get())?;
        let id = document.get("id").and_then(Value::as_str).context("no id")?.to_owned();
        ensure!(found.insert(id, serde_json::from_value::<Entry>(document)?).is_none(), "listed twice");
    }
    // Each was acknowledged, and is there once.
    check_eq!(found.len(), acknowledged.len(), "documents");
    ensure!(found == acknowledged, "documents differ from what was acknowledged");
    Ok(())
}
