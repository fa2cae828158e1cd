//! Work that blocks: on tokio's threads for it, or, in a simulation, within the runtime itself.
//!
//! A simulation has one thread, or its schedules could not be repeated. It says so for that thread.

use std::cell::Cell;

use tokio::task::JoinHandle;

thread_local! {
    static INLINE: Cell<bool> = const { Cell::new(false) };
}

/// From now on work that is spawned on this thread runs within its runtime, as a task of its own.
pub fn run_inline_on_this_thread() {
    INLINE.set(true);
}

/// Runs `work`, which may block, beside what runs here.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    if INLINE.get() {
        #[expect(
            clippy::disallowed_methods,
            reason = "the caller has its handle, as it would have the blocking thread's"
        )]
        return tokio::spawn(async move { work() });
    }
    tokio::task::spawn_blocking(work)
}
