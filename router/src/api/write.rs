//! `POST`, `PUT`, `PATCH` and `DELETE` of one document.

use std::borrow::Cow;

use axum::body::Body;
use axum::response::Response;
use borough_proto::document::{KeyField, flags, inspect, present};
use borough_proto::error::ProblemType;
use borough_proto::http_api::headers::MERGE_PATCH;
use borough_proto::idempotency::position_of;
use borough_proto::limits::{DOCUMENT_BYTES_MAX, ID_BYTES_MAX, SORT_BYTES_MAX};
use borough_proto::wire::{self, CollectionInfo, op::Action};
use bytes::Bytes;
use http::header::{HeaderValue, IF_MATCH, LOCATION};
use http::{Method, StatusCode};
use uuid::Uuid;

use super::call::{Call, require_precondition, shard_of};
use super::settle::{Named, settle};
use crate::auth::Right;
use crate::http::answer::{empty, json, put_etag, put_expires};
use crate::http::headers::{Conditions, content_type};
use crate::http::path::{check_key, escape};
use crate::http::query::{Param, Query};
use crate::http::refusal::Refusal;

const JSON: &[&str] = &["application/json"];
const MERGE: &[&str] = &[MERGE_PATCH, "application/json"];

/// A document and what is to be done with it.
struct Edit<'a> {
    info: &'a CollectionInfo,
    id: Cow<'a, str>,
    sort: Option<Cow<'a, str>>,
    action: Action,
    precondition: Option<wire::Precondition>,
    ttl_ms: Option<u64>,
    idempotency: Option<wire::Idempotency>,
    /// `POST`.
    create: bool,
}

/// `PUT`, `PATCH` or `DELETE` of a document that the path names.
///
/// # Errors
/// A [`Refusal`] with the write's outcome.
pub async fn change(
    call: &Call<'_>,
    body: Body,
    info: &CollectionInfo,
    id: &str,
    sort: Option<&str>,
) -> Result<Response, Refusal> {
    let method = &call.head.method;
    let params: &[Param] = if *method == Method::DELETE { &[] } else { &[Param::Ttl] };
    let query = Query::parse(call.head.uri.query(), params)?;
    let conditions = Conditions::read(&call.head.headers)?;
    require_precondition(info, !conditions.is_empty(), "if-match")?;
    let mut ttl_ms = query.ttl_ms;
    let (action, bytes) = if *method == Method::PUT {
        let document = call.body(body, DOCUMENT_BYTES_MAX, JSON).await?;
        ttl_ms = ttl_ms.or(info.default_ttl_ms);
        let flags = flags(&inspect(&document)?, id, sort)?;
        (Action::Put(wire::Put { document: document.clone(), flags }), document)
    } else if *method == Method::PATCH {
        let patch = call.body(body, DOCUMENT_BYTES_MAX, MERGE).await?;
        inspect(&patch)?;
        (Action::Merge(wire::Merge { patch: patch.clone() }), patch)
    } else {
        (Action::Delete(wire::Delete {}), Bytes::new())
    };
    let ttl = query.ttl_ms.unwrap_or(0).to_le_bytes();
    let idempotency = call.idempotency(
        position_of(&[&info.name, id, sort.unwrap_or_default()]),
        &[info.name.as_bytes(), id.as_bytes(), sort.unwrap_or_default().as_bytes(), &ttl, &bytes],
    )?;
    let edit = Edit {
        info,
        id: Cow::Borrowed(id),
        sort: sort.map(Cow::Borrowed),
        action,
        precondition: conditions.precondition(),
        ttl_ms,
        idempotency,
        create: false,
    };
    run(call, edit).await
}

/// `POST` to a collection: the id is in the body, or made.
///
/// # Errors
/// A [`Refusal`] with the write's outcome.
pub async fn create(call: &Call<'_>, body: Body, info: &CollectionInfo) -> Result<Response, Refusal> {
    let query = Query::parse(call.head.uri.query(), &[Param::Ttl])?;
    if call.head.headers.contains_key(IF_MATCH) {
        // Ignoring it would create what the caller meant to change.
        let detail =
            "a POST creates a document, so there is no version to match; PUT and PATCH take If-Match";
        return Err(Refusal::new(ProblemType::BadRequest, detail).field("if-match"));
    }
    content_type(&call.head.headers, JSON)?;
    let document = call.body(body, DOCUMENT_BYTES_MAX, JSON).await?;
    let inspected = inspect(&document)?;
    let sort = match (info.sort_key, &inspected.sort) {
        (false, _) => None,
        (true, KeyField::Text(sort)) => Some(sort.clone()),
        (true, KeyField::Absent | KeyField::Other(_)) => return Err(needs_both(info)),
    };
    let mut made = None;
    let mut id = match &inspected.id {
        KeyField::Text(id) => id.clone(),
        KeyField::Absent if !info.sort_key => {
            let id = Uuid::now_v7().to_string();
            made = Some(Bytes::from(id.clone()));
            Cow::Owned(id)
        }
        KeyField::Absent => return Err(needs_both(info)),
        KeyField::Other(found) => {
            let detail = format!("field \"id\" must be a string or an integer, not {found}");
            return Err(Refusal::new(ProblemType::BadId, detail).field("id"));
        }
    };
    check_key(&id, "id", ID_BYTES_MAX)?;
    let sort_checked = sort.as_ref().map_or(Ok(()), |sort| check_key(sort, "sort", SORT_BYTES_MAX));
    let flags = sort_checked.and_then(|()| Ok(flags(&inspected, &id, sort.as_deref())?));
    let flags = flags.map_err(|refusal| call.app.concerning(&id, refusal))?;
    let ttl = query.ttl_ms.unwrap_or(0).to_le_bytes();
    let parts: &[&[u8]] = &[info.name.as_bytes(), &ttl, &document];
    let idempotency = call.idempotency(0, parts).map_err(|refusal| call.app.concerning(&id, refusal))?;
    if let Some(first) = call.claim(info, parts, made).await? {
        // A retry goes on with the id that the first attempt made.
        id = Cow::Owned(String::from_utf8(first.into()).map_err(|_| foreign_note())?);
    }
    let edit = Edit {
        info,
        id,
        sort,
        action: Action::Put(wire::Put { document: document.clone(), flags }),
        precondition: Some(wire::Precondition { if_absent: true, ..Default::default() }),
        ttl_ms: query.ttl_ms.or(info.default_ttl_ms),
        idempotency,
        create: true,
    };
    run(call, edit).await
}

fn needs_both(info: &CollectionInfo) -> Refusal {
    let detail = format!(
        "collection {:?} is sorted: POST needs \"id\" and \"sort\" (strings or integers) in the body, or PUT /v1/{}/{{id}}/{{sort}}",
        info.name, info.name
    );
    Refusal::new(ProblemType::BadRequest, detail).field("sort")
}

/// The note of a claim holds the id that a router made.
fn foreign_note() -> Refusal {
    Refusal::new(ProblemType::Internal, "what is kept with the Idempotency-Key is no id")
}

async fn run(call: &Call<'_>, edit: Edit<'_>) -> Result<Response, Refusal> {
    let shard = shard_of(&*call.map().await?, &edit.id)?;
    let put = match &edit.action {
        Action::Put(put) => Some(put.clone()),
        Action::Merge(_) | Action::Delete(_) | Action::Check(_) => None,
    };
    let op = wire::Op {
        collection: edit.info.id,
        id: edit.id.clone().into_owned(),
        sort: edit.sort.clone().map(Cow::into_owned),
        action: Some(edit.action),
        precondition: edit.precondition,
        ttl_ms: edit.ttl_ms,
    };
    let unit = wire::Unit { ops: vec![op], idempotency: edit.idempotency };
    let mut answer = call.app.forwarder.write(shard, vec![unit], call.deadline).await?;
    let mut trace = call.trace();
    trace.note(&answer);
    let reply = answer.body.units.pop().and_then(|mut unit| unit.ops.pop()).unwrap_or_default();
    let sort = edit.sort.as_deref();
    let named = Named { collection: &edit.info.name, id: &edit.id, sort, create: edit.create };
    let mut settled = settle(&reply, named).map(|status| {
        let document = match put {
            Some(put) => Some(present(&edit.id, sort, put.flags, &put.document)),
            None if status == 204 => None,
            // The merged document shows what was there before: not to a caller who may only write.
            None if !call.caller.has(Right::Read) => None,
            None => Some(present(&edit.id, sort, reply.flags, &reply.document)),
        };
        done(status, document, &reply, edit.create.then_some(named))
    });
    trace.write(match &mut settled {
        Ok(response) => response.headers_mut(),
        Err(refusal) => refusal.headers_mut(),
    });
    settled
}

fn done(status: u16, document: Option<Bytes>, reply: &wire::OpReply, created: Option<Named<'_>>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let mut response = match document {
        None if status == StatusCode::NO_CONTENT => return empty(status),
        None => empty(status),
        Some(document) => json(status, document),
    };
    let headers = response.headers_mut();
    put_etag(headers, reply.version);
    put_expires(headers, reply.expires_ms);
    if let Some(Named { collection, id, sort, .. }) = created {
        let mut location = format!("/v1/{collection}/{}", escape(id));
        if let Some(sort) = sort {
            location.push('/');
            location.push_str(&escape(sort));
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(location)) {
            headers.insert(LOCATION, value);
        }
    }
    response
}
