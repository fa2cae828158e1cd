//! Transactions over lists within a partition: what is read is held to its entity tag by the same `:transact` that
//! appends, so the reads and the appends of an acknowledged transaction happened at one point.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use rand::RngExt as _;
use serde_json::{Value, json};

use super::document::{Op, Place, Read};
use super::{Caller, End};

pub const COLLECTION: &str = "append";
/// Keys of a partition that are in use at once.
const KEYS: u64 = 3;
/// A list that is this long makes room for others.
const LENGTH_MAX: usize = 40;

#[derive(Debug, Clone)]
enum Step {
    Append(String, u64),
    Read(String),
}

impl Step {
    fn key(&self) -> &str {
        match self {
            Self::Append(key, _) | Self::Read(key) => key,
        }
    }
}

/// A list as it was read, and what changes.
struct Item {
    list: Vec<Value>,
    /// `None`: there was no item.
    etag: Option<String>,
    appended: bool,
}

pub async fn step(caller: &mut Caller) {
    let partition = caller.key();
    let generation = caller.site.generation.load(Ordering::Relaxed);
    let first = generation * KEYS;
    let mut steps = Vec::new();
    for _ in 0..caller.rng.random_range(1..=4) {
        let key = format!("k{}", first + caller.rng.random_range(0..KEYS));
        let appends = caller.rng.random_bool(0.5);
        steps.push(if appends { Step::Append(key, caller.value()) } else { Step::Read(key) });
    }
    caller.longest = 0;
    transact(caller, &partition, &steps).await;
    if caller.longest >= LENGTH_MAX {
        // Unless another caller was faster.
        let order = Ordering::Relaxed;
        let _ = caller.site.generation.compare_exchange(generation, generation + 1, order, order);
    }
}

/// A transaction that reads every list of the partition's last keys; whether it was answered.
pub async fn read(caller: &mut Caller, partition: &str) -> bool {
    let keys = (caller.site.generation.load(Ordering::Relaxed) + 1) * KEYS;
    let mut answered = true;
    for first in (0..keys).step_by(32) {
        let steps: Vec<Step> =
            (first..keys.min(first + 32)).map(|key| Step::Read(format!("k{key}"))).collect();
        answered &= transact(caller, partition, &steps).await;
    }
    answered
}

fn told(steps: &[Step], reads: &[Value]) -> Value {
    let mut reads = reads.iter();
    let told = steps.iter().map(|step| match step {
        Step::Append(key, value) => json!(["append", key, value]),
        Step::Read(key) => json!(["r", key, reads.next()]),
    });
    told.collect()
}

async fn transact(caller: &mut Caller, partition: &str, steps: &[Step]) -> bool {
    let input = told(steps, &[]);
    caller.begin("txn", partition, input.clone());
    let done = attempt(caller, partition, steps).await;
    let end = done.map_or_else(|end| end, |reads| End::Ok(told(steps, &reads)));
    caller.end("txn", partition, input, end)
}

/// What its reads gave.
async fn attempt(caller: &mut Caller, partition: &str, steps: &[Step]) -> Result<Vec<Value>, End> {
    let mut items: BTreeMap<String, Item> = BTreeMap::new();
    for step in steps {
        if !items.contains_key(step.key()) {
            let item = fetch(caller, partition, step.key()).await;
            let appends = steps.iter().any(|step| matches!(step, Step::Append(..)));
            let item = item.map_err(|end| if appends { end.before_any_write() } else { end })?;
            items.insert(step.key().to_owned(), item);
        }
    }
    let mut reads = Vec::new();
    for step in steps {
        let Some(item) = items.get_mut(step.key()) else { continue };
        match step {
            Step::Append(_, value) => {
                item.list.push(json!(value));
                item.appended = true;
            }
            Step::Read(_) => reads.push(Value::from(item.list.clone())),
        }
    }
    let longest = items.values().map(|item| item.list.len()).max().unwrap_or(0);
    caller.longest = caller.longest.max(longest);
    let ops: Vec<Op<'_>> = items.iter().map(|(key, item)| item.op(key)).collect();
    caller.transact(partition, &ops).await.map(|()| reads)
}

async fn fetch(caller: &mut Caller, partition: &str, key: &str) -> Result<Item, End> {
    let place = Place { collection: COLLECTION, id: partition, sort: Some(key) };
    let Some((document, etag)) = caller.fetch(place, Read::default()).await? else {
        return Ok(Item { list: Vec::new(), etag: None, appended: false });
    };
    let list = document.get("list").and_then(Value::as_array).cloned();
    let list = list.ok_or_else(|| End::Fail(format!("no list in {document}")))?;
    Ok(Item { list, etag: Some(etag), appended: false })
}

impl Item {
    fn op<'a>(&'a self, sort: &'a str) -> Op<'a> {
        let put = self.appended.then(|| json!({"list": self.list}));
        Op { collection: COLLECTION, sort, put, etag: self.etag.as_deref() }
    }
}
