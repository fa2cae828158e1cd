//! A stream's ends as their hosts see them, and how a host opens one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use borough_proto::exchange::channel::{ByteStream, Connect};
use bytes::{Buf as _, Bytes};
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{CHUNK_BYTES, End, Network, Parcel, WINDOW_BYTES, What, host_at, with};

/// One end of a stream, as the host sees it that has it.
pub struct SimulatedStream {
    stream: u64,
    at: usize,
}

/// A stream that has reached a host.
#[derive(Debug)]
pub struct Arrived(pub(super) u64);

impl Arrived {
    /// The host's end of it.
    pub fn accept(self) -> SimulatedStream {
        SimulatedStream { stream: self.0, at: 1 }
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the simulated stream is broken")
}

impl SimulatedStream {
    fn poll<T>(
        &self,
        work: impl FnOnce(&mut Network, u64, usize) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        with(|network| work(network, self.stream, self.at)).unwrap_or_else(|| Poll::Ready(Err(broken())))
    }
}

impl Drop for SimulatedStream {
    fn drop(&mut self) {
        with(|network| network.send(Parcel { stream: self.stream, to: 1 - self.at, what: What::End }));
        with(|network| {
            // What still comes is told that nobody is here.
            if let Some(end) = network.end_mut(self.stream, self.at) {
                end.process = u64::MAX;
            }
        });
    }
}

impl AsyncRead for SimulatedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(|network, stream, at| {
            let Some(end) = network.end_mut(stream, at) else { return Poll::Ready(Err(broken())) };
            let Some(first) = end.arrived.front_mut() else {
                if end.broken {
                    return Poll::Ready(Err(broken()));
                }
                if end.ended {
                    return Poll::Ready(Ok(()));
                }
                end.wait(context);
                return Poll::Pending;
            };
            let taken = first.len().min(buffer.remaining());
            buffer.put_slice(first.get(..taken).unwrap_or_default());
            first.advance(taken);
            if first.is_empty() {
                end.arrived.pop_front();
            }
            if let Some(other) = network.end_mut(stream, 1 - at) {
                other.outstanding -= taken.min(other.outstanding);
                let mut waiting = std::mem::take(&mut other.waiting);
                network.wakers.append(&mut waiting);
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for SimulatedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(|network, stream, at| {
            let Some(end) = network.end_mut(stream, at) else { return Poll::Ready(Err(broken())) };
            if end.broken {
                return Poll::Ready(Err(broken()));
            }
            if end.outstanding >= WINDOW_BYTES {
                end.wait(context);
                return Poll::Pending;
            }
            let taken = bytes.len().min(CHUNK_BYTES);
            end.outstanding += taken;
            let data = Bytes::copy_from_slice(bytes.get(..taken).unwrap_or_default());
            network.send(Parcel { stream, to: 1 - at, what: What::Data(data) });
            Poll::Ready(Ok(taken))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|network, stream, at| {
            network.send(Parcel { stream, to: 1 - at, what: What::End });
            Poll::Ready(Ok(()))
        })
    }
}

/// Connects from the host whose code runs.
#[derive(Debug)]
pub struct SimulatedNetwork;

impl Connect for SimulatedNetwork {
    fn connect(&self, addr: String) -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>> {
        let opened = with(|network| {
            let to = host_at(&addr).filter(|&to| to < network.hosts.len())?;
            let process = network.hosts.get(network.current)?.process;
            network.next_stream += 1;
            let stream = network.next_stream;
            // The other end's process is known once it is reached.
            network.streams.insert(stream, [End::new(network.current, process), End::new(to, u64::MAX)]);
            network.send(Parcel { stream, to: 1, what: What::Open });
            Some(SimulatedStream { stream, at: 0 })
        });
        Box::pin(async move {
            let Some(opening) = opened.flatten() else {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("no host {addr}")));
            };
            futures::future::poll_fn(|context| {
                opening.poll(|network, stream, at| match network.end_mut(stream, at) {
                    Some(end) if end.broken => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
                    Some(end) if end.established => Poll::Ready(Ok(())),
                    Some(end) => {
                        end.wait(context);
                        Poll::Pending
                    }
                    None => Poll::Ready(Err(broken())),
                })
            })
            .await?;
            Ok(Box::new(opening) as Box<dyn ByteStream>)
        })
    }
}
