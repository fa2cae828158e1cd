//! What a voter says of a leader is what its log holds, from the moment on at which it votes for another.

use std::sync::mpsc;

use parking_lot::Mutex;

use super::*;
use crate::raft::confirm::Leadership;
use crate::raft::group::holds;
use crate::wal::{Options, VoteRecord};

#[test]
fn a_voter_holds_to_a_leader_until_it_votes_for_another_durable_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Arc::new(Mutex::new(()));
    let passing = Arc::clone(&gate);
    let options = Options::from(&log_config()).with_sync(move |file| {
        let _passing = passing.lock();
        file.sync_data()
    });
    let (wal, _) = Wal::open_with(dir.path(), options).unwrap();
    let engine = engine(None, dir.path());
    let state = open_replica(1, &engine, &wal);
    let leads = |replica, term| holds(&state, Leadership { group: GROUP, replica: ReplicaId(replica), term });
    assert!(!leads(2, 4), "it has voted for nobody");
    let (done, voted) = mpsc::channel();
    let vote = |term, voted_for| VoteRecord { term, voted_for, committed: false };
    let save = |vote| {
        let done = done.clone();
        state.log().save_vote(vote, Box::new(move |result| done.send(result.is_ok()).unwrap()));
    };
    save(vote(4, 2));
    assert!(voted.recv().unwrap());
    assert!(leads(2, 4));
    for (replica, term) in [(2, 3), (2, 5), (3, 4)] {
        assert!(!leads(replica, term), "r{replica} in term {term}");
    }
    let closed = gate.lock();
    save(vote(5, 3));
    assert!(!leads(2, 4), "whoever asked for the vote may have it before the disk does");
    assert!(voted.try_recv().is_err());
    drop(closed);
    assert!(voted.recv().unwrap());
    assert!(leads(3, 5));
    wal.close();
}
