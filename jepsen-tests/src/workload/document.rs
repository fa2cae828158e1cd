//! One document over any way into the cluster: the REST API, or the client crate through routers or straight to nodes.

use std::time::Duration;

use anyhow::Context as _;
use borough_client::{Client, Error};
use borough_proto::error::Outcome;
use serde_json::Value;

use super::{ANSWER_LIMIT, Caller, End, IMPATIENT_LIMIT};
use crate::cluster::Cluster;

const COLLECTION: &str = "users";

/// How calls reach the cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Through {
    #[default]
    Rest,
    /// The client crate, through routers.
    Client,
    /// The client crate, straight to the shards' leaders.
    Direct,
}

/// When a write is to be applied.
#[derive(Debug, Clone, Copy)]
pub enum Only<'a> {
    Always,
    IfAbsent,
    /// While the entity tag is this.
    IfMatch(&'a str),
}

/// Clients for those who wait and those who do not.
#[derive(Debug, Clone)]
pub struct Clients {
    patient: Client,
    impatient: Client,
}

impl Clients {
    /// `None` for calls over REST.
    ///
    /// # Errors
    /// When the client refuses its settings.
    pub fn new(cluster: &Cluster, through: Through) -> anyhow::Result<Option<Self>> {
        let build = |deadline: Duration| {
            let builder = Client::builder().deadline(deadline);
            let builder = match through {
                Through::Rest => return Ok(None),
                Through::Client => builder.routers(cluster.bases()),
                Through::Direct => builder.direct(cluster.nodes.iter().map(|node| node.addr.clone())),
            };
            builder.build().map(Some).context("build the client")
        };
        let (patient, impatient) = (build(ANSWER_LIMIT)?, build(IMPATIENT_LIMIT)?);
        Ok(patient.zip(impatient).map(|(patient, impatient)| Self { patient, impatient }))
    }
}

impl Caller {
    fn client(&self) -> Option<Client> {
        let clients = self.site.clients.as_ref()?;
        Some(if self.is_impatient() { clients.impatient.clone() } else { clients.patient.clone() })
    }

    /// A document and its entity tag.
    pub(super) async fn fetch(&mut self, key: &str) -> Result<Option<(Value, String)>, End> {
        let Some(client) = self.client() else {
            let answer = self.http().get(&path(key)).send().await;
            let answer = self.judge(answer, &[200, 404])?;
            if answer.status == 404 {
                return Ok(None);
            }
            let tag = answer.etag().map_err(|error| End::Fail(format!("{error:#}")))?;
            return Ok(Some((super::counter::document(&answer)?, tag)));
        };
        let found = client.collection::<Value>(COLLECTION).get(key).await.map_err(|error| end(&error))?;
        Ok(found.map(|document| (document.value, document.etag.as_str().to_owned())))
    }

    /// Puts a document; gives its entity tag.
    pub(super) async fn store(
        &mut self,
        key: &str,
        document: &Value,
        only: Only<'_>,
        idempotency_key: Option<&str>,
    ) -> Result<String, End> {
        let Some(client) = self.client() else {
            let http = self.http();
            let mut call = http.put(&path(key), document);
            call = match only {
                Only::Always => call,
                Only::IfAbsent => call.header("if-none-match", "*"),
                Only::IfMatch(tag) => call.header("if-match", tag),
            };
            if let Some(idempotency_key) = idempotency_key {
                call = call.key(idempotency_key);
            }
            let answer = call.send().await;
            let answer = self.judge(answer, &[200, 201])?;
            // It was applied; that it names no entity tag is told as a breach of the contract.
            return Ok(answer.etag().unwrap_or_default());
        };
        let mut put = client.collection::<Value>(COLLECTION).put(key, document);
        put = match only {
            Only::Always => put,
            Only::IfAbsent => put.if_absent(),
            Only::IfMatch(tag) => put.if_match(tag),
        };
        if let Some(idempotency_key) = idempotency_key {
            put = put.idempotency_key(idempotency_key);
        }
        put.await.map(|written| written.etag.as_str().to_owned()).map_err(|error| end(&error))
    }

    /// Deletes a document; what is not there is as it would be after a delete.
    pub(super) async fn erase(&mut self, key: &str) -> Result<(), End> {
        let Some(client) = self.client() else {
            let answer = self.http().delete(&path(key)).send().await;
            return self.judge(answer, &[204, 404]).map(drop);
        };
        client.collection::<Value>(COLLECTION).delete(key).await.map(drop).map_err(|error| end(&error))
    }
}

fn path(key: &str) -> String {
    format!("/v1/{COLLECTION}/{key}")
}

fn end(error: &Error) -> End {
    match (error, error.outcome()) {
        (Error::PreconditionFailed { .. } | Error::AlreadyExists { .. }, Outcome::NotApplied) => {
            End::Fail("precondition".to_owned())
        }
        (_, Outcome::NotApplied) => End::Fail(error.to_string()),
        (_, Outcome::Applied | Outcome::Unknown) => End::Info(error.to_string()),
    }
}
