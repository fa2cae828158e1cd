//! The bounded queue between submitters and the writer thread.
//!
//! A submitter pushes under a short mutex and wakes the writer only when that one is parked; the writer
//! takes everything at once by swapping. It is bounded in submissions and in bytes; a full queue makes
//! submitters wait until the writer has swapped (I8). The writer takes no lock that a waiting submitter holds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::codec::{self, GenerationRecord, StateRecord};
use super::frame::frame_bytes;
use super::index::Group;
use super::record::{Position, VoteRecord};
use super::{Damage, Done, Record};

/// Submissions held at once.
const OPS_MAX: usize = 64 << 10;
/// Bytes of frames held at once; one larger submission is let in alone.
const BYTES_MAX: u64 = 64 << 20;

/// What a submission changes.
#[derive(Debug)]
pub(super) enum Change {
    /// Only the order matters: done after everything before it.
    Nothing,
    /// The stamp is that of the last record, see [`super::index`].
    Append {
        records: Vec<Record>,
        stamp: u64,
    },
    Vote(VoteRecord),
    Generation {
        generation: u64,
        snapshot: Vec<u8>,
        purged: Option<Position>,
    },
    Truncate {
        first_removed: u64,
    },
    Purge(Position),
    Remove,
    Damage(Damage),
}

/// A submission.
pub(super) struct Op {
    pub group: Arc<Group>,
    pub change: Change,
    /// Rides along with the change.
    pub committed: Option<Position>,
    /// Encoded payload of changes that are encoded where they are submitted.
    pub payload: Vec<u8>,
    /// Bytes of its frames.
    pub bytes: u64,
    pub done: Option<Done>,
}

impl Op {
    pub fn new(group: Arc<Group>, change: Change, committed: Option<Position>, done: Option<Done>) -> Self {
        let (payload, mut bytes) = match &change {
            Change::Nothing => (Vec::new(), 0),
            Change::Append { records, .. } => {
                (Vec::new(), records.iter().map(|record| frame_bytes(record.payload.len())).sum())
            }
            Change::Vote(vote) => framed(codec::encode(vote)),
            Change::Generation { generation, snapshot, purged } => framed(codec::encode(&GenerationRecord {
                generation: *generation,
                snapshot: snapshot.clone(),
                purged: *purged,
            })),
            Change::Damage(damage) => {
                framed(codec::encode(&StateRecord { damage: Some(damage.into()), ..StateRecord::default() }))
            }
            Change::Truncate { .. } | Change::Purge(_) | Change::Remove => (Vec::new(), frame_bytes(0)),
        };
        if committed.is_some() {
            bytes += frame_bytes(0);
        }
        Self { group, change, committed, payload, bytes, done }
    }
}

fn framed(payload: Vec<u8>) -> (Vec<u8>, u64) {
    let bytes = frame_bytes(payload.len());
    (payload, bytes)
}

#[derive(Default)]
struct State {
    ops: VecDeque<Op>,
    bytes: u64,
    closed: bool,
    parked: bool,
    waiting: usize,
}

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    work: Condvar,
    /// The same for a writer that is a task.
    wake: Notify,
    room: Condvar,
}

impl Queue {
    /// Gives the submission back when the queue is closed.
    pub fn push(&self, op: Op) -> Option<Op> {
        let mut state = self.state.lock();
        while !state.closed
            && (state.ops.len() >= OPS_MAX || (state.bytes > 0 && state.bytes + op.bytes > BYTES_MAX))
        {
            state.waiting += 1;
            self.room.wait(&mut state);
            state.waiting -= 1;
        }
        if state.closed {
            return Some(op);
        }
        state.bytes += op.bytes;
        state.ops.push_back(op);
        if state.parked {
            state.parked = false;
            drop(state);
            self.work.notify_one();
            self.wake.notify_one();
        }
        None
    }

    /// Moves everything to the end of `out`. With `wait`, returns only with something or when closed.
    /// Returns whether the queue is closed.
    pub fn take(&self, out: &mut VecDeque<Op>, wait: bool) -> bool {
        let mut state = self.state.lock();
        while wait && state.ops.is_empty() && !state.closed {
            state.parked = true;
            self.work.wait(&mut state);
        }
        state.parked = false;
        if out.is_empty() {
            std::mem::swap(&mut state.ops, out);
        } else {
            out.append(&mut state.ops);
        }
        state.bytes = 0;
        if state.waiting > 0 {
            self.room.notify_all();
        }
        state.closed
    }

    /// Waits until there is something, or the queue is closed.
    pub async fn filled(&self) {
        loop {
            {
                let mut state = self.state.lock();
                if state.closed || !state.ops.is_empty() {
                    return;
                }
                state.parked = true;
            }
            // A submission in between has left its permit.
            self.wake.notified().await;
        }
    }

    /// Waits for so long at most, and whether nothing came.
    pub fn rests(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        if state.ops.is_empty() && !state.closed {
            state.parked = true;
            self.work.wait_for(&mut state, time);
            state.parked = false;
        }
        state.ops.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.state.lock().ops.is_empty()
    }

    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Refuses further submissions; what is queued can still be taken.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.work.notify_all();
        self.wake.notify_one();
        self.room.notify_all();
    }
}
