//! How fast snapshots leave a node: within its rate, all transfers together, and slower while requests are kept waiting.
//!
//! Two things say that they are: a timer that fires late (no processor was to be had), and requests that take much longer
//! than they did before the transfer, whatever they wait for. The second is how background transfers yield on a line they
//! share (LEDBAT, RFC 6817): what is usual is learned while nothing is sent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A timer that fires this much late says that the processors are taken: requests wait as long as it did.
const LATE: Duration = Duration::from_millis(5);
/// Requests may take so many times as long as is usual beside a transfer.
const SLOWED_TIMES: u64 = 2;
/// What they may take longer in any case: quick ones double for nothing.
const SLOWED_MIN: Duration = Duration::from_millis(1);
/// How often the share is judged while something is sent.
const WINDOW: Duration = Duration::from_millis(100);
/// Requests of a kind in a window that say something.
const SAMPLES_MIN: u64 = 5;
/// Part of what is usual that a window of rest may change.
const LEARN_PARTS: u64 = 4;
/// After this long without a chunk the node is at rest.
const REST: Duration = Duration::from_secs(2);
/// Least part of the rate that is kept, so that every transfer ends.
const SHARE_MIN: f64 = 1.0 / 16.0;
/// What is won back with every window in which nobody was kept waiting.
const SHARE_STEP: f64 = 1.0 / 16.0;
/// What leaves in one piece of a log, in time and at least in bytes.
const PIECE: Duration = Duration::from_millis(125);
const PIECE_BYTES_MIN: usize = 8 << 10;
/// Even where there is nothing to wait for, a chunk waits for one tick of the timer, to see whether that is late.
const TICK: Duration = Duration::from_millis(1);

/// The node's pace.
pub(super) struct Pace {
    bytes_per_second: u64,
    gives_way: bool,
    reads: Taken,
    writes: Taken,
    state: Mutex<State>,
}

struct State {
    /// When the chunks before this one will have left.
    free: Instant,
    /// Part of the rate that may be used now.
    share: f64,
    /// When a chunk was last waited for.
    sent: Option<Instant>,
    /// When the share was last judged.
    looked: Instant,
    /// Whether a timer has been late since.
    late: bool,
}

/// How long requests of one kind take.
#[derive(Default)]
struct Taken {
    micros: AtomicU64,
    count: AtomicU64,
    /// Microseconds, while nothing is sent; 0 before that is known.
    usual: AtomicU64,
}

impl Taken {
    fn note(&self, took: Duration) {
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX >> 20), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The mean since it was last asked for, in microseconds, of enough requests.
    fn mean(&self) -> Option<u64> {
        let count = self.count.swap(0, Ordering::Relaxed);
        let micros = self.micros.swap(0, Ordering::Relaxed);
        (count >= SAMPLES_MIN).then(|| micros / count)
    }

    fn learn(&self) {
        let Some(mean) = self.mean() else { return };
        let usual = self.usual.load(Ordering::Relaxed);
        let learned = if usual == 0 { mean } else { usual - usual / LEARN_PARTS + mean / LEARN_PARTS };
        self.usual.store(learned, Ordering::Relaxed);
    }

    fn slowed(&self) -> bool {
        let usual = self.usual.load(Ordering::Relaxed);
        let least = usual + u64::try_from(SLOWED_MIN.as_micros()).unwrap_or(u64::MAX);
        self.mean().is_some_and(|mean| usual > 0 && mean > least.max(usual.saturating_mul(SLOWED_TIMES)))
    }
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64, gives_way: bool) -> Self {
        let now = Instant::now();
        Self {
            bytes_per_second: bytes_per_second.max(1),
            gives_way,
            reads: Taken::default(),
            writes: Taken::default(),
            state: Mutex::new(State { free: now, share: 1.0, sent: None, looked: now, late: false }),
        }
    }

    /// Notes that a request of a caller was answered.
    pub(super) fn answered(&self, write: bool, took: Duration) {
        if write { self.writes.note(took) } else { self.reads.note(took) }
    }

    /// Learns how long requests take while nothing is sent; asked about once a second.
    pub(super) fn learn(&self) {
        let sending = self.state.lock().sent.is_some_and(|sent| sent.elapsed() < REST);
        if !sending {
            self.reads.learn();
            self.writes.learn();
        }
    }

    /// Waits until `bytes` may leave.
    pub(super) async fn wait(&self, bytes: usize) {
        let due = {
            let mut state = self.state.lock();
            let now = Instant::now();
            let start = state.free.max(now);
            let rate = self.bytes_per_second as f64 * state.share;
            state.free = start + Duration::from_secs_f64(bytes as f64 / rate);
            if state.sent.is_none_or(|sent| now - sent >= REST) {
                // Requests of before this transfer say nothing about it.
                state.looked = now;
                self.reads.mean();
                self.writes.mean();
            }
            state.sent = Some(now);
            start + TICK
        };
        tokio::time::sleep_until(due).await;
        let now = Instant::now();
        let mut state = self.state.lock();
        state.sent = Some(now);
        state.late |= now.saturating_duration_since(due) > LATE;
        if self.gives_way && now.saturating_duration_since(state.looked) >= WINDOW {
            state.looked = now;
            // Both, so that both begin anew.
            let slowed = self.reads.slowed() | self.writes.slowed();
            let late = std::mem::take(&mut state.late);
            state.share = adapted(state.share, slowed || late);
        }
    }

    /// Takes what has left from what may: for who has waited for no bytes, as it knew only afterwards whether they arrive.
    pub(super) fn spend(&self, bytes: usize) {
        let mut state = self.state.lock();
        let rate = self.bytes_per_second as f64 * state.share;
        state.free = state.free.max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate);
    }

    /// Bytes that may leave in one piece: some hundred milliseconds' worth, so that nobody waits long behind it.
    pub(super) fn piece(&self) -> usize {
        let rate = self.bytes_per_second as f64 * self.share();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate of bytes is neither"
        )]
        let piece = (rate * PIECE.as_secs_f64()) as usize;
        piece.max(PIECE_BYTES_MIN)
    }

    /// Part of the rate that is used now, from a sixteenth to 1.
    pub(super) fn share(&self) -> f64 {
        self.state.lock().share
    }
}

/// Halved when in the way, won back step by step: the way in which senders share a line.
fn adapted(share: f64, in_the_way: bool) -> f64 {
    if in_the_way { (share / 2.0).max(SHARE_MIN) } else { (share + SHARE_STEP).min(1.0) }
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

    #[tokio::test(start_paused = true)]
    async fn what_is_spent_afterwards_is_waited_for_next() {
        let pace = Pace::new(1_000_000, false);
        assert_eq!(pace.piece(), 125_000);
        assert_eq!(Pace::new(1_000, false).piece(), PIECE_BYTES_MIN);
        let started = Instant::now();
        for _ in 0..5 {
            pace.wait(0).await;
            // What did not arrive costs nothing.
            pace.spend(0);
        }
        assert!(started.elapsed() < Duration::from_millis(50), "{:?}", started.elapsed());
        for _ in 0..5 {
            pace.wait(0).await;
            pace.spend(100_000);
        }
        let (took, least) = (started.elapsed(), Duration::from_millis(400));
        assert!(took >= least && took < least + Duration::from_millis(50), "{took:?}");
    }

    /// Chunks, while something else takes the only thread for much longer than a timer may be late.
    async fn crowded(pace: &Pace) {
        let other = async {
            for _ in 0..40 {
                std::thread::sleep(LATE * 3);
                tokio::task::yield_now().await;
            }
        };
        let chunks = async {
            for _ in 0..40 {
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

    #[tokio::test]
    async fn it_gives_way_when_requests_take_longer_than_is_usual() {
        for write in [false, true] {
            let pace = Pace::new(u64::MAX, true);
            for _ in 0..SAMPLES_MIN {
                pace.answered(write, Duration::from_millis(4));
            }
            pace.learn();
            let begun = Instant::now();
            while pace.share() > 0.6 {
                assert!(begun.elapsed() < WINDOW * 50, "write {write}: still at {}", pace.share());
                pace.answered(write, Duration::from_millis(9));
                pace.wait(1).await;
            }
        }
    }

    #[test]
    fn what_is_usual_is_learned_at_rest_only() {
        let taken = Taken::default();
        let note = |millis, count| (0..count).for_each(|_| taken.note(Duration::from_millis(millis)));
        note(100, SAMPLES_MIN);
        assert!(!taken.slowed(), "nothing is usual yet");
        note(2, SAMPLES_MIN);
        taken.learn();
        note(3, SAMPLES_MIN);
        assert!(!taken.slowed());
        note(5, SAMPLES_MIN);
        assert!(taken.slowed());
        note(5, SAMPLES_MIN - 1);
        assert!(!taken.slowed(), "too few to say");
        note(10, SAMPLES_MIN);
        taken.learn();
        assert_eq!(taken.usual.load(Ordering::Relaxed), 4000, "a quarter of the way from 2 ms to 10 ms");
    }

    #[test]
    fn it_gives_way_at_once_and_comes_back_slowly() {
        let mut share = 1.0;
        for _ in 0..10 {
            share = adapted(share, true);
        }
        assert!((share - SHARE_MIN).abs() < f64::EPSILON, "{share}");
        let mut windows = 0;
        while share < 1.0 {
            share = adapted(share, false);
            windows += 1;
        }
        assert_eq!(windows, 15);
    }
}
