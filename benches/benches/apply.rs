//! The state machine alone: commands with sessions, applied to ordered maps in memory, commands a second.
//! One iteration is one batch, as apply makes it from the log entries at hand, written to the map.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing to report")]

use std::collections::BTreeMap;

use borough_node::state::{View, begin, load_header};
use borough_node::store::{KeyRange, Scan, StoreError};
use borough_proto::wire::{self, op::Action};
use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const DOCUMENTS: u64 = 10_000;
const SESSIONS: u64 = 64;
const BATCHES: [u64; 3] = [1, 8, 64];

fn main() {
    divan::main();
}

#[derive(Default)]
struct Memory(BTreeMap<Bytes, Bytes>);

impl View for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, range: KeyRange, reverse: bool) -> Scan<'_> {
        let found = self.0.range(range).map(|(key, value)| Ok((key.clone(), value.clone())));
        if reverse { Box::new(found.rev()) } else { Box::new(found) }
    }
}

struct Shard {
    memory: Memory,
    next: u64,
}

impl Shard {
    /// Holds all documents.
    fn new() -> Self {
        let mut shard = Self { memory: Memory::default(), next: 1 };
        let puts: Vec<_> = (0..DOCUMENTS).map(|_| shard.command(put)).collect();
        shard.apply(&puts);
        shard
    }

    fn command(&mut self, action: fn(u64) -> Action) -> (u64, wire::Command) {
        let index = self.next;
        self.next += 1;
        let sequence = index / SESSIONS + 1;
        let session = wire::Session { id: index % SESSIONS, sequence, acknowledged: sequence - 1 };
        // A stride that meets every document, out of order.
        let document = index.wrapping_mul(7_919) % DOCUMENTS;
        let op = wire::Op {
            collection: 1,
            id: format!("user-{document}"),
            action: Some(action(index)),
            ..wire::Op::default()
        };
        let units = vec![wire::Unit { ops: vec![op], idempotency: None }];
        (index, wire::Command { stamp_ms: 1_000_000 + index, session: Some(session), units, sweep: None })
    }

    fn apply(&mut self, commands: &[(u64, wire::Command)]) {
        let mut apply = begin(&self.memory, load_header(&self.memory).unwrap());
        for (index, command) in commands {
            divan::black_box(apply.apply(*index, command).unwrap());
        }
        for (key, value) in apply.finish().batch.changes {
            match value {
                Some(value) => self.memory.0.insert(key, value),
                None => self.memory.0.remove(&key),
            };
        }
    }
}

fn put(index: u64) -> Action {
    let document = format!(r#"{{"n":{index},"name":"Ada","text":"{}"}}"#, "x".repeat(260));
    Action::Put(wire::Put { document: document.into(), flags: 0 })
}

fn merge(index: u64) -> Action {
    Action::Merge(wire::Merge { patch: format!(r#"{{"n":{index},"seen":true}}"#).into() })
}

fn run(bencher: Bencher, batch: u64, action: fn(u64) -> Action) {
    let shard = std::cell::RefCell::new(Shard::new());
    bencher
        .counter(ItemsCount::new(batch))
        .with_inputs(|| (0..batch).map(|_| shard.borrow_mut().command(action)).collect::<Vec<_>>())
        .bench_local_refs(|commands| shard.borrow_mut().apply(commands));
}

#[divan::bench(args = BATCHES, min_time = 1)]
fn puts_of_300_bytes(bencher: Bencher, batch: u64) {
    run(bencher, batch, put);
}

#[divan::bench(args = BATCHES, min_time = 1)]
fn merges_into_300_bytes(bencher: Bencher, batch: u64) {
    run(bencher, batch, merge);
}
