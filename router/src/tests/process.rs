//! Health, metrics, admin, limits, start and stop.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use borough_proto::wire;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::World;
use super::fake::FakeNode;
use crate::config::{Config, LimitsConfig, RateLimitConfig};
use crate::serve::RunError;

#[tokio::test]
async fn health_follows_the_cluster_and_the_drain() {
    let world = World::new().await;
    assert_eq!(world.get("/livez").await.status, 200);
    world.get("/v1/users/a").await;
    assert_eq!(world.get("/readyz").await.status, 200);
    world.app.draining.store(true, Ordering::Relaxed);
    assert_eq!(world.get("/readyz").await.status, 503);
    assert_eq!(world.get("/livez").await.status, 200);
}

#[tokio::test]
async fn the_control_plane_lists_collections_and_passes_the_status_on() {
    let world = World::new().await;
    assert_eq!(world.get("/admin/v1/cluster").await.body, "{\"clusterId\":\"fake\",\"epoch\":1}");
    let list = world.get("/admin/v1/collections").await.json();
    assert_eq!(list["items"][0]["name"], "posts");
    assert_eq!(world.get("/admin/v1/collections/users").await.json()["sortKey"], false);
    assert_eq!(world.get("/admin/v1/collections/nope").await.status, 404);
    assert_eq!(world.put("/admin/v1/collections/users", "{\"sortKey\":true}").await.status, 409);
    assert_eq!(world.put("/admin/v1/collections/Bad", "{}").await.status, 400);
    for body in ["{\"sortkey\":true}", "[]", "[true,null,false]", "null", "\"x\""] {
        assert_eq!(world.put("/admin/v1/collections/x", body).await.status, 400, "{body}");
    }
    assert_eq!(world.get("/admin/v1/nodes").await.status, 404);
}

#[tokio::test]
async fn operations_are_the_meta_leaders_answer() {
    let world = World::new().await;
    let post = async |path: &str| world.send("POST", path, &[], "").await;
    let plan = post("/admin/v1/rebalances?validateOnly=true").await;
    assert_eq!((plan.status, &plan.body[..]), (200, &b"{\"plan\":true}"[..]));
    for path in ["rebalances", "nodes/4:drain", "nodes/4:remove"] {
        let started = post(&format!("/admin/v1/{path}")).await;
        assert_eq!((started.status, started.header("location")), (202, "/admin/v1/operations/7"), "{path}");
        assert_eq!(started.json()["id"], "7", "{path}");
    }
    // Nothing to wait for.
    let undrained = post("/admin/v1/nodes/4:undrain").await;
    assert_eq!((undrained.status, undrained.body.len()), (204, 0));
    assert_eq!(world.get("/admin/v1/operations/7").await.json()["id"], "7");
    assert_eq!(post("/admin/v1/operations/7:pause").await.json()["id"], "7");
    let unknown = world.get("/admin/v1/operations/8").await;
    assert_eq!((unknown.status, unknown.json()["outcome"].as_str()), (404, Some("not-applied")));
    let refused = post("/admin/v1/nodes/1:drain").await;
    assert_eq!((refused.status, refused.json()["detail"].as_str()), (409, Some("too few nodes")));
}

#[tokio::test]
async fn requests_beyond_the_bound_are_refused_as_not_applied() {
    let limits = LimitsConfig { requests_max: 0, ..LimitsConfig::default() };
    let world = World::with(Config { limits, ..Config::default() }).await;
    let reply = world.put("/v1/users/a", "{}").await;
    assert_eq!((reply.status, reply.json()["outcome"].as_str()), (503, Some("not-applied")));
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(world.get("/livez").await.status, 200);
}

/// A router that runs: where it listens, and how it ends.
async fn start(
    tasks: &TaskTracker,
    config: Config,
    shutdown: &CancellationToken,
) -> (SocketAddr, JoinHandle<Result<(), RunError>>) {
    let (sender, bound) = oneshot::channel();
    let run = tasks.spawn(crate::run_with(config, shutdown.clone(), |addr| sender.send(addr).unwrap()));
    (bound.await.unwrap(), run)
}

/// One request over a connection of its own.
async fn exchange(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Whose connection was taken before the stop is answered, whether the router has accepted it by then or only the system has.
#[tokio::test]
async fn who_has_just_connected_is_answered_at_stop() {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let (_node, addr) = FakeNode::start(&tasks).await;
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        nodes: vec![addr],
        drain_delay: Duration::ZERO,
        ..Config::default()
    };
    let (addr, run) = start(&tasks, config, &shutdown).await;
    exchange(addr, "/v1/users/a").await;
    let mut streams = Vec::new();
    for n in 0..10 {
        streams.push(TcpStream::connect(addr).await.unwrap());
        if n == 5 {
            // So that some are accepted, and others wait for it.
            tokio::task::yield_now().await;
        }
    }
    shutdown.cancel();
    for mut stream in streams {
        stream.write_all(b"GET /v1/users/a HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 404") && answer.contains("\r\nconnection: close\r\n"),
            "{answer:?}"
        );
    }
    run.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_router_serves_its_docs_limits_its_clients_and_stops() {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let (_node, addr) = FakeNode::start(&tasks).await;
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        nodes: vec![addr],
        rate_limit: RateLimitConfig { per_second: 1, burst: 1, trust_forwarded: false },
        ..Config::default()
    };
    let (addr, run) = start(&tasks, config, &shutdown).await;
    let first = exchange(addr, "/v1/users/a").await;
    assert!(first.starts_with("HTTP/1.1 404") && first.contains("ratelimit-policy:"), "{first}");
    let mut limited = None;
    for _ in 0..20 {
        let next = exchange(addr, "/v1/users/a").await;
        if next.starts_with("HTTP/1.1 429") {
            limited = Some(next);
            break;
        }
        // A second or more has passed since the request before, so it was let through as that was.
        assert!(next.starts_with("HTTP/1.1 404"), "{next}");
    }
    let limited = limited.unwrap();
    assert!(limited.contains("retry-after: 1"), "{limited}");
    for path in
        ["/openapi.json", "/docs", "/docs/", "/docs/nope.js", "/livez", "/readyz", "/metrics", "/nope"]
    {
        let answer = exchange(addr, path).await;
        assert!(answer.contains("\r\nx-request-id: "), "{path}: {answer}");
        let failed = answer.starts_with("HTTP/1.1 4");
        assert_eq!(
            answer.contains("\r\ncontent-type: application/problem+json\r\n"),
            failed,
            "{path}: {answer}"
        );
    }
    assert!(exchange(addr, "/openapi.json").await.contains("\"openapi\":\"3.1.0\""));
    let docs = exchange(addr, "/docs/").await;
    assert!(docs.contains("swagger-ui") && !docs.contains("https://"), "{docs}");
    assert!(exchange(addr, "/metrics").await.contains("borough_router_requests_total"));
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), run).await.unwrap().unwrap().unwrap();
}

/// What comes back for `sent`, until the router closes.
async fn raw(addr: SocketAddr, sent: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The status codes of answers one behind the other, each of which must be complete.
fn statuses(mut text: &str) -> Vec<u16> {
    let mut found = Vec::new();
    while !text.is_empty() {
        let (head, rest) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status: u16 =
            head.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("{head}"))[..3].parse().unwrap();
        let field = |name: &str| {
            let mut lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
            lines.find(|line| line.0 == name).map(|line| line.1)
        };
        for name in ["x-request-id", "borough-shard", "borough-node", "date"] {
            assert!(field(name).is_some_and(|value| !value.is_empty()), "{name}: {head}");
        }
        let length = field("content-length").map_or(0, |length| length.parse::<usize>().unwrap());
        let (body, rest) = rest.split_at(length);
        if status >= 400 {
            assert_eq!(field("content-type"), Some("application/problem+json"), "{head}");
            let problem: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!((&problem["status"], &problem["outcome"]), (&status.into(), &"not-applied".into()));
            assert!(
                problem["title"].is_string() && problem["type"].is_string() && problem["detail"].is_string()
            );
        }
        found.push(status);
        text = rest;
    }
    found
}

#[tokio::test]
async fn heads_that_are_no_http_or_too_large_are_problems_too() {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let (_node, addr) = FakeNode::start(&tasks).await;
    let config = Config { listen: "127.0.0.1:0".parse().unwrap(), nodes: vec![addr], ..Config::default() };
    let (addr, run) = start(&tasks, config, &shutdown).await;
    let good = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    let put = "PUT /v1/users/a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{\"a\":\"b\"}";
    let head = "HEAD /v1/users/nobody HTTP/1.1\r\nhost: x\r\n\r\n";
    let long = format!("GET /v1/users/{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(70_000));
    let many = format!("GET /livez HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(200));
    let large = format!(
        "GET /livez HTTP/1.1\r\nhost: x\r\n{}\r\n",
        format!("a: {}\r\n", "b".repeat(8000)).repeat(90)
    );
    for (bad, status) in [
        ("no http at all\r\n\r\n", 400),
        ("GET /livez HTTP/1.1\r\nhost : x\r\n\r\n", 400),
        ("GET /livez HTTP/9.9\r\nhost: x\r\n\r\n", 400),
        ("PUT /v1/users/a HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (long.as_str(), 414),
        (many.as_str(), 431),
        (large.as_str(), 431),
    ] {
        let shown = &bad[..bad.len().min(60)];
        assert_eq!(statuses(&raw(addr, bad).await), [status], "{shown}");
        assert_eq!(statuses(&raw(addr, &format!("{good}{bad}")).await), [200, status], "{shown}");
        let answers = raw(addr, &format!("{}{put}{bad}", good.repeat(20))).await;
        let answers = statuses(&answers);
        assert!(
            matches!(answers.as_slice(), [.., 200 | 201, last] if *last == status),
            "{shown}: {answers:?}"
        );
        assert_eq!(answers.len(), 22, "{shown}");
    }
    // An answer to HEAD has a length and no body.
    let answers = raw(addr, &format!("{head}no http at all\r\n\r\n")).await;
    let (first, last) = answers.split_once("\r\n\r\n").unwrap();
    assert!(first.starts_with("HTTP/1.1 404 ") && first.contains("borough-shard: "), "{answers}");
    assert_eq!(statuses(last), [400]);

    // A body that is announced as too large is refused before it is asked for.
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let asks =
        "PUT /v1/users/a HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n";
    stream.write_all(asks.as_bytes()).await.unwrap();
    let mut first = vec![0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&first), "HTTP/1.1 413");
    drop(stream);
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), run).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_refused_upload_of_any_size_gets_to_read_its_answer() {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let (_node, addr) = FakeNode::start(&tasks).await;
    let config = Config { listen: "127.0.0.1:0".parse().unwrap(), nodes: vec![addr], ..Config::default() };
    let (addr, run) = start(&tasks, config, &shutdown).await;
    // More than is read of a refused body before it is answered, and more than the kernel's buffers hold.
    let upload = vec![b' '; 48 << 20];
    for (path, kind, status) in [
        ("/v1/users/a", "application/json", "413"),
        ("/v1/users/a", "text/plain", "415"),
        ("/v1/nope/a", "application/json", "404"),
    ] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head = format!(
            "PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            upload.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&upload).await.unwrap_or_else(|error| panic!("{path} {kind}: {error}"));
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {kind}: {answer}");
    }
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), run).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_that_goes_on_sending_does_not_hold_up_the_stop() {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let (_node, addr) = FakeNode::start(&tasks).await;
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        nodes: vec![addr],
        drain_delay: Duration::ZERO,
        ..Config::default()
    };
    let (sender, bound) = oneshot::channel();
    let run = tasks.spawn(crate::run_with(config, shutdown.clone(), |addr| sender.send(addr).unwrap()));
    let (mut answers, mut uploads) = TcpStream::connect(bound.await.unwrap()).await.unwrap().into_split();
    let head = "PUT /v1/users/a HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n";
    uploads.write_all(head.as_bytes()).await.unwrap();
    // Until the router lets go of the connection.
    tasks.spawn(async move { while uploads.write_all(&[b' '; 1024]).await.is_ok() {} });
    let mut answer = String::new();
    answers.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    shutdown.cancel();
    // Half of the drain timeout, and far less than the peer could send for.
    tokio::time::timeout(Duration::from_secs(10), run).await.unwrap().unwrap().unwrap();
}

/// `name` as a collection of the fake's catalog, at the next epoch.
fn push_collection(world: &World, name: &str) {
    world.node.map.send_modify(|map| {
        map.epoch += 1;
        let id = u32::try_from(map.epoch).unwrap() + 10;
        map.collections.push(wire::CollectionInfo { id, name: name.to_owned(), ..Default::default() });
    });
}

#[tokio::test]
async fn a_collection_that_another_router_made_is_found_before_the_push_arrives() {
    let world = World::new().await;
    assert_eq!(world.get("/v1/users/a").await.json()["type"], "urn:borough:problem:document-not-found");
    assert_eq!(world.node.store.lock().looks, 0, "what is known costs nothing");
    world.node.store.lock().ahead = 2;
    let put = world.put("/v1/new/a", "{}");
    let push = async {
        while world.node.store.lock().looks == 0 {
            tokio::task::yield_now().await;
        }
        push_collection(&world, "new");
    };
    let (put, ()) = tokio::join!(put, push);
    assert_eq!(put.status, 201, "{put:?}");
}

#[tokio::test]
async fn unknown_collections_share_a_look_at_the_catalog() {
    let world = World::new().await;
    let asked = futures::future::join_all((0..60).map(|number| {
        let world = &world;
        async move { world.get(&format!("/v1/unknown{number}/a")).await }
    }));
    for reply in asked.await {
        assert_eq!(reply.json()["type"], "urn:borough:problem:collection-not-found");
    }
    let looks = world.node.store.lock().looks;
    assert!((1..=3).contains(&looks), "{looks} looks");
}

#[tokio::test]
async fn a_collection_that_cannot_be_confirmed_is_503_not_404() {
    let world = World::new().await;
    world.node.store.lock().ahead = 9;
    let reply = world.send("GET", "/v1/new/a", &[("borough-timeout-ms", "300")], "").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, "1"), "{reply:?}");
    let ops = r#"{"ops":[{"collection":"new","put":{}}]}"#;
    let reply = world.send("POST", "/v1/partitions/a:transact", &[("borough-timeout-ms", "300")], ops).await;
    assert_eq!((reply.status, reply.json()["op"].as_u64()), (503, Some(0)), "{reply:?}");
}

#[tokio::test]
async fn a_connection_speaks_http_1_names_one_host_and_is_not_waited_for_without_end() {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let (_node, addr) = FakeNode::start(&tasks).await;
    let idle_max = Duration::from_millis(300);
    let limits = LimitsConfig { connection_idle_max: idle_max, ..LimitsConfig::default() };
    let listen = "127.0.0.1:0".parse().unwrap();
    let config = Config { listen, nodes: vec![addr], limits, ..Config::default() };
    let (addr, run) = start(&tasks, config, &shutdown).await;
    let good = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";

    for (head, status) in [
        ("GET /livez HTTP/1.1\r\n\r\n", 400),
        ("GET /docs/ HTTP/1.1\r\n\r\n", 400),
        ("GET /livez HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        ("GET /livez HTTP/1.1\r\nhost: a b/c\r\n\r\n", 400),
        ("GET /livez HTTP/1.1\r\nhost: user@x\r\n\r\n", 400),
        ("GET /livez HTTP/1.1\r\nhost: [::1]:80\r\n\r\n", 200),
        ("GET /livez HTTP/1.1\r\nhost:\r\n\r\n", 200),
        (good, 200),
    ] {
        assert_eq!(statuses(&raw(addr, head).await), [status], "{head}");
    }
    // Its side is closed before the answer can be there.
    let asked = "GET /v1/users/nobody HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(statuses(&raw(addr, &asked.repeat(3)).await), [404, 404, 404]);
    let old = raw(addr, "GET /livez HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 "), "HTTP/1.0 knew no Host: {old}");

    // The preface of HTTP/2 is not answered as if it had been understood.
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(preface.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset says the same as an end.
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(String::from_utf8_lossy(&answer), "");

    // Silent from the beginning, in the middle of a head, and after a request.
    for (sent, answered) in [("", 0), ("GET /livez HTTP/1.1\r\nhost: ", 0), (good, 1)] {
        let (mut stream, begun) = (TcpStream::connect(addr).await.unwrap(), std::time::Instant::now());
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut text = String::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut text)).await;
        read.unwrap_or_else(|_| panic!("kept open after {sent:?}")).unwrap();
        assert_eq!(statuses(&text).len(), answered, "{text}");
        assert!(begun.elapsed() >= idle_max, "{sent:?}");
    }
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), run).await.unwrap().unwrap().unwrap();
}
