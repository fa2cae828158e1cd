//! What every request pays at the edge: checking a document, giving it its id back, placing a key.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing to report")]

use borough_node::state::document_key;
use borough_proto::document::{self, DOCUMENT_ADD_ID};
use borough_proto::key::hash_id;
use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const BYTES: [usize; 3] = [300, 3_000, 100_000];

fn main() {
    divan::main();
}

/// Fields of a few kinds, about `bytes` bytes.
fn body(bytes: usize) -> Bytes {
    let mut text = String::from("{\"name\":\"Ada Lovelace\"");
    for field in 0.. {
        if text.len() >= bytes - 1 {
            break;
        }
        let value = match field % 3 {
            0 => format!("{field}.5"),
            1 => format!("{{\"deep\":[true,null,\"é\\n{field}\"]}}"),
            _ => format!("\"value {field} of the text\""),
        };
        text.push_str(&format!(",\"field{field}\":{value}"));
    }
    text.push('}');
    text.into()
}

#[divan::bench(args = BYTES, min_time = 0.3)]
fn inspect(bencher: Bencher, bytes: usize) {
    let body = body(bytes);
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        assert!(document::inspect(black_box(&body)).unwrap().id.is_absent());
    });
}

#[divan::bench(args = BYTES, min_time = 0.3)]
fn present(bencher: Bencher, bytes: usize) {
    let body = body(bytes);
    bencher
        .counter(BytesCount::new(body.len()))
        .bench(|| document::present(black_box("user-4711"), None, DOCUMENT_ADD_ID, black_box(&body)));
}

#[divan::bench(args = [8, 36, 256], min_time = 0.3)]
fn hash(bencher: Bencher, bytes: usize) {
    let id = "x".repeat(bytes);
    bencher.bench(|| hash_id(black_box(&id)));
}

#[divan::bench(min_time = 0.3)]
fn key_of_36_bytes() -> Bytes {
    document_key(1, black_box("01890a5d-ac96-774b-bcce-b302099a8057"), None)
}
