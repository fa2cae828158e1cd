//! A load on a service: closed loop (each connection sends when it has its answer) or open loop.
//!
//! In the open loop requests are due at fixed times whatever the answers do, and latency counts from the time
//! a request was due: a stall is paid for by every request that waited for it (no coordinated omission).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use http::StatusCode;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::connection::{Answer, Connection};
use crate::mix::{Kind, Mix};
use crate::options::Options;
use crate::report::{Record, Report};
use crate::schedule::Schedule;
use crate::service::Service;
use crate::template::Fill;
use crate::zipf::Zipf;

/// Why a request that was due was never sent.
const NOT_SENT: &str = "due but not sent: the connections could not hold the rate";

/// Why an answer that looks good is none; behind the name of its kind.
const UNEXPECTED: &str = ": an answer lacks what it should hold";

/// How far a load is, for who watches it.
#[derive(Debug, Default)]
pub struct Progress {
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Progress {
    /// Requests answered as they should since the beginning, whether they are measured or not.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Requests that failed, likewise.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    fn count(&self, good: bool) {
        let counter = if good { &self.answered } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A load on a service, ready to be run.
#[derive(Debug)]
pub struct Load {
    plan: Arc<Plan>,
    options: Options,
}

impl Load {
    /// A load as `options` say on `service`.
    ///
    /// # Errors
    /// When the options make no sense, or the service has no request for what they ask for.
    pub fn new(service: Service, options: Options) -> Result<Self> {
        service.covers(&options.mix, options.preload()).map_err(|fault| anyhow!(fault))?;
        let plan = Plan {
            service,
            keys: Zipf::new(options.keys, options.zipf).map_err(|fault| anyhow!(fault))?,
            timeout: seconds("the timeout", options.timeout)?,
            may_be_absent: options.no_preload || options.mix.has(Kind::Delete),
            batch: options.batch,
            value_bytes: options.value_bytes,
            progress: Progress::default(),
        };
        Ok(Self { plan: Arc::new(plan), options })
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.plan.progress
    }

    /// Writes every document once.
    ///
    /// # Errors
    /// When a write is not answered as it should.
    pub async fn preload(&self) -> Result<Report> {
        let next = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let mut workers = JoinSet::new();
        let keys = self.options.keys;
        for number in 0..self.options.connections {
            let next = Arc::clone(&next);
            let mut worker = self.worker(number)?;
            workers.spawn(async move {
                loop {
                    let key = next.fetch_add(1, Ordering::Relaxed);
                    if key >= keys || worker.record.has_failures() {
                        return Ok(worker.record);
                    }
                    worker.send(Kind::Put, &[key], Instant::now(), true).await?;
                }
            });
        }
        let record = join(workers).await?;
        let report = Report::new(None, self.options.connections, start.elapsed(), record);
        ensure!(report.failed() == 0, "writing the documents failed:\n{report}");
        Ok(report)
    }

    /// Runs the load for the warm-up and the seconds asked for. Ends at the latest one timeout after that.
    ///
    /// # Errors
    /// When a request cannot be made. Failed requests are in the report.
    pub async fn measure(&self) -> Result<Report> {
        let Options { rate, connections, .. } = self.options;
        let warm_up = seconds("the warm-up", self.options.warm_up)?;
        let measured = seconds("the time to measure", self.options.seconds)?;
        let first = Instant::now() + warm_up;
        let times = Times { first, end: first + measured, give_up: first + measured + self.plan.timeout };
        let schedule = rate.map(|rate| Arc::new(Schedule::new(rate, warm_up, measured)));
        ensure!(
            schedule.as_ref().is_none_or(|schedule| schedule.is_measured()),
            "--rate and --seconds: no request is due in that time"
        );
        let mut workers = JoinSet::new();
        for number in 0..connections {
            let worker = self.worker(number)?;
            match &schedule {
                Some(schedule) => drop(workers.spawn(worker.open_loop(Arc::clone(schedule), times))),
                None => drop(workers.spawn(worker.closed_loop(times))),
            }
        }
        if let Some(schedule) = schedule.clone() {
            std::thread::spawn(move || schedule.release(connections));
        }
        let joined = join(workers).await;
        if let Some(schedule) = &schedule {
            schedule.close();
        }
        let mut record = joined?;
        for _ in 0..schedule.map_or(0, |schedule| schedule.left()) {
            record.failed(NOT_SENT);
        }
        let elapsed = Instant::now().saturating_duration_since(first);
        Ok(Report::new(rate, connections, elapsed, record))
    }

    fn worker(&self, number: usize) -> Result<Worker> {
        let target = self.plan.service.target(number).context("no server to put the load on")?;
        let seed = self.options.seed.wrapping_mul(0x9e37_79b9).wrapping_add(number as u64);
        Ok(Worker {
            plan: Arc::clone(&self.plan),
            mix: self.options.mix.clone(),
            connection: Connection::new(target.clone()),
            rng: StdRng::seed_from_u64(seed),
            record: Record::default(),
        })
    }
}

/// What all connections go by.
#[derive(Debug)]
struct Plan {
    service: Service,
    keys: Zipf,
    batch: usize,
    value_bytes: usize,
    timeout: Duration,
    may_be_absent: bool,
    progress: Progress,
}

fn seconds(what: &str, value: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(value).with_context(|| format!("{what}: {value} seconds"))
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
    /// The warm-up is over.
    first: Instant,
    /// No request is due from here on.
    end: Instant,
    /// Nothing is sent from here on, due or not.
    give_up: Instant,
}

/// A connection and what became of its requests.
struct Worker {
    plan: Arc<Plan>,
    mix: Mix,
    connection: Connection,
    rng: StdRng,
    record: Record,
}

impl Worker {
    async fn closed_loop(mut self, times: Times) -> Result<Record> {
        loop {
            let now = Instant::now();
            if now >= times.end {
                return Ok(self.record);
            }
            self.send_any(now, now >= times.first).await?;
        }
    }

    async fn open_loop(mut self, schedule: Arc<Schedule>, times: Times) -> Result<Record> {
        while let Some((due, measured)) = schedule.take().await {
            let now = Instant::now();
            if now >= times.give_up {
                if measured {
                    self.record.failed(NOT_SENT);
                }
                return Ok(self.record);
            }
            // What the warm-up could not send is no debt of what is measured.
            if measured || now < times.first {
                self.send_any(due, measured).await?;
            }
        }
        Ok(self.record)
    }

    async fn send_any(&mut self, since: Instant, measured: bool) -> Result<()> {
        let kind = self.mix.sample(&mut self.rng);
        let count = if kind == Kind::BatchGet { self.plan.batch } else { 1 };
        let keys: Vec<u64> = (0..count).map(|_| self.plan.keys.sample(&mut self.rng)).collect();
        self.send(kind, &keys, since, measured).await
    }

    /// Sends one request; latency counts from `since`.
    async fn send(&mut self, kind: Kind, keys: &[u64], since: Instant, measured: bool) -> Result<()> {
        let plan = &self.plan;
        let template = plan.service.template(kind).context("no such request")?;
        let fill = Fill { keys, value_bytes: plan.value_bytes, random: self.rng.random() };
        let target = self.connection.target();
        let request = plan.service.request(template, target, &fill).context("make a request")?;
        let expect = template.expect().filter(|_| !plan.may_be_absent);
        let answer = self.connection.send(request, expect.is_some(), plan.timeout).await;
        let latency = since.elapsed();
        let fault = match answer {
            Ok(answer) if answer.status.is_success() => match expect {
                Some(text) if !answer.holds(text, keys.len()) => Some(UNEXPECTED.to_owned()),
                Some(_) | None => None,
            },
            Ok(Answer { status: StatusCode::NOT_FOUND, .. }) if plan.may_be_absent && kind != Kind::Put => {
                if measured {
                    self.record.absent();
                }
                None
            }
            Ok(answer) => Some(format!(" answered {}", answer.status.as_u16())),
            Err(failure) => Some(format!(": {}", failure.name())),
        };
        plan.progress.count(fault.is_none());
        match fault {
            None if measured => self.record.answered(kind, latency),
            Some(fault) if measured => self.record.failed(&format!("{}{fault}", kind.name())),
            None | Some(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
