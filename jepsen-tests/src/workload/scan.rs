//! Documents that come and go while the whole collection is listed page by page.
//!
//! Each id is added once and removed at most once, both by one caller, so the history tells when it exists.

use rand::RngExt as _;
use serde_json::{Value, json};

use super::document::{Place, Write};
use super::{Caller, End};

pub const COLLECTION: &str = "scan";

pub async fn step(caller: &mut Caller) {
    match caller.rng.random_range(0..100) {
        0..15 => {
            scan(caller).await;
        }
        15..60 => add(caller).await,
        _ => remove(caller).await,
    }
}

async fn add(caller: &mut Caller) {
    let id = format!("item-{}", caller.value());
    caller.begin("add", COLLECTION, json!(id));
    let place = Place { collection: COLLECTION, id: &id, sort: None };
    let end = match caller.store(place, &json!({"there": true}), Write::default()).await {
        Ok(stored) if stored.created => {
            caller.added.push(id.clone());
            End::Ok(json!(id))
        }
        // Of a call that a router has sent twice.
        Ok(_) => End::Info("it was there before".to_owned()),
        Err(end) => end,
    };
    caller.end("add", COLLECTION, json!(id), end);
}

/// Of what it has added for sure. Were that not there any more, the remove would fail, and a listing without it be a
/// violation.
async fn remove(caller: &mut Caller) {
    if caller.added.is_empty() {
        return;
    }
    let at = caller.rng.random_range(0..caller.added.len());
    let id = caller.added.swap_remove(at);
    caller.begin("remove", COLLECTION, json!(id));
    let end = match caller.erase(Place { collection: COLLECTION, id: &id, sort: None }).await {
        Ok(true) => End::Ok(json!(id)),
        Ok(false) => End::Fail("it was not there".to_owned()),
        Err(end) => end,
    };
    caller.end("remove", COLLECTION, json!(id), end);
}

/// Whether it was answered.
pub async fn scan(caller: &mut Caller) -> bool {
    caller.begin("scan", COLLECTION, Value::Null);
    let page_size = caller.rng.random_range(20..=300);
    let listed = caller.list(COLLECTION, None, page_size).await;
    let id = |item: &Value| {
        item.get("id").cloned().ok_or_else(|| End::Fail(format!("an item without an id: {item}")))
    };
    let ids = listed.and_then(|items| items.iter().map(id).collect::<Result<Vec<Value>, End>>());
    let end = ids.map_or_else(|end| end, |ids| End::Ok(Value::from(ids)));
    caller.end("scan", COLLECTION, Value::Null, end)
}
