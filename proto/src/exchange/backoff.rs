//! Pauses that grow and are spread at random, so that callers who failed together do not return together.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

/// After so many failures a pause has long grown to its bound.
const ATTEMPTS_TOLD_APART: u32 = 16;

/// Exponential backoff with jitter: from half to the whole of `first * 2^attempt`, at most `max`.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Backoff {
    /// The pause after `attempt` failures, the first being 0.
    pub fn pause(&self, attempt: u32) -> Duration {
        // Jitter adds up to the whole of a delay: half of it here makes from half to the whole.
        let delays = ExponentialBuilder::new()
            .with_min_delay(self.first / 2)
            .with_max_delay(self.max / 2)
            .without_max_times()
            .with_jitter();
        let nth = usize::try_from(attempt.min(ATTEMPTS_TOLD_APART)).unwrap_or(usize::MAX);
        delays.build().nth(nth).unwrap_or(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_no_further() {
        let backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_secs(1) };
        for attempt in 0..100 {
            let whole = Duration::from_millis(50 << attempt.min(5)).min(Duration::from_secs(1));
            let pause = backoff.pause(attempt);
            // Delays are doubled as floating-point numbers.
            let whole_max = whole + Duration::from_micros(1);
            assert!(pause <= whole_max && pause >= whole / 2, "{attempt}: {pause:?}");
        }
    }

    #[test]
    fn callers_who_failed_together_do_not_return_together() {
        let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(1) };
        let pauses: std::collections::BTreeSet<Duration> = (0..32).map(|_| backoff.pause(3)).collect();
        assert!(pauses.len() > 16, "{pauses:?}");
    }
}
