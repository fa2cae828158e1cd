//! The router's configuration: one struct, all faults reported together before anything binds.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use borough_proto::exchange::channel::{ChannelSettings, outbound_address};
use borough_proto::http_api::valid_collection_name;
use borough_proto::limits::DEADLINE_MAX;
use garde::Validate;
use serde::{Deserialize, Serialize};

use crate::auth::{Right, digest_of_hex};

/// Most tokens.
const TOKENS_MAX: usize = 1000;
const SHA256_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

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
    /// The machine's IP address that connections to nodes are made from, where it has several; the system's choice when empty.
    #[garde(skip)]
    pub outbound_address: String,
    /// Threads that serve requests; 0 is one for each processor. Fewer cost less where several processes share the processors.
    #[garde(range(max = 1024))]
    pub threads: usize,
    /// Whether threads that wake wait until others on their processor have used up their time (`SCHED_BATCH`, Linux): more
    /// requests then travel and are written together.
    #[garde(skip)]
    pub batch_scheduling: bool,
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
    pub auth: AuthConfig,
    #[garde(dive)]
    pub rate_limit: RateLimitConfig,
    #[garde(dive)]
    pub limits: LimitsConfig,
}

/// Who may do what. Off, and everybody may do everything, while there is no token.
#[derive(Debug, Clone, Default, Serialize, Deserialize, Validate)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct AuthConfig {
    #[garde(length(max = TOKENS_MAX), dive)]
    pub tokens: Vec<TokenConfig>,
}

/// A bearer token and what it is good for.
// Fields are texts, and absent ones empty, so that all faults are found in one run.
#[derive(Debug, Clone, Default, Serialize, Deserialize, Validate)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct TokenConfig {
    /// For people: problems and this file's faults name it.
    #[garde(length(min = 1, max = 64))]
    pub name: String,
    /// SHA-256 of the token, in hex: the token itself is never configured here.
    #[garde(custom(digest))]
    pub sha256: String,
    /// `read`, `write`, `admin`.
    #[garde(length(min = 1), inner(custom(right)))]
    pub rights: Vec<String>,
    /// Confines it to these collections; all when absent.
    #[garde(inner(length(min = 1), inner(custom(collection))))]
    pub collections: Option<Vec<String>>,
}

/// Requests of one client: of a token while auth is on, else of an address.
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
    /// A connection on which no whole head of a request has come for this long is closed. Longer than clients keep idle
    /// connections, so that none is closed under a request.
    #[serde(with = "humantime_serde")]
    #[garde(custom(at_least::<1000>))]
    pub connection_idle_max: Duration,
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
            outbound_address: String::new(),
            threads: 0,
            batch_scheduling: true,
            request_timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(2),
            drain_delay: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(20),
            auth: AuthConfig::default(),
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
            connection_idle_max: Duration::from_secs(300),
            calls_per_node_max: 16_384,
            queued_bytes_per_node_max: 64 << 20,
        }
    }
}

impl Config {
    /// How connections to nodes are made.
    pub fn channel(&self) -> ChannelSettings {
        let local_address = outbound_address(&self.outbound_address).unwrap_or_default();
        ChannelSettings { local_address, ..ChannelSettings::default() }
    }

    /// Faults that concern more than one field; the fields' own come from [`Validate`].
    pub fn cross_field_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        faults.extend(outbound_address(&self.outbound_address).err());
        if self.request_timeout > DEADLINE_MAX {
            faults.push(format!("request-timeout: must be at most {DEADLINE_MAX:?}"));
        }
        if self.attempt_timeout > self.request_timeout {
            faults.push("attempt-timeout: must not be longer than request-timeout".to_owned());
        }
        if self.rate_limit.burst > 0 && self.rate_limit.per_second == 0 {
            faults.push("rate-limit.burst: has no effect while rate-limit.per-second is 0".to_owned());
        }
        self.auth.cross_field_faults(&mut faults);
        faults
    }
}

impl AuthConfig {
    fn cross_field_faults(&self, faults: &mut Vec<String>) {
        let (mut names, mut digests) = (HashMap::new(), HashMap::new());
        for (number, token) in self.tokens.iter().enumerate() {
            if let Some(first) = names.insert(token.name.as_str(), number) {
                faults.push(format!("auth.tokens[{number}].name: is that of auth.tokens[{first}] too"));
            }
            let digest = digest_of_hex(&token.sha256);
            if let Some(first) = digest.and_then(|digest| digests.insert(digest, number)) {
                faults.push(format!("auth.tokens[{number}].sha256: is that of auth.tokens[{first}] too"));
            }
            // The control plane is one: half of it would be a promise that is not kept.
            if token.collections.is_some() && token.rights.iter().any(|right| right == Right::Admin.name()) {
                faults.push(format!(
                    "auth.tokens[{number}].collections: a token with the right \"admin\" cannot be confined"
                ));
            }
        }
    }
}

fn digest(text: &str, (): &()) -> garde::Result {
    match digest_of_hex(text) {
        // What an empty shell variable gives.
        Some(_) if text.eq_ignore_ascii_case(SHA256_OF_NOTHING) => {
            Err(garde::Error::new("is the digest of an empty token"))
        }
        Some(_) => Ok(()),
        None => {
            Err(garde::Error::new("must be the 64 hex digits that `printf %s \"$TOKEN\" | sha256sum` prints"))
        }
    }
}

fn right(text: &str, (): &()) -> garde::Result {
    let known = || Right::ALL.iter().map(|right| right.name()).collect::<Vec<_>>().join(", ");
    match Right::parse(text) {
        Some(_) => Ok(()),
        None => Err(garde::Error::new(format!("{text:?} is no right; there are {}", known()))),
    }
}

fn collection(name: &str, (): &()) -> garde::Result {
    if valid_collection_name(name) {
        Ok(())
    } else {
        Err(garde::Error::new(format!("{name:?} cannot name a collection")))
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

    fn token(name: &str, digit: char, rights: &[&str]) -> TokenConfig {
        TokenConfig {
            name: name.to_owned(),
            sha256: digit.to_string().repeat(64),
            rights: rights.iter().map(|&right| right.to_owned()).collect(),
            collections: None,
        }
    }

    fn with_tokens(tokens: Vec<TokenConfig>) -> Config {
        Config { nodes: vec!["a:1".to_owned()], auth: AuthConfig { tokens }, ..Config::default() }
    }

    #[test]
    fn good_tokens_are_taken() {
        let mut confined = token("b", 'B', &["write", "read"]);
        confined.collections = Some(vec!["users".to_owned()]);
        let config = with_tokens(vec![token("a", 'a', &["read", "write", "admin"]), confined]);
        assert!(config.validate().is_ok() && config.cross_field_faults().is_empty());
    }

    #[test]
    fn faults_of_tokens_are_all_found_with_their_place() {
        let mut bad = token("", 'x', &["reed", "", "read"]);
        bad.collections = Some(vec!["Users".to_owned(), "partitions".to_owned()]);
        let mut confined = token("a", 'A', &["admin"]);
        confined.collections = Some(Vec::new());
        let nothing = TokenConfig { sha256: SHA256_OF_NOTHING.to_owned(), ..token("c", 'c', &[]) };
        let config = with_tokens(vec![token("a", 'a', &["read"]), bad, confined, nothing]);
        let report = config.validate().unwrap_err();
        let found: Vec<String> = report.iter().map(|(path, _)| path.to_string()).collect();
        for place in [
            "auth.tokens[1].name",
            "auth.tokens[1].sha256",
            "auth.tokens[1].rights[0]",
            "auth.tokens[1].rights[1]",
            "auth.tokens[1].collections[0]",
            "auth.tokens[1].collections[1]",
            "auth.tokens[2].collections",
            "auth.tokens[3].sha256",
            "auth.tokens[3].rights",
        ] {
            assert!(found.iter().any(|path| path == place), "{place} is missing: {found:?}");
        }
        assert_eq!(found.len(), 9, "{report}");
        let faults = config.cross_field_faults();
        assert_eq!(faults.len(), 3, "{faults:?}");
        for start in ["auth.tokens[2].name: ", "auth.tokens[2].sha256: ", "auth.tokens[2].collections: "] {
            assert!(faults.iter().any(|fault| fault.starts_with(start)), "{start}: {faults:?}");
        }
    }

    #[test]
    fn tokens_are_bounded() {
        let numbered = |number: usize| TokenConfig {
            sha256: format!("{number:064x}"),
            ..token(&format!("t{number}"), 'a', &["read"])
        };
        assert!(with_tokens((0..TOKENS_MAX).map(numbered).collect()).validate().is_ok());
        assert!(with_tokens((0..=TOKENS_MAX).map(numbered).collect()).validate().is_err());
    }

    #[test]
    fn unknown_settings_are_refused() {
        assert!(serde_json::from_str::<Config>(r#"{"request-timeout":"5s"}"#).is_ok());
        assert!(serde_json::from_str::<Config>(r#"{"request_timeout":"5s"}"#).is_err());
    }
}
