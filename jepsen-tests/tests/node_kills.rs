//! Nodes and routers killed and stopped under constant load: nothing acknowledged is lost, nothing read is stale,
//! nothing is applied twice, and shards whose leader lives notice nothing.

#![expect(clippy::indexing_slicing, reason = "a field that JSON lacks is null, not a panic")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use borough_proto::http_api::headers;
use borough_proto::wire;
use borough_proto::wire::cluster_client::ClusterClient;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, HEAL_LIMIT, Options, status};
use jepsen_tests::history::{Operation, Rest};
use jepsen_tests::http::{Answer, Call, Http};
use jepsen_tests::load::{Load, Shape, increment};
use jepsen_tests::proxy::Rule;
use jepsen_tests::stall::Stalls;
use jepsen_tests::wait::until;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio_util::task::TaskTracker;

/// Two election timeouts of at most a second each; what the machine stands still meanwhile comes on top.
const FAILOVER_LIMIT: Duration = Duration::from_secs(2);
/// For a leader to find out that nobody answers, at the second heartbeat after an election timeout at the latest.
const DEAF_LIMIT: Duration = Duration::from_millis(3_500);
/// For what may take long without being wrong.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_kills() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let mut cases = Cases::new();
    for node in 1..=3 {
        cases.run(&format!("kill -9 of node {node}"), kill_one(&mut cluster, node)).await;
    }
    for node in 1..=3 {
        cases.run(&format!("SIGTERM of node {node} fails no request"), stop_one(&mut cluster, node)).await;
    }
    for round in 1..=2 {
        cases.run(&format!("kill -9 of all nodes, round {round}"), kill_all(&mut cluster, round)).await;
    }
    cases.run("SIGTERM of all nodes", stop_all(&mut cluster)).await;
    cases.run("an answer is repeated after its leader's death", replay(&mut cluster)).await;
    cases.run("counters count each increment once while leaders die", counters(&mut cluster)).await;
    cases.run("a replica with a damaged log is rebuilt from its peers", damaged(&mut cluster)).await;
    cases
        .run(
            "who led the catalog before it was stopped does not speak for it",
            stopped_meta_leader(&mut cluster),
        )
        .await;
    cases.run("kill -9 of the router", kill_router(&mut cluster)).await;
    cases.run("SIGTERM of the router answers what it has", stop_router(&mut cluster)).await;
    cases.run("a leader that is heard and hears nobody is replaced", deaf_leader()).await;
    if cases.failed() {
        println!("{}", cluster.logs(25));
    }
    cases.finish()
}

/// A leader falls silent after an election timeout without answers, and the others elect after another one. (The streams
/// that it has break only later: until then it would be heard, and keep the others from electing.)
async fn deaf_leader() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { links: true, ..Options::default() }).await?;
    cluster.wait_whole(HEAL_LIMIT).await?;
    let load = load(&cluster, "deaf").await?;
    let stalls = Stalls::start(cluster.dir())?;
    let (links, node) = (cluster.links.as_ref().context("links")?, cluster.nodes.first().context("a node")?);
    let led = led_by(&cluster, 1).await?;
    let deaf = node.end.context("its end of links")?;
    let others = cluster.nodes.iter().filter_map(|other| other.end).filter(|end| *end != deaf);
    let hold = Rule { hold: true, ..Rule::default() };
    let begin = load.history.now();
    links.set(1, others.map(|end| ((end, deaf), hold)).collect());
    load.progress(50, PROGRESS_LIMIT).await.with_context(|| cluster.logs(25))?;
    let gaps = load.history.write_gaps(begin);
    let gap = gaps.values().max().copied().unwrap_or_default();
    let stalled = stalls.between(load.history.moment(begin), load.history.moment(begin + gap));
    println!("        node 1 led {led:?}; writes again after {gaps:.2?}");
    links.heal();
    cluster.wait_whole(HEAL_LIMIT).await?;
    load.stop(500).await?;
    ensure!(gap <= DEAF_LIMIT + stalled, "writes stood still for {gap:.2?} (the machine for {stalled:.2?})");
    Ok(())
}

async fn load(cluster: &Cluster, name: &str) -> anyhow::Result<Load> {
    let keys = cluster.ids_by_shard(name, 2).await?;
    let load = Load::start(&cluster.http(), keys, Shape::default());
    load.progress(20, PROGRESS_LIMIT).await?;
    Ok(load)
}

/// Shards led by `node`; at least one, or the case would show nothing.
async fn led_by(cluster: &Cluster, node: u64) -> anyhow::Result<BTreeSet<u32>> {
    let limit = HEAL_LIMIT;
    until(limit, "the node to lead a shard", || async {
        let status = cluster.status().await?;
        let led: BTreeSet<u32> =
            status.shards.iter().filter(|shard| shard.leader == Some(node)).map(|shard| shard.id).collect();
        ensure!(!led.is_empty(), "node {node} leads none of {} shards", status.shards.len());
        // Leaders that are about to be spread would move while the caller looks at them.
        let counts: Vec<u32> = status.nodes.iter().map(|node| node.leaders).collect();
        let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
        ensure!(most.unwrap_or(0) - least.unwrap_or(0) <= 1, "leaders are not even: {counts:?}");
        Ok(led)
    })
    .await
}

fn tell(failures: &[Operation]) -> String {
    let lines: Vec<String> = failures
        .iter()
        .take(5)
        .map(|op| format!("shard {} {:?}..{:?} {:?}: {}", op.shard, op.start, op.end, op.result, op.detail))
        .collect();
    format!("{} failed:\n{}", failures.len(), lines.join("\n"))
}

/// Applied indexes of two whole moments do not go back, and all nodes are up.
async fn caught_up(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.wait_whole(HEAL_LIMIT).await?;
    let after = cluster.status().await?;
    for (before, after) in before.shards.iter().zip(&after.shards) {
        ensure!(
            before.applied_index <= after.applied_index,
            "shard {} went back: {before:?} {after:?}",
            before.id
        );
    }
    Ok(())
}

/// A flipped bit in a record before the log's tail, found at the start (I10).
async fn damaged(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.wait_whole(HEAL_LIMIT).await?;
    let http = cluster.http();
    let marker = "this text is in the log once and nowhere else";
    http.put("/v1/users/damaged", &json!({"marker": marker})).expect(201).await?;
    // Enough behind it on every shard that it is no torn tail.
    for (shard, ids) in cluster.ids_by_shard("behind", 5).await? {
        for id in ids {
            http.put(&format!("/v1/users/{id}"), &json!({"shard": shard})).expect(201).await?;
        }
    }
    let repairs = async || {
        let operations = status(&http).await?.operations.into_iter();
        let repairs = operations.filter(|operation| operation.kind == "repair" && operation.state == "done");
        anyhow::Ok(repairs.map(|operation| operation.id).collect::<BTreeSet<_>>())
    };
    let before = repairs().await?;
    cluster.node_mut(2)?.kill()?;
    let node = cluster.node_mut(2)?;
    flip(&node.data_dir.join("log"), marker.as_bytes())?;
    node.launch().await?;
    let told = node.process()?.stderr();
    ensure!(told.contains("a replica is damaged"), "the log says nothing of it: {told}");
    ensure!(told.contains(" at offset "), "file and offset are not named: {told}");
    until(HEAL_LIMIT, "a repair", || async {
        let now = repairs().await?;
        ensure!(now.len() > before.len(), "{now:?}");
        Ok(())
    })
    .await?;
    cluster.wait_whole(HEAL_LIMIT).await?;
    // The rebuilt replica counts: with another node gone, only it and one more are left.
    cluster.node_mut(1)?.kill()?;
    let found = until(HEAL_LIMIT, "the document", || async {
        http.get("/v1/users/damaged").expect(200).await?.json()
    })
    .await?;
    check_eq!(found["marker"], json!(marker));
    cluster.node_mut(1)?.launch().await?;
    cluster.wait_whole(HEAL_LIMIT).await.map(|_| ())
}

/// Flips a bit of the first place in the files of `dir` that holds `bytes`.
fn flip(dir: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let mut content = std::fs::read(&path)?;
        let found = content.windows(bytes.len()).position(|window| window == bytes);
        if let Some(at) = found {
            content[at] ^= 1;
            return std::fs::write(&path, content).with_context(|| path.display().to_string());
        }
    }
    anyhow::bail!("no file of {} holds it", dir.display())
}

async fn kill_one(cluster: &mut Cluster, node: u64) -> anyhow::Result<()> {
    cluster.wait_whole(HEAL_LIMIT).await?;
    let stalls = Stalls::start(cluster.dir())?;
    let load = load(cluster, &format!("kill-{node}")).await?;
    let led = led_by(cluster, node).await?;
    let kill = load.history.now();
    cluster.node_mut(node)?.kill()?;
    load.progress(50, PROGRESS_LIMIT).await.with_context(|| cluster.logs(25))?;
    let after = load.history.now();

    let gaps = load.history.write_gaps(kill);
    let failures = load.history.failures(kill, after);
    let (of_led, of_others): (Vec<_>, Vec<_>) = failures.into_iter().partition(|op| led.contains(&op.shard));
    println!(
        "        node {node} led {led:?}; writes again after {gaps:.2?}; {} failed on its shards",
        of_led.len()
    );
    let stalled = |gap: Duration| stalls.between(load.history.moment(kill), load.history.moment(kill + gap));
    let slow: Vec<_> = gaps
        .iter()
        .filter(|(shard, gap)| led.contains(shard) && **gap > FAILOVER_LIMIT)
        .map(|(shard, &gap)| (*shard, gap, stalled(gap)))
        .filter(|(_, gap, stalled)| *gap > FAILOVER_LIMIT + *stalled)
        .collect();

    cluster.node_mut(node)?.launch().await?;
    caught_up(cluster).await?;
    load.progress(20, PROGRESS_LIMIT).await?;
    let of_return = load.history.failures(after, load.history.now());
    load.stop(500).await?;
    ensure!(of_others.is_empty(), "on shards led by others: {}", tell(&of_others));
    ensure!(of_return.is_empty(), "after failover and while the node came back: {}", tell(&of_return));
    ensure!(slow.is_empty(), "no write within {FAILOVER_LIMIT:?} (shard, time, stalled): {slow:?}");
    Ok(())
}

async fn stop_one(cluster: &mut Cluster, node: u64) -> anyhow::Result<()> {
    cluster.wait_whole(HEAL_LIMIT).await?;
    let load = load(cluster, &format!("stop-{node}")).await?;
    led_by(cluster, node).await?;
    let begin = load.history.now();
    let status = cluster.node_mut(node)?.terminate().await?;
    let ended = load.history.now();
    load.progress(30, PROGRESS_LIMIT).await?;
    cluster.node_mut(node)?.launch().await?;
    caught_up(cluster).await?;
    load.progress(30, PROGRESS_LIMIT).await?;
    let failures = load.history.failures(begin, load.history.now());
    let longest = load.history.rests(begin).iter().map(Rest::length).max().unwrap_or_default();
    println!("        stopped in {:.2?}, longest gap between writes of a shard {longest:.2?}", ended - begin);
    load.stop(500).await?;
    check_eq!(status.code(), Some(0), "exit code");
    ensure!(failures.is_empty(), "{}", tell(&failures));
    Ok(())
}

/// All at once: no node alone can be ready before another is up.
async fn launch_all(cluster: &mut Cluster) -> anyhow::Result<()> {
    let launches = cluster.nodes.iter_mut().filter(|node| !node.running()).map(|node| node.launch());
    for launched in futures::future::join_all(launches).await {
        launched?;
    }
    Ok(())
}

async fn kill_all(cluster: &mut Cluster, round: u32) -> anyhow::Result<()> {
    cluster.wait_whole(HEAL_LIMIT).await?;
    let load = load(cluster, &format!("all-{round}")).await?;
    for node in &mut cluster.nodes {
        node.kill()?;
    }
    launch_all(cluster).await?;
    load.progress(30, PROGRESS_LIMIT).await.with_context(|| cluster.logs(25))?;
    caught_up(cluster).await?;
    load.stop(300).await?;
    Ok(())
}

async fn stop_all(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.wait_whole(HEAL_LIMIT).await?;
    let load = load(cluster, "stop-all").await?;
    let stops = cluster.nodes.iter_mut().map(|node| node.terminate());
    for stopped in futures::future::join_all(stops).await {
        check_eq!(stopped?.code(), Some(0), "exit code");
    }
    launch_all(cluster).await?;
    load.progress(30, PROGRESS_LIMIT).await.with_context(|| cluster.logs(25))?;
    caught_up(cluster).await?;
    load.stop(300).await?;
    Ok(())
}

/// A call that can be made again, with its idempotency key.
type MakeCall = Box<dyn Fn(&Http) -> Call<'_> + Sync>;

/// Sends the same call until it is answered for good.
async fn settled(http: &Http, call: &MakeCall) -> anyhow::Result<Answer> {
    until(PROGRESS_LIMIT, "an answer", || async {
        let answer = call(http).send().await?;
        ensure!(answer.status < 500, "{answer}");
        Ok(answer)
    })
    .await
}

async fn replay(cluster: &mut Cluster) -> anyhow::Result<()> {
    let caught = cluster.wait_whole(HEAL_LIMIT).await?;
    let http = cluster.http();
    http.create_collection("replay", &json!({"sortKey": true})).await?;
    for node in caught.nodes.iter().map(|node| node.id) {
        cluster.wait_whole(HEAL_LIMIT).await?;
        let id = {
            let led = led_by(cluster, node).await?;
            let ids = cluster.ids_by_shard(&format!("replay-{node}"), 1).await?;
            let of_led =
                ids.iter().find(|(shard, _)| led.contains(shard)).and_then(|(_, ids)| ids.first().cloned());
            of_led.context("no id in a shard of the node")?
        };
        let calls: Vec<MakeCall> = vec![
            {
                let id = id.clone();
                Box::new(move |http| {
                    http.post("/v1/users", &json!({"id": id, "v": 0})).key(&format!("post-{node}"))
                })
            },
            {
                let path = format!("/v1/users/{id}");
                Box::new(move |http| http.patch(&path, &json!({"v": 1})).key(&format!("patch-{node}")))
            },
            {
                let path = format!("/v1/replay/{id}/a");
                Box::new(move |http| {
                    http.put(&path, &json!({"v": 1})).header("if-none-match", "*").key(&format!("put-{node}"))
                })
            },
            {
                let path = format!("/v1/replay/{id}/b");
                Box::new(move |http| http.patch(&path, &json!({"v": 1})).key(&format!("missing-{node}")))
            },
            {
                let path = format!("/v1/partitions/{id}:transact");
                let ops = json!({"ops": [{"collection": "replay", "sort": "b", "put": {"v": 1}, "ifAbsent": true}]});
                Box::new(move |http| http.post(&path, &ops).key(&format!("transact-{node}")))
            },
            {
                let path = format!("/v1/replay/{id}/a");
                Box::new(move |http| http.delete(&path).key(&format!("delete-{node}")))
            },
        ];
        let mut first = Vec::new();
        for call in &calls {
            first.push(settled(&http, call).await?);
        }
        let statuses: Vec<u16> = first.iter().map(|answer| answer.status).collect();
        check_eq!(statuses, [201, 200, 201, 404, 200, 204]);
        let read: MakeCall = {
            let path = format!("/v1/users/{id}");
            Box::new(move |http| http.get(&path))
        };
        let before = settled(&http, &read).await?;
        check_eq!(before.status, 200, "{before}");
        // Whoever leads by now: an election since the shard was picked only changes who that is.
        let leader: u64 = before.need(headers::NODE)?.parse().context("the leader's id")?;
        cluster.node_mut(leader)?.kill()?;
        for (call, first) in calls.iter().zip(&first) {
            let again = settled(&http, call).await?;
            check_eq!(again.status, first.status, "{}", first.what);
            check_eq!(again.header("etag"), first.header("etag"), "ETag of {}", first.what);
            let texts = (String::from_utf8_lossy(&again.body), String::from_utf8_lossy(&first.body));
            check_eq!(texts.0, texts.1, "body of {}", first.what);
        }
        let after = settled(&http, &read).await?;
        check_eq!(after.status, 200, "{after}");
        check_eq!(after.etag()?, before.etag()?, "the document's version");
        ensure!(after.need(headers::NODE)? != before.need(headers::NODE)?, "a dead node answered");
        check_eq!(http.document(&format!("/v1/replay/{id}/a")).await?, None, "the deleted item");
        cluster.node_mut(leader)?.launch().await?;
    }
    Ok(())
}

async fn counters(cluster: &mut Cluster) -> anyhow::Result<()> {
    const CALLERS: u64 = 3;
    const EACH: u64 = 60;
    cluster.wait_whole(HEAL_LIMIT).await?;
    let http = cluster.http();
    let ids = cluster.ids_by_shard("counter", 1).await?;
    let paths: Vec<String> = ids.values().flatten().map(|id| format!("/v1/users/{id}")).collect();
    for path in &paths {
        http.put(path, &json!({"count": 0})).expect(201).await?;
    }
    let tasks = TaskTracker::new();
    let counted = Arc::new(AtomicUsize::new(0));
    let mut running = Vec::new();
    for path in &paths {
        for caller in 0..CALLERS {
            let (http, path, counted) = (http.clone(), path.clone(), Arc::clone(&counted));
            running.push(tasks.spawn(async move {
                let mut resends = 0;
                for number in 0..EACH {
                    resends +=
                        increment(&http, &path, &format!("c{caller}-{number}"), PROGRESS_LIMIT).await?;
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(resends)
            }));
        }
    }
    until(PROGRESS_LIMIT, "the first increments", || async {
        ensure!(counted.load(Ordering::Relaxed) >= paths.len(), "{counted:?} so far");
        Ok(())
    })
    .await?;
    let start = Instant::now();
    let (mut kills, mut met) = (0, 0);
    for node in [1, 2, 3, 1, 2, 3] {
        if running.iter().all(|task| task.is_finished()) && kills >= 2 {
            break;
        }
        cluster.node_mut(node)?.kill()?;
        kills += 1;
        // A caller that has not finished is within an increment.
        met += usize::from(running.iter().any(|task| !task.is_finished()));
        cluster.node_mut(node)?.launch().await?;
        cluster.wait_whole(HEAL_LIMIT).await?;
    }
    let mut resends = 0;
    for task in running {
        resends += task.await??;
    }
    println!(
        "        {kills} kills, {met} of them while increments were pending, {resends} resends in {:.1?}",
        start.elapsed()
    );
    ensure!(met > 0, "no increment was pending at a kill");
    for path in &paths {
        let count = http.document(path).await?.context("gone")?["count"].as_u64();
        check_eq!(count, Some(CALLERS * EACH), "{path}");
    }
    Ok(())
}

/// Questions that meet a node when it wakes, which led the catalog when it was stopped and was replaced meanwhile: it may not
/// tell what it knew then.
async fn stopped_meta_leader(cluster: &mut Cluster) -> anyhow::Result<()> {
    const QUESTIONS: usize = 8;
    let before = cluster.wait_whole(HEAL_LIMIT).await?;
    let leader = until(HEAL_LIMIT, "a leader of the catalog", || cluster.meta_leader()).await?;
    let node = cluster.node_mut(leader)?;
    let client = ClusterClient::connect(format!("http://{}", node.addr)).await?;
    let ask = |mut client: ClusterClient<_>| async move {
        client
            .status(wire::StatusRequest { forwarded: true })
            .await
            .map(|reply| reply.into_inner().not_leader)
    };
    ensure!(!ask(client.clone()).await?, "node {leader} leads the catalog");
    node.signal(Signal::SIGSTOP)?;
    let other = until(HEAL_LIMIT, "another leader of the catalog", || async {
        let status = cluster.status().await?;
        let stopped = status.nodes.iter().find(|node| node.id == leader).context("the node")?;
        ensure!(stopped.state != "up", "node {leader} is {}", stopped.state);
        Ok(())
    })
    .await;
    let tasks = TaskTracker::new();
    let asked: Vec<_> = (0..QUESTIONS).map(|_| tasks.spawn(ask(client.clone()))).collect();
    cluster.node_mut(leader)?.signal(Signal::SIGCONT)?;
    other?;
    let mut answered = 0;
    for answer in asked {
        // That it does not know is an answer, too.
        let Ok(not_leader) = answer.await? else { continue };
        ensure!(not_leader, "node {leader} answers as the leader it was");
        answered += 1;
    }
    ensure!(answered > 0, "node {leader} answered nothing");
    ensure!(cluster.wait_whole(HEAL_LIMIT).await?.epoch >= before.epoch, "the epoch went back");
    Ok(())
}

async fn kill_router(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.wait_whole(HEAL_LIMIT).await?;
    let load = load(cluster, "router").await?;
    for _ in 0..3 {
        cluster.router.kill()?;
        cluster.router.launch().await?;
        load.progress(20, PROGRESS_LIMIT).await?;
    }
    load.stop(300).await?;
    Ok(())
}

/// Half of the router's default `drain-delay`: the rest is for what the signal, and a call begun by then, take to arrive.
const DRAIN_DELAY: Duration = Duration::from_millis(500);

async fn stop_router(cluster: &mut Cluster) -> anyhow::Result<()> {
    let load = load(cluster, "router-stop").await?;
    let begin = load.history.now();
    let status = cluster.router.terminate().await?;
    check_eq!(status.code(), Some(0), "exit code");
    cluster.router.launch().await?;
    load.progress(20, PROGRESS_LIMIT).await?;
    // For the length of its drain delay the router answers whatever comes; only then it is gone.
    let broken: Vec<Operation> = load
        .history
        .failures(begin, load.history.now())
        .into_iter()
        .filter(|op| op.start < begin + DRAIN_DELAY)
        .collect();
    load.stop(300).await?;
    ensure!(broken.is_empty(), "not answered while the router drained: {}", tell(&broken));
    Ok(())
}
