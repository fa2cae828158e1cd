//! Binds, serves and drains.
//!
//! Heads that pass hyper's bounds never get here: a target longer than 64 KiB, more than 100 fields or some 400 KiB. What it
//! answers to those, and to what is no HTTP, `listener` completes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use borough_proto::error::ProblemType;
use borough_proto::exchange::mux::Limits;
use borough_proto::exchange::pool::PoolSettings;
use borough_proto::exchange::{ForwardSettings, Forwarder};
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderValue, Request, Version};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::{info, warn};

use crate::api::call::REQUEST_ID;
use crate::app::{App, request_id};
use crate::config::Config;
use crate::connections;
use crate::http::answer::put_none;
use crate::http::refusal::Refusal;
use crate::listener::BoundedListener;
use crate::openapi;
use crate::rate::ClientLimit;

/// How often metrics are folded and idle clients forgotten.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Why a router stopped, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("bind {addr}")]
    Bind { addr: SocketAddr, source: std::io::Error },
    #[error("requests were still in flight {after:?} after the stop")]
    DrainTimeout { after: Duration },
}

/// Runs a router until `shutdown`, then drains it: `/readyz` says no, requests in flight are finished.
///
/// # Errors
/// [`RunError`].
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    run_with(config, shutdown, |_| {}).await
}

/// [`run`], telling the bound address as soon as connections are accepted (`listen` may name port 0).
///
/// # Errors
/// [`RunError`].
pub async fn run_with(
    config: Config,
    shutdown: CancellationToken,
    on_bound: impl FnOnce(SocketAddr),
) -> Result<(), RunError> {
    let addr = config.listen;
    let bind = |source| RunError::Bind { addr, source };
    let tcp = TcpListener::bind(addr).await.map_err(bind)?;
    let bound = tcp.local_addr().map_err(bind)?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let forwarder = Forwarder::start(config.nodes.clone(), settings(&config), &tasks, &stop);
    let app = Arc::new(App::new(config, forwarder));
    tasks.spawn(upkeep(Arc::clone(&app), stop.clone()));
    info!(%bound, auth = app.auth.is_on(), nodes = ?app.config.nodes, "router listens");
    on_bound(bound);
    let served = serve(&app, tcp, shutdown).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    info!("router stopped");
    served
}

fn settings(config: &Config) -> ForwardSettings {
    let mux = Limits {
        in_flight_max: config.limits.calls_per_node_max,
        queued_bytes_max: config.limits.queued_bytes_per_node_max,
        ..Limits::default()
    };
    ForwardSettings { pool: PoolSettings { channel: config.channel(), mux }, attempt: config.attempt_timeout }
}

async fn serve(app: &Arc<App>, tcp: TcpListener, shutdown: CancellationToken) -> Result<(), RunError> {
    let listener = BoundedListener::new(tcp, app.config.limits.connections_max);
    let accepting = CancellationToken::new();
    let idle_max = app.config.limits.connection_idle_max;
    let entry = Entry { app: Arc::clone(app), routes: service(app) };
    let server = connections::serve(listener, entry, idle_max, &accepting);
    let drain = async {
        shutdown.cancelled().await;
        info!(in_flight = app.in_flight(), "router drains");
        app.draining.store(true, Ordering::Relaxed);
        tokio::time::sleep(app.config.drain_delay).await;
        accepting.cancel();
        tokio::time::sleep(app.config.drain_timeout).await;
    };
    tokio::select! {
        () = server => Ok(()),
        () = drain => {
            let in_flight = app.in_flight();
            if in_flight == 0 {
                // Only idle connections are left.
                return Ok(());
            }
            warn!(in_flight, "router stops with requests in flight");
            Err(RunError::DrainTimeout { after: app.config.drain_timeout })
        }
    }
}

/// Where every request comes in.
#[derive(Clone)]
pub struct Entry {
    app: Arc<App>,
    routes: Router,
}

impl Entry {
    /// Answers one request. Those of the data plane, which are nearly all, go straight to what answers them: looking for another
    /// route first costs as much as parsing them.
    pub async fn answer(&self, request: Request<Body>) -> Response {
        if request.uri().path().starts_with("/v1/") {
            return completed(request, |request| self.app.handle(request)).await;
        }
        // No service of axum's fails.
        let Ok(response) = self.routes.clone().oneshot(request).await;
        response
    }
}

/// Everything that is served.
pub fn service(app: &Arc<App>) -> Router {
    openapi::router().fallback(handle).layer(from_fn(complete)).with_state(Arc::clone(app))
}

/// [`completed`], for those that axum leads further.
async fn complete(request: Request<Body>, next: Next) -> Response {
    completed(request, |request| next.run(request)).await
}

/// Gives every answer what each must have, whoever made it.
async fn completed<F: Future<Output = Response>>(
    request: Request<Body>,
    answer: impl FnOnce(Request<Body>) -> F,
) -> Response {
    let id = request_id(request.headers());
    let mut response = match host_fault(&request) {
        Some(refusal) => refusal.into_response(),
        None => answer(request).await,
    };
    response.headers_mut().insert(REQUEST_ID, id);
    put_none(response.headers_mut());
    response
}

/// A request of HTTP/1.1 names one host (RFC 9112 §3.2): two readers of one with more could each believe another.
fn host_fault(request: &Request<Body>) -> Option<Refusal> {
    let mut values = request.headers().get_all(HOST).iter();
    let detail = match (values.next(), values.next()) {
        (None, _) if request.version() < Version::HTTP_11 => return None,
        (None, _) => "a request names its host".to_owned(),
        (Some(_), Some(_)) => "a request names one host, this one names more".to_owned(),
        // Empty where the target has no authority.
        (Some(host), None) if host.is_empty() || is_host(host) => return None,
        (Some(host), None) => format!("{host:?} is not host or host:port"),
    };
    Some(Refusal::new(ProblemType::BadRequest, detail).field("Host"))
}

fn is_host(value: &HeaderValue) -> bool {
    let authority = Authority::try_from(value.as_bytes());
    authority.is_ok_and(|authority| !authority.as_str().contains('@'))
}

async fn handle(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    app.handle(request).await
}

async fn upkeep(app: Arc<App>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        app.metrics.upkeep();
        if let Some(limit) = &*app.limit.load()
            && limit.forget_idle()
        {
            app.limit.store(ClientLimit::new(&app.config.rate_limit).map(Arc::new));
        }
    }
}
