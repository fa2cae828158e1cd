//! The library that is preloaded into nodes, to make faults of disk and clocks: found or built, ordered about, read back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;

use crate::binary;

#[path = "../preload/src/layout.rs"]
pub mod layout;
mod loss;
mod records;
mod undo;

use layout::{CONTROL, CONTROL_BYTES, DIR_VARIABLE, GRAVE, JOURNAL, ROOT_VARIABLE, Word};
pub use loss::Unsynced;
pub use undo::Loss;

/// The library, once it has been seen to load into the binary under test.
///
/// # Errors
/// Why faults of disk and clocks cannot be made here.
pub fn library() -> anyhow::Result<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match FOUND.get_or_init(|| find().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(reason) => anyhow::bail!("faults of disk and clocks need a preloaded library: {reason}"),
    }
}

fn find() -> anyhow::Result<PathBuf> {
    ensure!(cfg!(target_os = "linux"), "there is one for Linux alone");
    let library = binary::preload()?.canonicalize().context("the library's path")?;
    let dir = tempfile::tempdir().context("make a directory")?;
    let shim = Shim::create(&library, &dir.path().join("faults"), &dir.path().join("data"), false)?;
    let output = Command::new(binary::path()?).arg("--version").envs(shim.env()).output();
    let output = output.context("run borough --version")?;
    ensure!(output.status.success(), "borough --version with it: {}", output.status);
    // A binary that is linked statically, or against another C library, ignores it.
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(shim.get(Word::Loaded)? != 0, "it does not load into the binary: {told}");
    Ok(library)
}

/// Orders for the library in one process after the other, all on the same directory.
#[derive(Debug)]
pub struct Shim {
    library: PathBuf,
    dir: PathBuf,
    root: PathBuf,
    control: File,
}

impl Shim {
    /// For processes that keep their files in `root`; `dir` is the library's own, on the same file system. With `journal`,
    /// their power can be lost.
    ///
    /// # Errors
    /// Of the file system.
    pub fn create(library: &Path, dir: &Path, root: &Path, journal: bool) -> anyhow::Result<Self> {
        let make = || {
            std::fs::create_dir_all(dir.join(GRAVE))?;
            let mut options = OpenOptions::new();
            let control =
                options.read(true).write(true).create(true).truncate(true).open(dir.join(CONTROL))?;
            control.set_len(CONTROL_BYTES)?;
            std::io::Result::Ok(control)
        };
        let control = make().with_context(|| format!("make {}", dir.display()))?;
        let shim = Self { library: library.to_owned(), dir: dir.to_owned(), root: root.to_owned(), control };
        shim.set(Word::Journal, u64::from(journal))?;
        Ok(shim)
    }

    /// What a process must be started with.
    pub fn env(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        vec![
            ("LD_PRELOAD".to_owned(), text(&self.library)),
            (DIR_VARIABLE.to_owned(), text(&self.dir)),
            (ROOT_VARIABLE.to_owned(), text(&self.root)),
        ]
    }

    /// Gives an order; it counts from the process's next call.
    ///
    /// # Errors
    /// Of the file system.
    pub fn set(&self, word: Word, value: u64) -> anyhow::Result<()> {
        self.control.write_all_at(&value.to_ne_bytes(), word as u64 * 8).context("write the control page")
    }

    /// An order, or a count.
    ///
    /// # Errors
    /// Of the file system.
    pub fn get(&self, word: Word) -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, word as u64 * 8).context("read the control page")?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Leaves of the files what would be there after a loss of power; `rng` decides about what was not synced. The process
    /// has been killed.
    ///
    /// # Errors
    /// When there is no whole journal, and of the file system.
    pub fn lose_power(&self, rng: &mut StdRng) -> anyhow::Result<Loss> {
        ensure!(self.get(Word::Journal)? != 0, "no journal was kept");
        ensure!(self.get(Word::JournalErrors)? == 0, "the journal has holes");
        let (journal, grave) = (self.dir.join(JOURNAL), self.dir.join(GRAVE));
        let bytes = std::fs::read(&journal).with_context(|| format!("read {}", journal.display()))?;
        let unsynced = Unsynced::of(&bytes);
        ensure!(unsynced.records > 0, "the journal is empty");
        let loss = undo::apply(unsynced, &self.root, &grave, rng).context("undo what was not synced")?;
        // What is there now is what the disk holds.
        let clear = || {
            std::fs::remove_dir_all(&grave)?;
            std::fs::create_dir(&grave)?;
            File::create(&journal).map(drop)
        };
        clear().context("begin a new journal")?;
        Ok(loss)
    }
}

#[cfg(test)]
#[path = "preload/tests.rs"]
mod tests;
