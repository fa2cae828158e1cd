//! One sequential caller: what it asks, and what the answers mean for the history.
//!
//! Every value is written once, under a name of the caller's own. Keys are given up after a while, since deciding a
//! register takes time exponential in its calls of unknown outcome.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use borough_client::{Client, Error, Etag, Outcome};
use jepsen_tests::record::{Call, Kind};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::load::{COLLECTION, Load, Shared};
use crate::system;

/// Registers in use at a time.
const KEYS: u64 = 4;
/// How long.
const KEY_AGE_NS: u64 = 6_000_000_000;
/// Lists that grow by compare-and-set under idempotency keys.
pub const LISTS: [&str; 2] = ["list-a", "list-b"];
/// An append is resent for so long.
const RESEND_MAX: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

pub struct Caller {
    number: u64,
    process: u64,
    values: u64,
    rng: StdRng,
    load: Load,
    client: Client,
    shared: Arc<Shared>,
    /// The last value and entity tag that it saw, by key.
    seen: BTreeMap<String, (Value, Etag)>,
}

/// Why a call was no success.
enum Not {
    Applied(String),
    Known(String),
}

impl From<Error> for Not {
    fn from(error: Error) -> Self {
        match error.outcome() {
            Outcome::NotApplied => match error {
                Error::PreconditionFailed { .. } | Error::AlreadyExists { .. } => {
                    Self::Applied("precondition".to_owned())
                }
                error => Self::Applied(error.to_string()),
            },
            Outcome::Applied | Outcome::Unknown => Self::Known(error.to_string()),
        }
    }
}

impl Caller {
    pub fn new(number: u64, load: Load, client: Client, shared: Arc<Shared>) -> Self {
        let rng = StdRng::seed_from_u64(load.seed ^ (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Self { number, process: number, values: 0, rng, load, client, shared, seen: BTreeMap::new() }
    }

    /// Calls until the schedule says that it is enough.
    pub async fn run(mut self) {
        while !self.shared.stopping.load(Ordering::Relaxed) {
            let pause = Duration::from_millis(self.rng.random_range(0..60));
            tokio::time::sleep(pause).await;
            self.step().await;
        }
    }

    /// Reads everything until it is answered.
    pub async fn read_all(mut self) {
        let ages = 0..=system::now_ns() / KEY_AGE_NS;
        let registers = ages.flat_map(|age| (0..KEYS).map(move |key| register(key, age)));
        for key in registers.collect::<Vec<_>>() {
            while !self.read(&key).await {
                tokio::time::sleep(PAUSE).await;
            }
        }
        for key in LISTS {
            while !self.read_list(key).await {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn step(&mut self) {
        let key = register(self.rng.random_range(0..KEYS), system::now_ns() / KEY_AGE_NS);
        let list = LISTS.get(self.rng.random_range(0..LISTS.len())).copied().unwrap_or_default();
        match self.rng.random_range(0..100_u32) {
            0..30 => drop(self.read(&key).await),
            30..50 => self.write(&key).await,
            50..65 => self.swap(&key).await,
            65..72 => self.create(&key).await,
            72..77 => self.delete(&key).await,
            77..85 => drop(self.read_list(list).await),
            _ => self.append(list).await,
        }
    }

    fn value(&mut self) -> u64 {
        self.values += 1;
        self.values * (self.load.callers + 1) + self.number
    }

    /// Takes a call down that has ended.
    fn end(&mut self, f: &str, key: &str, start_ns: u64, input: Value, end: Result<Value, Not>) -> bool {
        let (kind, output, error) = match end {
            Ok(output) => (Kind::Ok, output, None),
            Err(Not::Applied(error)) => (Kind::Fail, input.clone(), Some(error)),
            Err(Not::Known(error)) => (Kind::Info, input.clone(), Some(error)),
        };
        let mut calls = self.shared.calls.lock();
        calls.push(Call {
            process: self.process,
            f: f.to_owned(),
            key: key.to_owned(),
            input,
            output,
            start_ns,
            end_ns: Some(now_ns()),
            end: kind,
            error,
        });
        crate::trace::event(format_args!("{}", describe(calls.last())));
        if kind == Kind::Info {
            self.process += 1000;
        }
        kind == Kind::Ok
    }

    async fn fetch(&mut self, key: &str) -> Result<Option<(Value, Etag)>, Not> {
        let found = self.client.collection::<Value>(COLLECTION).get(key).await;
        // A read changes nothing: what was not answered says nothing.
        let found = found.map_err(|error| Not::Applied(error.to_string()))?;
        Ok(found.map(|document| (document.value, document.etag)))
    }

    async fn read(&mut self, key: &str) -> bool {
        let start = now_ns();
        let end = self.fetch(key).await.map(|found| match found {
            Some((document, etag)) => {
                let value = document.get("value").cloned().unwrap_or_default();
                self.seen.insert(key.to_owned(), (value.clone(), etag));
                value
            }
            None => {
                self.seen.remove(key);
                Value::Null
            }
        });
        self.end("read", key, start, Value::Null, end)
    }

    async fn write(&mut self, key: &str) {
        let (start, value) = (now_ns(), json!(self.value()));
        let document = json!({"value": value});
        let mut put = self.client.collection::<Value>(COLLECTION).put(key, &document);
        if self.rng.random_bool(0.3) {
            put = put.idempotency_key(format!("{}-{}", self.number, self.values));
        }
        let end = put.await.map(|written| self.saw(key, &value, written.etag)).map_err(Not::from);
        self.end("write", key, start, value, end);
    }

    async fn create(&mut self, key: &str) {
        let (start, value) = (now_ns(), json!(self.value()));
        let document = json!({"value": value});
        let put = self.client.collection::<Value>(COLLECTION).put(key, &document).if_absent();
        let end = put.await.map(|written| self.saw(key, &value, written.etag)).map_err(Not::from);
        self.end("create", key, start, value, end);
    }

    async fn swap(&mut self, key: &str) {
        let Some((old, etag)) = self.seen.remove(key) else {
            self.read(key).await;
            return;
        };
        let (start, value) = (now_ns(), json!(self.value()));
        let document = json!({"value": value});
        let put = self.client.collection::<Value>(COLLECTION).put(key, &document).if_match(etag);
        let end = put.await.map(|written| self.saw(key, &value, written.etag)).map_err(Not::from);
        // What was refused for its tag may have been refused for a value that was the same again; none is here.
        self.end("cas", key, start, json!([old, value]), end.map(|value| json!([old, value])));
    }

    fn saw(&mut self, key: &str, value: &Value, etag: Etag) -> Value {
        self.seen.insert(key.to_owned(), (value.clone(), etag));
        value.clone()
    }

    async fn delete(&mut self, key: &str) {
        let start = now_ns();
        let deleted = self.client.collection::<Value>(COLLECTION).delete(key).await;
        self.seen.remove(key);
        let end = deleted.map(|_| Value::Null).map_err(Not::from);
        self.end("delete", key, start, Value::Null, end);
    }

    async fn read_list(&mut self, key: &str) -> bool {
        let start = now_ns();
        let end = self.fetch(key).await;
        let end = end.map(|found| found.map_or_else(|| json!([]), |(document, _)| list(&document)));
        self.end("read", key, start, Value::Null, end)
    }

    /// Appends by compare-and-set; an attempt of unknown outcome is resent under its key.
    async fn append(&mut self, key: &str) {
        let (start, begun, value) = (now_ns(), Instant::now(), json!(self.value()));
        let mut attempts = 0;
        let end = loop {
            let found = match self.fetch(key).await {
                Ok(found) => found,
                Err(not) => break Err(not),
            };
            attempts += 1;
            let idempotency_key = format!("{}-{}-{attempts}", self.number, self.values);
            match self.append_to(key, found, &value, idempotency_key, begun).await {
                Err(Not::Applied(error)) if error == "precondition" && begun.elapsed() < RESEND_MAX => {}
                end => break end,
            }
        };
        self.end("append", key, start, value.clone(), end.map(|()| value));
    }

    async fn append_to(
        &mut self,
        key: &str,
        found: Option<(Value, Etag)>,
        value: &Value,
        idempotency_key: String,
        begun: Instant,
    ) -> Result<(), Not> {
        let (mut elements, etag) = match found {
            Some((document, etag)) => (list(&document), Some(etag)),
            None => (json!([]), None),
        };
        if let Some(elements) = elements.as_array_mut() {
            elements.push(value.clone());
        }
        let document = json!({"list": elements});
        let mut unknown = false;
        loop {
            let put = self.client.collection::<Value>(COLLECTION).put(key, &document);
            let put = match &etag {
                Some(etag) => put.if_match(etag.clone()),
                None => put.if_absent(),
            };
            let not = match put.idempotency_key(idempotency_key.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) => Not::from(error),
            };
            match not {
                // The first answer under the key is repeated, so this is the outcome of all sendings.
                Not::Applied(error) if error == "precondition" => return Err(Not::Applied(error)),
                Not::Applied(error) if begun.elapsed() > RESEND_MAX => {
                    return Err(if unknown { Not::Known(error) } else { Not::Applied(error) });
                }
                Not::Known(error) if begun.elapsed() > RESEND_MAX => return Err(Not::Known(error)),
                Not::Applied(_) => {}
                Not::Known(_) => unknown = true,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn list(document: &Value) -> Value {
    document.get("list").cloned().unwrap_or_else(|| json!([]))
}

fn register(key: u64, age: u64) -> String {
    format!("r{key}.{age}")
}

/// Simulated time; each asking is later than the one before, so that calls in one tick keep their order.
fn now_ns() -> u64 {
    use std::sync::atomic::AtomicU64;
    static LAST: AtomicU64 = AtomicU64::new(0);
    let last = LAST.load(Ordering::Relaxed);
    let now = system::now_ns().max(last + 1);
    LAST.store(now, Ordering::Relaxed);
    now
}

fn describe(call: Option<&Call>) -> String {
    call.map_or_else(String::new, |call| {
        let Call { process, f, key, input, output, end, error, .. } = call;
        format!(
            "call of {process}: {f} {key} {input} → {end:?} {output} {}",
            error.as_deref().unwrap_or_default()
        )
    })
}
