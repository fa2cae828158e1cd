//! Letting others go first, so that what they add travels in the same message.
//!
//! A task that is woken runs next, before those that were ready already: a stream that sends whatever is queued would so send
//! one call at a time under load. Who waits for its turn once finds what all of them have queued; with nobody else ready
//! that costs next to nothing.

use std::future::poll_fn;
use std::task::Poll;

/// Ends once every task of this thread that is ready now has had its turn.
pub async fn others_first() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        // A task that wakes itself while it runs goes to the end of the queue.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio_util::task::TaskTracker;

    use super::*;

    #[tokio::test]
    async fn whoever_is_ready_has_had_its_turn() {
        let (tasks, done) = (TaskTracker::new(), Arc::new(AtomicUsize::new(0)));
        let before = Arc::clone(&done);
        let waiting = tasks.spawn(async move {
            others_first().await;
            before.load(Ordering::Relaxed)
        });
        for _ in 0..3 {
            let done = Arc::clone(&done);
            tasks.spawn(async move { done.fetch_add(1, Ordering::Relaxed) });
        }
        assert_eq!(waiting.await.unwrap(), 3);
    }
}
