//! Schemas of what no struct of the contract describes: documents, which travel as raw JSON, and texts with fixed values.

use utoipa::openapi::schema::{AdditionalProperties, Object, ObjectBuilder, Schema, Type};
use utoipa::openapi::{RefOr, schema::SchemaType};
use utoipa::{PartialSchema, ToSchema};

use crate::error::ProblemType;

/// A document or a merge patch.
pub struct Document;

impl PartialSchema for Document {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::Object))
            .description(Some(
                "A JSON object of at most 1 MiB. `id` (and `sort`) are added when it has none.",
            ))
            .additional_properties(Some(AdditionalProperties::FreeForm(true)))
            .examples([serde_json::json!({"name": "Ada"})])
            .into()
    }
}

impl ToSchema for Document {}

/// Texts of which one is meant.
fn one_of<'a>(values: impl IntoIterator<Item = &'a str>) -> Object {
    ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).enum_values(Some(values)).build()
}

/// `type` of a problem.
pub(crate) fn problem_types() -> Object {
    one_of(ProblemType::ALL.iter().map(|kind| kind.urn()))
}

/// `state` of a node.
pub(crate) fn node_states() -> Object {
    one_of(["up", "suspect", "down", "draining", "removed"])
}

/// `kind` of an operation.
pub(crate) fn operation_kinds() -> Object {
    one_of(["rebalance", "drain", "repair"])
}

/// `state` of an operation.
pub(crate) fn operation_states() -> Object {
    one_of(["running", "paused", "done", "failed", "cancelled"])
}

/// `step` of a move.
pub(crate) fn move_steps() -> Object {
    one_of(["planned", "copying", "undoing", "done", "cancelled"])
}

/// `state` of a shard.
pub(crate) fn shard_states() -> Object {
    one_of(["healthy", "moving", "underReplicated", "unavailable"])
}
