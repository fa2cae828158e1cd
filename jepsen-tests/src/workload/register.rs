//! Documents as registers: read, write, create, compare-and-set, delete. Every value is written once in a run.

use rand::RngExt as _;
use serde_json::{Value, json};

use super::{Caller, End, number};
use crate::http::Answer;

fn path(key: &str) -> String {
    format!("/v1/users/{key}")
}

pub async fn step(caller: &mut Caller) {
    let key = caller.key();
    match caller.rng.random_range(0..100) {
        0..40 => {
            read(caller, &key).await;
        }
        40..65 => {
            let value = caller.value();
            write(caller, ("write", json!(value)), &key, value, None).await;
        }
        65..90 => {
            // An entity tag belongs to one value for ever, so it stands for the value seen with it.
            let Some((Value::Number(old), etag)) = caller.seen.get(&key).cloned() else {
                read(caller, &key).await;
                return;
            };
            let value = caller.value();
            let only = Some(("if-match", etag.as_str()));
            write(caller, ("cas", json!([old, value])), &key, value, only).await;
        }
        90..95 => {
            let value = caller.value();
            let only = Some(("if-none-match", "*"));
            write(caller, ("create", json!(value)), &key, value, only).await;
        }
        _ => delete(caller, &key).await,
    }
}

async fn write(
    caller: &mut Caller,
    (f, input): (&str, Value),
    key: &str,
    value: u64,
    only: Option<(&str, &str)>,
) {
    let http = caller.http();
    caller.begin(f, key, input.clone());
    let call = http.put(&path(key), &json!({"value": value}));
    let answer = call.headers(only.as_slice()).send().await;
    let end = match caller.judge(answer, &[200, 201]) {
        Ok(answer) => {
            remember(caller, key, json!(value), &answer);
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
    let answer = caller.http().delete(&path(key)).send().await;
    // What is not there is as it would be after a delete.
    let end = match caller.judge(answer, &[204, 404]) {
        Ok(_) => End::Ok(Value::Null),
        Err(end) => end,
    };
    caller.seen.remove(key);
    caller.end("delete", key, Value::Null, end);
}

/// Whether it was answered.
pub async fn read(caller: &mut Caller, key: &str) -> bool {
    caller.begin("read", key, Value::Null);
    let answer = caller.http().get(&path(key)).send().await;
    let end = match caller.judge(answer, &[200, 404]) {
        Ok(answer) => match value_of(&answer) {
            Ok(value) => {
                remember(caller, key, value.clone(), &answer);
                End::Ok(value)
            }
            Err(end) => end,
        },
        Err(end) => end.of_read(),
    };
    caller.end("read", key, Value::Null, end)
}

/// The value that a read was answered with, null when there was nothing.
pub fn value_of(answer: &Answer) -> Result<Value, End> {
    if answer.status == 404 {
        return Ok(Value::Null);
    }
    let document = answer.json().map_err(|error| End::Fail(format!("{error:#}")))?;
    number(&document, "value").map(Value::from)
}

fn remember(caller: &mut Caller, key: &str, value: Value, answer: &Answer) {
    match answer.etag() {
        Ok(etag) => caller.seen.insert(key.to_owned(), (value, etag)),
        Err(_) => caller.seen.remove(key),
    };
}
