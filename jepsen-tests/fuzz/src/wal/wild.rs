//! Logs that no node writes, under checksums that hold: numbers at their ends, frames out of order, headers that lie.

use borough_node::wal::{GroupState, VoteRecord};

use super::image::{self, CAPACITY, Frame, Header, Segment, kind};
use crate::input::Input;

/// Most segments and frames of a script: more of the same only cost time.
const SEGMENTS_MAX: usize = 4;
const FRAMES_MAX: usize = 64;

/// Reads a script of frames, batches and segments.
pub fn read(input: &mut Input<'_>) -> Vec<Segment> {
    let mut segments = vec![segment(input, 1, 0)];
    let mut frames = 0;
    while !input.is_empty() && frames < FRAMES_MAX {
        let count = segments.len();
        let Some(current) = segments.last_mut() else { break };
        match input.byte() % 8 {
            0 => current.end_batch(1, None),
            1 => {
                let oldest = input.number();
                current.end_batch(oldest, u32::try_from(input.number()).ok());
            }
            2 if count < SEGMENTS_MAX => {
                let end = current.end() as u64;
                segments.push(segment(input, count as u64 + 1, end));
            }
            3 => {
                let bytes = input.bytes();
                current.bytes.extend_from_slice(bytes);
            }
            _ => {
                frames += 1;
                frame(current, input);
            }
        }
    }
    for segment in &mut segments {
        let bytes = usize::try_from(CAPACITY).unwrap_or(usize::MAX).max(segment.end());
        segment.bytes.resize(bytes, 0);
    }
    segments
}

fn segment(input: &mut Input<'_>, sequence: u64, end: u64) -> Segment {
    let header = Header { sequence, oldest: 1, previous_end: end, capacity: CAPACITY };
    Segment::new(match input.byte() % 4 {
        0 => Header { oldest: input.number(), ..header },
        1 => Header { previous_end: input.number(), ..header },
        // No larger: several such files together have more bytes than their figure in the log's statistics can tell.
        2 => Header { capacity: input.number() >> 8, ..header },
        _ => header,
    })
}

fn frame(segment: &mut Segment, input: &mut Input<'_>) {
    let kind = input.byte() % 11;
    let (replica, index, term) = (input.number() % 8, input.number(), input.number());
    let payload = match (input.byte() % 4, kind) {
        (0, _) => input.bytes().to_vec(),
        (_, kind::VOTE) => image::vote(&vote(input)),
        (_, kind::STATE) => {
            let state = GroupState {
                vote: option(input, vote),
                purged: option(input, position),
                committed: option(input, position),
                generation: input.number(),
                snapshot: input.bytes().to_vec(),
            };
            let (first, end) = (input.number(), input.number());
            let damage = option(input, |input| (text(input), input.number(), text(input)));
            image::state(&state, first, end, damage)
        }
        (_, kind::GENERATION) => {
            let (generation, snapshot) = (input.number(), input.bytes());
            image::generation(generation, snapshot, option(input, position))
        }
        _ => Vec::new(),
    };
    segment.frame(Frame { kind, replica, index, term, payload: &payload });
}

fn option<T>(input: &mut Input<'_>, read: impl FnOnce(&mut Input<'_>) -> T) -> Option<T> {
    (!input.byte().is_multiple_of(2)).then(|| read(input))
}

fn position(input: &mut Input<'_>) -> (u64, u64) {
    (input.number(), input.number())
}

fn vote(input: &mut Input<'_>) -> VoteRecord {
    let (term, voted_for) = position(input);
    VoteRecord { term, voted_for, committed: !input.byte().is_multiple_of(2) }
}

fn text(input: &mut Input<'_>) -> String {
    String::from_utf8_lossy(input.bytes()).into_owned()
}
