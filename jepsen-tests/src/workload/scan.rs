//! Documents that come and go while the whole collection is listed page by page.
//!
//! Each id is added once and removed at most once, both by one caller, so the history tells when it exists.

use rand::RngExt as _;
use serde_json::{Value, json};

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
    let answer = caller.http().put(&format!("/v1/{COLLECTION}/{id}"), &json!({"there": true})).send().await;
    let end = match caller.judge(answer, &[201]) {
        Ok(_) => {
            caller.added.push(id.clone());
            End::Ok(json!(id))
        }
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
    let answer = caller.http().delete(&format!("/v1/{COLLECTION}/{id}")).send().await;
    let end = match caller.judge(answer, &[204]) {
        Ok(_) => End::Ok(json!(id)),
        Err(end) => end,
    };
    caller.end("remove", COLLECTION, json!(id), end);
}

/// Whether it was answered.
pub async fn scan(caller: &mut Caller) -> bool {
    caller.begin("scan", COLLECTION, Value::Null);
    let page_size = caller.rng.random_range(20..=300);
    let listed = caller.list(&format!("/v1/{COLLECTION}"), page_size).await;
    let id = |item: &Value| {
        item.get("id").cloned().ok_or_else(|| End::Fail(format!("an item without an id: {item}")))
    };
    let ids = listed.and_then(|items| items.iter().map(id).collect::<Result<Vec<Value>, End>>());
    let end = ids.map_or_else(|end| end, |ids| End::Ok(Value::from(ids)));
    caller.end("scan", COLLECTION, Value::Null, end)
}
