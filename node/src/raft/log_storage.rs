//! Raft's log over the node's shared write-ahead log.
//!
//! Votes and entries share one stream, and no answer leaves before its fsync (I3): votes are awaited,
//! appends report through their callback from the log's writer.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, RaftLogReader};
use tokio::sync::oneshot;

use super::state_machine::ReplicaState;
use super::types::{Entry, LogId, TypeConfig, Vote, encode_payload, entry, log_id, parts};
use crate::wal::{Done, GroupLog, Record, VoteRecord, WalError};

/// Entries of one append message hold at most this many bytes, unless one alone is larger.
const APPEND_BYTES_MAX: u64 = 1 << 20;

/// One replica's view of the shared log.
#[derive(Clone)]
pub struct LogStorage {
    log: GroupLog,
    state: Arc<ReplicaState>,
}

impl LogStorage {
    pub fn new(state: Arc<ReplicaState>) -> Self {
        Self { log: state.log().clone(), state }
    }

    fn read(&self, range: std::ops::Range<u64>, bytes_max: u64) -> io::Result<Vec<Entry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let records = self.log.read(range, bytes_max).map_err(io::Error::other)?;
        records
            .iter()
            .map(|record| entry(record.term, record.index, &record.payload).map_err(io::Error::other))
            .collect()
    }
}

/// A callback for the log and a future for its outcome.
fn durable() -> (Done, impl Future<Output = io::Result<()>>) {
    let (sender, receiver) = oneshot::channel::<Result<(), WalError>>();
    let done: Done = Box::new(move |result| {
        // The waiter may be gone when its group is shut down.
        let _ = sender.send(result);
    });
    let outcome = async move {
        match receiver.await {
            Ok(result) => result.map_err(io::Error::other),
            Err(_) => Err(io::Error::other("the log was closed")),
        }
    };
    (done, outcome)
}

impl RaftLogReader<TypeConfig> for LogStorage {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(&index) => index,
            Bound::Excluded(&index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&index) => index.saturating_add(1),
            Bound::Excluded(&index) => index,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start..end, u64::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.log.state().vote.map(|vote| {
            if vote.committed {
                Vote::new_committed(vote.term, vote.voted_for)
            } else {
                Vote::new(vote.term, vote.voted_for)
            }
        }))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start..end, APPEND_BYTES_MAX)
    }
}

impl RaftLogStorage<TypeConfig> for LogStorage {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let purged = self.log.state().purged.map(|(term, index)| log_id(term, index));
        let last = self.log.last().map(|(term, index)| log_id(term, index));
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, outcome) = durable();
        let record = VoteRecord {
            term: vote.leader_id.term,
            voted_for: vote.leader_id.voted_for,
            committed: vote.committed,
        };
        self.log.save_vote(record, done);
        outcome.await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.log.save_committed(parts(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        // Only what the log holds: a commit position may reach disk before its entries do.
        let last = self.log.last().or(self.log.state().purged);
        let committed = self.log.state().committed;
        Ok(committed
            .filter(|committed| last.is_some_and(|last| committed.1 <= last.1))
            .map(|(term, index)| log_id(term, index)))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let records: Vec<Record> = entries
            .into_iter()
            .map(|entry| {
                if let EntryPayload::Membership(membership) = &entry.payload {
                    // It counts from here on, long before it is applied: it may take those that it names to commit it.
                    self.state.expect_voters(membership.voter_ids());
                }
                let (term, index) = parts(&entry.log_id);
                Record { index, term, payload: encode_payload(&entry.payload) }
            })
            .collect();
        self.log
            .append(records, Box::new(move |result| callback.io_completed(result.map_err(io::Error::other))));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let (done, outcome) = durable();
        self.log.truncate_after(last.map(|last| last.index), done);
        outcome.await
    }

    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        // I2: what is purged is durably applied, because purging follows a snapshot and that flushes the engine.
        let (done, outcome) = durable();
        self.log.purge(parts(&through), done);
        outcome.await
    }
}
