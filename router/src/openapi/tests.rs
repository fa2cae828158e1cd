//! The description against itself and the bounds of the contract.

use borough_proto::limits;
use borough_proto::wire::Control;
use serde_json::{Value, json};

use super::*;
use crate::http::path::{NodeChange, Target};

fn document() -> Value {
    serde_json::to_value(Description::openapi()).unwrap()
}

/// The path that describes what a target names.
fn template(target: &Target<'_>) -> &'static str {
    match target {
        Target::Collection { .. } => "/v1/{collection}",
        Target::BatchGet { .. } => "/v1/{collection}:batchGet",
        Target::BatchWrite { .. } => "/v1/{collection}:batchWrite",
        Target::Document { .. } => "/v1/{collection}/{id}",
        Target::Item { .. } => "/v1/{collection}/{id}/{sort}",
        Target::Transact { .. } => "/v1/partitions/{id}:transact",
        Target::Cluster => "/admin/v1/cluster",
        Target::AdminCollections => "/admin/v1/collections",
        Target::AdminCollection { .. } => "/admin/v1/collections/{name}",
        Target::Rebalances => "/admin/v1/rebalances",
        Target::Operations => "/admin/v1/operations",
        Target::Operation { .. } => "/admin/v1/operations/{id}",
        Target::OperationControl { control, .. } => match control {
            Control::Pause => "/admin/v1/operations/{id}:pause",
            Control::Resume => "/admin/v1/operations/{id}:resume",
            Control::Cancel | Control::Unspecified => "/admin/v1/operations/{id}:cancel",
        },
        Target::NodeChange { change, .. } => match change {
            NodeChange::Drain => "/admin/v1/nodes/{id}:drain",
            NodeChange::Undrain => "/admin/v1/nodes/{id}:undrain",
            NodeChange::Remove => "/admin/v1/nodes/{id}:remove",
        },
        Target::Livez => "/livez",
        Target::Readyz => "/readyz",
        Target::Metrics => "/metrics",
    }
}

#[test]
fn every_path_of_the_router_is_described_and_none_else() {
    let document = document();
    let described = document["paths"].as_object().unwrap();
    // One example of each target.
    for path in [
        "/v1/users",
        "/v1/users:batchGet",
        "/v1/users:batchWrite",
        "/v1/users/a",
        "/v1/posts/a/s",
        "/v1/partitions/a:transact",
        "/admin/v1/cluster",
        "/admin/v1/collections",
        "/admin/v1/collections/users",
        "/admin/v1/rebalances",
        "/admin/v1/operations",
        "/admin/v1/operations/7",
        "/admin/v1/operations/7:pause",
        "/admin/v1/operations/7:resume",
        "/admin/v1/operations/7:cancel",
        "/admin/v1/nodes/7:drain",
        "/admin/v1/nodes/7:undrain",
        "/admin/v1/nodes/7:remove",
        "/livez",
        "/readyz",
        "/metrics",
    ] {
        let template = template(&Target::parse(path).unwrap());
        assert!(described.contains_key(template), "{path}: {template}");
    }
    for path in described.keys().filter(|path| !["/openapi.json", "/docs"].contains(&path.as_str())) {
        let example = path
            .replace("{collection}", "users")
            .replace("{id}", if path.starts_with("/admin") { "7" } else { "a" })
            .replace("{sort}", "s")
            .replace("{name}", "users");
        assert_eq!(template(&Target::parse(&example).unwrap()), path);
    }
}

#[test]
fn every_call_but_those_of_the_process_may_ask_for_a_token() {
    let document = document();
    assert_eq!(
        document["components"]["securitySchemes"]["bearer"],
        json!({"type": "http", "scheme": "bearer"})
    );
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let open = operation["tags"] == json!(["process"]);
            let expected = if open { Value::Null } else { json!([{}, {"bearer": []}]) };
            assert_eq!(operation["security"], expected, "{method} {path}");
            for status in ["401", "403"] {
                assert_eq!(operation["responses"][status].is_null(), open, "{method} {path}: {status}");
            }
        }
    }
}

#[test]
fn every_reference_has_its_target() {
    fn check(root: &Value, value: &Value, count: &mut usize) {
        if let Some(target) = value.get("$ref").and_then(Value::as_str) {
            *count += 1;
            assert!(root.pointer(target.trim_start_matches('#')).is_some(), "{target}");
        }
        let inner: Vec<&Value> = match value {
            Value::Object(map) => map.values().collect(),
            Value::Array(items) => items.iter().collect(),
            _ => Vec::new(),
        };
        for value in inner {
            check(root, value, count);
        }
    }
    let (document, mut count) = (document(), 0);
    check(&document, &document, &mut count);
    assert!(count > 200, "only {count} references");
}

#[test]
fn bounds_are_those_of_the_contract() {
    let document = document();
    let parameter = |path: &str, method: &str, name: &str| {
        let all = document["paths"][path][method]["parameters"].as_array().unwrap();
        all.iter().find(|parameter| parameter["name"] == name).unwrap().clone()
    };
    let item = |name: &str| parameter("/v1/{collection}/{id}/{sort}", "put", name);
    for (name, bytes) in [("id", limits::ID_BYTES_MAX), ("sort", limits::SORT_BYTES_MAX)] {
        assert_eq!(item(name)["schema"]["maxLength"], bytes);
        assert!(item(name)["description"].as_str().unwrap().contains(&format!("1 to {bytes} bytes")));
        assert_eq!(item(name)["required"], true);
    }
    assert_eq!(item("Idempotency-Key")["schema"]["maxLength"], limits::IDEMPOTENCY_KEY_BYTES_MAX);
    assert_eq!(item("Idempotency-Key")["required"], false);
    let millis = u64::try_from(limits::DEADLINE_MAX.as_millis()).unwrap();
    assert_eq!(item("Borough-Timeout-Ms")["schema"]["maximum"], millis);
    let rest = limits::COLLECTION_NAME_BYTES_MAX - 1;
    assert_eq!(item("collection")["schema"]["pattern"], format!("^[a-z][a-z0-9_-]{{0,{rest}}}$"));
    let page = &parameter("/v1/{collection}", "get", "pageSize")["schema"];
    assert_eq!(page["maximum"], limits::PAGE_SIZE_MAX);
    assert_eq!(page["default"], limits::PAGE_SIZE_DEFAULT);
    for name in ["start", "end"] {
        let bound = parameter("/v1/{collection}/{id}", "get", name);
        assert_eq!(bound["schema"]["maxLength"], limits::SORT_BYTES_MAX);
    }
    let schemas = &document["components"]["schemas"];
    for (name, field) in
        [("BatchGetRequest", "ids"), ("BatchWriteRequest", "writes"), ("TransactRequest", "ops")]
    {
        let list = &schemas[name]["properties"][field];
        assert_eq!(
            (&list["minItems"], &list["maxItems"]),
            (&json!(1), &json!(limits::BATCH_ITEMS_MAX)),
            "{name}"
        );
        assert_eq!(schemas[name]["additionalProperties"], false);
    }
    assert_eq!(schemas["BatchWrite"]["oneOf"][0]["additionalProperties"], false);
    assert_eq!(
        schemas["Problem"]["properties"]["type"]["enum"].as_array().unwrap().len(),
        ProblemType::ALL.len()
    );
}
