//! A limit on the requests of one client. Off unless configured.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use borough_proto::error::ProblemType;
use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::RateLimitConfig;
use crate::http::refusal::Refusal;

type Limiter = RateLimiter<Client, DefaultKeyedStateStore<Client>, DefaultClock, StateInformationMiddleware>;

/// Whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    Address(IpAddr),
    /// By its position in the configuration.
    Token(usize),
}

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Clients remembered at most; those who were not seen lately are forgotten first.
const CLIENTS_MAX: usize = 100_000;

/// Counts requests by client.
pub struct ClientLimit {
    limiter: Limiter,
    clock: DefaultClock,
    policy: HeaderValue,
    burst: u32,
    per_second: u32,
    trust_forwarded: bool,
}

impl ClientLimit {
    /// `None` when the limit is off.
    pub fn new(config: &RateLimitConfig) -> Option<Self> {
        let per_second = NonZeroU32::new(config.per_second)?;
        let burst = NonZeroU32::new(config.burst).unwrap_or(per_second);
        let limiter = RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst))
            .with_middleware::<StateInformationMiddleware>();
        let window = burst.get().div_ceil(per_second.get());
        let policy = HeaderValue::from_str(&format!("\"client\";q={burst};w={window}")).ok()?;
        Some(Self {
            limiter,
            clock: DefaultClock::default(),
            policy,
            burst: burst.get(),
            per_second: per_second.get(),
            trust_forwarded: config.trust_forwarded,
        })
    }

    /// Counts a request against its token, or against its address while auth is off; answers the headers that tell what
    /// is left.
    ///
    /// # Errors
    /// 429.
    pub fn check(
        &self,
        token: Option<usize>,
        peer: Option<SocketAddr>,
        headers: &HeaderMap,
    ) -> Result<HeaderMap, Refusal> {
        let address = || self.address(peer, headers).map(Client::Address);
        let Some(client) = token.map(Client::Token).or_else(address) else { return Ok(HeaderMap::new()) };
        match self.limiter.check_key(&client) {
            Ok(state) => {
                let left = state.remaining_burst_capacity();
                Ok(self.headers(
                    left,
                    Duration::from_secs(u64::from((self.burst - left).div_ceil(self.per_second))),
                ))
            }
            Err(not_until) => {
                let pause = not_until.wait_time_from(self.clock.now());
                let detail = format!("more than {} requests a second from one client", self.per_second);
                let mut refusal = Refusal::new(ProblemType::TooManyRequests, detail).retry_after(pause);
                refusal.headers_mut().extend(self.headers(0, pause));
                Err(refusal)
            }
        }
    }

    fn headers(&self, left: u32, reset: Duration) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(POLICY, self.policy.clone());
        let seconds = reset.as_secs() + u64::from(reset.subsec_nanos() > 0);
        if let Ok(value) = HeaderValue::from_str(&format!("\"client\";r={left};t={seconds}")) {
            headers.insert(RATE_LIMIT, value);
        }
        headers
    }

    fn address(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let forwarded = || {
            let last = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
            last.rsplit(',').next()?.trim().parse::<IpAddr>().ok()
        };
        let addr = self.trust_forwarded.then(forwarded).flatten().or(peer.map(|peer| peer.ip()))?;
        Some(match addr.to_canonical() {
            IpAddr::V4(addr) => IpAddr::V4(addr),
            // A host has a whole /64 to choose its addresses from.
            IpAddr::V6(addr) => IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX))),
        })
    }

    /// Forgets clients that are back at their full burst. Answers whether too many are left even so (I8).
    pub fn forget_idle(&self) -> bool {
        self.limiter.retain_recent();
        self.limiter.len() > CLIENTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(trust_forwarded: bool) -> ClientLimit {
        ClientLimit::new(&RateLimitConfig { per_second: 1, burst: 2, trust_forwarded }).unwrap()
    }

    fn peer(text: &str) -> Option<SocketAddr> {
        Some(SocketAddr::new(text.parse().unwrap(), 1))
    }

    #[test]
    fn the_limit_is_per_client_and_says_when_to_return() {
        let limit = limit(false);
        let none = HeaderMap::new();
        let first = limit.check(None, peer("10.0.0.1"), &none).unwrap();
        assert_eq!(first["ratelimit-policy"], "\"client\";q=2;w=2");
        assert_eq!(first["ratelimit"], "\"client\";r=1;t=1");
        assert!(limit.check(None, peer("10.0.0.1"), &none).is_ok());
        let refused = limit.check(None, peer("10.0.0.1"), &none).unwrap_err().into_response();
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.headers()["retry-after"], "1");
        assert!(refused.headers().contains_key("ratelimit"));
        assert!(limit.check(None, peer("10.0.0.2"), &none).is_ok());
    }

    #[test]
    fn one_host_is_one_client() {
        let none = HeaderMap::new();
        let limit = limit(true);
        assert_eq!(limit.address(peer("2001:db8::1"), &none), limit.address(peer("2001:db8::2"), &none));
        assert_eq!(limit.address(peer("::ffff:10.0.0.1"), &none), limit.address(peer("10.0.0.1"), &none));
        let mut forwarded = HeaderMap::new();
        forwarded.insert("x-forwarded-for", HeaderValue::from_static("6.6.6.6, 10.0.0.9"));
        assert_eq!(limit.address(peer("10.0.0.1"), &forwarded), Some("10.0.0.9".parse().unwrap()));
    }

    #[test]
    fn a_token_is_one_client_wherever_it_comes_from() {
        let limit = limit(false);
        let none = HeaderMap::new();
        for address in ["10.0.0.1", "10.0.0.2"] {
            assert!(limit.check(Some(0), peer(address), &none).is_ok());
        }
        assert_eq!(limit.check(Some(0), peer("10.0.0.3"), &none).unwrap_err().status(), 429);
        assert!(limit.check(Some(1), peer("10.0.0.3"), &none).is_ok());
        assert!(limit.check(None, peer("10.0.0.3"), &none).is_ok());
    }

    #[test]
    fn off_is_off() {
        assert!(ClientLimit::new(&RateLimitConfig::default()).is_none());
    }
}
