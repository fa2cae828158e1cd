//! Listings over the shards, in hash order.
//!
//! A page token names the last key seen, or the hash to go on from, and never a shard: it stays good when shards move.

use borough_proto::error::ProblemType;
use borough_proto::http_api::Page;
use borough_proto::key::hash_id;
use borough_proto::{ShardId, limits, wire};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::value::RawValue;

use super::{Direct, Way, ops};
use crate::document::Json;
use crate::error::{Error, Result};
use crate::listing::Keyed;
use crate::transport::{Call, ListQuery};

/// Where a listing goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cursor {
    /// With the first key of this hash or above.
    From(u64),
    /// Strictly after this key.
    After { id: String, sort: Option<String> },
}

impl Cursor {
    fn encode(&self) -> String {
        match self {
            Self::From(hash) => format!("h{hash:x}"),
            Self::After { id, sort } => {
                let part = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
                match sort {
                    None => format!("k{}", part(id)),
                    Some(sort) => format!("k{}/{}", part(id), part(sort)),
                }
            }
        }
    }

    fn decode(token: &str) -> Option<Self> {
        let part = |text| percent_decode_str(text).decode_utf8().ok().map(String::from);
        if let Some(hash) = token.strip_prefix('h') {
            return u64::from_str_radix(hash, 16).ok().map(Self::From);
        }
        match token.strip_prefix('k')?.split_once('/') {
            None => Some(Self::After { id: part(token.strip_prefix('k')?)?, sort: None }),
            Some((id, sort)) => Some(Self::After { id: part(id)?, sort: Some(part(sort)?) }),
        }
    }

    fn hash(&self) -> u64 {
        match self {
            Self::From(hash) => *hash,
            Self::After { id, .. } => hash_id(id),
        }
    }
}

impl Direct {
    pub async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        let limit = query.page_size.unwrap_or(limits::PAGE_SIZE_DEFAULT);
        let bad = |kind, detail: String| Err(Error::refused(&call.operation, kind, detail));
        if limit == 0 || limit > limits::PAGE_SIZE_MAX {
            return bad(
                ProblemType::BadParameter,
                format!("a page has 1 to {} items", limits::PAGE_SIZE_MAX),
            );
        }
        if query.partition.is_none() && (query.start.is_some() || query.end.is_some() || query.reverse) {
            return bad(ProblemType::BadParameter, "a range or direction needs a partition".to_owned());
        }
        let cursor = match &query.page_token {
            None => Cursor::From(0),
            Some(token) => match Cursor::decode(token) {
                Some(cursor) => cursor,
                None => {
                    return bad(
                        ProblemType::BadPageToken,
                        format!("{token:?} is no page token of a direct client"),
                    );
                }
            },
        };
        let mut way = self.way(call).await?;
        match &query.partition {
            Some(id) => way.partition(query, id, cursor, limit).await,
            None => way.everything(query, cursor, limit).await,
        }
    }
}

impl Way<'_> {
    async fn partition(&mut self, query: &ListQuery, id: &str, cursor: Cursor, limit: u32) -> Result<Page> {
        let collection = self.collection(&query.collection, true).await?.id;
        let scan = wire::Scan {
            collection,
            partition: Some(id.to_owned()),
            start: query.start.clone(),
            end: query.end.clone(),
            reverse: query.reverse,
            after: after(collection, &cursor),
            limit,
            limit_bytes: limits::PAGE_BYTES_MAX,
            freshness: None,
        };
        let reply = self.scan(self.shard(id)?, scan).await?.body;
        let next = reply.items.last().filter(|_| reply.more).map(|last| last_seen(last).encode());
        let items = reply.items.into_iter().map(|item| self.item(item, query)).collect::<Result<_>>()?;
        Ok(Page { items, next_page_token: next })
    }

    /// Shard after shard until the page is full: most pages need one.
    async fn everything(&mut self, query: &ListQuery, mut cursor: Cursor, limit: u32) -> Result<Page> {
        // Sorted or not, all of it is listed.
        let sorted = self.map.collection(&query.collection).is_some_and(|info| info.sort_key);
        let collection = self.collection(&query.collection, sorted).await?.id;
        let mut items: Vec<Json> = Vec::new();
        let mut bytes = 0_usize;
        loop {
            let Some(shard) = self.map.shard_of_hash(cursor.hash()) else {
                return Err(Error::refused(
                    &self.call.operation,
                    ProblemType::Unavailable,
                    "the map has no shards",
                ));
            };
            let (id, last_hash) = (ShardId(shard.id), shard.last);
            let left = limit - u32::try_from(items.len()).unwrap_or(limit).min(limit);
            let scan = wire::Scan {
                collection,
                after: after(collection, &cursor),
                limit: left,
                limit_bytes: limits::PAGE_BYTES_MAX,
                ..Default::default()
            };
            let reply = self.scan(id, scan).await?.body;
            let next = match (reply.items.last(), reply.more) {
                (Some(last), true) => Some(last_seen(last)),
                // `more` without items: the same again would not end.
                (None, true) => return Err(self.misanswered()),
                (_, false) => last_hash.checked_add(1).map(Cursor::From),
            };
            for item in reply.items {
                bytes += item.body.len();
                items.push(self.item(item, query)?);
            }
            let Some(next) = next else { return Ok(Page { items, next_page_token: None }) };
            if items.len() >= limit as usize || bytes >= limits::PAGE_BYTES_MAX as usize {
                return Ok(Page { items, next_page_token: Some(next.encode()) });
            }
            cursor = next;
        }
    }

    fn item(&self, document: wire::Document, query: &ListQuery) -> Result<Json> {
        let key = query.keys.then(|| (document.id.clone(), document.sort.clone()));
        let json = if query.stored { document.body } else { ops::shown(document).json };
        let text = String::from_utf8(json.into()).map_err(|_| self.misanswered())?;
        let document = RawValue::from_string(text).map_err(|_| self.misanswered())?;
        let Some((id, sort)) = key else { return Ok(document) };
        serde_json::value::to_raw_value(&Keyed { id, sort, document }).map_err(|_| self.misanswered())
    }
}

fn after(collection: u32, cursor: &Cursor) -> Option<wire::DocumentKey> {
    match cursor {
        Cursor::From(_) => None,
        Cursor::After { id, sort } => {
            Some(wire::DocumentKey { collection, id: id.clone(), sort: sort.clone() })
        }
    }
}

fn last_seen(document: &wire::Document) -> Cursor {
    Cursor::After { id: document.id.clone(), sort: document.sort.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        let cursors = [
            Cursor::From(0),
            Cursor::From(u64::MAX),
            Cursor::After { id: "a/b%ä".into(), sort: None },
            Cursor::After { id: "a".into(), sort: Some("/".into()) },
        ];
        for cursor in cursors {
            assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        }
        for token in ["", "x", "hx", "k%ff"] {
            assert_eq!(Cursor::decode(token), None, "{token}");
        }
    }
}
