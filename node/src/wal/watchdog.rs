//! Ends the process when a flush takes too long.
//!
//! A disk that hangs would otherwise leave a leader holding its lease and its clients without an answer
//! (I1): nothing above the log notices that a completion never comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

/// Tells the watchdog when a flush began.
#[derive(Debug)]
pub(super) struct FlushClock {
    origin: Instant,
    /// Nanoseconds from the origin, plus one; 0 while no flush runs.
    began: AtomicU64,
}

impl FlushClock {
    pub fn new() -> Self {
        Self { origin: Instant::now(), began: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX - 1) + 1
    }

    pub fn begin(&self) {
        self.began.store(self.now(), Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.began.store(0, Ordering::Relaxed);
    }

    /// How long the running flush has taken so far.
    fn running(&self) -> Duration {
        match self.began.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => Duration::from_nanos(self.now().saturating_sub(began)),
        }
    }
}

/// Body of the watchdog's thread; returns when `stop` is disconnected or after it fired.
pub(super) fn watch(
    clock: &Arc<FlushClock>,
    deadline: Duration,
    stop: &Receiver<()>,
    fire: impl FnOnce(String),
) {
    let pause = (deadline / 8).clamp(Duration::from_millis(1), Duration::from_secs(1));
    while stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let running = clock.running();
        if running > deadline {
            return fire(format!("a log flush has taken {running:?}, the deadline is {deadline:?}"));
        }
    }
}
