//! One node of a local cluster.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail};
use tokio::time::Instant;

use super::layout::{self, Identity, Runtime};
use super::{STOP_GRACE, Shared, local};
use crate::process::{Ended, Launch, Process, log_tail, poll_until};

/// A `borough node` process with its directory.
#[derive(Debug)]
pub struct LocalNode {
    number: usize,
    shared: Arc<Shared>,
    process: Process,
    extra: Mutex<Extra>,
}

#[derive(Debug, Clone, Default)]
struct Extra {
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl LocalNode {
    pub(super) fn new(number: usize, shared: Arc<Shared>) -> Self {
        Self { number, shared, process: Process::new(format!("node-{number}")), extra: Mutex::default() }
    }

    /// Counted from 1; the node's id is in its [`identity`](Self::identity).
    pub fn number(&self) -> usize {
        self.number
    }

    /// `node-1`.
    pub fn name(&self) -> &str {
        self.process.name()
    }

    pub fn data_dir(&self) -> PathBuf {
        layout::node_dir(&self.shared.options.data_dir, self.number)
    }

    pub fn log(&self) -> PathBuf {
        self.shared.options.data_dir.join(format!("{}.log", self.name()))
    }

    /// Its gRPC address, the same at every start.
    pub fn addr(&self) -> SocketAddr {
        local(self.ports().grpc)
    }

    /// Its address for `/livez`, `/readyz` and `/metrics`.
    pub fn admin(&self) -> SocketAddr {
        local(self.ports().admin)
    }

    fn ports(&self) -> layout::Ports {
        let ports = self.shared.layout().nodes.get(self.number - 1).copied();
        ports.unwrap_or(layout::Ports { grpc: 0, admin: 0 })
    }

    /// Who it is, once the cluster has told it.
    pub fn identity(&self) -> Option<Identity> {
        layout::read_identity(&self.data_dir())
    }

    /// What the running node says about itself; `None` until it is bound.
    pub fn runtime(&self) -> Option<Runtime> {
        let pid = self.pid()?;
        layout::read_runtime(&self.data_dir()).filter(|runtime| runtime.pid == pid)
    }

    /// While it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// The process itself, for signals that have no method here.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// More arguments and environment for this node alone, from its next start on.
    pub fn set_extra(&self, args: Vec<String>, env: Vec<(String, String)>) {
        *self.extra.lock().unwrap_or_else(PoisonError::into_inner) = Extra { args, env };
    }

    /// Starts it and returns when it is bound.
    ///
    /// # Errors
    /// When it runs already, ends at once, or is not bound in time.
    pub async fn start(&self) -> Result<()> {
        self.process.start(&self.launch())?;
        let deadline = Instant::now() + self.shared.options.step_timeout;
        let bound = async || match self.check_alive() {
            Ok(()) => self.runtime().map(|_| Ok(())),
            Err(ended) => Some(Err(ended)),
        };
        match poll_until(deadline, bound).await {
            Some(answer) => answer,
            None => bail!("{} is not bound; its log ends with:\n{}", self.name(), log_tail(&self.log(), 10)),
        }
    }

    /// Ends it gracefully if it runs, and starts it again.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&self) -> Result<()> {
        self.terminate().await?;
        self.start().await
    }

    /// `kill -9`; returns when it is gone.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub async fn kill9(&self) -> Result<Option<ExitStatus>> {
        Ok(self.process.kill9().await?)
    }

    /// SIGTERM, and SIGKILL when it has not ended within [`STOP_GRACE`].
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub async fn terminate(&self) -> Result<Option<Ended>> {
        Ok(self.process.terminate(STOP_GRACE).await?)
    }

    /// Stops it in its tracks until [`Self::cont`].
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&self) -> Result<()> {
        Ok(self.process.pause()?)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it is not running.
    pub fn cont(&self) -> Result<()> {
        Ok(self.process.cont()?)
    }

    /// # Errors
    /// When it is not running, with the end of its log.
    pub fn check_alive(&self) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        let tail = log_tail(&self.log(), 10);
        match self.process.ended() {
            Some(status) => bail!("{} has ended ({status}); its log ends with:\n{tail}", self.name()),
            None => bail!("{} has not been started", self.name()),
        }
    }

    fn launch(&self) -> Launch {
        let options = &self.shared.options;
        let extra = self.extra.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut args: Vec<OsString> = vec!["node".into(), "--data-dir".into(), self.data_dir().into()];
        let mut option = |name: &str, value: String| args.extend([name.into(), value.into()]);
        option("--listen", self.addr().to_string());
        option("--admin-listen", self.admin().to_string());
        option("--die-with-parent", std::process::id().to_string());
        let own = self.addr();
        let (engine, others) = {
            let layout = self.shared.layout();
            let addrs = layout.nodes.iter().map(|ports| local(ports.grpc));
            let others: Vec<_> = addrs.filter(|addr| *addr != own).map(|addr| addr.to_string()).collect();
            (layout.engine.clone(), others)
        };
        if let Some(engine) = engine {
            option("--engine", engine);
        }
        // The first node of a new cluster has nobody to join: it is the one that is initialised.
        let joins = self.number > 1 || self.identity().is_some();
        if joins && !others.is_empty() {
            option("--join", others.join(","));
        }
        args.extend(options.node_args.iter().chain(&extra.args).map(OsString::from));
        let env = options.env.iter().chain(&extra.env).cloned().collect();
        Launch {
            binary: options.binary.clone(),
            args,
            env,
            env_removed: Shared::env_removed(),
            log: self.log(),
        }
    }
}
