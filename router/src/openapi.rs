//! `/openapi.json` (OpenAPI 3.1) and `/docs`, which serves its own assets and needs no network.
//!
//! Written out rather than derived: ids hold any character and custom methods hang on a raw `:`, so requests are not matched
//! by a routing table that a derived description could follow. A test holds it against the paths the router answers.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use borough_proto::error::ProblemType;
use borough_proto::limits::{
    BATCH_ITEMS_MAX, DEADLINE_MAX, ID_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX,
    SORT_BYTES_MAX,
};
use http::StatusCode;
use serde_json::{Map, Value, json};
use utoipa_swagger_ui::SwaggerUi;

use crate::api::call::REQUEST_ID;
use crate::app::{App, request_id};
use crate::http::refusal::Refusal;

mod schemas;

/// Serves the description and its reader.
pub fn router() -> Router<Arc<App>> {
    let pages: Router<Arc<App>> =
        SwaggerUi::new("/docs").external_url_unchecked("/openapi.json", document()).into();
    pages.layer(from_fn(as_every_answer))
}

/// Gives these answers what all others have: a request id, and a problem when they are none.
async fn as_every_answer(request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        response = Refusal::method("GET, HEAD", "this resource is only read").into_response();
    } else if response.status().is_client_error() || response.status().is_server_error() {
        response =
            Refusal::new(ProblemType::NotFound, format!("{path:?} is no page of /docs")).into_response();
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The description.
pub fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Borough",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Sharded, replicated JSON documents with the cache inside. Reads are linearizable unless the request allows staleness. \
                Every error is application/problem+json and says in `outcome` whether a write took effect.",
        },
        "tags": [
            {"name": "documents", "description": "One document or item."},
            {"name": "collections", "description": "Lists and batches."},
            {"name": "partitions", "description": "Everything of one id, atomically."},
            {"name": "admin", "description": "The control plane."},
            {"name": "process", "description": "Health and metrics."},
        ],
        "paths": paths(),
        "components": {"schemas": schemas::all(), "parameters": parameters(), "headers": headers(), "responses": responses()},
    })
}

fn reference(kind: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{kind}/{name}")})
}

fn schema(name: &str) -> Value {
    reference("schemas", name)
}

fn paths() -> Value {
    let document = ["collection", "id"];
    let item = ["collection", "id", "sort"];
    json!({
        "/v1/{collection}": {
            "parameters": refs(&["collection"]),
            "get": op("listDocuments", "collections", "List a collection in hash order", &["pageSize", "pageToken", "view"], READ)
                .ok("200", "A page. Nothing that exists throughout is missed or doubled, also while shards move.", Some("Page")).done(),
            "post": op("createDocument", "documents", "Create a document under its own id or a generated one", &["ttl"], WRITE)
                .body("application/json", "Document")
                .ok("201", "Created.", Some("Document")).fails(&["409"]).done(),
        },
        "/v1/{collection}/{id}": {
            "parameters": refs(&document),
            "get": op("getDocument", "documents", "Read a document; in a sorted collection list the partition of `id`",
                    &["ifMatch", "ifNoneMatch", "view", "start", "end", "reverse", "pageSize", "pageToken"], READ)
                .ok("200", "The document, or a page of the partition.", Some("DocumentOrPage")).ok("304", "The caller has this version.", None)
                .fails(&["412"]).done(),
            "put": op("putDocument", "documents", "Create or replace a document", &["ifMatch", "ifNoneMatch", "ttl"], WRITE)
                .body("application/json", "Document").ok("200", "Replaced.", Some("Document")).ok("201", "Created.", Some("Document"))
                .fails(&["405", "412", "428"]).done(),
            "patch": op("patchDocument", "documents", "Merge into a document (RFC 7396)", &["ifMatch", "ifNoneMatch", "ttl"], WRITE)
                .body("application/merge-patch+json", "Document").ok("200", "The document after the merge.", Some("Document"))
                .fails(&["405", "412", "428"]).done(),
            "delete": op("deleteDocument", "documents", "Delete a document", &["ifMatch", "ifNoneMatch"], WRITE)
                .ok("204", "Deleted.", None).fails(&["405", "412", "428"]).done(),
        },
        "/v1/{collection}/{id}/{sort}": {
            "parameters": refs(&item),
            "get": op("getItem", "documents", "Read an item of a sorted collection", &["ifMatch", "ifNoneMatch", "view"], READ)
                .ok("200", "The item.", Some("Document")).ok("304", "The caller has this version.", None).fails(&["412"]).done(),
            "put": op("putItem", "documents", "Create or replace an item", &["ifMatch", "ifNoneMatch", "ttl"], WRITE)
                .body("application/json", "Document").ok("200", "Replaced.", Some("Document")).ok("201", "Created.", Some("Document"))
                .fails(&["412", "428"]).done(),
            "patch": op("patchItem", "documents", "Merge into an item (RFC 7396)", &["ifMatch", "ifNoneMatch", "ttl"], WRITE)
                .body("application/merge-patch+json", "Document").ok("200", "The item after the merge.", Some("Document"))
                .fails(&["412", "428"]).done(),
            "delete": op("deleteItem", "documents", "Delete an item", &["ifMatch", "ifNoneMatch"], WRITE)
                .ok("204", "Deleted.", None).fails(&["412", "428"]).done(),
        },
        "/v1/{collection}:batchGet": {
            "parameters": refs(&["collection"]),
            "post": op("batchGet", "collections", "Read up to 100 documents", &["view"], READ).body("application/json", "BatchGetRequest")
                .ok("200", "A status for each, in request order.", Some("BatchReply")).fails(&["413", "415"]).done(),
        },
        "/v1/{collection}:batchWrite": {
            "parameters": refs(&["collection"]),
            "post": op("batchWrite", "collections", "Up to 100 writes; not atomic: each has its own status", &[], WRITE)
                .body("application/json", "BatchWriteRequest")
                .ok("200", "A status for each, in request order.", Some("BatchReply")).done(),
        },
        "/v1/partitions/{id}:transact": {
            "parameters": refs(&["id"]),
            "post": op("transact", "partitions", "Operations on the documents of one id, all or none", &[], WRITE)
                .body("application/json", "TransactRequest").ok("200", "All were applied.", Some("BatchReply")).fails(&["412", "428"]).done(),
        },
        "/admin/v1/cluster": {
            "get": op("clusterStatus", "admin", "The status document", &[], ADMIN).ok("200", "Nodes and shards.", Some("ClusterStatus")).done(),
        },
        "/admin/v1/collections": {
            "get": op("listCollections", "admin", "All collections", &[], ADMIN).ok("200", "By name.", Some("CollectionList")).done(),
        },
        "/admin/v1/collections/{name}": {
            "parameters": refs(&["name"]),
            "get": op("getCollection", "admin", "A collection's options", &[], ADMIN).ok("200", "Its options.", Some("Collection")).fails(&["404"]).done(),
            "put": op("putCollection", "admin", "Create a collection or change its options; its order cannot be changed", &[], ADMIN)
                .body("application/json", "CollectionOptions").ok("200", "Changed.", Some("Collection")).ok("201", "Created.", Some("Collection"))
                .fails(&["409", "413", "415"]).done(),
            "delete": op("deleteCollection", "admin", "Delete a collection and its documents", &[], ADMIN)
                .ok("204", "Deleted.", None).fails(&["404", "409"]).done(),
        },
        "/livez": {"get": probe("livez", "Whether the process runs; never depends on the cluster.")},
        "/readyz": {"get": probe("readyz", "Whether the router can serve; not while it drains.")},
        "/metrics": {"get": probe("metrics", "Prometheus metrics.")},
    })
}

const READ: &[&str] = &["cacheControl", "sessionToken", "timeout"];
const WRITE: &[&str] = &["idempotencyKey", "sessionToken", "timeout"];
const ADMIN: &[&str] = &["timeout"];

fn refs(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| reference("parameters", name)).collect()
}

fn probe(id: &str, summary: &str) -> Value {
    let text = json!({"text/plain": {"schema": {"type": "string"}}});
    json!({"operationId": id, "tags": ["process"], "summary": summary,
           "responses": {"200": {"description": "Yes.", "content": text}, "503": reference("responses", "Problem")}})
}

/// One operation being described.
struct Operation {
    value: Map<String, Value>,
    responses: Map<String, Value>,
}

fn op(id: &str, tag: &str, summary: &str, params: &[&str], common: &[&str]) -> Operation {
    let mut value = Map::new();
    value.insert("operationId".to_owned(), id.into());
    value.insert("tags".to_owned(), json!([tag]));
    value.insert("summary".to_owned(), summary.into());
    value.insert("parameters".to_owned(), refs(&[params, common].concat()).into());
    let operation = Operation { value, responses: Map::new() };
    let fails: &[&str] = match common {
        WRITE => &["400", "404", "413", "415", "422", "429", "500", "503", "504"],
        READ => &["400", "404", "429", "500", "503", "504"],
        _ => &["400", "429", "500", "503", "504"],
    };
    operation.fails(fails)
}

impl Operation {
    fn body(mut self, media: &str, name: &str) -> Self {
        let mut content = Map::new();
        content.insert(media.to_owned(), json!({"schema": schema(name)}));
        if media != "application/json" {
            content.insert("application/json".to_owned(), json!({"schema": schema(name)}));
        }
        self.value.insert("requestBody".to_owned(), json!({"required": true, "content": content}));
        self
    }

    fn ok(mut self, status: &str, description: &str, name: Option<&str>) -> Self {
        let mut response = json!({"description": description, "headers": headers_of()});
        if let (Some(name), Some(response)) = (name, response.as_object_mut()) {
            response.insert("content".to_owned(), json!({"application/json": {"schema": schema(name)}}));
        }
        self.responses.insert(status.to_owned(), response);
        self
    }

    fn fails(mut self, statuses: &[&str]) -> Self {
        for status in statuses {
            self.responses.insert((*status).to_owned(), reference("responses", "Problem"));
        }
        self
    }

    fn done(mut self) -> Value {
        self.value.insert("responses".to_owned(), self.responses.into());
        self.value.into()
    }
}

fn parameter(place: &str, name: &str, description: &str, schema: &Value) -> Value {
    json!({"in": place, "name": name, "required": place == "path", "description": description, "schema": schema})
}

fn parameters() -> Value {
    let text = json!({"type": "string"});
    let key = |bytes: usize| json!({"type": "string", "minLength": 1, "maxLength": bytes});
    let name = json!({"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,63}$"});
    let ttl = json!({"type": "string", "pattern": "^[0-9]+(\\.[0-9]{1,3})?s$", "examples": ["3600s"]});
    let page =
        json!({"type": "integer", "minimum": 1, "maximum": PAGE_SIZE_MAX, "default": PAGE_SIZE_DEFAULT});
    let millis = json!({"type": "integer", "minimum": 1, "maximum": u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX)});
    let id_text = format!("1 to {ID_BYTES_MAX} bytes of UTF-8, percent-encoded (`/` and `:` too).");
    json!({
        "collection": parameter("path", "collection", "A collection's name.", &name),
        "name": parameter("path", "name", "A collection's name.", &name),
        "id": parameter("path", "id", &id_text, &key(ID_BYTES_MAX)),
        "sort": parameter("path", "sort", "The sort key, percent-encoded.", &key(SORT_BYTES_MAX)),
        "ttl": parameter("query", "ttl", "Time to live; the collection's own when absent.", &ttl),
        "view": parameter("query", "view", "`stored`: documents exactly as they were sent, without `id` and `sort` added.",
            &json!({"type": "string", "enum": ["stored"]})),
        "pageSize": parameter("query", "pageSize", "Most items of a page.", &page),
        "pageToken": parameter("query", "pageToken", "`nextPageToken` of the page before.", &text),
        "start": parameter("query", "start", "Partitions: first sort key, inclusive.", &json!({"type": "string", "maxLength": SORT_BYTES_MAX})),
        "end": parameter("query", "end", "Partitions: end of the sort keys, exclusive.", &json!({"type": "string", "maxLength": SORT_BYTES_MAX})),
        "reverse": parameter("query", "reverse", "Partitions: last sort key first.", &json!({"type": "boolean", "default": false})),
        "ifMatch": parameter("header", "If-Match", "Only if the document has one of these versions; `*`: only if it exists.", &text),
        "ifNoneMatch": parameter("header", "If-None-Match", "Only if the document has none of these versions; `*` on a write: only if it does not exist.", &text),
        "idempotencyKey": parameter("header", "Idempotency-Key", "A retry with the same key and body gets the first outcome again and changes nothing.",
            &json!({"type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_BYTES_MAX})),
        "cacheControl": parameter("header", "Cache-Control", "`max-stale=SECONDS`: any replica at most that stale may answer.", &text),
        "sessionToken": parameter("header", "Borough-Session", "A token of an earlier answer: the read sees at least what that answer saw.", &text),
        "timeout": parameter("header", "Borough-Timeout-Ms", "The deadline, in milliseconds.", &millis),
    })
}

fn headers() -> Value {
    let header = |description: &str| json!({"description": description, "schema": {"type": "string"}});
    json!({
        "ETag": header("The document's version; never repeats for one key."),
        "Borough-Session": header("What this answer saw."),
        "Borough-Expires": header("When the document expires, RFC 3339."),
        "Borough-Shard": header("The shard, or shards, that answered."),
        "Borough-Node": header("The node, or nodes, that answered."),
        "Cache-Status": header("`borough; hit` or `borough; fwd=miss` (RFC 9211)."),
        "X-Request-Id": header("The caller's own, or a new one."),
        "Location": header("Where the new document is."),
        "Retry-After": header("Seconds after which a retry makes sense."),
        "RateLimit": header("What is left of the client's limit."),
        "RateLimit-Policy": header("The client's limit."),
    })
}

fn headers_of() -> Value {
    let names = [
        "ETag",
        "Borough-Session",
        "Borough-Expires",
        "Borough-Shard",
        "Borough-Node",
        "Cache-Status",
        "X-Request-Id",
    ];
    names.iter().map(|name| ((*name).to_owned(), reference("headers", name))).collect::<Map<_, _>>().into()
}

fn responses() -> Value {
    let names = ["X-Request-Id", "Borough-Shard", "Retry-After", "RateLimit", "RateLimit-Policy"];
    let headers: Map<_, _> =
        names.iter().map(|name| ((*name).to_owned(), reference("headers", name))).collect();
    let description = format!(
        "A problem (RFC 9457). `type` tells which, `outcome` whether a write took effect. Batches have at most {BATCH_ITEMS_MAX} items."
    );
    json!({"Problem": {"description": description, "headers": headers,
        "content": {"application/problem+json": {"schema": schema("Problem")}}}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::path::Target;

    #[test]
    fn every_documented_path_is_one_that_the_router_knows() {
        for path in document()["paths"].as_object().unwrap().keys() {
            let example = path
                .replace("{collection}", "users")
                .replace("{id}", "a")
                .replace("{sort}", "s")
                .replace("{name}", "users");
            assert!(Target::parse(&example).is_ok(), "{path}");
        }
    }

    #[test]
    fn every_reference_has_its_target() {
        fn check(root: &Value, value: &Value) {
            if let Some(target) = value.get("$ref").and_then(Value::as_str) {
                assert!(root.pointer(target.trim_start_matches('#')).is_some(), "{target}");
            }
            let inner: Vec<&Value> = match value {
                Value::Object(map) => map.values().collect(),
                Value::Array(items) => items.iter().collect(),
                _ => Vec::new(),
            };
            for value in inner {
                check(root, value);
            }
        }
        let document = document();
        check(&document, &document);
    }
}
