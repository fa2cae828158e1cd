//! A load on the REST API: closed loop (each connection sends when it has its answer) or open loop.
//!
//! In the open loop requests are due at fixed times whatever the answers do, and latency counts from the time
//! a request was due: a stall is paid for by every request that waited for it (no coordinated omission).

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::connection::{Connection, Target};
use crate::mix::{Kind, Mix};
use crate::report::{Record, Report};
use crate::zipf::Zipf;

/// Why a request that was due was never sent.
const NOT_SENT: &str = "due but not sent: the connections could not hold the rate";

/// What to send, and for how long.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The router's URL.
    #[arg(long, default_value = "http://127.0.0.1:8080", env = "BOROUGH_ROUTER")]
    pub url: String,
    /// The collection, which must exist; its documents `load-0`, `load-1`, … are overwritten.
    #[arg(long, default_value = "users")]
    pub collection: String,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Load that is not measured before that, in seconds.
    #[arg(long, default_value_t = 2.0)]
    pub warm_up: f64,
    /// Connections kept open.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Open loop: requests due a second, over all connections. Without it the loop is closed.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Weights of get, put, patch and delete.
    #[arg(long, default_value = "get=95,put=5")]
    pub mix: Mix,
    /// Bytes of a document.
    #[arg(long, default_value_t = 300)]
    pub value_bytes: usize,
    /// Documents.
    #[arg(long, default_value = "10000")]
    pub keys: NonZeroU64,
    /// Skew of their popularity: 0 is uniform, 0.99 what YCSB uses.
    #[arg(long, default_value_t = 0.0)]
    pub zipf: f64,
    /// Does not write the documents first; answers 404 are then expected.
    #[arg(long)]
    pub no_preload: bool,
    /// Longest wait for an answer, in seconds.
    #[arg(long, default_value_t = 10.0)]
    pub timeout: f64,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Options {
    /// The defaults, against `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            collection: "users".to_owned(),
            seconds: 10.0,
            warm_up: 2.0,
            connections: 64,
            rate: None,
            mix: Mix::only(Kind::Get),
            value_bytes: 300,
            keys: NonZeroU64::new(10_000).unwrap_or(NonZeroU64::MIN),
            zipf: 0.0,
            no_preload: false,
            timeout: 10.0,
            seed: 1,
        }
    }
}

/// Options that were checked.
struct Plan {
    target: Target,
    collection: String,
    mix: Mix,
    keys: Zipf,
    value_bytes: usize,
    timeout: Duration,
    may_be_absent: bool,
}

impl Plan {
    fn new(options: &Options) -> Result<Self> {
        ensure!(options.connections > 0, "--connections must be at least 1");
        if let Some(rate) = options.rate {
            ensure!(rate > 0.0 && rate <= 10_000_000.0, "--rate {rate} is not between 0 and 10,000,000");
        }
        Ok(Self {
            target: Target::parse(&options.url).map_err(|fault| anyhow!("--url {fault}"))?,
            collection: options.collection.clone(),
            mix: options.mix.clone(),
            keys: Zipf::new(options.keys.get(), options.zipf).map_err(|fault| anyhow!("--{fault}"))?,
            value_bytes: options.value_bytes,
            timeout: seconds("--timeout", options.timeout)?,
            may_be_absent: options.no_preload || options.mix.has(Kind::Delete),
        })
    }

    fn request(&self, kind: Kind, key: u64, rng: &mut impl Rng) -> Result<Request<Full<Bytes>>> {
        let method = match kind {
            Kind::Get => Method::GET,
            Kind::Put => Method::PUT,
            Kind::Patch => Method::PATCH,
            Kind::Delete => Method::DELETE,
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1/{}/load-{key}", self.collection))
            .header(header::HOST, self.target.authority().as_str());
        let (request, body) = match kind {
            Kind::Put => {
                let json = request.header(header::CONTENT_TYPE, "application/json");
                (json, document(key, self.value_bytes))
            }
            Kind::Patch => {
                let patch = request.header(header::CONTENT_TYPE, "application/merge-patch+json");
                (patch, Bytes::from(format!(r#"{{"n":{}}}"#, rng.random::<u32>())))
            }
            Kind::Get | Kind::Delete => (request, Bytes::new()),
        };
        request.body(Full::new(body)).context("make a request")
    }

    /// Sends one request; latency counts from `since`.
    async fn run_one(
        &self,
        connection: &mut Connection,
        kind: Kind,
        key: u64,
        since: Instant,
        rng: &mut StdRng,
        record: Option<&mut Record>,
    ) -> Result<()> {
        let request = self.request(kind, key, rng)?;
        let answer = connection.send(request, self.timeout).await;
        let Some(record) = record else { return Ok(()) };
        match answer {
            Ok(status) if status.is_success() => record.answered(kind, since.elapsed()),
            Ok(StatusCode::NOT_FOUND) if self.may_be_absent && kind != Kind::Put => {
                record.answered(kind, since.elapsed());
                record.absent();
            }
            Ok(status) => record.failed(&format!("{} answered {}", kind.name(), status.as_u16())),
            Err(failure) => record.failed(&format!("{}: {}", kind.name(), failure.name())),
        }
        Ok(())
    }
}

/// A document of about `bytes` bytes.
fn document(key: u64, bytes: usize) -> Bytes {
    let mut text = format!(r#"{{"n":{key},"text":""#);
    let end = "\"}";
    // Varied, so that compression anywhere on the way does not flatter.
    let mut state = key;
    while text.len() + end.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push(char::from(b'a' + u8::try_from((state >> 33) % 26).unwrap_or(0)));
    }
    text.push_str(end);
    text.into()
}

fn seconds(name: &str, value: f64) -> Result<Duration> {
    ensure!((0.0..=86_400.0).contains(&value), "{name} {value} is not between 0 and 86,400 seconds");
    Ok(Duration::from_secs_f64(value))
}

/// Writes every document once.
///
/// # Errors
/// When options make no sense or a write is not answered as it should.
pub async fn preload(options: &Options) -> Result<Report> {
    let plan = Arc::new(Plan::new(options)?);
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut workers = JoinSet::new();
    let keys = options.keys.get();
    for number in 0..options.connections {
        let (plan, next) = (Arc::clone(&plan), Arc::clone(&next));
        let mut rng = StdRng::seed_from_u64(number as u64);
        workers.spawn(async move {
            let mut connection = Connection::new(plan.target.clone());
            let mut record = Record::default();
            loop {
                let key = next.fetch_add(1, Ordering::Relaxed);
                if key >= keys || record.has_failures() {
                    return Ok(record);
                }
                let since = Instant::now();
                plan.run_one(&mut connection, Kind::Put, key, since, &mut rng, Some(&mut record)).await?;
            }
        });
    }
    let record = join(workers).await?;
    let report = Report::new(None, options.connections, start.elapsed(), record);
    ensure!(report.failed() == 0, "writing the documents failed:\n{report}");
    Ok(report)
}

/// Runs the load for the warm-up and the seconds asked for. Ends at the latest one timeout after that.
///
/// # Errors
/// When options make no sense. Failed requests are in the report.
pub async fn measure(options: &Options) -> Result<Report> {
    let plan = Arc::new(Plan::new(options)?);
    let warm_up = seconds("--warm-up", options.warm_up)?;
    let measured = seconds("--seconds", options.seconds)?;
    let first = Instant::now() + warm_up;
    let times = Times { first, end: first + measured, give_up: first + measured + plan.timeout };
    let schedule = options.rate.map(|rate| Arc::new(Schedule::new(rate, warm_up + measured)));
    let mut workers = JoinSet::new();
    for number in 0..options.connections {
        let worker = Worker {
            plan: Arc::clone(&plan),
            connection: Connection::new(plan.target.clone()),
            rng: StdRng::seed_from_u64(options.seed.wrapping_mul(0x9e37_79b9).wrapping_add(number as u64)),
            record: Record::default(),
            times,
        };
        match &schedule {
            Some(schedule) => drop(workers.spawn(worker.open_loop(Arc::clone(schedule)))),
            None => drop(workers.spawn(worker.closed_loop())),
        }
    }
    if let Some(schedule) = schedule.clone() {
        let workers = options.connections;
        std::thread::spawn(move || schedule.release(workers));
    }
    let joined = join(workers).await;
    if let Some(schedule) = &schedule {
        schedule.due.close();
    }
    let mut record = joined?;
    for _ in 0..schedule.map_or(0, |schedule| schedule.left()) {
        record.failed(NOT_SENT);
    }
    let elapsed = Instant::now().saturating_duration_since(first);
    Ok(Report::new(options.rate, options.connections, elapsed, record))
}

async fn join(mut workers: JoinSet<Result<Record>>) -> Result<Record> {
    let mut all = Record::default();
    while let Some(record) = workers.join_next().await {
        all.merge(record.context("a connection's task")??);
    }
    Ok(all)
}

#[derive(Debug, Clone, Copy)]
struct Times {
    /// Requests due or sent from here on are recorded.
    first: Instant,
    /// No request is due from here on.
    end: Instant,
    /// Nothing is sent from here on, due or not.
    give_up: Instant,
}

/// Which request is due when.
struct Schedule {
    start: Instant,
    rate: f64,
    count: u64,
    taken: AtomicU64,
    /// Requests due and not yet taken.
    due: Semaphore,
}

impl Schedule {
    fn new(rate: f64, length: Duration) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by the options")]
        let count = (rate * length.as_secs_f64()) as u64;
        Self { start: Instant::now(), rate, count, taken: AtomicU64::new(0), due: Semaphore::new(0) }
    }

    fn due_at(&self, number: u64) -> Instant {
        self.start + Duration::from_secs_f64(number as f64 / self.rate)
    }

    /// Lets requests go when they are due, then `workers` more permits, by which workers learn that there are
    /// no more. On a thread of its own: the runtime's timer counts in milliseconds, which would be most of
    /// the latency measured.
    fn release(&self, workers: usize) {
        let mut released = 0;
        while released < self.count && !self.due.is_closed() {
            let now = Instant::now();
            let mut due = 0;
            while released + due < self.count && self.due_at(released + due) <= now {
                due += 1;
            }
            released += due;
            self.due.add_permits(usize::try_from(due).unwrap_or(usize::MAX));
            if released < self.count {
                std::thread::sleep(self.due_at(released).saturating_duration_since(Instant::now()));
            }
        }
        self.due.add_permits(workers);
    }

    /// The next request's due time, once it has come; `None` when there are no more.
    async fn take(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        (number < self.count).then(|| self.due_at(number))
    }

    /// Requests that nobody took.
    fn left(&self) -> u64 {
        self.count.saturating_sub(self.taken.load(Ordering::Relaxed))
    }
}

struct Worker {
    plan: Arc<Plan>,
    connection: Connection,
    rng: StdRng,
    record: Record,
    times: Times,
}

impl Worker {
    async fn closed_loop(mut self) -> Result<Record> {
        loop {
            let now = Instant::now();
            if now >= self.times.end {
                return Ok(self.record);
            }
            self.run_one(now).await?;
        }
    }

    async fn open_loop(mut self, schedule: Arc<Schedule>) -> Result<Record> {
        while let Some(due) = schedule.take().await {
            if Instant::now() >= self.times.give_up {
                self.record.failed(NOT_SENT);
                return Ok(self.record);
            }
            self.run_one(due).await?;
        }
        Ok(self.record)
    }

    async fn run_one(&mut self, since: Instant) -> Result<()> {
        let kind = self.plan.mix.sample(&mut self.rng);
        let key = self.plan.keys.sample(&mut self.rng);
        let record = (since >= self.times.first).then_some(&mut self.record);
        self.plan.run_one(&mut self.connection, kind, key, since, &mut self.rng, record).await
    }
}

#[cfg(test)]
mod tests;
