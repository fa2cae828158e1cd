//! JSON of a node's `GET /debug/replicas`: where its replicas stand and, when asked for, what they hold.
//!
//! It is for those who compare replicas. Two replicas of a group at the same applied index have applied the same commands,
//! so all their records are the same (I5), whatever engine keeps them.

use serde::{Deserialize, Serialize};

/// The replicas of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaList {
    /// 0 while the node has not joined a cluster.
    pub node: u64,
    /// In the order of their shards, the catalog's first.
    pub replicas: Vec<ReplicaReport>,
}

/// What a replica is in its group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    Voter,
    Learner,
    /// It is no member, as far as it knows: it is new or on its way out.
    #[default]
    None,
}

/// One replica.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaReport {
    /// `null`: the group of the catalog.
    pub shard: Option<u32>,
    /// Its id, never given out twice.
    pub replica: u64,
    pub role: Role,
    /// Whether it leads its group.
    pub leader: bool,
    /// Of the last log entry that it has applied; 0 before the first.
    pub applied_index: u64,
    pub applied_term: u64,
    /// Only when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<ContentHash>,
}

/// A hash over all records of a replica at one point in time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentHash {
    /// xxh3 of 128 bits, as 32 hex digits.
    pub hash: String,
    /// Of the last log entry that the records include.
    pub applied_index: u64,
    pub applied_term: u64,
    pub records: u64,
    /// Of their keys and values.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_that_are_documented() {
        let content =
            ContentHash { hash: "0f".to_owned(), applied_index: 9, applied_term: 2, records: 3, bytes: 4 };
        let report = ReplicaReport {
            shard: Some(7),
            replica: 12,
            role: Role::Voter,
            content: Some(content),
            ..Default::default()
        };
        let list = ReplicaList { node: 1, replicas: vec![report, ReplicaReport::default()] };
        let text = serde_json::to_string(&list).unwrap();
        assert_eq!(
            text,
            "{\"node\":1,\"replicas\":[{\"shard\":7,\"replica\":12,\"role\":\"voter\",\"leader\":false,\"appliedIndex\":0,\
             \"appliedTerm\":0,\"content\":{\"hash\":\"0f\",\"appliedIndex\":9,\"appliedTerm\":2,\"records\":3,\"bytes\":4}},\
             {\"shard\":null,\"replica\":0,\"role\":\"none\",\"leader\":false,\"appliedIndex\":0,\"appliedTerm\":0}]}"
        );
        assert_eq!(serde_json::from_str::<ReplicaList>(&text).unwrap(), list);
    }
}
