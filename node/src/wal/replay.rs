//! Turns frames, in the order of the log, back into the durable side of each replica.
//!
//! Replay starts at the oldest segment needed, whose first batch gives every replica's state and the range of
//! its records. Those records may lie behind truncations and appends that are younger than they are: `Moved`
//! frames come late. So records are collected in any order, and only the result must be without holes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::codec::{self, GenerationRecord, StateRecord};
use super::frame::{FrameHeader, Kind};
use super::index::{Group, Loc, Placed, View};
use super::record::{GroupState, VoteRecord};
use super::segment::segment_path;
use super::{Damage, ReplicaId};

#[derive(Debug)]
struct Found {
    term: u64,
    loc: Loc,
    /// Its payload matches its checksum.
    good: bool,
}

#[derive(Debug, Default)]
struct Replica {
    state: GroupState,
    /// Records `first..end` must be found by the end.
    first: u64,
    end: u64,
    records: BTreeMap<u64, Found>,
    /// Stays until the replica is removed.
    damage: Option<Damage>,
    /// A state frame is damaged; a later one that holds the whole state makes up for it.
    state_fault: Option<Damage>,
}

/// A frame with a valid header, and where it lies.
pub(super) struct Frame<'a> {
    pub header: FrameHeader,
    pub payload: &'a [u8],
    pub loc: Loc,
    /// The payload matches its checksum.
    pub good: bool,
}

#[derive(Debug, Default)]
pub(super) struct Replay {
    replicas: HashMap<ReplicaId, Replica>,
}

impl Replay {
    pub fn apply(&mut self, frame: &Frame<'_>, path: &Path) {
        let replica = frame.header.replica;
        if frame.header.kind == Kind::Remove {
            self.replicas.remove(&replica);
            return;
        }
        let found = self.replicas.entry(replica).or_default();
        if found.damage.is_none()
            && let Err(detail) = found.apply(frame)
        {
            let damage = Damage::new(path, frame.loc.offset.into(), detail).of(replica);
            match frame.header.kind {
                Kind::Vote | Kind::Generation | Kind::State => found.state_fault = Some(damage),
                Kind::Append
                | Kind::Moved
                | Kind::Committed
                | Kind::Truncate
                | Kind::Purge
                | Kind::Remove => {
                    found.damage = Some(damage);
                }
            }
        }
    }

    /// The replicas found, and the damage among them.
    pub fn finish(self, dir: &Path) -> (Vec<Group>, Vec<Damage>) {
        let (mut groups, mut damages) = (Vec::new(), Vec::new());
        for (replica, found) in self.replicas {
            let (placed, terms) = found.finish(dir, replica);
            damages.extend(placed.damage.clone());
            if placed.is_live() {
                groups.push(Group::new(replica, View::recovered(placed, terms.into_iter())));
            }
        }
        damages.sort_by_key(|damage| damage.replica);
        (groups, damages)
    }
}

impl Replica {
    fn apply(&mut self, frame: &Frame<'_>) -> Result<(), String> {
        let (index, term) = (frame.header.index, frame.header.term);
        match frame.header.kind {
            Kind::Append => {
                if self.first == self.end {
                    (self.first, self.end) = (index, index);
                }
                if index != self.end {
                    return Err(format!("record {index} follows {}", self.end));
                }
                self.end = index.checked_add(1).ok_or("record with the last index there is")?;
                self.records.insert(index, Found { term, loc: frame.loc, good: frame.good });
            }
            Kind::Moved => {
                if !(self.first..self.end).contains(&index) {
                    return Err(format!("moved record {index} is not among {}..{}", self.first, self.end));
                }
                self.records.insert(index, Found { term, loc: frame.loc, good: frame.good });
            }
            Kind::Committed => self.state.committed = Some((term, index)),
            Kind::Truncate => {
                self.records.split_off(&index);
                self.end = self.end.min(index).max(self.first);
            }
            Kind::Purge => self.purge(term, index)?,
            Kind::Vote => self.state.vote = Some(decode::<VoteRecord>(frame)?),
            Kind::Generation => {
                let record: GenerationRecord = decode(frame)?;
                self.state.generation = record.generation;
                self.state.snapshot = record.snapshot;
                if let Some((term, index)) = record.purged {
                    self.purge(term, index)?;
                }
            }
            Kind::State => self.restore(decode(frame)?)?,
            Kind::Remove => {}
        }
        Ok(())
    }

    fn purge(&mut self, term: u64, index: u64) -> Result<(), String> {
        if self.state.purged.is_some_and(|(_, purged)| purged >= index) {
            return Ok(());
        }
        let next = index.checked_add(1).ok_or("purged up to the last index there is")?;
        self.state.purged = Some((term, index));
        self.records = self.records.split_off(&next);
        self.first = self.first.max(next);
        self.end = self.end.max(self.first);
        Ok(())
    }

    fn restore(&mut self, record: StateRecord) -> Result<(), String> {
        let (first, end) = (record.first, record.end);
        let purged = record.state.purged.map_or(0, |(_, purged)| purged);
        if first > end || purged == u64::MAX {
            return Err(format!("state of records {first}..{end}, purged up to {purged}"));
        }
        self.state = record.state;
        (self.first, self.end) = (first, end);
        self.records.split_off(&self.end);
        self.records = self.records.split_off(&self.first);
        self.state_fault = None;
        self.damage = record.damage.map(|damage| {
            let detail = damage.detail;
            Damage { replica: None, path: damage.path.into(), offset: damage.offset, detail }
        });
        Ok(())
    }

    /// The durable side and the records' terms; damage leaves nothing but the damage.
    fn finish(self, dir: &Path, replica: ReplicaId) -> (Placed, Vec<u64>) {
        let damage = self.find_damage(dir);
        if let Some(damage) = damage {
            // As it was recorded, which may have been relative to another working directory.
            let path = damage.path.file_name().map_or_else(|| damage.path.clone(), |name| dir.join(name));
            let damage = Damage { path, ..damage }.of(replica);
            return (Placed { damage: Some(damage), ..Placed::default() }, Vec::new());
        }
        let mut placed = Placed { state: self.state, first: self.first, ..Placed::default() };
        for (&index, found) in &self.records {
            placed.push(replica, index, found.loc);
        }
        (placed, self.records.values().map(|found| found.term).collect())
    }

    fn find_damage(&self, dir: &Path) -> Option<Damage> {
        // Without a state that is damaged what comes after it may not fit either: it is told of the former.
        if let Some(damage) = self.state_fault.as_ref().or(self.damage.as_ref()) {
            return Some(damage.clone());
        }
        if let Some((index, bad)) = self.records.iter().find(|(_, found)| !found.good) {
            let path = segment_path(dir, bad.loc.segment);
            let detail = format!("record {index} does not match its checksum");
            return Some(Damage::new(&path, bad.loc.offset.into(), detail));
        }
        let missing = (self.first..self.end).zip(self.records.keys()).find(|(index, key)| index != *key);
        let missing = missing.map(|(index, _)| index).or_else(|| {
            let behind = self.first + self.records.len() as u64;
            (behind < self.end).then_some(behind)
        });
        missing.map(|index| Damage::new(dir, 0, format!("record {index} is in no segment")))
    }
}

fn decode<T: bincode::Decode<()>>(frame: &Frame<'_>) -> Result<T, String> {
    if frame.good {
        codec::decode(frame.payload)
    } else {
        Err("state does not match its checksum".to_owned())
    }
}
