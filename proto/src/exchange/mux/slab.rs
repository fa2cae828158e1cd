//! The calls in flight: a slab whose numbers are not mistaken for those of earlier calls.
//!
//! A number is a place in the slab and how often that place was used before, so an answer to a call that was given up
//! finds nobody rather than the next call.

use std::task::Waker;

use super::CallError;

/// What became of a call.
pub(super) enum Slot<R> {
    Waiting { sent: bool, waker: Option<Waker> },
    Done(Result<R, CallError>),
}

struct Entry<R> {
    generation: u32,
    slot: Option<Slot<R>>,
}

/// Calls by number.
pub(super) struct Slab<R> {
    entries: Vec<Entry<R>>,
    free: Vec<u32>,
}

impl<R> Default for Slab<R> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

fn split(call: u64) -> (usize, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the number")]
    let halves = ((call & u64::from(u32::MAX)) as usize, (call >> 32) as u32);
    halves
}

fn join(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

impl<R> Slab<R> {
    /// Calls held.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// A new call; its number.
    pub(super) fn insert(&mut self) -> u64 {
        let slot = Some(Slot::Waiting { sent: false, waker: None });
        if let Some(index) = self.free.pop()
            && let Some(entry) = self.entries.get_mut(index as usize)
        {
            entry.slot = slot;
            return join(index, entry.generation);
        }
        let index = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        assert!(index < u32::MAX, "{index} calls in flight: the bound on them must be far lower");
        self.entries.push(Entry { generation: 0, slot });
        join(index, 0)
    }

    pub(super) fn get_mut(&mut self, call: u64) -> Option<&mut Slot<R>> {
        let (index, generation) = split(call);
        let entry = self.entries.get_mut(index).filter(|entry| entry.generation == generation)?;
        entry.slot.as_mut()
    }

    pub(super) fn remove(&mut self, call: u64) -> Option<Slot<R>> {
        let (index, generation) = split(call);
        let entry = self.entries.get_mut(index).filter(|entry| entry.generation == generation)?;
        let slot = entry.slot.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        #[expect(clippy::cast_possible_truncation, reason = "an index is below u32::MAX, see insert")]
        self.free.push(index as u32);
        Some(slot)
    }

    /// Every call held.
    pub(super) fn slots_mut(&mut self) -> impl Iterator<Item = &mut Slot<R>> {
        self.entries.iter_mut().filter_map(|entry| entry.slot.as_mut())
    }
}
