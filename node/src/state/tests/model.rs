//! Apply against a model: the same replies and the same documents, written as plainly as possible.

use std::collections::BTreeMap;

use super::*;
use crate::state::{document_key, read};

type Name = (u32, String, Option<String>);

#[derive(Debug, Clone)]
struct Document {
    body: Bytes,
    flags: u32,
    version: u64,
    expires_ms: Option<u64>,
}

#[derive(Debug, Default)]
struct Model {
    time_ms: u64,
    documents: BTreeMap<Name, Document>,
    /// (stamp, fingerprint, reply)
    keys: BTreeMap<(String, u32), (u64, u64, wire::UnitReply)>,
    sessions: BTreeMap<u64, ModelSession>,
}

#[derive(Debug, Default)]
struct ModelSession {
    last_ms: u64,
    watermark: u64,
    outcomes: BTreeMap<u64, wire::CommandReply>,
}

fn failed(status: OpStatus, version: u64) -> wire::OpReply {
    wire::OpReply { status: status.into(), version, ..Default::default() }
}

impl Model {
    fn apply(&mut self, index: u64, command: &wire::Command) -> wire::CommandReply {
        self.time_ms = self.time_ms.max(command.stamp_ms);
        if let Some(session) = &command.session {
            let known = self.sessions.entry(session.id).or_default();
            known.last_ms = self.time_ms;
            if let Some(reply) = known.outcomes.get(&session.sequence) {
                let mut reply = reply.clone();
                reply.units.iter_mut().for_each(|unit| unit.replayed = true);
                return reply;
            }
            if session.sequence <= known.watermark {
                return wire::CommandReply { units: vec![], stale_duplicate: true };
            }
        }
        let mut first = 0;
        let mut reply = wire::CommandReply::default();
        for unit in &command.units {
            reply.units.push(self.unit((index << 16) + first, unit));
            first += unit.ops.len() as u64;
        }
        if let Some(sweep) = &command.sweep {
            self.sweep(sweep);
        }
        if let Some(session) = &command.session {
            let known = self.sessions.entry(session.id).or_default();
            known.last_ms = self.time_ms;
            known.watermark = known.watermark.max(session.acknowledged);
            known.outcomes.insert(session.sequence, reply.clone());
            known.outcomes.retain(|sequence, _| *sequence > known.watermark);
        }
        reply
    }

    fn unit(&mut self, version: u64, unit: &wire::Unit) -> wire::UnitReply {
        let key =
            unit.idempotency.as_ref().map(|idempotency| (idempotency.key.clone(), idempotency.position));
        let fingerprint = unit.idempotency.as_ref().map_or(0, |idempotency| idempotency.fingerprint);
        if let Some((_, first, reply)) = key.as_ref().and_then(|key| self.keys.get(key)) {
            if *first == fingerprint {
                return wire::UnitReply { replayed: true, ..reply.clone() };
            }
            let ops = unit.ops.iter().map(|_| failed(OpStatus::KeyReused, 0)).collect();
            return wire::UnitReply { ops, ..Default::default() };
        }
        let before = self.documents.clone();
        let mut ops = Vec::new();
        for (position, op) in unit.ops.iter().enumerate() {
            match self.op(version + position as u64, op) {
                Ok(reply) => ops.push(reply),
                Err(reply) => {
                    self.documents = before;
                    ops = vec![failed(OpStatus::Aborted, 0); unit.ops.len()];
                    ops[position] = reply;
                    break;
                }
            }
        }
        let note = unit.idempotency.as_ref().and_then(|idempotency| idempotency.note.clone());
        let reply = wire::UnitReply { ops, replayed: false, note };
        if let Some(key) = key {
            self.keys.insert(key, (self.time_ms, fingerprint, reply.clone()));
        }
        reply
    }

    fn op(&mut self, version: u64, op: &wire::Op) -> Result<wire::OpReply, wire::OpReply> {
        let name = (op.collection, op.id.clone(), op.sort.clone());
        let standing = self
            .documents
            .get(&name)
            .filter(|held| held.expires_ms.is_none_or(|end| end > self.time_ms))
            .cloned();
        let action = op.action.as_ref().unwrap();
        let at = standing.as_ref().map_or(0, |standing| standing.version);
        if standing.is_none() && matches!(action, Action::Merge(_) | Action::Delete(_)) {
            return Err(failed(OpStatus::NotFound, 0));
        }
        if let Some(precondition) = &op.precondition {
            if precondition.if_absent && standing.is_some() {
                return Err(failed(OpStatus::Exists, at));
            }
            let holds = (!precondition.if_present || standing.is_some())
                && (precondition.if_match.is_empty() || precondition.if_match.contains(&at))
                && !precondition.if_none_match.contains(&at);
            if !holds {
                return Err(failed(OpStatus::PreconditionFailed, at));
            }
        }
        let deadline = op.ttl_ms.map(|ttl_ms| self.time_ms + ttl_ms);
        let mut reply = wire::OpReply { version, expires_ms: deadline, ..Default::default() };
        let done = match (action, standing) {
            (Action::Put(put), standing) => {
                let document =
                    Document { body: put.document.clone(), flags: put.flags, version, expires_ms: deadline };
                self.documents.insert(name, document);
                if standing.is_some() { OpStatus::Replaced } else { OpStatus::Created }
            }
            (Action::Merge(merge), Some(standing)) => {
                let target: Json = serde_json::from_slice(&standing.body).unwrap();
                let merged = naive_merge(Some(&target), &serde_json::from_slice(&merge.patch).unwrap());
                let text = merged.to_string();
                let fits = merged.is_object()
                    && (op.sort.is_some() || merged.get("id").is_none_or(|id| *id == *op.id));
                if !fits {
                    return Err(failed(OpStatus::InvalidMerge, 0));
                }
                reply.flags = flags(&inspect(text.as_bytes()).unwrap(), &op.id, op.sort.as_deref()).unwrap();
                reply.expires_ms = deadline.or(standing.expires_ms);
                reply.document = text.into();
                let document = Document {
                    body: reply.document.clone(),
                    flags: reply.flags,
                    version,
                    expires_ms: reply.expires_ms,
                };
                self.documents.insert(name, document);
                OpStatus::Merged
            }
            (Action::Delete(_), _) => {
                self.documents.remove(&name);
                (reply.version, reply.expires_ms) = (0, None);
                OpStatus::Deleted
            }
            (Action::Check(_), standing) => {
                (reply.version, reply.expires_ms) = (at, standing.and_then(|standing| standing.expires_ms));
                OpStatus::Checked
            }
            (Action::Merge(_), None) => unreachable!("answered above"),
        };
        reply.status = done.into();
        Ok(reply)
    }

    fn sweep(&mut self, sweep: &wire::Sweep) {
        let mut due: Vec<_> = self
            .documents
            .iter()
            .filter_map(|(name, held)| {
                held.expires_ms.filter(|end| *end <= self.time_ms).map(|end| (end, name.clone()))
            })
            .collect();
        due.sort_by_key(|(end, (collection, id, sort))| {
            (*end, document_key(*collection, id, sort.as_deref()))
        });
        for (_, name) in due.into_iter().take(sweep.expire_max as usize) {
            self.documents.remove(&name);
        }
        self.keys.retain(|_, (stamp_ms, ..)| sweep.keys_bytes_max > 0 && *stamp_ms >= sweep.keys_before_ms);
        self.sessions.retain(|_, session| session.last_ms >= sweep.sessions_before_ms);
    }
}

/// Numbers and whitespace of a merged document are the tests of `merge`; here only its value counts.
fn by_value(body: &Bytes) -> Json {
    serde_json::from_slice(body).unwrap()
}

fn assert_same_reply(real: &wire::CommandReply, model: &wire::CommandReply) {
    let strip = |reply: &wire::CommandReply| {
        let mut reply = reply.clone();
        let mut bodies = Vec::new();
        for op in reply.units.iter_mut().flat_map(|unit| &mut unit.ops) {
            let body = std::mem::take(&mut op.document);
            bodies.push(if body.is_empty() { Json::Null } else { by_value(&body) });
        }
        (reply, bodies)
    };
    assert_eq!(strip(real), strip(model));
}

proptest! {
    #[test]
    fn apply_does_what_the_model_does(mut log in log_strategy(60)) {
        // The model counts no bytes: it keeps all idempotency records or none.
        for sweep in log.iter_mut().filter_map(|command| command.sweep.as_mut()) {
            if sweep.keys_bytes_max > 0 {
                sweep.keys_bytes_max = u64::MAX;
            }
        }
        let view = MemoryView::default();
        let mut model = Model::default();
        for (index, command) in numbered(&log) {
            let replies = apply_group(&view, &|batch| view.write(batch), &[(index, command.clone())]);
            assert_same_reply(&replies[0], &model.apply(index, &command));
        }
        let header = load_header(&view).unwrap();
        prop_assert_eq!(header.time_ms, model.time_ms);
        prop_assert_eq!(header.documents, model.documents.len() as u64);
        prop_assert_eq!(header.idempotency_records, model.keys.len() as u64);
        prop_assert_eq!(header.sessions, model.sessions.len() as u64);
        for ((collection, id, sort), expected) in &model.documents {
            let key = wire::DocumentKey { collection: *collection, id: id.clone(), sort: sort.clone() };
            let found = read(&view, &key, 0).unwrap().unwrap();
            prop_assert_eq!((found.version, found.expires_ms, found.flags),
                (expected.version, expected.expires_ms, expected.flags));
            prop_assert_eq!(by_value(&found.body), by_value(&expected.body));
            let hidden = expected.expires_ms.is_some_and(|end| end <= model.time_ms);
            prop_assert_eq!(read(&view, &key, model.time_ms).unwrap().is_none(), hidden);
        }
    }
}
