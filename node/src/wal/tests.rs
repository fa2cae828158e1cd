//! Tests of the log as a whole. The helpers submit and wait, and copy a log's directory as a crash leaves it.

mod damage;
mod failure;
mod format;
mod model;
mod order;
mod power_loss;
mod space;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded};

use super::*;
use crate::config::LogConfig;

type Answer = Receiver<Result<(), WalError>>;

fn options(segment_bytes: u64) -> Options {
    let config = LogConfig { segment_bytes, cache_bytes: 1 << 20, ..LogConfig::default() };
    Options { salt: Some(7), on_fatal: Arc::new(|why| eprintln!("fatal: {why}")), ..Options::from(&config) }
}

fn open(dir: &Path, segment_bytes: u64) -> (Wal, Recovered) {
    Wal::open_with(dir, options(segment_bytes)).unwrap()
}

fn answer() -> (Done, Answer) {
    let (sender, receiver) = bounded(1);
    (Box::new(move |result| sender.send(result).unwrap()), receiver)
}

/// Submits and waits for the answer.
fn wait(submit: impl FnOnce(Done)) -> Result<(), WalError> {
    let (done, answer) = answer();
    submit(done);
    answer.recv_timeout(Duration::from_secs(60)).expect("no answer")
}

fn record(index: u64, term: u64, payload: impl Into<Bytes>) -> Record {
    Record { index, term, payload: payload.into() }
}

fn append(log: &GroupLog, index: u64, term: u64, payload: impl Into<Bytes>) {
    wait(|done| log.append(vec![record(index, term, payload)], done)).unwrap();
}

fn read_all(log: &GroupLog) -> Vec<Record> {
    let Some(first) = log.first_index() else { return Vec::new() };
    let (_, last) = log.last().unwrap();
    let mut out: Vec<Record> = Vec::new();
    let mut next = first;
    while next <= last {
        let part = log.read(next..last + 1, 300).unwrap();
        assert!(!part.is_empty(), "nothing at {next} of {first}..={last}");
        next = part.last().unwrap().index + 1;
        out.extend(part);
    }
    out
}

/// What a killed process leaves: the files as they are now. Copying takes time in which the writer may still
/// free segments; then it starts over.
fn copy_dir(wal: &Wal, from: &Path) -> tempfile::TempDir {
    loop {
        let before = wal.stats();
        let copy = copy_files(from);
        if let Some(to) = copy.ok().filter(|_| wal.stats() == before) {
            return to;
        }
    }
}

fn copy_files(from: &Path) -> std::io::Result<tempfile::TempDir> {
    let to = tempfile::tempdir()?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            std::fs::copy(&path, to.path().join(path.file_name().unwrap()))?;
        }
    }
    Ok(to)
}

fn last_segment(dir: &Path) -> std::path::PathBuf {
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| segment::sequence_of(path).is_some())
        .collect();
    paths.sort();
    paths.pop().unwrap()
}
