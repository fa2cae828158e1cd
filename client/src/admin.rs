//! The control plane: collections, and the state of the cluster.

use std::time::Duration;

use borough_proto::error::{Outcome, ProblemType};
use borough_proto::http_api::{
    ClusterStatus, Collection, CollectionList, CollectionOptions, OperationList, OperationStatus,
    RebalancePlan,
};
use bytes::Bytes;
use reqwest::Method;
use serde::de::DeserializeOwned;

use crate::client::Core;
use crate::error::{Error, Result};
use crate::request::encode;
use crate::transport::check_collection;
use crate::transport::rest::Outgoing;

/// Administration; made by [`Client::admin`](crate::Client::admin). It needs a router, also for clients
/// whose data goes directly to nodes.
#[derive(Debug, Clone)]
pub struct Admin {
    core: Core,
    deadline: Duration,
}

impl Admin {
    pub(crate) fn new(core: Core) -> Self {
        let deadline = core.inner.deadline;
        Self { core, deadline }
    }

    /// Time for each call made through this handle.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Makes a collection, or changes the options of one.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the change is not possible: a sort key is for ever.
    pub async fn put_collection(&self, name: &str, options: &CollectionOptions) -> Result<Collection> {
        let operation = format!("put collection {name}");
        let out = Outgoing::write(Method::PUT, collection_target(&operation, name)?).repeatable();
        let out = out.json(encode(&operation, options)?);
        self.typed(operation, out, Outcome::Applied).await
    }

    /// The collection, or `None`.
    ///
    /// # Errors
    /// Those of a read.
    pub async fn collection(&self, name: &str) -> Result<Option<Collection>> {
        let operation = format!("get collection {name}");
        let out = Outgoing::read(Method::GET, collection_target(&operation, name)?);
        match self.typed(operation, out, Outcome::NotApplied).await {
            Ok(collection) => Ok(Some(collection)),
            Err(Error::CollectionNotFound(_) | Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All collections.
    ///
    /// # Errors
    /// Those of a read.
    pub async fn collections(&self) -> Result<Vec<Collection>> {
        let out = Outgoing::read(Method::GET, "/admin/v1/collections".to_owned());
        let list: CollectionList =
            self.typed("list collections".to_owned(), out, Outcome::NotApplied).await?;
        Ok(list.items)
    }

    /// Removes a collection and everything in it; answers whether there was one.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the cluster refuses.
    pub async fn delete_collection(&self, name: &str) -> Result<bool> {
        let operation = format!("delete collection {name}");
        let out = Outgoing::write(Method::DELETE, collection_target(&operation, name)?).repeatable();
        match self.send(operation, out).await {
            Ok(_) => Ok(true),
            Err(Error::CollectionNotFound(_) | Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The status document: nodes and shards.
    ///
    /// # Errors
    /// Those of a read.
    pub async fn status(&self) -> Result<ClusterStatus> {
        let out = Outgoing::read(Method::GET, "/admin/v1/cluster".to_owned());
        self.typed("get cluster status".to_owned(), out, Outcome::NotApplied).await
    }

    /// What a rebalance would do now.
    ///
    /// # Errors
    /// Those of a read.
    pub async fn rebalance_plan(&self) -> Result<RebalancePlan> {
        let path = "/admin/v1/rebalances?validateOnly=true".to_owned();
        let out = Outgoing::write(Method::POST, path).repeatable();
        self.typed("plan a rebalance".to_owned(), out, Outcome::NotApplied).await
    }

    /// Spreads replicas and leaders evenly over the nodes.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the cluster refuses.
    pub async fn rebalance(&self) -> Result<OperationStatus> {
        self.order("rebalance".to_owned(), "rebalances").await
    }

    /// Operations under way, and the last that have ended; the newest first.
    ///
    /// # Errors
    /// Those of a read.
    pub async fn operations(&self) -> Result<Vec<OperationStatus>> {
        let out = Outgoing::read(Method::GET, "/admin/v1/operations".to_owned());
        let list: OperationList = self.typed("list operations".to_owned(), out, Outcome::NotApplied).await?;
        Ok(list.items)
    }

    /// An operation with its moves.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of a read.
    pub async fn operation(&self, id: &str) -> Result<OperationStatus> {
        let operation = format!("get operation {id}");
        let out = Outgoing::read(Method::GET, format!("/admin/v1/operations/{}", number(&operation, id)?));
        self.typed(operation, out, Outcome::NotApplied).await
    }

    /// Begins no more moves of an operation; those that have begun are finished.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it has ended.
    pub async fn pause(&self, id: &str) -> Result<OperationStatus> {
        self.control(id, "pause").await
    }

    /// Goes on with a paused operation.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it has ended.
    pub async fn resume(&self, id: &str) -> Result<OperationStatus> {
        self.control(id, "resume").await
    }

    /// Ends an operation before its time: what is done stays, moves that have begun are taken back.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it has ended or is a repair.
    pub async fn cancel(&self, id: &str) -> Result<OperationStatus> {
        self.control(id, "cancel").await
    }

    /// Moves everything off a node.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when that could not end, with the reason.
    pub async fn drain(&self, node: u64) -> Result<OperationStatus> {
        self.order(format!("drain node {node}"), &format!("nodes/{node}:drain")).await
    }

    /// Makes a draining or drained node a member again; the drain that is being cancelled, if there was one.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when the node was removed.
    pub async fn undrain(&self, node: u64) -> Result<Option<OperationStatus>> {
        self.order_or_done(format!("undrain node {node}"), &format!("nodes/{node}:undrain")).await
    }

    /// Takes a node out of the cluster for good; the drain before that, or `None` when the node had nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when that could not end, with the reason.
    pub async fn remove(&self, node: u64) -> Result<Option<OperationStatus>> {
        self.order_or_done(format!("remove node {node}"), &format!("nodes/{node}:remove")).await
    }

    async fn control(&self, id: &str, verb: &str) -> Result<OperationStatus> {
        let operation = format!("{verb} operation {id}");
        let id = number(&operation, id)?;
        self.order(operation, &format!("operations/{id}:{verb}")).await
    }

    async fn order(&self, operation: String, path: &str) -> Result<OperationStatus> {
        let out = Outgoing::write(Method::POST, format!("/admin/v1/{path}")).repeatable();
        self.typed(operation, out, Outcome::Applied).await
    }

    async fn order_or_done(&self, operation: String, path: &str) -> Result<Option<OperationStatus>> {
        let out = Outgoing::write(Method::POST, format!("/admin/v1/{path}")).repeatable();
        let body = self.send(operation.clone(), out).await?;
        if body.is_empty() {
            return Ok(None);
        }
        let found = serde_json::from_slice(&body);
        found
            .map(Some)
            .map_err(|source| Error::decode::<OperationStatus>(&operation, Outcome::Applied, source))
    }

    /// A `GET` under `/admin/v1`, for example `cluster`; the body as answered.
    ///
    /// # Errors
    /// Those of a read.
    pub async fn get(&self, path: &str) -> Result<Bytes> {
        self.send(format!("get {path}"), Outgoing::read(Method::GET, format!("/admin/v1/{path}"))).await
    }

    async fn typed<T: DeserializeOwned>(
        &self,
        operation: String,
        out: Outgoing,
        outcome: Outcome,
    ) -> Result<T> {
        let body = self.send(operation.clone(), out).await?;
        serde_json::from_slice(&body).map_err(|source| Error::decode::<T>(&operation, outcome, source))
    }

    async fn send(&self, operation: String, out: Outgoing) -> Result<Bytes> {
        let mut call = self.core.read(operation);
        call.deadline = self.deadline;
        // Admin answers say nothing about shards.
        call.session = None;
        let Some(rest) = self.core.rest() else {
            return Err(Error::NeedsRouter { operation: call.operation });
        };
        Ok(rest.exchange(&call, &out).await?.body)
    }
}

fn collection_target(operation: &str, name: &str) -> Result<String> {
    check_collection(operation, name)?;
    Ok(format!("/admin/v1/collections/{name}"))
}

/// The id of an operation is a number, and what else goes into a path would be another call.
fn number(operation: &str, id: &str) -> Result<u64> {
    let detail = || format!("{id:?} is no operation's id, which is a number");
    id.parse().map_err(|_| Error::refused(operation, ProblemType::BadId, detail()))
}
