//! A picture of a run: how long every call took, what faults there were, how many calls ended.
//!
//! One HTML file that needs nothing else, 1200 pixels wide. Its size is bounded: of many calls, the slowest and fastest
//! of every moment are drawn, and some of the others.

mod faults;
mod sample;

use std::io;

use crate::checker::epoch;
use crate::record::{Call, Kind, NEMESIS, Record, calls};
use faults::Fault;
use sample::Point;

/// In pixels.
const WIDTH: f64 = 1200.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 1188.0;
/// One name of a fault above the other.
const LANE: f64 = 15.0;
const LATENCY_HEIGHT: f64 = 420.0;
const STRIP_HEIGHT: f64 = 110.0;
/// As many bars has the throughput.
const BARS: usize = 220;

/// How calls end: its class in the style sheet and what it is called.
const ENDS: [(Kind, &str); 3] = [(Kind::Ok, "ok"), (Kind::Fail, "fail"), (Kind::Info, "info")];

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:16px;color:#222;background:#fff}\
svg{display:block}text{font:12px system-ui,sans-serif;fill:#333}.axis{stroke:#ddd}.name{fill:#7a2b12}\
.dots{fill:none;stroke-width:3;stroke-linecap:round}.fault{fill:#e0662a;fill-opacity:.13}\
.ok.dots{stroke:#2a7fb8;stroke-opacity:.45}.fail.dots{stroke:#e3a008}.info.dots{stroke:#c81e1e}\
.ok.bar{fill:#2a7fb8}.fail.bar{fill:#e3a008}.info.bar{fill:#c81e1e}b.ok{color:#2a7fb8}b.fail{color:#b07c00}\
b.info{color:#c81e1e}";

/// Draws a history. Calls that never ended are drawn with the time they had.
///
/// # Errors
/// Those of `to`; `InvalidData` when the records do not make calls.
pub fn write_html(title: &str, records: &[Record], mut to: impl io::Write) -> io::Result<()> {
    let calls = calls(records).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let (calls, _) = epoch::split(calls);
    let end_ns = records.iter().map(|record| record.time_ns).max().unwrap_or(0).max(1);
    let nemesis: Vec<&Record> = records.iter().filter(|record| record.process == NEMESIS).collect();
    let faults = faults::faults(&nemesis, end_ns);
    let frame = Frame::new(&calls, &faults, end_ns);
    let title = escape(title);
    write!(to, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>")?;
    write!(to, "<style>{STYLE}</style></head><body><h1>{title}</h1><p>")?;
    legend(&calls, nemesis.len(), &mut to)?;
    let height = frame.bottom + 24.0;
    write!(to, "</p><svg width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\">")?;
    frame.faults(&faults, &mut to)?;
    frame.axes(&mut to)?;
    frame.dots(&calls, &mut to)?;
    frame.throughput(&calls, &mut to)?;
    writeln!(to, "</svg></body></html>")?;
    to.flush()
}

fn legend(calls: &[Call], fault_lines: usize, to: &mut impl io::Write) -> io::Result<()> {
    write!(to, "{} calls: ", calls.len())?;
    for (kind, name) in ENDS {
        let count = calls.iter().filter(|call| call.end == kind).count();
        write!(to, "<b class=\"{name}\">{count} {name}</b> ")?;
    }
    let drawn = calls.len().min(sample::POINTS_MAX);
    write!(to, "— about {drawn} drawn; {fault_lines} lines of faults, shaded.")
}

/// Where things are.
struct Frame {
    end_ns: u64,
    /// The powers of ten, in nanoseconds, that the latencies lie between.
    decades: (i32, i32),
    top: f64,
    strip: f64,
    bottom: f64,
}

impl Frame {
    fn new(calls: &[Call], faults: &[Fault], end_ns: u64) -> Self {
        let latencies = || calls.iter().map(|call| latency(call, end_ns));
        let least = decade(latencies().min().unwrap_or(1_000_000));
        let most = decade(latencies().max().unwrap_or(1_000_000)) + 1;
        let lanes = faults.iter().map(|fault| fault.lane + 1).max().unwrap_or(0);
        let top = 8.0 + LANE * float(lanes as u64);
        let strip = top + LATENCY_HEIGHT + 36.0;
        Self { end_ns, decades: (least, most), top, strip, bottom: strip + STRIP_HEIGHT }
    }

    fn x(&self, time_ns: u64) -> f64 {
        LEFT + (RIGHT - LEFT) * float(time_ns.min(self.end_ns)) / float(self.end_ns)
    }

    fn y(&self, latency_ns: u64) -> f64 {
        let (least, most) = self.decades;
        let up = (float(latency_ns.max(1)).log10() - f64::from(least)) / f64::from(most - least);
        self.top + LATENCY_HEIGHT * (1.0 - up)
    }

    fn faults(&self, faults: &[Fault], to: &mut impl io::Write) -> io::Result<()> {
        for fault in faults {
            let (x, end) = (self.x(fault.start_ns), self.x(fault.end_ns));
            let (width, height) = ((end - x).max(1.0), self.bottom - self.top);
            let title = escape(&fault.detail);
            write!(to, "<rect class=\"fault\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" ", self.top)?;
            write!(to, "height=\"{height:.1}\"><title>{title}</title></rect>")?;
            let baseline = self.top - 4.0 - LANE * float(fault.lane as u64);
            // A name that would leave the picture on the right ends where its band ends.
            let (at, anchor) = if x > RIGHT - 140.0 { (end, "end") } else { (x, "start") };
            write!(to, "<text class=\"name\" x=\"{at:.1}\" y=\"{baseline:.1}\" text-anchor=\"{anchor}\">")?;
            write!(to, "{}</text>", escape(&fault.name))?;
        }
        Ok(())
    }

    fn axes(&self, to: &mut impl io::Write) -> io::Result<()> {
        for power in self.decades.0..=self.decades.1 {
            let y = self.y(10_u64.saturating_pow(power.unsigned_abs()));
            write!(to, "<path class=\"axis\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>")?;
            write!(to, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">", LEFT - 6.0, y + 4.0)?;
            write!(to, "{}</text>", duration(power))?;
        }
        let step = step(self.end_ns);
        let (bottom, under) = (self.top + LATENCY_HEIGHT, self.bottom + 16.0);
        for time in (0..=self.end_ns / step).map(|tick| tick * step) {
            let x = self.x(time);
            let seconds = float(time) / 1e9;
            write!(
                to,
                "<path class=\"axis\" d=\"M{x:.1} {:.1}V{bottom:.1}M{x:.1} {:.1}V{:.1}\"/>",
                self.top, self.strip, self.bottom
            )?;
            write!(to, "<text x=\"{x:.1}\" y=\"{under:.1}\" text-anchor=\"middle\">{seconds} s</text>")?;
        }
        Ok(())
    }

    fn dots(&self, calls: &[Call], to: &mut impl io::Write) -> io::Result<()> {
        let columns = |time_ns: u64| self.x(time_ns) as usize;
        let points = calls.iter().map(|call| Point {
            time_ns: call.start_ns,
            latency_ns: latency(call, self.end_ns),
            kind: call.end,
        });
        let kept = sample::kept(&points.collect::<Vec<_>>(), columns);
        for (kind, name) in ENDS {
            write!(to, "<path class=\"dots {name}\" d=\"")?;
            for point in kept.iter().filter(|point| point.kind == kind) {
                write!(to, "M{:.1} {:.1}h0", self.x(point.time_ns), self.y(point.latency_ns))?;
            }
            write!(to, "\"/>")?;
        }
        Ok(())
    }

    /// Calls by the time of their end, one kind on top of the other; those that never ended by their start.
    fn throughput(&self, calls: &[Call], to: &mut impl io::Write) -> io::Result<()> {
        let mut bars = [[0_u64; ENDS.len()]; BARS];
        for call in calls {
            let time = call.end_ns.unwrap_or(call.start_ns);
            let at = (float(time) / float(self.end_ns) * BARS as f64) as usize;
            let kind = ENDS.iter().position(|&(kind, _)| kind == call.end);
            let bar = bars.get_mut(at.min(BARS - 1)).zip(kind);
            if let Some(count) = bar.and_then(|(bar, kind)| bar.get_mut(kind)) {
                *count += 1;
            }
        }
        let most = bars.iter().map(|bar| bar.iter().sum()).max().unwrap_or(0).max(1);
        let seconds = float(self.end_ns) / 1e9 / BARS as f64;
        let width = (RIGHT - LEFT) / BARS as f64;
        for (at, bar) in bars.iter().enumerate() {
            let mut y = self.bottom;
            for (&count, (_, name)) in bar.iter().zip(ENDS).filter(|&(&count, _)| count > 0) {
                let height = STRIP_HEIGHT * float(count) / float(most);
                y -= height;
                let x = LEFT + width * float(at as u64);
                write!(
                    to,
                    "<rect class=\"bar {name}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
                    width - 0.6
                )?;
            }
        }
        write!(
            to,
            "<text x=\"{LEFT}\" y=\"{:.1}\">calls ended, up to {:.0} a second</text>",
            self.strip - 6.0,
            float(most) / seconds
        )
    }
}

fn latency(call: &Call, end_ns: u64) -> u64 {
    call.end_ns.unwrap_or(end_ns).saturating_sub(call.start_ns).max(1)
}

/// Exact enough for pixels.
fn float(number: u64) -> f64 {
    number as f64
}

/// The power of ten at or below.
fn decade(latency_ns: u64) -> i32 {
    i32::try_from(latency_ns.max(1).ilog10()).unwrap_or(0)
}

/// Ten to that power of nanoseconds, for people.
fn duration(power: i32) -> String {
    let unit = match power {
        ..3 => "ns",
        3..6 => "µs",
        6..9 => "ms",
        _ => "s",
    };
    let within = if power >= 9 { power - 9 } else { power.rem_euclid(3) };
    format!("{} {unit}", 10_u64.saturating_pow(within.unsigned_abs()))
}

/// 1, 2 or 5 times a power of ten, so that there are at most 14 ticks.
fn step(end_ns: u64) -> u64 {
    let mut step = 1_000_u64;
    loop {
        for factor in [1, 2, 5] {
            if end_ns / step.saturating_mul(factor) < 14 {
                return step.saturating_mul(factor);
            }
        }
        step = step.saturating_mul(10);
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
