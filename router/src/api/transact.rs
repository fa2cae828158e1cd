//! `/v1/partitions/{id}:transact`: one atomic unit over the documents of one id, in any collections.

use axum::body::Body;
use axum::response::Response;
use borough_proto::ClusterMap;
use borough_proto::document::{etag, flags, inspect};
use borough_proto::error::ProblemType;
use borough_proto::http_api::{BatchItem, BatchReply, TransactOp};
use borough_proto::idempotency::position_of;
use borough_proto::limits::{BATCH_BYTES_MAX, SORT_BYTES_MAX};
use borough_proto::wire::{self, OpStatus, op::Action};
use http::StatusCode;

use super::batch_get::check_count;
use super::batch_write::{precondition, raw_bytes, ttl};
use super::call::{Call, check_sort, collection, require_precondition, shard_of};
use super::settle::{Named, settle};
use crate::auth::Right;
use crate::http::answer::json_value;
use crate::http::json::{Object, TransactBody, parse};
use crate::http::path::check_key;
use crate::http::query::Query;
use crate::http::refusal::Refusal;

/// 200: all applied. 412: none, and `op` says which one failed.
///
/// # Errors
/// A [`Refusal`] with the outcome of the whole.
pub async fn transact(call: &Call<'_>, body: Body, id: &str) -> Result<Response, Refusal> {
    Query::parse(call.head.uri.query(), &[])?;
    let body = call.body(body, BATCH_BYTES_MAX, &["application/json"]).await?;
    let request: TransactBody = parse(&body)?;
    check_count("ops", request.ops.len())?;
    for (position, Object(op)) in request.ops.iter().enumerate() {
        let allowed = call.may(Right::Write, &op.collection);
        allowed.map_err(|refusal| refusal.detail(&format!("ops[{position}]")).op(position))?;
    }
    let mut map = call.map().await?;
    for (position, Object(op)) in request.ops.iter().enumerate() {
        if map.collection(&op.collection).is_none() {
            let found = call.collection(&op.collection).await;
            found.map_err(|refusal| refusal.detail(&format!("ops[{position}]")).op(position))?;
            map = call.map().await?;
        }
    }
    let mut ops = Vec::with_capacity(request.ops.len());
    let mut names = Vec::with_capacity(request.ops.len());
    for (position, Object(op)) in request.ops.into_iter().enumerate() {
        names.push((op.collection.clone(), op.sort.clone()));
        let planned = plan(&map, id, op);
        let place = format!("ops[{position}]");
        ops.push(planned.map_err(|refusal| refusal.within(&place).detail(&place).op(position))?);
    }
    let idempotency = call.idempotency(position_of(&[id]), &[b"transact", id.as_bytes(), &body])?;
    let unit = wire::Unit { ops, idempotency };
    let mut answer = call.app.forwarder.write(shard_of(&map, id)?, vec![unit], call.deadline).await?;
    let mut trace = call.trace();
    trace.note(&answer);
    let replies = answer.body.units.pop().unwrap_or_default().ops;
    let mut settled = conclude(id, &names, &replies);
    trace.write(match &mut settled {
        Ok(response) => response.headers_mut(),
        Err(refusal) => refusal.headers_mut(),
    });
    settled
}

fn conclude(
    id: &str,
    names: &[(String, Option<String>)],
    replies: &[wire::OpReply],
) -> Result<Response, Refusal> {
    // Those aborted failed because of another one: name that one.
    let culprit = replies.iter().position(|reply| failed(reply) && reply.status() != OpStatus::Aborted);
    let culprit = culprit.or_else(|| replies.iter().position(failed));
    let named = |(collection, sort): &'_ (String, Option<String>)| (collection.clone(), sort.clone());
    if let Some(position) = culprit
        && let (Some(reply), Some((collection, sort))) =
            (replies.get(position), names.get(position).map(named))
    {
        let named = Named { collection: &collection, id, sort: sort.as_deref(), create: false };
        if let Err(refusal) = settle(reply, named) {
            // A document that is missing fails the transaction as a precondition does.
            let refusal = if reply.status() == OpStatus::NotFound {
                let detail = format!("there is no document {}", named.name());
                Refusal::new(ProblemType::PreconditionFailed, detail)
            } else {
                refusal
            };
            let refusal = match reply.status() {
                OpStatus::InvalidMerge => refusal.within(&format!("ops[{position}].patch")),
                _ => refusal,
            };
            return Err(refusal
                .detail(&format!("nothing was applied because of ops[{position}]"))
                .op(position));
        }
    }
    let mut items = Vec::with_capacity(replies.len());
    for (reply, (collection, sort)) in replies.iter().zip(names) {
        let status = settle(reply, Named { collection, id, sort: sort.as_deref(), create: false })?;
        let etag = (status != 204 && reply.version != 0).then(|| etag(reply.version));
        items.push(BatchItem {
            id: id.to_owned(),
            sort: sort.clone(),
            status,
            etag,
            document: None,
            problem: None,
        });
    }
    Ok(json_value(StatusCode::OK, &BatchReply { items }))
}

fn failed(reply: &wire::OpReply) -> bool {
    match reply.status() {
        OpStatus::Created | OpStatus::Replaced | OpStatus::Merged | OpStatus::Deleted | OpStatus::Checked => {
            false
        }
        OpStatus::NotFound
        | OpStatus::Exists
        | OpStatus::PreconditionFailed
        | OpStatus::Aborted
        | OpStatus::KeyReused
        | OpStatus::TooLarge
        | OpStatus::InvalidMerge
        | OpStatus::Unspecified => true,
    }
}

fn plan(map: &ClusterMap, id: &str, op: TransactOp) -> Result<wire::Op, Refusal> {
    let info = collection(map, &op.collection)?;
    check_sort(&info, op.sort.as_deref())?;
    if let Some(sort) = &op.sort {
        check_key(sort, "sort", SORT_BYTES_MAX)?;
    }
    let bad = |detail: &str, field: &str| Refusal::new(ProblemType::BadRequest, detail).field(field);
    let precondition = precondition(op.if_match.as_deref(), op.if_absent)?;
    let mut ttl_ms = ttl(op.ttl.as_deref())?;
    let (action, keeps) = match (op.put, op.patch, op.delete, op.check) {
        (Some(put), None, false, false) => {
            let document = raw_bytes(put);
            let inspected =
                inspect(&document).and_then(|inspected| flags(&inspected, id, op.sort.as_deref()));
            let flags = inspected.map_err(|error| Refusal::from(error).within("put"))?;
            ttl_ms = ttl_ms.or(info.default_ttl_ms);
            (Action::Put(wire::Put { document, flags }), true)
        }
        (None, Some(patch), false, false) => {
            let patch = raw_bytes(patch);
            inspect(&patch).map_err(|error| Refusal::from(error).within("patch"))?;
            (Action::Merge(wire::Merge { patch }), true)
        }
        (None, None, true, false) => (Action::Delete(wire::Delete {}), false),
        (None, None, false, true) if precondition.is_none() => {
            return Err(bad("\"check\" needs \"ifMatch\" or \"ifAbsent\"", "check"));
        }
        (None, None, false, true) => (Action::Check(wire::Check {}), false),
        _ => {
            let detail = "exactly one of \"put\", \"patch\", \"delete\" and \"check\" must be set";
            return Err(Refusal::new(ProblemType::BadRequest, detail));
        }
    };
    if ttl_ms.is_some() && !keeps {
        return Err(bad("only \"put\" and \"patch\" take a \"ttl\"", "ttl"));
    }
    require_precondition(&info, precondition.is_some(), "ifMatch")?;
    Ok(wire::Op {
        collection: info.id,
        id: id.to_owned(),
        sort: op.sort,
        action: Some(action),
        precondition,
        ttl_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: OpStatus) -> wire::OpReply {
        wire::OpReply { status: status.into(), version: 5, ..Default::default() }
    }

    fn names(count: usize) -> Vec<(String, Option<String>)> {
        vec![("users".to_owned(), None); count]
    }

    #[test]
    fn the_operation_that_failed_is_named_not_those_it_aborted() {
        for (status, code) in [
            (OpStatus::PreconditionFailed, 412),
            (OpStatus::Exists, 412),
            (OpStatus::NotFound, 412),
            (OpStatus::KeyReused, 422),
            (OpStatus::InvalidMerge, 400),
        ] {
            let replies = [reply(OpStatus::Aborted), reply(status), reply(OpStatus::Aborted)];
            let problem = conclude("a", &names(3), &replies).unwrap_err().into_problem();
            assert_eq!((problem.status, problem.op), (code, Some(1)), "{status:?}");
        }
        assert_eq!(conclude("a", &names(1), &[reply(OpStatus::Deleted)]).unwrap().status(), 200);
        let item = [("posts".to_owned(), Some("s".to_owned()))];
        let problem = conclude("a", &item, &[reply(OpStatus::NotFound)]).unwrap_err().into_problem();
        assert!(problem.detail.starts_with("there is no document posts/a/s;"), "{}", problem.detail);
    }

    #[test]
    fn an_operation_does_exactly_one_thing() {
        let users = wire::CollectionInfo { id: 1, name: "users".to_owned(), ..Default::default() };
        let map = ClusterMap::try_from(wire::ClusterMap { collections: vec![users], ..Default::default() })
            .unwrap();
        let op = |json: &str| plan(&map, "a", serde_json::from_str(json).unwrap());
        assert!(op(r#"{"collection":"users","delete":true}"#).is_ok());
        assert!(op(r#"{"collection":"users","put":{},"ttl":"5s"}"#).is_ok());
        for json in [
            r#"{"collection":"users"}"#,
            r#"{"collection":"users","delete":true,"check":true}"#,
            r#"{"collection":"users","put":{},"patch":{}}"#,
            r#"{"collection":"users","check":true}"#,
            r#"{"collection":"users","delete":true,"ttl":"5s"}"#,
            r#"{"collection":"users","put":{"id":"b"}}"#,
            r#"{"collection":"users","put":{},"sort":"s"}"#,
            r#"{"collection":"users","put":{},"ifMatch":"5"}"#,
            r#"{"collection":"users","put":{},"ifMatch":"\"5\"","ifAbsent":true}"#,
        ] {
            assert_eq!(op(json).unwrap_err().status(), 400, "{json}");
        }
        assert_eq!(op(r#"{"collection":"posts","put":{}}"#).unwrap_err().status(), 404);
    }
}
