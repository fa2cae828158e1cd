//! Reads a log back: cuts a torn tail, refuses damage before it (I10). See the module's documentation for
//! how the two are told apart. Nothing on disk is changed before all of it is understood.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, BATCH_HEADER, BatchHeader, FRAME_HEADER};
use super::index::{Group, Loc};
use super::log::Options;
use super::replay::{Frame, Replay};
use super::segment::{HEADER, Segment, SegmentHeader, segment_path, sequence_of, sync_dir};
use super::spare::{self, Spare};
use super::{Damage, WalError};

/// Segments before the last one of which its file may have been one: files are reused soon after they are freed.
const EARLIER_USES_MAX: usize = 4096;
/// Bytes looked through at once for a batch header.
const SEARCH_BYTES: usize = 1 << 20;

/// What was found when the log was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Replicas that are damaged: [`super::Wal::group`] refuses them until they are removed.
    pub damaged: Vec<Damage>,
    /// Live records.
    pub records: u64,
    /// Segments read.
    pub segments: u64,
    /// A batch was in flight when the log was left: the segment, and the offset where it was cut.
    pub truncated_tail: Option<(PathBuf, u64)>,
}

/// Where the recovered log goes on.
#[derive(Debug)]
pub(super) struct LogEnd {
    pub salt: u64,
    pub segments: Vec<Arc<Segment>>,
    /// End of the last segment, in bytes; 0 when there is none.
    pub end: u64,
    pub next_sequence: u64,
}

#[derive(Debug)]
pub(super) struct Recovery {
    pub groups: Vec<Group>,
    /// At least one.
    pub spares: Vec<Spare>,
    pub recovered: Recovered,
    pub log: LogEnd,
}

pub(super) fn recover(dir: &Path, options: &Options) -> Result<Recovery, WalError> {
    fs::create_dir_all(dir).map_err(WalError::io("create log directory", dir))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    let Listing { segments: files, spares: mut unused } = list(dir)?;
    let mut replay = Replay::default();
    let mut recovered = Recovered::default();
    let mut last_batch = 0;
    let log = match files.last_key_value() {
        None => {
            let salt = options.salt.unwrap_or_else(rand::random);
            LogEnd { salt, segments: Vec::new(), end: 0, next_sequence: 1 }
        }
        Some((&last, _)) => {
            let (tail, segments) = open_segments(dir, last)?;
            let mut ends = segments.iter().skip(1).map(|(_, header)| header.previous_end);
            for (segment, _) in &segments {
                replay_segment(segment, ends.next().unwrap_or(tail.end), &mut replay)?;
            }
            recovered.truncated_tail = tail.torn.then(|| (segment_path(dir, last), tail.end));
            recovered.segments = segments.len() as u64;
            let freed = files.into_iter().filter(|(sequence, _)| *sequence < tail.oldest);
            unused.extend(freed.map(|(_, path)| path));
            let salt = tail.salt;
            last_batch = tail.last_batch;
            let segments = segments.into_iter().map(|(segment, _)| Arc::new(segment)).collect();
            LogEnd { salt, segments, end: tail.end, next_sequence: last + 1 }
        }
    };
    if let Some(last) = log.segments.last() {
        // A killed process leaves what it wrote in the page cache: it must be durable before it is built on. One that ended
        // because a flush failed leaves pages that count as clean, which no later flush writes: only a new write does.
        last.rewrite(last_batch, log.end)?;
        last.file.sync_all().map_err(WalError::io("flush log segment", &last.path))?;
        sync_dir(dir)?;
    }
    let (groups, damaged) = replay.finish(dir);
    recovered.damaged = damaged;
    recovered.records = groups.iter().map(|group| group.view.lock().placed.locs.len() as u64).sum();
    let mut spares = spare::adopt(unused, options.segment_bytes);
    if spares.is_empty() {
        spares.push(spare::make_spare(dir, options.segment_bytes, log.next_sequence)?);
    }
    Ok(Recovery { groups, spares, recovered, log })
}

struct Listing {
    segments: BTreeMap<u64, PathBuf>,
    spares: Vec<PathBuf>,
}

fn list(dir: &Path) -> Result<Listing, WalError> {
    let mut listing = Listing { segments: BTreeMap::new(), spares: Vec::new() };
    for entry in fs::read_dir(dir).map_err(WalError::io("list log directory", dir))? {
        let path = entry.map_err(WalError::io("list log directory", dir))?.path();
        if let Some(sequence) = sequence_of(&path) {
            listing.segments.insert(sequence, path);
        } else if spare::is_spare(&path) {
            listing.spares.push(path);
        }
    }
    Ok(listing)
}

/// What the last segment says about the whole log.
struct Tail {
    salt: u64,
    oldest: u64,
    /// Where the last batch begins; all before it was durable when it was written.
    last_batch: u64,
    end: u64,
    torn: bool,
}

/// Opens the segments that the log consists of, which must all be there.
fn open_segments(dir: &Path, last: u64) -> Result<(Tail, Vec<(Segment, SegmentHeader)>), WalError> {
    let (segment, header) = Segment::open(dir, last)?;
    let tail = find_tail(&segment, &header)?;
    if tail.oldest > last || tail.oldest == 0 {
        let detail = format!("oldest segment {:016x} is not before it", tail.oldest);
        return Err(WalError::Damaged(Damage::new(&segment.path, 0, detail)));
    }
    let mut segments = Vec::new();
    for sequence in tail.oldest..last {
        let (segment, header) = Segment::open(dir, sequence)?;
        if header.salt != tail.salt {
            return Err(WalError::Damaged(Damage::new(&segment.path, 0, "belongs to another log")));
        }
        segments.push((segment, header));
    }
    segments.push((segment, header));
    Ok((tail, segments))
}

/// Finds the end of the last segment.
fn find_tail(segment: &Segment, header: &SegmentHeader) -> Result<Tail, WalError> {
    let mut batches = Batches::new(segment)?;
    let start = HEADER as u64;
    let mut tail =
        Tail { salt: header.salt, oldest: header.oldest, last_batch: start, end: start, torn: false };
    loop {
        let at = tail.end;
        let batch = batches.header_at(at)?;
        let fault = match batch {
            None => "bad batch header",
            Some(batch) if !batches.load(&batch)? => "the batch ends behind the file's end",
            Some(batch) => {
                let whole = batches.frames(&batch).all(|frame| frame.is_ok_and(|frame| frame.good));
                // A bad frame before a good batch is damage; the replay will say whose.
                if whole || batches.has_batch_behind(batches.end_of(&batch))? {
                    // A seal is not flushed: what is before it may not be durable either.
                    if batch.frames > 0 {
                        tail.last_batch = at;
                    }
                    tail.end = batches.end_of(&batch);
                    tail.oldest = batch.oldest;
                    continue;
                }
                "bad frame in the segment's first batch"
            }
        };
        let search = if batch.is_some() { at + BATCH_HEADER as u64 } else { at + 1 };
        let cut_short = batches.bytes < header.capacity
            && (batch.is_some_and(|batch| batches.end_of(&batch) > batches.bytes)
                || at + BATCH_HEADER as u64 > batches.bytes);
        if cut_short {
            let detail = format!("the file has {} of its {} bytes", batches.bytes, header.capacity);
            return Err(WalError::Damaged(Damage::new(&segment.path, at, detail)));
        }
        // The first batch was durable before the segment had its name.
        if at == HEADER as u64 || batches.has_batch_behind(search)? {
            return Err(WalError::Damaged(Damage::new(&segment.path, at, fault)));
        }
        tail.torn = batch.is_some() || batches.begun_at(at, header.salt)?;
        return Ok(tail);
    }
}

/// Applies all frames of a segment that ends at `end`.
fn replay_segment(segment: &Segment, end: u64, replay: &mut Replay) -> Result<(), WalError> {
    let mut batches = Batches::new(segment)?;
    let mut at = HEADER as u64;
    let refuse = |at: u64, detail: &str| Err(WalError::Damaged(Damage::new(&segment.path, at, detail)));
    while at < end {
        let Some(batch) = batches.header_at(at)? else { return refuse(at, "bad batch header") };
        if batches.end_of(&batch) > end || !batches.load(&batch)? {
            return refuse(at, "the batch is cut off");
        }
        for frame in batches.frames(&batch) {
            match frame {
                Ok(frame) => replay.apply(&frame, &segment.path),
                Err(at) => return refuse(at, "bad frame header"),
            }
        }
        at = batches.end_of(&batch);
    }
    if at == end { Ok(()) } else { refuse(at, "the segment ends elsewhere than the next one says") }
}

/// Reads a segment batch by batch.
struct Batches<'a> {
    segment: &'a Segment,
    bytes: u64,
    body: Vec<u8>,
}

impl<'a> Batches<'a> {
    fn new(segment: &'a Segment) -> Result<Self, WalError> {
        Ok(Self { segment, bytes: segment.file_bytes()?, body: Vec::new() })
    }

    fn end_of(&self, batch: &BatchHeader) -> u64 {
        batch.offset + (BATCH_HEADER as u64) + u64::from(batch.len)
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), WalError> {
        self.segment
            .file
            .read_exact_at(buffer, at)
            .map_err(WalError::io("read log segment", &self.segment.path))
    }

    fn raw_header_at(&self, at: u64) -> Result<Option<[u8; BATCH_HEADER]>, WalError> {
        let mut header = [0; BATCH_HEADER];
        if at + BATCH_HEADER as u64 > self.bytes {
            return Ok(None);
        }
        self.read(&mut header, at)?;
        Ok(Some(header))
    }

    fn header_at(&self, at: u64) -> Result<Option<BatchHeader>, WalError> {
        Ok(self.raw_header_at(at)?.and_then(|raw| frame::parse_batch(&raw, self.segment.seed, at)))
    }

    /// Whether a batch was begun at `at`: there is a header, and it is not what an earlier use of the file left there.
    fn begun_at(&self, at: u64, salt: u64) -> Result<bool, WalError> {
        let Some(raw) = self.raw_header_at(at)?.filter(|raw| frame::looks_like_batch(raw)) else {
            return Ok(false);
        };
        let mut earlier = (1..self.segment.sequence).rev().take(EARLIER_USES_MAX);
        let left =
            earlier.any(|sequence| frame::parse_batch(&raw, frame::seed(salt, sequence), at).is_some());
        Ok(!left)
    }

    /// Reads the frames of `batch`; `false` when the file is too short for them.
    fn load(&mut self, batch: &BatchHeader) -> Result<bool, WalError> {
        if self.end_of(batch) > self.bytes {
            return Ok(false);
        }
        let mut body = std::mem::take(&mut self.body);
        body.resize(batch.len as usize, 0);
        self.read(&mut body, batch.offset + BATCH_HEADER as u64)?;
        self.body = body;
        Ok(true)
    }

    /// The frames loaded; the offset of the fault where there is no frame, and then no more.
    fn frames(&self, batch: &BatchHeader) -> impl Iterator<Item = Result<Frame<'_>, u64>> {
        let start = batch.offset + BATCH_HEADER as u64;
        let (mut at, mut left, mut failed) = (0, batch.frames, false);
        std::iter::from_fn(move || {
            let rest = self.body.get(at..).unwrap_or_default();
            if failed || (left == 0 && rest.is_empty()) {
                return None;
            }
            let offset = start + at as u64;
            let frame = self.parse(rest, offset).filter(|_| left > 0);
            failed = frame.is_none();
            at += FRAME_HEADER + frame.as_ref().map_or(0, |frame| frame.payload.len());
            left = left.saturating_sub(1);
            Some(frame.ok_or(offset))
        })
    }

    fn parse<'b>(&self, bytes: &'b [u8], offset: u64) -> Option<Frame<'b>> {
        let header = frame::parse_frame(bytes, self.segment.seed)?;
        let payload = bytes.get(FRAME_HEADER..)?.get(..header.len as usize)?;
        let len = u32::try_from(FRAME_HEADER + payload.len()).ok()?;
        let loc = Loc { segment: self.segment.sequence, offset: u32::try_from(offset).ok()?, len };
        let good = frame::crc(0, payload) == header.payload_crc;
        Some(Frame { header, payload, loc, good })
    }

    /// Whether a valid batch header stands at `from` or behind: then all before it was durable.
    fn has_batch_behind(&self, from: u64) -> Result<bool, WalError> {
        let mut chunk = vec![0; SEARCH_BYTES];
        let mut at = from;
        while at + BATCH_HEADER as u64 <= self.bytes {
            let bytes = usize::try_from(self.bytes - at).unwrap_or(usize::MAX).min(SEARCH_BYTES);
            chunk.truncate(bytes);
            self.read(&mut chunk, at)?;
            for candidate in frame::batch_candidates(&chunk) {
                let header = chunk.get(candidate..candidate + BATCH_HEADER).unwrap_or_default();
                if frame::parse_batch(header, self.segment.seed, at + candidate as u64).is_some() {
                    return Ok(true);
                }
            }
            // Headers that straddle two chunks are seen in the next one.
            at += (bytes - BATCH_HEADER + 1) as u64;
        }
        Ok(false)
    }
}
