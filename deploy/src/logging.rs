//! Logs: to stderr, as text for people or JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::{LogArgs, LogFormat};
use crate::exit::Failure;

/// What services log. openraft warns of every message to a peer that is away; what a person can act on is logged above it.
pub const SERVICE: &str = "info,openraft=error";
/// What other commands log.
pub const COMMAND: &str = "warn,openraft=error";

/// Sets up logging; `default_filter` is what is logged unless the caller or `RUST_LOG` says otherwise.
///
/// # Errors
/// When the filter cannot be read.
pub fn init(args: &LogArgs, default_filter: &str) -> Result<(), Failure> {
    let inherited = || std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let text = args.log.clone().or_else(inherited).unwrap_or_else(|| default_filter.to_owned());
    let filter =
        EnvFilter::try_new(&text).map_err(|error| Failure::Usage(format!("--log {text:?}: {error}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.with_ansi(colour()).try_init(),
    };
    set.map_err(|error| Failure::Failed(anyhow::anyhow!("set up logging: {error}")))
}

/// Colour on a terminal, unless `NO_COLOR` is set (no-color.org).
fn colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
