//! The control plane: where replicas are, and the work that moves them.

use axum::response::Response;
use borough_proto::wire::{self, Control, operate_request::Call as Request};
use http::StatusCode;
use http::header::{HeaderValue, LOCATION};

use super::admin::reached;
use super::call::Call;
use crate::http::answer::{empty, json};
use crate::http::path::NodeChange;
use crate::http::query::{Param, Query};
use crate::http::refusal::Refusal;

/// `POST /admin/v1/rebalances`: the plan, or the operation that was started.
///
/// # Errors
/// 409 when the cluster refuses, 503, 504.
pub async fn rebalance(call: &Call<'_>) -> Result<Response, Refusal> {
    let query = Query::parse(call.head.uri.query(), &[Param::ValidateOnly])?;
    let validate_only = query.validate_only;
    let reply = ask(call, Request::Rebalance(wire::Rebalance { validate_only })).await?;
    if validate_only { Ok(json(StatusCode::OK, reply.json)) } else { started(reply) }
}

/// `GET /admin/v1/operations` and `/admin/v1/operations/{id}`.
///
/// # Errors
/// 404, 503.
pub async fn show(call: &Call<'_>, id: Option<u64>) -> Result<Response, Refusal> {
    Query::parse(call.head.uri.query(), &[])?;
    let reply = ask(call, Request::Get(id.unwrap_or(0))).await?;
    Ok(json(StatusCode::OK, reply.json))
}

/// `POST /admin/v1/operations/{id}:pause`, `:resume`, `:cancel`: the operation as it is then.
///
/// # Errors
/// 404, 409 when it has ended, 503, 504.
pub async fn control(call: &Call<'_>, operation: u64, control: Control) -> Result<Response, Refusal> {
    Query::parse(call.head.uri.query(), &[])?;
    let control = wire::ControlOperation { operation, control: control.into() };
    let reply = ask(call, Request::Control(control)).await?;
    Ok(json(StatusCode::OK, reply.json))
}

/// `POST /admin/v1/nodes/{id}:drain`, `:undrain`, `:remove`: the operation where there is one, 204 when it is done.
///
/// # Errors
/// 404, 409 when it cannot be done, 503, 504.
pub async fn change_node(call: &Call<'_>, id: u64, change: NodeChange) -> Result<Response, Refusal> {
    Query::parse(call.head.uri.query(), &[])?;
    let request = match change {
        NodeChange::Drain => Request::Drain(id),
        NodeChange::Undrain => Request::Undrain(id),
        NodeChange::Remove => Request::Remove(id),
    };
    let reply = ask(call, request).await?;
    reached(call, reply.epoch).await?;
    if reply.operation == 0 { Ok(empty(StatusCode::NO_CONTENT)) } else { started(reply) }
}

async fn ask(call: &Call<'_>, request: Request) -> Result<wire::OperateReply, Refusal> {
    call.app.cluster.operate(request, call.deadline).await
}

fn started(reply: wire::OperateReply) -> Result<Response, Refusal> {
    let location = format!("/admin/v1/operations/{}", reply.operation);
    let mut response = json(StatusCode::ACCEPTED, reply.json);
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}
