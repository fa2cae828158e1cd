//! Documents as registers: read, write, create, compare-and-set, delete. Every value is written once in a run.

use rand::RngExt as _;
use serde_json::{Value, json};

use super::document::{Only, Place, Read, Write};
use super::{Caller, End, number};

pub async fn step(caller: &mut Caller) {
    if caller.is_faithful() {
        read_again(caller).await;
        return;
    }
    let key = caller.key();
    match caller.rng.random_range(0..100) {
        0..40 => {
            read(caller, &key).await;
        }
        40..65 => {
            let value = caller.value();
            write(caller, ("write", json!(value)), &key, value, Only::Always).await;
        }
        65..90 => {
            // An entity tag belongs to one value for ever, so it stands for the value seen with it.
            let Some((Value::Number(old), etag)) = caller.seen.get(&key).cloned() else {
                read(caller, &key).await;
                return;
            };
            let value = caller.value();
            write(caller, ("cas", json!([old, value])), &key, value, Only::IfMatch(&etag)).await;
        }
        90..95 => {
            let value = caller.value();
            write(caller, ("create", json!(value)), &key, value, Only::IfAbsent).await;
        }
        _ => delete(caller, &key).await,
    }
}

/// Reads the key of before while it is answered, at times another.
async fn read_again(caller: &mut Caller) {
    let another = caller.rng.random_range(0..caller.site.keys.len().max(1));
    let again = caller.answered.filter(|_| caller.rng.random_bool(0.9));
    let at = again.unwrap_or(another);
    let key = caller.key_at(at);
    caller.answered = read(caller, &key).await.then_some(at);
}

async fn write(caller: &mut Caller, (f, input): (&str, Value), key: &str, value: u64, only: Only<'_>) {
    caller.begin(f, key, input.clone());
    let how = Write { only, ..Write::default() };
    let end = match caller.store(Place::user(key), &json!({"value": value}), how).await {
        Ok(stored) => {
            caller.seen.insert(key.to_owned(), (json!(value), stored.etag));
            End::Ok(input.clone())
        }
        Err(end) => {
            caller.seen.remove(key);
            end
        }
    };
    caller.end(f, key, input, end);
}

async fn delete(caller: &mut Caller, key: &str) {
    caller.begin("delete", key, Value::Null);
    let end = caller.erase(Place::user(key)).await.map_or_else(|end| end, |_| End::Ok(Value::Null));
    caller.seen.remove(key);
    caller.end("delete", key, Value::Null, end);
}

/// Whether it was answered.
pub async fn read(caller: &mut Caller, key: &str) -> bool {
    caller.begin("read", key, Value::Null);
    let end = match caller.fetch(Place::user(key), Read::default()).await {
        Ok(None) => {
            caller.seen.remove(key);
            End::Ok(Value::Null)
        }
        Ok(Some((document, etag))) => match number(&document, "value") {
            Ok(value) => {
                caller.seen.insert(key.to_owned(), (json!(value), etag));
                End::Ok(json!(value))
            }
            Err(end) => end,
        },
        Err(end) => end,
    };
    caller.end("read", key, Value::Null, end)
}

/// The value that a read found, null when there was nothing.
pub fn value_of(found: Result<Option<(Value, String)>, End>) -> Result<Value, End> {
    match found? {
        None => Ok(Value::Null),
        Some((document, _)) => number(&document, "value").map(Value::from),
    }
}
