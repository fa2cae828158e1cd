//! Counters: read, then compare-and-set under a key that is resent until its outcome is known, until one is acknowledged.

use std::time::{Duration, Instant};

use rand::RngExt as _;
use serde_json::{Value, json};

use super::document::{Only, Place, Read, Write};
use super::{Caller, End, Sent, number};

/// For one logical change, all attempts together.
const GIVE_UP: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

pub async fn step(caller: &mut Caller) {
    let key = caller.key();
    if caller.rng.random_bool(0.3) {
        read(caller, &key).await;
        return;
    }
    caller.begin("add", &key, json!(1));
    let end = change(caller, &key, |document| Ok(json!({"count": number(document, "count")? + 1}))).await;
    let end = end.map_or_else(|end| end, |()| End::Ok(json!(1)));
    caller.end("add", &key, json!(1), end);
}

/// Whether it was answered.
pub async fn read(caller: &mut Caller, key: &str) -> bool {
    caller.begin("read", key, Value::Null);
    let end = match caller.fetch(Place::user(key), Read::default()).await {
        Ok(Some((document, _))) => {
            number(&document, "count").map_or_else(|end| end, |count| End::Ok(json!(count)))
        }
        Ok(None) => End::Ok(Value::Null),
        Err(end) => end,
    };
    caller.end("read", key, Value::Null, end)
}

/// Applies `next` to the document once: an attempt whose outcome is not known is resent under its key, one that lost the
/// race is made anew under another.
pub async fn change(
    caller: &mut Caller,
    key: &str,
    next: impl Fn(&Value) -> Result<Value, End>,
) -> Result<(), End> {
    let started = Instant::now();
    loop {
        match caller.fetch(Place::user(key), Read::default()).await {
            Ok(Some((document, etag))) => {
                if attempt(caller, key, &etag, &next(&document)?, started).await? {
                    return Ok(());
                }
            }
            Ok(None) => return Err(End::Fail(format!("{key} is gone"))),
            Err(end) if started.elapsed() > GIVE_UP => return Err(end.before_any_write()),
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether it was applied; not, when another was faster.
async fn attempt(
    caller: &mut Caller,
    key: &str,
    etag: &str,
    next: &Value,
    started: Instant,
) -> Result<bool, End> {
    let idempotency_key = caller.unique();
    let mut unknown = false;
    loop {
        let how =
            Write { only: Only::IfMatch(etag), idempotency_key: Some(&idempotency_key), ..Write::default() };
        let end = match caller.store(Place::user(key), next, how).await {
            Ok(stored) => {
                let (key, etag, document) = (key.to_owned(), etag.to_owned(), next.clone());
                let answered = stored.etag;
                caller.remember(Sent { key, etag, document, idempotency_key, answered });
                return Ok(true);
            }
            // The first answer under the key is repeated, so this is the outcome of all sendings.
            Err(End::Fail(error)) if error == "precondition" => return Ok(false),
            Err(end) => end,
        };
        unknown |= matches!(end, End::Info(_));
        if started.elapsed() > GIVE_UP {
            let error = format!("given up: {end:?}");
            return Err(if unknown { End::Info(error) } else { End::Fail(error) });
        }
        tokio::time::sleep(PAUSE).await;
    }
}
