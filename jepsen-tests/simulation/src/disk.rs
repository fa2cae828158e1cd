//! What of a node's files would be left if the power failed now.
//!
//! The files are real ones. Each `fsync` of one takes down its content, each of a directory the names in it: that is
//! what is durable. A power loss keeps it, and of what came later some sectors and names by chance, as a disk does; the
//! directory that a node finds after it is made anew from that.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::{network, trace};

/// A disk writes this much or nothing of it.
const SECTOR_BYTES: usize = 512;

static DISKS: Mutex<Option<Disks>> = Mutex::new(None);

/// All nodes' disks.
struct Disks {
    rng: StdRng,
    /// Below which the nodes' directories are.
    here: PathBuf,
    /// `fdatasync` writes what the one before it should have written.
    lies: bool,
    /// By the nodes' directories.
    shadows: BTreeMap<PathBuf, Shadow>,
}

/// What is durable below one directory.
#[derive(Default)]
struct Shadow {
    /// By inode.
    files: BTreeMap<u64, Durable>,
    /// The names in each directory.
    directories: BTreeMap<PathBuf, BTreeMap<OsString, u64>>,
    /// The power fails at the next `fsync`; `Some` once it has.
    cut: Cut,
}

#[derive(Default)]
enum Cut {
    #[default]
    No,
    AtNextSync,
    /// And this was left.
    Done(Image),
}

struct Durable {
    content: Vec<u8>,
    /// Acknowledged, by a disk that lies, and not yet written.
    late: Option<Vec<u8>>,
    /// Keeps the inode's number from being given to another file.
    file: File,
}

/// Files by their paths below the node's directory.
type Image = BTreeMap<PathBuf, Vec<u8>>;

/// Begins. With `lies` the disks acknowledge an `fdatasync` before they have written, which they do at the next.
pub fn begin(seed: u64, lies: bool) -> io::Result<()> {
    let (rng, here) = (StdRng::seed_from_u64(seed), std::env::current_dir()?);
    *DISKS.lock() = Some(Disks { rng, here, lies, shadows: BTreeMap::new() });
    Ok(())
}

/// From now on what becomes durable below `root` is taken down. What is there now is durable.
pub fn attach(root: &Path) -> io::Result<()> {
    let mut shadow = Shadow::default();
    for directory in directories(root)? {
        for (name, inode) in names(&directory)? {
            let path = directory.join(&name);
            if path.is_file() {
                let file = File::open(&path)?;
                shadow.files.insert(inode, Durable { content: fs::read(&path)?, late: None, file });
            }
        }
        let listed = names(&directory)?;
        shadow.directories.insert(directory, listed);
    }
    if let Some(disks) = DISKS.lock().as_mut() {
        disks.shadows.insert(root.to_owned(), shadow);
    }
    Ok(())
}

/// The power of the node in `root` fails at its next `fsync`, or does not after all.
pub fn cut_at_next_sync(root: &Path, cut: bool) {
    let mut disks = DISKS.lock();
    let shadow = disks.as_mut().and_then(|disks| disks.shadows.get_mut(root));
    if let Some(shadow) = shadow.filter(|shadow| !matches!(shadow.cut, Cut::Done(_))) {
        shadow.cut = if cut { Cut::AtNextSync } else { Cut::No };
    }
}

/// Whether the power of the node in `root` has failed during an `fsync`.
pub fn was_cut(root: &Path) -> bool {
    let disks = DISKS.lock();
    let shadow = disks.as_ref().and_then(|disks| disks.shadows.get(root));
    shadow.is_some_and(|shadow| matches!(shadow.cut, Cut::Done(_)))
}

/// Makes what is left of `root` after a power loss in `new`: now, or when it was cut.
pub fn after_power_loss(root: &Path, new: &Path) -> io::Result<()> {
    let mut disks = DISKS.lock();
    let Some(Disks { rng, shadows, .. }) = disks.as_mut() else { return Ok(()) };
    let shadow = shadows.remove(root).unwrap_or_default();
    let image = match shadow.cut {
        Cut::Done(image) => image,
        Cut::No | Cut::AtNextSync => shadow.image(root, rng)?,
    };
    fs::create_dir_all(new)?;
    for (path, content) in image {
        let path = new.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, content)?;
    }
    drop(disks);
    attach(new)
}

/// The file descriptor is made durable, by `fdatasync` if `data_only`; `false` when that fails.
pub fn sync(descriptor: i32, data_only: bool) -> bool {
    let mut disks = DISKS.lock();
    let Some(disks) = disks.as_mut() else { return true };
    match disks.sync(&PathBuf::from(format!("/proc/self/fd/{descriptor}")), data_only) {
        Ok(done) => done,
        Err(error) => {
            eprintln!("simulated fsync: {error}");
            false
        }
    }
}

impl Disks {
    fn sync(&mut self, descriptor: &Path, data_only: bool) -> io::Result<bool> {
        let path = fs::read_link(descriptor)?;
        let path = path.strip_prefix(&self.here).map(Path::to_owned).unwrap_or(path);
        let Some((root, shadow)) = self.shadows.iter_mut().find(|(root, _)| path.starts_with(root)) else {
            return Ok(true);
        };
        match shadow.cut {
            Cut::No => {}
            Cut::AtNextSync => {
                shadow.cut = Cut::Done(shadow.image(root, &mut self.rng)?);
                network::power_fails_here();
                trace::event(format_args!("power fails during fsync of {}", shown(&path)));
                return Ok(false);
            }
            Cut::Done(_) => return Ok(false),
        }
        let about = fs::metadata(descriptor)?;
        if about.is_dir() {
            let listed = names(descriptor)?;
            shadow.directories.insert(path, listed);
            shadow.forget(root)?;
            return Ok(true);
        }
        let file = File::open(descriptor)?;
        match shadow.files.get_mut(&about.ino()) {
            Some(durable) if self.lies && data_only => {
                let before = durable.late.replace(fs::read(descriptor)?);
                durable.content = before.unwrap_or_else(|| std::mem::take(&mut durable.content));
            }
            // The same memory again: this is most of what a simulation does.
            Some(durable) => {
                durable.content.resize(usize::try_from(about.len()).unwrap_or(usize::MAX), 0);
                file.read_exact_at(&mut durable.content, 0)?;
            }
            None => {
                shadow
                    .files
                    .insert(about.ino(), Durable { content: fs::read(descriptor)?, late: None, file });
            }
        }
        Ok(true)
    }
}

impl Shadow {
    /// Lets files go that have no name any more, now or after a power loss.
    fn forget(&mut self, root: &Path) -> io::Result<()> {
        let mut named: BTreeSet<u64> =
            self.directories.values().flat_map(BTreeMap::values).copied().collect();
        for directory in directories(root)? {
            named.extend(names(&directory)?.into_values());
        }
        self.files.retain(|inode, _| named.contains(inode));
        Ok(())
    }

    /// What a power loss leaves.
    fn image(&self, root: &Path, rng: &mut StdRng) -> io::Result<Image> {
        // How much of what was not synced had been written all the same.
        let share = *[0.0, 0.3, 0.7, 1.0].get(rng.random_range(0..4_usize)).unwrap_or(&0.0);
        let mut image = Image::new();
        for directory in directories(root)? {
            let current = names(&directory)?;
            let durable = self.directories.get(&directory);
            let kept = if rng.random_bool(0.5) { durable } else { Some(&current) };
            for (name, inode) in kept.into_iter().flatten() {
                let path = directory.join(name);
                let content = match self.files.get(inode) {
                    Some(durable) => torn(&durable.content, &content(&durable.file)?, share, rng),
                    None if current.get(name) == Some(inode) && path.is_file() => {
                        torn(&[], &fs::read(&path)?, share, rng)
                    }
                    // A directory, or a file that never was durable and has lost its name.
                    None => continue,
                };
                image.insert(path.strip_prefix(root).unwrap_or(&path).to_owned(), content);
            }
        }
        Ok(image)
    }
}

/// The durable content with some sectors of what was written since.
fn torn(durable: &[u8], current: &[u8], share: f64, rng: &mut StdRng) -> Vec<u8> {
    let mut left = durable.to_vec();
    if rng.random_bool(share) {
        left.resize(current.len(), 0);
    }
    for (sector, new) in left.chunks_mut(SECTOR_BYTES).zip(current.chunks(SECTOR_BYTES)) {
        if sector != new && sector.len() == new.len() && rng.random_bool(share) {
            sector.copy_from_slice(new);
        }
    }
    left
}

fn content(file: &File) -> io::Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

/// `root` and all below it, in order.
fn directories(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![root.to_owned()];
    let mut at = 0;
    while let Some(directory) = found.get(at).cloned() {
        for name in names(&directory)?.into_keys() {
            let path = directory.join(name);
            if path.is_dir() {
                found.push(path);
            }
        }
        at += 1;
    }
    Ok(found)
}

/// What a directory holds, by name, with the inodes.
fn names(directory: &Path) -> io::Result<BTreeMap<OsString, u64>> {
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        names.insert(entry.file_name(), entry.metadata()?.ino());
    }
    Ok(names)
}

/// Without the part that differs between machines.
fn shown(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
