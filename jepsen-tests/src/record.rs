//! What was asked and what was answered, line by line as it happened: the history of a run.
//!
//! A line is an invocation or the end of one. Both are stamped under one lock, so a history is in the order of
//! its times, and a call's two stamps enclose the time in which it can have taken effect. Lines go to a file at once:
//! a run that is cut keeps what it had. The EDN form is in `record/edn.rs`, what Jepsen's checkers take in `record/tools.rs`.

mod edn;
pub mod tools;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use edn::{EdnError, read_edn, write_edn};

/// The process number of the one who makes the faults, -1 in JSON; its lines are no calls.
pub const NEMESIS: u64 = u64::MAX;

/// How a call ended, as its caller knows it (I9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Invoke,
    Ok,
    /// Surely not applied.
    Fail,
    /// Unknown: it may take effect at any later time, or never.
    Info,
}

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub index: u64,
    /// Since the run began, in nanoseconds.
    #[serde(rename = "time", alias = "time_ns")]
    pub time_ns: u64,
    /// [`NEMESIS`] for a fault.
    #[serde(with = "process_number")]
    pub process: u64,
    #[serde(rename = "type", alias = "kind")]
    pub kind: Kind,
    pub f: String,
    pub key: String,
    pub value: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whatever reads histories takes processes for integers of 64 bits with a sign.
mod process_number {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::NEMESIS;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(process: &u64, to: S) -> Result<S::Ok, S::Error> {
        if *process == NEMESIS { to.serialize_i64(-1) } else { to.serialize_u64(*process) }
    }

    /// Earlier histories have [`NEMESIS`] itself.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let number = serde_json::Number::deserialize(from)?;
        if number.as_i64() == Some(-1) {
            return Ok(NEMESIS);
        }
        number.as_u64().ok_or_else(|| de::Error::custom(format!("{number} is no process")))
    }
}

/// A call: an invocation and its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub process: u64,
    pub f: String,
    pub key: String,
    pub input: Value,
    /// Null when it never ended.
    pub output: Value,
    pub start_ns: u64,
    /// `None`: it never ended.
    pub end_ns: Option<u64>,
    /// `Ok`, `Fail` or `Info`; `Info` when it never ended.
    pub end: Kind,
    pub error: Option<String>,
}

/// Why lines do not make calls. The harness is at fault, not what it tests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    #[error("line {index}: process {process} begins a call while it has one under way")]
    Busy { index: u64, process: u64 },
    #[error("line {index}: process {process} goes on after a call whose outcome is unknown")]
    Crashed { index: u64, process: u64 },
    #[error("line {index}: process {process} ends a call that it has not begun")]
    NotBegun { index: u64, process: u64 },
    #[error("line {index}: process {process} began {begun} and ends {ended}")]
    Another { index: u64, process: u64, begun: String, ended: String },
    #[error("line {index} is not after the line before it")]
    Order { index: u64 },
}

/// Pairs invocations with their ends by process, in the order of the invocations; faults are left out.
///
/// # Errors
/// The first line that breaks the rule that a process has one call at a time, and none after an unknown outcome.
pub fn calls(records: &[Record]) -> Result<Vec<Call>, PairError> {
    let mut calls: Vec<Call> = Vec::with_capacity(records.len() / 2 + 1);
    let mut open: HashMap<u64, usize> = HashMap::new();
    let mut crashed: HashSet<u64> = HashSet::new();
    let mut last: Option<(u64, u64)> = None;
    for record in records {
        let (index, process) = (record.index, record.process);
        if last.is_some_and(|(before, time_ns)| index <= before || record.time_ns < time_ns) {
            return Err(PairError::Order { index });
        }
        last = Some((index, record.time_ns));
        if process == NEMESIS {
            continue;
        }
        if crashed.contains(&process) {
            return Err(PairError::Crashed { index, process });
        }
        if record.kind == Kind::Invoke {
            if open.insert(process, calls.len()).is_some() {
                return Err(PairError::Busy { index, process });
            }
            calls.push(begun(record));
            continue;
        }
        let call = open.remove(&process).and_then(|at| calls.get_mut(at));
        let call = call.ok_or(PairError::NotBegun { index, process })?;
        end_call(call, record)?;
        if record.kind == Kind::Info {
            crashed.insert(process);
        }
    }
    Ok(calls)
}

fn begun(record: &Record) -> Call {
    Call {
        process: record.process,
        f: record.f.clone(),
        key: record.key.clone(),
        input: record.value.clone(),
        output: Value::Null,
        start_ns: record.time_ns,
        end_ns: None,
        end: Kind::Info,
        error: None,
    }
}

fn end_call(call: &mut Call, record: &Record) -> Result<(), PairError> {
    if call.f != record.f || call.key != record.key {
        return Err(PairError::Another {
            index: record.index,
            process: record.process,
            begun: format!("{} {}", call.f, call.key),
            ended: format!("{} {}", record.f, record.key),
        });
    }
    call.output = record.value.clone();
    call.end_ns = Some(record.time_ns);
    call.end = record.kind;
    call.error.clone_from(&record.error);
    Ok(())
}

/// Reads the JSON lines of a [`Recorder`]. A last line that was cut short, and so has no end, is left out.
///
/// # Errors
/// The file cannot be read, or a line with an end is no record.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    let mut file = BufReader::new(File::open(path)?);
    let (mut records, mut line) = (Vec::new(), Vec::new());
    for number in 1_u64.. {
        line.clear();
        if file.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        match serde_json::from_slice(&line) {
            Ok(record) => records.push(record),
            Err(_) if line.last() != Some(&b'\n') => break,
            Err(error) => {
                let text = format!("read line {number} of history {}: {error}", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
    }
    Ok(records)
}

/// Takes down the lines of a run. Clones write to the same history.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    origin: Instant,
    processes: AtomicU64,
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    /// `None` once finished: what comes later is of calls that never ended.
    file: Option<File>,
    records: Vec<Record>,
    /// The first; told when the run is finished.
    failure: Option<io::Error>,
}

impl Recorder {
    /// Begins a history whose lines go to `path`, time 0 being now.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        let lines = Lines { file: Some(File::create(path)?), records: Vec::new(), failure: None };
        Ok(Self(Arc::new(Shared {
            origin: Instant::now(),
            processes: AtomicU64::new(0),
            lines: Mutex::new(lines),
        })))
    }

    /// Time since the run began.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.0.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A number that no process has had.
    pub fn process(&self) -> u64 {
        self.0.processes.fetch_add(1, Ordering::Relaxed)
    }

    /// To be called before anything of the call is sent.
    pub fn invoke(&self, process: u64, f: &str, key: &str, value: Value) {
        self.push(process, Kind::Invoke, f, key, value, None);
    }

    /// To be called once the answer is known, with the `f` and `key` of the invocation. For a fault: process
    /// [`NEMESIS`], kind `Info`, no invocation before.
    pub fn end(&self, process: u64, kind: Kind, f: &str, key: &str, value: Value, error: Option<String>) {
        self.push(process, kind, f, key, value, error);
    }

    /// Closes the file and gives all lines. Calls under way on other clones are left without an end.
    ///
    /// # Errors
    /// The first that occurred while writing the lines.
    pub fn finish(self) -> io::Result<Vec<Record>> {
        let mut lines = self.lines();
        if let Some(failure) = lines.failure.take() {
            return Err(failure);
        }
        if let Some(file) = lines.file.take() {
            file.sync_all()?;
        }
        Ok(std::mem::take(&mut lines.records))
    }

    fn push(&self, process: u64, kind: Kind, f: &str, key: &str, value: Value, error: Option<String>) {
        let (f, key) = (f.to_owned(), key.to_owned());
        let mut lines = self.lines();
        let index = lines.records.len() as u64;
        // Stamped under the lock, so that the order of the lines is the order of their times.
        let record = Record { index, time_ns: self.now_ns(), process, kind, f, key, value, error };
        lines.push(record);
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn push(&mut self, record: Record) {
        let Some(file) = self.file.as_mut() else { return };
        let written = serde_json::to_vec(&record).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            file.write_all(&line)
        });
        if let Err(error) = written {
            self.failure.get_or_insert(error);
        }
        self.records.push(record);
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
