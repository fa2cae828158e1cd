//! Many concurrent calls over one long-lived bidirectional stream.
//!
//! Whatever is queued when the connection can take more goes out as one message, and answers come
//! back packed the same way, so the cost of the transport is shared by all calls in flight. A call costs
//! no task, no channel and no allocation of its own: it is a slot of a slab behind one short lock, and calls
//! made together take that lock together.
//!
//! Every bound is in [`Limits`] and a full multiplexer refuses (I8). A call that ends without an answer
//! says whether its request may have reached the other side (I9). Reconnecting is the owner's business.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

mod many;
mod slab;
#[cfg(test)]
mod tests;

pub use many::Answers;
use slab::{Slab, Slot};

/// The messages of one kind of stream. A request and its answer carry the same call number.
pub trait Protocol: Send + Sync + 'static {
    /// One call.
    type Request: Send + 'static;
    /// What the stream carries out: several calls.
    type Requests: Send + 'static;
    /// One answer.
    type Reply: Send + 'static;
    /// What the stream carries back: several answers.
    type Replies: Send + 'static;

    /// Writes the number that the answer will repeat.
    fn set_call(request: &mut Self::Request, call: u64);
    /// The number of the call that `reply` answers.
    fn call(reply: &Self::Reply) -> u64;
    /// About how many bytes `request` takes when encoded.
    fn request_bytes(request: &Self::Request) -> usize;
    fn pack(requests: Vec<Self::Request>) -> Self::Requests;
    fn unpack(replies: Self::Replies) -> Vec<Self::Reply>;
}

/// Bounds of one multiplexer.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Calls waiting for an answer, queued ones included; more are refused.
    pub in_flight_max: usize,
    /// Bytes of requests queued and not yet handed to the connection; more are refused.
    pub queued_bytes_max: usize,
    /// Calls packed into one message.
    pub batch_frames_max: usize,
    /// Bytes after which a message is closed; one larger call still travels, alone.
    pub batch_bytes_max: usize,
    /// Calls went out and nothing at all was heard for this long: the stream is given up.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight_max: 16_384,
            queued_bytes_max: 64 << 20,
            batch_frames_max: 512,
            batch_bytes_max: 1 << 20,
            stall: Duration::from_secs(15),
        }
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It never left this process.
    #[error("the call was not sent: no connection")]
    NotSent,
    /// It was handed to a connection that broke before the answer.
    #[error("the connection broke before the answer")]
    Lost,
    /// The deadline passed. Unless `sent`, the request never left this process.
    #[error("the deadline passed before the answer (sent: {sent})")]
    TimedOut { sent: bool },
    /// Too many calls or bytes wait already.
    #[error("too many calls in flight")]
    Full,
}

impl CallError {
    /// Whether the other side may have received the request.
    pub fn maybe_delivered(self) -> bool {
        match self {
            Self::Lost | Self::TimedOut { sent: true } => true,
            Self::NotSent | Self::Full | Self::TimedOut { sent: false } => false,
        }
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("closed by its owner")]
    Closed,
    #[error("open the stream: {0}")]
    NotOpened(Status),
    #[error("the stream broke: {0}")]
    Broken(Status),
    #[error("the other side closed the stream")]
    ClosedByPeer,
    #[error("calls were out and nothing was heard for {0:?}")]
    Stalled(Duration),
}

/// Makes calls. Share it in an [`Arc`]; dropping it closes the stream once what is queued is sent.
pub struct Mux<P: Protocol> {
    shared: Arc<Shared<P>>,
}

struct Shared<P: Protocol> {
    limits: Limits,
    state: Mutex<State<P>>,
}

struct State<P: Protocol> {
    calls: Slab<P::Reply>,
    queue: VecDeque<Queued<P::Request>>,
    queued_bytes: usize,
    /// Of the stream that takes requests, when it found the queue empty.
    sender: Option<Waker>,
    /// Of the driver, to notice the end.
    driver: Option<Waker>,
    /// Calls that were sent, not answered and not given up.
    out: usize,
    /// Since when nothing was heard although something is due: of calls that are out, or were and were given up since.
    silent_since: Option<Instant>,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// No new calls; those in flight are answered.
    Draining,
    Ended,
}

struct Queued<R> {
    call: u64,
    bytes: usize,
    request: R,
}

impl<P: Protocol> Mux<P> {
    /// A multiplexer and the future that drives it. `open` is given the stream of requests and answers the stream of
    /// replies; calls made meanwhile wait. When the future ends, or is dropped, every call fails and so does every later one.
    pub fn new<O, F, S>(
        limits: Limits,
        open: O,
    ) -> (Self, impl Future<Output = Ended> + Send + use<P, O, F, S>)
    where
        O: FnOnce(Requests<P>) -> F,
        F: Future<Output = Result<S, Status>> + Send,
        S: Stream<Item = Result<P::Replies, Status>> + Send,
    {
        let state = State {
            calls: Slab::default(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            sender: None,
            driver: None,
            out: 0,
            silent_since: None,
            phase: Phase::Open,
        };
        let shared = Arc::new(Shared { limits, state: Mutex::new(state) });
        let opening = open(Requests { shared: Arc::clone(&shared), waited: false });
        let driver = Driver { shared: Arc::clone(&shared) };
        let run = async move {
            let replies = match opening.await {
                Ok(replies) => replies,
                Err(status) => return Ended::NotOpened(status),
            };
            driver.read(replies).await
        };
        (Self { shared }, run)
    }

    /// Sends `request` and waits for its answer until `deadline`. Dropping the future gives the call up and frees its place;
    /// a request that has not left by then never will.
    ///
    /// # Errors
    /// [`CallError`], which says whether the request may have been delivered.
    pub async fn call(&self, request: P::Request, deadline: Instant) -> Result<P::Reply, CallError> {
        let bytes = P::request_bytes(&request);
        let (call, wake) = {
            let mut state = self.shared.state.lock();
            state.admit(bytes, &self.shared.limits)?;
            (state.enqueue(request, bytes), state.sender.take())
        };
        if let Some(waker) = wake {
            waker.wake();
        }
        let mut answer = Answer { shared: &self.shared, call, taken: false };
        let mut late = pin!(tokio::time::sleep_until(deadline));
        std::future::poll_fn(|cx| match answer.poll_take(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => late.as_mut().poll(cx).map(|()| answer.take()),
        })
        .await
    }

    /// Whether calls can be made.
    pub fn is_open(&self) -> bool {
        self.shared.state.lock().phase == Phase::Open
    }

    /// Calls waiting for an answer.
    pub fn in_flight(&self) -> usize {
        self.shared.state.lock().calls.len()
    }

    /// Refuses new calls, lets those in flight be answered, then ends the stream.
    pub fn close(&self) {
        self.shared.drain();
    }
}

impl<P: Protocol> Drop for Mux<P> {
    fn drop(&mut self) {
        self.shared.drain();
    }
}

/// Wakes all of `wakers`, who waits for several calls but once; never while the lock is held.
fn wake_all(wakers: impl IntoIterator<Item = Option<Waker>>) {
    let mut last: Option<Waker> = None;
    for waker in wakers.into_iter().flatten() {
        if last.as_ref().is_none_or(|last| !last.will_wake(&waker))
            && let Some(other) = last.replace(waker)
        {
            other.wake();
        }
    }
    if let Some(waker) = last {
        waker.wake();
    }
}

impl<P: Protocol> Shared<P> {
    fn drain(&self) {
        let wakers = {
            let mut state = self.state.lock();
            if state.phase == Phase::Open {
                state.phase = Phase::Draining;
            }
            [state.sender.take(), state.driver.take()]
        };
        wake_all(wakers);
    }

    /// Fails every call in flight and refuses later ones.
    fn end(&self) {
        self.fail(Phase::Ended, |_sent| true);
    }

    /// Moves on to `phase` and fails the calls of which `which(sent)` holds; the queue is emptied.
    fn fail(&self, phase: Phase, which: impl Fn(bool) -> bool) {
        let mut wakers = Vec::new();
        let queue = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            if state.phase != Phase::Ended {
                state.phase = phase;
            }
            wakers.extend([state.sender.take(), state.driver.take()]);
            for slot in state.calls.slots_mut() {
                if let Slot::Waiting { sent, waker } = slot
                    && which(*sent)
                {
                    wakers.push(waker.take());
                    state.out -= usize::from(*sent);
                    *slot = Slot::Done(Err(if *sent { CallError::Lost } else { CallError::NotSent }));
                }
            }
            state.queued_bytes = 0;
            std::mem::take(&mut state.queue)
        };
        drop(queue);
        wake_all(wakers);
    }

    fn deliver(&self, replies: Vec<P::Reply>) {
        let mut wakers = Vec::with_capacity(replies.len());
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            for reply in replies {
                // An answer to a call that was given up finds no slot.
                if let Some(slot) = state.calls.get_mut(P::call(&reply))
                    && let Slot::Waiting { sent, waker } = slot
                {
                    wakers.push(waker.take());
                    state.out -= usize::from(*sent);
                    *slot = Slot::Done(Ok(reply));
                }
            }
            state.heard();
        }
        wake_all(wakers);
    }
}

/// The stream of packed requests: hand it to the call that opens the stream.
pub struct Requests<P: Protocol> {
    shared: Arc<Shared<P>>,
    /// Others have had their turn since the queue was found empty; see [`turn`](super::turn).
    waited: bool,
}

impl<P: Protocol> Drop for Requests<P> {
    fn drop(&mut self) {
        // The transport let go: what is still queued can never leave.
        self.shared.fail(Phase::Draining, |sent| !sent);
    }
}

impl<P: Protocol> Stream for Requests<P> {
    type Item = P::Requests;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<P::Requests>> {
        let Self { shared, waited } = self.get_mut();
        let mut guard = shared.state.lock();
        let state = &mut *guard;
        if !state.queue.is_empty() && state.queue.len() < shared.limits.batch_frames_max && !*waited {
            *waited = true;
            drop(guard);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        *waited = false;
        let batch = state.take_batch(&shared.limits);
        if !batch.is_empty() {
            state.silent_since.get_or_insert_with(Instant::now);
            drop(guard);
            return Poll::Ready(Some(P::pack(batch)));
        }
        match state.phase {
            Phase::Open => {
                state.sender = Some(cx.waker().clone());
                Poll::Pending
            }
            Phase::Draining | Phase::Ended => Poll::Ready(None),
        }
    }
}

impl<P: Protocol> State<P> {
    /// Whether a request of so many bytes may be queued.
    fn admit(&self, bytes: usize, limits: &Limits) -> Result<(), CallError> {
        if self.phase != Phase::Open {
            return Err(CallError::NotSent);
        }
        // A request larger than the whole bound still passes when it is alone.
        let bytes_full = self.queued_bytes > 0 && self.queued_bytes + bytes > limits.queued_bytes_max;
        if self.calls.len() >= limits.in_flight_max || bytes_full {
            return Err(CallError::Full);
        }
        Ok(())
    }

    /// Takes a place for `request` and queues it; whoever does so wakes the sender.
    fn enqueue(&mut self, mut request: P::Request, bytes: usize) -> u64 {
        let call = self.calls.insert();
        P::set_call(&mut request, call);
        self.queue.push_back(Queued { call, bytes, request });
        self.queued_bytes += bytes;
        call
    }

    /// The other side gave a sign: silence begins anew, if anything is awaited.
    fn heard(&mut self) {
        self.silent_since = (self.out > 0).then(Instant::now);
    }

    /// Frees the place of a call; what became of it.
    fn end_call(&mut self, call: u64) -> Result<P::Reply, CallError> {
        match self.calls.remove(call) {
            Some(Slot::Done(result)) => result,
            Some(Slot::Waiting { sent, .. }) => {
                self.out -= usize::from(sent);
                Err(CallError::TimedOut { sent })
            }
            None => Err(CallError::Lost),
        }
    }

    /// The driver, when it waits for the last call of a closed multiplexer and that has ended.
    fn idle_driver(&mut self) -> Option<Waker> {
        if self.phase != Phase::Open && self.calls.len() == 0 { self.driver.take() } else { None }
    }

    /// The next message's calls, in the order they were made. Those given up meanwhile are left out.
    fn take_batch(&mut self, limits: &Limits) -> Vec<P::Request> {
        let mut batch = Vec::with_capacity(self.queue.len().min(limits.batch_frames_max));
        let mut bytes = 0;
        while batch.len() < limits.batch_frames_max {
            let Some(next) = self.queue.front() else { break };
            if !batch.is_empty() && bytes + next.bytes > limits.batch_bytes_max {
                break;
            }
            let Some(queued) = self.queue.pop_front() else { break };
            self.queued_bytes -= queued.bytes;
            if let Some(Slot::Waiting { sent, .. }) = self.calls.get_mut(queued.call) {
                *sent = true;
                self.out += 1;
                bytes += queued.bytes;
                batch.push(queued.request);
            }
        }
        batch
    }
}

/// Reads the answers. Its drop ends the multiplexer, so that cancelling the driving task fails the calls at once.
struct Driver<P: Protocol> {
    shared: Arc<Shared<P>>,
}

impl<P: Protocol> Drop for Driver<P> {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl<P: Protocol> Driver<P> {
    async fn read<S: Stream<Item = Result<P::Replies, Status>>>(self, replies: S) -> Ended {
        let stall = self.shared.limits.stall;
        let mut replies = pin!(replies);
        self.shared.state.lock().heard();
        let mut ticks = tokio::time::interval((stall / 4).max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                message = replies.next() => match message {
                    Some(Ok(message)) => self.shared.deliver(P::unpack(message)),
                    Some(Err(status)) => return Ended::Broken(status),
                    None if self.drained() => return Ended::Closed,
                    None => return Ended::ClosedByPeer,
                },
                () = self.finished() => return Ended::Closed,
                _ = ticks.tick() => {
                    let silent = self.shared.state.lock().silent_since;
                    if silent.is_some_and(|since| since.elapsed() > stall) {
                        return Ended::Stalled(stall);
                    }
                }
            }
        }
    }

    fn drained(&self) -> bool {
        self.shared.state.lock().phase != Phase::Open
    }

    /// Ends when the owner closed the multiplexer and no call is in flight.
    async fn finished(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.shared.state.lock();
            if state.phase != Phase::Open && state.calls.len() == 0 {
                return Poll::Ready(());
            }
            if state.driver.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                state.driver = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// One call's place. Its drop frees the place.
struct Answer<'a, P: Protocol> {
    shared: &'a Shared<P>,
    call: u64,
    taken: bool,
}

impl<P: Protocol> Answer<'_, P> {
    fn poll_take(&mut self, cx: &Context<'_>) -> Poll<Result<P::Reply, CallError>> {
        let mut state = self.shared.state.lock();
        match state.calls.get_mut(self.call) {
            Some(Slot::Waiting { waker, .. }) => {
                if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            Some(Slot::Done(_)) | None => {
                drop(state);
                Poll::Ready(self.take())
            }
        }
    }

    /// Ends the call: its answer if there is one (perhaps since the last moment), else the time was up.
    fn take(&mut self) -> Result<P::Reply, CallError> {
        self.taken = true;
        self.shared.release(self.call)
    }
}

impl<P: Protocol> Drop for Answer<'_, P> {
    fn drop(&mut self) {
        if !self.taken {
            // Nobody is left to be told.
            drop(self.shared.release(self.call));
        }
    }
}

impl<P: Protocol> Shared<P> {
    /// Frees the place of a call, and lets the driver end when it was the last one of a closed multiplexer.
    fn release(&self, call: u64) -> Result<P::Reply, CallError> {
        let (result, driver) = {
            let mut state = self.state.lock();
            let result = state.end_call(call);
            (result, state.idle_driver())
        };
        wake_all([driver]);
        result
    }
}
