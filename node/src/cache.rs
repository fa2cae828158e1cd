//! The node's document cache: bounded in bytes, over stored records and remembered absences.
//!
//! I7: entries change only by apply, or by a fill that reads the engine under a placeholder. Apply removes
//! the placeholder of a key that it changes, so a fill that read before the change cannot be kept. A reader that
//! joined such a fill had a read barrier from before the change, or it would have waited for apply to be done.
//! Entries belong to one opening of a space, never to be had again: what is left of a replica that went away, or whose
//! data a snapshot replaced, is never asked for and ages out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::sync::{Cache as Inner, DefaultLifecycle, GuardResult, PlaceholderGuard};
use quick_cache::{DefaultHashBuilder, Weighter};

use crate::store::snapshot::Instance;

/// Bookkeeping of one entry besides its key and value, in bytes: map slot, list links, two `Bytes` headers.
const ENTRY_OVERHEAD_BYTES: u64 = 160;
/// For sizing the map at the start; it grows when documents are smaller.
const DOCUMENT_BYTES_ESTIMATE: u64 = 512;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    space: Instance,
    document: Bytes,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Key, Option<Bytes>> for Weigh {
    fn weight(&self, key: &Key, record: &Option<Bytes>) -> u64 {
        let record = record.as_ref().map_or(0, Bytes::len);
        ENTRY_OVERHEAD_BYTES + (key.document.len() + record) as u64
    }
}

type Record = Option<Bytes>;
/// The right to fill a place.
type Guard<'a> = PlaceholderGuard<'a, Key, Record, Weigh, DefaultHashBuilder, DefaultLifecycle<Key, Record>>;

/// Shared by all replicas of a node.
pub struct Cache {
    inner: Inner<Key, Option<Bytes>, Weigh>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Cache {
    /// A cache of at most `bytes_max` bytes, bookkeeping included.
    pub fn new(bytes_max: u64) -> Self {
        let estimate = bytes_max / (DOCUMENT_BYTES_ESTIMATE + ENTRY_OVERHEAD_BYTES);
        let items = usize::try_from(estimate).unwrap_or(usize::MAX);
        Self {
            inner: Inner::with_weighter(items, bytes_max, Weigh),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The record under `document`, from memory or from `load`, and whether it was a hit. Readers of
    /// one key share one load.
    ///
    /// # Errors
    /// What `load` answers; nothing is kept then.
    pub async fn get_or_load<E>(
        &self,
        space: Instance,
        document: Bytes,
        load: impl FnOnce() -> Result<Option<Bytes>, E>,
    ) -> Result<(Option<Bytes>, bool), E> {
        let key = Key { space, document };
        match self.inner.get_value_or_guard_async(&key).await {
            Ok(record) => Ok(self.hit(record)),
            Err(guard) => self.fill(guard, load),
        }
    }

    /// [`get_or_load`](Self::get_or_load) without waiting: `None` while another reader loads the record.
    ///
    /// # Errors
    /// What `load` answers; nothing is kept then.
    pub fn get_or_load_now<E>(
        &self,
        space: Instance,
        document: Bytes,
        load: impl FnOnce() -> Result<Option<Bytes>, E>,
    ) -> Result<Option<(Option<Bytes>, bool)>, E> {
        let key = Key { space, document };
        match self.inner.get_value_or_guard(&key, Some(Duration::ZERO)) {
            GuardResult::Value(record) => Ok(Some(self.hit(record))),
            GuardResult::Guard(guard) => self.fill(guard, load).map(Some),
            GuardResult::Timeout => Ok(None),
        }
    }

    fn hit(&self, record: Option<Bytes>) -> (Option<Bytes>, bool) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        (record, true)
    }

    fn fill<E>(
        &self,
        guard: Guard<'_>,
        load: impl FnOnce() -> Result<Option<Bytes>, E>,
    ) -> Result<(Option<Bytes>, bool), E> {
        self.misses.fetch_add(1, Ordering::Relaxed);
        let record = load()?;
        // Refused when apply changed the key meanwhile; the value read is still right for this reader.
        let _ = guard.insert(record.clone());
        Ok((record, false))
    }

    /// Apply changed `document`: a cached entry takes the new record, a fill under way is made void.
    pub fn update(&self, space: Instance, document: Bytes, record: Option<Bytes>) {
        let key = Key { space, document };
        if let Err((key, _)) = self.inner.replace(key, record, true) {
            self.inner.remove(&key);
        }
    }

    /// Bytes held now, bookkeeping included.
    pub fn bytes(&self) -> u64 {
        self.inner.weight()
    }

    /// Entries held now.
    pub fn entries(&self) -> u64 {
        self.inner.len() as u64
    }

    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Hits per lookup since the start, 0 when there was none.
    pub fn hit_ratio(&self) -> f64 {
        let hits = self.hits() as f64;
        let all = hits + self.misses() as f64;
        if all > 0.0 { hits / all } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::LazyLock;

    use super::*;

    /// The one space of most tests.
    fn space() -> Instance {
        static SPACE: LazyLock<Instance> = LazyLock::new(Instance::next);
        *SPACE
    }

    async fn get(cache: &Cache, key: &'static str, stored: Option<&'static str>) -> (Option<Bytes>, bool) {
        let load = || Ok::<_, Infallible>(stored.map(|text| Bytes::from_static(text.as_bytes())));
        cache.get_or_load(space(), Bytes::from_static(key.as_bytes()), load).await.unwrap()
    }

    #[tokio::test]
    async fn absences_are_remembered_and_ended_by_apply() {
        let cache = Cache::new(1 << 20);
        assert_eq!(get(&cache, "a", None).await, (None, false));
        assert_eq!(get(&cache, "a", Some("wrong")).await, (None, true));
        cache.update(space(), Bytes::from_static(b"a"), Some(Bytes::from_static(b"new")));
        assert_eq!(get(&cache, "a", None).await, (Some(Bytes::from_static(b"new")), true));
    }

    #[tokio::test]
    async fn a_fill_that_read_before_a_change_is_not_kept() {
        let cache = Cache::new(1 << 20);
        let key = Bytes::from_static(b"a");
        let load = || {
            // The engine was read, then apply changes the key before the fill is put in.
            cache.update(space(), key.clone(), Some(Bytes::from_static(b"new")));
            Ok::<_, Infallible>(Some(Bytes::from_static(b"old")))
        };
        let (record, hit) = cache.get_or_load(space(), key.clone(), load).await.unwrap();
        assert_eq!((record, hit), (Some(Bytes::from_static(b"old")), false));
        assert_eq!(get(&cache, "a", Some("new")).await, (Some(Bytes::from_static(b"new")), false));
    }

    #[tokio::test]
    async fn who_does_not_wait_loads_unless_another_reader_does() {
        let cache = Cache::new(1 << 20);
        let key = Bytes::from_static(b"a");
        let now = |stored: &'static str| {
            let load = || Ok::<_, Infallible>(Some(Bytes::from_static(stored.as_bytes())));
            cache.get_or_load_now(space(), key.clone(), load).unwrap()
        };
        let load = || {
            assert_eq!(now("another"), None);
            Ok::<_, Infallible>(None)
        };
        assert_eq!(cache.get_or_load(space(), key.clone(), load).await.unwrap(), (None, false));
        assert_eq!(now("another"), Some((None, true)));
        cache.update(space(), key.clone(), None);
        cache.inner.remove(&Key { space: space(), document: key.clone() });
        assert_eq!(now("x"), Some((Some(Bytes::from_static(b"x")), false)));
        assert_eq!(get(&cache, "a", None).await, (Some(Bytes::from_static(b"x")), true));
        assert_eq!((cache.hits(), cache.misses()), (2, 2));
    }

    #[tokio::test]
    async fn another_opening_of_a_space_shares_nothing() {
        let cache = Cache::new(1 << 20);
        assert_eq!(get(&cache, "a", Some("old")).await, (Some(Bytes::from_static(b"old")), false));
        let load = || Ok::<_, Infallible>(None);
        let other = cache.get_or_load(Instance::next(), Bytes::from_static(b"a"), load).await.unwrap();
        assert_eq!(other, (None, false));
        assert_eq!(get(&cache, "a", None).await, (Some(Bytes::from_static(b"old")), true));
    }

    #[tokio::test]
    async fn updates_do_not_fill_and_the_bound_holds() {
        let cache = Cache::new(1 << 20);
        cache.update(space(), Bytes::from_static(b"a"), Some(Bytes::from_static(b"x")));
        assert_eq!(cache.entries(), 0);
        for index in 0..20_000_u32 {
            let key = Bytes::from(index.to_be_bytes().to_vec());
            let load = || Ok::<_, Infallible>(Some(Bytes::from(vec![0; 300])));
            cache.get_or_load(space(), key, load).await.unwrap();
        }
        assert!(cache.bytes() <= 1 << 20, "{} bytes", cache.bytes());
        assert!(cache.entries() > 1000);
    }
}
