//! What makes a sled directory durable: fsyncs, and the number of the last checkpoint beside the data.
//!
//! The same number is written into the data before. Data with a smaller number than the file's went back
//! behind a checkpoint, after which the log was purged (I2): it is damaged, however whole it looks.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::files::{failed, sync_dir, sync_file_if_any};
use super::{SpaceId, StoreError};

#[derive(Debug)]
pub(super) struct Checkpoint {
    data: File,
    data_path: PathBuf,
    blobs: PathBuf,
    marker: File,
    marker_path: PathBuf,
    number: u64,
    /// Blobs never change once they are written.
    synced_blobs: HashSet<OsString>,
}

impl Checkpoint {
    /// `number` is the one found in the data.
    pub(super) fn open(id: SpaceId, dir: &Path, data: File, number: u64) -> Result<Self, StoreError> {
        let marker_path = dir.join("checkpoint");
        let mut marker = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&marker_path)
            .map_err(failed("open", &marker_path))?;
        let mut record = Vec::new();
        marker.read_to_end(&mut record).map_err(failed("read", &marker_path))?;
        let damaged = |detail| StoreError::Damaged { space: id.to_string(), detail };
        match parse(&record) {
            Some(reached) if number < reached => {
                return Err(damaged(format!("data is at checkpoint {number}, but {reached} was durable")));
            }
            Some(_) => {}
            // Its bytes are not synced: of the first ones a loss of power may leave the size alone.
            None if record.iter().all(|byte| *byte == 0) => {}
            None => return Err(damaged("checkpoint file does not match its checksum".to_owned())),
        }
        Ok(Self {
            data,
            data_path: dir.join("db"),
            blobs: dir.join("blobs"),
            marker,
            marker_path,
            number,
            synced_blobs: HashSet::new(),
        })
    }

    pub(super) fn next_number(&self) -> u64 {
        self.number + 1
    }

    /// Makes durable all that was handed to the operating system, `number` among it.
    pub(super) fn reach(&mut self, number: u64) -> Result<(), StoreError> {
        self.data.sync_data().map_err(failed("sync", &self.data_path))?;
        self.sync_blobs()?;
        // Not synced: it may lag behind what is durable, never be ahead.
        self.marker.write_all_at(&format(number), 0).map_err(failed("write", &self.marker_path))?;
        self.number = number;
        Ok(())
    }

    fn sync_blobs(&mut self) -> Result<(), StoreError> {
        let mut present = HashSet::new();
        let mut any_new = false;
        for entry in fs::read_dir(&self.blobs).map_err(failed("list", &self.blobs))? {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(failed("list", &self.blobs)(e)),
            };
            let name = entry.file_name();
            if !self.synced_blobs.contains(&name) {
                // One that vanished meanwhile is no longer needed.
                any_new |= sync_file_if_any(&entry.path())?;
            }
            present.insert(name);
        }
        self.synced_blobs = present;
        if any_new { sync_dir(&self.blobs) } else { Ok(()) }
    }
}

fn format(number: u64) -> [u8; 12] {
    let mut record = [0; 12];
    let (bytes, crc) = record.split_at_mut(8);
    bytes.copy_from_slice(&number.to_le_bytes());
    crc.copy_from_slice(&crc32fast::hash(&number.to_le_bytes()).to_le_bytes());
    record
}

fn parse(record: &[u8]) -> Option<u64> {
    let (bytes, crc) = record.split_first_chunk::<8>()?;
    let crc = u32::from_le_bytes(<[u8; 4]>::try_from(crc).ok()?);
    (crc == crc32fast::hash(bytes)).then(|| u64::from_le_bytes(*bytes))
}
