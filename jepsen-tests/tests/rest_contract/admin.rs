//! The control plane's reading side: status document, health, metrics, API description.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use borough_proto::error::ProblemType as P;
use borough_proto::key::ranges;
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::Cluster;
use jepsen_tests::http::{Http, Method};
use serde_json::Value;

pub async fn run(cases: &mut Cases, cluster: &Cluster) {
    let http = &cluster.http();
    cases.run("the status document has every field and agrees with itself", status(cluster)).await;
    cases.run("livez, readyz and metrics of router and nodes", health(cluster)).await;
    cases.run("openapi.json is 3.1 and names every path; docs are a page", openapi(http)).await;
}

async fn status(cluster: &Cluster) -> anyhow::Result<()> {
    let raw = cluster.http().get("/admin/v1/cluster").expect(200).await?.json()?;
    for field in ["clusterId", "epoch", "replicationFactor", "nodes", "shards", "operations"] {
        ensure!(!raw[field].is_null(), "{field} is missing");
    }
    let has = |item: &Value, fields: &[&str]| -> anyhow::Result<()> {
        for field in fields {
            ensure!(item.get(field).is_some(), "{field} is missing in {item}");
        }
        Ok(())
    };
    let node_fields = [
        "id",
        "addr",
        "zone",
        "version",
        "state",
        "replicas",
        "leaders",
        "bytes",
        "keys",
        "diskFreeBytes",
        "cache",
    ];
    let shard_fields = [
        "id",
        "range",
        "epoch",
        "leader",
        "replicas",
        "learners",
        "state",
        "keys",
        "bytes",
        "appliedIndex",
        "readsPerSecond",
        "writesPerSecond",
    ];
    for node in raw["nodes"].as_array().context("nodes")? {
        has(node, &node_fields)?;
        has(&node["cache"], &["bytes", "hitRatio"])?;
    }
    for shard in raw["shards"].as_array().context("shards")? {
        has(shard, &shard_fields)?;
    }
    let status = cluster.status().await?;
    let identities: Vec<_> = cluster.nodes.iter().map(|node| node.identity()).collect::<Result<_, _>>()?;
    ensure!(identities.iter().all(|identity| identity.cluster_id == status.cluster_id), "another cluster id");
    let ids: BTreeSet<u64> = identities.iter().map(|identity| identity.node).collect();
    check_eq!(status.nodes.iter().map(|node| node.id).collect::<BTreeSet<_>>(), ids, "node ids");
    check_eq!(status.replication_factor, 3);
    let expected: Vec<[String; 2]> = ranges(8)
        .into_iter()
        .map(|(first, last)| [format!("0x{first:016x}"), format!("0x{last:016x}")])
        .collect();
    check_eq!(status.shards.iter().map(|shard| shard.range.clone()).collect::<Vec<_>>(), expected, "ranges");
    for node in &status.nodes {
        let own =
            cluster.nodes.iter().find(|own| own.identity().is_ok_and(|identity| identity.node == node.id));
        check_eq!(Some(node.addr.as_str()), own.map(|own| own.addr.as_str()), "address of node {}", node.id);
        ensure!(!node.version.is_empty() && node.disk_free_bytes > 0, "{node:?}");
        let replicas = status.shards.iter().filter(|shard| shard.replicas.contains(&node.id)).count();
        check_eq!(node.replicas as usize, replicas, "replicas of node {}", node.id);
        let leaders = status.shards.iter().filter(|shard| shard.leader == Some(node.id)).count();
        check_eq!(node.leaders as usize, leaders, "leaders of node {}", node.id);
    }
    let keys: u64 = status.shards.iter().map(|shard| shard.keys).sum();
    let bytes: u64 = status.shards.iter().map(|shard| shard.bytes).sum();
    ensure!(keys > 100 && bytes > 10_000, "{keys} keys, {bytes} bytes");
    Ok(())
}

async fn health(cluster: &Cluster) -> anyhow::Result<()> {
    let mut servers = vec![("router".to_owned(), cluster.http())];
    for node in &cluster.nodes {
        servers.push((node.addr.clone(), Http::new(&format!("http://{}", node.admin))?));
    }
    for (name, http) in servers {
        for path in ["/livez", "/readyz"] {
            http.get(path).expect(200).await.with_context(|| name.clone())?;
        }
        let metrics = http.get("/metrics").expect(200).await.with_context(|| name.clone())?;
        let text = String::from_utf8(metrics.body)?;
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
        ensure!(samples >= 5, "{name}: only {samples} samples");
        ensure!(text.contains("# TYPE borough_"), "{name}: no metric is called borough_…");
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let value = line.rsplit(' ').next().unwrap_or_default();
            ensure!(value.parse::<f64>().is_ok(), "{name}: {line:?} is no sample");
        }
    }
    Ok(())
}

async fn openapi(http: &Http) -> anyhow::Result<()> {
    let api = http.get("/openapi.json").expect(200).await?.json()?;
    let version = api["openapi"].as_str().unwrap_or_default();
    ensure!(version.starts_with("3.1"), "openapi {version:?}");
    let paths = api["paths"].as_object().context("paths")?;
    // Names of parameters are free.
    let plain = |path: &str| -> String {
        let mut depth = 0;
        path.chars()
            .filter(|&c| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                depth == 0 || c == '{'
            })
            .collect()
    };
    let named: BTreeSet<String> = paths.keys().map(|path| plain(path)).collect();
    for path in [
        "/v1/{c}",
        "/v1/{c}/{id}",
        "/v1/{c}/{id}/{sort}",
        "/v1/{c}:batchGet",
        "/v1/{c}:batchWrite",
        "/v1/partitions/{id}:transact",
        "/admin/v1/cluster",
        "/admin/v1/collections",
        "/admin/v1/collections/{n}",
        "/admin/v1/rebalances",
        "/admin/v1/operations",
        "/admin/v1/operations/{id}",
        "/admin/v1/operations/{id}:pause",
        "/admin/v1/operations/{id}:resume",
        "/admin/v1/operations/{id}:cancel",
        "/admin/v1/nodes/{id}:drain",
        "/admin/v1/nodes/{id}:undrain",
        "/admin/v1/nodes/{id}:remove",
    ] {
        ensure!(named.contains(&plain(path)), "{path} is not described; there are {:?}", paths.keys());
    }
    // What is described is answered, and what is not described is not there.
    http.call(Method::POST, "/openapi.json").refused(P::MethodNotAllowed).await?;
    for path in ["/admin/v1/nodes", "/admin/v1/operation", "/docs/nothing.js", "/v1", "/"] {
        http.get(path).refused(P::NotFound).await?;
    }
    let docs = http.get("/docs").send().await?;
    let docs = match docs.header("location") {
        Some(to) if matches!(docs.status, 301..=308) => http.get(to).expect(200).await?,
        _ => docs,
    };
    ensure!(docs.status == 200 && docs.need("content-type")?.starts_with("text/html"), "{docs}");
    Ok(())
}
