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
