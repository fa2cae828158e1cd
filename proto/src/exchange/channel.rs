//! How a connection to a node is set up: timeouts, keepalive, windows and message limits.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::limits::MESSAGE_BYTES_MAX;

/// Settings of a connection. tonic has no keepalive unless told, so a silent peer would hang its callers.
#[derive(Debug, Clone, Copy)]
pub struct ChannelSettings {
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
        Ok(self.endpoint(addr)?.connect_lazy())
    }
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
