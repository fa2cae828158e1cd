//! The router of a local cluster.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{STOP_GRACE, Shared, local};
use crate::process::{Launch, Process, log_tail, poll_until};

/// A `borough router` process.
#[derive(Debug)]
pub struct LocalRouter {
    shared: Arc<Shared>,
    process: Process,
}

impl LocalRouter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, process: Process::new("router") }
    }

    /// `http://127.0.0.1:PORT`, the same at every start.
    pub fn url(&self) -> String {
        format!("http://{}", local(self.shared.layout().router_port))
    }

    pub fn log(&self) -> PathBuf {
        self.shared.options.data_dir.join("router.log")
    }

    /// While it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// The process itself, for pauses and signals.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Starts it and returns when it accepts connections.
    ///
    /// # Errors
    /// When it runs already, ends at once, or does not accept in time.
    pub async fn start(&self) -> Result<()> {
        self.process.start(&self.launch())?;
        let addr = local(self.shared.layout().router_port);
        let deadline = Instant::now() + self.shared.options.step_timeout;
        let accepts = async || match self.check_alive() {
            Ok(()) => TcpStream::connect(addr).await.ok().map(|_| Ok(())),
            Err(ended) => Some(Err(ended)),
        };
        match poll_until(deadline, accepts).await {
            Some(answer) => answer,
            None => bail!("the router does not listen; its log ends with:\n{}", log_tail(&self.log(), 10)),
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
    pub async fn kill9(&self) -> Result<()> {
        self.process.kill9().await?;
        Ok(())
    }

    /// SIGTERM, and SIGKILL when it has not ended within [`STOP_GRACE`].
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub async fn terminate(&self) -> Result<()> {
        self.process.terminate(STOP_GRACE).await?;
        Ok(())
    }

    /// # Errors
    /// When it is not running, with the end of its log.
    pub fn check_alive(&self) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        let tail = log_tail(&self.log(), 10);
        match self.process.ended() {
            Some(status) => bail!("the router has ended ({status}); its log ends with:\n{tail}"),
            None => bail!("the router has not been started"),
        }
    }

    fn launch(&self) -> Launch {
        let options = &self.shared.options;
        let (port, nodes) = {
            let layout = self.shared.layout();
            let nodes: Vec<_> = layout.nodes.iter().map(|ports| local(ports.grpc).to_string()).collect();
            (layout.router_port, nodes)
        };
        let mut args: Vec<OsString> = vec!["router".into()];
        for (name, value) in [
            ("--listen", local(port).to_string()),
            ("--nodes", nodes.join(",")),
            ("--die-with-parent", std::process::id().to_string()),
        ] {
            args.extend([name.into(), value.into()]);
        }
        args.extend(options.router_args.iter().map(OsString::from));
        Launch {
            binary: options.binary.clone(),
            args,
            env: options.env.clone(),
            env_removed: Shared::env_removed(),
            log: self.log(),
        }
    }
}
