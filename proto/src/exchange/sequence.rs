//! Sessions of one sender: what makes a resent write recognisable to the shard.
//!
//! Sequences are counted per shard. The watermark tells the shard which records it may forget, so it never passes a sequence
//! that may still be sent again. A sequence whose caller has its answer, or has given up, is never sent again; should a
//! copy of it arrive after the watermark passed it, the shard refuses to apply it, and its caller was told "unknown" (I9).

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;

use crate::id::ShardId;
use crate::wire;

/// The session of one sender: a random id, and the writes under way per shard.
pub struct Sessions {
    id: u64,
    windows: Mutex<HashMap<ShardId, Window>>,
}

#[derive(Default)]
struct Window {
    /// The last sequence given out; they count from 1.
    last: u64,
    /// Those that may still be sent, or sent again.
    open: BTreeSet<u64>,
}

impl Window {
    fn acknowledged(&self) -> u64 {
        self.open.first().map_or(self.last, |oldest| oldest - 1)
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self { id: rand::random(), windows: Mutex::default() }
    }
}

impl Sessions {
    /// Starts a write to `shard`: its sequence stays open until the ticket is dropped.
    pub fn begin(&self, shard: ShardId) -> Ticket<'_> {
        let mut windows = self.windows.lock();
        let window = windows.entry(shard).or_default();
        window.last += 1;
        window.open.insert(window.last);
        Ticket { sessions: self, shard, sequence: window.last }
    }
}

/// A write under way.
pub struct Ticket<'a> {
    sessions: &'a Sessions,
    shard: ShardId,
    sequence: u64,
}

impl Ticket<'_> {
    /// What the next attempt carries: always the same sequence, with the watermark of now.
    pub fn session(&self) -> wire::Session {
        let windows = self.sessions.windows.lock();
        let acknowledged = windows.get(&self.shard).map_or(0, Window::acknowledged);
        assert!(
            acknowledged < self.sequence,
            "watermark {acknowledged} passes open sequence {}",
            self.sequence
        );
        wire::Session { id: self.sessions.id, sequence: self.sequence, acknowledged }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(window) = self.sessions.windows.lock().get_mut(&self.shard) {
            window.open.remove(&self.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the order in which writes begin and end, the watermark stays below every open one and never falls.
        #[test]
        fn the_watermark_never_passes_an_open_sequence(steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
            let sessions = Sessions::default();
            let mut open: Vec<Ticket<'_>> = Vec::new();
            let mut last = 0;
            for (begin, which) in steps {
                if begin || open.is_empty() {
                    open.push(sessions.begin(ShardId(1)));
                } else {
                    open.swap_remove(which.index(open.len()));
                }
                for ticket in &open {
                    let session = ticket.session();
                    prop_assert!(open.iter().all(|other| session.acknowledged < other.sequence));
                    prop_assert!(session.acknowledged >= last);
                    last = session.acknowledged;
                }
            }
        }
    }

    #[test]
    fn sequences_count_per_shard_and_all_answered_ones_are_acknowledged() {
        let sessions = Sessions::default();
        for n in 1..=3 {
            let session = sessions.begin(ShardId(1)).session();
            assert_eq!((session.sequence, session.acknowledged), (n, n - 1));
        }
        let held = sessions.begin(ShardId(1));
        drop(sessions.begin(ShardId(1)));
        assert_eq!(sessions.begin(ShardId(1)).session().acknowledged, 3);
        assert_eq!(sessions.begin(ShardId(2)).session().sequence, 1);
        drop(held);
        assert_eq!(sessions.begin(ShardId(1)).session().acknowledged, 6);
    }
}
