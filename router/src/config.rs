//! The router's configuration: one struct, all faults reported together before anything binds.

use std::net::SocketAddr;
use std::time::Duration;

use borough_proto::limits::DEADLINE_MAX;
use garde::Validate;
use serde::{Deserialize, Serialize};

/// Settings of `borough router`.
#[derive(Debug, Clone, Serialize, Deserialize, Validate)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// HTTP: the REST API, `/metrics`, `/docs`.
    #[garde(skip)]
    pub listen: SocketAddr,
    /// gRPC addresses of nodes, `host:port`. One that answers is enough: it names the others.
    #[garde(length(min = 1, max = 64), inner(custom(addr)))]
    pub nodes: Vec<String>,
    /// Deadline of a request that names none itself.
    #[serde(with = "humantime_serde")]
    #[garde(custom(at_least::<10>))]
    pub request_timeout: Duration,
    /// A node that has not answered for this long is left for another.
    #[serde(with = "humantime_serde")]
    #[garde(custom(at_least::<50>))]
    pub attempt_timeout: Duration,
    /// At stop: how long `/readyz` says no before new connections are refused, for load balancers to notice.
    #[serde(with = "humantime_serde")]
    #[garde(skip)]
    pub drain_delay: Duration,
    /// At stop: how long requests in flight may take.
    #[serde(with = "humantime_serde")]
    #[garde(skip)]
    pub drain_timeout: Duration,
    #[garde(dive)]
    pub rate_limit: RateLimitConfig,
    #[garde(dive)]
    pub limits: LimitsConfig,
}

/// Requests of one client, by its address.
#[derive(Debug, Clone, Default, Serialize, Deserialize, Validate)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct RateLimitConfig {
    /// Requests a second; 0 switches the limit off.
    #[garde(skip)]
    pub per_second: u32,
    /// Requests at once; `per-second` when 0.
    #[garde(skip)]
    pub burst: u32,
    /// Take the client's address from the last `X-Forwarded-For`: only behind a proxy that sets it.
    #[garde(skip)]
    pub trust_forwarded: bool,
}

/// Bounds on what a router holds at once (I8).
#[derive(Debug, Clone, Serialize, Deserialize, Validate)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct LimitsConfig {
    /// Requests in flight; more are refused with 503.
    #[garde(range(min = 1))]
    pub requests_max: usize,
    /// Connections; more wait to be accepted.
    #[garde(range(min = 1))]
    pub connections_max: usize,
    /// Calls in flight to one node; more are refused with 503.
    #[garde(range(min = 16))]
    pub calls_per_node_max: usize,
    /// Bytes of requests that wait to be sent to one node; more are refused with 503.
    #[garde(range(min = 16 << 20))]
    pub queued_bytes_per_node_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            nodes: Vec::new(),
            request_timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(2),
            drain_delay: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(20),
            rate_limit: RateLimitConfig::default(),
            limits: LimitsConfig::default(),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            requests_max: 16_384,
            connections_max: 16_384,
            calls_per_node_max: 16_384,
            queued_bytes_per_node_max: 64 << 20,
        }
    }
}

impl Config {
    /// Faults that concern more than one field; the fields' own come from [`Validate`].
    pub fn cross_field_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.request_timeout > DEADLINE_MAX {
            faults.push(format!("request-timeout: must be at most {DEADLINE_MAX:?}"));
        }
        if self.attempt_timeout > self.request_timeout {
            faults.push("attempt-timeout: must not be longer than request-timeout".to_owned());
        }
        if self.rate_limit.burst > 0 && self.rate_limit.per_second == 0 {
            faults.push("rate-limit.burst: has no effect while rate-limit.per-second is 0".to_owned());
        }
        faults
    }
}

fn addr(addr: &str, (): &()) -> garde::Result {
    let port = addr
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none() { Err(garde::Error::new(format!("{addr:?} is not host:port"))) } else { Ok(()) }
}

fn at_least<const MILLIS: u64>(duration: &Duration, (): &()) -> garde::Result {
    let min = Duration::from_millis(MILLIS);
    if *duration < min { Err(garde::Error::new(format!("must be at least {min:?}"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_needs_only_nodes() {
        assert!(Config::default().validate().is_err());
        let config = Config { nodes: vec!["a:1".to_owned()], ..Config::default() };
        assert!(config.validate().is_ok() && config.cross_field_faults().is_empty());
    }

    #[test]
    fn faults_are_all_found() {
        let config = Config {
            nodes: vec!["nowhere".to_owned(), ":1".to_owned()],
            request_timeout: Duration::from_secs(61),
            attempt_timeout: Duration::from_millis(1),
            ..Config::default()
        };
        let report = config.validate().unwrap_err();
        assert_eq!(report.iter().count(), 3, "{report}");
        assert_eq!(config.cross_field_faults().len(), 1);
    }

    #[test]
    fn unknown_settings_are_refused() {
        assert!(serde_json::from_str::<Config>(r#"{"request-timeout":"5s"}"#).is_ok());
        assert!(serde_json::from_str::<Config>(r#"{"request_timeout":"5s"}"#).is_err());
    }
}
