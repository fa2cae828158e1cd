//! What is sent again, under which key, for how long, and what is told at the end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::{ANN, CLIENT_DEADLINE, Scripted, Step, User, ann, ok, problem, problem_with};
use borough_client::{Client, Error, Outcome, ProblemType};
use tokio::net::TcpSocket;

/// A router that nobody runs: connections are refused, for as long as the socket is kept. It is bound, so that nobody else
/// gets its port, and does not listen.
fn nobody() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    (socket, url)
}

#[tokio::test]
async fn a_write_is_resent_under_its_key_after_a_cut_and_a_503() {
    let router = Scripted::start([
        Step::Cut,
        problem(ProblemType::Unavailable, Outcome::NotApplied),
        Step::CutBody,
        problem(ProblemType::DeadlineExceeded, Outcome::Unknown),
        ok(201, "\"5\"", ""),
    ])
    .await;
    let users = router.client().collection::<User>("users");
    let written = users.put("1", &ann()).await.unwrap();
    assert!(written.created);
    assert_eq!(written.etag.version(), Some(5));
    let seen = router.seen();
    assert_eq!(seen.len(), 5);
    for request in &seen {
        assert_eq!(request.key(), seen[0].key());
        assert_eq!(request.text(), r#"{"name":"Ann"}"#);
    }
    // Version 7: keys made later sort later.
    assert_eq!(seen[0].key().parse::<uuid::Uuid>().unwrap().get_version_num(), 7);
}

#[tokio::test]
async fn each_write_has_a_key_of_its_own_and_reads_have_none() {
    let router = Scripted::start([ok(200, "\"1\"", ""), ok(200, "\"2\"", ""), ok(200, "\"2\"", ANN)]).await;
    let users = router.client().collection::<User>("users");
    users.put("1", &ann()).await.unwrap();
    users.put("1", &ann()).await.unwrap();
    users.get("1").await.unwrap();
    let seen = router.seen();
    assert_ne!(seen[0].key(), seen[1].key());
    assert_eq!(seen[2].header("idempotency-key"), None);
}

#[tokio::test]
async fn a_callers_key_is_sent_as_it_is() {
    let router = Scripted::start([ok(200, "\"1\"", "")]).await;
    router.client().collection("users").put("1", &ann()).idempotency_key("order-7").await.unwrap();
    assert_eq!(router.only().key(), "order-7");
}

#[tokio::test]
async fn what_stays_refused_is_sent_once() {
    for kind in [
        ProblemType::PreconditionFailed,
        ProblemType::IdempotencyKeyReused,
        ProblemType::InvalidMerge,
        ProblemType::BadId,
        ProblemType::AlreadyExists,
        ProblemType::TooLarge,
        ProblemType::CollectionNotFound,
        ProblemType::PreconditionRequired,
    ] {
        let router = Scripted::start([problem(kind, Outcome::NotApplied), ok(200, "\"1\"", "")]).await;
        let error = router.client().collection("users").put("1", &ann()).await.unwrap_err();
        assert_eq!(error.problem().unwrap().problem_type(), Some(kind));
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert!(!error.is_retryable());
        router.only();
    }
}

#[tokio::test]
async fn an_internal_error_leaves_a_write_unknown_and_is_left_to_the_caller() {
    let router = Scripted::start([problem(ProblemType::Internal, Outcome::Unknown)]).await;
    let error = router.client().collection("users").put("1", &ann()).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert_eq!(error.idempotency_key(), Some(router.only().key()));
}

#[tokio::test]
async fn reads_are_resent_after_everything_that_may_pass() {
    let router = Scripted::start([
        Step::Cut,
        Step::CutBody,
        problem(ProblemType::Overloaded, Outcome::NotApplied),
        problem(ProblemType::Internal, Outcome::Unknown),
        problem(ProblemType::DeadlineExceeded, Outcome::Unknown),
        ok(200, "\"1\"", ANN),
    ])
    .await;
    let doc = router.client().collection::<User>("users").get("1").await.unwrap().unwrap();
    assert_eq!(doc.value, ann());
    assert_eq!(router.seen().len(), 6);
}

#[tokio::test]
async fn a_write_without_a_key_is_resent_only_when_it_was_not_applied() {
    let without_keys = |router: &Scripted| {
        Client::builder()
            .router(router.url())
            .idempotency_keys(false)
            .build()
            .unwrap()
            .collection::<User>("users")
    };
    let router =
        Scripted::start([problem(ProblemType::Unavailable, Outcome::NotApplied), ok(200, "\"1\"", "")]).await;
    without_keys(&router).put("1", &ann()).await.unwrap();
    assert!(router.seen().iter().all(|request| request.header("idempotency-key").is_none()));

    let router = Scripted::start([Step::Cut, ok(200, "\"1\"", "")]).await;
    let error = without_keys(&router).put("1", &ann()).await.unwrap_err();
    assert!(matches!(error, Error::Transport { outcome: Outcome::Unknown, .. }), "{error:?}");
    router.only();
}

#[tokio::test]
async fn the_deadline_holds_and_the_router_is_told_of_it() {
    let router = Scripted::start([Step::Silence]).await;
    let users = router.client().collection::<User>("users");
    let deadline = Duration::from_secs(2);
    let started = Instant::now();
    let error = users.put("1", &ann()).deadline(deadline).await.unwrap_err();
    assert!(started.elapsed() >= deadline, "{:?}", started.elapsed());
    // Below the client's own, which the call's goes before.
    assert!(started.elapsed() < CLIENT_DEADLINE, "{:?}", started.elapsed());
    assert!(matches!(error, Error::DeadlineExceeded { attempts: 1, .. }), "{error:?}");
    assert_eq!(error.outcome(), Outcome::Unknown, "it may have been applied (I9)");
    let request = router.only();
    assert_eq!(error.idempotency_key(), Some(request.key()));
    let told: u64 = request.header("borough-timeout-ms").unwrap().parse().unwrap();
    assert!((1000..=2000).contains(&told), "{told}");
}

#[tokio::test]
async fn a_read_that_passed_its_deadline_changed_nothing() {
    let router = Scripted::start([Step::Silence]).await;
    let users = router.client().collection::<User>("users");
    let error = users.get("1").deadline(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { outcome: Outcome::NotApplied, .. }), "{error:?}");
}

#[tokio::test]
async fn each_attempt_is_told_less_of_the_deadline() {
    let not_now = || problem(ProblemType::Unavailable, Outcome::NotApplied);
    let router = Scripted::start([not_now(), not_now(), not_now(), ok(200, "\"1\"", ANN)]).await;
    router.client().collection::<User>("users").get("1").await.unwrap();
    let told: Vec<u64> = router
        .seen()
        .iter()
        .map(|seen| seen.header("borough-timeout-ms").unwrap().parse().unwrap())
        .collect();
    assert!(told.windows(2).all(|pair| pair[1] < pair[0]), "{told:?}");
}

#[tokio::test]
async fn a_pause_that_the_deadline_does_not_allow_is_not_taken() {
    let slow = problem_with(ProblemType::TooManyRequests, Outcome::NotApplied, &[("retry-after", "3600")]);
    let router = Scripted::start([slow]).await;
    let error = router.client().collection("users").put("1", &ann()).await.unwrap_err();
    let hour = Some(Duration::from_secs(3600));
    assert!(matches!(error, Error::RateLimited { retry_after, .. } if retry_after == hour), "{error:?}");
    assert!(error.is_retryable());
    router.only();
}

#[tokio::test]
async fn a_refusal_after_a_cut_does_not_hide_that_the_write_may_have_been_applied() {
    let busy = problem_with(ProblemType::Unavailable, Outcome::NotApplied, &[("retry-after", "3600")]);
    let router = Scripted::start([Step::Cut, busy]).await;
    let error = router.client().collection("users").put("1", &ann()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_eq!(error.outcome(), Outcome::Unknown);
}

#[tokio::test]
async fn nobody_there_is_told_as_not_applied() {
    let (_kept, url) = nobody();
    let client = Client::builder().router(url).deadline(Duration::from_secs(1)).build().unwrap();
    let error = client.collection("users").put("1", &ann()).await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. } | Error::DeadlineExceeded { .. }), "{error:?}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_dead_router_costs_no_call() {
    let answers = (0..20).map(|version| ok(200, &format!("\"{version}\""), ""));
    let alive = Scripted::start(answers).await;
    let (_kept, dead) = nobody();
    let client = Client::builder().routers([dead, alive.url()]).build().unwrap();
    let users = client.collection::<User>("users");
    for _ in 0..20 {
        users.put("1", &ann()).await.unwrap();
    }
    assert_eq!(alive.seen().len(), 20);
}

#[tokio::test]
async fn routers_take_turns() {
    let answers = || (0..10).map(|_| ok(200, "\"1\"", ANN));
    let (one, two) = (Scripted::start(answers()).await, Scripted::start(answers()).await);
    let client = Client::builder().routers([one.url(), two.url()]).build().unwrap();
    for _ in 0..10 {
        client.collection::<User>("users").get("1").await.unwrap();
    }
    assert_eq!((one.seen().len(), two.seen().len()), (5, 5));
}

#[tokio::test]
async fn a_silent_router_leaves_time_for_another() {
    let silent = Scripted::start((0..16).map(|_| Step::Silence)).await;
    let alive = Scripted::start((0..16).map(|_| ok(200, "\"1\"", ""))).await;
    let client = Client::builder()
        .routers([silent.url(), alive.url()])
        .deadline(Duration::from_secs(8))
        .build()
        .unwrap();
    // Two calls, so that one of them begins at the silent router.
    for _ in 0..2 {
        client.collection::<User>("users").put("1", &ann()).await.unwrap();
    }
    let keys = |router: &Scripted| -> BTreeSet<String> {
        router.seen().iter().map(|seen| seen.key().to_owned()).collect()
    };
    let (unanswered, answered) = (keys(&silent), keys(&alive));
    assert_eq!(answered.len(), 2, "{answered:?}");
    assert!(!unanswered.is_empty(), "nobody asked the silent router");
    assert!(unanswered.is_subset(&answered), "resent under the same key: {unanswered:?}, {answered:?}");
}
