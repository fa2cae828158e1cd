//! A scan over what a buffer held when it began, and the engine below as it goes on.
//!
//! The buffer's word on a key counts: the engine may have an older value, or one written since. Both are what the key held
//! at or after the scan began, which is all that a live view promises.

use std::cmp::Ordering;
use std::iter::Peekable;
use std::vec;

use bytes::Bytes;

use super::layers::Changes;
use crate::store::{Scan, StoreError};

pub(super) struct Merged<'a> {
    buffered: Peekable<vec::IntoIter<(Bytes, Option<Bytes>)>>,
    below: Peekable<Scan<'a>>,
    reverse: bool,
    ended: bool,
}

impl<'a> Merged<'a> {
    /// `buffered` in key order, `below` in the scan's.
    pub(super) fn new(mut buffered: Changes, below: Scan<'a>, reverse: bool) -> Self {
        if reverse {
            buffered.reverse();
        }
        Self { buffered: buffered.into_iter().peekable(), below: below.peekable(), reverse, ended: false }
    }

    /// Which of both is next; `Equal` when they have the same key.
    fn next_is(&mut self) -> Option<Ordering> {
        Some(match (self.buffered.peek(), self.below.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            // What fails is told at once.
            (None, Some(_)) | (Some(_), Some(Err(_))) => Ordering::Greater,
            (Some((buffered, _)), Some(Ok((below, _)))) if self.reverse => below.cmp(buffered),
            (Some((buffered, _)), Some(Ok((below, _)))) => buffered.cmp(below),
        })
    }
}

impl Iterator for Merged<'_> {
    type Item = Result<(Bytes, Bytes), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let next_is = self.next_is()?;
            if next_is == Ordering::Greater {
                let item = self.below.next();
                self.ended = !matches!(item, Some(Ok(_)));
                return item;
            }
            if next_is == Ordering::Equal {
                self.below.next();
            }
            if let Some((key, Some(value))) = self.buffered.next() {
                return Some(Ok((key, value)));
            }
        }
        None
    }
}
