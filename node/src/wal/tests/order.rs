//! Group commit, order and answers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::RecvTimeoutError;

use super::*;

#[test]
fn many_threads_share_flushes_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path(), 1 << 20);
    std::thread::scope(|scope| {
        for replica in 1..=32u64 {
            let log = wal.group(ReplicaId(replica)).unwrap();
            scope.spawn(move || {
                for index in 1..=50 {
                    append(&log, index, 1, format!("{replica}/{index}"));
                }
            });
        }
    });
    let stats = wal.stats();
    assert_eq!(stats.records, 32 * 50);
    assert!(stats.fsyncs < 32 * 50, "no group commit: {stats:?}");
    let crashed = copy_dir(&wal, dir.path());
    wal.close();
    let (wal, recovered) = open(crashed.path(), 1 << 20);
    assert_eq!(recovered.records, 32 * 50);
    for replica in 1..=32u64 {
        let records = read_all(&wal.group(ReplicaId(replica)).unwrap());
        let payloads: Vec<_> = records.iter().map(|record| record.payload.clone()).collect();
        let expected: Vec<_> = (1..=50).map(|index| Bytes::from(format!("{replica}/{index}"))).collect();
        assert_eq!(payloads, expected);
    }
    wal.close();
}

#[test]
fn a_record_is_readable_before_it_is_durable_and_answered_only_after_the_flush() {
    let dir = tempfile::tempdir().unwrap();
    let (enter, entered) = bounded::<()>(0);
    let (leave, left) = bounded::<()>(0);
    let armed = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&armed);
    let sync = move |file: &std::fs::File| {
        if gate.load(Ordering::SeqCst) {
            enter.send(()).unwrap();
            left.recv().unwrap();
        }
        file.sync_data()
    };
    let (wal, _) = Wal::open_with(dir.path(), Options { sync: Arc::new(sync), ..options(1 << 16) }).unwrap();
    let log = wal.group(ReplicaId(1)).unwrap();
    armed.store(true, Ordering::SeqCst);
    let (done, answer) = answer();
    log.append(vec![record(1, 1, "a")], done);
    assert_eq!(log.read(1..2, u64::MAX).unwrap(), [record(1, 1, "a")]);
    entered.recv().unwrap();
    // While the flush runs: more is queued, goes into one batch, and nothing is answered yet.
    let queued: Vec<_> = (2..=5)
        .map(|index| {
            let (done, answer) = super::answer();
            log.append(vec![record(index, 1, "b")], done);
            answer
        })
        .collect();
    assert!(answer.try_recv().is_err());
    armed.store(false, Ordering::SeqCst);
    let before = wal.stats().fsyncs;
    leave.send(()).unwrap();
    answer.recv().unwrap().unwrap();
    queued.iter().for_each(|answer| answer.recv().unwrap().unwrap());
    assert_eq!(wal.stats().fsyncs, before + 1, "one flush for what was queued");
    wal.close();
}

#[test]
fn answers_come_in_the_order_of_submissions() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path(), 1 << 14);
    let log = wal.group(ReplicaId(1)).unwrap();
    let next = Arc::new(AtomicU64::new(0));
    let expect = |number: u64| -> Done {
        let next = Arc::clone(&next);
        Box::new(move |result| {
            result.unwrap();
            assert_eq!(next.fetch_add(1, Ordering::SeqCst), number);
        })
    };
    for number in 0..300 {
        match number % 3 {
            0 => log.append(vec![record(number / 3 + 1, 1, vec![1; 100])], expect(number)),
            1 => log.save_vote(VoteRecord { term: number, voted_for: 1, committed: false }, expect(number)),
            _ => log.truncate_after(Some(u64::MAX), expect(number)),
        }
    }
    wal.close();
    assert_eq!(next.load(Ordering::SeqCst), 300);
}

#[test]
fn a_full_queue_makes_submitters_wait_and_nobody_is_stuck() {
    const SUBMITTERS: u64 = 4;
    const EACH: u64 = 30;
    // Of 1 MiB each with their frames: what the queue holds while the writer is away, and far from all.
    const HELD_MAX: u64 = 64;
    let dir = tempfile::tempdir().unwrap();
    let (enter, entered) = bounded::<()>(0);
    let (leave, left) = bounded::<()>(0);
    let armed = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&armed);
    let sync = move |file: &std::fs::File| {
        if gate.swap(false, Ordering::SeqCst) {
            enter.send(()).unwrap();
            left.recv().unwrap();
        }
        file.sync_data()
    };
    // Nobody hurries the flush that is held.
    let patient = Options { flush_deadline: Duration::from_secs(600), ..options(1 << 20) };
    let (wal, _) = Wal::open_with(dir.path(), Options { sync: Arc::new(sync), ..patient }).unwrap();
    armed.store(true, Ordering::SeqCst);
    let (done, first) = answer();
    wal.group(ReplicaId(9)).unwrap().append(vec![record(1, 1, "a")], done);
    entered.recv().unwrap();

    let (submitted, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (ended, all_ended) = bounded::<()>(0);
    let (waited, while_held) = std::thread::scope(|scope| {
        for replica in 1..=SUBMITTERS {
            let log = wal.group(ReplicaId(replica)).unwrap();
            let (submitted, answered, ended) = (&submitted, &answered, ended.clone());
            scope.spawn(move || {
                // Dropped at the end: nothing is ever sent.
                let _ended = ended;
                let payload = Bytes::from(vec![7; 1 << 20]);
                for index in 1..=EACH {
                    let answered = Arc::clone(answered);
                    let done = Box::new(move |result: Result<(), WalError>| {
                        result.unwrap();
                        answered.fetch_add(1, Ordering::SeqCst);
                    });
                    log.append(vec![record(index, 1, payload.clone())], done);
                    submitted.fetch_add(1, Ordering::SeqCst);
                    log.purge((1, index - 1), Box::new(|result| result.unwrap()));
                }
            });
        }
        drop(ended);
        // Until the queue is as good as full: who wants in then has to wait for the flush.
        let begun = Instant::now();
        while submitted.load(Ordering::SeqCst) < HELD_MAX - SUBMITTERS
            && begun.elapsed() < Duration::from_secs(60)
        {
            std::thread::yield_now();
        }
        // Submitters that do not wait are done with the rest in a moment.
        let waited = all_ended.recv_timeout(Duration::from_millis(500)) == Err(RecvTimeoutError::Timeout);
        let while_held = submitted.load(Ordering::SeqCst);
        leave.send(()).unwrap();
        (waited, while_held)
    });
    assert!(waited, "no submitter waited");
    assert!(while_held <= HELD_MAX, "{while_held} MiB were taken in while nothing was written");
    first.recv().unwrap().unwrap();
    wal.close();
    assert_eq!(submitted.load(Ordering::SeqCst), SUBMITTERS * EACH);
    assert_eq!(answered.load(Ordering::SeqCst), SUBMITTERS * EACH);
}

#[test]
#[should_panic(expected = "gap in the log")]
fn a_gap_is_our_own_bug() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path(), 1 << 16);
    let log = wal.group(ReplicaId(1)).unwrap();
    append(&log, 1, 1, "a");
    append(&log, 3, 1, "c");
}

#[test]
fn a_closed_log_and_a_removed_replica_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = open(dir.path(), 1 << 16);
    let log = wal.group(ReplicaId(1)).unwrap();
    append(&log, 1, 1, "a");
    wait(|done| wal.remove_group(ReplicaId(1), done)).unwrap();
    let refused = wait(|done| log.append(vec![record(2, 1, "b")], done));
    assert!(matches!(refused, Err(WalError::Removed(ReplicaId(1)))));
    assert_eq!(wal.groups(), []);
    let log = wal.group(ReplicaId(2)).unwrap();
    wal.close();
    let refused = wait(|done| log.append(vec![record(1, 1, "b")], done));
    assert!(matches!(refused, Err(WalError::Closed)));
    let (wal, _) = open(dir.path(), 1 << 16);
    assert_eq!(wal.groups(), []);
    wal.close();
}

/// Not a property but a figure. As in a node, submitters are tasks on few threads: each thread drives 32 of
/// them, of which each submits its next record when the last one is answered.
/// `cargo test --release -p borough-node -- --ignored --nocapture throughput`
#[test]
#[ignore = "a measurement"]
fn throughput_of_64_submitters() {
    const IN_FLIGHT: u64 = 32;
    const RECORDS: u64 = 300_000;
    for replicas in [1u64, 8, 64] {
        let dir = tempfile::tempdir().unwrap();
        let (wal, _) = open(dir.path(), 64 << 20);
        let logs: Vec<_> = (1..=replicas).map(|replica| wal.group(ReplicaId(replica)).unwrap()).collect();
        let nexts: Vec<_> = logs.iter().map(|_| parking_lot::Mutex::new(1u64)).collect();
        let payload = Bytes::from(vec![9; 256]);
        let started = std::time::Instant::now();
        std::thread::scope(|scope| {
            for driver in 0..2 {
                let (logs, nexts, payload) = (&logs, &nexts, &payload);
                scope.spawn(move || {
                    let (answer, answered) = bounded::<()>(IN_FLIGHT as usize);
                    for number in 0..RECORDS + IN_FLIGHT {
                        if number >= IN_FLIGHT {
                            answered.recv().unwrap();
                        }
                        if number < RECORDS {
                            let at = ((number * 2 + driver) % replicas) as usize;
                            let answer = answer.clone();
                            let mut next = nexts[at].lock();
                            let records = vec![record(*next, 1, payload.clone())];
                            logs[at].append(
                                records,
                                Box::new(move |result| {
                                    result.unwrap();
                                    answer.send(()).unwrap();
                                }),
                            );
                            *next += 1;
                        }
                    }
                });
            }
        });
        let rate = (2 * RECORDS) as f64 / started.elapsed().as_secs_f64();
        println!("{replicas} replicas: {rate:.0} records/s, {:?}", wal.stats());
        wal.close();
    }
}
