//! Clocks that jump and drift.
//!
//! The monotonic clock is a line through the last change of its speed; the wall clock is off by as much as that is, and by
//! the jump. Every thread reads one line: a reader that meets a change reads again, so no thread sees time go back.

use std::ffi::{c_int, c_long, c_void};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use libc::{clockid_t, timespec, timeval};

use crate::layout::Word;
use crate::real;
use crate::state::{Shim, shim};

const SECOND_NS: i64 = 1_000_000_000;
const NORMAL_PPM: u64 = 1_000_000;

/// Odd while the line changes.
static VERSION: AtomicU64 = AtomicU64::new(0);
static BASE_REAL: AtomicI64 = AtomicI64::new(0);
static BASE_TOLD: AtomicI64 = AtomicI64::new(0);
static RATE: AtomicU64 = AtomicU64::new(NORMAL_PPM);

/// Where told time was at some real time, and how fast it goes.
#[derive(Clone, Copy)]
struct Line {
    real: i64,
    told: i64,
    rate: u64,
}

fn scaled(ns: i64, by: u64, of: u64) -> i64 {
    i64::try_from(i128::from(ns) * i128::from(by) / i128::from(of.max(1))).unwrap_or(0)
}

impl Line {
    fn told_at(self, real: i64) -> i64 {
        self.told + scaled(real - self.real, self.rate, NORMAL_PPM)
    }

    fn real_at(self, told: i64) -> i64 {
        self.real + scaled(told - self.told, NORMAL_PPM, self.rate)
    }
}

fn nanoseconds(time: &timespec) -> i64 {
    time.tv_sec.saturating_mul(SECOND_NS).saturating_add(time.tv_nsec)
}

fn time(ns: i64) -> timespec {
    // SAFETY: all zeros are a time.
    let mut time: timespec = unsafe { std::mem::zeroed() };
    (time.tv_sec, time.tv_nsec) = (ns.div_euclid(SECOND_NS), ns.rem_euclid(SECOND_NS));
    time
}

/// What the kernel says, in nanoseconds.
fn ask(clock: clockid_t) -> i64 {
    let mut answer = time(0);
    // SAFETY: there is room for the answer; only clocks that exist are asked for.
    unsafe { real::clock_gettime(clock, &raw mut answer) };
    nanoseconds(&answer)
}

/// The line, and the real monotonic time at which it held.
fn line(shim: &Shim) -> (Line, i64) {
    loop {
        let version = VERSION.load(Ordering::SeqCst);
        let line = Line {
            real: BASE_REAL.load(Ordering::SeqCst),
            told: BASE_TOLD.load(Ordering::SeqCst),
            rate: RATE.load(Ordering::SeqCst),
        };
        if version % 2 == 1 {
            std::hint::spin_loop();
            continue;
        }
        let wanted = match shim.get(Word::ClockRatePpm) {
            0 => NORMAL_PPM,
            rate => rate,
        };
        if wanted == line.rate {
            let now = ask(libc::CLOCK_MONOTONIC);
            if VERSION.load(Ordering::SeqCst) == version {
                return (line, now);
            }
        } else if VERSION.compare_exchange(version, version + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            let now = ask(libc::CLOCK_MONOTONIC);
            BASE_TOLD.store(line.told_at(now), Ordering::SeqCst);
            BASE_REAL.store(now, Ordering::SeqCst);
            RATE.store(wanted, Ordering::SeqCst);
            VERSION.store(version + 2, Ordering::SeqCst);
        }
    }
}

/// By how much the wall clock is ahead of what it would be.
fn jump(shim: &Shim) -> i64 {
    i64::from_ne_bytes(shim.get(Word::WallOffsetNs).to_ne_bytes())
}

/// The state, unless all clocks are right and have always been.
fn wrong() -> Option<&'static Shim> {
    shim().filter(|shim| {
        shim.get(Word::ClockRatePpm) != 0
            || shim.on(Word::WallOffsetNs)
            || VERSION.load(Ordering::SeqCst) != 0
    })
}

/// What this clock tells; nothing for clocks of processes and threads.
fn told(shim: &Shim, clock: clockid_t) -> Option<i64> {
    let (line, now) = line(shim);
    let ahead = line.told_at(now) - now;
    let (of_kernel, off) = match clock {
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_COARSE => (now, ahead),
        libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_BOOTTIME => (ask(clock), ahead),
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => (ask(libc::CLOCK_REALTIME), ahead + jump(shim)),
        _ => return None,
    };
    if off != 0 {
        shim.count(Word::WrongTimes);
    }
    Some(of_kernel + off)
}

/// When a moment that the process named comes for the kernel.
fn moment(shim: &Shim, clock: clockid_t, at: &timespec) -> timespec {
    let (line, now) = line(shim);
    let at = nanoseconds(at);
    if clock == libc::CLOCK_REALTIME {
        return time(at - (line.told_at(now) - now) - jump(shim));
    }
    time(line.real_at(at))
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, answer: *mut timespec) -> c_int {
    if let Some(ns) = wrong().and_then(|shim| told(shim, clock)) {
        // SAFETY: the caller's promise.
        if let Some(answer) = unsafe { answer.as_mut() } {
            *answer = time(ns);
            return 0;
        }
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::clock_gettime(clock, answer) }
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(answer: *mut timeval, zone: *mut c_void) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let result = unsafe { real::gettimeofday(answer, zone) };
    if let Some(ns) = wrong().and_then(|shim| told(shim, libc::CLOCK_REALTIME)) {
        // SAFETY: the caller's promise.
        if let Some(answer) = unsafe { answer.as_mut() } {
            (answer.tv_sec, answer.tv_usec) = (ns.div_euclid(SECOND_NS), ns.rem_euclid(SECOND_NS) / 1000);
        }
    }
    result
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_nanosleep(
    clock: clockid_t,
    flags: c_int,
    until: *const timespec,
    left: *mut timespec,
) -> c_int {
    // SAFETY: the caller's promise.
    let at = unsafe { until.as_ref() };
    if let Some((shim, at)) = wrong().zip(at.filter(|_| flags & libc::TIMER_ABSTIME != 0)) {
        let at = moment(shim, clock, at);
        // SAFETY: the caller's arguments but for the time, which lives long enough.
        return unsafe { real::clock_nanosleep(clock, flags, &raw const at, left) };
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::clock_nanosleep(clock, flags, until, left) }
}

/// Without these, a futex operation is the bare command.
const FUTEX_FLAGS: c_long = (libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as c_long;

/// Rust's standard library waits on futexes until a moment.
///
/// # Safety
/// As the C library's. A call with fewer arguments ignores what is read in place of the others.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    let waits = number == libc::SYS_futex && b & !FUTEX_FLAGS == c_long::from(libc::FUTEX_WAIT_BITSET);
    // SAFETY: the fourth argument of this operation is a time or null.
    let until = if waits { unsafe { (d as *const timespec).as_ref() } } else { None };
    if let Some((shim, until)) = wrong().zip(until) {
        let wall = b & c_long::from(libc::FUTEX_CLOCK_REALTIME) != 0;
        let at = moment(shim, if wall { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC }, until);
        let d = (&raw const at) as c_long;
        // SAFETY: the caller's arguments but for the time, which lives long enough.
        return unsafe { real::syscall(number, a, b, c, d, e, f) };
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real::syscall(number, a, b, c, d, e, f) }
}
