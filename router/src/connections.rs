//! Serves accepted connections: HTTP/1.1 on each, a bound on what a head may take and on how long one may be waited for.
//!
//! HTTP/2 is not spoken: what refuses a head there leaves no way to say why, and those who want it have a proxy for TLS
//! in front, which speaks it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::listener::{BoundedListener, Connection};
use crate::serve::Entry;

/// How long a connection without any request is kept at stop.
const FIRST_REQUEST_MAX: Duration = Duration::from_millis(500);

/// The address of the other end, in the extensions of every request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Serves what `listener` accepts until `stop`, then finishes the requests in flight. A connection on which no whole head
/// has come for `idle_max` is closed, whether it is silent or slow (I8).
pub async fn serve(
    mut listener: BoundedListener,
    entry: Entry,
    idle_max: Duration,
    stop: &CancellationToken,
) {
    let mut http = http1::Builder::new();
    // A caller that has nothing more to say still gets its answer.
    http.timer(TokioTimer::new()).header_read_timeout(idle_max).half_close(true);
    let connections = TaskTracker::new();
    while let Some((connection, addr)) = stop.run_until_cancelled(listener.accept()).await {
        connections.spawn(serve_one(http.clone(), connection, Peer(addr), entry.clone(), stop.clone()));
    }
    // Who is connected already, as far as the system is concerned, is not sent away.
    while let Some((connection, addr)) = listener.accept_waiting().await {
        connections.spawn(serve_one(http.clone(), connection, Peer(addr), entry.clone(), stop.clone()));
    }
    // New connections are refused from here on, and closed ones are let go.
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn serve_one(
    http: http1::Builder,
    connection: Connection,
    peer: Peer,
    entry: Entry,
    stop: CancellationToken,
) {
    let asked = CancellationToken::new();
    let first = asked.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        first.cancel();
        request.extensions_mut().insert(peer);
        let entry = entry.clone();
        async move { Ok::<_, Infallible>(entry.answer(request.map(Body::new)).await) }
    });
    let mut served = std::pin::pin!(http.serve_connection(TokioIo::new(connection), service));
    let ended = match stop.run_until_cancelled(served.as_mut()).await {
        Some(ended) => ended,
        None => {
            // Who has just connected has sent a request, or is about to, and has not been told to go elsewhere.
            let first = tokio::time::timeout(FIRST_REQUEST_MAX, asked.cancelled());
            let ended = tokio::select! {
                ended = served.as_mut() => Some(ended),
                _ = first => None,
            };
            match ended {
                Some(ended) => ended,
                None => {
                    served.as_mut().graceful_shutdown();
                    served.await
                }
            }
        }
    };
    if let Err(error) = ended {
        // The peer's doing: it broke off, took too long, or spoke something else.
        debug!(peer = %peer.0, %error, "connection ended");
    }
}
