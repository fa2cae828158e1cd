//! Power loss at every flush: bytes not yet flushed are gone, or there in any mixture of sectors.
//!
//! The flush hook runs while the writer waits, so the files stand still. It remembers what each file held when
//! it was last flushed; an image of the disk after a power loss is that, or a mixture of that and of now.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;

const SEGMENT_BYTES: u64 = 4096;
const SECTOR: usize = 512;

/// Replica → term and payload of each record, and how far it was purged.
type Model = BTreeMap<u64, (BTreeMap<u64, (u64, Bytes)>, Option<Position>)>;

struct Image {
    files: Vec<(PathBuf, Vec<u8>)>,
    /// Submissions answered when it was taken, and submitted.
    answered: usize,
    submitted: usize,
}

#[derive(Default)]
struct Disk {
    flushed: Mutex<HashMap<u64, Vec<u8>>>,
    images: Mutex<Vec<Image>>,
    dir: Mutex<PathBuf>,
    answered: AtomicUsize,
    submitted: AtomicUsize,
    flushes: AtomicUsize,
}

fn content(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

impl Disk {
    fn flush(&self, file: &File) -> io::Result<()> {
        let flush = self.flushes.fetch_add(1, Ordering::SeqCst);
        for torn in [false, true] {
            let image = self.image(flush, torn)?;
            self.images.lock().push(image);
        }
        self.flushed.lock().insert(file.metadata()?.ino(), content(file)?);
        Ok(())
    }

    fn image(&self, flush: usize, torn: bool) -> io::Result<Image> {
        let mut files = Vec::new();
        // Answers first: what is answered must be in the image.
        let answered = self.answered.load(Ordering::SeqCst);
        let flushed = self.flushed.lock();
        for entry in std::fs::read_dir(&*self.dir.lock())? {
            let path = entry?.path();
            if segment::sequence_of(&path).is_none() {
                continue;
            }
            let file = File::open(&path)?;
            let mut bytes = content(&file)?;
            let old = flushed.get(&file.metadata()?.ino()).cloned().unwrap_or_default();
            for (number, sector) in bytes.chunks_mut(SECTOR).enumerate() {
                let lost = !torn || (number * 7 + flush * 13) % 5 < 2;
                if let Some(old) = old.get(number * SECTOR..number * SECTOR + sector.len()).filter(|_| lost) {
                    sector.copy_from_slice(old);
                }
            }
            files.push((path, bytes));
        }
        Ok(Image { files, answered, submitted: self.submitted.load(Ordering::SeqCst) })
    }
}

fn recovered(image: &Image) -> (Model, bool) {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in &image.files {
        std::fs::write(dir.path().join(path.file_name().unwrap()), bytes).unwrap();
    }
    let options = Options { sync: Arc::new(|_| Ok(())), ..options(SEGMENT_BYTES) };
    let (wal, recovered) = Wal::open_with(dir.path(), options).unwrap();
    assert_eq!(recovered.damaged, []);
    let mut model = Model::new();
    for replica in wal.groups() {
        let log = wal.group(replica).unwrap();
        let records = read_all(&log).into_iter().map(|r| (r.index, (r.term, r.payload))).collect();
        model.insert(replica.get(), (records, log.state().purged));
    }
    wal.close();
    (model, recovered.truncated_tail.is_some())
}

/// Submits step `number` and tells the model.
fn submit(wal: &Wal, model: &mut Model, number: usize, (kind, replica, n): (u8, u64, u64), done: Done) {
    let (records, purged) = model.entry(replica).or_default();
    let next = records.last_key_value().map(|(index, _)| index + 1).or(purged.map(|(_, index)| index + 1));
    let next = next.unwrap_or(1);
    let log = || wal.group(ReplicaId(replica)).unwrap();
    match kind {
        0..=5 => {
            let payload = Bytes::from(format!("{number}{}", "-".repeat(20 * n as usize)));
            records.insert(next, (number as u64, payload.clone()));
            log().append(vec![record(next, number as u64, payload)], done);
        }
        6 => {
            let keep = next.saturating_sub(n);
            records.split_off(&(keep + 1));
            log().truncate_after(Some(keep), done);
        }
        7 | 8 => {
            let first = records.first_key_value().map_or(next, |(index, _)| *index);
            let through = (number as u64, first + n);
            if purged.is_none_or(|(_, index)| index < through.1) {
                *purged = Some(through);
                *records = records.split_off(&(through.1 + 1));
            }
            log().purge(through, done);
        }
        _ => {
            let vote = VoteRecord { term: n, voted_for: replica, committed: false };
            log().save_vote(vote, done);
        }
    }
}

#[test]
fn after_power_loss_the_log_is_a_prefix_with_all_that_was_answered() {
    const CASES: u32 = 8;
    // Over all cases: how often a single one flushes, and is torn, is up to the machine.
    let (torn, fsyncs) = (AtomicUsize::new(0), AtomicU64::new(0));
    let config = ProptestConfig { cases: CASES, ..ProptestConfig::default() };
    let steps = proptest::collection::vec((0..10u8, 1..4u64, 0..12u64), 60..160);
    proptest!(config, |(steps in steps)| {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::default());
        *disk.dir.lock() = dir.path().to_owned();
        let hook = Arc::clone(&disk);
        let sync = Arc::new(move |file: &File| hook.flush(file));
        let (wal, _) = Wal::open_with(dir.path(), Options { sync, ..options(SEGMENT_BYTES) }).unwrap();
        let mut model = Model::new();
        let mut history = vec![model.clone()];
        for (number, step) in steps.into_iter().enumerate() {
            let (answer, answered) = bounded(1);
            let counter = Arc::clone(&disk);
            disk.submitted.fetch_add(1, Ordering::SeqCst);
            submit(&wal, &mut model, number, step, Box::new(move |result| {
                result.unwrap();
                counter.answered.fetch_add(1, Ordering::SeqCst);
                // Nobody may be waiting.
                let _ = answer.send(());
            }));
            history.push(model.clone());
            if step.2 % 4 == 0 {
                answered.recv().unwrap();
            }
        }
        wal.close();
        let live = |model: &Model| -> Model {
            let found = |entry: &(&u64, &(BTreeMap<_, _>, Option<_>))| !entry.1.0.is_empty() || entry.1.1.is_some();
            model.iter().filter(found).map(|(replica, entry)| (*replica, entry.clone())).collect()
        };
        for image in disk.images.lock().iter().filter(|image| !image.files.is_empty()) {
            let (found, cut) = recovered(image);
            let found = live(&found);
            torn.fetch_add(usize::from(cut), Ordering::Relaxed);
            let prefix = (image.answered..=image.submitted).find(|&steps| live(&history[steps]) == found);
            prop_assert!(prefix.is_some(), "{}..={}: {found:?}", image.answered, image.submitted);
        }
        fsyncs.fetch_add(wal.stats().fsyncs, Ordering::Relaxed);
    });
    // Or the test shows nothing.
    let (torn, fsyncs) = (torn.into_inner(), fsyncs.into_inner());
    assert!(torn > 0 && fsyncs > 10 * u64::from(CASES), "{torn} torn, {fsyncs} flushes");
}
