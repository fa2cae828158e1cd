//! The register checker finds what it must, and agrees with an exhaustive search.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

fn write(value: u64, start: u64, end: u64) -> Write {
    Write { value, start, end: Some(end), refused: false }
}

fn unknown(value: u64, start: u64) -> Write {
    Write { value, start, end: None, refused: false }
}

fn read(value: u64, start: u64, end: u64) -> Read {
    Read { value: Some(value), start, end }
}

fn nothing(start: u64, end: u64) -> Read {
    Read { value: None, start, end }
}

#[test]
fn good_histories_pass() {
    let sequential = check(&[write(1, 1, 2), write(2, 5, 6)], &[read(1, 3, 4), read(2, 7, 8)]);
    assert_eq!(sequential, Ok(()));
    // Concurrent with both writes, reads may see either, in an order that fits.
    assert_eq!(check(&[write(1, 1, 10), write(2, 2, 9)], &[read(2, 3, 4), read(1, 5, 6)]), Ok(()));
    // A write of unknown outcome may take effect late, or never.
    let late = check(&[unknown(1, 1), write(2, 3, 4)], &[read(2, 5, 6), read(1, 7, 8)]);
    assert_eq!(late, Ok(()));
    assert_eq!(check(&[unknown(1, 1), write(2, 3, 4)], &[read(2, 5, 6), read(2, 7, 8)]), Ok(()));
    assert_eq!(check(&[write(1, 3, 6)], &[nothing(1, 2), nothing(4, 5), read(1, 4, 5)]), Ok(()));
}

#[test]
fn a_stale_read_is_found() {
    assert!(check(&[write(1, 1, 2), write(2, 3, 4)], &[read(1, 5, 6)]).is_err());
    assert!(check(&[write(1, 1, 2)], &[nothing(3, 4)]).is_err());
    // Backwards in time: a later read sees the older value, while the newer write is still under way.
    assert!(check(&[write(1, 1, 2), write(2, 3, 20)], &[read(2, 5, 6), read(1, 7, 8)]).is_err());
}

#[test]
fn a_lost_write_is_found() {
    let lost = check(&[write(1, 1, 2), write(2, 3, 4)], &[read(2, 5, 6), read(1, 7, 8)]);
    assert!(lost.is_err());
    assert!(check(&[write(1, 1, 2)], &[read(1, 3, 4), nothing(5, 6)]).is_err());
    // A write of unknown outcome that was seen once must not vanish either.
    assert!(check(&[write(1, 1, 2), unknown(2, 3)], &[read(2, 5, 6), read(1, 7, 8)]).is_err());
}

#[test]
fn a_dirty_read_is_found() {
    let refused = Write { refused: true, ..write(1, 1, 2) };
    assert!(matches!(check(&[refused], &[read(1, 3, 4)]), Err(Breach::Refused { .. })));
    assert!(matches!(check(&[], &[read(7, 3, 4)]), Err(Breach::Phantom { .. })));
    assert!(matches!(check(&[write(1, 5, 6)], &[read(1, 3, 4)]), Err(Breach::Future { .. })));
    assert!(matches!(check(&[write(1, 1, 2), write(1, 3, 4)], &[]), Err(Breach::TwoWrites { value: 1 })));
}

#[test]
fn a_resurrected_write_is_found() {
    let reads = [read(1, 3, 4), read(2, 7, 8), read(1, 9, 10)];
    assert!(check(&[write(1, 1, 2), write(2, 5, 6)], &reads).is_err());
}

/// One operation of the search: `wrote` or `read`.
#[derive(Clone, Copy)]
struct Step {
    wrote: Option<u64>,
    read: Option<u64>,
    start: u64,
    end: u64,
    optional: bool,
}

/// Wing and Gong's search: take any operation that begins before all that are left have ended.
fn linearizable(steps: &[Step], state: Option<u64>) -> bool {
    if steps.iter().all(|step| step.optional) {
        return true;
    }
    let first_end = steps.iter().map(|step| step.end).min().unwrap_or(u64::MAX);
    (0..steps.len()).any(|index| {
        let step = steps[index];
        let fits = step.start <= first_end && (step.wrote.is_some() || step.read == state);
        let rest: Vec<Step> = [&steps[..index], &steps[index + 1..]].concat();
        fits && linearizable(&rest, step.wrote.or(state))
    })
}

fn steps(writes: &[Write], reads: &[Read]) -> Vec<Step> {
    let writes = writes.iter().filter(|write| !write.refused).map(|write| Step {
        wrote: Some(write.value),
        read: None,
        start: write.start,
        end: write.end.unwrap_or(u64::MAX),
        optional: write.end.is_none(),
    });
    let reads = reads.iter().map(|read| Step {
        wrote: None,
        read: read.value,
        start: read.start,
        end: read.end,
        optional: false,
    });
    writes.chain(reads).collect()
}

#[test]
fn random_histories_are_judged_as_by_search() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..20_000_u64 {
        let mut random = StdRng::seed_from_u64(seed);
        // Distinct times, so that the order of equal ones does not matter.
        let mut times: Vec<u64> = (1..=14).collect();
        let mut interval = || {
            let first = times.swap_remove(random.random_range(0..times.len()));
            let second = times.swap_remove(random.random_range(0..times.len()));
            (first.min(second), first.max(second), random.random_range(0..8_u32))
        };
        let writes: Vec<Write> = (1..=3)
            .map(|value| {
                let (start, end, dice) = interval();
                Write { value, start, end: (dice > 1).then_some(end), refused: dice == 7 }
            })
            .collect();
        let reads: Vec<Read> = (0..4)
            .map(|_| {
                let (start, end, dice) = interval();
                Read { value: (dice > 1).then_some(u64::from(dice) % 3 + 1), start, end }
            })
            .collect();
        let verdict = check(&writes, &reads);
        let search = linearizable(&steps(&writes, &reads), None);
        assert_eq!(verdict.is_ok(), search, "seed {seed}: {verdict:?} for {writes:?} {reads:?}");
        if search { good += 1 } else { bad += 1 }
    }
    assert!(good > 50 && bad > 50, "both kinds must occur: {good} good, {bad} bad");
}
