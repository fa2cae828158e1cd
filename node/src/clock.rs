//! Wall time for stamps and expiry. Intervals use tokio's monotonic clock instead.
//!
//! The wall clock may jump; a stamp must not. A shard's time never runs backwards (I5), and a jump of hours forward
//! would age idempotency records and sessions before their time. So the wall clock is followed slowly: this clock
//! runs at most a tenth faster or slower than the monotonic one, which absorbs a second's jump in ten seconds.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Parts of an interval by which the clock may catch up or hold back.
const SLEW_PARTS: u32 = 10;

static CLOCK: Mutex<Option<(Instant, Duration)>> = Mutex::new(None);

/// Milliseconds since the Unix epoch; never runs backwards within a process.
pub fn now_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut clock = CLOCK.lock();
    let at = Instant::now();
    let time = match *clock {
        Some((before, time)) => follow(time, at.saturating_duration_since(before), wall),
        None => wall,
    };
    *clock = Some((at, time));
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The time after `elapsed`, as near to `wall` as the slew allows.
fn follow(time: Duration, elapsed: Duration, wall: Duration) -> Duration {
    let slew = elapsed / SLEW_PARTS;
    wall.clamp(time + elapsed - slew, time + elapsed + slew)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_wall_clock_is_followed_slowly_and_never_backwards() {
        let second = Duration::from_secs(1);
        let start = Duration::from_secs(1_000_000);
        assert_eq!(follow(start, second, start + second), start + second);
        assert_eq!(follow(start, second, start + 3600 * second), start + second + second / 10);
        assert_eq!(follow(start, second, Duration::ZERO), start + second - second / 10);
        let mut time = start;
        for step in 1..=10 {
            let wall = start + (step + 1) * second;
            time = follow(time, second, wall);
        }
        assert_eq!(time, start + 11 * second, "a second's jump is absorbed in ten");
    }

    #[test]
    fn time_does_not_stand_still() {
        let first = now_ms();
        assert!(first > 1_600_000_000_000);
        assert!(now_ms() >= first);
    }
}
