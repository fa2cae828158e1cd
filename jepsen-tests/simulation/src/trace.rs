//! What happened, as a running hash: two runs of a seed did the same exactly when their hashes are equal.

use std::fmt::Arguments;

use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

use crate::system;

struct Trace {
    hash: Xxh3,
    events: u64,
    shown: bool,
}

static TRACE: Mutex<Option<Trace>> = Mutex::new(None);

/// Begins; with `shown` each event goes to standard error too.
pub fn begin(shown: bool) {
    *TRACE.lock() = Some(Trace { hash: Xxh3::new(), events: 0, shown });
}

/// Takes down one event at the simulated time.
pub fn event(what: Arguments<'_>) {
    let line = format!("{:>9.3} ms  {what}", system::now_ns() as f64 / 1e6);
    if let Some(trace) = TRACE.lock().as_mut() {
        trace.hash.update(line.as_bytes());
        trace.events += 1;
        if trace.shown {
            eprintln!("{line}");
        }
    }
}

/// The hash of all events, and how many there were.
pub fn digest() -> (String, u64) {
    let trace = TRACE.lock();
    trace
        .as_ref()
        .map_or_else(Default::default, |trace| (format!("{:016x}", trace.hash.digest()), trace.events))
}
