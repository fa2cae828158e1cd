//! Lists that grow by compare-and-set under an `Idempotency-Key`, resent on every cut. Were the first outcome not kept,
//! a resent append would be told that it lost the race against itself, and would be made again. Some that were
//! acknowledged are sent again later, when their shard may have other leaders and other replicas.

use rand::RngExt as _;
use serde_json::{Value, json};

use super::counter::change;
use super::document::{Only, Place, Read, Write};
use super::{Caller, End, Sent};
use crate::checker::idempotent::RESEND;

const RESEND_SHARE: f64 = 0.15;

pub async fn step(caller: &mut Caller) {
    if caller.rng.random_bool(RESEND_SHARE)
        && let Some(sent) = caller.sent_before()
    {
        resend(caller, sent).await;
        return;
    }
    let key = caller.key();
    if caller.rng.random_bool(0.3) {
        read(caller, &key).await;
        return;
    }
    let value = caller.value();
    caller.begin("append", &key, json!(value));
    let longer = |document: &Value| {
        let mut list = list(document)?;
        list.push(json!(value));
        Ok(json!({"list": list}))
    };
    let end = change(caller, &key, longer).await;
    let end = end.map_or_else(|end| end, |()| End::Ok(json!(value)));
    caller.end("append", &key, json!(value), end);
}

/// A caller that has slept, or did not believe the answer.
async fn resend(caller: &mut Caller, sent: Sent) {
    let Sent { key, etag, document, idempotency_key, answered } = sent;
    let answered = json!(answered);
    caller.begin(RESEND, &key, answered.clone());
    let how =
        Write { only: Only::IfMatch(&etag), idempotency_key: Some(&idempotency_key), ..Write::default() };
    let end = match caller.store(Place::user(&key), &document, how).await {
        Ok(stored) => End::Ok(json!(stored.etag)),
        Err(end) => end,
    };
    caller.end(RESEND, &key, answered, end);
}

fn list(document: &Value) -> Result<Vec<Value>, End> {
    let list = document.get("list").and_then(Value::as_array).cloned();
    list.ok_or_else(|| End::Fail(format!("no list in {document}")))
}

/// Whether it was answered.
pub async fn read(caller: &mut Caller, key: &str) -> bool {
    caller.begin("read", key, Value::Null);
    let end = match caller.fetch(Place::user(key), Read::default()).await {
        Ok(Some((document, _))) => list(&document).map_or_else(|end| end, |list| End::Ok(Value::from(list))),
        // A list that is gone has lost all that was in it.
        Ok(None) => End::Ok(json!([])),
        Err(end) => end,
    };
    caller.end("read", key, Value::Null, end)
}
