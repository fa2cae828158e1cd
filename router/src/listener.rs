//! A TCP listener that bounds its connections: while all places are taken, new ones wait in the kernel (I8).
//!
//! A connection that is closed while its peer still sends is not cut: what arrives is read and forgotten for a bounded
//! time, because the reset that answers unread bytes would take the answer with it (RFC 9112 §9.6).
//!
//! A refusal that hyper writes by itself leaves completed, as a problem (`bare`).

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use bytes::{Buf as _, Bytes};
use futures::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use crate::bare;

/// A closed connection whose peer has been silent for this long is let go. Above the time for which a peer that still
/// uploads may be kept from its processor or its network, or the reset takes the answer after all.
const LINGER_IDLE: Duration = Duration::from_secs(2);
/// A closed connection is let go after this, however much its peer sends: enough for the largest refused upload on a line
/// that is worth uploading through.
const LINGER_MAX: Duration = Duration::from_secs(30);
/// Once the router stops, no closed connection is kept for longer than this, or its peer would hold up the stop.
const LINGER_STOP: Duration = Duration::from_millis(500);

/// Accepts at most so many connections at a time.
pub struct BoundedListener {
    tcp: TcpListener,
    places: Arc<Semaphore>,
    /// Cancelled when the listener is dropped: the router stops.
    stop: DropGuard,
}

impl BoundedListener {
    pub fn new(tcp: TcpListener, connections_max: usize) -> Self {
        let places = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
        Self { tcp, places, stop: CancellationToken::new().drop_guard() }
    }

    /// The next connection and the address of its other end.
    pub async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The semaphore is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        // axum's own accept waits out errors such as too many open files.
        let (stream, addr) = Listener::accept(&mut self.tcp).await;
        // Small answers must not wait for the acknowledgement of the last one.
        let _ = stream.set_nodelay(true);
        let connection = Connection {
            stream,
            refusal: Bytes::new(),
            linger: None,
            stop: self.stop.token().clone(),
            _place: place,
        };
        (connection, addr)
    }

    /// The next connection that waits to be accepted already, if there is a place for it.
    pub async fn accept_waiting(&mut self) -> Option<(Connection, SocketAddr)> {
        // One turn of the runtime, so that it has heard of those.
        tokio::task::yield_now().await;
        self.accept().now_or_never()
    }
}

/// A connection that gives its place back when it is dropped.
pub struct Connection {
    stream: TcpStream,
    /// What is left to be written of a refusal, in the place of what hyper wrote.
    refusal: Bytes,
    /// Our side is closed; the peer's is being waited for.
    linger: Option<Linger>,
    stop: CancellationToken,
    _place: Option<OwnedSemaphorePermit>,
}

/// The wait for a peer that may still be sending.
struct Linger {
    silence: Pin<Box<Sleep>>,
    end: Instant,
    /// Until the router stops.
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Linger {
    fn start(stop: &CancellationToken) -> Self {
        let now = Instant::now();
        Self {
            silence: Box::pin(tokio::time::sleep_until(now + LINGER_IDLE)),
            end: now + LINGER_MAX,
            stop: Some(Box::pin(stop.clone().cancelled_owned())),
        }
    }

    /// Ready when the peer has closed, broken off, been silent, or sent for too long.
    fn poll(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        if self.stop.as_mut().is_some_and(|stop| stop.as_mut().poll(cx).is_ready()) {
            self.stop = None;
            self.end = self.end.min(Instant::now() + LINGER_STOP);
            let until = self.silence.deadline().min(self.end);
            self.silence.as_mut().reset(until);
        }
        let mut forgotten = [0; 16 << 10];
        loop {
            let mut buf = ReadBuf::new(&mut forgotten);
            match Pin::new(&mut *stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    let until = (Instant::now() + LINGER_IDLE).min(self.end);
                    self.silence.as_mut().reset(until);
                    if until == self.end && Instant::now() >= self.end {
                        return Poll::Ready(());
                    }
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.silence.as_mut().poll(cx),
            }
        }
    }
}

impl Connection {
    /// Ready when nothing is left of a refusal.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.refusal.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.refusal))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.refusal.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_refusal(cx))?;
        match bare::starts_at(buf) {
            None => Pin::new(&mut self.stream).poll_write(cx, buf),
            Some(0) => {
                let id = format!("{:016x}", rand::random::<u64>());
                let Some(refusal) = bare::completed(buf, &id) else {
                    return Pin::new(&mut self.stream).poll_write(cx, buf);
                };
                self.refusal = refusal;
                // Taken as a whole; what the socket does not take now goes before whatever comes next.
                match self.poll_refusal(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(buf.len())),
                }
            }
            // Answers before it go first, and leave it to the next write.
            Some(at) => Pin::new(&mut self.stream).poll_write(cx, buf.get(..at).unwrap_or(buf)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(self.poll_refusal(cx))?;
        }
        let Connection { stream, linger, stop, .. } = &mut *self;
        if linger.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
        }
        let linger = linger.get_or_insert_with(|| Linger::start(stop));
        linger.poll(stream, cx).map(Ok)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_refusal(cx))?;
        let last = bufs.iter().rfind(|buf| !buf.is_empty());
        if last.is_none_or(|last| bare::starts_at(last).is_none()) {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        // One at a time, until it is the turn of the refusal.
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |first| first);
        self.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const BARE: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
    const DONE: &str = "HTTP/1.1 204 No Content\r\nx-request-id: 1\r\n\r\n";

    async fn pair() -> (Connection, TcpStream) {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = tcp.local_addr().unwrap();
        let mut listener = BoundedListener::new(tcp, 1);
        let (peer, (connection, _)) = tokio::join!(TcpStream::connect(addr), listener.accept());
        (connection, peer.unwrap())
    }

    async fn received(connection: Connection, mut peer: TcpStream) -> String {
        drop(connection);
        let mut text = String::new();
        peer.read_to_string(&mut text).await.unwrap();
        text
    }

    fn complete(text: &str) -> bool {
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        text.starts_with("HTTP/1.1 400 ") && head.contains("x-request-id: ") && body.ends_with('}')
    }

    #[tokio::test]
    async fn a_bare_refusal_leaves_completed_behind_what_was_before_it() {
        let (mut connection, peer) = pair().await;
        connection.write_all(format!("{DONE}{DONE}{BARE}").as_bytes()).await.unwrap();
        connection.flush().await.unwrap();
        let text = received(connection, peer).await;
        assert!(complete(text.strip_prefix(&format!("{DONE}{DONE}")).unwrap()), "{text}");

        let (mut connection, peer) = pair().await;
        let (mut left, total) = (vec![DONE, "body", "", BARE], DONE.len() + 4 + BARE.len());
        let mut written = 0;
        while written < total {
            let bufs: Vec<_> = left.iter().map(|text| io::IoSlice::new(text.as_bytes())).collect();
            let mut count = connection.write_vectored(&bufs).await.unwrap();
            written += count;
            for text in &mut left {
                let taken = count.min(text.len());
                *text = &text[taken..];
                count -= taken;
            }
        }
        assert_eq!(written, total);
        let text = received(connection, peer).await;
        assert!(complete(text.strip_prefix(&format!("{DONE}body")).unwrap()), "{text}");
    }

    #[tokio::test]
    async fn a_refusal_waits_for_a_peer_that_reads_slowly() {
        let (mut connection, mut peer) = pair().await;
        // Until the socket takes no more.
        let filler = vec![b'x'; 1 << 16];
        let mut sent = 0;
        let full = Duration::from_millis(200);
        while let Ok(count) = tokio::time::timeout(full, connection.write(&filler)).await {
            sent += count.unwrap();
        }
        let end = async {
            connection.write_all(BARE.as_bytes()).await.unwrap();
            connection.flush().await.unwrap();
            drop(connection);
        };
        let mut text = String::new();
        let (_, read) = tokio::join!(end, peer.read_to_string(&mut text));
        read.unwrap();
        assert!(complete(&text[sent..]), "{}", &text[sent..]);
    }
}
