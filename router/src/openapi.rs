//! `/openapi.json` (OpenAPI 3.1) and `/docs`, which serves its own assets and needs no network.
//!
//! Derived from the types of the API and from one function without a body for each call. They are not the handlers: ids hold any
//! character and custom methods hang on a raw `:`, so requests are not matched by a routing table that a derived
//! description could follow. A test asks the router for every path and method.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use borough_proto::error::ProblemType;
use borough_proto::http_api;
use http::StatusCode;
use utoipa::openapi::schema::AdditionalProperties;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::SwaggerUi;

use self::headers::Headers;
use crate::app::App;
use crate::http::refusal::Refusal;

mod admin;
mod collections;
mod documents;
mod headers;
mod parameters;
mod problems;

/// Serves the description and its reader.
pub fn router() -> Router<Arc<App>> {
    let pages: Router<Arc<App>> = SwaggerUi::new("/docs").url("/openapi.json", Description::openapi()).into();
    pages.layer(from_fn(as_every_answer))
}

/// Makes those of these answers problems that are refusals, as all others are.
async fn as_every_answer(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        response = Refusal::method("GET, HEAD", "this resource is only read").into_response();
    } else if response.status().is_client_error() || response.status().is_server_error() {
        response =
            Refusal::new(ProblemType::NotFound, format!("{path:?} is no page of /docs")).into_response();
    }
    response
}

/// The description.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Borough",
        description = "Sharded, replicated JSON documents with the cache inside. Reads are linearizable unless the request \
            allows staleness. Every error is application/problem+json and says in `outcome` whether a write took effect. \
            What answers `GET` answers `HEAD` too. What is no HTTP (400), a target longer than 64 KiB (414) and a head of more \
            than 100 fields or about 400 KiB (431) are refused before they are read to their end: nothing was applied, the \
            request id is a new one, and the connection is closed. Where tokens are configured, reads need one with the right `read`, writes \
            `write`, the control plane `admin`; without `read`, the answer to a patch does not show the document.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "documents", description = "One document or item."),
        (name = "collections", description = "Lists and batches."),
        (name = "partitions", description = "Everything of one id, atomically."),
        (name = "admin", description = "The control plane."),
        (name = "process", description = "Health, metrics and this description."),
    ),
    paths(
        collections::list_documents, documents::create_document,
        documents::get_document, documents::put_document, documents::patch_document, documents::delete_document,
        documents::get_item, documents::put_item, documents::patch_item, documents::delete_item,
        collections::batch_get, collections::batch_write, collections::transact,
        admin::cluster_status, admin::list_collections,
        admin::get_collection, admin::put_collection, admin::delete_collection,
        admin::rebalance, admin::list_operations, admin::get_operation,
        admin::pause_operation, admin::resume_operation, admin::cancel_operation,
        admin::drain_node, admin::undrain_node, admin::remove_node,
        admin::livez, admin::readyz, admin::metrics, admin::openapi, admin::docs,
    ),
    components(schemas(http_api::Page), responses(problems::Problem)),
    modifiers(&Headers, &OneMember, &Tokens),
)]
struct Description;

/// A write of a batch has the one member that says what is done, and no other.
struct OneMember;

impl Modify for OneMember {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let schemas = api.components.as_mut().map(|components| &mut components.schemas);
        if let Some(RefOr::T(Schema::OneOf(write))) =
            schemas.and_then(|schemas| schemas.get_mut("BatchWrite"))
        {
            for item in &mut write.items {
                if let RefOr::T(Schema::Object(variant)) = item {
                    variant.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
                }
            }
        }
    }
}

/// Bearer tokens, which a cluster may ask for or not.
struct Tokens;

impl Modify for Tokens {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.security_schemes.insert("bearer".to_owned(), RefOr::T(scheme));
        for operation in api.paths.paths.values_mut().flat_map(headers::operations) {
            if !operation.tags.iter().flatten().any(|tag| tag == "process") {
                let none = SecurityRequirement::default();
                operation.security = Some(vec![none, SecurityRequirement::new::<_, _, String>("bearer", [])]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
