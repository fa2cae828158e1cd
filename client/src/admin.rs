//! The control plane: collections, and the state of the cluster.

use std::time::Duration;

use borough_proto::error::Outcome;
use borough_proto::http_api::{ClusterStatus, Collection, CollectionList, CollectionOptions};
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
