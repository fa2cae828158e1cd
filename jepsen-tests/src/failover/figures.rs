//! What the kills took, as a distribution.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::Failover;

/// Election timeouts within which a shard must be back.
const TIMEOUTS_MAX: u32 = 2;

/// One kill, a line of `failover.jsonl`. Times are microseconds.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kill {
    /// From 1.
    pub kill: u32,
    pub node: String,
    /// Shards that it led.
    pub led: Vec<u32>,
    /// From the kill until each of these had acknowledged a write sent after it.
    pub failover_us: u64,
    pub slowest_shard: u32,
    /// The longest time meanwhile that a shard which it did not lead acknowledged nothing; none if it led all.
    pub others_gap_us: Option<u64>,
    /// How long the machine itself stood still meanwhile. It is told, not deducted.
    pub stalled_us: u64,
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |micros: u64| micros as f64 / 1000.0;
        write!(
            f,
            "kill {:>4}: {} led {:?}, back after {:.0} ms",
            self.kill,
            self.node,
            self.led,
            millis(self.failover_us)
        )?;
        if let Some(gap) = self.others_gap_us {
            write!(f, ", longest gap elsewhere {:.0} ms", millis(gap))?;
        }
        if self.stalled_us > 0 {
            write!(f, ", the machine stood still for {:.0} ms", millis(self.stalled_us))?;
        }
        Ok(())
    }
}

/// All kills.
#[derive(Debug)]
pub struct Summary {
    about: String,
    election_timeout: Duration,
    failover: Histogram<u64>,
    others: Histogram<u64>,
    stalled: u32,
}

/// Digits that count, in the histograms.
const DIGITS: u8 = 3;

impl Summary {
    /// # Errors
    /// When a histogram cannot be made.
    pub fn new(failover: &Failover) -> anyhow::Result<Self> {
        let Failover { seed, nodes, shards, election_timeout, .. } = failover;
        let histogram = || Histogram::new(DIGITS).context("make a histogram");
        Ok(Self {
            about: format!(
                "seed {seed}, {nodes} nodes, {shards} shards, election timeout {election_timeout:?}"
            ),
            election_timeout: *election_timeout,
            failover: histogram()?,
            others: histogram()?,
            stalled: 0,
        })
    }

    /// # Errors
    /// When a figure does not fit the histogram, which grows by itself.
    pub fn add(&mut self, kill: &Kill) -> anyhow::Result<()> {
        self.failover.record(kill.failover_us).context("record a failover")?;
        if let Some(gap) = kill.others_gap_us {
            self.others.record(gap).context("record a gap")?;
        }
        self.stalled += u32::from(kill.stalled_us > 0);
        Ok(())
    }

    fn limit(&self) -> Duration {
        self.election_timeout * TIMEOUTS_MAX
    }

    /// Whether 99 of 100 kills were over within two election timeouts. No kill is no pass.
    pub fn passed(&self) -> bool {
        !self.failover.is_empty()
            && Duration::from_micros(self.failover.value_at_quantile(0.99)) <= self.limit()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.about)?;
        writeln!(
            f,
            "{:<28} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "milliseconds", "count", "min", "p50", "p90", "p99", "max"
        )?;
        for (name, histogram) in
            [("until all led shards write", &self.failover), ("longest gap of the others", &self.others)]
        {
            let millis = |micros: u64| format!("{:.0}", micros as f64 / 1000.0);
            let at = |quantile| millis(histogram.value_at_quantile(quantile));
            writeln!(
                f,
                "{name:<28} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9}",
                histogram.len(),
                millis(histogram.min()),
                at(0.5),
                at(0.9),
                at(0.99),
                millis(histogram.max())
            )?;
        }
        let verdict = if self.passed() { "p99 is within" } else { "VIOLATION: p99 is above" };
        write!(
            f,
            "{verdict} {TIMEOUTS_MAX} election timeouts ({:?}); the machine stood still during {} kills",
            self.limit(),
            self.stalled
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(failovers_ms: &[u64]) -> Summary {
        let failover = Failover {
            kills: 1,
            seed: 1,
            nodes: 3,
            shards: 8,
            election_timeout: Duration::from_secs(1),
            engine: None,
            dir: std::path::PathBuf::new(),
        };
        let mut summary = Summary::new(&failover).unwrap();
        for (number, millis) in (1..).zip(failovers_ms) {
            let kill = Kill {
                kill: number,
                node: "node-1".to_owned(),
                led: vec![1],
                failover_us: millis * 1000,
                slowest_shard: 1,
                others_gap_us: Some(30_000),
                stalled_us: 0,
            };
            summary.add(&kill).unwrap();
        }
        summary
    }

    #[test]
    fn one_in_a_hundred_may_be_late_two_may_not() {
        let mut millis = vec![1200; 99];
        millis.push(9000);
        assert!(summary(&millis).passed());
        millis.push(9000);
        assert!(!summary(&millis).passed());
        assert!(!summary(&[]).passed(), "nothing was measured");
        assert!(!summary(&[2100]).passed());
    }

    #[test]
    fn the_table_tells_the_distribution() {
        let text = summary(&[900, 1000, 1100]).to_string();
        for part in ["election timeout 1s", "p99 is within 2", "3       900      1000"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
