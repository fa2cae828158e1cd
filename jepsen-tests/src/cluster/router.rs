//! One router's process.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

use super::{BIND_LIMIT, STOP_LIMIT, kept_address, strings};
use crate::http::Http;
use crate::process::Process;

/// How its line begins that tells where it listens.
const LISTENING: &str = "listening: ";

/// A router's process.
#[derive(Debug)]
pub struct Router {
    name: String,
    dir: PathBuf,
    listen: String,
    seeds: Vec<String>,
    args: Vec<String>,
    /// Of another build, to start next time; the one under test when there is none.
    pub binary: Option<PathBuf>,
    pub(super) process: Option<Process>,
    pub http: Http,
}

impl Router {
    /// Starts a router that finds the cluster through `seeds`; its log is named `name`.
    ///
    /// # Errors
    /// When it does not listen; with its log.
    pub async fn start(dir: &Path, name: &str, seeds: &[String]) -> anyhow::Result<Self> {
        Self::start_with(dir, name, seeds, &[]).await
    }

    /// [`Router::start`] with more arguments, such as `--config FILE`.
    ///
    /// # Errors
    /// As [`Router::start`].
    pub async fn start_with(dir: &Path, name: &str, seeds: &[String], args: &[&str]) -> anyhow::Result<Self> {
        let listen = kept_address()?;
        let http = Http::new(&format!("http://{listen}"))?;
        let (name, dir) = (name.to_owned(), dir.to_owned());
        let (seeds, args) = (seeds.to_vec(), strings(args));
        let mut router = Self { name, dir, listen, seeds, args, binary: None, process: None, http };
        router.launch().await?;
        Ok(router)
    }

    /// Starts it again on its old address.
    ///
    /// # Errors
    /// As [`Router::start`].
    pub async fn launch(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        let process = self.process.as_mut().context("the router does not run")?;
        match process.line(LISTENING, BIND_LIMIT).await {
            Ok(base) => self.listens(&base),
            Err(error) => {
                self.process = None;
                Err(error)
            }
        }
    }

    /// Starts its process, and does not wait.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the router still runs");
        let mut args = strings(&["router", "--listen", &self.listen, "--nodes", &self.seeds.join(",")]);
        args.extend_from_slice(&self.args);
        self.process = Some(Process::start_as(self.binary.as_deref(), &self.name, &self.dir, &args, &[])?);
        Ok(())
    }

    /// Whether the process that was started listens by now.
    ///
    /// # Errors
    /// When it has ended.
    pub fn look_bound(&mut self) -> anyhow::Result<bool> {
        let process = self.process.as_mut().context("the router does not run")?;
        if let Some(status) = process.ended()? {
            anyhow::bail!("the router ended: {status}: {}", process.log_tail(20));
        }
        match process.whole_line(LISTENING) {
            Some(base) => self.listens(&base).map(|()| true),
            None => Ok(false),
        }
    }

    fn listens(&mut self, base: &str) -> anyhow::Result<()> {
        base.trim_start_matches("http://").trim_end_matches('/').clone_into(&mut self.listen);
        if self.http.base() != base {
            self.http = Http::new(base)?;
        }
        Ok(())
    }

    /// The nodes that it looks for at its next start: those of before may be gone.
    pub fn reseed(&mut self, seeds: &[String]) {
        self.seeds = seeds.to_vec();
    }

    pub fn running(&self) -> bool {
        self.process.is_some()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.process.as_ref().context("the router does not run")?.signal(signal)
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("the router does not run")?.kill()
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
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
        let mut process = self.process.take().context("the router does not run")?;
        process.terminate(STOP_LIMIT).await.with_context(|| process.log_tail(30))
    }
}
