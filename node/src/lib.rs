//! The storage-and-cache node of Borough.
//!
//! Dependencies point one way: `rpc → raft → {wal, state → store}`, `placement → raft`; the `cache`
//! is read by `rpc` and written by apply. Only `raft` names openraft and only `store/sled.rs` names sled.

pub mod config;
pub mod state;
pub mod store;
pub mod wal;
pub use config::Config;

use tokio_util::sync::CancellationToken;
/// Why the node ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("data directory {}: {detail}", path.display())]
    DataDir { path: std::path::PathBuf, detail: String },
    #[error("{0:#}")]
    Failed(anyhow::Error),
}
/// Runs a node until `shutdown` is cancelled, then leaves gracefully.
pub async fn run(_config: Config, _shutdown: CancellationToken) -> Result<(), RunError> {
    Err(RunError::Failed(anyhow::anyhow!("interim")))
}
