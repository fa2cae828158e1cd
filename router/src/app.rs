//! Every request's way in and out: limits, dispatch by path and method, request id, metrics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::body::Body;
use axum::response::Response;
use borough_proto::error::ProblemType;
use borough_proto::exchange::Forwarder;
use futures::FutureExt as _;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use tokio::time::Instant;
use tracing::error;

use crate::api::call::{Call, REQUEST_ID, panicked};
use crate::api::{admin, batch_get, batch_write, document, list, operations, transact, write};
use crate::auth::{self, Auth, Caller, Denied, Right};
use crate::catalog::Catalog;
use crate::cluster_calls::ClusterCalls;
use crate::config::Config;
use crate::connections::Peer;
use crate::http::answer::{SHARD, without_body};
use crate::http::headers::valid_request_id;
use crate::http::path::Target;
use crate::http::refusal::Refusal;
use crate::metrics::{Metrics, Route};
use crate::rate::ClientLimit;

/// What all requests share.
pub struct App {
    pub config: Config,
    pub forwarder: Arc<Forwarder>,
    pub cluster: ClusterCalls,
    pub catalog: Catalog,
    pub metrics: Metrics,
    pub auth: Auth,
    pub limit: ArcSwapOption<ClientLimit>,
    /// The router is stopping: `/readyz` says no.
    pub draining: AtomicBool,
    in_flight: AtomicUsize,
}

impl App {
    pub fn new(config: Config, forwarder: Arc<Forwarder>) -> Self {
        let cluster = ClusterCalls::new(Arc::clone(&forwarder), config.nodes.clone(), config.channel());
        let limit = ArcSwapOption::from_pointee(ClientLimit::new(&config.rate_limit));
        let auth = Auth::new(&config.auth);
        Self {
            config,
            forwarder,
            cluster,
            catalog: Catalog::default(),
            metrics: Metrics::default(),
            auth,
            limit,
            draining: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Answers one request. Never fails and never panics: what goes wrong is a problem with an outcome (I9).
    pub async fn handle(&self, request: Request<Body>) -> Response {
        let arrived = Instant::now();
        let (head, body) = request.into_parts();
        let _place = Place::take(&self.in_flight);
        let mut extra = HeaderMap::new();
        let mut route = Route::Other;
        let work = self.answer(&head, body, arrived, &mut route, &mut extra);
        let answer = AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
            error!(method = %head.method, path = head.uri.path(), "panic while handling a request");
            Err(panicked())
        });
        let mut response = answer.unwrap_or_else(Refusal::into_response);
        if head.method == Method::HEAD {
            response = without_body(response);
        }
        self.name_shard(head.uri.path(), response.headers_mut());
        response.headers_mut().extend(extra);
        if self.draining.load(Ordering::Relaxed) {
            // The caller opens its next connection elsewhere, so that none is closed under a request.
            response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.metrics.request(route, response.status(), arrived.elapsed());
        response
    }

    /// Names the shard of the id in the path, where no shard was asked: the request was refused before.
    fn name_shard(&self, path: &str, headers: &mut HeaderMap) {
        if headers.contains_key(SHARD) {
            return;
        }
        if let Ok(Target::Document { id, .. } | Target::Item { id, .. } | Target::Transact { id }) =
            Target::parse(path)
            && let Some(shard) = self.forwarder.watch().map().shard_of_id(&id)
        {
            headers.insert(SHARD, HeaderValue::from(shard.id));
        }
    }

    /// A refusal of a request whose body names the document.
    pub fn concerning(&self, id: &str, mut refusal: Refusal) -> Refusal {
        if let Some(shard) = self.forwarder.watch().map().shard_of_id(id) {
            refusal.headers_mut().insert(SHARD, HeaderValue::from(shard.id));
        }
        refusal
    }

    async fn answer(
        &self,
        head: &Parts,
        body: Body,
        arrived: Instant,
        route: &mut Route,
        extra: &mut HeaderMap,
    ) -> Result<Response, Refusal> {
        let target = Target::parse(head.uri.path());
        if let Ok(target) = &target {
            *route = route_of(target, &head.method);
        }
        match target {
            Ok(Target::Livez) => return get_only(head).map(|()| plain("ok\n")),
            Ok(Target::Readyz) => return get_only(head).and_then(|()| self.ready()),
            Ok(Target::Metrics) => return get_only(head).map(|()| self.metrics_page()),
            _ => {}
        }
        let caller = self.admit(head, target.as_ref().ok()).map_err(|denied| self.deny(denied))?;
        let target = target?;
        if let Some(limit) = &*self.limit.load() {
            let peer = head.extensions.get::<Peer>().map(|peer| peer.0);
            *extra = limit.check(caller.token(), peer, &head.headers)?;
        }
        if self.in_flight() > self.config.limits.requests_max {
            let refusal = Refusal::new(ProblemType::Overloaded, "too many requests in flight");
            return Err(refusal.retry_after(Duration::from_secs(1)));
        }
        let call = Call::new(self, head, arrived, caller)?;
        dispatch(&call, target, body).await
    }

    /// Who calls, if they may. Which resources there are is nobody else's business, so that comes after.
    fn admit(&self, head: &Parts, target: Option<&Target<'_>>) -> Result<Caller<'_>, Denied> {
        let caller = self.auth.identify(&head.headers)?;
        let needed = match target {
            Some(target) => auth::needed(target, &head.method),
            None => head.uri.path().starts_with("/admin/").then_some(Right::Admin),
        };
        if let Some(right) = needed {
            caller.may(right, target.and_then(auth::collection_of))?;
        }
        Ok(caller)
    }

    /// Counts and tells a refusal. The token is not in it, nor in any log.
    pub fn deny(&self, denied: Denied) -> Refusal {
        self.metrics.denied(denied.reason);
        denied.into()
    }

    fn ready(&self) -> Result<Response, Refusal> {
        let refuse =
            |why: &str| Err(Refusal::new(ProblemType::Unavailable, why).retry_after(Duration::from_secs(1)));
        if self.draining.load(Ordering::Relaxed) {
            return refuse("the router is stopping");
        }
        if self.forwarder.watch().map().shards().is_empty() {
            return refuse("no cluster was found among the configured nodes");
        }
        Ok(plain("ok\n"))
    }

    fn metrics_page(&self) -> Response {
        #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
        {
            self.metrics.in_flight.set(self.in_flight() as f64);
            self.metrics.map_epoch.set(self.forwarder.watch().map().epoch() as f64);
            self.metrics.nodes_connected.set(self.forwarder.pool().connected() as f64);
        }
        let mut response = plain("");
        *response.body_mut() = Body::from(self.metrics.render());
        response
    }
}

/// What is asked for. All but single documents is boxed: each request would take the room of the largest.
async fn dispatch(call: &Call<'_>, target: Target<'_>, body: Body) -> Result<Response, Refusal> {
    let method = &call.head.method;
    let reads = *method == Method::GET || *method == Method::HEAD;
    let changes = matches!(*method, Method::PUT | Method::PATCH | Method::DELETE);
    match target {
        Target::Document { collection: name, id } => {
            let info = call.collection(&name).await?;
            match info.sort_key {
                false if reads => document::get(call, &info, &id, None).await,
                false if changes => write::change(call, body, &info, &id, None).await,
                true if reads => Box::pin(list::partition(call, &info, &id)).await,
                true if changes => Err(Refusal::method("GET, HEAD", sorted(&name))),
                false => {
                    Err(Refusal::method("GET, HEAD, PUT, PATCH, DELETE", "a document has no such method"))
                }
                true => Err(Refusal::method("GET, HEAD", "a partition is only read")),
            }
        }
        Target::Item { collection: name, id, sort } => {
            let info = call.collection(&name).await?;
            if !info.sort_key {
                let detail =
                    format!("collection {name:?} is not sorted: its documents are /v1/{name}/{{id}}");
                return Err(Refusal::new(ProblemType::NotFound, detail));
            }
            match (reads, changes) {
                (true, _) => document::get(call, &info, &id, Some(&sort)).await,
                (_, true) => write::change(call, body, &info, &id, Some(&sort)).await,
                _ => Err(Refusal::method("GET, HEAD, PUT, PATCH, DELETE", "an item has no such method")),
            }
        }
        Target::Collection { collection: name } => {
            let info = call.collection(&name).await?;
            if reads {
                Box::pin(list::collection(call, &info)).await
            } else if *method == Method::POST {
                Box::pin(write::create(call, body, &info)).await
            } else {
                Err(Refusal::method(
                    "GET, HEAD, POST",
                    "a collection is listed or posted to; see /admin/v1/collections",
                ))
            }
        }
        Target::BatchGet { collection: name } => {
            post_only(method)?;
            let info = call.collection(&name).await?;
            Box::pin(batch_get::batch_get(call, body, &info)).await
        }
        Target::BatchWrite { collection: name } => {
            post_only(method)?;
            let info = call.collection(&name).await?;
            Box::pin(batch_write::batch_write(call, body, &info)).await
        }
        Target::Transact { id } => {
            post_only(method)?;
            Box::pin(transact::transact(call, body, &id)).await
        }
        Target::Cluster => {
            get_only(call.head)?;
            Box::pin(admin::cluster(call)).await
        }
        Target::AdminCollections => {
            get_only(call.head)?;
            Box::pin(admin::list(call)).await
        }
        Target::AdminCollection { name } => Box::pin(admin::one(call, body, &name)).await,
        Target::Rebalances => {
            post_only(method)?;
            Box::pin(operations::rebalance(call)).await
        }
        Target::Operations => {
            get_only(call.head)?;
            Box::pin(operations::show(call, None)).await
        }
        Target::Operation { id } => {
            get_only(call.head)?;
            Box::pin(operations::show(call, Some(id))).await
        }
        Target::OperationControl { id, control } => {
            post_only(method)?;
            Box::pin(operations::control(call, id, control)).await
        }
        Target::NodeChange { id, change } => {
            post_only(method)?;
            Box::pin(operations::change_node(call, id, change)).await
        }
        // Answered before a call is made of the request.
        Target::Livez | Target::Readyz | Target::Metrics => Ok(plain("")),
    }
}

fn sorted(name: &str) -> String {
    format!("collection {name:?} is sorted: its items are /v1/{name}/{{id}}/{{sort}}")
}

fn get_only(head: &Parts) -> Result<(), Refusal> {
    match head.method {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Refusal::method("GET, HEAD", "this resource is only read")),
    }
}

fn post_only(method: &Method) -> Result<(), Refusal> {
    if *method == Method::POST {
        Ok(())
    } else {
        Err(Refusal::method("POST", "a custom method is called with POST"))
    }
}

fn plain(text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::OK;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// The caller's own id if it can be echoed, else a new one.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|value| valid_request_id(value));
    given.cloned().unwrap_or_else(|| {
        let made = format!("{:016x}", rand::random::<u64>());
        HeaderValue::from_str(&made).unwrap_or(HeaderValue::from_static("none"))
    })
}

fn route_of(target: &Target<'_>, method: &Method) -> Route {
    match target {
        Target::Document { .. } | Target::Item { .. } => match *method {
            Method::GET | Method::HEAD => Route::Get,
            Method::PUT => Route::Put,
            Method::PATCH => Route::Patch,
            Method::DELETE => Route::Delete,
            _ => Route::Other,
        },
        Target::Collection { .. } if *method == Method::POST => Route::Post,
        Target::Collection { .. } => Route::List,
        Target::BatchGet { .. } => Route::BatchGet,
        Target::BatchWrite { .. } => Route::BatchWrite,
        Target::Transact { .. } => Route::Transact,
        Target::Cluster
        | Target::AdminCollections
        | Target::AdminCollection { .. }
        | Target::Rebalances
        | Target::Operations
        | Target::Operation { .. }
        | Target::OperationControl { .. }
        | Target::NodeChange { .. } => Route::Admin,
        Target::Livez | Target::Readyz | Target::Metrics => Route::Other,
    }
}

/// One of the places for requests in flight.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
