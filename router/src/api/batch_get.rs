//! `:batchGet`: the keys of each shard travel together.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::response::Response;
use borough_proto::document::put_presented;
use borough_proto::error::ProblemType;
use borough_proto::http_api::BatchKey;
use borough_proto::limits::{BATCH_BYTES_MAX, BATCH_ITEMS_MAX, ID_BYTES_MAX, SORT_BYTES_MAX};
use borough_proto::wire::{self, CollectionInfo};
use borough_proto::{ShardId, error::Problem};
use bytes::{BufMut as _, BytesMut};
use http::StatusCode;

use super::call::{Call, check_sort, shard_of};
use super::settle::{Named, not_found};
use crate::http::answer::{Items, json, put_etag_json, put_json};
use crate::http::json::{BatchGetBody, KeyBody, parse};
use crate::http::path::check_key;
use crate::http::query::{Param, Query};
use crate::http::refusal::Refusal;

/// Keys of one read: even the largest documents then fit into one message between processes.
const READ_KEYS_MAX: usize = 32;

/// What became of one key.
enum Got {
    Document(wire::Document),
    Absent,
    Refused(Problem),
}

/// 200 with a status for each key, in request order.
///
/// # Errors
/// A [`Refusal`] for a request that is malformed as a whole.
pub async fn batch_get(call: &Call<'_>, body: Body, info: &CollectionInfo) -> Result<Response, Refusal> {
    let query = Query::parse(call.head.uri.query(), &[Param::View])?;
    let body = call.body(body, BATCH_BYTES_MAX, &["application/json"]).await?;
    let request: BatchGetBody = parse(&body)?;
    check_count("ids", request.ids.len())?;
    let map = call.map().await?;
    let mut keys = Vec::with_capacity(request.ids.len());
    let mut shards: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
    for (position, KeyBody(key)) in request.ids.into_iter().enumerate() {
        let (id, sort) = match key {
            BatchKey::Id(id) => (id, None),
            BatchKey::Sorted { id, sort } => (id, Some(sort)),
        };
        // A plain id is the item itself; in an object it is a field.
        let is_id = |refusal: &Refusal| sort.is_none() && refusal.is_of("id");
        check_item(info, &id, sort.as_deref()).map_err(|refusal| {
            let place = format!("ids[{position}]");
            let refusal = refusal.detail(&place);
            if is_id(&refusal) { refusal.field(&place) } else { refusal.within(&place) }
        })?;
        shards.entry(shard_of(&map, &id)?).or_default().push(position);
        keys.push(wire::DocumentKey { collection: info.id, id, sort });
    }
    let parts: Vec<(ShardId, &[usize])> = shards
        .iter()
        .flat_map(|(&shard, positions)| positions.chunks(READ_KEYS_MAX).map(move |chunk| (shard, chunk)))
        .collect();
    let asked: Vec<_> = parts.iter().map(|&(shard, _)| (shard, call.freshness(shard))).collect();
    let of = |part: usize| match parts.get(part) {
        Some((_, positions)) => {
            positions.iter().filter_map(|&position| keys.get(position).cloned()).collect()
        }
        None => Vec::new(),
    };
    let answers = call.app.forwarder.read_many(&asked, of, call.deadline).await;
    let mut trace = call.trace();
    let mut got: Vec<Got> = keys.iter().map(|_| Got::Absent).collect();
    for (&(_, positions), answer) in parts.iter().zip(answers) {
        match answer {
            Ok(answer) => {
                trace.note(&answer);
                for (&position, item) in positions.iter().zip(answer.body.items) {
                    if let (Some(slot), Some(document)) = (got.get_mut(position), item.document) {
                        *slot = Got::Document(document);
                    }
                }
            }
            Err(error) => {
                trace.note_failed(&error);
                let problem = Refusal::from(error).into_problem();
                for &position in positions {
                    if let Some(slot) = got.get_mut(position) {
                        *slot = Got::Refused(problem.clone());
                    }
                }
            }
        }
    }
    let bytes =
        got.iter().map(|got| if let Got::Document(document) = got { document.body.len() + 128 } else { 64 });
    let mut items = Items::new(bytes.sum());
    for (key, got) in keys.iter().zip(got) {
        items.push(|out| put_item(out, info, key, got, query.stored));
    }
    let mut response = json(StatusCode::OK, items.finish(None));
    trace.write(response.headers_mut());
    Ok(response)
}

fn put_item(out: &mut BytesMut, info: &CollectionInfo, key: &wire::DocumentKey, got: Got, stored: bool) {
    out.put_slice(b"{\"id\":");
    put_json(out, &key.id);
    if let Some(sort) = &key.sort {
        out.put_slice(b",\"sort\":");
        put_json(out, sort);
    }
    match got {
        Got::Document(document) => {
            out.put_slice(b",\"status\":200,\"etag\":");
            put_etag_json(out, document.version);
            out.put_slice(b",\"document\":");
            let flags = if stored { 0 } else { document.flags };
            put_presented(out, &key.id, key.sort.as_deref(), flags, &document.body);
        }
        Got::Absent => {
            let named =
                Named { collection: &info.name, id: &key.id, sort: key.sort.as_deref(), create: false };
            put_problem(out, &not_found(named).into_problem());
        }
        Got::Refused(problem) => put_problem(out, &problem),
    }
    out.put_u8(b'}');
}

/// Appends `,"status":…,"problem":{…}`.
pub fn put_problem(out: &mut BytesMut, problem: &Problem) {
    out.put_slice(b",\"status\":");
    put_json(out, &problem.status);
    out.put_slice(b",\"problem\":");
    put_json(out, problem);
}

/// Checks how many items a batch has.
///
/// # Errors
/// 400 naming the field and the limit.
pub fn check_count(field: &'static str, count: usize) -> Result<(), Refusal> {
    if (1..=BATCH_ITEMS_MAX).contains(&count) {
        return Ok(());
    }
    let detail = format!("{field:?} has {count} items; it has 1 to {BATCH_ITEMS_MAX}");
    Err(Refusal::new(ProblemType::BadRequest, detail).field(field).limit(BATCH_ITEMS_MAX))
}

/// Checks the key of a batch's item.
///
/// # Errors
/// 400 naming the field and the limit.
pub fn check_item(info: &CollectionInfo, id: &str, sort: Option<&str>) -> Result<(), Refusal> {
    check_key(id, "id", ID_BYTES_MAX)?;
    if let Some(sort) = sort {
        check_key(sort, "sort", SORT_BYTES_MAX)?;
    }
    check_sort(info, sort)
}
