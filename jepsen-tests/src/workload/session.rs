//! Sessions: the token of the last answer goes with the next read, which any replica may answer.

use borough_proto::http_api::headers;
use rand::RngExt as _;
use serde_json::{Value, json};

use super::register::value_of;
use super::{Caller, End};
use crate::http::Answer;

pub async fn step(caller: &mut Caller) {
    let key = caller.key();
    if caller.rng.random_bool(0.65) {
        read(caller, &key).await;
        return;
    }
    let value = caller.value();
    caller.begin("write", &key, json!(value));
    let http = caller.http();
    let mut call = http.put(&format!("/v1/users/{key}"), &json!({"value": value}));
    if let Some(token) = &caller.token {
        call = call.header(headers::SESSION, token);
    }
    let answer = call.send().await;
    let end = match caller.judge(answer, &[200, 201]) {
        Ok(answer) => {
            keep(caller, &answer);
            End::Ok(json!(value))
        }
        Err(end) => end,
    };
    if matches!(end, End::Info(_)) {
        // The caller goes on as another process, and a session is a process's.
        caller.token = None;
    }
    caller.end("write", &key, json!(value), end);
}

/// Whether it was answered.
pub async fn read(caller: &mut Caller, key: &str) -> bool {
    caller.begin("read", key, Value::Null);
    let http = caller.http();
    let mut call = http.get(&format!("/v1/users/{key}")).header("cache-control", "max-stale=3600");
    if let Some(token) = &caller.token {
        call = call.header(headers::SESSION, token);
    }
    let answer = call.send().await;
    let end = match caller.judge(answer, &[200, 404]) {
        Ok(answer) => {
            keep(caller, &answer);
            value_of(&answer).map_or_else(|end| end, End::Ok)
        }
        Err(end) => end.of_read(),
    };
    caller.end("read", key, Value::Null, end)
}

fn keep(caller: &mut Caller, answer: &Answer) {
    if let Some(token) = answer.header(headers::SESSION) {
        caller.token = Some(token.to_owned());
    }
}
