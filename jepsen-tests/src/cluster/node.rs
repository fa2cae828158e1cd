//! One node's process, its directory and addresses.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::{BIND_LIMIT, STOP_LIMIT, kept_address, strings};
use crate::preload::Shim;
use crate::preload::layout::Word;
use crate::process::Process;
use crate::proxy::{End, Links};
use crate::wait::until;

/// `D/runtime.json`.
#[derive(Debug, Clone, Deserialize)]
struct Runtime {
    pid: u32,
    addr: String,
    admin: String,
}

/// `D/identity.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub cluster_id: String,
    pub node: u64,
}

/// Why a node may end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excuse {
    /// What was done to it.
    pub fault: &'static str,
    /// Its log must hold one of these.
    pub told_by: &'static [&'static str],
}

/// A node's process and what outlives it.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    pub data_dir: PathBuf,
    /// gRPC address; kept over restarts.
    listen: String,
    /// gRPC address that others use: the same, or that of its proxy.
    pub addr: String,
    /// Which end of its links it is, when they pass proxies.
    pub end: Option<End>,
    /// It was removed from the cluster and is never started again.
    pub retired: bool,
    /// Of faults that may end it, each once.
    excuses: Vec<Excuse>,
    pub admin: String,
    join: Vec<String>,
    env: Vec<(String, String)>,
    shim: Option<Shim>,
    /// Of another build, to start next time; the one under test when there is none.
    pub binary: Option<PathBuf>,
    /// It was told to end.
    stopping: bool,
    pub(super) process: Option<Process>,
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
}

impl Node {
    /// Starts a node in `dir/NAME` that joins through `join`, and waits until it is bound.
    ///
    /// # Errors
    /// When it ends or does not bind; with its log.
    pub async fn start(
        dir: &Path,
        name: &str,
        join: &[String],
        env: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let mut node = Self::prepare(dir, name, join, env, None, None)?;
        node.launch().await?;
        Ok(node)
    }

    /// A node that has an address and is not started yet. It is an end of links if it is `on` some, and runs with a library
    /// preloaded if there is a `shim`.
    ///
    /// # Errors
    /// When there is no address for it.
    pub fn prepare(
        dir: &Path,
        name: &str,
        join: &[String],
        env: &[(String, String)],
        on: Option<(&Links, End)>,
        shim: Option<Shim>,
    ) -> anyhow::Result<Self> {
        let listen = kept_address()?;
        let addr = match on {
            Some((links, end)) => links.attach(end, &listen)?,
            None => listen.clone(),
        };
        Ok(Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
            data_dir: dir.join(name),
            listen,
            addr,
            end: on.map(|(_, end)| end),
            retired: false,
            excuses: Vec::new(),
            admin: String::new(),
            join: join.to_vec(),
            env: env.iter().cloned().chain(shim.iter().flat_map(Shim::env)).collect(),
            shim,
            binary: None,
            stopping: false,
            process: None,
        })
    }

    /// Starts it again on its data directory and its old address.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn launch(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        let what = format!("{} to bind", self.name);
        let bound = until(BIND_LIMIT, &what, || {
            let looked = self.look_bound();
            async move {
                // Ended for good: what comes next would only hide it.
                looked.map_or_else(|ended| Ok(Err(ended)), |bound| bound.map(Ok))
            }
        })
        .await
        .and_then(|bound| bound);
        if let Err(error) = bound {
            let tail = self.process.take().map(|process| process.log_tail(30));
            return Err(error.context(tail.unwrap_or_default()));
        }
        Ok(())
    }

    /// Starts its process, and does not wait.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "{} still runs", self.name);
        let data_dir = self.data_dir.to_string_lossy().into_owned();
        let mut args = strings(&[
            "node",
            "--data-dir",
            &data_dir,
            "--listen",
            &self.listen,
            "--admin-listen",
            "127.0.0.1:0",
        ]);
        if let Some(outbound) = self.end.and_then(End::outbound) {
            args.extend(["--advertise".to_owned(), self.addr.clone()]);
            args.extend(["--set".to_owned(), format!("outbound-address={outbound}")]);
        }
        if !self.join.is_empty() {
            args.extend(["--join".to_owned(), self.join.join(",")]);
        }
        let process = Process::start_as(self.binary.as_deref(), &self.name, &self.dir, &args, &self.env)?;
        self.stopping = false;
        self.process = Some(process);
        Ok(())
    }

    /// Whether the process that was started is bound by now: inside, why it is not yet.
    ///
    /// # Errors
    /// When it has ended, or runs without the library that was to be preloaded.
    pub fn look_bound(&mut self) -> anyhow::Result<anyhow::Result<()>> {
        let process = self.process.as_mut().context("it does not run")?;
        if let Some(status) = process.ended()? {
            anyhow::bail!("it ended: {status}");
        }
        let pid = process.pid();
        let runtime = match read_json::<Runtime>(&self.data_dir.join("runtime.json")) {
            Ok(runtime) => runtime,
            Err(error) => return Ok(Err(error)),
        };
        // A file of the process before is not yet the new one's.
        if runtime.pid != pid {
            return Ok(Err(anyhow::anyhow!("runtime.json is of process {}", runtime.pid)));
        }
        if let Some(shim) = &self.shim {
            let loaded = shim.get(Word::Loaded)?;
            ensure!(loaded == u64::from(pid), "the preloaded library is in process {loaded}, not {pid}");
        }
        (self.addr, self.admin) = (runtime.addr, runtime.admin);
        Ok(Ok(()))
    }

    /// Who it is, once it has joined.
    ///
    /// # Errors
    /// When it has not.
    pub fn identity(&self) -> anyhow::Result<Identity> {
        read_json(&self.data_dir.join("identity.json"))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn running(&self) -> bool {
        self.process.is_some()
    }

    /// Orders for the library preloaded into it.
    ///
    /// # Errors
    /// When it runs without.
    pub fn shim(&self) -> anyhow::Result<&Shim> {
        self.shim.as_ref().with_context(|| format!("{} has no library preloaded", self.name))
    }

    /// From now on it may end by itself, if it says why.
    pub fn excuse(&mut self, excuse: Excuse) {
        if !self.excuses.contains(&excuse) {
            self.excuses.push(excuse);
        }
    }

    /// The faults that entitle it to have ended by itself, as its log tells; none while it runs, or when it was told to end.
    ///
    /// # Errors
    /// Of the system call.
    pub fn excused_by(&mut self) -> anyhow::Result<Vec<&'static str>> {
        if self.excuses.is_empty() || self.stopping || self.retired {
            return Ok(Vec::new());
        }
        let Some(process) = self.process.as_mut() else { return Ok(Vec::new()) };
        if process.ended()?.is_none() {
            return Ok(Vec::new());
        }
        let log = process.stderr();
        let tells = |excuse: &&Excuse| excuse.told_by.iter().any(|word| log.contains(word));
        Ok(self.excuses.iter().filter(tells).map(|excuse| excuse.fault).collect())
    }

    /// Whether it has ended by itself, as a fault entitles it to; then it does not run any longer.
    ///
    /// # Errors
    /// Of the system call.
    pub fn take_excused(&mut self) -> anyhow::Result<bool> {
        let excused = !self.excused_by()?.is_empty();
        if excused {
            self.process = None;
        }
        Ok(excused)
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The process, while it runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn process(&mut self) -> anyhow::Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} does not run", self.name))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.process.as_ref().with_context(|| format!("{} does not run", self.name))?.signal(signal)
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run, or has ended without having been told to and without an excuse.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let told_to = self.stopping || self.retired;
        if let Some(status) = self.process()?.ended()?.filter(|_| !told_to) {
            // Else left as it is: the run is to find it.
            ensure!(!self.excused_by()?.is_empty(), "{} ended by itself, {status}", self.name);
        }
        self.process()?.kill()?;
        self.process = None;
        Ok(())
    }

    /// Waits for its end, which it comes to by itself.
    ///
    /// # Errors
    /// When it has not ended after `limit`.
    pub async fn wait_end(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let process = self.process()?;
        let ended = process.wait_end(limit).await.with_context(|| process.log_tail(30))?;
        self.process = None;
        Ok(ended)
    }

    /// SIGTERM, and does not wait.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.stopping = true;
        Ok(())
    }

    /// Whether the process of this id is gone by now.
    ///
    /// # Errors
    /// Of the system call.
    pub fn look_ended(&mut self, pid: u32) -> anyhow::Result<bool> {
        let Some(process) = self.process.as_mut().filter(|process| process.pid() == pid) else {
            return Ok(true);
        };
        if process.ended()?.is_some() {
            self.process = None;
            return Ok(true);
        }
        Ok(false)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.stopping = true;
        let process = self.process()?;
        let ended = process.terminate(STOP_LIMIT).await.with_context(|| process.log_tail(30));
        if ended.is_ok() {
            self.process = None;
        }
        ended
    }
}
