//! Calls made together: one lock to make them, one to look after all that still wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::slab::Slot;
use super::{CallError, Mux, Protocol, Shared, wake_all};

/// What became of a call, with what its maker calls it.
type Ended<P> = (usize, Result<<P as Protocol>::Reply, CallError>);

/// Calls made together. Dropping it gives up those that still wait; what has not left by then never will.
pub struct Answers<P: Protocol> {
    shared: Arc<Shared<P>>,
    /// Their names and numbers.
    waiting: Vec<(usize, u64)>,
    ended: VecDeque<Ended<P>>,
}

impl<P: Protocol> Mux<P> {
    /// Sends `requests`, each with a name for its answer. A call that cannot be made ends at once.
    pub fn call_many(&self, requests: Vec<(usize, P::Request)>) -> Answers<P> {
        let mut answers = Answers {
            shared: Arc::clone(&self.shared),
            waiting: Vec::with_capacity(requests.len()),
            ended: VecDeque::with_capacity(requests.len()),
        };
        // Measured, and freed when they are refused, outside the lock.
        let measure = |(name, request)| (name, P::request_bytes(&request), request);
        let requests: Vec<(usize, usize, P::Request)> = requests.into_iter().map(measure).collect();
        let mut refused = Vec::new();
        let wake = {
            let mut state = self.shared.state.lock();
            for (name, bytes, request) in requests {
                match state.admit(bytes, &self.shared.limits) {
                    Ok(()) => answers.waiting.push((name, state.enqueue(request, bytes))),
                    Err(error) => {
                        answers.ended.push_back((name, Err(error)));
                        refused.push(request);
                    }
                }
            }
            if answers.waiting.is_empty() { None } else { state.sender.take() }
        };
        wake_all([wake]);
        answers
    }
}

impl<P: Protocol> Answers<P> {
    /// The next call that has ended, in any order; `None` once all have.
    pub fn poll_next(&mut self, cx: &Context<'_>) -> Poll<Option<Ended<P>>> {
        if self.ended.is_empty() && !self.waiting.is_empty() {
            self.look(cx);
        }
        match self.ended.pop_front() {
            Some(ended) => Poll::Ready(Some(ended)),
            None if self.waiting.is_empty() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn look(&mut self, cx: &Context<'_>) {
        let driver = {
            let mut guard = self.shared.state.lock();
            let state = &mut *guard;
            let ended = &mut self.ended;
            self.waiting.retain(|&(name, call)| {
                if let Some(Slot::Waiting { waker, .. }) = state.calls.get_mut(call) {
                    if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                        *waker = Some(cx.waker().clone());
                    }
                    return true;
                }
                ended.push_back((name, state.end_call(call)));
                false
            });
            state.idle_driver()
        };
        wake_all([driver]);
    }

    /// Ends the calls that still wait: their time is up.
    pub fn give_up(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let driver = {
            let mut state = self.shared.state.lock();
            for (name, call) in self.waiting.drain(..) {
                self.ended.push_back((name, state.end_call(call)));
            }
            state.idle_driver()
        };
        wake_all([driver]);
    }
}

impl<P: Protocol> Drop for Answers<P> {
    fn drop(&mut self) {
        self.give_up();
    }
}
