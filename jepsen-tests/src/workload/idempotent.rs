//! Lists that grow by compare-and-set under an `Idempotency-Key`, resent on every cut. Were the first outcome not kept,
//! a resent append would be told that it lost the race against itself, and would be made again.

use rand::RngExt as _;
use serde_json::{Value, json};

use super::counter::change;
use super::{Caller, End};

pub async fn step(caller: &mut Caller) {
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

fn list(document: &Value) -> Result<Vec<Value>, End> {
    let list = document.get("list").and_then(Value::as_array).cloned();
    list.ok_or_else(|| End::Fail(format!("no list in {document}")))
}

/// Whether it was answered.
pub async fn read(caller: &mut Caller, key: &str) -> bool {
    caller.begin("read", key, Value::Null);
    let end = match caller.fetch(key).await {
        Ok(Some((document, _))) => list(&document).map_or_else(|end| end, |list| End::Ok(Value::from(list))),
        // A list that is gone has lost all that was in it.
        Ok(None) => End::Ok(json!([])),
        Err(end) => end.of_read(),
    };
    caller.end("read", key, Value::Null, end)
}
