//! The headers of answers, which follow rules rather than calls.

use utoipa::Modify;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{Header, OpenApi, Ref, RefOr, Response};

const ALL: &[(&str, &str)] = &[
    ("ETag", "The document's version; never repeats for one key."),
    ("Borough-Session", "What this answer saw."),
    ("Borough-Expires", "When the document expires, RFC 3339."),
    (
        "Borough-Shard",
        "The shard, or shards, that the answer concerns, also when it is a refusal. `none` where none is concerned: in the \
            control plane, and where a request is refused before an id is known or has several of which none was asked for.",
    ),
    (
        "Borough-Node",
        "The node, or nodes, that answered. `none` where the router answered by itself, as it does for malformed requests, \
            and where no node could be reached.",
    ),
    ("Cache-Status", "`borough; hit` or `borough; fwd=miss` (RFC 9211)."),
    ("X-Request-Id", "The caller's own, or a new one."),
    ("Location", "Where the new document, or the page, is."),
    ("Allow", "With 405: the methods that the resource has."),
    ("WWW-Authenticate", "With 401 and 403: what is asked for and why (RFC 6750)."),
    ("Retry-After", "Seconds after which a retry makes sense."),
    ("RateLimit", "What is left of the client's limit, when there is one."),
    ("RateLimit-Policy", "The client's limit, when there is one."),
];

/// Names the headers of each answer.
pub struct Headers;

impl Modify for Headers {
    fn modify(&self, api: &mut OpenApi) {
        for item in api.paths.paths.values_mut() {
            for operation in operations(item) {
                describe(operation);
            }
        }
        let Some(components) = &mut api.components else { return };
        let defined = ALL.iter().map(|(name, description)| ((*name).to_owned(), header(description).into()));
        components.headers.extend(defined);
        if let Some(RefOr::T(problem)) = components.responses.get_mut("Problem") {
            let of_answers =
                ["ETag", "Borough-Session", "Borough-Shard", "Borough-Node", "Cache-Status", "Allow"];
            add(problem, &of_answers);
            add(problem, &["WWW-Authenticate"]);
            add(problem, &["X-Request-Id", "Retry-After", "RateLimit", "RateLimit-Policy"]);
        }
    }
}

fn header(description: &str) -> Header {
    let text = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String));
    HeaderBuilder::new().schema(Some(text)).description(Some(description)).build()
}

/// The operations of a path.
pub fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, patch, delete, .. } = item;
    [get, put, post, patch, delete].into_iter().flatten()
}

fn describe(operation: &mut Operation) {
    let tagged = |tag: &str| operation.tags.iter().flatten().any(|own| own == tag);
    let (process, admin, documents) = (tagged("process"), tagged("admin"), tagged("documents"));
    let id = operation.operation_id.clone().unwrap_or_default();
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        add(response, &["X-Request-Id", "Borough-Shard", "Borough-Node"]);
        if id == "docs" {
            add(response, &["Location"]);
        }
        if process {
            continue;
        }
        add(response, &["RateLimit", "RateLimit-Policy"]);
        if admin {
            continue;
        }
        add(response, &["Borough-Session"]);
        if documents && status != "204" {
            add(response, &["ETag", "Borough-Expires"]);
        }
        match id.as_str() {
            "getDocument" | "getItem" => add(response, &["Cache-Status"]),
            "createDocument" => add(response, &["Location"]),
            _ => {}
        }
    }
}

fn add(response: &mut Response, names: &[&str]) {
    for name in names {
        response
            .headers
            .insert((*name).to_owned(), RefOr::Ref(Ref::new(format!("#/components/headers/{name}"))));
    }
}
