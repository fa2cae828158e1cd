//! Distinct types for ids, so that a shard can never be passed where a node is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The bare number, as the wire carries it.
            pub fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A machine's place in the cluster: given out by the catalog, from 1, never reused.
    NodeId(u64),
    "n"
);
id!(
    /// A range of the hash space; counts from 0.
    ShardId(u32),
    "s"
);
id!(
    /// One copy of a shard on one node, and Raft's node id. Given out once by the catalog and never
    /// again: a Raft id that comes back with an empty log is an undetectable split brain.
    ReplicaId(u64),
    "r"
);
id!(
    /// A collection, whatever it is called; given out by the catalog, never reused.
    CollectionId(u32),
    "c"
);
id!(
    /// A Raft group: 0 is the meta group, `n + 1` is shard `n`.
    GroupId(u32),
    "g"
);

impl GroupId {
    /// The group of the catalog.
    pub const META: Self = Self(0);

    /// The shard this group replicates; `None` for the meta group.
    pub fn shard(self) -> Option<ShardId> {
        self.0.checked_sub(1).map(ShardId)
    }

    /// What people call it: the status document knows no groups.
    pub fn title(self) -> String {
        self.shard().map_or_else(|| "the meta group".to_owned(), |shard| format!("shard {}", shard.0))
    }
}

impl From<ShardId> for GroupId {
    fn from(shard: ShardId) -> Self {
        Self(shard.0.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_and_groups_map_one_to_one() {
        assert_eq!(GroupId::META.shard(), None);
        assert_eq!(
            (GroupId::META.title().as_str(), GroupId(8).title().as_str()),
            ("the meta group", "shard 7")
        );
        for shard in [ShardId(0), ShardId(31), ShardId(u32::MAX - 1)] {
            assert_eq!(GroupId::from(shard).shard(), Some(shard));
        }
    }
}
