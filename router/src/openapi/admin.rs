//! The control plane, and what tells of the router itself.

#![expect(dead_code, reason = "only their descriptions are used")]

use borough_proto::http_api::{
    ClusterStatus, Collection, CollectionList, CollectionOptions, OperationList, OperationStatus,
    RebalancePlan,
};

use super::parameters::{OfName, OfNumber, Timeout, ValidateOnly};
use super::problems::{BodyProblems, CallProblems, Problem};

/// The status document
#[utoipa::path(get, path = "/admin/v1/cluster", operation_id = "clusterStatus", tag = "admin", params(Timeout),
    responses((status = 200, description = "Nodes and shards.", body = ClusterStatus), CallProblems))]
fn cluster_status() {}

/// All collections
#[utoipa::path(get, path = "/admin/v1/collections", operation_id = "listCollections", tag = "admin", params(Timeout),
    responses((status = 200, description = "By name.", body = CollectionList), CallProblems))]
fn list_collections() {}

/// A collection's options
#[utoipa::path(get, path = "/admin/v1/collections/{name}", operation_id = "getCollection", tag = "admin", params(OfName, Timeout),
    responses((status = 200, description = "Its options.", body = Collection), (status = 404, response = Problem), CallProblems))]
fn get_collection() {}

/// Create a collection or change its options; its order cannot be changed
#[utoipa::path(put, path = "/admin/v1/collections/{name}", operation_id = "putCollection", tag = "admin", params(OfName, Timeout),
    request_body = CollectionOptions,
    responses((status = 200, description = "Changed.", body = Collection), (status = 201, description = "Created.", body = Collection),
        (status = 409, response = Problem), BodyProblems, CallProblems))]
fn put_collection() {}

/// Delete a collection and its documents
#[utoipa::path(delete, path = "/admin/v1/collections/{name}", operation_id = "deleteCollection", tag = "admin", params(OfName, Timeout),
    responses((status = 204, description = "Deleted."), (status = 404, response = Problem), (status = 409, response = Problem), CallProblems))]
fn delete_collection() {}

/// Spread replicas and leaders evenly over the nodes
///
/// With `validateOnly=true` the plan is answered and nothing is done.
#[utoipa::path(post, path = "/admin/v1/rebalances", operation_id = "rebalance", tag = "admin", params(ValidateOnly, Timeout),
    responses((status = 200, description = "The plan, with `validateOnly`.", body = RebalancePlan),
        (status = 202, description = "It has started; `Location` is the operation.", body = OperationStatus),
        (status = 409, response = Problem), CallProblems))]
fn rebalance() {}

/// All operations that are under way, and the last that have ended
#[utoipa::path(get, path = "/admin/v1/operations", operation_id = "listOperations", tag = "admin", params(Timeout),
    responses((status = 200, description = "The newest first.", body = OperationList), CallProblems))]
fn list_operations() {}

/// An operation with the step of each of its moves
#[utoipa::path(get, path = "/admin/v1/operations/{id}", operation_id = "getOperation", tag = "admin", params(OfNumber, Timeout),
    responses((status = 200, description = "As it is now.", body = OperationStatus), (status = 404, response = Problem), CallProblems))]
fn get_operation() {}

/// Begin no more moves
#[utoipa::path(post, path = "/admin/v1/operations/{id}:pause", operation_id = "pauseOperation", tag = "admin", params(OfNumber, Timeout),
    responses((status = 200, description = "Paused. Moves that have begun are finished.", body = OperationStatus),
        (status = 404, response = Problem), (status = 409, response = Problem), CallProblems))]
fn pause_operation() {}

/// Go on with a paused operation
#[utoipa::path(post, path = "/admin/v1/operations/{id}:resume", operation_id = "resumeOperation", tag = "admin", params(OfNumber, Timeout),
    responses((status = 200, description = "It goes on.", body = OperationStatus),
        (status = 404, response = Problem), (status = 409, response = Problem), CallProblems))]
fn resume_operation() {}

/// End an operation before its time; what is done stays, moves that have begun are taken back
#[utoipa::path(post, path = "/admin/v1/operations/{id}:cancel", operation_id = "cancelOperation", tag = "admin", params(OfNumber, Timeout),
    responses((status = 200, description = "It is being cancelled.", body = OperationStatus),
        (status = 404, response = Problem), (status = 409, response = Problem), CallProblems))]
fn cancel_operation() {}

/// Move everything off a node; refused at once when it could not end
#[utoipa::path(post, path = "/admin/v1/nodes/{id}:drain", operation_id = "drainNode", tag = "admin", params(OfNumber, Timeout),
    responses((status = 202, description = "It has started; `Location` is the operation.", body = OperationStatus),
        (status = 404, response = Problem), (status = 409, response = Problem), CallProblems))]
fn drain_node() {}

/// Make a draining or drained node a member again
#[utoipa::path(post, path = "/admin/v1/nodes/{id}:undrain", operation_id = "undrainNode", tag = "admin", params(OfNumber, Timeout),
    responses((status = 202, description = "Its drain is being cancelled; `Location` is the operation.", body = OperationStatus),
        (status = 204, description = "It is a member."), (status = 404, response = Problem), (status = 409, response = Problem), CallProblems))]
fn undrain_node() {}

/// Take a node out of the cluster for good, once it is empty: what it holds is moved off it first
#[utoipa::path(post, path = "/admin/v1/nodes/{id}:remove", operation_id = "removeNode", tag = "admin", params(OfNumber, Timeout),
    responses((status = 202, description = "It is drained first; `Location` is the operation.", body = OperationStatus),
        (status = 204, description = "It is removed."), (status = 404, response = Problem), (status = 409, response = Problem), CallProblems))]
fn remove_node() {}

/// Whether the process runs; never depends on the cluster.
#[utoipa::path(get, path = "/livez", operation_id = "livez", tag = "process",
    responses((status = 200, description = "Yes.", body = String), (status = 503, response = Problem)))]
fn livez() {}

/// Whether the router can serve; not while it drains.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "process",
    responses((status = 200, description = "Yes.", body = String), (status = 503, response = Problem)))]
fn readyz() {}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "process",
    responses((status = 200, description = "Yes.", body = String), (status = 503, response = Problem)))]
fn metrics() {}

/// This description.
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "process",
    responses((status = 200, description = "OpenAPI 3.1.", content_type = "application/json", body = Object)))]
fn openapi() {}

/// This description to be read and tried out; all its parts are served from here.
#[utoipa::path(get, path = "/docs", operation_id = "docs", tag = "process",
    responses((status = 303, description = "The page is at `/docs/`.")))]
fn docs() {}
