//! Listings: a whole collection in hash order, or one partition in sort order.
//!
//! Shards are contiguous ranges of the hash space, so a listing walks them in order and never has to merge. While pages are
//! sparse the following shards are read at the same time. Moves change which node answers, not the order.

use std::ops::ControlFlow;

use axum::response::Response;
use borough_proto::document::present;
use borough_proto::exchange::Answer;
use borough_proto::key::hash_id;
use borough_proto::limits::PAGE_BYTES_MAX;
use borough_proto::wire::{self, CollectionInfo};
use borough_proto::{ClusterMap, ShardId};
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use http::StatusCode;
use xxhash_rust::xxh3::Xxh3;

use super::call::{Call, shard_of};
use super::page_token::Place;
use crate::http::answer::{Items, Trace, json, put_json};
use crate::http::query::{Param, Query};
use crate::http::refusal::Refusal;

/// Shards read at the same time once pages turn out sparse.
const SHARDS_AT_ONCE_MAX: usize = 8;

/// A page of the whole collection.
///
/// # Errors
/// A [`Refusal`]; a page is never silently incomplete.
pub async fn collection(call: &Call<'_>, info: &CollectionInfo) -> Result<Response, Refusal> {
    let query =
        Query::parse(call.head.uri.query(), &[Param::PageSize, Param::PageToken, Param::View, Param::Keys])?;
    let fingerprint = fingerprint(&[b"collection", &info.id.to_le_bytes()]);
    let place = place(&query, fingerprint)?;
    let mut walk = Walk { call, info, page: Page::new(call.trace(), &query), place };
    let finished = walk.run().await?;
    let next = (!finished).then(|| walk.place.encode(fingerprint));
    Ok(walk.page.respond(next.as_deref()))
}

/// A page of one partition of a sorted collection.
///
/// # Errors
/// A [`Refusal`].
pub async fn partition(call: &Call<'_>, info: &CollectionInfo, id: &str) -> Result<Response, Refusal> {
    let allowed = [
        Param::PageSize,
        Param::PageToken,
        Param::View,
        Param::Keys,
        Param::Start,
        Param::End,
        Param::Reverse,
    ];
    let query = Query::parse(call.head.uri.query(), &allowed)?;
    let bound = |bound: &Option<String>| {
        bound.clone().map_or_else(|| vec![0], |text| [&[1], text.as_bytes()].concat())
    };
    let parts: [&[u8]; 6] = [
        b"partition",
        &info.id.to_le_bytes(),
        id.as_bytes(),
        &bound(&query.start),
        &bound(&query.end),
        &[u8::from(query.reverse)],
    ];
    let fingerprint = fingerprint(&parts);
    let after = place(&query, fingerprint)?.last;
    let shard = shard_of(&*call.map().await?, id)?;
    let scan = wire::Scan {
        collection: info.id,
        partition: Some(id.to_owned()),
        start: query.start.clone(),
        end: query.end.clone(),
        reverse: query.reverse,
        after: after.map(|(id, sort)| wire::DocumentKey { collection: info.id, id, sort }),
        limit: query.page_size,
        limit_bytes: PAGE_BYTES_MAX,
        freshness: call.freshness(shard),
    };
    let answer = call.app.forwarder.scan(shard, scan, call.deadline).await?;
    let mut page = Page::new(call.trace(), &query);
    page.trace.note(&answer);
    let last = answer.body.items.last().map(|item| (item.id.clone(), item.sort.clone()));
    for document in answer.body.items {
        page.push(document);
    }
    let next =
        last.filter(|_| answer.body.more).map(|last| Place { hash: 0, last: Some(last) }.encode(fingerprint));
    Ok(page.respond(next.as_deref()))
}

fn place(query: &Query, fingerprint: u64) -> Result<Place, Refusal> {
    query.page_token.as_deref().map_or(Ok(Place::START), |token| Place::decode(token, fingerprint))
}

/// What a token belongs to. The page size and view may change from page to page.
fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut hash = Xxh3::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.digest()
}

/// The page as far as it is filled.
struct Page {
    items: Items,
    left: u32,
    bytes_left: usize,
    stored: bool,
    keys: bool,
    trace: Trace,
}

impl Page {
    fn new(trace: Trace, query: &Query) -> Self {
        Self {
            items: Items::new(4096),
            left: query.page_size,
            bytes_left: PAGE_BYTES_MAX as usize,
            stored: query.stored,
            keys: query.keys,
            trace,
        }
    }

    fn push(&mut self, document: wire::Document) {
        self.left = self.left.saturating_sub(1);
        self.bytes_left = self.bytes_left.saturating_sub(document.body.len());
        let flags = if self.stored { 0 } else { document.flags };
        let shown = present(&document.id, document.sort.as_deref(), flags, &document.body);
        if !self.keys {
            self.items.push(|out| out.extend_from_slice(&shown));
            return;
        }
        self.items.push(|out| {
            out.extend_from_slice(b"{\"id\":");
            put_json(out, &document.id);
            if let Some(sort) = &document.sort {
                out.extend_from_slice(b",\"sort\":");
                put_json(out, sort);
            }
            out.extend_from_slice(b",\"document\":");
            out.extend_from_slice(&shown);
            out.extend_from_slice(b"}");
        });
    }

    fn is_full(&self) -> bool {
        self.left == 0 || self.bytes_left == 0
    }

    fn respond(self, next: Option<&str>) -> Response {
        let mut response = json(StatusCode::OK, self.items.finish(next));
        self.trace.write(response.headers_mut());
        response
    }
}

/// A listing under way.
struct Walk<'a> {
    call: &'a Call<'a>,
    info: &'a CollectionInfo,
    page: Page,
    place: Place,
}

/// A shard to be scanned and the last hash of its range as the map had it.
struct Stop {
    shard: ShardId,
    last_hash: u64,
}

impl Walk<'_> {
    /// Fills the page. Answers whether the listing ends with it.
    async fn run(&mut self) -> Result<bool, Refusal> {
        let mut at_once = 1;
        loop {
            let map = self.call.map().await?;
            let stops = stops(&map, self.place.hash, at_once);
            at_once = (at_once * 2).min(SHARDS_AT_ONCE_MAX);
            let call = self.call;
            let scans = stops.iter().enumerate().map(|(nth, stop)| (stop.shard, self.scan(stop, nth == 0)));
            let scans = scans.map(|(shard, scan)| call.app.forwarder.scan(shard, scan, call.deadline));
            let mut answers: FuturesOrdered<_> = scans.collect();
            for stop in &stops {
                let Some(answer) = answers.next().await else { break };
                match self.take(stop, answer?) {
                    ControlFlow::Continue(()) => {}
                    ControlFlow::Break(finished) => return Ok(finished),
                }
            }
        }
    }

    fn scan(&self, stop: &Stop, first: bool) -> wire::Scan {
        // Only the first shard can hold the last key given.
        let after = self.place.last.clone().filter(|_| first);
        wire::Scan {
            collection: self.info.id,
            after: after.map(|(id, sort)| wire::DocumentKey { collection: self.info.id, id, sort }),
            limit: self.page.left,
            limit_bytes: u32::try_from(self.page.bytes_left).unwrap_or(u32::MAX),
            freshness: self.call.freshness(stop.shard),
            ..Default::default()
        }
    }

    /// Takes one shard's documents into the page. Breaks with whether the listing is finished.
    fn take(&mut self, stop: &Stop, answer: Answer<wire::ScanReply>) -> ControlFlow<bool> {
        self.page.trace.note(&answer);
        let wire::ScanReply { items, more } = answer.body;
        let mut given = 0;
        let count = items.len();
        for document in items {
            if self.page.is_full() {
                break;
            }
            given += 1;
            self.place = Place {
                hash: hash_id(&document.id),
                last: Some((document.id.clone(), document.sort.clone())),
            };
            self.page.push(document);
        }
        if given < count || more {
            return ControlFlow::Break(false);
        }
        // The shard may have been split while it was read: then only its first part is done for certain.
        let map = self.call.app.forwarder.watch().map();
        let last_hash = map.shard(stop.shard).map_or(stop.last_hash, |shard| shard.last.min(stop.last_hash));
        match last_hash.checked_add(1) {
            None => ControlFlow::Break(true),
            Some(hash) => {
                self.place = Place { hash, last: None };
                if self.page.is_full() { ControlFlow::Break(false) } else { ControlFlow::Continue(()) }
            }
        }
    }
}

/// The shard that holds `hash` and those after it, at most `count`.
fn stops(map: &ClusterMap, hash: u64, count: usize) -> Vec<Stop> {
    let first = map.position_of_hash(hash).unwrap_or(0);
    let shards = map.shards().iter().skip(first).take(count);
    shards.map(|shard| Stop { shard: ShardId(shard.id), last_hash: shard.last }).collect()
}
