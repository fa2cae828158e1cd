//! After an fsync that failed: what is in the page cache counts as clean and may be on no disk.
//!
//! The node ends then. Its next start would read those pages, find the data whole, and the next fsync would not write them: a loss of
//! power would take what the log had been let go for (I2). So a marker is left that need not outlive a loss of power, as the
//! page cache does not, and the next start writes every file's bytes once more and syncs them before it opens the engine. The
//! bytes are the same, so a crash in that leaves what was there.
//!
//! What Linux does, and what stores make of it: Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC
//! 2020.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::StoreError;
use super::files::{failed, sync_dir};

/// In the engine's directory while some of its files may not be what the disk holds.
pub(super) const MARKER: &str = "UNSYNCED";
const CHUNK_BYTES: usize = 1 << 20;

/// [`noted`] by a part of the engine, a directory in its own.
pub(super) fn noted_in<T>(part: &Path, result: Result<T, StoreError>) -> Result<T, StoreError> {
    match part.parent() {
        Some(engine) => noted(engine, result),
        None => result,
    }
}

/// Leaves the marker in `engine` if `result` is that writing or syncing failed.
pub(super) fn noted<T>(engine: &Path, result: Result<T, StoreError>) -> Result<T, StoreError> {
    if let Err(StoreError::Io { .. } | StoreError::Engine { .. }) = &result
        && let Err(error) = File::create(engine.join(MARKER))
    {
        let engine = engine.display();
        tracing::error!(%engine, %error, "the next start will not know that the engine's files may not be on the disk");
    }
    result
}

/// Writes the engine's files once more and syncs them, if they may not be on the disk.
///
/// # Errors
/// [`StoreError::Io`] when a file cannot be read, written or synced; the marker stays.
pub(super) fn write_again(engine: &Path) -> Result<(), StoreError> {
    let marker = engine.join(MARKER);
    if !marker.exists() {
        return Ok(());
    }
    tracing::warn!(engine = %engine.display(), "an fsync has failed before: all files are written again");
    rewrite_below(engine)?;
    fs::remove_file(&marker).map_err(failed("remove", &marker))?;
    sync_dir(engine)
}

fn rewrite_below(dir: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let entry = entry.map_err(failed("list", dir))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(failed("examine", &path))?;
        if kind.is_dir() {
            rewrite_below(&path)?;
        } else if kind.is_file() {
            rewrite(&path).map_err(failed("write again", &path))?;
        }
    }
    sync_dir(dir)
}

fn rewrite(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    loop {
        let read = file.read_at(&mut buffer, offset)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        file.write_all_at(bytes, offset)?;
        offset += read as u64;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Result<(), StoreError> {
        Err(failed("sync", Path::new("x"))(io::Error::from_raw_os_error(5)))
    }

    #[test]
    fn files_are_written_again_once_and_hold_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("ENGINE", 5),
            ("r1-g0/db", 3 * CHUNK_BYTES + 7),
            ("r1-g0/blobs/1", CHUNK_BYTES),
            ("r1-g0/empty", 0),
        ];
        let content = |name: &str, bytes: usize| -> Vec<u8> { name.bytes().cycle().take(bytes).collect() };
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content(name, bytes)).unwrap();
        }
        let changed = |name: &str| fs::metadata(dir.path().join(name)).unwrap().modified().unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        let make_old = || {
            for (name, _) in files {
                File::options().write(true).open(dir.path().join(name)).unwrap().set_modified(old).unwrap();
            }
        };
        make_old();
        assert!(noted(dir.path(), Ok(())).is_ok());
        let damage = StoreError::Damaged { space: "any".to_owned(), detail: String::new() };
        assert!(noted::<()>(dir.path(), Err(damage)).is_err());
        write_again(dir.path()).unwrap();
        assert!(files.iter().all(|(name, _)| changed(name) == old), "nothing has failed");
        assert!(noted(dir.path(), failure()).is_err());
        write_again(dir.path()).unwrap();
        for (name, bytes) in files {
            assert_eq!(fs::read(dir.path().join(name)).unwrap(), content(name, bytes), "{name}");
            assert_eq!(changed(name) == old, bytes == 0, "{name}");
        }
        make_old();
        write_again(dir.path()).unwrap();
        assert!(files.iter().all(|(name, _)| changed(name) == old), "once");
    }
}
