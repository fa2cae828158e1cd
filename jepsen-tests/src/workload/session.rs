//! Sessions: the token of the last answer goes with the next read, which any replica may answer.

use std::time::Duration;

use rand::RngExt as _;
use serde_json::{Value, json};

use super::document::{Place, Read, Write};
use super::register::value_of;
use super::{Caller, End};

/// Older than any replica is while it runs: what the session has seen is all that a read waits for.
const MAX_STALE: Duration = Duration::from_secs(3600);

pub async fn step(caller: &mut Caller) {
    let key = caller.key();
    if caller.rng.random_bool(0.65) {
        read(caller, &key).await;
        return;
    }
    let value = caller.value();
    caller.begin("write", &key, json!(value));
    let how = Write { in_session: true, ..Write::default() };
    let end = match caller.store(Place::user(&key), &json!({"value": value}), how).await {
        Ok(_) => End::Ok(json!(value)),
        Err(end) => end,
    };
    ended(caller, "write", &key, json!(value), end);
}

/// Whether it was answered.
pub async fn read(caller: &mut Caller, key: &str) -> bool {
    caller.begin("read", key, Value::Null);
    let how = Read { max_stale: Some(MAX_STALE), in_session: true };
    let end = value_of(caller.fetch(Place::user(key), how).await).map_or_else(|end| end, End::Ok);
    ended(caller, "read", key, Value::Null, end)
}

/// Whether it was a success.
fn ended(caller: &mut Caller, f: &str, key: &str, input: Value, end: End) -> bool {
    if matches!(end, End::Info(_)) {
        // The caller goes on as another process, and a session is a process's.
        caller.forget_session();
    }
    caller.end(f, key, input, end)
}
