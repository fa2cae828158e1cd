//! The control plane, and what tells of the router itself.

#![expect(dead_code, reason = "only their descriptions are used")]

use borough_proto::http_api::{ClusterStatus, Collection, CollectionList, CollectionOptions};

use super::parameters::{OfName, Timeout};
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
