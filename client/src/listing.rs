//! Documents as a stream, with the pages behind it.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use borough_proto::error::Outcome;
use borough_proto::http_api;
use futures::Stream;
use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::client::Core;
use crate::document::Json;
use crate::error::{Error, Result};
use crate::transport::{Call, ListQuery};

/// A page on its way.
type Fetching = BoxFuture<'static, Result<http_api::Page>>;

/// The documents of a collection, or of one partition of a sorted one.
///
/// Set what differs from the default, then read it as a stream. Whatever exists throughout is seen exactly once,
/// also while shards move. Each page is a call of its own, with a deadline of its own; an error of a
/// page ends the stream, a document that is no `T` doesn't.
///
/// ```no_run
/// # use futures::TryStreamExt as _;
/// # async fn run(client: borough_client::Client) -> Result<(), borough_client::Error> {
/// let mut users = client.raw("users").list().page_size(500);
/// while let Some(user) = users.try_next().await? {
///     println!("{user}");
/// }
/// # Ok(()) }
/// ```
#[must_use = "nothing happens until it is read"]
pub struct Listing<T> {
    core: Core,
    call: Call,
    query: ListQuery,
    ready: VecDeque<Json>,
    fetching: Option<Fetching>,
    ended: bool,
    kind: PhantomData<fn() -> T>,
}

/// A document of a [`Listing::keyed`] and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyed<T> {
    pub id: String,
    /// Of items of sorted collections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<String>,
    pub document: T,
}

/// One page of a [`Listing`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Where the next page starts; `None` on the last page.
    pub next: Option<String>,
}

impl<T> Listing<T> {
    pub(crate) fn new(core: Core, query: ListQuery) -> Self {
        let operation = match &query.partition {
            None => format!("list {}", query.collection),
            Some(id) => format!("list {}/{id}", query.collection),
        };
        let call = core.read(operation);
        let (ready, fetching, ended) = (VecDeque::new(), None, false);
        Self { core, call, query, ready, fetching, ended, kind: PhantomData }
    }

    crate::request::read_options!();

    /// Time for each page, all attempts included.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.call.deadline = deadline;
        self
    }

    /// Documents of a page: 100 unless set, at most 1000.
    pub fn page_size(mut self, items: u32) -> Self {
        self.query.page_size = Some(items);
        self
    }

    /// Continues where an earlier listing's [`Page::next`] was.
    pub fn page_token(mut self, token: impl Into<String>) -> Self {
        self.query.page_token = Some(token.into());
        self
    }

    /// Only items whose sort keys lie in the range; partitions only.
    pub fn range<S: AsRef<str>>(mut self, range: impl RangeBounds<S>) -> Self {
        // The first text after `key` is `key` and a zero.
        let after = |key: &S| format!("{}\0", key.as_ref());
        let same = |key: &S| key.as_ref().to_owned();
        self.query.start = match range.start_bound() {
            Bound::Included(start) => Some(same(start)),
            Bound::Excluded(start) => Some(after(start)),
            Bound::Unbounded => None,
        };
        self.query.end = match range.end_bound() {
            Bound::Included(end) => Some(after(end)),
            Bound::Excluded(end) => Some(same(end)),
            Bound::Unbounded => None,
        };
        self
    }

    /// From the last sort key to the first; partitions only.
    pub fn reverse(mut self) -> Self {
        self.query.reverse = true;
        self
    }

    /// Documents exactly as they were sent, without the `id` and `sort` that are added when they are shown:
    /// what an export writes, so that an import gives the same bytes.
    pub fn stored(mut self) -> Self {
        self.query.stored = true;
        self
    }

    /// Each document with its key, which a document of a sorted collection need not show: it may have an `id` and a `sort`
    /// of its own.
    pub fn keyed(self) -> Listing<Keyed<T>> {
        let Self { core, call, mut query, .. } = self;
        query.keys = true;
        let (ready, fetching, ended) = (VecDeque::new(), None, false);
        Listing { core, call, query, ready, fetching, ended, kind: PhantomData }
    }

    /// The stream that this is already; reads well at the end of a chain.
    pub fn stream(self) -> Self {
        self
    }
}

impl<T: DeserializeOwned> Listing<T> {
    /// One page, for callers that keep the token themselves.
    ///
    /// # Errors
    /// Those of a read, and [`Error::Decode`] when a document is no `T`.
    pub async fn page(self) -> Result<Page<T>> {
        let Self { core, call, query, .. } = self;
        let page = core.data().list(&call, &query).await?;
        let items = page.items.iter().map(|item| typed(&call.operation, item)).collect::<Result<_>>()?;
        Ok(Page { items, next: page.next_page_token })
    }
}

fn typed<T: DeserializeOwned>(operation: &str, item: &Json) -> Result<T> {
    let value = serde_json::from_str(item.get());
    value.map_err(|source| Error::decode::<T>(operation, Outcome::NotApplied, source))
}

impl<T: DeserializeOwned> Stream for Listing<T> {
    type Item = Result<T>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(item) = this.ready.pop_front() {
                return Poll::Ready(Some(typed(&this.call.operation, &item)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let fetching = this.fetching.get_or_insert_with(|| {
                let (core, call, query) = (this.core.clone(), this.call.clone(), this.query.clone());
                Box::pin(async move { core.data().list(&call, &query).await })
            });
            let page = std::task::ready!(fetching.as_mut().poll(context));
            this.fetching = None;
            match page {
                // A page may be empty and still not the last one.
                Ok(page) => {
                    this.ready = page.items.into();
                    this.ended = page.next_page_token.is_none();
                    this.query.page_token = page.next_page_token;
                }
                Err(error) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl<T> fmt::Debug for Listing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listing").field("query", &self.query).finish_non_exhaustive()
    }
}
