//! How fast snapshots leave a node: within its rate, all transfers together, and slower while requests are kept waiting.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A timer that fires this much late says that the processors are taken: requests wait as long as it did.
const LATE: Duration = Duration::from_millis(5);
/// Least part of the rate that is kept, so that every transfer ends.
const SHARE_MIN: f64 = 1.0 / 16.0;
/// What is won back with every chunk that was on time.
const SHARE_STEP: f64 = 1.0 / 32.0;
/// Even where there is nothing to wait for, a chunk waits for one tick of the timer, to see whether that is late.
const TICK: Duration = Duration::from_millis(1);

/// The node's pace.
pub(super) struct Pace {
    bytes_per_second: u64,
    gives_way: bool,
    state: Mutex<State>,
}

struct State {
    /// When the chunks before this one will have left.
    free: Instant,
    /// Part of the rate that may be used now.
    share: f64,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64, gives_way: bool) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            gives_way,
            state: Mutex::new(State { free: Instant::now(), share: 1.0 }),
        }
    }

    /// Waits until `bytes` may leave.
    pub(super) async fn wait(&self, bytes: usize) {
        let due = {
            let mut state = self.state.lock();
            let start = state.free.max(Instant::now());
            let rate = self.bytes_per_second as f64 * state.share;
            state.free = start + Duration::from_secs_f64(bytes as f64 / rate);
            start + TICK
        };
        tokio::time::sleep_until(due).await;
        let late = Instant::now().saturating_duration_since(due);
        if self.gives_way {
            let mut state = self.state.lock();
            state.share = adapted(state.share, late);
        }
    }

    /// Part of the rate that is used now, from a sixteenth to 1.
    pub(super) fn share(&self) -> f64 {
        self.state.lock().share
    }
}

/// Halved when late, won back step by step: the way in which senders share a line.
fn adapted(share: f64, late: Duration) -> f64 {
    if late > LATE { (share / 2.0).max(SHARE_MIN) } else { (share + SHARE_STEP).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_transfers_together_keep_the_rate() {
        let pace = Pace::new(1_000_000, true);
        let started = Instant::now();
        let transfer = async || {
            for _ in 0..10 {
                pace.wait(10_000).await;
            }
        };
        tokio::join!(transfer(), transfer());
        // The last chunk leaves when the nineteen before it have; a busy machine only makes that later.
        assert!(started.elapsed() >= Duration::from_millis(190), "{:?}", started.elapsed());
    }

    /// Chunks, while something else takes the only thread for much longer than a timer may be late.
    async fn crowded(pace: &Pace) {
        let other = async {
            for _ in 0..10 {
                std::thread::sleep(LATE * 3);
                tokio::task::yield_now().await;
            }
        };
        let chunks = async {
            for _ in 0..10 {
                pace.wait(1).await;
            }
        };
        tokio::join!(other, chunks);
    }

    #[tokio::test]
    async fn it_gives_way_when_the_processors_are_taken_unless_told_not_to() {
        let (yielding, greedy) = (Pace::new(u64::MAX, true), Pace::new(u64::MAX, false));
        crowded(&yielding).await;
        crowded(&greedy).await;
        assert!(yielding.share() < 0.5, "{}", yielding.share());
        assert!((greedy.share() - 1.0).abs() < f64::EPSILON, "{}", greedy.share());
    }

    #[test]
    fn it_gives_way_at_once_and_comes_back_slowly() {
        let mut share = 1.0;
        for _ in 0..10 {
            share = adapted(share, LATE * 2);
        }
        assert!((share - SHARE_MIN).abs() < f64::EPSILON, "{share}");
        let mut chunks = 0;
        while share < 1.0 {
            share = adapted(share, Duration::ZERO);
            chunks += 1;
        }
        assert_eq!(chunks, 30);
    }
}
