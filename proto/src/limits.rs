//! Bounds of the contract. Bounds of a service's own queues live in that service's `limits`.

use std::time::Duration;

/// Longest id, in bytes of UTF-8.
pub const ID_BYTES_MAX: usize = 256;
/// Longest sort key, in bytes of UTF-8.
pub const SORT_BYTES_MAX: usize = 1024;
/// Largest document, in bytes of JSON as sent.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Largest request body of a batch or a transaction, in bytes.
pub const BATCH_BYTES_MAX: usize = 8 << 20;
/// Deepest nesting of arrays and objects in a document or patch.
pub const DOCUMENT_DEPTH_MAX: usize = 100;
/// Most operations in `:batchGet`, `:batchWrite` or `:transact`.
pub const BATCH_ITEMS_MAX: usize = 100;
/// Items of a page unless `pageSize` says otherwise.
pub const PAGE_SIZE_DEFAULT: u32 = 100;
/// Largest page; a larger `pageSize` is refused.
pub const PAGE_SIZE_MAX: u32 = 1000;
/// Bytes of documents after which a page ends early.
pub const PAGE_BYTES_MAX: u32 = 8 << 20;
/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// Longest note kept with an idempotency key, in bytes.
pub const IDEMPOTENCY_NOTE_BYTES_MAX: usize = 64;
/// Longest bearer token, in bytes.
pub const BEARER_TOKEN_BYTES_MAX: usize = 4096;
/// Longest collection name, in bytes: `[a-z][a-z0-9_-]*`.
pub const COLLECTION_NAME_BYTES_MAX: usize = 64;
/// Most collections of a cluster.
pub const COLLECTIONS_MAX: usize = 10_000;
/// Longest time to live.
pub const TTL_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Most shards of a cluster.
pub const SHARDS_MAX: u32 = 16_384;
/// Most replicas of a shard.
pub const REPLICAS_MAX: u32 = 7;
/// Largest gRPC message between our own processes, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How long an idempotency key is remembered at least, in stamped time.
pub const IDEMPOTENCY_RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How long a silent session is remembered; far above any deadline, so that no resent write outlives it.
pub const SESSION_RETENTION: Duration = Duration::from_secs(3600);
/// Longest deadline a caller may ask for.
pub const DEADLINE_MAX: Duration = Duration::from_secs(60);
