//! Logs as a node writes them, with what each of their batches leaves behind.

use std::collections::BTreeMap;

use borough_node::wal::{GroupState, VoteRecord};

use super::image::{self, BATCH_HEADER, CAPACITY, Frame, Header, Segment, frame_bytes, kind};
use crate::input::Input;

/// Replicas of a script: few, so that what it does meets.
const REPLICAS: u64 = 3;
/// Most segments of a script.
const SEGMENTS_MAX: usize = 4;

/// What is known of a replica.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replica {
    pub state: GroupState,
    /// Term and payload by index, without holes.
    pub records: BTreeMap<u64, (u64, Vec<u8>)>,
}

impl Replica {
    fn is_live(&self) -> bool {
        !self.records.is_empty() || self.state != GroupState::default()
    }

    fn range(&self) -> (u64, u64) {
        let next = self.state.purged.map_or(0, |(_, purged)| purged + 1);
        let first = self.records.keys().next().copied().unwrap_or(next);
        (first, self.records.keys().next_back().map_or(first, |last| last + 1))
    }

    fn purge(&mut self, term: u64, index: u64) {
        self.state.purged = Some((term, index));
        self.records = self.records.split_off(&(index + 1));
    }
}

/// All replicas that there is anything to tell of.
pub type Model = BTreeMap<u64, Replica>;

/// A log and what it holds.
#[derive(Debug)]
pub struct History {
    pub segments: Vec<Segment>,
    /// What the log holds once the batches up to here are durable, for each batch of all segments.
    pub after: Vec<Model>,
    model: Model,
}

impl History {
    /// Reads a script: it ends with the input or with a byte that says so.
    pub fn read(input: &mut Input<'_>) -> Self {
        let mut history = Self { segments: Vec::new(), after: Vec::new(), model: Model::new() };
        history.rotate();
        while !input.is_empty() {
            match input.byte() % 12 {
                0..=2 => history.append(input),
                3 => history.vote(input),
                4 => history.committed(input),
                5 => history.truncate(input),
                6 => history.purge(input),
                7 => history.generation(input),
                8 => history.remove(input),
                9 => history.moved(input),
                10 => history.rotate_if_room(),
                _ if input.byte() == u8::MAX => break,
                _ => history.end_batch(),
            }
        }
        history.end_batch();
        history
    }

    fn segment(&mut self) -> Option<&mut Segment> {
        self.segments.last_mut()
    }

    /// Adds a frame if it fits; tells whether it did.
    fn frame(&mut self, frame: Frame<'_>) -> bool {
        let Some(segment) = self.segment() else { return false };
        let bytes = segment.end() + 2 * BATCH_HEADER + segment.pending() + frame_bytes(frame.payload.len());
        let fits = bytes as u64 <= CAPACITY;
        if fits {
            segment.frame(frame);
        }
        fits
    }

    fn end_batch(&mut self) {
        let Some(segment) = self.segment().filter(|segment| segment.pending() > 0) else { return };
        segment.end_batch(1, None);
        self.settle();
    }

    fn settle(&mut self) {
        self.model.retain(|_, replica| replica.is_live());
        self.after.push(self.model.clone());
    }

    fn rotate_if_room(&mut self) {
        if self.segments.len() < SEGMENTS_MAX {
            self.end_batch();
            self.rotate();
        }
    }

    /// Begins a segment, whose first batch holds every replica's state.
    fn rotate(&mut self) {
        let previous_end = self.segments.last().map_or(0, |segment| segment.end() as u64);
        let sequence = self.segments.len() as u64 + 1;
        let mut segment = Segment::new(Header { sequence, oldest: 1, previous_end, capacity: CAPACITY });
        self.model.retain(|_, replica| replica.is_live());
        for (&replica, held) in &self.model {
            let (first, end) = held.range();
            let payload = image::state(&held.state, first, end, None);
            segment.frame(Frame { kind: kind::STATE, replica, index: 0, term: 0, payload: &payload });
        }
        segment.end_batch(1, None);
        self.segments.push(segment);
        self.after.push(self.model.clone());
    }

    fn replica(input: &mut Input<'_>) -> u64 {
        u64::from(input.byte()) % REPLICAS + 1
    }

    /// Small enough that sums with other numbers of a script never overflow: extremes are the business of wild logs.
    fn number(input: &mut Input<'_>) -> u64 {
        input.number() >> 16
    }

    fn append(&mut self, input: &mut Input<'_>) {
        let (replica, term, payload) = (Self::replica(input), input.number(), input.bytes());
        let held = self.model.get(&replica).cloned().unwrap_or_default();
        let fresh = held.records.is_empty() && held.state.purged.is_none();
        let index = if fresh { Self::number(input) } else { held.range().1 };
        if self.frame(Frame { kind: kind::APPEND, replica, index, term, payload }) {
            let held = self.model.entry(replica).or_default();
            held.records.insert(index, (term, payload.to_vec()));
        }
    }

    fn vote(&mut self, input: &mut Input<'_>) {
        let replica = Self::replica(input);
        let vote = VoteRecord {
            term: input.number(),
            voted_for: input.number(),
            committed: !input.byte().is_multiple_of(2),
        };
        let payload = image::vote(&vote);
        if self.frame(Frame { kind: kind::VOTE, replica, index: 0, term: 0, payload: &payload }) {
            self.model.entry(replica).or_default().state.vote = Some(vote);
        }
    }

    fn committed(&mut self, input: &mut Input<'_>) {
        let (replica, index, term) = (Self::replica(input), input.number(), input.number());
        if self.frame(Frame { kind: kind::COMMITTED, replica, index, term, payload: &[] }) {
            self.model.entry(replica).or_default().state.committed = Some((term, index));
        }
    }

    fn truncate(&mut self, input: &mut Input<'_>) {
        let replica = Self::replica(input);
        let Some(held) = self.model.get(&replica).filter(|held| !held.records.is_empty()) else { return };
        let (first, end) = held.range();
        let index = first + u64::from(input.byte()) % (end - first);
        if self.frame(Frame { kind: kind::TRUNCATE, replica, index, term: 0, payload: &[] })
            && let Some(held) = self.model.get_mut(&replica)
        {
            held.records.split_off(&index);
        }
    }

    /// What a purge may name: anything behind the last one.
    fn purged(&self, replica: u64, input: &mut Input<'_>) -> (u64, u64) {
        let first = self.model.get(&replica).map_or(0, |held| held.range().0);
        (input.number(), first + u64::from(input.byte()))
    }

    fn purge(&mut self, input: &mut Input<'_>) {
        let replica = Self::replica(input);
        let (term, index) = self.purged(replica, input);
        if self.frame(Frame { kind: kind::PURGE, replica, index, term, payload: &[] }) {
            self.model.entry(replica).or_default().purge(term, index);
        }
    }

    fn generation(&mut self, input: &mut Input<'_>) {
        let (replica, generation, snapshot) = (Self::replica(input), input.number(), input.bytes());
        let purged = (!input.byte().is_multiple_of(2)).then(|| self.purged(replica, input));
        let payload = image::generation(generation, snapshot, purged);
        if self.frame(Frame { kind: kind::GENERATION, replica, index: 0, term: 0, payload: &payload }) {
            let held = self.model.entry(replica).or_default();
            (held.state.generation, held.state.snapshot) = (generation, snapshot.to_vec());
            if let Some((term, index)) = purged {
                held.purge(term, index);
            }
        }
    }

    fn remove(&mut self, input: &mut Input<'_>) {
        let replica = Self::replica(input);
        if self.frame(Frame { kind: kind::REMOVE, replica, index: 0, term: 0, payload: &[] }) {
            self.model.remove(&replica);
        }
    }

    /// Copies a live record forward, which changes nothing.
    fn moved(&mut self, input: &mut Input<'_>) {
        let (replica, at) = (Self::replica(input), usize::from(input.byte()));
        let Some(held) = self.model.get(&replica).filter(|held| !held.records.is_empty()) else { return };
        let found = held.records.iter().nth(at % held.records.len());
        let Some((&index, (term, payload))) = found.map(|(index, record)| (index, record.clone())) else {
            return;
        };
        self.frame(Frame { kind: kind::MOVED, replica, index, term, payload: &payload });
    }
}
