//! JSON types of the REST API: what the router serves and clients read.
//!
//! Documents themselves are not here: they travel as raw JSON ([`serde_json::value::RawValue`]).

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::wire;

/// Header names of the contract, lower case.
pub mod headers {
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    pub const SESSION: &str = "borough-session";
    pub const EXPIRES: &str = "borough-expires";
    pub const SHARD: &str = "borough-shard";
    pub const NODE: &str = "borough-node";
    pub const REQUEST_ID: &str = "x-request-id";
    pub const CACHE_STATUS: &str = "cache-status";
    /// A caller's own deadline in milliseconds, at most [`crate::limits::DEADLINE_MAX`].
    pub const TIMEOUT: &str = "borough-timeout-ms";
    pub const MERGE_PATCH: &str = "application/merge-patch+json";
    pub const PROBLEM: &str = "application/problem+json";
}

/// Options of a collection, as `PUT /admin/v1/collections/{name}` takes and answers them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CollectionOptions {
    pub sort_key: bool,
    /// Seconds with an `s`, for example `"3600s"`.
    pub default_ttl: Option<String>,
    pub require_preconditions: bool,
}

/// A collection as it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Collection {
    pub name: String,
    pub sort_key: bool,
    pub default_ttl: Option<String>,
    pub require_preconditions: bool,
}

impl From<&wire::CollectionInfo> for Collection {
    fn from(info: &wire::CollectionInfo) -> Self {
        Self {
            name: info.name.clone(),
            sort_key: info.sort_key,
            default_ttl: info.default_ttl_ms.map(format_ttl),
            require_preconditions: info.require_preconditions,
        }
    }
}

/// `GET /admin/v1/collections`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CollectionList {
    pub items: Vec<Collection>,
}

/// A page of documents.
#[derive(Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Page {
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<crate::openapi::Document>))]
    pub items: Vec<Box<RawValue>>,
    /// Absent on the last page.
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BatchGetRequest {
    /// Ids; in a sorted collection objects `{"id","sort"}`.
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 100))]
    pub ids: Vec<BatchKey>,
}

/// One key of a `:batchGet`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum BatchKey {
    Id(String),
    Sorted { id: String, sort: String },
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BatchWriteRequest {
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 100))]
    pub writes: Vec<BatchWrite>,
}

/// One write of a `:batchWrite`; exactly one of the fields is set.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub enum BatchWrite {
    Put(BatchPut),
    Patch(BatchPatch),
    Delete(BatchDelete),
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BatchPut {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<String>,
    #[cfg_attr(feature = "openapi", schema(value_type = crate::openapi::Document))]
    pub document: Box<RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_match: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_absent: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BatchPatch {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<String>,
    #[cfg_attr(feature = "openapi", schema(value_type = crate::openapi::Document))]
    pub merge: Box<RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_match: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BatchDelete {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_match: Option<String>,
}

/// Answer of `:batchGet`, `:batchWrite` and `:transact`: a status for each item, in request order.
#[derive(Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BatchReply {
    pub items: Vec<BatchItem>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BatchItem {
    pub id: String,
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<String>,
    /// The status code that the same call alone would have answered.
    pub status: u16,
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = crate::openapi::Document, required = false))]
    pub document: Option<Box<RawValue>>,
    /// Set when the item failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = crate::error::Problem, required = false))]
    pub problem: Option<Box<crate::error::Problem>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TransactRequest {
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 100))]
    pub ops: Vec<TransactOp>,
}

/// One operation of a `:transact`; exactly one of `put`, `patch`, `delete`, `check` is set.
#[derive(Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TransactOp {
    pub collection: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::openapi::Document>))]
    pub put: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::openapi::Document>))]
    pub patch: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub check: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_match: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_absent: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// The status document (`GET /admin/v1/cluster`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    pub cluster_id: String,
    pub epoch: u64,
    pub replication_factor: u32,
    pub nodes: Vec<NodeStatus>,
    pub shards: Vec<ShardStatus>,
    /// Those under way and the last that ended, without their moves.
    pub operations: Vec<OperationStatus>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    pub id: u64,
    pub addr: String,
    /// Of its admin pages, `host:port` as it was bound; empty when the cluster is of an older version.
    #[serde(default)]
    pub admin_addr: String,
    pub zone: String,
    pub version: String,
    /// `up`, `suspect`, `down`, `draining` or `removed`.
    #[cfg_attr(feature = "openapi", schema(schema_with = crate::openapi::node_states))]
    pub state: String,
    pub replicas: u32,
    pub leaders: u32,
    /// Bytes of documents in its replicas.
    pub bytes: u64,
    /// Documents in its replicas.
    pub keys: u64,
    pub disk_free_bytes: u64,
    pub cache: CacheStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct CacheStatus {
    pub bytes: u64,
    /// Hits per lookup since the node started, 0 to 1.
    pub hit_ratio: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ShardStatus {
    pub id: u32,
    /// First and last hash, inclusive, as `0x` and 16 hex digits.
    pub range: [String; 2],
    pub epoch: u64,
    /// Node that leads; `null` while there is none.
    pub leader: Option<u64>,
    /// Nodes with a voting replica.
    pub replicas: Vec<u64>,
    /// Nodes with a replica that is being caught up.
    pub learners: Vec<u64>,
    /// `healthy`, `moving`, `underReplicated` or `unavailable`.
    #[cfg_attr(feature = "openapi", schema(schema_with = crate::openapi::shard_states))]
    pub state: String,
    pub keys: u64,
    pub bytes: u64,
    pub applied_index: u64,
    pub reads_per_second: f64,
    pub writes_per_second: f64,
}

/// Work on where replicas are (`GET /admin/v1/operations/{id}`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    pub id: String,
    /// `rebalance`, `drain` or `repair`.
    #[cfg_attr(feature = "openapi", schema(schema_with = crate::openapi::operation_kinds))]
    pub kind: String,
    /// `running`, `paused`, `done`, `failed` or `cancelled`.
    #[cfg_attr(feature = "openapi", schema(schema_with = crate::openapi::operation_states))]
    pub state: String,
    pub moves_done: u64,
    pub moves_total: u64,
    /// Of documents, as far as they have arrived.
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// The node that is drained.
    #[cfg_attr(feature = "openapi", schema(value_type = u64, required = false))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
    /// Milliseconds since the Unix epoch.
    #[serde(default)]
    pub started_ms: u64,
    #[cfg_attr(feature = "openapi", schema(value_type = u64, required = false))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// Why nothing moves, when nothing does.
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// Left out of the status document.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<MoveStatus>, required = false))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<Vec<MoveStatus>>,
}

/// One replica's way from a node to another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MoveStatus {
    /// `null`: the meta group, which keeps the catalog.
    pub shard: Option<u32>,
    /// `null`: the shard gets one replica more.
    pub from: Option<u64>,
    /// `null`: the shard has one replica too many.
    pub to: Option<u64>,
    pub bytes: u64,
    /// `planned`, `copying`, `undoing`, `done` or `cancelled`.
    #[cfg_attr(feature = "openapi", schema(schema_with = crate::openapi::move_steps))]
    pub step: String,
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
}

/// Answer of `GET /admin/v1/operations`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OperationList {
    /// The newest first.
    pub items: Vec<OperationStatus>,
}

/// What a rebalance would do (`POST /admin/v1/rebalances?validateOnly=true`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct RebalancePlan {
    pub moves: Vec<MoveStatus>,
    /// Leaderships that change nodes afterwards.
    pub transfers: u64,
    /// Bytes of documents to copy.
    pub bytes: u64,
    pub nodes: Vec<PlannedNode>,
    /// Shards that cannot get as many replicas as they should, for want of nodes.
    pub short: Vec<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct PlannedNode {
    pub id: u64,
    pub before: PlannedShare,
    pub after: PlannedShare,
}

/// What a node holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlannedShare {
    pub replicas: u64,
    pub leaders: u64,
    pub bytes: u64,
}

/// Why a text is no time to live.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration such as \"3600s\", more than 0 and at most {}s", crate::limits::TTL_MAX.as_secs())]
pub struct TtlError {
    text: String,
    /// The bound in seconds, when the text is a duration that is not within it.
    pub limit: Option<u64>,
}

/// Reads a time to live: a number of seconds with `s`, at most three decimals (AIP-142), as milliseconds.
///
/// # Errors
/// [`TtlError`].
pub fn parse_ttl(text: &str) -> Result<u64, TtlError> {
    let limit = crate::limits::TTL_MAX.as_secs();
    let bad = || TtlError { text: text.to_owned(), limit: None };
    let out = || TtlError { text: text.to_owned(), limit: Some(limit) };
    let number = text.strip_suffix('s').ok_or_else(bad)?;
    let (seconds, decimals) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty()
        || !digits(seconds)
        || !digits(decimals)
        || decimals.len() > 3
        || number.ends_with('.')
    {
        return Err(bad());
    }
    let seconds: u64 = seconds.parse().map_err(|_| out())?;
    let millis: u64 = format!("{decimals:0<3}").parse().map_err(|_| bad())?;
    let total = seconds.checked_mul(1000).and_then(|ms| ms.checked_add(millis)).ok_or_else(out)?;
    if total == 0 || total > limit * 1000 { Err(out()) } else { Ok(total) }
}

/// The form that [`parse_ttl`] reads.
pub fn format_ttl(ttl_ms: u64) -> String {
    match ttl_ms % 1000 {
        0 => format!("{}s", ttl_ms / 1000),
        millis => format!("{}.{millis:03}s", ttl_ms / 1000),
    }
}

/// `Borough-Expires`: RFC 3339 in UTC with milliseconds.
pub fn format_time(unix_ms: u64) -> String {
    let time = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| unix_ms.to_string(), |time| format!("{time:.3}"))
}

/// Whether `name` can be a collection's: `[a-z][a-z0-9_-]*` within the limit, and not a fixed path.
pub fn valid_collection_name(name: &str) -> bool {
    let rest = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    name.len() <= crate::limits::COLLECTION_NAME_BYTES_MAX
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
        && name.bytes().all(rest)
        && name != "partitions"
}

/// Whether `text` can be a bearer token: RFC 6750's `b64token` within the limit.
pub fn valid_bearer_token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    text.len() <= crate::limits::BEARER_TOKEN_BYTES_MAX && !body.is_empty() && body.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_tokens_are_b64tokens() {
        for token in ["a", "mF_9.B5f-4.1JqM", "a+/~==", &"x".repeat(4096)] {
            assert!(valid_bearer_token(token), "{token}");
        }
        for token in ["", "=", "a=b", "a b", "a,b", "a\"", "\u{e9}", &"x".repeat(4097)] {
            assert!(!valid_bearer_token(token), "{token}");
        }
    }

    #[test]
    fn ttls_round_trip_and_bad_ones_are_refused() {
        for (text, ms) in [("3600s", 3_600_000), ("0.5s", 500), ("1.25s", 1250), ("0.001s", 1)] {
            assert_eq!(parse_ttl(text), Ok(ms));
            assert_eq!(parse_ttl(&format_ttl(ms)), Ok(ms));
        }
        for text in
            ["", "s", "0s", "-1s", "1", "1m", "1.s", ".5s", "1.2345s", "99999999999999999999s", "+1s", "1e3s"]
        {
            let error = parse_ttl(text).unwrap_err();
            let bound =
                matches!(text, "0s" | "99999999999999999999s").then(|| crate::limits::TTL_MAX.as_secs());
            assert_eq!(error.limit, bound, "{text}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(format_time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }

    #[test]
    fn collection_names() {
        for name in ["users", "a", "a-b_c1"] {
            assert!(valid_collection_name(name), "{name}");
        }
        for name in ["", "Users", "1a", "a:b", "a/b", "ä", "partitions", &"a".repeat(65)] {
            assert!(!valid_collection_name(name), "{name}");
        }
    }
}
