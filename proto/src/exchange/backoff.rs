//! Pauses that grow and are spread at random, so that callers who failed together do not return together.

use std::time::Duration;

/// Exponential backoff with jitter: from half to the whole of `first * 2^attempt`, at most `max`.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Backoff {
    /// The pause after `attempt` failures, the first being 0.
    pub fn pause(&self, attempt: u32) -> Duration {
        let whole = self.first.saturating_mul(1_u32 << attempt.min(16)).min(self.max);
        whole.mul_f64(rand::random::<f64>().mul_add(0.5, 0.5))
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
            assert!(pause <= whole && pause >= whole / 2, "{attempt}: {pause:?}");
        }
    }
}
