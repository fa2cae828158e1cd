//! One router's process.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

use super::{BIND_LIMIT, STOP_LIMIT, kept_address, strings};
use crate::http::Http;
use crate::process::Process;

/// A router's process.
#[derive(Debug)]
pub struct Router {
    name: String,
    dir: PathBuf,
    listen: String,
    seeds: Vec<String>,
    args: Vec<String>,
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
        let mut router = Self { name, dir, listen, seeds, args, process: None, http };
        router.launch().await?;
        Ok(router)
    }

    /// Starts it again on its old address.
    ///
    /// # Errors
    /// As [`Router::start`].
    pub async fn launch(&mut self) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the router still runs");
        let mut args = strings(&["router", "--listen", &self.listen, "--nodes", &self.seeds.join(",")]);
        args.extend_from_slice(&self.args);
        let mut process = Process::start(&self.name, &self.dir, &args, &[])?;
        let base = process.line("listening: ", BIND_LIMIT).await?;
        let address = base.trim_start_matches("http://").trim_end_matches('/').to_owned();
        if self.http.base() != base {
            self.http = Http::new(&base)?;
        }
        self.listen = address;
        self.process = Some(process);
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

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        let mut process = self.process.take().context("the router does not run")?;
        process.terminate(STOP_LIMIT).await.with_context(|| process.log_tail(30))
    }
}
