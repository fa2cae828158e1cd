//! Typed handles to collections.

use std::fmt;
use std::marker::PhantomData;

use borough_proto::http_api::BatchKey;
use serde::Serialize;

use crate::batch::{BatchGet, BatchWrite};
use crate::client::Core;
use crate::listing::Listing;
use crate::request::{Create, Delete, Get, Patch, Put};
use crate::transport::{Key, ListQuery};

/// A collection of `T`, keyed by id; made by [`Client::collection`](crate::Client::collection).
pub struct Collection<T> {
    core: Core,
    name: String,
    kind: PhantomData<fn() -> T>,
}

/// A sorted collection of `T`, keyed by id and sort; made by [`Client::sorted`](crate::Client::sorted).
/// The items of one id lie together, in the order of their sort keys.
pub struct Sorted<T> {
    core: Core,
    name: String,
    kind: PhantomData<fn() -> T>,
}

macro_rules! handle {
    ($handle:ident) => {
        impl<T> Clone for $handle<T> {
            fn clone(&self) -> Self {
                Self::new(self.core.clone(), self.name.clone())
            }
        }

        impl<T> fmt::Debug for $handle<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($handle)).field(&self.name).finish()
            }
        }

        impl<T> $handle<T> {
            pub(crate) fn new(core: Core, name: String) -> Self {
                Self { core, name, kind: PhantomData }
            }

            /// What it is called.
            pub fn name(&self) -> &str {
                &self.name
            }

            /// All documents, as a stream; pages are fetched as it is read.
            pub fn list(&self) -> Listing<T> {
                let query = ListQuery { collection: self.name.clone(), ..Default::default() };
                Listing::new(self.core.clone(), query)
            }

            /// Up to 100 writes in one request, each with a status of its own.
            pub fn batch_write(&self) -> BatchWrite<T> {
                BatchWrite::new(self.core.clone(), self.name.clone())
            }
        }
    };
}

handle!(Collection);
handle!(Sorted);

impl<T> Collection<T> {
    fn key(&self, id: impl Into<String>) -> Key {
        Key { collection: self.name.clone(), id: id.into(), sort: None }
    }

    /// Reads a document; `None` when there is none.
    pub fn get(&self, id: impl Into<String>) -> Get<T> {
        Get::new(self.core.clone(), self.key(id))
    }

    /// Replaces a document, or makes it when there is none.
    pub fn put(&self, id: impl Into<String>, value: &T) -> Put
    where
        T: Serialize,
    {
        Put::new(self.core.clone(), self.key(id), value)
    }

    /// Makes a document that must not exist yet, under the `id` it has, the one that
    /// [`Create::id`] names, or a new one.
    pub fn create(&self, value: &T) -> Create
    where
        T: Serialize,
    {
        Create::new(self.core.clone(), self.name.clone(), value)
    }

    /// Changes parts of a document by a merge patch (RFC 7396): members that are `null` are removed.
    pub fn patch<P: Serialize + ?Sized>(&self, id: impl Into<String>, merge: &P) -> Patch<T> {
        Patch::new(self.core.clone(), self.key(id), merge)
    }

    /// Removes a document; answers whether there was one.
    pub fn delete(&self, id: impl Into<String>) -> Delete {
        Delete::new(self.core.clone(), self.key(id))
    }

    /// Up to 100 documents in one request, in the order of `ids`.
    pub fn batch_get<I: Into<String>>(&self, ids: impl IntoIterator<Item = I>) -> BatchGet<T> {
        let keys = ids.into_iter().map(|id| BatchKey::Id(id.into())).collect();
        BatchGet::new(self.core.clone(), self.name.clone(), keys)
    }
}

impl<T> Sorted<T> {
    fn key(&self, id: impl Into<String>, sort: impl Into<String>) -> Key {
        Key { collection: self.name.clone(), id: id.into(), sort: Some(sort.into()) }
    }

    /// Reads an item; `None` when there is none.
    pub fn get(&self, id: impl Into<String>, sort: impl Into<String>) -> Get<T> {
        Get::new(self.core.clone(), self.key(id, sort))
    }

    /// Replaces an item, or makes it when there is none.
    pub fn put(&self, id: impl Into<String>, sort: impl Into<String>, value: &T) -> Put
    where
        T: Serialize,
    {
        Put::new(self.core.clone(), self.key(id, sort), value)
    }

    /// Changes parts of an item by a merge patch (RFC 7396): members that are `null` are removed.
    pub fn patch<P: Serialize + ?Sized>(
        &self,
        id: impl Into<String>,
        sort: impl Into<String>,
        merge: &P,
    ) -> Patch<T> {
        Patch::new(self.core.clone(), self.key(id, sort), merge)
    }

    /// Removes an item; answers whether there was one.
    pub fn delete(&self, id: impl Into<String>, sort: impl Into<String>) -> Delete {
        Delete::new(self.core.clone(), self.key(id, sort))
    }

    /// The items of one id in the order of their sort keys:
    /// `posts.partition("ann").range("2026-01".."2026-02").reverse().stream()`.
    pub fn partition(&self, id: impl Into<String>) -> Listing<T> {
        let query =
            ListQuery { collection: self.name.clone(), partition: Some(id.into()), ..Default::default() };
        Listing::new(self.core.clone(), query)
    }

    /// Up to 100 items in one request, in the order of `keys`.
    pub fn batch_get<I, S>(&self, keys: impl IntoIterator<Item = (I, S)>) -> BatchGet<T>
    where
        I: Into<String>,
        S: Into<String>,
    {
        let sorted = |(id, sort): (I, S)| BatchKey::Sorted { id: id.into(), sort: sort.into() };
        BatchGet::new(self.core.clone(), self.name.clone(), keys.into_iter().map(sorted).collect())
    }
}
