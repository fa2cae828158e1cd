//! Calls on one document, item or partition.

#![expect(dead_code, reason = "only their descriptions are used")]

use borough_proto::openapi::Document;
use utoipa::openapi::schema::{AnyOf, AnyOfBuilder};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::parameters::{
    Conditions, Freshness, Idempotency, InCollection, OfId, OfSort, Paging, Session, SortRange, Timeout, Ttl,
    View,
};
use super::problems::{BodyProblems, CallProblems, ConditionProblems, Problem, ReadProblems, WriteProblems};

/// What `GET` of an id answers: a document, or in a sorted collection a page of its partition.
pub struct DocumentOrPage;

impl PartialSchema for DocumentOrPage {
    fn schema() -> RefOr<Schema> {
        // Any rather than one of them: a page is an object too.
        let any: AnyOf = AnyOfBuilder::new()
            .item(Ref::from_schema_name("Document"))
            .item(Ref::from_schema_name("Page"))
            .build();
        Schema::AnyOf(any).into()
    }
}

impl ToSchema for DocumentOrPage {}

/// Create a document under its own id or a generated one (UUIDv7)
#[utoipa::path(post, path = "/v1/{collection}", operation_id = "createDocument", tag = "documents",
    params(InCollection, Ttl, Idempotency, Session, Timeout), request_body = Document,
    responses((status = 201, description = "Created.", body = Document), (status = 409, response = Problem), WriteProblems, BodyProblems, CallProblems))]
fn create_document() {}

/// Read a document; in a sorted collection list the partition of `id`
#[utoipa::path(get, path = "/v1/{collection}/{id}", operation_id = "getDocument", tag = "documents",
    params(InCollection, OfId, Conditions, View, SortRange, Paging, Freshness, Session, Timeout),
    responses((status = 200, description = "The document, or a page of the partition.", body = DocumentOrPage),
        (status = 304, description = "The caller has this version."), (status = 412, response = Problem), ReadProblems, CallProblems))]
fn get_document() {}

/// Create or replace a document
#[utoipa::path(put, path = "/v1/{collection}/{id}", operation_id = "putDocument", tag = "documents",
    params(InCollection, OfId, Conditions, Ttl, Idempotency, Session, Timeout), request_body = Document,
    responses((status = 200, description = "Replaced.", body = Document), (status = 201, description = "Created.", body = Document),
        (status = 405, response = Problem), ConditionProblems, WriteProblems, BodyProblems, CallProblems))]
fn put_document() {}

/// Merge into a document (RFC 7396)
#[utoipa::path(patch, path = "/v1/{collection}/{id}", operation_id = "patchDocument", tag = "documents",
    params(InCollection, OfId, Conditions, Ttl, Idempotency, Session, Timeout),
    request_body(content((Document = "application/merge-patch+json"), (Document = "application/json"))),
    responses((status = 200, description = "The document after the merge.", body = Document),
        (status = 405, response = Problem), ConditionProblems, WriteProblems, BodyProblems, CallProblems))]
fn patch_document() {}

/// Delete a document
#[utoipa::path(delete, path = "/v1/{collection}/{id}", operation_id = "deleteDocument", tag = "documents",
    params(InCollection, OfId, Conditions, Idempotency, Session, Timeout),
    responses((status = 204, description = "Deleted."), (status = 405, response = Problem), ConditionProblems, WriteProblems, BodyProblems, CallProblems))]
fn delete_document() {}

/// Read an item of a sorted collection
#[utoipa::path(get, path = "/v1/{collection}/{id}/{sort}", operation_id = "getItem", tag = "documents",
    params(InCollection, OfId, OfSort, Conditions, View, Freshness, Session, Timeout),
    responses((status = 200, description = "The item.", body = Document),
        (status = 304, description = "The caller has this version."), (status = 412, response = Problem), ReadProblems, CallProblems))]
fn get_item() {}

/// Create or replace an item
#[utoipa::path(put, path = "/v1/{collection}/{id}/{sort}", operation_id = "putItem", tag = "documents",
    params(InCollection, OfId, OfSort, Conditions, Ttl, Idempotency, Session, Timeout), request_body = Document,
    responses((status = 200, description = "Replaced.", body = Document), (status = 201, description = "Created.", body = Document),
        ConditionProblems, WriteProblems, BodyProblems, CallProblems))]
fn put_item() {}

/// Merge into an item (RFC 7396)
#[utoipa::path(patch, path = "/v1/{collection}/{id}/{sort}", operation_id = "patchItem", tag = "documents",
    params(InCollection, OfId, OfSort, Conditions, Ttl, Idempotency, Session, Timeout),
    request_body(content((Document = "application/merge-patch+json"), (Document = "application/json"))),
    responses((status = 200, description = "The item after the merge.", body = Document), ConditionProblems, WriteProblems, BodyProblems, CallProblems))]
fn patch_item() {}

/// Delete an item
#[utoipa::path(delete, path = "/v1/{collection}/{id}/{sort}", operation_id = "deleteItem", tag = "documents",
    params(InCollection, OfId, OfSort, Conditions, Idempotency, Session, Timeout),
    responses((status = 204, description = "Deleted."), ConditionProblems, WriteProblems, BodyProblems, CallProblems))]
fn delete_item() {}
