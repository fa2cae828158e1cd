//! Reads that say how stale their answer may be.

use std::time::Duration;

use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use serde_json::json;

use super::document::{Place, Read, Write};
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
    let end = match caller.store(Place::user(&key), &json!({"value": value}), Write::default()).await {
        Ok(_) => End::Ok(json!(value)),
        Err(end) => end,
    };
    caller.end("write", &key, json!(value), end);
}

/// Whether it was answered.
pub async fn read(caller: &mut Caller, key: &str, max_stale_seconds: u64) -> bool {
    let input = json!({"maxStaleNs": max_stale_seconds * 1_000_000_000});
    caller.begin("read", key, input.clone());
    let how = Read { max_stale: Some(Duration::from_secs(max_stale_seconds)), ..Read::default() };
    let end = value_of(caller.fetch(Place::user(key), how).await).map_or_else(|end| end, End::Ok);
    caller.end("read", key, input, end)
}
