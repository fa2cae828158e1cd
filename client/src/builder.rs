//! How a [`Client`] is set up: where the cluster is, and what holds for every call unless it says otherwise.

use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "direct")]
use borough_proto::exchange::channel::ChannelSettings;
use borough_proto::http_api::valid_bearer_token;
use borough_proto::limits;
use reqwest::header::HeaderValue;

use crate::client::{Client, Inner};
use crate::transport::Transport;
use crate::transport::rest::{CONNECT_MAX, Endpoints, Rest};

/// A call's time unless the builder or the call says otherwise.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(5);

/// Why a client cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Neither `router` nor `direct` was called.
    #[error("no router is named; for example .router(\"http://127.0.0.1:8080\")")]
    NowhereToGo,
    /// Not a URL of a router.
    #[error("{url:?} is not an http URL of a router such as \"http://127.0.0.1:8080\": {reason}")]
    BadRouter { url: String, reason: String },
    /// Not an address of a node.
    #[error("{addr:?} is not the address of a node such as \"127.0.0.1:7070\": {reason}")]
    BadNode { addr: String, reason: String },
    /// A deadline that no call could keep or no router would accept.
    #[error("a deadline of {deadline:?} is not more than 0 and at most {:?}", limits::DEADLINE_MAX)]
    BadDeadline { deadline: Duration },
    /// Not a bearer token of RFC 6750: letters, digits and `-._~+/`, then perhaps `=`. The error does not show it.
    #[error("the bearer token is empty, too long, or has characters that no token has")]
    BadToken,
    /// The HTTP client could not be set up.
    #[error("set up the HTTP client")]
    Http { source: crate::error::Cause },
}

/// Builds a [`Client`]; made by [`Client::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    routers: Vec<String>,
    #[cfg(feature = "direct")]
    nodes: Option<Vec<String>>,
    #[cfg(feature = "direct")]
    channel: ChannelSettings,
    deadline: Duration,
    keys: Option<bool>,
    token: Option<Secret>,
}

/// Text that no output shows.
#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            routers: Vec::new(),
            #[cfg(feature = "direct")]
            nodes: None,
            #[cfg(feature = "direct")]
            channel: ChannelSettings::default(),
            deadline: DEADLINE_DEFAULT,
            keys: None,
            token: None,
        }
    }
}

impl ClientBuilder {
    /// Adds a router. Calls go round all routers; one that doesn't answer is left out for a while.
    pub fn router(mut self, url: impl Into<String>) -> Self {
        self.routers.push(url.into());
        self
    }

    /// Adds routers.
    pub fn routers<U: Into<String>>(mut self, urls: impl IntoIterator<Item = U>) -> Self {
        self.routers.extend(urls.into_iter().map(Into::into));
        self
    }

    /// Goes straight to the shards' leaders, which are found through any of these nodes.
    ///
    /// Nodes trust whoever reaches their gRPC port: they ask for no token and know no rights. Use this only inside that
    /// boundary; callers who are not to be trusted with all data go through a router.
    #[cfg(feature = "direct")]
    pub fn direct<A: Into<String>>(mut self, nodes: impl IntoIterator<Item = A>) -> Self {
        self.nodes.get_or_insert_default().extend(nodes.into_iter().map(Into::into));
        self
    }

    /// How connections to nodes are made.
    #[cfg(feature = "direct")]
    pub fn node_channel(mut self, channel: ChannelSettings) -> Self {
        self.channel = channel;
        self
    }

    /// Time for each call, all its attempts included; 5 s unless set. A call can set its own.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Whether writes get an idempotency key of their own. Through routers they do unless this says no;
    /// direct clients resend safely without, and make them only when this says so.
    ///
    /// The cluster remembers each key for a day. Without keys a bulk load leaves no such records, and a write
    /// through a router whose connection breaks ends with an unknown outcome where it would have been resent.
    pub fn idempotency_keys(mut self, keys: bool) -> Self {
        self.keys = Some(keys);
        self
    }

    /// The bearer token for routers where auth is on. Each request carries it and no output shows it; over plain `http`
    /// whoever can read the network reads it too.
    ///
    /// What the token lacks the right for fails with [`Error::Forbidden`](crate::Error::Forbidden). A patch sent with a
    /// token that may not read is applied, but answers no document: it ends with
    /// [`Error::Decode`](crate::Error::Decode), outcome applied.
    pub fn bearer_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Secret(token.into()));
        self
    }

    /// The client. Nothing is sent yet; routers and nodes may come up later.
    ///
    /// # Errors
    /// [`BuildError`], naming the setting.
    pub fn build(self) -> Result<Client, BuildError> {
        if self.deadline.is_zero() || self.deadline > limits::DEADLINE_MAX {
            return Err(BuildError::BadDeadline { deadline: self.deadline });
        }
        let rest = if self.routers.is_empty() { None } else { Some(self.rest()?) };
        let deadline = self.deadline;
        #[cfg(feature = "direct")]
        if let Some(nodes) = self.nodes {
            let data = Transport::Direct(crate::transport::direct::Direct::new(nodes, self.channel)?);
            let keys = self.keys.unwrap_or(false);
            return Ok(Client::new(Arc::new(Inner { data, admin: rest, deadline, keys })));
        }
        let data = Transport::Rest(rest.ok_or(BuildError::NowhereToGo)?);
        Ok(Client::new(Arc::new(Inner {
            data,
            #[cfg(feature = "direct")]
            admin: None,
            deadline,
            keys: self.keys.unwrap_or(true),
        })))
    }

    fn rest(&self) -> Result<Rest, BuildError> {
        let bases = self.routers.iter().map(|url| base(url)).collect::<Result<Vec<_>, _>>()?;
        let authorization = self
            .token
            .as_ref()
            .map(|Secret(token)| {
                let header =
                    valid_bearer_token(token).then(|| HeaderValue::try_from(format!("Bearer {token}")));
                let mut header = header.and_then(Result::ok).ok_or(BuildError::BadToken)?;
                header.set_sensitive(true);
                Ok(header)
            })
            .transpose()?;
        // No proxy from the environment: a database is asked directly, or through what the URL names.
        let http = reqwest::Client::builder()
            .no_proxy()
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|source| BuildError::Http { source: Box::new(source) })?;
        Ok(Rest { http, endpoints: Endpoints::new(bases), authorization })
    }
}

/// The URL without the slash at its end.
fn base(url: &str) -> Result<String, BuildError> {
    let bad = |reason: String| BuildError::BadRouter { url: url.to_owned(), reason };
    let parsed = reqwest::Url::parse(url).map_err(|error| bad(error.to_string()))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(bad(format!("the scheme is {:?}", parsed.scheme())));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(bad("it has a query or a fragment".to_owned()));
    }
    Ok(parsed.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_refused_before_anything_is_sent() {
        assert!(matches!(Client::builder().build(), Err(BuildError::NowhereToGo)));
        for url in ["", "127.0.0.1:8080", "ftp://a", "http://a/?x=1"] {
            assert!(
                matches!(Client::builder().router(url).build(), Err(BuildError::BadRouter { .. })),
                "{url}"
            );
        }
        let router = || Client::builder().router("http://a:1/");
        for deadline in [Duration::ZERO, Duration::from_secs(61)] {
            assert!(matches!(router().deadline(deadline).build(), Err(BuildError::BadDeadline { .. })));
        }
        for token in ["", "a\nb", "a b", "a,b", "\u{e9}"] {
            assert!(matches!(router().bearer_token(token).build(), Err(BuildError::BadToken)), "{token:?}");
        }
        assert!(!format!("{:?}", router().bearer_token("s3cret")).contains("s3cret"));
        assert_eq!(base("http://a:1/").unwrap(), "http://a:1");
        assert_eq!(base("http://a/prefix/").unwrap(), "http://a/prefix");
    }
}
