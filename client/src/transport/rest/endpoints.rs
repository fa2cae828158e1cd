//! The routers a client knows: round robin over those that answer.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a router that did not answer is left alone while another one does.
const SHUNNED: Duration = Duration::from_secs(1);

/// One router.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Scheme and authority, and a path prefix if there is one, without a slash at the end.
    pub base: String,
    /// Milliseconds since `Endpoints::started` until which it is left alone.
    shunned_until_ms: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Endpoints {
    all: Vec<Endpoint>,
    next: AtomicUsize,
    started: Instant,
}

impl Endpoints {
    /// Starts at a random one, so that many clients with one list spread over it.
    pub fn new(bases: Vec<String>) -> Self {
        let all: Vec<_> =
            bases.into_iter().map(|base| Endpoint { base, shunned_until_ms: AtomicU64::new(0) }).collect();
        let first = rand::random::<u32>() as usize;
        Self { all, next: AtomicUsize::new(first), started: Instant::now() }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// The next one in turn that is not left alone; when all of them are, the next in turn.
    pub fn pick(&self) -> Option<&Endpoint> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let now_ms = self.now_ms();
        let in_turn = |step: usize| self.all.get(turn.wrapping_add(step).checked_rem(self.all.len())?);
        let rested = |endpoint: &&Endpoint| endpoint.shunned_until_ms.load(Ordering::Relaxed) <= now_ms;
        (0..self.all.len()).filter_map(in_turn).find(rested).or_else(|| in_turn(0))
    }

    /// It did not answer.
    pub fn shun(&self, endpoint: &Endpoint) {
        let until = self.now_ms().saturating_add(u64::try_from(SHUNNED.as_millis()).unwrap_or(u64::MAX));
        endpoint.shunned_until_ms.store(until, Ordering::Relaxed);
    }

    /// It answered.
    pub fn welcome(&self, endpoint: &Endpoint) {
        endpoint.shunned_until_ms.store(0, Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Endpoints {
        Endpoints::new(vec!["a".into(), "b".into(), "c".into()])
    }

    #[test]
    fn all_take_their_turn() {
        let endpoints = three();
        let mut seen: Vec<_> = (0..6).map(|_| endpoints.pick().unwrap().base.clone()).collect();
        seen.sort();
        assert_eq!(seen, ["a", "a", "b", "b", "c", "c"]);
    }

    #[test]
    fn a_silent_one_is_left_alone_until_all_are() {
        let endpoints = three();
        let silent = endpoints.pick().unwrap();
        endpoints.shun(silent);
        assert!((0..6).all(|_| endpoints.pick().unwrap().base != silent.base));
        for endpoint in &endpoints.all {
            endpoints.shun(endpoint);
        }
        assert!(endpoints.pick().is_some());
        endpoints.welcome(silent);
        assert!((0..6).all(|_| endpoints.pick().unwrap().base == silent.base));
    }
}
