//! Directories of an engine: names of spaces, fsync of entries, removal that survives a crash.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use borough_proto::ReplicaId;

use super::{SpaceId, StoreError};

const TRASH_PREFIX: &str = "trash-";

pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { operation, path: path.to_owned(), source }
}

/// Makes names that were created, renamed or removed in `path` durable (I3).
pub(super) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("sync directory", path))
}

/// Syncs a file that may be absent; whether it was there.
pub(super) fn sync_file_if_any(path: &Path) -> Result<bool, StoreError> {
    match File::open(path).and_then(|file| file.sync_all()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("sync", path)(e)),
    }
}

/// Creates `path` durably; whether it was absent.
pub(super) fn create_dir(path: &Path) -> Result<bool, StoreError> {
    if path.is_dir() {
        return Ok(false);
    }
    fs::create_dir_all(path).map_err(failed("create directory", path))?;
    if let Some(parent) = path.parent() {
        sync_dir(parent)?;
    }
    Ok(true)
}

/// `r5-g2` → replica 5, generation 2. `None` for names that are no space's.
pub(super) fn parse_space(name: &str) -> Option<SpaceId> {
    let (replica, generation) = name.strip_prefix('r')?.split_once("-g")?;
    let id = SpaceId { replica: ReplicaId(replica.parse().ok()?), generation: generation.parse().ok()? };
    (id.to_string() == name).then_some(id)
}

/// Spaces with a directory in `dir`, in order.
pub(super) fn list_spaces(dir: &Path) -> Result<Vec<SpaceId>, StoreError> {
    let mut spaces = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let entry = entry.map_err(failed("list", dir))?;
        spaces.extend(entry.file_name().to_str().and_then(parse_space));
    }
    spaces.sort_unstable();
    Ok(spaces)
}

/// Removes a directory so that a crash leaves it whole or gone: renamed first, and what is left
/// under the new name is removed by [`empty_trash`]. Absent is fine.
pub(super) fn remove_dir(parent: &Path, name: &str) -> Result<(), StoreError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = parent.join(name);
    let trash = loop {
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let candidate = parent.join(format!("{TRASH_PREFIX}{name}-{unique}"));
        if !candidate.exists() {
            break candidate;
        }
    };
    match fs::rename(&path, &trash) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("rename to trash", &path)(e)),
    }
    sync_dir(parent)?;
    fs::remove_dir_all(&trash).map_err(failed("remove", &trash))
}

/// Removes what earlier removals left behind.
pub(super) fn empty_trash(dir: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let entry = entry.map_err(failed("list", dir))?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(TRASH_PREFIX)) {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
        }
    }
    Ok(())
}

/// Bytes that the file system holds for everything below `path`. Files that vanish meanwhile count nothing.
pub(super) fn allocated_bytes(path: &Path) -> Result<u64, StoreError> {
    const STAT_BLOCK_BYTES: u64 = 512;
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if gone(&e) => return Ok(0),
        Err(e) => return Err(failed("measure", path)(e)),
    };
    if !metadata.is_dir() {
        return Ok(metadata.blocks() * STAT_BLOCK_BYTES);
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if gone(&e) => return Ok(0),
        Err(e) => return Err(failed("measure", path)(e)),
    };
    let mut bytes = 0;
    for entry in entries {
        bytes += allocated_bytes(&entry.map_err(failed("measure", path))?.path())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_names_are_spaces() {
        let id = SpaceId { replica: ReplicaId(5), generation: 2 };
        assert_eq!(parse_space(&id.to_string()), Some(id));
        for name in ["r5", "5-g2", "r5-g", "r05-g2", "r5-g2x", "trash-r5-g2-0", "ENGINE", "r+5-g2"] {
            assert_eq!(parse_space(name), None, "{name}");
        }
    }

    #[test]
    fn interrupted_removal_is_finished_later() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("trash-r1-g0-0");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("db"), "x").unwrap();
        fs::create_dir(dir.path().join("r1-g0")).unwrap();
        remove_dir(dir.path(), "r1-g0").unwrap();
        remove_dir(dir.path(), "r1-g0").unwrap();
        assert!(left.exists(), "another removal's trash is not ours");
        empty_trash(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
