//! `GET` and `HEAD` of one document.

use axum::response::Response;
use borough_proto::document::present;
use borough_proto::error::ProblemType;
use borough_proto::wire::{self, CollectionInfo};
use http::StatusCode;

use super::call::{Call, shard_of};
use super::settle::{Named, not_found};
use crate::http::answer::{empty, json, put_cache_status, put_etag, put_expires};
use crate::http::headers::Conditions;
use crate::http::query::{Param, Query};
use crate::http::refusal::Refusal;

/// 200, 304, 404, or 412 when `If-Match` fails. No JSON is parsed on the way.
///
/// # Errors
/// A [`Refusal`], with the shard and node that found it when one was asked.
pub async fn get(
    call: &Call<'_>,
    info: &CollectionInfo,
    id: &str,
    sort: Option<&str>,
) -> Result<Response, Refusal> {
    let query = Query::parse(call.head.uri.query(), &[Param::View])?;
    let conditions = Conditions::read(&call.head.headers)?;
    let shard = shard_of(&*call.map().await?, id)?;
    let key = wire::DocumentKey { collection: info.id, id: id.to_owned(), sort: sort.map(str::to_owned) };
    let read = wire::Read { keys: vec![key], freshness: call.freshness(shard) };
    let mut answer = call.app.forwarder.read(shard, read, call.deadline).await?;
    let mut trace = call.trace();
    trace.note(&answer);
    let item = answer.body.items.pop().unwrap_or_default();
    let mut shown =
        show(item.document, &query, &conditions, Named { collection: &info.name, id, sort, create: false });
    let headers = match &mut shown {
        Ok(response) => response.headers_mut(),
        Err(refusal) => refusal.headers_mut(),
    };
    trace.write(headers);
    put_cache_status(headers, item.cache_hit);
    shown
}

fn show(
    document: Option<wire::Document>,
    query: &Query,
    conditions: &Conditions,
    named: Named<'_>,
) -> Result<Response, Refusal> {
    if conditions.read_fails(document.as_ref().map(|document| document.version)) {
        let mut refusal = Refusal::new(ProblemType::PreconditionFailed, "If-Match names another version");
        put_etag(refusal.headers_mut(), document.map_or(0, |document| document.version));
        return Err(refusal);
    }
    let Some(document) = document else { return Err(not_found(named)) };
    let mut response = if conditions.not_modified(document.version) {
        empty(StatusCode::NOT_MODIFIED)
    } else if query.stored {
        json(StatusCode::OK, document.body)
    } else {
        json(StatusCode::OK, present(named.id, named.sort, document.flags, &document.body))
    };
    put_etag(response.headers_mut(), document.version);
    put_expires(response.headers_mut(), document.expires_ms);
    Ok(response)
}
