//! Sessions of routers and clients: a resent command is recognised by (session, sequence) and answered, not applied, again.
//!
//! Outcomes lie in pages of 64 sequences, so that a batch rewrites the few pages it adds to, however many outcomes an
//! unacknowledged sequence keeps alive; a large outcome lies beside its page. A page goes as a whole, once the
//! watermark has passed it. What a batch touched is encoded at its end, and a little of it stays decoded in memory for
//! the next: a busy sender's record and newest pages would else be read, decoded and made anew for each command.

use std::collections::BTreeMap;

use borough_proto::wire;
use bytes::Bytes;
use prost::Message;

use super::overlay::Overlay;
use super::{Header, SESSION_SPAN_MAX, View, damaged, keys};
use crate::store::StoreError;

const PAGE_SEQUENCES: u64 = 64;
/// An outcome larger than this (a merged document, in practice) lies beside its page.
const INLINE_BYTES_MAX: usize = 256;
/// Sessions that stay in memory between batches (I8).
const SESSIONS_KEPT: usize = 8;
/// Pages of each that do: 32 kB at most, and mostly one.
const PAGES_KEPT: usize = 2;

/// What is known of a command's sequence.
#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    Never,
    Answered(wire::CommandReply),
    /// At or below the watermark: applied or given up long ago.
    Forgotten,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionRecord {
    /// The shard's time at the session's last command.
    #[prost(uint64, tag = "1")]
    pub last_ms: u64,
    /// Sequences up to here are forgotten.
    #[prost(uint64, tag = "2")]
    watermark: u64,
    /// Pages that exist, ascending.
    #[prost(uint64, repeated, tag = "3")]
    pages: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct Page {
    /// Ascending by sequence.
    #[prost(message, repeated, tag = "1")]
    outcomes: Vec<Outcome>,
}

#[derive(Clone, PartialEq, Message)]
struct Outcome {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    /// A `CommandReply`; empty when it lies apart.
    #[prost(bytes = "vec", tag = "2")]
    reply: Vec<u8>,
    #[prost(bool, tag = "3")]
    apart: bool,
}

/// Sessions of one view, decoded: those that the batch under way has touched, and some that earlier ones did.
#[derive(Debug, Default)]
pub struct Sessions {
    loaded: BTreeMap<u64, Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    record: SessionRecord,
    pages: BTreeMap<u64, LoadedPage>,
    /// By the batch under way.
    touched: bool,
}

#[derive(Debug, Default)]
struct LoadedPage {
    page: Page,
    /// The same, encoded.
    encoded: Vec<u8>,
    /// The view has an earlier one.
    changed: bool,
}

impl Sessions {
    /// Whether the command was applied before. A session that was never seen begins here.
    pub(super) fn look_up<V: View + ?Sized>(
        &mut self,
        overlay: &mut Overlay<'_, V>,
        header: &mut Header,
        session: &wire::Session,
    ) -> Result<Seen, StoreError> {
        let loaded = self.load(overlay, header, session.id)?;
        if session.sequence <= loaded.record.watermark {
            return Ok(Seen::Forgotten);
        }
        let page = page_of(session.sequence);
        if loaded.record.pages.binary_search(&page).is_err() {
            return Ok(Seen::Never);
        }
        let outcomes = &loaded.page(overlay, session.id, page)?.page.outcomes;
        let found = outcomes.binary_search_by_key(&session.sequence, |outcome| outcome.sequence);
        let Some(outcome) = found.ok().and_then(|place| outcomes.get(place)) else { return Ok(Seen::Never) };
        let reply = if outcome.apart {
            overlay
                .get(&keys::session_reply(session.id, session.sequence))?
                .ok_or_else(|| damaged("session outcome", &"it is missing"))?
        } else {
            Bytes::copy_from_slice(&outcome.reply)
        };
        wire::CommandReply::decode(reply)
            .map(Seen::Answered)
            .map_err(|error| damaged("session outcome", &error))
    }

    /// Keeps the outcome of a command that was just applied, and forgets what its sender has acknowledged.
    pub(super) fn record<V: View + ?Sized>(
        &mut self,
        overlay: &mut Overlay<'_, V>,
        header: &mut Header,
        session: &wire::Session,
        reply: &wire::CommandReply,
    ) -> Result<(), StoreError> {
        let loaded = self.load(overlay, header, session.id)?;
        let lowest = session.sequence.saturating_sub(SESSION_SPAN_MAX);
        loaded.record.watermark = loaded.record.watermark.max(session.acknowledged).max(lowest);
        let first_kept = page_of(loaded.record.watermark.saturating_add(1));
        while let Some(page) = loaded.record.pages.first().copied().filter(|page| *page < first_kept) {
            loaded.drop_page(overlay, session.id, page)?;
        }
        if session.sequence > loaded.record.watermark {
            loaded.insert(overlay, session, reply.encode_to_vec())?;
        }
        Ok(())
    }

    /// Puts what the batch touched into `overlay`.
    pub(super) fn write_back<V: View + ?Sized>(&mut self, overlay: &mut Overlay<'_, V>) {
        for (id, loaded) in self.loaded.iter_mut().filter(|(_, loaded)| loaded.touched) {
            for (page, loaded) in loaded.pages.iter_mut().filter(|(_, loaded)| loaded.changed) {
                overlay.put(keys::session_page(*id, *page), Bytes::copy_from_slice(&loaded.encoded));
                loaded.changed = false;
            }
            overlay.put(keys::session(*id), loaded.record.encode_to_vec().into());
        }
    }

    /// What the next batch on the same view begins with, once this one's changes are in it.
    pub(super) fn settled(mut self) -> Self {
        if self.loaded.len() > SESSIONS_KEPT {
            self.loaded.retain(|_, loaded| loaded.touched);
        }
        while self.loaded.len() > SESSIONS_KEPT {
            self.loaded.pop_first();
        }
        for loaded in self.loaded.values_mut() {
            loaded.touched = false;
            while loaded.pages.len() > PAGES_KEPT {
                loaded.pages.pop_first();
            }
        }
        self
    }

    /// Removes a session with everything kept for it. Only after [`Sessions::write_back`].
    pub(super) fn drop_session<V: View + ?Sized>(
        &mut self,
        overlay: &mut Overlay<'_, V>,
        id: u64,
        record: SessionRecord,
    ) -> Result<(), StoreError> {
        let mut loaded = self.loaded.remove(&id).unwrap_or_default();
        loaded.record = record;
        while let Some(page) = loaded.record.pages.first().copied() {
            loaded.drop_page(overlay, id, page)?;
        }
        overlay.remove(keys::session(id));
        Ok(())
    }

    fn load<V: View + ?Sized>(
        &mut self,
        overlay: &Overlay<'_, V>,
        header: &mut Header,
        id: u64,
    ) -> Result<&mut Loaded, StoreError> {
        let loaded = match self.loaded.entry(id) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let record = match overlay.get(&keys::session(id))? {
                    Some(bytes) => decode_session(bytes)?,
                    None => {
                        header.sessions += 1;
                        SessionRecord::default()
                    }
                };
                entry.insert(Loaded { record, ..Loaded::default() })
            }
        };
        loaded.touched = true;
        loaded.record.last_ms = header.time_ms;
        Ok(loaded)
    }
}

impl Loaded {
    /// A page that the record names.
    fn page<V: View + ?Sized>(
        &mut self,
        overlay: &Overlay<'_, V>,
        id: u64,
        page: u64,
    ) -> Result<&mut LoadedPage, StoreError> {
        match self.pages.entry(page) {
            std::collections::btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let bytes = overlay
                    .get(&keys::session_page(id, page))?
                    .ok_or_else(|| damaged("session page", &"it is missing"))?;
                let encoded = bytes.to_vec();
                let page = Page::decode(bytes).map_err(|error| damaged("session page", &error))?;
                Ok(entry.insert(LoadedPage { page, encoded, changed: false }))
            }
        }
    }

    fn insert<V: View + ?Sized>(
        &mut self,
        overlay: &mut Overlay<'_, V>,
        session: &wire::Session,
        reply: Vec<u8>,
    ) -> Result<(), StoreError> {
        let page = page_of(session.sequence);
        if let Err(place) = self.record.pages.binary_search(&page) {
            self.record.pages.insert(place, page);
            self.pages.insert(page, LoadedPage::default());
        }
        let mut outcome = Outcome { sequence: session.sequence, reply, apart: false };
        if outcome.reply.len() > INLINE_BYTES_MAX {
            outcome.apart = true;
            let reply = std::mem::take(&mut outcome.reply);
            overlay.put(keys::session_reply(session.id, session.sequence), reply.into());
        }
        self.page(overlay, session.id, page)?.add(outcome);
        Ok(())
    }

    fn drop_page<V: View + ?Sized>(
        &mut self,
        overlay: &mut Overlay<'_, V>,
        id: u64,
        page: u64,
    ) -> Result<(), StoreError> {
        let apart: Vec<u64> = self
            .page(overlay, id, page)?
            .page
            .outcomes
            .iter()
            .filter_map(|outcome| outcome.apart.then_some(outcome.sequence))
            .collect();
        for sequence in apart {
            overlay.remove(keys::session_reply(id, sequence));
        }
        self.pages.remove(&page);
        self.record.pages.retain(|kept| *kept != page);
        overlay.remove(keys::session_page(id, page));
        Ok(())
    }
}

impl LoadedPage {
    fn add(&mut self, outcome: Outcome) {
        let outcomes = &mut self.page.outcomes;
        let place = outcomes.partition_point(|earlier| earlier.sequence < outcome.sequence);
        if place == outcomes.len() {
            // A message's bytes are those of its repeated fields, one behind the other.
            let last = Page { outcomes: vec![outcome] };
            self.encoded.extend(last.encode_to_vec());
            outcomes.extend(last.outcomes);
        } else {
            outcomes.insert(place, outcome);
            self.encoded = self.page.encode_to_vec();
        }
        self.changed = true;
    }
}

fn page_of(sequence: u64) -> u64 {
    sequence / PAGE_SEQUENCES
}

/// # Errors
/// `Damaged` when the bytes are no session.
pub(super) fn decode_session(bytes: Bytes) -> Result<SessionRecord, StoreError> {
    SessionRecord::decode(bytes).map_err(|error| damaged("session", &error))
}
