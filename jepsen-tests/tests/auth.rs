//! A router that asks for tokens, beside one that does not: who is refused, with what, and that nothing is changed.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use borough_client::{Client, Error, Outcome};
use borough_proto::error::{Problem, ProblemType as P};
use jepsen_tests::cases::Cases;
use jepsen_tests::check_eq;
use jepsen_tests::cluster::{Cluster, Options, Router};
use jepsen_tests::http::{Call, Http, Method};
use jepsen_tests::process::run;
use jepsen_tests::wait::until;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

const READER: &str = "reader-token-for-tests";
const WRITER: &str = "writer-token-for-tests";
const ADMIN: &str = "admin-token-for-tests";
/// Reads and writes, in `users` and `orders` only.
const SHOP: &str = "shop-token-for-tests";

/// The digests are what `sha256sum` prints of the tokens above.
const CONFIG: &str = r#"
[rate-limit]
per-second = 5000

[[auth.tokens]]
name = "reader"
sha256 = "4bdec4b655cc2339a3f8ad7bd23d16ed053ac3331fdf01a374fc20394ceec230"
rights = ["read"]

[[auth.tokens]]
name = "writer"
sha256 = "3ec690a55090d1c514fd22864f0fd56dc7b81c9f02b0c00c5845220e369c5b5a"
rights = ["write"]

[[auth.tokens]]
name = "admin"
sha256 = "b98c9b93bcac5ddbf030a130b46430d0cac4e591c55b0c65072eebb9c4739985"
rights = ["read", "write", "admin"]

[[auth.tokens]]
name = "shop"
sha256 = "8380405dcf73c64fd5fef342d6d1418b5391608deabcf786c911d0ce96a5a9c2"
rights = ["read", "write"]
collections = ["users", "orders"]
"#;

const MISSING: &str = "Bearer realm=\"borough\"";
const INVALID: &str = "Bearer realm=\"borough\", error=\"invalid_token\"";

/// Both routers of a cluster.
struct Doors {
    /// Asks nobody: what the test looks behind the other's back with.
    open: Http,
    /// Asks for tokens.
    closed: Http,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { nodes: 1, shards: 4, replicas: 1, ..Options::default() }).await?;
    let config = cluster.dir().join("router-auth.toml");
    std::fs::write(&config, CONFIG).context("write the configuration")?;
    let seeds: Vec<String> = cluster.nodes.iter().map(|node| node.addr.clone()).collect();
    let args = ["--config", config.to_str().context("path")?];
    let mut router = Router::start_with(cluster.dir(), "router-auth", &seeds, &args).await?;
    let doors = Doors { open: cluster.http(), closed: router.http.clone() };
    doors.open.create_collection("orders", &json!({})).await?;
    doors.open.create_collection("posts", &json!({"sortKey": true})).await?;
    doors.open.put("/v1/users/kept", &json!({"n": 1})).expect(201).await?;
    doors.open.put("/v1/posts/kept/1", &json!({"n": 1})).expect(201).await?;
    until(LIMIT, "the router to be ready", || async { doors.closed.get("/readyz").expect(200).await })
        .await?;

    let mut cases = Cases::new();
    cases.run("missing, malformed and unknown tokens are 401", no_token(&doors)).await;
    cases.run("a right that the token lacks is 403", lacking(&doors)).await;
    cases.run("a confined token stays in its collections", confined(&doors)).await;
    cases.run("the control plane needs the right to administer", admin(&doors)).await;
    cases.run("a refused upload gets its answer before its body is read", upload(&doors)).await;
    cases.run("health, metrics and the description are open", open_pages(&doors)).await;
    cases.run("the client's errors and the command line", callers(&doors)).await;
    cases
        .run("nothing that was refused has changed anything", async {
            check_eq!(doors.open.document("/v1/users/kept").await?, Some(json!({"id": "kept", "n": 1})));
            check_eq!(doors.open.document("/v1/users/refused").await?, None);
            let list = doors.open.get("/v1/posts").expect(200).await?.json()?;
            check_eq!(list["items"].as_array().map(Vec::len), Some(1));
            doors.open.get("/admin/v1/collections/refused").refused(P::CollectionNotFound).await?;
            Ok(())
        })
        .await;
    cases
        .run("every answer has a request id, every error is a problem", async {
            let faults = doors.closed.faults();
            ensure!(faults.is_empty(), "{}", faults.join("\n"));
            Ok(())
        })
        .await;
    cases.run("no log and no page shows a token", no_leak(&doors, &cluster)).await;
    router.terminate().await?;
    if cases.failed() {
        println!("{}", cluster.logs(10));
    }
    cases.finish()
}

/// Every kind of call, with the right that it needs.
fn calls(http: &Http) -> Vec<(&'static str, Call<'_>)> {
    let put = json!({"n": 2});
    vec![
        ("read", http.get("/v1/users/kept")),
        ("read", http.call(Method::HEAD, "/v1/users/kept")),
        ("read", http.get("/v1/users")),
        ("read", http.get("/v1/posts/kept")),
        ("read", http.get("/v1/posts/kept/1")),
        ("read", http.post("/v1/users:batchGet", &json!({"ids": ["kept"]}))),
        ("write", http.put("/v1/users/kept", &put)),
        ("write", http.put("/v1/users/refused", &put)),
        ("write", http.patch("/v1/users/kept", &put)),
        ("write", http.delete("/v1/users/kept")),
        ("write", http.post("/v1/users", &json!({"id": "refused"}))),
        ("write", http.put("/v1/posts/kept/2", &put)),
        ("write", http.delete("/v1/posts/kept/1")),
        ("write", http.post("/v1/users:batchWrite", &json!({"writes": [{"delete": {"id": "kept"}}]}))),
        (
            "write",
            http.post("/v1/partitions/kept:transact", &json!({"ops": [{"collection": "users", "put": put}]})),
        ),
        ("admin", http.get("/admin/v1/cluster")),
        ("admin", http.get("/admin/v1/collections")),
        ("admin", http.get("/admin/v1/collections/users")),
        ("admin", http.put("/admin/v1/collections/refused", &json!({}))),
        ("admin", http.delete("/admin/v1/collections/posts")),
    ]
}

/// The call must be refused as `kind` with this challenge.
async fn refused(call: Call<'_>, kind: P, challenge: &str) -> anyhow::Result<Option<Problem>> {
    let answer = call.send().await?;
    check_eq!(answer.status, kind.status(), "{answer}");
    check_eq!(answer.need("www-authenticate")?, challenge, "{answer}");
    ensure!(answer.header("retry-after").is_none(), "a retry does not help: {answer}");
    if answer.what.starts_with("HEAD") {
        return Ok(None);
    }
    answer.refused_as(&[kind]).map(Some)
}

fn insufficient(right: &str) -> String {
    format!("Bearer realm=\"borough\", error=\"insufficient_scope\", scope=\"{right}\"")
}

fn with<'a>(call: Call<'a>, token: &str) -> Call<'a> {
    call.header("authorization", &format!("Bearer {token}"))
}

async fn no_token(doors: &Doors) -> anyhow::Result<()> {
    let good = format!("Bearer {ADMIN}");
    let twice = format!("{good}, {good}");
    let cut = &good[..good.len() - 1];
    let table: &[(&[(&str, &str)], &str)] = &[
        (&[], MISSING),
        (&[("authorization", "Basic YTpi")], MISSING),
        (&[("authorization", ADMIN)], MISSING),
        (&[("authorization", "Bearer")], INVALID),
        (&[("authorization", "Bearer a b")], INVALID),
        (&[("authorization", &twice)], INVALID),
        (&[("authorization", &good), ("authorization", &good)], INVALID),
        (&[("authorization", cut)], INVALID),
        (
            &[("authorization", "Bearer b98c9b93bcac5ddbf030a130b46430d0cac4e591c55b0c65072eebb9c4739985")],
            INVALID,
        ),
    ];
    for (headers, challenge) in table {
        for (_, call) in calls(&doors.closed) {
            refused(call.headers(headers), P::Unauthorized, challenge).await?;
        }
        refused(doors.closed.get("/nope").headers(headers), P::Unauthorized, challenge).await?;
    }
    let answer = doors.closed.get("/v1/users/kept").header("authorization", &format!("bEARER {READER}"));
    answer.expect(200).await?;
    Ok(())
}

async fn lacking(doors: &Doors) -> anyhow::Result<()> {
    for (token, has) in [(READER, "read"), (WRITER, "write"), (SHOP, "read write")] {
        for (right, call) in calls(&doors.closed) {
            if !has.contains(right) {
                refused(with(call, token), P::Forbidden, &insufficient(right)).await?;
            }
        }
    }
    with(doors.closed.get("/v1/users/kept"), READER).expect(200).await?;
    with(doors.closed.put("/v1/users/written", &json!({"n": 1})), WRITER).expect(201).await?;
    let patched = with(doors.closed.patch("/v1/users/written", &json!({"m": 2})), WRITER).expect(200).await?;
    ensure!(patched.body.is_empty() && !patched.etag()?.is_empty(), "shown to who may not read: {patched}");
    let document = json!({"id": "written", "n": 1, "m": 2});
    check_eq!(doors.open.document("/v1/users/written").await?, Some(document));
    Ok(())
}

async fn confined(doors: &Doors) -> anyhow::Result<()> {
    let http = &doors.closed;
    with(http.put("/v1/orders/1", &json!({})), SHOP).expect(201).await?;
    for (right, call) in [
        ("read", http.get("/v1/posts/kept/1")),
        ("read", http.get("/v1/posts")),
        ("read", http.get("/v1/%70osts/kept")),
        ("read", http.get("/v1/nosuch/1")),
        ("write", http.put("/v1/posts/kept/2", &json!({}))),
        (
            "write",
            http.post("/v1/posts:batchWrite", &json!({"writes": [{"delete": {"id": "kept", "sort": "1"}}]})),
        ),
    ] {
        refused(with(call, SHOP), P::Forbidden, &insufficient(right)).await?;
    }
    let ops = |last: &str, sort: Value| json!({"ops": [{"collection": "users", "put": {}}, {"collection": last, "sort": sort, "put": {}}]});
    let path = "/v1/partitions/refused:transact";
    let call = http.post(path, &ops("posts", json!("2")));
    let problem = refused(with(call, SHOP), P::Forbidden, &insufficient("write")).await?;
    check_eq!(problem.and_then(|problem| problem.op), Some(1), "the operation at fault");
    let call = http.post("/v1/partitions/both:transact", &ops("orders", Value::Null));
    with(call, SHOP).expect(200).await?;
    Ok(())
}

async fn admin(doors: &Doors) -> anyhow::Result<()> {
    let http = &doors.closed;
    refused(with(http.get("/admin/v1/nosuch"), SHOP), P::Forbidden, &insufficient("admin")).await?;
    with(http.get("/admin/v1/nosuch"), ADMIN).refused(P::NotFound).await?;
    with(http.get("/admin/v1/cluster"), ADMIN).expect(200).await?;
    with(http.put("/admin/v1/collections/made", &json!({})), ADMIN).expect(201).await?;
    with(http.put("/v1/made/1", &json!({})), ADMIN).expect(201).await?;
    with(http.delete("/admin/v1/collections/made"), ADMIN).expect(204).await?;
    Ok(())
}

async fn upload(doors: &Doors) -> anyhow::Result<()> {
    let body = vec![b' '; 16 << 20];
    let call = doors.closed.call(Method::PUT, "/v1/users/refused").body("application/json", body.clone());
    refused(call, P::Unauthorized, MISSING).await?;
    let call = doors.closed.call(Method::PUT, "/v1/users/refused").body("application/json", body);
    refused(with(call, READER), P::Forbidden, &insufficient("write")).await?;
    Ok(())
}

async fn open_pages(doors: &Doors) -> anyhow::Result<()> {
    for path in ["/livez", "/readyz", "/metrics", "/openapi.json", "/docs/"] {
        doors.closed.get(path).expect(200).await?;
    }
    let page = String::from_utf8(doors.closed.get("/metrics").expect(200).await?.body)?;
    for reason in ["missing", "malformed", "unknown", "right", "collection"] {
        let line = format!("borough_router_auth_refusals_total{{reason=\"{reason}\"}} ");
        let count = page.lines().find_map(|text| text.strip_prefix(&line)).context(line.clone())?;
        ensure!(count != "0", "{line}{count}");
    }
    Ok(())
}

async fn callers(doors: &Doors) -> anyhow::Result<()> {
    let client = |token: Option<&str>| {
        let builder = Client::builder().router(doors.closed.base());
        token.map_or(builder.clone(), |token| builder.bearer_token(token)).build()
    };
    let document = json!({"n": 2});
    for token in [None, Some("nobodys")] {
        let error = client(token)?.collection::<Value>("users").put("refused", &document).await;
        let error = error.err().context("a write without a token went through")?;
        ensure!(matches!(error, Error::Unauthorized(_)), "{error}");
        check_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, false));
    }
    let users = client(Some(READER))?.collection::<Value>("users");
    ensure!(users.get("kept").await?.is_some(), "the reader cannot read");
    let error = users.put("refused", &document).await.err().context("the reader wrote")?;
    ensure!(matches!(error, Error::Forbidden(_)), "{error}");
    check_eq!((error.outcome(), error.is_retryable()), (Outcome::NotApplied, false));

    let dir = tempfile::tempdir()?;
    let file = dir.path().join("users.ndjson");
    std::fs::write(&file, "{\"id\":\"imported\"}\n")?;
    let file = file.to_str().context("path")?;
    // (arguments, token, exit code)
    let table: &[(&[&str], &str, i32)] = &[
        (&["get", "users", "kept"], READER, 0),
        (&["get", "users", "kept"], "", 1),
        (&["get", "users", "kept"], "nobodys", 1),
        (&["put", "users", "refused", "{}"], READER, 1),
        (&["put", "users", "put", "{}"], SHOP, 0),
        (&["patch", "users", "put", "{}"], SHOP, 0),
        (&["list", "users"], SHOP, 0),
        (&["export", "posts"], SHOP, 1),
        (&["import", "users", file], SHOP, 0),
        (&["import", "posts", file, "--sort", "id"], SHOP, 1),
        (&["delete", "users", "put"], SHOP, 0),
        (&["cluster", "status"], SHOP, 1),
        (&["cluster", "status"], ADMIN, 0),
        (&["collection", "create", "refused"], SHOP, 1),
        (&["collection", "list"], ADMIN, 0),
        (&["bench", "--collection", "orders", "--seconds", "0.2", "--rate", "100", "--keys", "5"], SHOP, 0),
        (&["bench", "--collection", "users", "--keys", "5"], READER, 1),
        (&["bench", "--collection", "users", "--keys", "5"], "", 1),
    ];
    for (args, token, code) in table {
        let mut args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        args.extend(["--router".to_owned(), doors.closed.base().to_owned()]);
        let env = [("BOROUGH_TOKEN".to_owned(), (*token).to_owned())];
        let output = run(&args, &env, b"", LIMIT).await?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        check_eq!(output.status.code(), Some(*code), "{args:?} as {token:?}: {told}");
        ensure!(*code == 0 || told.contains("401") || told.contains("403"), "{args:?}: {told}");
        ensure!(token.is_empty() || !told.contains(token), "the token is shown: {told}");
    }
    let (args, env) = (["get", "--help"].map(str::to_owned), [("BOROUGH_TOKEN".to_owned(), SHOP.to_owned())]);
    let help = run(&args, &env, b"", LIMIT).await?.stdout;
    ensure!(!String::from_utf8(help)?.contains(SHOP), "the help shows the token");
    Ok(())
}

async fn no_leak(doors: &Doors, cluster: &Cluster) -> anyhow::Result<()> {
    let mut shown = doors.closed.get("/metrics").expect(200).await?.body;
    for entry in std::fs::read_dir(cluster.dir())? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "out" || kind == "err") {
            shown.extend(std::fs::read(path)?);
        }
    }
    let shown = String::from_utf8_lossy(&shown);
    for token in [READER, WRITER, ADMIN, SHOP] {
        ensure!(!shown.contains(token), "{token} is shown");
    }
    Ok(())
}
