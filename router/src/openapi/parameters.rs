//! The parameters of requests, in groups that calls take together. A test holds their bounds against `borough_proto::limits`.

#![expect(dead_code, reason = "only their descriptions are used")]

use utoipa::{IntoParams, ToSchema};

/// Values of `view`.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub enum Shown {
    Stored,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct InCollection {
    /// A collection's name.
    #[param(pattern = "^[a-z][a-z0-9_-]{0,63}$")]
    collection: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfId {
    /// 1 to 256 bytes of UTF-8, percent-encoded (`/` and `:` too).
    #[param(min_length = 1, max_length = 256)]
    id: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfSort {
    /// The sort key, 1 to 1024 bytes of UTF-8, percent-encoded.
    #[param(min_length = 1, max_length = 1024)]
    sort: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfName {
    /// A collection's name.
    #[param(pattern = "^[a-z][a-z0-9_-]{0,63}$")]
    name: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfNumber {
    /// The number of the operation or the node.
    #[param(minimum = 1)]
    id: u64,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ValidateOnly {
    /// Answer what would be done, and do nothing.
    #[param(rename = "validateOnly", required = false)]
    validate_only: bool,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Ttl {
    /// Time to live; the collection's own when absent.
    #[param(pattern = "^[0-9]+(\\.[0-9]{1,3})?s$", example = json!("3600s"), required = false)]
    ttl: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct View {
    /// `stored`: documents exactly as they were sent, without `id` and `sort` added.
    #[param(value_type = Shown, inline, required = false)]
    view: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct Paging {
    /// Most items of a page.
    #[param(minimum = 1, maximum = 1000, default = json!(100), required = false)]
    page_size: u32,
    /// Items are `{"id", "sort", "document"}`: a document of a sorted collection may have an `id` and a `sort` of its own.
    #[param(required = false)]
    keys: bool,
    /// `nextPageToken` of the page before.
    #[param(required = false)]
    page_token: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SortRange {
    /// Partitions: first sort key, inclusive.
    #[param(max_length = 1024, required = false)]
    start: String,
    /// Partitions: end of the sort keys, exclusive.
    #[param(max_length = 1024, required = false)]
    end: String,
    /// Partitions: last sort key first.
    #[param(default = json!(false), required = false)]
    reverse: bool,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Conditions {
    /// Only if the document has one of these versions; `*`: only if it exists.
    #[param(rename = "If-Match", required = false)]
    if_match: String,
    /// Only if the document has none of these versions; `*` on a write: only if it does not exist.
    #[param(rename = "If-None-Match", required = false)]
    if_none_match: String,
}

/// What every read takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Freshness {
    /// `max-stale=SECONDS`: any replica at most that stale may answer.
    #[param(rename = "Cache-Control", required = false)]
    cache_control: String,
}

/// What every write takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Idempotency {
    /// A retry with the same key and body gets the first outcome again and changes nothing; the same key with another
    /// method, query or body is 422 and changes nothing either. Where the path names what is written (a document, an item,
    /// a partition), that is the key's scope: on another path the same key is another use. Where the body does (`POST` to a
    /// collection, `:batchWrite`), the scope is the cluster: the first such request has the key, and every other one is 422.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 256, required = false)]
    idempotency_key: String,
}

/// What every call of the data plane takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Session {
    /// A token of an earlier answer: the read sees at least what that answer saw.
    #[param(rename = "Borough-Session", required = false)]
    session: String,
}

/// What every call but probes takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Timeout {
    /// The deadline, in milliseconds.
    #[param(rename = "Borough-Timeout-Ms", minimum = 1, maximum = 60000, required = false)]
    timeout: u32,
}
