//! The JSON schemas of the API's types (`borough_proto::http_api`).

use borough_proto::error::ProblemType;
use borough_proto::limits::BATCH_ITEMS_MAX;
use serde_json::{Value, json};

use super::schema;

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn closed(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
}

fn list(item: Value) -> Value {
    json!({"type": "array", "items": item})
}

fn batch(item: Value) -> Value {
    json!({"type": "array", "items": item, "minItems": 1, "maxItems": BATCH_ITEMS_MAX})
}

/// All of them, by name.
pub fn all() -> Value {
    let (text, integer, number, boolean) = (
        json!({"type": "string"}),
        json!({"type": "integer"}),
        json!({"type": "number"}),
        json!({"type": "boolean"}),
    );
    let optional = json!({"type": ["string", "null"]});
    let types: Vec<&str> = ProblemType::ALL.iter().map(|kind| kind.urn()).collect();
    let key = json!({"id": &text, "sort": &text});
    let options = json!({"sortKey": &boolean, "defaultTtl": &optional, "requirePreconditions": &boolean});
    json!({
        "Document": {"type": "object", "description": "A JSON object of at most 1 MiB. `id` (and `sort`) are added when it has none.",
            "additionalProperties": true, "examples": [{"name": "Ada"}]},
        "Page": object(&["items"], json!({"items": list(schema("Document")), "nextPageToken": &text})),
        "DocumentOrPage": {"anyOf": [schema("Document"), schema("Page")]},
        "Problem": object(&["type", "title", "status", "detail", "outcome"], json!({
            "type": {"type": "string", "enum": types}, "title": &text, "status": &integer, "detail": &text,
            "outcome": {"type": "string", "enum": ["not-applied", "applied", "unknown"]},
            "field": &text, "limit": &integer, "op": &integer})),
        "BatchGetRequest": closed(&["ids"], json!({"ids": batch(json!({"anyOf": [&text, object(&["id", "sort"], key)]}))})),
        "BatchWriteRequest": closed(&["writes"], json!({"writes": batch(json!({"oneOf": [
            closed(&["put"], json!({"put": closed(&["id", "document"], json!({"id": &text, "sort": &text,
                "document": schema("Document"), "ifMatch": &text, "ifAbsent": &boolean, "ttl": &text}))})),
            closed(&["patch"], json!({"patch": closed(&["id", "merge"], json!({"id": &text, "sort": &text,
                "merge": schema("Document"), "ifMatch": &text, "ttl": &text}))})),
            closed(&["delete"], json!({"delete": closed(&["id"], json!({"id": &text, "sort": &text, "ifMatch": &text}))})),
        ]}))})),
        "BatchReply": object(&["items"], json!({"items": list(schema("BatchItem"))})),
        "BatchItem": object(&["id", "status"], json!({"id": &text, "sort": &text, "status": &integer, "etag": &text,
            "document": schema("Document"), "problem": schema("Problem")})),
        "TransactRequest": closed(&["ops"], json!({"ops": batch(schema("TransactOp"))})),
        "TransactOp": closed(&["collection"], json!({"collection": &text, "sort": &text, "put": schema("Document"),
            "patch": schema("Document"), "delete": &boolean, "check": &boolean, "ifMatch": &text, "ifAbsent": &boolean, "ttl": &text})),
        "CollectionOptions": closed(&[], options),
        "Collection": object(&["name", "sortKey", "requirePreconditions"], json!({"name": &text, "sortKey": &boolean,
            "defaultTtl": &optional, "requirePreconditions": &boolean})),
        "CollectionList": object(&["items"], json!({"items": list(schema("Collection"))})),
        "ClusterStatus": object(&["clusterId", "epoch", "replicationFactor", "nodes", "shards", "operations"], json!({
            "clusterId": &text, "epoch": &integer, "replicationFactor": &integer, "nodes": list(schema("NodeStatus")),
            "shards": list(schema("ShardStatus")), "operations": {"type": "array", "maxItems": 0, "description": "Empty: there are no operations yet."}})),
        "NodeStatus": object(&["id", "addr", "state"], json!({"id": &integer, "addr": &text, "zone": &text, "version": &text,
            "state": {"type": "string", "enum": ["up", "suspect", "down", "removed"]}, "replicas": &integer, "leaders": &integer,
            "bytes": &integer, "keys": &integer, "diskFreeBytes": &integer,
            "cache": object(&[], json!({"bytes": &integer, "hitRatio": &number}))})),
        "ShardStatus": object(&["id", "range", "state"], json!({"id": &integer, "range": list(text.clone()), "epoch": &integer,
            "leader": {"type": ["integer", "null"]}, "replicas": list(integer.clone()), "learners": list(integer.clone()),
            "state": {"type": "string", "enum": ["healthy", "moving", "underReplicated", "unavailable"]}, "keys": &integer, "bytes": &integer,
            "appliedIndex": &integer, "readsPerSecond": &number, "writesPerSecond": &number})),
    })
}
