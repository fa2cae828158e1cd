//! The node's document cache beside a plain LRU of as many entries: hit ratios on a zipfian trace, and the
//! time of a hit.
//!
//! 100,000 documents of 300 bytes, of which a tenth fits, popularity zipf(0.9). "With a scan": every second
//! access goes to a document of its own that is never asked for again; hits are counted among the others.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing to report")]

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::{LazyLock, Mutex};
use std::task::{Context, Poll, Waker};

use borough_benches::zipf::Zipf;
use borough_node::cache::Cache;
use borough_node::store::snapshot::Instance;
use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use lru::LruCache;
use rand::SeedableRng;
use rand::rngs::StdRng;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const DOCUMENTS: u64 = 100_000;
const FITTING: u64 = DOCUMENTS / 10;
const DOCUMENT_BYTES: usize = 300;
const THETA: f64 = 0.9;
const ACCESSES: u64 = 2_000_000;
/// What the cache itself counts for an entry besides key and document.
const OVERHEAD_BYTES: u64 = 160;
const KEY_BYTES: u64 = 8;
static SPACE: LazyLock<Instance> = LazyLock::new(Instance::next);
const DOCUMENT: Bytes = Bytes::from_static(&[7; DOCUMENT_BYTES]);

fn main() {
    println!("hit ratio, zipf({THETA}) over {DOCUMENTS} documents of which {FITTING} fit:");
    println!("{:28} {:>8} {:>12}", "", "plain", "with a scan");
    let cache = || {
        let cache = cache();
        move |key| get_cache(&cache, key)
    };
    let lru = || {
        let mut lru = lru();
        move |key| get_lru(&mut lru, key)
    };
    println!("{:28} {:>8.3} {:>12.3}", "cache", ratio(false, cache()), ratio(true, cache()));
    println!("{:28} {:>8.3} {:>12.3}", "lru", ratio(false, lru()), ratio(true, lru()));
    println!("{:28} {:>8.3}", "best: the most popular ones", best());
    divan::main();
}

/// Of a cache that always holds the most popular documents, as many as fit.
fn best() -> f64 {
    let weight = |documents: u64| (1..=documents).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
    weight(FITTING) / weight(DOCUMENTS)
}

fn cache() -> Cache {
    Cache::new(FITTING * (OVERHEAD_BYTES + KEY_BYTES + DOCUMENT_BYTES as u64))
}

fn lru() -> LruCache<Bytes, Bytes> {
    LruCache::new(NonZeroUsize::new(usize::try_from(FITTING).unwrap()).unwrap())
}

/// Whether it was a hit; fills on a miss.
fn get_cache(cache: &Cache, key: Bytes) -> bool {
    let got = pin!(cache.get_or_load(*SPACE, key, || Ok::<_, Infallible>(Some(DOCUMENT))));
    // Only a reader that joins another one's load would have to wait; there is none.
    match got.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok((document, hit))) => {
            divan::black_box(document);
            hit
        }
        Poll::Ready(Err(never)) => match never {},
        Poll::Pending => unreachable!("nobody else loads"),
    }
}

fn get_lru(lru: &mut LruCache<Bytes, Bytes>, key: Bytes) -> bool {
    if divan::black_box(lru.get(&key).cloned()).is_some() {
        return true;
    }
    lru.put(key, DOCUMENT);
    false
}

fn name(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// Hits per zipfian access, after as many accesses to warm up.
fn ratio(with_scan: bool, mut get: impl FnMut(Bytes) -> bool) -> f64 {
    let zipf = Zipf::new(DOCUMENTS, THETA).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut hits = 0_u64;
    for access in 0..2 * ACCESSES {
        if with_scan {
            get(name(DOCUMENTS + access));
        }
        let hit = get(name(zipf.sample(&mut rng)));
        hits += u64::from(hit && access >= ACCESSES);
    }
    hits as f64 / ACCESSES as f64
}

/// Keys that are in the cache, in zipfian order.
fn hot() -> Vec<Bytes> {
    let zipf = Zipf::new(FITTING / 4, THETA).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    (0..10_000).map(|_| name(zipf.sample(&mut rng))).collect()
}

#[divan::bench(threads = [1, 2], min_time = 1)]
fn hits(bencher: Bencher) {
    let (cache, hot) = (cache(), hot());
    for key in &hot {
        get_cache(&cache, key.clone());
    }
    bencher
        .counter(ItemsCount::new(hot.len()))
        .bench(|| hot.iter().filter(|key| get_cache(&cache, Bytes::clone(key))).count());
}

#[divan::bench(threads = [1, 2], min_time = 1)]
fn hits_of_lru_behind_a_mutex(bencher: Bencher) {
    let (lru, hot) = (Mutex::new(lru()), hot());
    for key in &hot {
        get_lru(&mut lru.lock().unwrap(), key.clone());
    }
    bencher
        .counter(ItemsCount::new(hot.len()))
        .bench(|| hot.iter().filter(|key| get_lru(&mut lru.lock().unwrap(), Bytes::clone(key))).count());
}
