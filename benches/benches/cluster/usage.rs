//! Processor time of a process, from `/proc` (Linux).

use anyhow::{Context, Result, ensure};

/// `USER_HZ`: what the kernel counts processor time in for user space, on every architecture of today.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of user and system time of a process, its threads included.
///
/// # Errors
/// When there is no such process.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The name in parentheses may hold anything; behind it, `utime` and `stime` are fields 12 and 13.
    let behind = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks: Vec<u64> = behind.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
    ensure!(ticks.len() == 2, "{path} is not understood: {stat:?}");
    Ok(ticks.iter().sum::<u64>() as f64 / TICKS_PER_SECOND)
}
