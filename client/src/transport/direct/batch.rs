//! Batches and transactions: each shard gets its part at once, and what fails in one leaves the others alone.

use std::collections::BTreeMap;
use std::time::Duration;

use borough_proto::error::{Problem, ProblemType};
use borough_proto::http_api::{
    BatchDelete, BatchItem, BatchKey, BatchPatch, BatchPut, BatchReply, BatchWrite, TransactOp, parse_ttl,
};
use borough_proto::idempotency::{CLAIM, position_of};
use borough_proto::{ShardId, wire};
use bytes::Bytes;
use futures::future::join_all;
use serde_json::value::RawValue;

use super::ops::{self, Refused};
use super::{Direct, Way};
use crate::document::{Etag, Json};
use crate::error::{Error, Result};
use crate::transport::{Action, Call, Condition, Key, WriteRule};

/// A write of a batch, taken apart.
struct Item {
    key: Key,
    action: Action,
    rule: WriteRule,
}

impl Direct {
    pub async fn batch_get(&self, call: &Call, collection: &str, keys: Vec<BatchKey>) -> Result<BatchReply> {
        let mut way = self.way(call).await?;
        let sorted = matches!(keys.first(), Some(BatchKey::Sorted { .. }));
        let collection = way.collection(collection, sorted).await?.id;
        let keys: Vec<wire::DocumentKey> =
            keys.into_iter().map(|key| document_key(collection, key)).collect();
        let mut shards: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
        for (position, key) in keys.iter().enumerate() {
            shards.entry(way.shard(&key.id)?).or_default().push(position);
        }
        let parts: Vec<(ShardId, Vec<usize>)> = shards.into_iter().collect();
        let asked: Vec<ShardId> = parts.iter().map(|(shard, _)| *shard).collect();
        let part = |part: usize| match parts.get(part) {
            Some((_, positions)) => {
                positions.iter().filter_map(|&position| keys.get(position).cloned()).collect()
            }
            None => Vec::new(),
        };
        let answers = way.read_many(&asked, part).await;
        let mut items: Vec<BatchItem> =
            keys.iter().map(|key| blank(key.id.clone(), key.sort.clone())).collect();
        for ((_, positions), answer) in parts.iter().zip(answers) {
            let mut answers = answer.map(|answer| answer.body.items.into_iter());
            for &position in positions {
                let Some(item) = items.get_mut(position) else { continue };
                match &mut answers {
                    Ok(answers) => match answers.next().and_then(|answer| answer.document) {
                        Some(document) => found(item, document, &way)?,
                        None => fail(
                            item,
                            Refused::new(ProblemType::DocumentNotFound, "there is no such document"),
                        ),
                    },
                    Err(error) => fail(item, of_error(error)),
                }
            }
        }
        Ok(BatchReply { items })
    }

    pub async fn batch_write(
        &self,
        call: &Call,
        collection: &str,
        writes: Vec<BatchWrite>,
    ) -> Result<BatchReply> {
        let mut way = self.way(call).await?;
        let mut items = Vec::with_capacity(writes.len());
        let mut shards: BTreeMap<ShardId, (Vec<usize>, Vec<wire::Unit>)> = BTreeMap::new();
        let mut content = String::new();
        for (position, write) in writes.into_iter().enumerate() {
            let Item { key, action, rule } = take_apart(collection, write);
            let mut item = blank(key.id.clone(), key.sort.clone());
            if call.idempotency_key.is_some() {
                content.push_str(&format!("{key:?} {action:?} {rule:?}\n"));
            }
            match way.unit(&key, &action, &rule, position).await {
                Ok(unit) => {
                    let (positions, units) = shards.entry(way.shard(&key.id)?).or_default();
                    positions.push(position);
                    units.push(unit);
                }
                Err(error) => fail(&mut item, of_error(&error)),
            }
            items.push(item);
        }
        if let Some(claim) = ops::idempotency(call, CLAIM, "BATCH", collection, content.as_bytes())
            && !shards.is_empty()
        {
            way.claim(collection, claim).await?;
        }
        let way = &way;
        let parts = shards
            .into_iter()
            .map(|(shard, (positions, units))| async move { (positions, way.write(shard, units).await) });
        for (positions, answer) in join_all(parts).await {
            let mut units = answer.map(|answer| answer.body.units.into_iter());
            for position in positions {
                let Some(item) = items.get_mut(position) else { continue };
                match &mut units {
                    Ok(units) => match units.next().and_then(|unit| unit.ops.into_iter().next()) {
                        Some(reply) => wrote(item, reply),
                        None => fail(item, of_error(&way.misanswered())),
                    },
                    Err(error) => fail(item, of_error(error)),
                }
            }
        }
        Ok(BatchReply { items })
    }

    pub async fn transact(&self, call: &Call, id: &str, ops: Vec<TransactOp>) -> Result<BatchReply> {
        let mut way = self.way(call).await?;
        let content = serde_json::to_vec(&ops)
            .map_err(|source| Error::Encode { operation: call.operation.clone(), source })?;
        let mut unit = wire::Unit {
            ops: Vec::with_capacity(ops.len()),
            idempotency: ops::idempotency(call, position_of(&[id]), "TRANSACT", id, &content),
        };
        let mut items = Vec::with_capacity(ops.len());
        for (position, op) in ops.into_iter().enumerate() {
            items.push(blank(id.to_owned(), op.sort.clone()));
            let collection = way.collection(&op.collection, op.sort.is_some()).await?;
            let op = transact_op(&collection, id, op).map_err(|refused| at(refused, position).of(call))?;
            unit.ops.push(op);
        }
        let reply = way.write_one(id, unit).await?;
        if reply.ops.len() != items.len() {
            return Err(way.misanswered());
        }
        if let Some(refused) = first_failure(&reply.ops) {
            return Err(refused.of(call));
        }
        for (item, reply) in items.iter_mut().zip(reply.ops) {
            wrote(item, reply);
        }
        Ok(BatchReply { items })
    }
}

impl Way<'_> {
    async fn unit(
        &mut self,
        key: &Key,
        action: &Action,
        rule: &WriteRule,
        position: usize,
    ) -> Result<wire::Unit> {
        key.check(&self.call.operation)?;
        let collection = self.collection(&key.collection, key.sort.is_some()).await?;
        let op = ops::op(&collection, &key.id, key.sort.as_deref(), action, rule)
            .map_err(|refused| refused.of(self.call))?;
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        let content = format!("{key:?} {action:?} {rule:?}");
        let idempotency = ops::idempotency(self.call, position, "BATCH", &content, &[]);
        Ok(wire::Unit { ops: vec![op], idempotency })
    }
}

fn document_key(collection: u32, key: BatchKey) -> wire::DocumentKey {
    match key {
        BatchKey::Id(id) => wire::DocumentKey { collection, id, sort: None },
        BatchKey::Sorted { id, sort } => wire::DocumentKey { collection, id, sort: Some(sort) },
    }
}

fn text(json: Json) -> Bytes {
    Bytes::from(String::from(Box::<str>::from(json)))
}

/// The typed API sends only what [`parse_ttl`] reads; what it doesn't is refused as a time to live of nothing.
fn ttl(text: Option<String>) -> Option<Duration> {
    text.map(|text| Duration::from_millis(parse_ttl(&text).unwrap_or(0)))
}

fn condition(if_match: Option<String>, if_absent: bool) -> Condition {
    match (if_match, if_absent) {
        (Some(tag), _) => Condition::Match(Etag::from(tag)),
        (None, true) => Condition::Absent,
        (None, false) => Condition::None,
    }
}

fn take_apart(collection: &str, write: BatchWrite) -> Item {
    let key = |id, sort| Key { collection: collection.to_owned(), id, sort };
    match write {
        BatchWrite::Put(BatchPut { id, sort, document, if_match, if_absent, ttl: after }) => Item {
            key: key(id, sort),
            action: Action::Put(text(document)),
            rule: WriteRule { condition: condition(if_match, if_absent), ttl: ttl(after) },
        },
        BatchWrite::Patch(BatchPatch { id, sort, merge, if_match, ttl: after }) => Item {
            key: key(id, sort),
            action: Action::Patch(text(merge)),
            rule: WriteRule { condition: condition(if_match, false), ttl: ttl(after) },
        },
        BatchWrite::Delete(BatchDelete { id, sort, if_match }) => Item {
            key: key(id, sort),
            action: Action::Delete,
            rule: WriteRule { condition: condition(if_match, false), ttl: None },
        },
    }
}

fn transact_op(collection: &wire::CollectionInfo, id: &str, op: TransactOp) -> Result<wire::Op, Refused> {
    let TransactOp { sort, put, patch, delete, check, if_match, if_absent, ttl: after, .. } = op;
    let rule = WriteRule { condition: condition(if_match, if_absent), ttl: ttl(after) };
    let action = match (put, patch, delete, check) {
        (Some(document), None, false, false) => Action::Put(text(document)),
        (None, Some(merge), false, false) => Action::Patch(text(merge)),
        (None, None, true, false) => Action::Delete,
        (None, None, false, true) => {
            return Ok(wire::Op {
                collection: collection.id,
                id: id.to_owned(),
                sort,
                action: Some(wire::op::Action::Check(wire::Check {})),
                precondition: ops::precondition(&rule.condition)?,
                ttl_ms: None,
            });
        }
        _ => return Err(Refused::new(ProblemType::BadRequest, "one of put, patch, delete or check")),
    };
    ops::op(collection, id, sort.as_deref(), &action, &rule)
}

fn at(mut refused: Refused, position: usize) -> Refused {
    refused.problem.op = u32::try_from(position).ok();
    refused
}

/// What stopped a transaction; operations that were merely dropped with it don't count.
fn first_failure(replies: &[wire::OpReply]) -> Option<Refused> {
    let failed = |reply: &wire::OpReply| ops::written(reply.clone(), "", None).err();
    let cause =
        replies.iter().position(|reply| reply.status() != wire::OpStatus::Aborted && failed(reply).is_some());
    let cause = cause.or_else(|| replies.iter().position(|reply| failed(reply).is_some()))?;
    let mut refused = failed(replies.get(cause)?)?;
    if refused.problem.problem_type() == Some(ProblemType::DocumentNotFound) {
        *refused.problem = Problem::new(ProblemType::PreconditionFailed, "there is no such document");
    }
    Some(at(refused, cause))
}

fn blank(id: String, sort: Option<String>) -> BatchItem {
    BatchItem { id, sort, status: 0, etag: None, document: None, problem: None }
}

fn found(item: &mut BatchItem, document: wire::Document, way: &Way<'_>) -> Result<()> {
    let shown = ops::shown(document);
    let text = String::from_utf8(shown.json.into()).map_err(|_| way.misanswered())?;
    item.status = 200;
    item.etag = Some(shown.etag.as_str().to_owned());
    item.document = Some(RawValue::from_string(text).map_err(|_| way.misanswered())?);
    Ok(())
}

fn wrote(item: &mut BatchItem, reply: wire::OpReply) {
    let deleted = reply.status() == wire::OpStatus::Deleted;
    match ops::written(reply, &item.id, item.sort.as_deref()) {
        Ok(written) => {
            item.status = match (written.created, deleted) {
                (true, _) => 201,
                (false, true) => 204,
                (false, false) => 200,
            };
            item.etag = Some(written.etag.as_str().to_owned());
        }
        Err(refused) => fail(item, refused),
    }
}

fn fail(item: &mut BatchItem, refused: Refused) {
    item.status = refused.problem.status;
    item.etag = refused.current.map(|etag| etag.as_str().to_owned());
    item.problem = Some(refused.problem);
}

/// One part's error, for each of its items.
fn of_error(error: &Error) -> Refused {
    match error.refusal() {
        Some(refusal) => {
            Refused { problem: Box::new(refusal.problem.clone()), current: refusal.current.clone() }
        }
        None => Refused::new(ProblemType::Internal, error.to_string()).with_outcome(error.outcome()),
    }
}
