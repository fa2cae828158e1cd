//! What callers do to a cluster through its REST API or the client crate, and how each call goes into the history.
//!
//! A workload knows nothing of faults. It sends what its callers' generators say, one call at a time for each caller, and
//! takes down what the answer means: success, surely not applied, or unknown (I9). After an unknown outcome the caller
//! goes on as another process. How the history is judged is not decided here.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use borough_client::Session;
use borough_proto::error::Outcome;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http::{Answer, Http, is_connect};
use crate::record::{Kind, Recorder};

mod append;
mod counter;
mod document;
mod idempotent;
mod register;
mod scan;
mod session;
mod set;
mod stale;
mod ttl;

use document::Clients;
pub use document::Through;

/// What callers wait for an answer: longer than the routers' own deadline, so that a router that lives tells the outcome.
const ANSWER_LIMIT: Duration = Duration::from_secs(11);
/// One caller of four waits no longer than this: its calls are cut in the middle, and their outcome is unknown to it.
const IMPATIENT_LIMIT: Duration = Duration::from_millis(300);
/// Of one page of a listing, before the listing is given up.
const PAGE_ATTEMPTS: u32 = 3;
/// For how long a register is in use.
const KEY_AGE_SECONDS: u64 = 10;
/// So many acknowledged writes a caller remembers.
const SENT_MAX: usize = 200;
/// For the final reads: nothing is broken any more then.
const LAST_READ_LIMIT: Duration = Duration::from_secs(60);

/// A kind of load, each for one promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    Register,
    Ttl,
    Set,
    Counter,
    Idempotent,
    Append,
    Session,
    Stale,
    Scan,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Ok(Value),
    /// Surely not applied, and why.
    Fail(String),
    /// Applied now, later or never; and why that is not known.
    Info(String),
}

impl End {
    /// Of a call that changes something, when nothing was sent yet that does: it was surely not applied.
    fn before_any_write(self) -> Self {
        match self {
            Self::Info(error) => Self::Fail(error),
            Self::Ok(_) | Self::Fail(_) => self,
        }
    }
}

/// What the callers of a run share.
#[derive(Debug)]
pub struct Site {
    pub workload: Workload,
    pub recorder: Recorder,
    routers: Vec<Http>,
    /// The same for those who do not wait.
    impatient: Vec<Http>,
    /// Absent when calls go over REST.
    clients: Option<Clients>,
    keys: Vec<String>,
    callers: u64,
    seed: u64,
    /// Of `append`: the keys that are in use now.
    generation: AtomicU64,
    begun: Instant,
}

/// One sequential caller.
#[derive(Debug)]
pub struct Caller {
    site: Arc<Site>,
    number: u64,
    process: u64,
    router: usize,
    values: u64,
    pub rng: StdRng,
    /// The last value and entity tag that it saw, by key.
    seen: HashMap<String, (Value, String)>,
    /// Of its session: over REST its token, else the client's.
    token: Option<String>,
    session: Option<Session>,
    /// Of `append`: length of the longest list in the last transaction.
    longest: usize,
    /// Of `scan`: what it has added and not removed.
    added: Vec<String>,
    /// Writes under an idempotency key that were acknowledged, the last of them.
    sent: VecDeque<Sent>,
    /// Of `register`: the place of the key that was answered last, of those who are faithful.
    answered: Option<usize>,
}

/// A write under an idempotency key that was acknowledged.
#[derive(Debug, Clone)]
struct Sent {
    key: String,
    /// What it was to replace.
    etag: String,
    document: Value,
    idempotency_key: String,
    /// The entity tag of the answer.
    answered: String,
}

impl Workload {
    pub const ALL: [Self; 9] = [
        Self::Register,
        Self::Ttl,
        Self::Set,
        Self::Counter,
        Self::Idempotent,
        Self::Append,
        Self::Session,
        Self::Stale,
        Self::Scan,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Ttl => "ttl",
            Self::Set => "set",
            Self::Counter => "counter",
            Self::Idempotent => "idempotent",
            Self::Append => "append",
            Self::Session => "session",
            Self::Stale => "stale",
            Self::Scan => "scan",
        }
    }

    /// The promise it is for.
    pub fn about(self) -> &'static str {
        match self {
            Self::Register => "documents are linearizable: read, write, create, compare-and-set, delete",
            Self::Ttl => "documents with a time to live are seen until then and never after",
            Self::Set => "items added to a partition are in every later listing of it",
            Self::Counter => "increments by compare-and-set, resent under their key, count once",
            Self::Idempotent => "a write resent under its Idempotency-Key is applied once",
            Self::Append => "transactions within a partition are strict-serializable",
            Self::Session => "a session reads its own writes and never goes back, from any replica",
            Self::Stale => "a max-stale read is at most that stale",
            Self::Scan => "a paginated listing neither misses nor doubles what exists throughout",
        }
    }

    /// The workload of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|workload| workload.name() == name)
    }

    /// The function of the history that reads.
    pub fn read_function(self) -> &'static str {
        match self {
            Self::Append => "txn",
            Self::Scan => "scan",
            Self::Register
            | Self::Ttl
            | Self::Set
            | Self::Counter
            | Self::Idempotent
            | Self::Session
            | Self::Stale => "read",
        }
    }
}

impl Site {
    /// Makes what the workload needs in a whole cluster.
    ///
    /// # Errors
    /// When the cluster does not let it.
    pub async fn prepare(
        workload: Workload,
        cluster: &Cluster,
        through: Through,
        recorder: Recorder,
        callers: u64,
        seed: u64,
    ) -> anyhow::Result<Arc<Self>> {
        let routers = callers_of(cluster, ANSWER_LIMIT)?;
        let impatient = callers_of(cluster, IMPATIENT_LIMIT)?;
        let clients = Clients::new(cluster, through)?;
        let first = routers.first().context("no router")?;
        let keys = match workload {
            Workload::Scan => vec![scan::COLLECTION.to_owned()],
            Workload::Set
            | Workload::Append
            | Workload::Register
            | Workload::Counter
            | Workload::Idempotent => keys(cluster, workload, 1).await?,
            Workload::Ttl | Workload::Session | Workload::Stale => keys(cluster, workload, 2).await?,
        };
        match workload {
            Workload::Set => first.create_collection(set::COLLECTION, &json!({"sortKey": true})).await?,
            Workload::Append => {
                first.create_collection(append::COLLECTION, &json!({"sortKey": true})).await?
            }
            Workload::Scan => first.create_collection(scan::COLLECTION, &json!({})).await?,
            Workload::Counter => fill(first, &keys, &json!({"count": 0})).await?,
            Workload::Idempotent => fill(first, &keys, &json!({"list": []})).await?,
            Workload::Register | Workload::Ttl | Workload::Session | Workload::Stale => {}
        }
        let generation = AtomicU64::new(0);
        let begun = Instant::now();
        Ok(Arc::new(Self {
            workload,
            recorder,
            routers,
            impatient,
            clients,
            keys,
            callers,
            seed,
            generation,
            begun,
        }))
    }

    /// The caller of this number, below the number of callers; one more makes the final reads.
    pub fn caller(self: &Arc<Self>, number: u64) -> Caller {
        let mixed = self.seed ^ (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Caller {
            site: Arc::clone(self),
            number,
            process: self.recorder.process(),
            router: usize::try_from(number).unwrap_or(0) % self.routers.len(),
            values: 0,
            rng: StdRng::seed_from_u64(mixed),
            seen: HashMap::new(),
            token: None,
            session: None,
            longest: 0,
            added: Vec::new(),
            sent: VecDeque::new(),
            answered: None,
        }
    }

    /// All that have been in use.
    fn all_keys(&self) -> Vec<String> {
        match self.workload {
            Workload::Register => {
                let ages = 0..=self.begun.elapsed().as_secs() / KEY_AGE_SECONDS;
                ages.flat_map(|age| self.keys.iter().map(move |key| of_age(key, age))).collect()
            }
            Workload::Ttl
            | Workload::Set
            | Workload::Counter
            | Workload::Idempotent
            | Workload::Append
            | Workload::Session
            | Workload::Stale
            | Workload::Scan => self.keys.clone(),
        }
    }

    /// Breaches of what every answer must have.
    pub fn faults(&self) -> Vec<String> {
        self.routers.iter().chain(&self.impatient).flat_map(Http::faults).collect()
    }
}

fn callers_of(cluster: &Cluster, limit: Duration) -> anyhow::Result<Vec<Http>> {
    cluster.bases().iter().map(|base| Http::with_limit(base, limit)).collect()
}

/// The keys of registers change as time goes by: deciding one takes time exponential in its calls of unknown outcome.
fn of_age(key: &str, age: u64) -> String {
    format!("{key}.{age}")
}

async fn keys(cluster: &Cluster, workload: Workload, per_shard: usize) -> anyhow::Result<Vec<String>> {
    let by_shard = cluster.ids_by_shard(workload.name(), per_shard).await?;
    Ok(by_shard.into_values().flatten().collect())
}

async fn fill(http: &Http, keys: &[String], document: &Value) -> anyhow::Result<()> {
    for key in keys {
        http.put(&format!("/v1/users/{key}"), document).expect(201).await?;
    }
    Ok(())
}

impl Caller {
    /// Makes the next call.
    pub async fn step(&mut self) {
        match self.site.workload {
            Workload::Register => register::step(self).await,
            Workload::Ttl => ttl::step(self).await,
            Workload::Set => set::step(self).await,
            Workload::Counter => counter::step(self).await,
            Workload::Idempotent => idempotent::step(self).await,
            Workload::Append => append::step(self).await,
            Workload::Session => session::step(self).await,
            Workload::Stale => stale::step(self).await,
            Workload::Scan => scan::step(self).await,
        }
    }

    /// Reads every key, in a cluster that is whole again.
    ///
    /// # Errors
    /// When one is not answered in time.
    pub async fn last_reads(&mut self) -> anyhow::Result<()> {
        for key in self.site.all_keys() {
            let started = Instant::now();
            while !self.last_read(&key).await {
                anyhow::ensure!(
                    started.elapsed() < LAST_READ_LIMIT,
                    "the last read of {key} is not answered"
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    async fn last_read(&mut self, key: &str) -> bool {
        match self.site.workload {
            Workload::Register | Workload::Ttl => register::read(self, key).await,
            Workload::Set => set::read(self, key).await,
            Workload::Counter => counter::read(self, key).await,
            Workload::Idempotent => idempotent::read(self, key).await,
            Workload::Append => append::read(self, key).await,
            Workload::Session => session::read(self, key).await,
            Workload::Stale => stale::read(self, key, 0).await,
            Workload::Scan => scan::scan(self).await,
        }
    }

    /// One of the keys.
    fn key(&mut self) -> String {
        let at = self.rng.random_range(0..self.site.keys.len().max(1));
        self.key_at(at)
    }

    fn key_at(&self, at: usize) -> String {
        let key = self.site.keys.get(at).cloned().unwrap_or_default();
        match self.site.workload {
            Workload::Register => of_age(&key, self.site.begun.elapsed().as_secs() / KEY_AGE_SECONDS),
            Workload::Ttl
            | Workload::Set
            | Workload::Counter
            | Workload::Idempotent
            | Workload::Append
            | Workload::Session
            | Workload::Stale
            | Workload::Scan => key,
        }
    }

    /// A number that no caller of the run has had.
    fn value(&mut self) -> u64 {
        self.values += 1;
        self.values * (self.site.callers + 1) + self.number
    }

    /// A text that no caller of the run has had.
    fn unique(&mut self) -> String {
        let value = self.value();
        format!("{}-{value}", self.site.seed)
    }

    fn remember(&mut self, sent: Sent) {
        if self.sent.len() >= SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back(sent);
    }

    /// One of the writes that it remembers.
    fn sent_before(&mut self) -> Option<Sent> {
        let at = self.rng.random_range(0..self.sent.len().max(1));
        self.sent.get(at).cloned()
    }

    fn is_impatient(&self) -> bool {
        // Whoever makes the final reads waits.
        (self.number % 4 == 3 || self.is_faithful()) && self.number < self.site.callers
    }

    /// Of `register`: two of six callers only read, wait for none, stay with their router whatever it answers, and mostly
    /// with a key that it answers. So there is one to see what a leader answers that is cut off together with a router.
    fn is_faithful(&self) -> bool {
        self.site.workload == Workload::Register
            && matches!(self.number % 6, 1 | 2)
            && self.number < self.site.callers
    }

    fn http(&self) -> Http {
        let routers = if self.is_impatient() { &self.site.impatient } else { &self.site.routers };
        // Never empty; see `Site::prepare`.
        routers.get(self.router).or(routers.first()).cloned().unwrap_or_else(|| unreachable!())
    }

    fn begin(&self, f: &str, key: &str, input: Value) {
        self.site.recorder.invoke(self.process, f, key, input);
    }

    /// Takes the end of the call down; whether it was a success.
    fn end(&mut self, f: &str, key: &str, input: Value, end: End) -> bool {
        let (kind, value, error) = match end {
            End::Ok(value) => (Kind::Ok, value, None),
            End::Fail(error) => (Kind::Fail, input, Some(error)),
            End::Info(error) => (Kind::Info, input, Some(error)),
        };
        self.site.recorder.end(self.process, kind, f, key, value, error);
        if kind == Kind::Info {
            self.process = self.site.recorder.process();
        }
        kind == Kind::Ok
    }

    /// What an answer means when `success` are the statuses of success; another router is asked next time when this one
    /// did not get through.
    fn judge(&mut self, answer: anyhow::Result<Answer>, success: &[u16]) -> Result<Answer, End> {
        if !self.is_faithful() && !answer.as_ref().is_ok_and(|answer| answer.status < 500) {
            self.router = (self.router + 1) % self.site.routers.len().max(1);
        }
        match answer {
            Ok(answer) if success.contains(&answer.status) => Ok(answer),
            Ok(answer) => {
                let problem = answer.problem(answer.status).ok();
                let refused = problem.is_some_and(|problem| problem.outcome == Outcome::NotApplied);
                Err(match (refused, answer.status) {
                    (true, 409 | 412) => End::Fail("precondition".to_owned()),
                    (true, _) => End::Fail(answer.to_string()),
                    (false, _) => End::Info(answer.to_string()),
                })
            }
            Err(error) if is_connect(&error) => Err(End::Fail(format!("{error:#}"))),
            Err(error) => Err(End::Info(format!("{error:#}"))),
        }
    }
}

/// A number in a document.
fn number(document: &Value, field: &str) -> Result<u64, End> {
    let found = document.get(field).and_then(Value::as_u64);
    found.ok_or_else(|| End::Fail(format!("no {field} in {document}")))
}
