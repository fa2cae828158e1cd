//! How a command ends: what it says and which exit code it leaves.

use std::io::{self, Write};
use std::process::ExitCode;

use borough_client::Error as ClientError;

use crate::settings::ConfigError;

/// The operation failed.
const FAILED: u8 = 1;
/// Usage, as clap leaves it.
const USAGE: u8 = 2;
/// `EX_IOERR`: the data directory cannot be used.
const DATA_DIR: u8 = 74;
/// `EX_CONFIG`.
const CONFIG: u8 = 78;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("borough: {0}")]
    Usage(String),
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("borough: {0}")]
    DataDir(String),
    #[error("borough: {0:#}")]
    Failed(#[from] anyhow::Error),
}

impl Failure {
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Config(_) => CONFIG,
            Self::DataDir(_) => DATA_DIR,
            Self::Failed(_) => FAILED,
        }
    }

    /// Tells it on stderr.
    pub fn report(&self) -> ExitCode {
        // `borough export | head`: the reader has what it wants.
        if let Self::Failed(error) = self
            && error.chain().any(is_broken_pipe)
        {
            return ExitCode::SUCCESS;
        }
        say(&self.to_string());
        ExitCode::from(self.code())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.into())
    }
}

/// Only of our own stdout: a broken connection has another error above it.
fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<StdoutClosed>().is_some()
}

/// Whoever reads stdout has closed it.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
struct StdoutClosed;

/// One line for a person on stderr.
pub fn say(line: &str) {
    // With stderr closed there is nobody to tell.
    let _unheard = writeln!(io::stderr().lock(), "{line}");
}

/// Writes to stdout, where the result of a command goes.
///
/// # Errors
/// When stdout cannot be written.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("write to stdout")),
    }
}
