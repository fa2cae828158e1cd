//! Failing and hanging flushes.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Fault {
    armed: Arc<AtomicBool>,
    fatal: Receiver<String>,
}

fn faulty(sync: impl Fn(&std::fs::File) -> io::Result<()> + Send + Sync + 'static) -> (Options, Fault) {
    let armed = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&armed);
    let (report, fatal) = bounded(8);
    let options = Options {
        sync: Arc::new(move |file| if gate.load(Ordering::SeqCst) { sync(file) } else { file.sync_data() }),
        on_fatal: Arc::new(move |why| report.send(why.to_owned()).unwrap()),
        flush_deadline: Duration::from_millis(20),
        ..options(1 << 16)
    };
    (options, Fault { armed, fatal })
}

#[test]
fn a_failed_flush_is_fatal_and_never_retried() {
    let dir = tempfile::tempdir().unwrap();
    let (options, fault) = faulty(|_| Err(io::Error::other("EIO")));
    let options = Options { flush_deadline: Duration::from_secs(60), ..options };
    let (wal, _) = Wal::open_with(dir.path(), options).unwrap();
    let log = wal.group(ReplicaId(1)).unwrap();
    append(&log, 1, 1, "a");
    fault.armed.store(true, Ordering::SeqCst);
    let failed = wait(|done| log.append(vec![record(2, 1, "b")], done));
    assert!(matches!(failed, Err(WalError::Failed(_))), "{failed:?}");
    assert!(fault.fatal.recv().unwrap().contains("EIO"));
    fault.armed.store(false, Ordering::SeqCst);
    let failed = wait(|done| log.append(vec![record(3, 1, "c")], done));
    assert!(matches!(failed, Err(WalError::Failed(_))), "{failed:?}");
    wal.close();
    assert!(fault.fatal.try_recv().is_err(), "fatal twice");
}

#[test]
fn a_hanging_flush_is_fatal_after_its_deadline_and_not_answered_as_good() {
    let dir = tempfile::tempdir().unwrap();
    let (release, released) = bounded::<()>(0);
    let (options, fault) = faulty(move |file| {
        released.recv().unwrap();
        file.sync_data()
    });
    let (wal, _) = Wal::open_with(dir.path(), options).unwrap();
    let log = wal.group(ReplicaId(1)).unwrap();
    fault.armed.store(true, Ordering::SeqCst);
    let (done, answer) = answer();
    log.append(vec![record(1, 1, "a")], done);
    assert!(fault.fatal.recv().unwrap().contains("deadline"));
    fault.armed.store(false, Ordering::SeqCst);
    release.send(()).unwrap();
    assert!(matches!(answer.recv().unwrap(), Err(WalError::Failed(_))));
    wal.close();
}
