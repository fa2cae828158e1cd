//! What a node takes from the machine it runs on, so that a simulation can give it something else.
//!
//! The default is the real thing. A simulation gives connections of its own, an engine in memory and a log that is written
//! within the runtime; its clock, its random numbers and what its files keep after a power loss are simulated beneath the node.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use borough_proto::exchange::channel::{ByteStream, Connect};
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use crate::store::Engine;
use crate::wal::{Driver, OnFatal};

/// Connections that callers have opened, as they arrive.
pub type Incoming = Pin<Box<dyn Stream<Item = io::Result<Accepted>> + Send>>;

/// Is given a node's engine.
pub type OnEngine = Box<dyn FnOnce(Arc<dyn Engine>) + Send>;

/// What a node takes from its machine. Each default is the real thing.
#[derive(Default)]
pub struct Environment {
    /// `None`: listens on the configured addresses. Otherwise there are no admin pages, and the node's address is the one it advertises.
    pub incoming: Option<Incoming>,
    /// `None`: connects by TCP.
    pub connector: Option<&'static dyn Connect>,
    /// `None`: the configured one, in the data directory.
    pub engine: Option<Arc<dyn Engine>>,
    /// Told of the engine as the node has it, with its buffer, for who looks at what a running node holds.
    pub on_engine: Option<OnEngine>,
    pub log: Driver,
    /// What happens when the log can no longer keep what it is given. `None`: the process aborts.
    pub on_fatal: Option<OnFatal>,
}

/// A connection that a caller has opened.
pub struct Accepted(pub Box<dyn ByteStream>);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
