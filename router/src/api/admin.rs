//! The control plane: the status document and collections.

use axum::body::Body;
use axum::response::Response;
use borough_proto::error::{Outcome, ProblemType};
use borough_proto::http_api::{
    Collection, CollectionList, CollectionOptions, parse_ttl, valid_collection_name,
};
use borough_proto::limits::{COLLECTION_NAME_BYTES_MAX, DOCUMENT_BYTES_MAX};
use borough_proto::wire;
use http::{Method, StatusCode};

use super::call::Call;
use crate::http::answer::{empty, json, json_value};
use crate::http::json::parse;
use crate::http::query::Query;
use crate::http::refusal::Refusal;

/// `GET /admin/v1/cluster`: made by the meta leader, passed on as it is.
///
/// # Errors
/// 503 when no node answers within the deadline.
pub async fn cluster(call: &Call<'_>) -> Result<Response, Refusal> {
    Query::parse(call.head.uri.query(), &[])?;
    let status = call.app.cluster.status(call.deadline).await?;
    Ok(json(StatusCode::OK, status.json))
}

/// `GET /admin/v1/collections`.
///
/// # Errors
/// 503 without a map.
pub async fn list(call: &Call<'_>) -> Result<Response, Refusal> {
    Query::parse(call.head.uri.query(), &[])?;
    let map = call.map().await?;
    let mut items: Vec<Collection> = map.wire().collections.iter().map(Collection::from).collect();
    items.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(json_value(StatusCode::OK, &CollectionList { items }))
}

/// `GET`, `HEAD`, `PUT` and `DELETE` of `/admin/v1/collections/{name}`.
///
/// # Errors
/// 400, 404, 409 (what cannot be changed), 503, 504.
pub async fn one(call: &Call<'_>, body: Body, name: &str) -> Result<Response, Refusal> {
    Query::parse(call.head.uri.query(), &[])?;
    match call.head.method {
        Method::GET | Method::HEAD => {
            let info = call.collection(name).await?;
            Ok(json_value(StatusCode::OK, &Collection::from(&*info)))
        }
        Method::PUT => put(call, body, name).await,
        Method::DELETE => delete(call, name).await,
        _ => Err(Refusal::method("GET, HEAD, PUT, DELETE", "a collection is read, put or deleted")),
    }
}

async fn put(call: &Call<'_>, body: Body, name: &str) -> Result<Response, Refusal> {
    if !valid_collection_name(name) {
        let detail = format!(
            "{name:?} cannot name a collection: [a-z][a-z0-9_-]*, at most {COLLECTION_NAME_BYTES_MAX} bytes, not \"partitions\""
        );
        return Err(Refusal::new(ProblemType::BadId, detail).field("name").limit(COLLECTION_NAME_BYTES_MAX));
    }
    let body = call.body(body, DOCUMENT_BYTES_MAX, &["application/json"]).await?;
    let options: CollectionOptions =
        if body.is_empty() { CollectionOptions::default() } else { parse(&body)? };
    let ttl = options.default_ttl.as_deref().map(parse_ttl).transpose();
    let default_ttl_ms = ttl.map_err(|error| Refusal::from(error).field("defaultTtl"))?;
    let info = wire::CollectionInfo {
        id: 0,
        name: name.to_owned(),
        sort_key: options.sort_key,
        default_ttl_ms,
        require_preconditions: options.require_preconditions,
    };
    let reply = call.app.cluster.put_collection(info.clone(), call.deadline).await?;
    if !reply.refused.is_empty() {
        return Err(Refusal::new(ProblemType::Conflict, reply.refused));
    }
    reached(call, reply.epoch).await?;
    let shown = Collection::from(reply.collection.as_ref().unwrap_or(&info));
    Ok(json_value(if reply.created { StatusCode::CREATED } else { StatusCode::OK }, &shown))
}

async fn delete(call: &Call<'_>, name: &str) -> Result<Response, Refusal> {
    let reply = call.app.cluster.delete_collection(name, call.deadline).await?;
    if !reply.refused.is_empty() {
        return Err(Refusal::new(ProblemType::Conflict, reply.refused));
    }
    if !reply.existed {
        return Err(Refusal::new(
            ProblemType::CollectionNotFound,
            format!("there is no collection {name:?}"),
        ));
    }
    reached(call, reply.epoch).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Waits until this router's map includes the change, so that the caller's next request here sees it.
pub(super) async fn reached(call: &Call<'_>, epoch: u64) -> Result<(), Refusal> {
    if call.app.forwarder.watch().reached(epoch, call.deadline).await {
        return Ok(());
    }
    let detail = "the change was made, but this router has not heard of it within the deadline";
    Err(Refusal::new(ProblemType::DeadlineExceeded, detail).outcome(Outcome::Applied))
}
