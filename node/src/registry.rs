//! Replicas that this data directory has held, kept apart from the log.
//!
//! A replica's votes and what it acknowledged are in the log (I1, I3). Should the log go missing, the replica must not be
//! opened again as if it were new: a voter without memory helps to elect leaders that lack acknowledged writes.
//! And a replica is only given up for a map that is as new as the one which gave it to this node: an older one, read from
//! disk after a restart, does not know of it yet.

use std::collections::BTreeMap;

use borough_proto::ReplicaId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::identity::{DataDir, DataDirError};

/// File in the data directory.
const FILE: &str = "replicas.json";
/// Removed replicas that are remembered. Ids are never given out again; this only guards against maps from the past.
const REMOVED_MAX: usize = 10_000;

/// Every replica ever opened here.
pub struct Registry {
    held: Mutex<BTreeMap<u64, Held>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Held {
    /// Of the map that gave the replica to this node; 0 when that is not known.
    epoch: u64,
    #[serde(default)]
    removed: bool,
}

/// What is known of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It was never here.
    New,
    /// It is held here since the map of this epoch.
    Held { epoch: u64 },
    /// It was here and was given up for good.
    Removed,
}

impl Registry {
    /// # Errors
    /// [`DataDirError`] when the file cannot be read or is damaged.
    pub fn open(dir: &DataDir) -> Result<Self, DataDirError> {
        let held = match dir.read(FILE)? {
            None => BTreeMap::new(),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| DataDirError {
                path: dir.path().to_owned(),
                detail: format!(
                    "{FILE} is damaged ({error}): it tells which replicas have votes here. Restore it, or remove \
                     this node from the cluster and start it with an empty directory"
                ),
            })?,
        };
        Ok(Self { held: Mutex::new(held) })
    }

    pub fn standing(&self, replica: ReplicaId) -> Standing {
        match self.held.lock().get(&replica.get()) {
            None => Standing::New,
            Some(Held { removed: true, .. }) => Standing::Removed,
            Some(Held { epoch, removed: false }) => Standing::Held { epoch: *epoch },
        }
    }

    /// Replicas that are held and that `stored`, the log's, lacks.
    pub fn lost(&self, stored: &[ReplicaId]) -> Vec<ReplicaId> {
        let held = self.held.lock();
        let held = held.iter().filter(|(_, held)| !held.removed).map(|(&id, _)| ReplicaId(id));
        held.filter(|replica| !stored.contains(replica)).collect()
    }

    /// Keeps, durably, that `replica` is held since the map of `epoch`. Call it when its log is durable and before it votes.
    ///
    /// # Errors
    /// [`DataDirError`] when it cannot be written; nothing has changed then.
    pub fn opened(&self, dir: &DataDir, replica: ReplicaId, epoch: u64) -> Result<(), DataDirError> {
        self.change(dir, |held| {
            held.entry(replica.get()).or_insert(Held { epoch, removed: false });
        })
    }

    /// Keeps, durably, that `replica` was given up. Call it before its log goes.
    ///
    /// # Errors
    /// [`DataDirError`] when it cannot be written; nothing has changed then.
    pub fn removed(&self, dir: &DataDir, replica: ReplicaId) -> Result<(), DataDirError> {
        self.change(dir, |held| {
            held.entry(replica.get()).or_insert(Held { epoch: 0, removed: true }).removed = true;
            let removed = held.iter().filter(|(_, held)| held.removed).map(|(&id, _)| id);
            let removed = removed.collect::<Vec<_>>();
            for id in removed.iter().take(removed.len().saturating_sub(REMOVED_MAX)) {
                held.remove(id);
            }
        })
    }

    fn change(
        &self,
        dir: &DataDir,
        change: impl FnOnce(&mut BTreeMap<u64, Held>),
    ) -> Result<(), DataDirError> {
        let mut held = self.held.lock();
        let mut next = held.clone();
        change(&mut next);
        if next != *held {
            let error = |error: serde_json::Error| DataDirError {
                path: dir.path().to_owned(),
                detail: error.to_string(),
            };
            dir.write(FILE, &serde_json::to_vec(&next).map_err(error)?)?;
            *held = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_is_known_after_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let registry = Registry::open(&dir).unwrap();
        assert_eq!(registry.standing(ReplicaId(7)), Standing::New);
        registry.opened(&dir, ReplicaId(7), 3).unwrap();
        registry.opened(&dir, ReplicaId(8), 4).unwrap();
        registry.opened(&dir, ReplicaId(7), 9).unwrap();
        registry.removed(&dir, ReplicaId(8)).unwrap();
        let again = Registry::open(&dir).unwrap();
        assert_eq!(again.standing(ReplicaId(7)), Standing::Held { epoch: 3 });
        assert_eq!(again.standing(ReplicaId(8)), Standing::Removed);
        assert_eq!(again.lost(&[]), [ReplicaId(7)]);
        assert_eq!(again.lost(&[ReplicaId(7)]), []);
        again.opened(&dir, ReplicaId(8), 10).unwrap();
        assert_eq!(again.standing(ReplicaId(8)), Standing::Removed, "for good");
    }

    #[test]
    fn the_removed_are_bounded_and_the_held_never_forgotten() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let registry = Registry::open(&dir).unwrap();
        registry.opened(&dir, ReplicaId(1), 1).unwrap();
        let mut held = registry.held.lock();
        held.extend((2..2 + REMOVED_MAX as u64).map(|id| (id, Held { epoch: 1, removed: true })));
        drop(held);
        registry.removed(&dir, ReplicaId(99_999)).unwrap();
        assert_eq!(registry.standing(ReplicaId(2)), Standing::New, "the oldest is forgotten");
        assert_eq!(registry.standing(ReplicaId(99_999)), Standing::Removed);
        assert_eq!(registry.standing(ReplicaId(1)), Standing::Held { epoch: 1 });
    }

    #[test]
    fn damage_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        dir.write(FILE, b"{").unwrap();
        let error = Registry::open(&dir).err().unwrap();
        assert!(error.to_string().contains("replicas.json is damaged"), "{error}");
    }
}
