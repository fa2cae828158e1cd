//! Files for the next segments: recycled ones first, else made by a thread in the background, so that
//! rotation need not wait for zeros to be written.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::WalError;
use super::log::Shared;
use super::segment::{Segment, create_zeroed};

/// Recycled files kept.
const RECYCLED_MAX: usize = 2;
/// Pause after the disk refused a new file.
const RETRY: Duration = Duration::from_secs(1);

/// A file that is not in the log, of the configured size and written once.
#[derive(Debug)]
pub(super) struct Spare {
    pub path: PathBuf,
    pub file: File,
}

pub(super) fn is_spare(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "spare")
}

/// Recycled files and new ones are numbered apart: a segment is freed once, so no name is given twice.
fn recycled_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("old-{sequence:016x}.spare"))
}

fn new_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("new-{number:016x}.spare"))
}

/// The writer's stock.
pub(super) struct Spares {
    dir: PathBuf,
    bytes: u64,
    recycled: Vec<Spare>,
    /// `None`: files are made where they are taken.
    maker: Option<Maker>,
    requested: bool,
}

/// The thread's two ends.
struct Maker {
    request: Sender<u64>,
    ready: Receiver<Spare>,
}

impl Spares {
    /// Starts the thread; it ends when `stop` is disconnected or the stock dropped.
    pub fn start(
        shared: &Arc<Shared>,
        recycled: Vec<Spare>,
        stop: Receiver<()>,
    ) -> Result<(Self, JoinHandle<()>), WalError> {
        let dir = shared.dir.clone();
        let bytes = shared.options.segment_bytes;
        let (request, requests) = bounded(1);
        let (give, ready) = bounded(1);
        let thread = {
            let own_dir = dir.clone();
            std::thread::Builder::new()
                .name("wal-spare".to_owned())
                .spawn(move || make_spares(&own_dir, bytes, &requests, &give, &stop))
                .map_err(WalError::io("start the allocating thread of", &dir))?
        };
        let maker = Some(Maker { request, ready });
        Ok((Self { dir, bytes, recycled, maker, requested: false }, thread))
    }

    /// A stock without a thread.
    pub fn inline(shared: &Shared, recycled: Vec<Spare>) -> Self {
        let (dir, bytes) = (shared.dir.clone(), shared.options.segment_bytes);
        Self { dir, bytes, recycled, maker: None, requested: false }
    }

    /// Orders a file for the next rotation unless there is one. `number` is used by no other file.
    pub fn order(&mut self, number: u64) {
        if let Some(maker) = self.maker.as_ref().filter(|_| self.recycled.is_empty() && !self.requested) {
            self.requested = maker.request.try_send(number).is_ok();
        }
    }

    /// A file for segment `number`. Waits for one while the disk is full, unless the log is closed meanwhile.
    pub fn take(&mut self, number: u64, shared: &Shared) -> Result<Spare, WalError> {
        if let Some(spare) = self.recycled.pop() {
            return Ok(spare);
        }
        self.order(number);
        let Some(maker) = &self.maker else { return make_spare(&self.dir, self.bytes, number) };
        loop {
            match maker.ready.recv_timeout(RETRY) {
                Ok(spare) => {
                    self.requested = false;
                    return Ok(spare);
                }
                Err(RecvTimeoutError::Timeout) if !shared.queue.is_closed() => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(WalError::Closed);
                }
            }
        }
    }

    /// Takes a freed segment's file. Not durable, and need not be: recovery knows by number what was freed.
    pub fn recycle(&mut self, segment: Arc<Segment>) {
        let path = segment.path.clone();
        let reusable =
            self.recycled.len() < RECYCLED_MAX && segment.file_bytes().is_ok_and(|bytes| bytes == self.bytes);
        // A reader that still holds the file must go on seeing what was in it: then it is not reused.
        let result = match Arc::try_unwrap(segment) {
            Ok(segment) if reusable => {
                let spare = recycled_path(&self.dir, segment.sequence);
                std::fs::rename(&path, &spare)
                    .map(|()| self.recycled.push(Spare { path: spare, file: segment.file }))
            }
            Ok(_) | Err(_) => std::fs::remove_file(&path),
        };
        if let Err(error) = result {
            tracing::warn!(path = %path.display(), %error, "freeing a log segment failed; it is retried at the next start");
        }
    }

    /// Removes the recycled files, and tells whether there were any.
    pub fn discard_recycled(&mut self) -> bool {
        let discarded = !self.recycled.is_empty();
        for spare in self.recycled.drain(..) {
            if let Err(error) = std::fs::remove_file(&spare.path) {
                tracing::warn!(path = %spare.path.display(), %error, "removing an unused log file failed");
            }
        }
        discarded
    }

    /// Files held.
    pub fn len(&self) -> usize {
        self.recycled.len() + usize::from(self.requested)
    }
}

/// Keeps of the files `found` those that can be used, and removes the others.
pub(super) fn adopt(found: Vec<PathBuf>, bytes: u64) -> Vec<Spare> {
    let mut spares = Vec::new();
    for path in found {
        let file = File::options().read(true).write(true).open(&path);
        let usable = |file: &File| file.metadata().is_ok_and(|meta| meta.len() == bytes);
        match file {
            Ok(file) if spares.len() < RECYCLED_MAX && usable(&file) => spares.push(Spare { path, file }),
            Ok(_) | Err(_) => {
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "removing an unused log file failed");
                }
            }
        }
    }
    spares
}

/// Makes one file without the thread, when the log opens.
pub(super) fn make_spare(dir: &Path, bytes: u64, number: u64) -> Result<Spare, WalError> {
    let path = new_path(dir, number);
    let file = create_zeroed(&path, bytes)?;
    Ok(Spare { path, file })
}

fn make_spares(dir: &Path, bytes: u64, requests: &Receiver<u64>, give: &Sender<Spare>, stop: &Receiver<()>) {
    while let Ok(number) = requests.recv() {
        let spare = loop {
            match make_spare(dir, bytes, number) {
                Ok(spare) => break spare,
                Err(error) => {
                    tracing::warn!(%error, source = ?std::error::Error::source(&error), "no room for a log segment");
                    if stop.recv_timeout(RETRY) == Err(RecvTimeoutError::Disconnected) {
                        return;
                    }
                }
            }
        };
        if give.send(spare).is_err() {
            return;
        }
    }
}
