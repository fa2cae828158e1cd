//! [`Client`], the handle that everything starts from, and [`Session`], the one that reads its own writes.

use std::sync::Arc;
use std::time::Duration;

use borough_proto::session::{BadToken, Session as Seen};

use crate::admin::Admin;
use crate::builder::ClientBuilder;
use crate::collection::{Collection, Sorted};
use crate::document::Json;
use crate::partition::Partition;
use crate::session::SessionState;
use crate::transport::rest::Rest;
use crate::transport::{Call, Transport};

#[derive(Debug)]
pub(crate) struct Inner {
    pub data: Transport,
    /// Routers for admin calls, when data goes another way.
    #[cfg(feature = "direct")]
    pub admin: Option<Rest>,
    pub deadline: Duration,
    /// Whether writes get a key of their own.
    pub keys: bool,
}

/// What every handle carries.
#[derive(Debug, Clone)]
pub(crate) struct Core {
    pub inner: Arc<Inner>,
    pub session: Option<Arc<SessionState>>,
}

impl Core {
    /// A read.
    pub fn read(&self, operation: String) -> Call {
        Call {
            operation,
            deadline: self.inner.deadline,
            idempotency_key: None,
            max_stale: None,
            session: self.session.clone(),
        }
    }

    /// A write, under a new key: one key for one logical write, whatever becomes of its attempts.
    pub fn write(&self, operation: String) -> Call {
        let key = self.inner.keys.then(|| uuid::Uuid::now_v7().to_string());
        Call { idempotency_key: key, ..self.read(operation) }
    }

    pub fn data(&self) -> &Transport {
        &self.inner.data
    }

    /// Routers, for what only they do.
    pub fn rest(&self) -> Option<&Rest> {
        match &self.inner.data {
            Transport::Rest(rest) => Some(rest),
            #[cfg(feature = "direct")]
            Transport::Direct(_) => self.inner.admin.as_ref(),
        }
    }
}

/// A handle to a cluster. Cheap to clone, safe to share; connections are kept and reused.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// let client = borough_client::Client::builder()
///     .router("http://127.0.0.1:8080")
///     .deadline(Duration::from_secs(2))
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    core: Core,
}

impl Client {
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { core: Core { inner, session: None } }
    }

    /// A collection whose documents are `T`, keyed by id. [`Json`] takes them as they are.
    pub fn collection<T>(&self, name: impl Into<String>) -> Collection<T> {
        Collection::new(self.core.clone(), name.into())
    }

    /// A collection whose documents are passed on as they are.
    pub fn raw(&self, name: impl Into<String>) -> Collection<Json> {
        self.collection(name)
    }

    /// A sorted collection, keyed by id and sort.
    pub fn sorted<T>(&self, name: impl Into<String>) -> Sorted<T> {
        Sorted::new(self.core.clone(), name.into())
    }

    /// Everything of one id, in all collections: what [`Partition::transact`] changes at once.
    pub fn partition(&self, id: impl Into<String>) -> Partition {
        Partition::new(self.core.clone(), id.into())
    }

    /// A handle whose reads see at least what it has written and read before, from any replica.
    pub fn session(&self) -> Session {
        self.with_seen(None)
    }

    /// Continues a session from its [`Session::token`], for example in another process.
    ///
    /// # Errors
    /// [`BadToken`] when it is none.
    pub fn resume(&self, token: &str) -> Result<Session, BadToken> {
        Ok(self.with_seen(Some(Seen::decode(token)?)))
    }

    fn with_seen(&self, seen: Option<Seen>) -> Session {
        let session = Some(Arc::new(SessionState::new(seen)));
        Session { client: Self { core: Core { inner: Arc::clone(&self.core.inner), session } } }
    }

    /// Collections and the state of the cluster.
    pub fn admin(&self) -> Admin {
        Admin::new(self.core.clone())
    }
}

/// A [`Client`] that remembers what it saw. Clones share one memory.
///
/// ```no_run
/// # async fn run(client: borough_client::Client) -> Result<(), borough_client::Error> {
/// let session = client.session();
/// session.raw("users").put("1", &serde_json::value::RawValue::from_string("{}".into()).unwrap()).await?;
/// let mine = session.raw("users").get("1").await?; // any replica that has the write above
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Session {
    client: Client,
}

impl Session {
    /// Like [`Client::collection`].
    pub fn collection<T>(&self, name: impl Into<String>) -> Collection<T> {
        self.client.collection(name)
    }

    /// Like [`Client::raw`].
    pub fn raw(&self, name: impl Into<String>) -> Collection<Json> {
        self.client.raw(name)
    }

    /// Like [`Client::sorted`].
    pub fn sorted<T>(&self, name: impl Into<String>) -> Sorted<T> {
        self.client.sorted(name)
    }

    /// Like [`Client::partition`].
    pub fn partition(&self, id: impl Into<String>) -> Partition {
        self.client.partition(id)
    }

    /// What was seen so far, to be handed to [`Client::resume`]; `None` before the first answer.
    pub fn token(&self) -> Option<String> {
        self.client.core.session.as_ref().and_then(|session| session.token())
    }
}
