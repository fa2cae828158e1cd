//! Reads that say how stale their answer may be.

use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use serde_json::json;

use super::register::value_of;
use super::{Caller, End};

pub async fn step(caller: &mut Caller) {
    let key = caller.key();
    if caller.rng.random_bool(0.65) {
        let seconds = [0, 1, 2, 5].choose(&mut caller.rng).copied().unwrap_or_default();
        read(caller, &key, seconds).await;
        return;
    }
    let value = caller.value();
    caller.begin("write", &key, json!(value));
    let answer = caller.http().put(&format!("/v1/users/{key}"), &json!({"value": value})).send().await;
    let end = match caller.judge(answer, &[200, 201]) {
        Ok(_) => End::Ok(json!(value)),
        Err(end) => end,
    };
    caller.end("write", &key, json!(value), end);
}

/// Whether it was answered.
pub async fn read(caller: &mut Caller, key: &str, max_stale_seconds: u64) -> bool {
    let input = json!({"maxStaleNs": max_stale_seconds * 1_000_000_000});
    caller.begin("read", key, input.clone());
    let http = caller.http();
    let control = format!("max-stale={max_stale_seconds}");
    let answer = http.get(&format!("/v1/users/{key}")).header("cache-control", &control).send().await;
    let end = match caller.judge(answer, &[200, 404]) {
        Ok(answer) => value_of(&answer).map_or_else(|end| end, End::Ok),
        Err(end) => end.of_read(),
    };
    caller.end("read", key, input, end)
}
