//! Which of many points are drawn.

use std::collections::{HashMap, HashSet};

use crate::record::Kind;

/// About as many points are drawn.
pub const POINTS_MAX: usize = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub time_ns: u64,
    pub latency_ns: u64,
    pub kind: Kind,
}

/// All points, or of too many the slowest and fastest of every kind in every column, and evenly chosen others.
pub fn kept(points: &[Point], column: impl Fn(u64) -> usize) -> Vec<Point> {
    if points.len() <= POINTS_MAX {
        return points.to_vec();
    }
    let mut extremes: HashMap<(usize, Kind), (usize, usize)> = HashMap::new();
    for (at, point) in points.iter().enumerate() {
        let (least, most) = extremes.entry((column(point.time_ns), point.kind)).or_insert((at, at));
        let latency = |at: usize| points.get(at).map(|point| point.latency_ns);
        if Some(point.latency_ns) < latency(*least) {
            *least = at;
        }
        if Some(point.latency_ns) > latency(*most) {
            *most = at;
        }
    }
    let chosen: HashSet<usize> = extremes.into_values().flat_map(|(least, most)| [least, most]).collect();
    let others = POINTS_MAX.saturating_sub(chosen.len()).max(1);
    let stride = points.len().div_ceil(others).max(1);
    let keep = |at: usize| chosen.contains(&at) || at.is_multiple_of(stride);
    points.iter().enumerate().filter(|&(at, _)| keep(at)).map(|(_, &point)| point).collect()
}
