//! Documents that come and go while the whole collection is listed page by page.

use rand::RngExt as _;
use serde_json::{Value, json};

use super::{Caller, End};

pub const COLLECTION: &str = "scan";
/// Each caller adds and removes ids of its own, so that nobody else's call says whether one exists.
const IDS_PER_CALLER: u64 = 25;

pub async fn step(caller: &mut Caller) {
    let id = format!("item-{}-{}", caller.number, caller.rng.random_range(0..IDS_PER_CALLER));
    match caller.rng.random_range(0..100) {
        0..15 => {
            scan(caller).await;
        }
        15..70 => add(caller, &id).await,
        _ => remove(caller, &id).await,
    }
}

async fn add(caller: &mut Caller, id: &str) {
    caller.begin("add", COLLECTION, json!(id));
    let answer = caller.http().put(&format!("/v1/{COLLECTION}/{id}"), &json!({"there": true})).send().await;
    let end = match caller.judge(answer, &[200, 201]) {
        Ok(_) => End::Ok(json!(id)),
        Err(end) => end,
    };
    caller.end("add", COLLECTION, json!(id), end);
}

async fn remove(caller: &mut Caller, id: &str) {
    caller.begin("remove", COLLECTION, json!(id));
    let answer = caller.http().delete(&format!("/v1/{COLLECTION}/{id}")).send().await;
    // What is not there is as it would be after a delete.
    let end = match caller.judge(answer, &[204, 404]) {
        Ok(_) => End::Ok(json!(id)),
        Err(end) => end,
    };
    caller.end("remove", COLLECTION, json!(id), end);
}

/// Whether it was answered.
pub async fn scan(caller: &mut Caller) -> bool {
    caller.begin("scan", COLLECTION, Value::Null);
    let page_size = caller.rng.random_range(10..=60);
    let listed = caller.list(&format!("/v1/{COLLECTION}"), page_size).await;
    let id = |item: &Value| {
        item.get("id").cloned().ok_or_else(|| End::Fail(format!("an item without an id: {item}")))
    };
    let ids = listed.and_then(|items| items.iter().map(id).collect::<Result<Vec<Value>, End>>());
    let end = ids.map_or_else(|end| end, |ids| End::Ok(Value::from(ids)));
    caller.end("scan", COLLECTION, Value::Null, end)
}
