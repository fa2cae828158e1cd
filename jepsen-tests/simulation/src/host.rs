//! A host: its files and engine, which last, and the process that runs on it, a whole node in a runtime of its own.
//!
//! A runtime for each process is what makes a kill a kill: it is dropped with all tasks as they stand. Its clock is
//! tokio's paused one, which each step takes one tick further.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use borough_node::environment::{Accepted, Environment};
use borough_node::store::{Engine, MemoryEngine};
use borough_node::wal::Driver;
use borough_node::{Config, run_in};
use borough_proto::exchange::channel::ByteStream;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::network::{self, Arrived, HostId, SimulatedNetwork};
use crate::{disk, system};

/// A step that is longer is a process that stood still: its timers fall due all at once.
const STOOD_STILL: Duration = Duration::from_millis(5);

/// A runtime whose clock goes where it is told to.
pub struct Steps {
    runtime: Runtime,
    begun_ns: u64,
    base: Instant,
}

impl Steps {
    pub fn new() -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let base = runtime.block_on(async { Instant::now() });
        Ok(Self { runtime, begun_ns: system::now_ns(), base })
    }

    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(work)
    }

    /// Runs as `host` until the simulated time is `until_ns`.
    pub fn step(&self, host: HostId, until_ns: u64) {
        network::run_as(host);
        let due = self.base + Duration::from_nanos(until_ns.saturating_sub(self.begun_ns));
        self.runtime.block_on(async {
            let behind = due - Instant::now();
            if behind > STOOD_STILL {
                tokio::time::advance(behind - Duration::from_millis(1)).await;
            }
            tokio::time::sleep_until(due).await;
        });
    }
}

/// What a host's process is doing.
pub enum Process {
    None,
    Running(Running),
}

pub struct Running {
    steps: Steps,
    done: JoinHandle<Result<(), String>>,
    /// Why its log failed.
    fatal: Arc<Mutex<Option<String>>>,
    pub stop: CancellationToken,
}

/// How a process came to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to, or its node was removed.
    Well,
    Failed(String),
    /// Its log could not be written; it was about to abort.
    Aborted(String),
}

/// A machine with one node.
pub struct Host {
    pub id: HostId,
    config: Config,
    /// How often its files have been made anew.
    losses: u64,
    engine: Arc<MemoryEngine>,
    /// What the node that ran last reads, its engine's buffer included.
    pub held: Arc<Mutex<Option<Arc<dyn Engine>>>>,
    pub process: Process,
    /// Milliseconds that each `fsync` takes at most.
    pub disk_ms: Arc<AtomicU64>,
    seed: u64,
    /// The node is no member any more, and has ended for that.
    removed: bool,
}

impl Host {
    pub fn new(id: HostId, config: Config, seed: u64) -> anyhow::Result<Self> {
        let host = Self {
            id,
            config,
            losses: 0,
            engine: Arc::new(MemoryEngine::new()),
            held: Arc::default(),
            process: Process::None,
            disk_ms: Arc::new(AtomicU64::new(1)),
            seed,
            removed: false,
        };
        std::fs::create_dir_all(host.root())?;
        disk::attach(&host.root())?;
        Ok(host)
    }

    /// Where its files are.
    pub fn root(&self) -> PathBuf {
        root(self.id, self.losses)
    }

    /// Starts the node.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let incoming = network::start(self.id);
        let fatal = Arc::new(Mutex::new(None));
        let environment = Environment {
            incoming: Some(Box::pin(accepted(incoming))),
            connector: Some(&SimulatedNetwork),
            engine: Some(Arc::clone(&self.engine) as _),
            on_engine: Some({
                let held = Arc::clone(&self.held);
                Box::new(move |engine| *held.lock() = Some(engine))
            }),
            log: self.writer(),
            on_fatal: Some({
                let (id, fatal) = (self.id, Arc::clone(&fatal));
                Arc::new(move |why| {
                    // Nothing that this process would still say is heard.
                    network::stop(id, true);
                    fatal.lock().get_or_insert(why.to_owned());
                })
            }),
        };
        let config = Config { data_dir: self.root(), ..self.config.clone() };
        let steps = Steps::new()?;
        let stop = CancellationToken::new();
        let running = Box::pin(run_in(config, environment, stop.clone()));
        let done = steps.spawn(async move { running.await.map_err(|error| format!("{error:#}")) });
        self.process = Process::Running(Running { steps, done, fatal, stop });
        Ok(())
    }

    fn writer(&self) -> Driver {
        let (most, seed) = (Arc::clone(&self.disk_ms), self.seed ^ system::now_ns());
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Driver::Task(Arc::new(move || {
            Duration::from_millis(rng.lock().random_range(0..=most.load(Ordering::Relaxed)))
        }))
    }

    pub fn is_running(&self) -> bool {
        matches!(self.process, Process::Running(_))
    }

    /// Runs its process until `until_ns`; how it ended, if it did.
    pub fn step(&mut self, until_ns: u64) -> Option<End> {
        let Process::Running(running) = &mut self.process else { return None };
        running.steps.step(self.id, until_ns);
        if let Some(why) = running.fatal.lock().take() {
            return Some(End::Aborted(why));
        }
        if disk::was_cut(&root(self.id, self.losses)) {
            return Some(End::Aborted("the power is gone".to_owned()));
        }
        if !running.done.is_finished() {
            return None;
        }
        let done = running.steps.runtime.block_on(&mut running.done);
        Some(match done {
            Ok(Ok(())) => End::Well,
            Ok(Err(error)) => End::Failed(error),
            Err(error) => End::Failed(error.to_string()),
        })
    }

    /// Ends the process where it stands. Of what the engine has not flushed, `kept` batches are left.
    pub fn kill(&mut self, kept: usize) {
        network::stop(self.id, false);
        self.drop_process(kept);
    }

    /// Takes the power away. What is left of its files is there at the next start.
    pub fn cut_power(&mut self, kept: usize) -> anyhow::Result<()> {
        network::stop(self.id, true);
        let old = self.root();
        self.losses += 1;
        disk::after_power_loss(&old, &self.root()).context("make the files after a power loss")?;
        self.drop_process(kept);
        std::fs::remove_dir_all(old).context("remove the files from before a power loss")
    }

    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// After the process has ended by itself.
    pub fn ended(&mut self, well: bool) {
        let told = matches!(&self.process, Process::Running(running) if running.stop.is_cancelled());
        self.removed |= well && !told;
        network::stop(self.id, false);
        self.process = Process::None;
    }

    fn drop_process(&mut self, kept: usize) {
        network::run_as(self.id);
        if self.is_running() {
            self.process = Process::None;
            self.engine.crash(kept);
        }
    }
}

fn root(id: HostId, losses: u64) -> PathBuf {
    PathBuf::from(format!("h{id}-{losses}"))
}

fn accepted(
    incoming: mpsc::UnboundedReceiver<Arrived>,
) -> impl futures::Stream<Item = std::io::Result<Accepted>> + Send {
    futures::stream::unfold(incoming, |mut incoming| async move {
        let stream: Box<dyn ByteStream> = Box::new(incoming.recv().await?.accept());
        Some((Ok(Accepted(stream)), incoming))
    })
}
