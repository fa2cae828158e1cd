//! The loops against a router that is only a handler.

use std::sync::Mutex;

use axum::Router;
use axum::extract::{Path, Request as Incoming};
use http::Method;
use tokio::net::TcpListener;

use super::*;

/// A server that answers with what `answer` makes of the request's method and key.
async fn serve<F, A>(tasks: &mut JoinSet<()>, answer: F) -> String
where
    F: Fn(Method, String) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = StatusCode> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let handler = move |Path(key): Path<String>, request: Incoming| {
        let answer = answer.clone();
        async move { answer(request.method().clone(), key).await }
    };
    let app = Router::new().route("/v1/users/{key}", axum::routing::any(handler));
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    url
}

fn short() -> Options {
    Options { seconds: 0.4, warm_up: 0.1, connections: 4, timeout: 2.0, ..Options::default() }
}

fn load(url: &str, options: &Options) -> Load {
    Load::new(Service::borough(&[url], "users").unwrap(), options.clone()).unwrap()
}

#[tokio::test]
async fn preload_writes_each_document_once_and_the_closed_loop_counts_what_it_sends() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let mut tasks = JoinSet::new();
    let url = serve(&mut tasks, move |method, key| {
        log.lock().unwrap().push((method, key));
        async { StatusCode::OK }
    })
    .await;
    let mix = "get=3,put=1".parse().unwrap();
    let options = Options { mix, keys: 20, warm_up: 0.0, ..short() };
    load(&url, &options).preload().await.unwrap();
    let mut written: Vec<_> = std::mem::take(&mut *seen.lock().unwrap());
    assert!(written.iter().all(|(method, _)| *method == Method::PUT));
    written.sort_by_key(|(_, key)| key.clone());
    written.dedup();
    assert_eq!(written.len(), 20);
    let report = load(&url, &options).measure().await.unwrap();
    let sent = seen.lock().unwrap();
    let puts = sent.iter().filter(|(method, _)| *method == Method::PUT).count();
    assert_eq!(report.failed(), 0, "{report}");
    assert_eq!((report.all.requests, report.kinds["put"].requests), (sent.len() as u64, puts as u64));
    assert!(report.all.requests > 20 && puts > 0, "{report}");
}

#[tokio::test]
async fn the_open_loop_sends_what_is_due_and_charges_a_stall_to_all_that_waited() {
    let mut tasks = JoinSet::new();
    let stall_end = Instant::now() + Duration::from_millis(600);
    // Until then nothing is answered, afterwards everything at once.
    let url = serve(&mut tasks, move |_, _| async move {
        tokio::time::sleep_until(stall_end).await;
        StatusCode::OK
    })
    .await;
    let options = Options { rate: Some(500.0), seconds: 1.0, warm_up: 0.0, ..short() };
    let report = load(&url, &options).measure().await.unwrap();
    assert_eq!((report.all.requests, report.failed()), (500, 0), "{report}");
    // Half of the requests were due 100 ms or more before the stall ended; a closed loop would have seen four.
    assert!(report.all.p50_us > 50_000 && report.all.max_us >= 500_000, "{report}");
}

#[tokio::test]
async fn requests_that_were_due_but_never_sent_are_failures() {
    let mut tasks = JoinSet::new();
    let url = serve(&mut tasks, |_, _| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        StatusCode::OK
    })
    .await;
    let options = Options { rate: Some(1000.0), warm_up: 0.0, timeout: 0.5, ..short() };
    let report = load(&url, &options).measure().await.unwrap();
    assert_eq!(report.all.requests + report.failed(), 400, "{report}");
    assert!(report.errors[NOT_SENT] > 300, "{report}");
}

/// A warm-up at more than the service can do leaves a backlog: measured is only what is due after it.
#[tokio::test]
async fn what_the_warm_up_could_not_send_is_no_failure_and_holds_nothing_up() {
    let mut tasks = JoinSet::new();
    let url = serve(&mut tasks, |_, _| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        StatusCode::OK
    })
    .await;
    // Four connections hold 200 a second; 2,000 are due before the 400 that are measured.
    let options = Options { rate: Some(1000.0), warm_up: 2.0, timeout: 0.5, ..short() };
    let report = load(&url, &options).measure().await.unwrap();
    assert_eq!(report.all.requests + report.failed(), 400, "{report}");
    assert!(report.all.requests > 4, "{report}");
}

#[tokio::test]
async fn a_rate_at_which_nothing_is_due_is_refused() {
    let mut tasks = JoinSet::new();
    let url = serve(&mut tasks, |_, _| async { StatusCode::OK }).await;
    let options = Options { rate: Some(0.1), seconds: 2.0, warm_up: 0.0, ..short() };
    let error = load(&url, &options).measure().await.unwrap_err().to_string();
    assert!(error.contains("--rate") && error.contains("--seconds"), "{error}");
}

#[tokio::test]
async fn failures_are_told_apart() {
    let mut tasks = JoinSet::new();
    let url = serve(&mut tasks, |method, _| async move {
        if method == Method::GET { StatusCode::NOT_FOUND } else { StatusCode::SERVICE_UNAVAILABLE }
    })
    .await;
    let mix: Mix = "get=1,put=1".parse().unwrap();
    let options = Options { mix, ..short() };
    let error = load(&url, &options).preload().await.unwrap_err().to_string();
    assert!(error.contains("put answered 503"), "{error}");
    let report = load(&url, &options).measure().await.unwrap();
    assert_eq!(report.all.requests, 0);
    assert!(report.errors["get answered 404"] > 0 && report.errors["put answered 503"] > 0, "{report}");
    // Without the documents written first, 404 is an answer like any other.
    let report = load(&url, &Options { no_preload: true, ..options }).measure().await.unwrap();
    assert!(report.absent > 0 && report.absent == report.all.requests, "{report}");
    assert!(!report.errors.contains_key("get answered 404"), "{report}");
}

#[tokio::test]
async fn a_dead_router_ends_the_run_in_time_with_a_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, options) = (format!("http://{}", listener.local_addr().unwrap()), short());
    drop(listener);
    let report = load(&url, &options).measure().await.unwrap();
    assert_eq!(report.errors.keys().collect::<Vec<_>>(), ["get: connection refused"]);
}

#[tokio::test]
async fn an_answer_that_lacks_a_document_is_a_failure_and_what_is_done_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    // The second document of two is never found.
    let answer = r#"{"items":[{"status":200},{"status":404}]}"#;
    let app = Router::new().fallback(move || async move { answer });
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    let options = Options { mix: Mix::only(Kind::BatchGet), batch: 1, ..short() };
    let good = load(&url, &options);
    let report = good.measure().await.unwrap();
    assert!(report.failed() == 0 && report.kinds["batchGet"].requests > 0, "{report}");
    assert!(good.progress().answered() >= report.all.requests && good.progress().failed() == 0);
    let bad = load(&url, &Options { batch: 2, ..options });
    let report = bad.measure().await.unwrap();
    assert_eq!(report.all.requests, 0, "{report}");
    assert!(report.errors["batchGet: an answer lacks what it should hold"] > 0, "{report}");
    assert!(bad.progress().failed() >= report.failed());
}
