//! `:batchWrite`: the writes of each shard travel in one command, in request order. Not atomic: each item has its own status.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::response::Response;
use borough_proto::ShardId;
use borough_proto::document::{etag, flags, inspect};
use borough_proto::error::{Problem, ProblemType};
use borough_proto::exchange::{Answer, ForwardError};
use borough_proto::http_api::{BatchWrite, parse_ttl};
use borough_proto::limits::BATCH_BYTES_MAX;
use borough_proto::wire::{self, CollectionInfo, OpStatus, op::Action};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::join_all;
use http::StatusCode;
use serde_json::value::RawValue;

use super::batch_get::{check_count, check_item, put_problem};
use super::call::{Call, require_precondition, shard_of};
use super::settle::{Named, settle};
use crate::http::answer::{Items, json, put_json};
use crate::http::headers::{Tags, idempotency_key};
use crate::http::json::{BatchWriteBody, parse};
use crate::http::query::Query;
use crate::http::refusal::Refusal;

/// Key of an item and what became of it: status and version.
struct Item {
    id: String,
    sort: Option<String>,
    done: Result<(u16, u64), Problem>,
}

/// 200 with a status for each write, in request order.
///
/// # Errors
/// A [`Refusal`] for a request that is malformed as a whole.
pub async fn batch_write(call: &Call<'_>, body: Body, info: &CollectionInfo) -> Result<Response, Refusal> {
    Query::parse(call.head.uri.query(), &[])?;
    let body = call.body(body, BATCH_BYTES_MAX, &["application/json"]).await?;
    let request: BatchWriteBody = parse(&body)?;
    idempotency_key(&call.head.headers)?;
    check_count("writes", request.writes.len())?;
    let map = call.map().await?;
    let mut items = Vec::with_capacity(request.writes.len());
    let mut shards: BTreeMap<ShardId, (Vec<usize>, Vec<wire::Unit>)> = BTreeMap::new();
    for (position, write) in request.writes.into_iter().enumerate() {
        let write = BatchWrite::from(write);
        let (id, sort) = key(&write);
        let (id, sort) = (id.to_owned(), sort.map(str::to_owned));
        let place = format!("writes[{position}].{}", kind(&write));
        let planned = unit(call, info, position, write).map_err(|refusal| refusal.within(&place));
        let planned = planned.and_then(|unit| Ok((shard_of(&map, &id)?, unit)));
        let done = match planned {
            Ok((shard, unit)) => {
                let (positions, units) = shards.entry(shard).or_default();
                positions.push(position);
                units.push(unit);
                Ok((0, 0))
            }
            Err(refusal) => Err(refusal.into_problem()),
        };
        items.push(Item { id, sort, done });
    }
    if !shards.is_empty() {
        call.claim(info, &[b"batchWrite", info.name.as_bytes(), &body], None).await?;
    }
    let mut trace = call.trace();
    let writes = shards.into_iter().map(async |(shard, (positions, units))| {
        (positions, call.app.forwarder.write(shard, units, call.deadline).await)
    });
    for (positions, answer) in join_all(writes).await {
        match &answer {
            Ok(answer) => trace.note(answer),
            Err(error) => trace.note_failed(error),
        }
        fill(info, &mut items, positions, answer);
    }
    let mut response = json(StatusCode::OK, render(&items));
    trace.write(response.headers_mut());
    Ok(response)
}

fn kind(write: &BatchWrite) -> &'static str {
    match write {
        BatchWrite::Put(_) => "put",
        BatchWrite::Patch(_) => "patch",
        BatchWrite::Delete(_) => "delete",
    }
}

fn key(write: &BatchWrite) -> (&str, Option<&str>) {
    match write {
        BatchWrite::Put(put) => (&put.id, put.sort.as_deref()),
        BatchWrite::Patch(patch) => (&patch.id, patch.sort.as_deref()),
        BatchWrite::Delete(delete) => (&delete.id, delete.sort.as_deref()),
    }
}

/// Takes what one shard answered into the items that were sent there.
fn fill(
    info: &CollectionInfo,
    items: &mut [Item],
    positions: Vec<usize>,
    answer: Result<Answer<wire::CommandReply>, ForwardError>,
) {
    match answer {
        Ok(answer) => {
            for (position, unit) in positions.into_iter().zip(answer.body.units) {
                let Some(item) = items.get_mut(position) else { continue };
                let reply = unit.ops.into_iter().next().unwrap_or_default();
                let named =
                    Named { collection: &info.name, id: &item.id, sort: item.sort.as_deref(), create: false };
                let settled = settle(&reply, named).map_err(|refusal| match reply.status() {
                    OpStatus::InvalidMerge => refusal.within(&format!("writes[{position}].patch.merge")),
                    _ => refusal,
                });
                item.done = settled.map(|status| (status, reply.version)).map_err(Refusal::into_problem);
            }
        }
        Err(error) => {
            let problem = Refusal::from(error).into_problem();
            for position in positions {
                if let Some(item) = items.get_mut(position) {
                    item.done = Err(problem.clone());
                }
            }
        }
    }
}

fn render(items: &[Item]) -> Bytes {
    let mut rendered = Items::new(items.len() * 64);
    for item in items {
        rendered.push(|out| put_item(out, item));
    }
    rendered.finish(None)
}

fn put_item(out: &mut BytesMut, item: &Item) {
    out.put_slice(b"{\"id\":");
    put_json(out, &item.id);
    if let Some(sort) = &item.sort {
        out.put_slice(b",\"sort\":");
        put_json(out, sort);
    }
    match &item.done {
        Ok((status, version)) => {
            out.put_slice(b",\"status\":");
            put_json(out, status);
            if *status != 204 && *version != 0 {
                out.put_slice(b",\"etag\":");
                put_json(out, &etag(*version));
            }
        }
        Err(problem) => put_problem(out, problem),
    }
    out.put_u8(b'}');
}

/// One write as the shard applies it, atomic by itself.
fn unit(
    call: &Call<'_>,
    info: &CollectionInfo,
    position: usize,
    write: BatchWrite,
) -> Result<wire::Unit, Refusal> {
    let (id, sort) = key(&write);
    let (id, sort) = (id.to_owned(), sort.map(str::to_owned));
    check_item(info, &id, sort.as_deref())?;
    let kind = kind(&write);
    let (action, bytes, precondition, ttl_ms) = match write {
        BatchWrite::Put(put) => {
            let document = raw_bytes(put.document);
            let inspected = inspect(&document).and_then(|inspected| flags(&inspected, &id, sort.as_deref()));
            let flags = inspected.map_err(|error| Refusal::from(error).within("document"))?;
            let precondition = precondition(put.if_match.as_deref(), put.if_absent)?;
            let ttl = ttl(put.ttl.as_deref())?;
            let action = Action::Put(wire::Put { document: document.clone(), flags });
            (action, document, precondition, ttl)
        }
        BatchWrite::Patch(patch) => {
            let merge = raw_bytes(patch.merge);
            inspect(&merge).map_err(|error| Refusal::from(error).within("merge"))?;
            let precondition = precondition(patch.if_match.as_deref(), false)?;
            let action = Action::Merge(wire::Merge { patch: merge.clone() });
            (action, merge, precondition, ttl(patch.ttl.as_deref())?)
        }
        BatchWrite::Delete(delete) => {
            let precondition = precondition(delete.if_match.as_deref(), false)?;
            (Action::Delete(wire::Delete {}), Bytes::new(), precondition, None)
        }
    };
    require_precondition(info, precondition.is_some(), "ifMatch")?;
    let parts: &[&[u8]] = &[
        b"batchWrite",
        kind.as_bytes(),
        info.name.as_bytes(),
        id.as_bytes(),
        sort.as_deref().unwrap_or_default().as_bytes(),
        &ttl_ms.unwrap_or(0).to_le_bytes(),
        &bytes,
    ];
    let idempotency = call.idempotency(u32::try_from(position).unwrap_or(u32::MAX), parts)?;
    // After the fingerprint: a retry is the same request whatever has become of the collection's default.
    let ttl_ms = if kind == "put" { ttl_ms.or(info.default_ttl_ms) } else { ttl_ms };
    let op = wire::Op { collection: info.id, id, sort, action: Some(action), precondition, ttl_ms };
    Ok(wire::Unit { ops: vec![op], idempotency })
}

/// The text of a JSON value, without a copy.
pub fn raw_bytes(value: Box<RawValue>) -> Bytes {
    Bytes::from(String::from(Box::<str>::from(value)))
}

/// What `ifMatch` and `ifAbsent` ask for.
///
/// # Errors
/// 400 naming the field.
pub fn precondition(if_match: Option<&str>, if_absent: bool) -> Result<Option<wire::Precondition>, Refusal> {
    if if_match.is_none() && !if_absent {
        return Ok(None);
    }
    if if_match.is_some() && if_absent {
        // No document can both stand at a version and be absent.
        let detail = "\"ifMatch\" and \"ifAbsent\" exclude each other";
        return Err(Refusal::new(ProblemType::BadRequest, detail).field("ifAbsent"));
    }
    let mut precondition = wire::Precondition::default();
    if let Some(text) = if_match {
        let tags = Tags::parse(text).ok_or_else(|| {
            let detail = format!("ifMatch is \"*\" or an ETag with its quotes, not {text:?}");
            Refusal::new(ProblemType::BadRequest, detail).field("ifMatch")
        })?;
        precondition = tags.if_match();
    }
    precondition.if_absent = if_absent;
    Ok(Some(precondition))
}

/// A `ttl` field in milliseconds.
///
/// # Errors
/// 400 naming the field.
pub fn ttl(text: Option<&str>) -> Result<Option<u64>, Refusal> {
    let parsed = text.map(parse_ttl).transpose();
    parsed.map_err(|error| Refusal::from(error).field("ttl"))
}
