//! Faults as spans of time, each in a lane where its name overlaps no other.

use std::collections::HashMap;

use serde_json::Value;

use crate::record::Record;

/// More are not drawn: nobody could tell them apart.
const FAULTS_MAX: usize = 400;
/// Names that find no free lane share the last.
const LANES_MAX: usize = 8;

pub struct Fault {
    pub name: String,
    /// Its start's and end's details.
    pub detail: String,
    pub start_ns: u64,
    pub end_ns: u64,
    pub lane: usize,
}

/// Pairs the starts and ends of each fault, the first with the first; what did not end goes on to the end of the run. What
/// has no phase took no time.
pub fn faults(records: &[&Record], end_ns: u64) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut open: HashMap<&str, Vec<usize>> = HashMap::new();
    for record in records {
        let phase = record.value.get("phase").and_then(Value::as_str);
        let at = open.entry(&record.f).or_default();
        if phase == Some("end") && !at.is_empty() {
            if let Some(fault) = faults.get_mut(at.remove(0)) {
                fault.end_ns = record.time_ns;
                fault.detail.push_str(&format!("\n{}", record.value));
            }
            continue;
        }
        if faults.len() == FAULTS_MAX {
            continue;
        }
        let lasts = phase == Some("start");
        if lasts {
            at.push(faults.len());
        }
        faults.push(Fault {
            name: record.f.clone(),
            detail: format!("{} {}", record.f, record.value),
            start_ns: record.time_ns,
            end_ns: if lasts { end_ns } else { record.time_ns },
            lane: 0,
        });
    }
    give_lanes(&mut faults, end_ns);
    faults
}

/// A name takes about 7 of 1100 pixels a letter, whatever its fault's length.
fn give_lanes(faults: &mut [Fault], end_ns: u64) {
    let mut free_at: Vec<u64> = Vec::new();
    for fault in faults {
        let width = (end_ns / 1100).saturating_mul(7 * (fault.name.chars().count() as u64 + 2));
        let until = fault.start_ns.saturating_add(width);
        let lane = free_at.iter().position(|&free| free <= fault.start_ns).unwrap_or(free_at.len());
        fault.lane = lane.min(LANES_MAX - 1);
        match free_at.get_mut(fault.lane) {
            Some(free) => *free = until,
            None => free_at.push(until),
        }
    }
}
