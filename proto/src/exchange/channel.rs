//! How a connection to a node is set up: timeouts, keepalive, windows and message limits.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::limits::MESSAGE_BYTES_MAX;

/// A connection's bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// Makes connections by other means than TCP, for simulations. It is the way to everywhere, so it lives as long as
/// the process.
pub trait Connect: fmt::Debug + Send + Sync + 'static {
    /// Connects to `addr` (`host:port`).
    fn connect(&self, addr: String) -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>>;
}

/// Settings of a connection. tonic has no keepalive unless told, so a silent peer would hang its callers.
#[derive(Debug, Clone, Copy)]
pub struct ChannelSettings {
    /// The connection's own end is bound to this address of the machine; `None`: the system picks one.
    pub local_address: Option<IpAddr>,
    /// `None`: TCP.
    pub connector: Option<&'static dyn Connect>,
    pub connect_timeout: Duration,
    /// Between HTTP/2 pings.
    pub keepalive_interval: Duration,
    /// A ping unanswered for this long breaks the connection.
    pub keepalive_timeout: Duration,
    /// HTTP/2 flow control, in bytes: of a stream, and of the connection.
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
}

impl Default for ChannelSettings {
    fn default() -> Self {
        Self {
            local_address: None,
            connector: None,
            connect_timeout: Duration::from_millis(1000),
            keepalive_interval: Duration::from_millis(1000),
            keepalive_timeout: Duration::from_millis(2000),
            stream_window_bytes: 8 << 20,
            connection_window_bytes: 16 << 20,
        }
    }
}

/// `text` is no `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{addr:?} is not an address such as 10.0.0.1:7070")]
pub struct BadAddr {
    addr: String,
}

impl ChannelSettings {
    /// The endpoint of the node at `addr` (`host:port`).
    ///
    /// # Errors
    /// [`BadAddr`].
    pub fn endpoint(&self, addr: &str) -> Result<Endpoint, BadAddr> {
        let bad = || BadAddr { addr: addr.to_owned() };
        let (host, port) = addr.rsplit_once(':').ok_or_else(bad)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(|_| bad())?;
        Ok(endpoint
            .local_address(self.local_address)
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(10)))
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(self.stream_window_bytes)
            .initial_connection_window_size(self.connection_window_bytes))
    }

    /// A channel that connects when it is first used.
    ///
    /// # Errors
    /// [`BadAddr`].
    pub fn lazy(&self, addr: &str) -> Result<Channel, BadAddr> {
        let endpoint = self.endpoint(addr)?;
        let Some(connector) = self.connector else { return Ok(endpoint.connect_lazy()) };
        let connect = move |to: Uri| {
            let addr = to.authority().map(ToString::to_string).unwrap_or_default();
            let connecting = connector.connect(addr);
            async move { connecting.await.map(TokioIo::new) }
        };
        Ok(endpoint.connect_with_connector_lazy(service_fn(connect)))
    }
}

/// The address that the setting `outbound-address` names, which is empty when there is none.
///
/// # Errors
/// What is wrong with it, for people.
pub fn outbound_address(text: &str) -> Result<Option<IpAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let fault = |_| format!("outbound-address: {text:?} is not an IP address such as 10.0.0.1");
    text.parse().map(Some).map_err(fault)
}

/// Limits of a data client's messages.
pub fn data_client(channel: Channel) -> crate::wire::data_client::DataClient<Channel> {
    crate::wire::data_client::DataClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Limits of a cluster client's messages.
pub fn cluster_client(channel: Channel) -> crate::wire::cluster_client::ClusterClient<Channel> {
    crate::wire::cluster_client::ClusterClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn an_outbound_address_is_an_address_or_nothing() {
        assert_eq!(outbound_address(""), Ok(None));
        assert_eq!(outbound_address("127.0.1.2"), Ok(Some(IpAddr::from([127, 0, 1, 2]))));
        for bad in ["localhost", "10.0.0.1:7070", " "] {
            assert!(outbound_address(bad).is_err(), "{bad}");
        }
    }

    // All of 127.0.0.0/8 is this machine's on Linux alone.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn connections_come_from_the_address_that_they_are_bound_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let local_address = outbound_address("127.0.1.2").unwrap();
        let settings = ChannelSettings { local_address, ..ChannelSettings::default() };
        let endpoint = settings.endpoint(&addr).unwrap();
        let (accepted, _channel) = tokio::join!(listener.accept(), endpoint.connect());
        let (_, peer) = accepted.unwrap();
        assert_eq!(Some(peer.ip()), local_address);
    }
}
