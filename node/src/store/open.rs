//! Opens the configured engine in its directory, which a marker file ties to that engine.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use super::files::{create_dir, failed, sync_dir};
use super::{Engine, FjallEngine, SledEngine, StoreError, unsynced};
use crate::config::EngineKind;

const MARKER: &str = "ENGINE";
const MARKER_NEW: &str = "ENGINE.new";
const CACHE_BYTES_PER_SPACE_MIN: u64 = 1 << 20;

/// Opens the engine in `dir`, creating both when they are new. `cache_bytes` is the bound of its page
/// cache over all spaces, of which `spaces_expected` are expected.
///
/// # Errors
/// [`StoreError::Engine`] when the directory belongs to another engine, otherwise as the engine fails.
pub fn open_engine(
    kind: EngineKind,
    dir: &Path,
    cache_bytes: u64,
    spaces_expected: usize,
) -> Result<Arc<dyn Engine>, StoreError> {
    create_dir(dir)?;
    unsynced::write_again(dir)?;
    let opened = claim(kind, dir).and_then(|()| -> Result<Arc<dyn Engine>, StoreError> {
        Ok(match kind {
            EngineKind::Sled => {
                let per_space = cache_bytes / spaces_expected.max(1) as u64;
                Arc::new(SledEngine::open(dir, per_space.max(CACHE_BYTES_PER_SPACE_MIN))?)
            }
            EngineKind::Fjall => Arc::new(FjallEngine::open(&dir.join("db"), cache_bytes)?),
        })
    });
    match opened {
        // Nothing of another engine was touched.
        Err(error @ StoreError::Engine { .. }) => Err(error),
        opened => unsynced::noted(dir, opened),
    }
}

const KINDS: [EngineKind; 2] = [EngineKind::Sled, EngineKind::Fjall];

fn name(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::Sled => "sled",
        EngineKind::Fjall => "fjall",
    }
}

/// Refuses a directory of another engine; marks a new one.
fn claim(kind: EngineKind, dir: &Path) -> Result<(), StoreError> {
    let refuse =
        |detail: String| StoreError::Engine { operation: "open engine", space: "any".to_owned(), detail };
    let marker = dir.join(MARKER);
    match fs::read(&marker).map(|found| String::from_utf8_lossy(&found).into_owned()) {
        Ok(found) if found.trim_end() == name(kind) => return Ok(()),
        Ok(found) if !KINDS.iter().any(|kind| found.trim_end() == name(*kind)) => {
            return Err(StoreError::Damaged {
                space: "any".to_owned(),
                detail: format!("{} holds {found:?}, which names no engine", marker.display()),
            });
        }
        Ok(found) => {
            let (dir, found, asked) = (dir.display(), found.trim_end(), name(kind));
            return Err(refuse(format!(
                "{dir} belongs to the engine {found:?}, not {asked:?}: set engine back to {found:?}, \
                 or drain this node and start it with an empty data directory"
            )));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("read", &marker)(e)),
    }
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let found = entry.map_err(failed("list", dir))?.file_name();
        if found != MARKER_NEW {
            let dir = dir.display();
            return Err(refuse(format!(
                "{dir} holds {found:?} but no engine marker; it must be empty to be new"
            )));
        }
    }
    let new = dir.join(MARKER_NEW);
    fs::File::create(&new)
        .and_then(|mut file| {
            writeln!(file, "{}", name(kind))?;
            file.sync_all()
        })
        .map_err(failed("write", &new))?;
    fs::rename(&new, &marker).map_err(failed("rename", &marker))?;
    // Sync the directory too, or a crash loses the new name (I3).
    sync_dir(dir)
}
