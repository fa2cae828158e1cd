//! Documents and listings over any way into the cluster: the REST API, or the client crate through routers or straight to
//! nodes.

use std::time::Duration;

use anyhow::Context as _;
use borough_client::{Client, Collection, Error, Listing, Partition, Session, Sorted};
use borough_proto::error::Outcome;
use borough_proto::http_api::headers;
use serde_json::{Value, json};

use super::{ANSWER_LIMIT, Caller, End, IMPATIENT_LIMIT, PAGE_ATTEMPTS};
use crate::cluster::Cluster;
use crate::http::{Answer, segment};

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

/// Where a document is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub collection: &'a str,
    pub id: &'a str,
    /// In sorted collections.
    pub sort: Option<&'a str>,
}

impl<'a> Place<'a> {
    pub fn user(id: &'a str) -> Self {
        Self { collection: COLLECTION, id, sort: None }
    }

    fn path(self) -> String {
        let Self { collection, id, sort } = self;
        let sort = sort.map(|sort| format!("/{sort}")).unwrap_or_default();
        format!("/v1/{collection}/{id}{sort}")
    }
}

/// How a document is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Read {
    /// Linearizable unless any replica may answer that was complete at most this long ago.
    pub max_stale: Option<Duration>,
    /// As part of the caller's session.
    pub in_session: bool,
}

/// How a document is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Write<'a> {
    pub only: Only<'a>,
    pub idempotency_key: Option<&'a str>,
    pub ttl: Option<Duration>,
    pub in_session: bool,
}

/// When a write is to be applied.
#[derive(Debug, Clone, Copy, Default)]
pub enum Only<'a> {
    #[default]
    Always,
    IfAbsent,
    /// While the entity tag is this.
    IfMatch(&'a str),
}

/// A document that was written.
#[derive(Debug, Clone)]
pub struct Stored {
    pub etag: String,
    /// Whether there was none before.
    pub created: bool,
}

/// A document of a sorted collection in a transaction: put if there is one to put, else looked at, and either way only
/// while its entity tag is this; `None`: only while there is no document.
#[derive(Debug)]
pub struct Op<'a> {
    pub collection: &'a str,
    pub sort: &'a str,
    pub put: Option<Value>,
    pub etag: Option<&'a str>,
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

/// The client crate, with or without a session.
enum Door {
    Client(Client),
    Session(Session),
}

impl Door {
    fn collection(&self, name: &str) -> Collection<Value> {
        match self {
            Self::Client(client) => client.collection(name),
            Self::Session(session) => session.collection(name),
        }
    }

    fn sorted(&self, name: &str) -> Sorted<Value> {
        match self {
            Self::Client(client) => client.sorted(name),
            Self::Session(session) => session.sorted(name),
        }
    }

    fn partition(&self, id: &str) -> Partition {
        match self {
            Self::Client(client) => client.partition(id),
            Self::Session(session) => session.partition(id),
        }
    }
}

impl Caller {
    /// The client crate, if that is the way.
    fn door(&mut self, in_session: bool) -> Option<Door> {
        let clients = self.site.clients.as_ref()?;
        let client = if self.is_impatient() { &clients.impatient } else { &clients.patient };
        if !in_session {
            return Some(Door::Client(client.clone()));
        }
        let session = self.session.get_or_insert_with(|| client.session());
        Some(Door::Session(session.clone()))
    }

    /// The next call in a session begins another.
    pub(super) fn forget_session(&mut self) {
        self.token = None;
        self.session = None;
    }

    fn keep_session(&mut self, answer: &Answer) {
        if let Some(token) = answer.header(headers::SESSION) {
            self.token = Some(token.to_owned());
        }
    }

    /// A document and its entity tag.
    pub(super) async fn fetch(
        &mut self,
        place: Place<'_>,
        how: Read,
    ) -> Result<Option<(Value, String)>, End> {
        let Some(door) = self.door(how.in_session) else { return self.fetch_rest(place, how).await };
        let mut get = match place.sort {
            Some(sort) => door.sorted(place.collection).get(place.id, sort),
            None => door.collection(place.collection).get(place.id),
        };
        if let Some(age) = how.max_stale {
            get = get.max_stale(age);
        }
        let found = get.await.map_err(|error| end(&error))?;
        Ok(found.map(|document| (document.value, document.etag.as_str().to_owned())))
    }

    async fn fetch_rest(&mut self, place: Place<'_>, how: Read) -> Result<Option<(Value, String)>, End> {
        let http = self.http();
        let mut call = http.get(&place.path());
        if let Some(age) = how.max_stale {
            call = call.header("cache-control", &format!("max-stale={}", age.as_secs()));
        }
        if let Some(token) = self.token.as_ref().filter(|_| how.in_session) {
            call = call.header(headers::SESSION, token);
        }
        let answer = call.send().await;
        let answer = self.judge(answer, &[200, 404])?;
        if how.in_session {
            self.keep_session(&answer);
        }
        if answer.status == 404 {
            return Ok(None);
        }
        let told = |error: anyhow::Error| End::Fail(format!("{error:#}"));
        let tag = answer.etag().map_err(told)?;
        Ok(Some((answer.json().map_err(told)?, tag)))
    }

    /// Puts a document.
    pub(super) async fn store(
        &mut self,
        place: Place<'_>,
        document: &Value,
        how: Write<'_>,
    ) -> Result<Stored, End> {
        let Some(door) = self.door(how.in_session) else {
            return self.store_rest(place, document, how).await;
        };
        let mut put = match place.sort {
            Some(sort) => door.sorted(place.collection).put(place.id, sort, document),
            None => door.collection(place.collection).put(place.id, document),
        };
        put = match how.only {
            Only::Always => put,
            Only::IfAbsent => put.if_absent(),
            Only::IfMatch(tag) => put.if_match(tag),
        };
        if let Some(idempotency_key) = how.idempotency_key {
            put = put.idempotency_key(idempotency_key);
        }
        if let Some(ttl) = how.ttl {
            put = put.ttl(ttl);
        }
        let written = put.await.map_err(|error| end(&error))?;
        Ok(Stored { etag: written.etag.as_str().to_owned(), created: written.created })
    }

    async fn store_rest(
        &mut self,
        place: Place<'_>,
        document: &Value,
        how: Write<'_>,
    ) -> Result<Stored, End> {
        let http = self.http();
        let ttl = how.ttl.map(|ttl| format!("?ttl={}s", ttl.as_secs())).unwrap_or_default();
        let mut call = http.put(&format!("{}{ttl}", place.path()), document);
        call = match how.only {
            Only::Always => call,
            Only::IfAbsent => call.header("if-none-match", "*"),
            Only::IfMatch(tag) => call.header("if-match", tag),
        };
        if let Some(idempotency_key) = how.idempotency_key {
            call = call.key(idempotency_key);
        }
        if let Some(token) = self.token.as_ref().filter(|_| how.in_session) {
            call = call.header(headers::SESSION, token);
        }
        let answer = call.send().await;
        let answer = self.judge(answer, &[200, 201])?;
        if how.in_session {
            self.keep_session(&answer);
        }
        // It was applied; that it names no entity tag is told as a breach of the contract.
        Ok(Stored { etag: answer.etag().unwrap_or_default(), created: answer.status == 201 })
    }

    /// Deletes a document; whether there was one.
    pub(super) async fn erase(&mut self, place: Place<'_>) -> Result<bool, End> {
        let Some(door) = self.door(false) else {
            let answer = self.http().delete(&place.path()).send().await;
            return self.judge(answer, &[204, 404]).map(|answer| answer.status == 204);
        };
        let erased = match place.sort {
            Some(sort) => door.sorted(place.collection).delete(place.id, sort).await,
            None => door.collection(place.collection).delete(place.id).await,
        };
        erased.map_err(|error| end(&error))
    }

    /// Carries out a transaction on a partition, all of it or nothing.
    pub(super) async fn transact(&mut self, partition: &str, ops: &[Op<'_>]) -> Result<(), End> {
        let Some(door) = self.door(false) else {
            let ops: Vec<Value> = ops.iter().map(Op::to_json).collect();
            let path = format!("/v1/partitions/{partition}:transact");
            let answer = self.http().post(&path, &json!({"ops": ops})).send().await;
            return self.judge(answer, &[200]).map(drop);
        };
        let mut transaction = door.partition(partition).transact();
        for op in ops {
            let target = (op.collection, op.sort);
            transaction = match &op.put {
                Some(document) => transaction.put(target, document),
                None => transaction.check(target),
            };
            transaction = match op.etag {
                Some(etag) => transaction.if_match(etag),
                None => transaction.if_absent(),
            };
        }
        transaction.commit().await.map(drop).map_err(|error| end(&error))
    }

    /// All documents of a collection, or of a partition of a sorted one, page by page; each has its id or sort key in it.
    pub(super) async fn list(
        &mut self,
        collection: &str,
        partition: Option<&str>,
        page_size: u32,
    ) -> Result<Vec<Value>, End> {
        let mut items = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let (found, next) = match self.door(false) {
                None => self.page_rest(collection, partition, page_size, token.as_deref()).await?,
                Some(door) => {
                    let listing = match partition {
                        Some(id) => door.sorted(collection).partition(id),
                        None => door.collection(collection).list(),
                    };
                    page(listing.page_size(page_size), token).await?
                }
            };
            items.extend(found);
            match next.filter(|next| !next.is_empty()) {
                Some(next) => token = Some(next),
                None => return Ok(items),
            }
        }
    }

    async fn page_rest(
        &mut self,
        collection: &str,
        partition: Option<&str>,
        page_size: u32,
        token: Option<&str>,
    ) -> Result<(Vec<Value>, Option<String>), End> {
        let partition = partition.map(|id| format!("/{id}")).unwrap_or_default();
        let token = token.map(|token| format!("&pageToken={}", segment(token))).unwrap_or_default();
        let path = format!("/v1/{collection}{partition}?pageSize={page_size}{token}");
        let mut attempt = 1;
        let page: Value = loop {
            let answer = self.http().get(&path).send().await;
            match self.judge(answer, &[200]) {
                Ok(answer) => break answer.json().map_err(|error| End::Fail(format!("{error:#}")))?,
                Err(end) if attempt == PAGE_ATTEMPTS => return Err(end),
                Err(_) => attempt += 1,
            }
        };
        let items = page.get("items").and_then(Value::as_array).cloned();
        let items = items.ok_or_else(|| End::Fail(format!("a page without items: {page}")))?;
        Ok((items, page.get("nextPageToken").and_then(Value::as_str).map(str::to_owned)))
    }
}

async fn page(listing: Listing<Value>, token: Option<String>) -> Result<(Vec<Value>, Option<String>), End> {
    let listing = match token {
        Some(token) => listing.page_token(token),
        None => listing,
    };
    let page = listing.page().await.map_err(|error| end(&error))?;
    Ok((page.items, page.next))
}

impl Op<'_> {
    fn to_json(&self) -> Value {
        let mut op = json!({"collection": self.collection, "sort": self.sort});
        let change = match &self.put {
            Some(document) => ("put", document.clone()),
            None => ("check", json!(true)),
        };
        let held = match self.etag {
            Some(etag) => ("ifMatch", json!(etag)),
            None => ("ifAbsent", json!(true)),
        };
        if let Some(fields) = op.as_object_mut() {
            fields.extend([change, held].map(|(name, value)| (name.to_owned(), value)));
        }
        op
    }
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
