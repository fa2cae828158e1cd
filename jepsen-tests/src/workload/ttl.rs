//! Registers whose values go away by themselves after a time.

use std::time::Duration;

use rand::RngExt as _;
use serde_json::json;

use super::document::{Place, Write};
use super::{Caller, End, register};

pub async fn step(caller: &mut Caller) {
    let key = caller.key();
    if caller.rng.random_bool(0.7) {
        register::read(caller, &key).await;
        return;
    }
    let (value, seconds) = (caller.value(), caller.rng.random_range(1..=4_u64));
    let input = json!({"value": value, "ttlNs": seconds * 1_000_000_000});
    caller.begin("write", &key, input.clone());
    let how = Write { ttl: Some(Duration::from_secs(seconds)), ..Write::default() };
    let end = match caller.store(Place::user(&key), &json!({"value": value}), how).await {
        Ok(_) => End::Ok(input.clone()),
        Err(end) => end,
    };
    caller.end("write", &key, input, end);
}
