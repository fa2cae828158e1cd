//! Latencies and failures of a load: recorded by each connection, merged, summed up for people and programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::mix::Kind;

/// Longest latency told apart, in microseconds; a longer one counts as this.
const LATENCY_US_MAX: u64 = 120_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// What became of requests. Latency is counted for answered requests, in microseconds.
#[derive(Debug, Clone, Default)]
pub struct Record {
    latencies: BTreeMap<Kind, Histogram<u64>>,
    /// Answers 404 where a document may be absent.
    absent: u64,
    errors: BTreeMap<String, u64>,
}

impl Record {
    /// A request of `kind` was answered after `latency`.
    pub fn answered(&mut self, kind: Kind, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        if let Some(histogram) = self.histogram(kind) {
            histogram.saturating_record(micros.max(1));
        }
    }

    /// Such an answer was 404, as it may.
    pub fn absent(&mut self) {
        self.absent += 1;
    }

    /// A request failed in a way that the load does not expect.
    pub fn failed(&mut self, why: &str) {
        match self.errors.get_mut(why) {
            Some(count) => *count += 1,
            None => drop(self.errors.insert(why.to_owned(), 1)),
        }
    }

    /// Whether a request failed.
    pub fn has_failures(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Adds what another connection recorded.
    pub fn merge(&mut self, other: Self) {
        for (kind, histogram) in &other.latencies {
            if let Some(own) = self.histogram(*kind) {
                // Same bounds, so it always fits.
                own.add(histogram).unwrap_or_default();
            }
        }
        self.absent += other.absent;
        for (why, count) in other.errors {
            *self.errors.entry(why).or_default() += count;
        }
    }

    fn histogram(&mut self, kind: Kind) -> Option<&mut Histogram<u64>> {
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.latencies.entry(kind) {
            vacant.insert(Histogram::new_with_max(LATENCY_US_MAX, SIGNIFICANT_DIGITS).ok()?);
        }
        self.latencies.get_mut(&kind)
    }
}

/// Quantiles of latency, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    pub requests: u64,
    /// Answered requests a second.
    pub per_second: f64,
    pub mean_us: f64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

impl Latency {
    /// Of what was answered within `seconds`.
    fn new(histogram: &Histogram<u64>, seconds: f64) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            requests: histogram.len(),
            per_second: if seconds > 0.0 { histogram.len() as f64 / seconds } else { 0.0 },
            mean_us: histogram.mean(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max(),
        }
    }
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Requests a second asked for; `None` for a closed loop.
    pub rate: Option<f64>,
    pub connections: usize,
    /// From the first recorded start to the last answer.
    pub seconds: f64,
    /// Answered requests a second.
    pub per_second: f64,
    pub all: Latency,
    pub kinds: BTreeMap<&'static str, Latency>,
    /// Answers 404 where a document may be absent.
    pub absent: u64,
    /// Failed requests by what went wrong.
    pub errors: BTreeMap<String, u64>,
}

impl Report {
    /// Sums up `record`, made within `elapsed`.
    pub fn new(rate: Option<f64>, connections: usize, elapsed: Duration, record: Record) -> Self {
        let mut all = Record::default();
        for histogram in record.latencies.values() {
            if let Some(sum) = all.histogram(Kind::Get) {
                sum.add(histogram).unwrap_or_default();
            }
        }
        let seconds = elapsed.as_secs_f64();
        let latency = |histogram: &Histogram<u64>| Latency::new(histogram, seconds);
        let all = all.latencies.values().next().map(latency).unwrap_or_default();
        let kinds =
            record.latencies.iter().map(|(kind, histogram)| (kind.name(), latency(histogram))).collect();
        Self {
            rate,
            connections,
            seconds,
            per_second: all.per_second,
            all,
            kinds,
            absent: record.absent,
            errors: record.errors,
        }
    }

    /// Requests that failed, whatever the reason.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, seconds, per_second, .. } = self;
        match self.rate {
            Some(rate) => write!(f, "open loop at {rate}/s")?,
            None => write!(f, "closed loop")?,
        }
        writeln!(f, ", {connections} connections, {seconds:.1} s: {per_second:.0} requests/s")?;
        writeln!(
            f,
            "{:8} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "ms", "requests", "per s", "p50", "p90", "p99", "p99.9", "max"
        )?;
        let more_than_one = self.kinds.len() > 1;
        let all = more_than_one.then_some(("all", &self.all));
        for (name, latency) in self.kinds.iter().map(|(name, latency)| (*name, latency)).chain(all) {
            write!(f, "{name:8} {:>10} {:>9.0}", latency.requests, latency.per_second)?;
            for micros in [latency.p50_us, latency.p90_us, latency.p99_us, latency.p999_us, latency.max_us] {
                write!(f, " {:>9.3}", micros as f64 / 1000.0)?;
            }
            writeln!(f)?;
        }
        if self.absent > 0 {
            writeln!(f, "{} answers were 404, as they may", self.absent)?;
        }
        for (why, count) in &self.errors {
            writeln!(f, "FAILED {count}: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_records_sum_up_to_quantiles_by_kind_and_of_all() {
        let (mut first, mut second) = (Record::default(), Record::default());
        for millis in 1..=500 {
            first.answered(Kind::Get, Duration::from_millis(millis));
            second.answered(Kind::Put, Duration::from_millis(500 + millis));
        }
        second.failed("timeout");
        first.failed("timeout");
        second.failed("status 503");
        second.absent();
        first.merge(second);
        let report = Report::new(None, 2, Duration::from_secs(10), first);
        let near = |micros: u64, millis: u64| micros.abs_diff(millis * 1000) <= millis * 2;
        assert_eq!((report.all.requests, report.absent, report.failed()), (1000, 1, 3));
        assert!((report.per_second - 100.0).abs() < 1e-9);
        assert!((report.kinds["put"].per_second - 50.0).abs() < 1e-9);
        assert!(near(report.all.p50_us, 500) && near(report.all.p99_us, 990), "{report:?}");
        assert!(
            near(report.kinds["get"].p90_us, 450) && near(report.kinds["put"].max_us, 1000),
            "{report:?}"
        );
        assert_eq!(report.errors["timeout"], 2);
        let text = report.to_string();
        assert!(text.contains("100 requests/s") && text.contains("FAILED 2: timeout"), "{text}");
    }

    #[test]
    fn latencies_beyond_the_histogram_are_kept_as_its_maximum() {
        let mut record = Record::default();
        record.answered(Kind::Get, Duration::from_secs(100_000));
        record.answered(Kind::Get, Duration::ZERO);
        let report = Report::new(Some(5.0), 1, Duration::from_secs(1), record);
        assert_eq!(report.all.requests, 2);
        assert!(report.all.max_us >= LATENCY_US_MAX && report.all.max_us < LATENCY_US_MAX * 2);
    }

    #[test]
    fn a_run_without_an_answer_is_reported_too() {
        let report = Report::new(None, 1, Duration::ZERO, Record::default());
        assert_eq!((report.all.requests, report.per_second), (0, 0.0));
        assert!(serde_json::to_string(&report).unwrap().contains("\"perSecond\":0.0"));
    }
}
