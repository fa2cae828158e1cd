//! Items added to partitions of a sorted collection, and listings of whole partitions.

use rand::RngExt as _;
use serde_json::{Value, json};

use super::document::{Place, Write};
use super::{Caller, End};

pub const COLLECTION: &str = "set";

pub async fn step(caller: &mut Caller) {
    let key = caller.key();
    if caller.rng.random_bool(0.2) {
        read(caller, &key).await;
        return;
    }
    let value = caller.value();
    caller.begin("add", &key, json!(value));
    let sort = format!("{value:012}");
    let place = Place { collection: COLLECTION, id: &key, sort: Some(&sort) };
    let end = match caller.store(place, &json!({"value": value}), Write::default()).await {
        Ok(_) => End::Ok(json!(value)),
        Err(end) => end,
    };
    caller.end("add", &key, json!(value), end);
}

/// Whether it was answered.
pub async fn read(caller: &mut Caller, key: &str) -> bool {
    caller.begin("read", key, Value::Null);
    let page_size = caller.rng.random_range(50..=1000);
    let listed = caller.list(COLLECTION, Some(key), page_size).await;
    let end = match listed.and_then(|items| items.iter().map(|item| super::number(item, "value")).collect()) {
        Ok(values) => End::Ok(Value::from(values_of(values))),
        Err(end) => end,
    };
    caller.end("read", key, Value::Null, end)
}

fn values_of(values: Vec<u64>) -> Vec<Value> {
    values.into_iter().map(Value::from).collect()
}
