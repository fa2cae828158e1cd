//! Which request of an open loop is due when, and who takes it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Which request is due when.
pub struct Schedule {
    start: Instant,
    rate: f64,
    count: u64,
    /// So many of them are due in the warm-up.
    warm_up: u64,
    taken: AtomicU64,
    /// Requests due and not yet taken.
    due: Semaphore,
}

impl Schedule {
    /// `rate` requests a second from now on, for `warm_up` and then for `measured`.
    pub fn new(rate: f64, warm_up: Duration, measured: Duration) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by the options")]
        let due = |length: Duration| (rate * length.as_secs_f64()) as u64;
        let (before, count) = (due(warm_up), due(warm_up + measured));
        let (taken, due) = (AtomicU64::new(0), Semaphore::new(0));
        Self { start: Instant::now(), rate, count, warm_up: before, taken, due }
    }

    /// Whether a request is due once the warm-up is over.
    pub fn is_measured(&self) -> bool {
        self.count > self.warm_up
    }

    fn due_at(&self, number: u64) -> Instant {
        self.start + Duration::from_secs_f64(number as f64 / self.rate)
    }

    /// Lets requests go when they are due, then `workers` more permits, by which workers learn that there are
    /// no more. On a thread of its own: the runtime's timer counts in milliseconds, which would be most of
    /// the latency measured.
    pub fn release(&self, workers: usize) {
        let mut released = 0;
        while released < self.count && !self.due.is_closed() {
            let now = Instant::now();
            let mut due = 0;
            while released + due < self.count && self.due_at(released + due) <= now {
                due += 1;
            }
            released += due;
            self.due.add_permits(usize::try_from(due).unwrap_or(usize::MAX));
            if released < self.count {
                std::thread::sleep(self.due_at(released).saturating_duration_since(Instant::now()));
            }
        }
        self.due.add_permits(workers);
    }

    /// The next request's due time, once it has come, and whether it is measured; `None` when there are no more.
    pub async fn take(&self) -> Option<(Instant, bool)> {
        self.due.acquire().await.ok()?.forget();
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        (number < self.count).then(|| (self.due_at(number), number >= self.warm_up))
    }

    /// Nobody takes any more.
    pub fn close(&self) {
        self.due.close();
    }

    /// Requests to be measured that nobody took.
    pub fn left(&self) -> u64 {
        self.count.saturating_sub(self.taken.load(Ordering::Relaxed).max(self.warm_up))
    }
}
