//! Named places at which a test ends the process as `kill -9` would.
//!
//! Only with the feature `crash-points`, which no build has that is not told so; else a place is nothing. A test arms a
//! place by a file of its name in `crash-points` in the node's data directory, while the node runs. It is used up before
//! the process ends, so that the next start goes past it.

#[cfg(feature = "crash-points")]
mod armed {
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;

    use nix::sys::signal::{Signal, raise};

    static DIR: OnceLock<PathBuf> = OnceLock::new();

    pub fn watch(data_dir: &Path) {
        // Of several nodes in one process the first has them.
        let _ = DIR.set(data_dir.join("crash-points"));
    }

    pub fn reached(place: &str) {
        let Some(dir) = DIR.get() else { return };
        if std::fs::remove_file(dir.join(place)).is_ok() {
            tracing::error!(place, "crash point");
            let _ = raise(Signal::SIGKILL);
        }
    }
}

#[cfg(not(feature = "crash-points"))]
mod armed {
    use std::path::Path;

    pub fn watch(_data_dir: &Path) {}

    pub fn reached(_place: &str) {}
}

/// Looks for armed places in this node's data directory.
pub use armed::watch;

/// Ends the process if `place` is armed.
pub use armed::reached;
