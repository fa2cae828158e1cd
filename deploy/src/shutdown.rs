//! SIGTERM and SIGINT: the first asks for a graceful end, the second ends at once.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::exit::say;

/// A token that the first signal cancels. The watching task ends with the runtime; `tasks` owns it.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn on_signal(tasks: &TaskTracker) -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if cancel.is_cancelled() {
                say("borough: a second signal: ending at once");
                std::process::exit(1);
            }
            cancel.cancel();
        }
    });
    Ok(token)
}
