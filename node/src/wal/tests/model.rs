//! A random history of operations, rotations, crashes and restarts against a model of a few lines.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Append { replica: u64, count: u64, term_up: u64, bytes: usize },
    Vote { replica: u64, term: u64 },
    Generation { replica: u64, generation: u64, purge_ahead: Option<u64> },
    Committed { replica: u64, index: u64 },
    Truncate { replica: u64, back: u64 },
    Purge { replica: u64, ahead: u64 },
    Remove { replica: u64 },
    Close,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let replica = 1..5u64;
    prop_oneof![
        12 => (replica.clone(), 1..6u64, 0..2u64, 0..400usize)
            .prop_map(|(replica, count, term_up, bytes)| Step::Append { replica, count, term_up, bytes }),
        2 => (replica.clone(), 1..9u64).prop_map(|(replica, term)| Step::Vote { replica, term }),
        1 => (replica.clone(), 1..9u64, proptest::option::of(0..6u64))
            .prop_map(|(replica, generation, purge_ahead)| Step::Generation { replica, generation, purge_ahead }),
        2 => (replica.clone(), 1..99u64).prop_map(|(replica, index)| Step::Committed { replica, index }),
        2 => (replica.clone(), 0..8u64).prop_map(|(replica, back)| Step::Truncate { replica, back }),
        3 => (replica.clone(), 0..12u64).prop_map(|(replica, ahead)| Step::Purge { replica, ahead }),
        1 => replica.prop_map(|replica| Step::Remove { replica }),
        1 => Just(Step::Close),
        2 => Just(Step::Crash),
    ]
}

#[derive(Debug, Default, Clone)]
struct Model {
    state: GroupState,
    /// The committed position that went along with something.
    durable_committed: Option<Position>,
    records: BTreeMap<u64, Record>,
    term: u64,
    payloads: u64,
}

impl Model {
    fn next(&self) -> u64 {
        let last = self.records.last_key_value().map(|(index, _)| index + 1);
        last.or(self.state.purged.map(|(_, index)| index + 1)).unwrap_or(1)
    }

    fn purge(&mut self, index: u64) -> Position {
        let through = (self.term, index);
        if self.state.purged.is_none_or(|(_, purged)| purged < index) {
            self.state.purged = Some(through);
            self.records = self.records.split_off(&(index + 1));
        }
        through
    }
}

struct Run {
    dir: tempfile::TempDir,
    wal: Wal,
    models: BTreeMap<u64, Model>,
}

const SEGMENT_BYTES: u64 = 4096;

fn small_cache() -> Options {
    Options { cache_bytes: 600, ..options(SEGMENT_BYTES) }
}

impl Run {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (wal, _) = Wal::open_with(dir.path(), small_cache()).unwrap();
        Self { dir, wal, models: BTreeMap::new() }
    }

    fn log(&self, replica: u64) -> GroupLog {
        self.wal.group(ReplicaId(replica)).unwrap()
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Append { replica, count, term_up, bytes } => {
                let log = self.log(replica);
                let model = self.models.entry(replica).or_default();
                model.term += term_up;
                let mut records = Vec::new();
                for _ in 0..count {
                    model.payloads += 1;
                    let mut payload = format!("{replica}:{}:", model.payloads).into_bytes();
                    payload.resize(payload.len() + bytes, b'x');
                    let record = record(model.next(), model.term, payload);
                    model.records.insert(record.index, record.clone());
                    records.push(record);
                }
                self.submit(replica, |done| log.append(records, done));
            }
            Step::Vote { replica, term } => {
                let log = self.log(replica);
                let vote = VoteRecord { term, voted_for: replica, committed: term % 2 == 0 };
                self.models.entry(replica).or_default().state.vote = Some(vote);
                self.submit(replica, |done| log.save_vote(vote, done));
            }
            Step::Generation { replica, generation, purge_ahead } => {
                let log = self.log(replica);
                let model = self.models.entry(replica).or_default();
                model.state.generation = generation;
                model.state.snapshot = vec![generation as u8; 30];
                let purged = purge_ahead.map(|ahead| model.purge(model.next() + ahead));
                let blob = model.state.snapshot.clone();
                self.submit(replica, |done| log.set_generation(generation, blob, purged, done));
            }
            Step::Committed { replica, index } => {
                self.log(replica).save_committed((1, index));
                self.models.entry(replica).or_default().state.committed = Some((1, index));
            }
            Step::Truncate { replica, back } => {
                let log = self.log(replica);
                let model = self.models.entry(replica).or_default();
                let keep = model.next().saturating_sub(back).checked_sub(1);
                model.records.split_off(&keep.map_or(0, |keep| keep + 1));
                self.submit(replica, |done| log.truncate_after(keep, done));
            }
            Step::Purge { replica, ahead } => {
                let log = self.log(replica);
                let model = self.models.entry(replica).or_default();
                let from = model.records.first_key_value().map_or(model.next(), |(index, _)| *index);
                let through = model.purge(from + ahead);
                self.submit(replica, |done| log.purge(through, done));
            }
            Step::Remove { replica } => {
                wait(|done| self.wal.remove_group(ReplicaId(replica), done)).unwrap();
                self.models.remove(&replica);
            }
            Step::Close => {
                self.wal.close();
                self.reopen();
            }
            Step::Crash => {
                let dir = copy_dir(&self.wal, self.dir.path());
                self.wal.close();
                self.dir = dir;
                self.reopen();
            }
        }
    }

    fn submit(&mut self, replica: u64, submit: impl FnOnce(Done)) {
        wait(submit).unwrap();
        let model = self.models.entry(replica).or_default();
        model.durable_committed = model.state.committed;
    }

    fn reopen(&mut self) {
        let (wal, recovered) = Wal::open_with(self.dir.path(), small_cache()).unwrap();
        assert_eq!(recovered.damaged, []);
        let records: usize = self.models.values().map(|model| model.records.len()).sum();
        assert_eq!(recovered.records, records as u64);
        self.wal = wal;
        for model in self.models.values_mut() {
            model.state.committed = model.durable_committed;
        }
    }

    fn check(&self) {
        let live = |model: &Model| !model.records.is_empty() || model.state != GroupState::default();
        let replicas: Vec<_> = self
            .models
            .iter()
            .filter(|(_, model)| live(model))
            .map(|(&replica, _)| ReplicaId(replica))
            .collect();
        assert_eq!(self.wal.groups(), replicas);
        for (&replica, model) in &self.models {
            let log = self.log(replica);
            assert_eq!(log.state(), model.state, "state of {replica}");
            assert_eq!(log.first_index(), model.records.first_key_value().map(|(index, _)| *index));
            assert_eq!(log.last(), model.records.last_key_value().map(|(index, last)| (last.term, *index)));
            let records: Vec<_> = model.records.values().cloned().collect();
            assert_eq!(read_all(&log), records, "records of {replica}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_is_acknowledged_is_read_back_now_and_after_any_restart(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        let mut run = Run::new();
        for step in steps {
            run.take(step);
            run.check();
        }
        run.take(Step::Crash);
        run.check();
        run.take(Step::Close);
        run.check();
        run.wal.close();
    }
}
