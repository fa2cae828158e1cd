//! Scripts of logs, and the log's golden segment.

use super::Seed;
use crate::input::Output;

const GOLDEN: &str = include_str!("../../../../node/src/wal/tests/golden_segment.hex");

fn golden() -> Vec<u8> {
    let digits: Vec<u8> = GOLDEN.chars().filter_map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect();
    digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect()
}

/// What a node logs: records of two replicas in several batches and segments, and everything else that there is.
fn history(script: Output) -> Output {
    let append =
        |script: Output, replica: u8, payload: &[u8]| script.byte(0).byte(replica).number(1).bytes(payload);
    let batch = |script: Output| script.byte(11).byte(0);
    let script = script.byte(0).byte(0).number(1).bytes(b"\x01one");
    let script = batch(append(append(script, 0, b"two"), 0, b"three"));
    // A vote, a committed position, records of another replica.
    let script = script.byte(3).byte(0).number(5).number(1).byte(1).byte(4).byte(0).number(2).number(1);
    let script = batch(script.byte(0).byte(1).number(1).bytes(b"\x01a"));
    // Truncated to one record less, purged, a generation of the engine.
    let script = batch(script.byte(5).byte(0).byte(2).byte(6).byte(0).number(1).byte(0));
    let script = batch(script.byte(7).byte(0).number(9).bytes(b"blob").byte(0));
    // The next segment: a record is copied forward, more are added, a replica goes.
    let script = batch(append(script.byte(10).byte(9).byte(1).byte(0), 1, &[b'x'; 200]));
    let script = batch(append(script.byte(8).byte(2).byte(10), 0, b"last"));
    batch(append(script, 1, b"in flight"))
}

pub fn seeds() -> Vec<Seed> {
    let faulty = |fault: u8, place: u64, amount: u8| {
        history(Output::default().byte(0).byte(fault).number(place).byte(amount)).0
    };
    let wild = Output::default().byte(2).byte(3);
    let append = |script: Output, index: u64| {
        script.byte(7).byte(1).number(1).number(index).number(1).byte(0).bytes(b"x")
    };
    // A state frame, records behind it, a batch that tells more frames than it has, a segment that starts elsewhere.
    let state = wild
        .byte(0)
        .byte(7)
        .byte(8)
        .number(1)
        .number(0)
        .number(0)
        .byte(1)
        .byte(1)
        .number(3)
        .number(2)
        .byte(1);
    let state = state.byte(0).byte(1).number(1).number(4).number(9).bytes(b"s").number(5).number(6).byte(0);
    let state = append(state, 5).byte(0);
    let lies = append(Output(state.0.clone()), 6).byte(1).number(1).number(9);
    let gap = append(Output(state.0.clone()), u64::MAX).byte(0).byte(2).byte(1).number(70).byte(0);
    vec![
        ("whole", faulty(0, 0, 0)),
        ("torn-behind", faulty(1, 20, 0)),
        ("torn-before", faulty(2, 40, 0)),
        ("torn-byte", faulty(2, 72, 0x20)),
        ("flipped-header", faulty(3, 20, 1)),
        ("flipped-payload", faulty(4, 250, 0x80)),
        ("flipped-later", faulty(4, 700, 4)),
        ("shortened", faulty(5, 303, 0)),
        ("wild-state", state.0),
        ("wild-count", lies.0),
        ("wild-gap", gap.0),
        ("golden-segment", Output::default().byte(3).rest(&golden()).0),
        ("empty-segment", vec![3]),
    ]
}
