//! How long the machine itself stood still, so that a limit on Borough is not held against it.
//!
//! Two threads of their own feel for it: one sleeps a little and notes how late it is woken (no processor was to be had),
//! one writes a block beside the nodes' data and flushes it (the disk was not to be had). What a machine that works does to
//! them stays below `STALL_MIN` and is not counted: then a limit holds as it is.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(10);
/// Between two flushes.
const FLUSH_EVERY: Duration = Duration::from_millis(50);
/// What is shorter is no stall: a limit has room for it.
const STALL_MIN: Duration = Duration::from_millis(50);
/// More than this is never allowed, whatever the machine did.
const ALLOWANCE_MAX: Duration = Duration::from_secs(10);

/// From and to.
type Span = (Instant, Instant);

/// What one thread felt.
#[derive(Debug)]
struct Felt {
    stalls: Vec<Span>,
    /// Since when the thread waits for the machine; in the future while it rests.
    waiting_since: Option<Instant>,
}

type Shared = Arc<Mutex<Felt>>;

/// Feels for stalls until it is dropped.
#[derive(Debug)]
pub struct Stalls {
    felt: Vec<Shared>,
    /// Disconnected to end the threads.
    stop: Vec<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Stalls {
    /// Starts to feel, on the disk of `dir`.
    ///
    /// # Errors
    /// When the file for it or a thread cannot be made.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("stall-probe");
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let mut stalls = Self { felt: Vec::new(), stop: Vec::new(), threads: Vec::new() };
        stalls.spawn("stall-clock", |felt, stop| while tick(felt, stop) {})?;
        stalls.spawn("stall-disk", move |felt, stop| while flush(&file, felt, stop) {})?;
        Ok(stalls)
    }

    fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce(&Shared, &Receiver<()>) + Send + 'static,
    ) -> anyhow::Result<()> {
        let felt: Shared = Arc::new(Mutex::new(Felt { stalls: Vec::new(), waiting_since: None }));
        let (stop, stopped) = channel();
        let shared = Arc::clone(&felt);
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread =
            thread.spawn(move || body(&shared, &stopped)).with_context(|| format!("start {name}"))?;
        self.felt.push(felt);
        self.stop.push(stop);
        self.threads.push(thread);
        Ok(())
    }

    /// How long the machine stood still between `from` and `to`: what a limit on that time may be exceeded by. At most ten
    /// seconds.
    pub fn between(&self, from: Instant, to: Instant) -> Duration {
        let now = Instant::now();
        let mut stalls = Vec::new();
        for felt in &self.felt {
            let felt = felt.lock().unwrap_or_else(PoisonError::into_inner);
            stalls.extend_from_slice(&felt.stalls);
            stalls.extend(felt.waiting_since.and_then(|since| stall(since, now)));
        }
        covered(stalls, from, to).min(ALLOWANCE_MAX)
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stop.clear();
        for thread in self.threads.drain(..) {
            // It has panicked: then it felt less, and the limits were stricter.
            let _ = thread.join();
        }
    }
}

/// The wait as a stall, if it was long enough for one.
fn stall(since: Instant, until: Instant) -> Option<Span> {
    (until.saturating_duration_since(since) >= STALL_MIN).then_some((since, until))
}

/// Says since when it waits, before the wait.
fn begin(felt: &Shared, since: Instant) {
    felt.lock().unwrap_or_else(PoisonError::into_inner).waiting_since = Some(since);
}

/// Notes how the wait that was begun went.
fn end(felt: &Shared) {
    let mut felt = felt.lock().unwrap_or_else(PoisonError::into_inner);
    let since = felt.waiting_since.take();
    felt.stalls.extend(since.and_then(|since| stall(since, Instant::now())));
}

/// Whether to go on after `pause`.
fn rest(stop: &Receiver<()>, pause: Duration) -> bool {
    stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
}

fn tick(felt: &Shared, stop: &Receiver<()>) -> bool {
    begin(felt, Instant::now() + TICK);
    let on = rest(stop, TICK);
    end(felt);
    on
}

fn flush(file: &File, felt: &Shared, stop: &Receiver<()>) -> bool {
    const BLOCK: [u8; 4096] = [7; 4096];
    begin(felt, Instant::now());
    let written = file.write_all_at(&BLOCK, 0).and_then(|()| file.sync_data());
    end(felt);
    // A disk that fails is the nodes' to tell; without this the limits are only stricter.
    written.is_ok() && rest(stop, FLUSH_EVERY)
}

/// How much of the time between `from` and `to` lies in one of `stalls` at least.
fn covered(mut stalls: Vec<Span>, from: Instant, to: Instant) -> Duration {
    stalls.sort_unstable();
    let (mut sum, mut reached) = (Duration::ZERO, from);
    for (begin, end) in stalls {
        sum += end.min(to).saturating_duration_since(begin.max(reached));
        reached = reached.max(end);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_count_once_and_only_within_the_time_asked_for() {
        let origin = Instant::now();
        let at = |millis| origin + Duration::from_millis(millis);
        let span = |from, to| (at(from), at(to));
        let sum = |stalls: &[Span]| covered(stalls.to_vec(), at(1000), at(2000)).as_millis();
        assert_eq!(sum(&[]), 0);
        assert_eq!(sum(&[span(1100, 1200), span(1300, 1350)]), 150);
        assert_eq!(sum(&[span(1300, 1600), span(1100, 1400), span(1150, 1200)]), 500, "they overlap");
        assert_eq!(sum(&[span(0, 1100), span(1900, 9000)]), 200, "they reach beyond it");
        assert_eq!(sum(&[span(0, 900), span(2100, 9000)]), 0, "they lie outside");
        assert_eq!(sum(&[span(0, 9000), span(1100, 1200)]), 1000);
    }

    #[test]
    fn a_short_wait_is_no_stall_and_one_under_way_is() {
        let now = Instant::now();
        assert_eq!(stall(now, now + STALL_MIN / 2), None);
        assert_eq!(stall(now + TICK, now), None, "the tick is still to come");
        let dir = tempfile::tempdir().unwrap();
        let mut stalls = Stalls::start(dir.path()).unwrap();
        let begun = Instant::now();
        let (hold, held) = channel::<()>();
        let (waits, waiting) = channel();
        stalls
            .spawn("stall-test", move |felt, _| {
                begin(felt, begun);
                waits.send(()).unwrap();
                // Ends when the test lets go.
                let _ = held.recv();
                end(felt);
            })
            .unwrap();
        waiting.recv().unwrap();
        while begun.elapsed() < 2 * STALL_MIN {
            std::thread::yield_now();
        }
        assert!(stalls.between(begun, Instant::now()) >= 2 * STALL_MIN, "{stalls:?}");
        drop(hold);
    }
}
