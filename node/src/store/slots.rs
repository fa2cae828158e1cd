//! Which spaces are open, and one opening or removal of a space at a time while others go on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::SpaceId;

#[derive(Debug)]
pub(super) struct Slots<S> {
    inner: Mutex<Inner<S>>,
    left: Condvar,
}

#[derive(Debug)]
struct Inner<S> {
    open: HashMap<SpaceId, Arc<S>>,
    busy: HashSet<SpaceId>,
}

impl<S> Default for Slots<S> {
    fn default() -> Self {
        let inner = Inner { open: HashMap::new(), busy: HashSet::new() };
        Self { inner: Mutex::new(inner), left: Condvar::new() }
    }
}

impl<S> Slots<S> {
    /// Waits until nobody else is in the slot of `id`.
    pub(super) fn enter(&self, id: SpaceId) -> Slot<'_, S> {
        let mut inner = self.inner.lock();
        while !inner.busy.insert(id) {
            self.left.wait(&mut inner);
        }
        Slot { slots: self, id }
    }
}

/// One space's slot, to oneself until it is dropped.
pub(super) struct Slot<'a, S> {
    slots: &'a Slots<S>,
    id: SpaceId,
}

impl<S> Slot<'_, S> {
    pub(super) fn open(&self) -> Option<Arc<S>> {
        self.slots.inner.lock().open.get(&self.id).cloned()
    }

    pub(super) fn set(&mut self, space: Arc<S>) {
        self.slots.inner.lock().open.insert(self.id, space);
    }

    pub(super) fn take(&mut self) -> Option<Arc<S>> {
        self.slots.inner.lock().open.remove(&self.id)
    }
}

impl<S> Drop for Slot<'_, S> {
    fn drop(&mut self) {
        self.slots.inner.lock().busy.remove(&self.id);
        self.slots.left.notify_all();
    }
}
