//! Answers of a cluster that cannot do what it is asked now: too many requests (429), no leader (503, nothing applied), a
//! deadline that passes after the write was proposed (504, unknown), and what is there once it can again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use borough_proto::error::{Outcome, ProblemType as P};
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, HEAL_LIMIT, Options, Router};
use jepsen_tests::wait::until;
use serde_json::json;

/// Within this time every follower has asked its leader what is proven, twice over.
const PROOFS: Duration = Duration::from_millis(2500);
const TIMEOUT: (&str, &str) = ("borough-timeout-ms", "1500");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unavailable() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let mut cases = Cases::new();
    cases.run("a client beyond its rate is told when to come back", limited(&cluster)).await;
    cases.run("without a quorum: 503 changes nothing, 504 is unknown", no_quorum(&mut cluster)).await;
    if cases.failed() {
        println!("{}", cluster.logs(20));
    }
    cases.finish()
}

async fn limited(cluster: &Cluster) -> anyhow::Result<()> {
    let config = cluster.dir().join("router-limited.toml");
    std::fs::write(&config, "[rate-limit]\nper-second = 1\nburst = 1\n")
        .context("write the configuration")?;
    let seeds: Vec<String> = cluster.nodes.iter().map(|node| node.addr.clone()).collect();
    let args = ["--config", config.to_str().context("path")?];
    let router = Router::start_with(cluster.dir(), "router-limited", &seeds, &args).await?;
    for number in 0..60 {
        let path = format!("/v1/users/limited-{number}");
        let answer = router.http.put(&path, &json!({})).send().await?;
        // A slow machine gives the place back before the next request: then once more.
        if answer.status == 201 {
            continue;
        }
        answer.refused_as(&[P::TooManyRequests])?;
        for header in ["retry-after", "ratelimit", "ratelimit-policy"] {
            answer.need(header)?;
        }
        check_eq!(cluster.http().document(&path).await?, None, "it was refused");
        return Ok(());
    }
    anyhow::bail!("60 requests at one a second, and none was refused")
}

async fn no_quorum(cluster: &mut Cluster) -> anyhow::Result<()> {
    let http = cluster.http();
    let ids = cluster.ids_by_shard("quorum", 2).await?;
    // Every node leads something.
    let status = until(HEAL_LIMIT, "the leaders to be spread", || async {
        let status = cluster.status().await?;
        for node in &status.nodes {
            ensure!(
                status.shards.iter().any(|shard| shard.leader == Some(node.id)),
                "{} leads nothing",
                node.id
            );
        }
        Ok(status)
    })
    .await?;
    // Who leads the catalog is who can tell how the others are.
    let survivor = until(HEAL_LIMIT, "a leader of the catalog", || cluster.meta_leader()).await?;
    let led = |own: bool| {
        let shards = status.shards.iter().filter(move |shard| (shard.leader == Some(survivor)) == own);
        shards
            .filter_map(|shard| ids.get(&shard.id))
            .map(|of_shard| of_shard.first().cloned())
            .collect::<Option<Vec<_>>>()
    };
    let (proposed, refused) = (led(true).context("ids")?, led(false).context("ids")?);
    let path = |id: &String| format!("/v1/users/{id}");
    // Something to read, and the time that every replica needs to prove that it has it.
    let standing = cluster.ids_by_shard("standing", 1).await?.into_values().flatten().collect::<Vec<_>>();
    for id in &standing {
        http.put(&path(id), &json!({"n": 0})).expect(201).await?;
    }
    let written = Instant::now();
    until(HEAL_LIMIT, "replicas that know how stale they are", || async {
        ensure!(written.elapsed() > PROOFS, "not yet");
        Ok(())
    })
    .await?;
    let killed = Instant::now();
    for node in status.nodes.iter().filter(|node| node.id != survivor) {
        cluster.node_mut(node.id)?.kill()?;
    }

    // Proposed by a leader that has just lost its followers: nobody can say.
    let writes = proposed.iter().map(|id| {
        let call = http.put(&path(id), &json!({"n": 1})).key(&format!("key-{id}")).headers(&[TIMEOUT]);
        async move { call.send().await }
    });
    let mut unknown = 0;
    for answer in futures::future::join_all(writes.collect::<Vec<_>>()).await {
        let answer = answer?;
        if answer.status == 504 {
            let problem = answer.problem(504)?;
            check_eq!(problem.outcome, Outcome::Unknown, "{answer}");
            unknown += 1;
        } else {
            // The leader may notice first that it is alone.
            answer.refused_as(&[P::Unavailable])?;
        }
    }
    ensure!(unknown > 0, "no write was proposed and left unanswered");

    // Nobody leads the shards of the dead.
    for id in &refused {
        until(HEAL_LIMIT, "the loss to be noticed", || async {
            http.get(&path(id)).headers(&[TIMEOUT]).expect(503).await
        })
        .await?;
        let call = http.put(&path(id), &json!({"n": 1})).headers(&[TIMEOUT]);
        call.refused(P::Unavailable).await.with_context(|| id.clone())?;
    }

    // Whoever is left still reads, as stale as it is and no staler than allowed.
    for id in &standing {
        let reading = http.get(&path(id)).headers(&[TIMEOUT, ("cache-control", "max-stale=3600")]);
        let found = reading.expect(200).await.with_context(|| id.clone())?;
        check_eq!(found.json()?.get("n"), Some(&json!(0)));
        until(HEAL_LIMIT, "the replica to be too stale", || async {
            let reading = http.get(&path(id)).headers(&[TIMEOUT, ("cache-control", "max-stale=1")]);
            reading.refused(P::Unavailable).await.map(|_| ())
        })
        .await?;
    }
    ensure!(killed.elapsed() > Duration::from_secs(1), "refused although it cannot have been that stale");
    // Long after it has found out that no quorum answers.
    until(HEAL_LIMIT, "the status to tell who is silent", || async {
        let status = cluster.status().await?;
        let silent = status.nodes.iter().filter(|node| node.id != survivor && node.state != "up").count();
        ensure!(silent == 2, "{silent} nodes are silent");
        Ok(())
    })
    .await?;

    for node in status.nodes.iter().filter(|node| node.id != survivor) {
        cluster.node_mut(node.id)?.launch().await?;
    }
    cluster.wait_whole(HEAL_LIMIT).await?;
    for id in &refused {
        check_eq!(http.document(&path(id)).await?, None, "{id} was refused");
    }
    for id in &proposed {
        let answer = http.put(&path(id), &json!({"n": 1})).key(&format!("key-{id}")).expect(201).await?;
        let found = http.get(&path(id)).expect(200).await?;
        check_eq!(found.etag()?, answer.etag()?, "{id} was written once, then or now");
    }
    Ok(())
}
