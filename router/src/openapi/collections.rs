//! Calls on many documents: lists, batches, transactions.

#![expect(dead_code, reason = "only their descriptions are used")]

use borough_proto::http_api::{BatchGetRequest, BatchReply, BatchWriteRequest, Page, TransactRequest};

use super::parameters::{Freshness, Idempotency, InCollection, OfId, Paging, Session, Timeout, View};
use super::problems::{BodyProblems, CallProblems, ConditionProblems, ReadProblems, WriteProblems};

/// List a collection in hash order
#[utoipa::path(get, path = "/v1/{collection}", operation_id = "listDocuments", tag = "collections",
    params(InCollection, Paging, View, Freshness, Session, Timeout),
    responses((status = 200, body = Page,
        description = "A page. Nothing that exists throughout is missed or doubled, also while shards move."), ReadProblems, CallProblems))]
fn list_documents() {}

/// Read up to 100 documents
#[utoipa::path(post, path = "/v1/{collection}:batchGet", operation_id = "batchGet", tag = "collections",
    params(InCollection, View, Freshness, Session, Timeout), request_body = BatchGetRequest,
    responses((status = 200, description = "A status for each, in request order.", body = BatchReply), BodyProblems, ReadProblems, CallProblems))]
fn batch_get() {}

/// Up to 100 writes; not atomic: each has its own status
#[utoipa::path(post, path = "/v1/{collection}:batchWrite", operation_id = "batchWrite", tag = "collections",
    params(InCollection, Idempotency, Session, Timeout), request_body = BatchWriteRequest,
    responses((status = 200, description = "A status for each, in request order.", body = BatchReply), WriteProblems, BodyProblems, CallProblems))]
fn batch_write() {}

/// Operations on the documents of one id, all or none
#[utoipa::path(post, path = "/v1/partitions/{id}:transact", operation_id = "transact", tag = "partitions",
    params(OfId, Idempotency, Session, Timeout), request_body = TransactRequest,
    responses((status = 200, description = "All were applied.", body = BatchReply), ConditionProblems, WriteProblems, BodyProblems, CallProblems))]
fn transact() {}
