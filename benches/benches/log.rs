//! Group commit of the write-ahead log: records a second, durable, with 1, 8 and 64 threads that each wait
//! for one record of 256 bytes before they submit the next. The log is made in `TMPDIR`.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing to report")]

use std::sync::mpsc::sync_channel;

use borough_node::config::LogConfig;
use borough_node::wal::{GroupLog, Record, Wal};
use borough_proto::ReplicaId;
use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const RECORD_BYTES: usize = 256;
/// By each thread in each iteration.
const RECORDS: u64 = 50;

fn main() {
    divan::main();
}

#[divan::bench(args = [1, 8, 64], sample_count = 50, sample_size = 1)]
fn append(bencher: Bencher, threads: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = Wal::open(dir.path(), &LogConfig::default()).unwrap();
    let groups: Vec<_> = (1..=threads).map(|replica| wal.group(ReplicaId(replica)).unwrap()).collect();
    bencher.counter(ItemsCount::new(threads * RECORDS)).bench_local(|| {
        std::thread::scope(|scope| {
            for group in &groups {
                scope.spawn(move || submit(group));
            }
        });
    });
    wal.close();
}

fn submit(group: &GroupLog) {
    let payload = Bytes::from_static(&[7; RECORD_BYTES]);
    let first = group.state().purged.map_or(1, |(_, index)| index + 1);
    let (done, waits) = sync_channel(1);
    for index in first..first + RECORDS {
        let done = done.clone();
        let record = Record { index, term: 1, payload: payload.clone() };
        group.append(vec![record], Box::new(move |outcome| done.send(outcome).unwrap()));
        waits.recv().unwrap().unwrap();
    }
    // As a node does, or the log would only grow. Not waited for.
    group.purge((1, first + RECORDS - 1), Box::new(|outcome| outcome.unwrap()));
}
