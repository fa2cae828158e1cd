//! A view with the changes of this batch on top, so that later entries of a batch see earlier ones (I4).
//!
//! Inside a unit every change is journalled, and a unit that fails takes all of its changes back.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::View;
use crate::store::{KeyRange, StoreError};

/// What a key holds in this batch: `Some(None)` is removed, `None` is not touched.
type Change = Option<Option<Bytes>>;

#[derive(Debug)]
pub(super) struct Overlay<'v, V: View + ?Sized> {
    view: &'v V,
    changes: BTreeMap<Bytes, Option<Bytes>>,
    /// Earlier states of keys that the current unit changed, oldest first.
    journal: Vec<(Bytes, Change)>,
    journalling: bool,
}

impl<'v, V: View + ?Sized> Overlay<'v, V> {
    pub fn new(view: &'v V) -> Self {
        Self { view, changes: BTreeMap::new(), journal: Vec::new(), journalling: false }
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => self.view.get(key),
        }
    }

    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.change(key, Some(value));
    }

    pub fn remove(&mut self, key: Bytes) {
        self.change(key, None);
    }

    fn change(&mut self, key: Bytes, value: Option<Bytes>) {
        let before = self.changes.insert(key.clone(), value);
        if self.journalling {
            self.journal.push((key, before));
        }
    }

    /// From here on changes can be taken back.
    pub fn begin_unit(&mut self) {
        self.journal.clear();
        self.journalling = true;
    }

    /// Ends the unit: its changes stay, or all of them are taken back.
    pub fn end_unit(&mut self, keep: bool) {
        self.journalling = false;
        if keep {
            self.journal.clear();
            return;
        }
        for (key, before) in self.journal.drain(..).rev() {
            match before {
                Some(change) => self.changes.insert(key, change),
                None => self.changes.remove(&key),
            };
        }
    }

    /// Up to `limit` entries of `range`, in key order. `range` must not be inverted.
    pub fn first(&self, range: KeyRange, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let mut below = self.view.scan(range.clone(), false).peekable();
        let mut above = self.changes.range::<Bytes, _>(range).peekable();
        let mut found = Vec::new();
        while found.len() < limit {
            let from_above = match (below.peek(), above.peek()) {
                (None, None) => break,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some(Ok((lower, _))), Some((upper, _))) => {
                    if lower == *upper {
                        // Overwritten or removed in this batch.
                        below.next();
                        continue;
                    }
                    *upper < lower
                }
                (Some(Err(_)), Some(_)) => false,
            };
            if from_above {
                if let Some((key, Some(value))) = above.next() {
                    found.push((key.clone(), value.clone()));
                }
            } else if let Some(entry) = below.next() {
                found.push(entry?);
            }
        }
        Ok(found)
    }

    /// All changes in key order, the last one of each key.
    pub fn into_changes(self) -> Vec<(Bytes, Option<Bytes>)> {
        self.changes.into_iter().collect()
    }
}
