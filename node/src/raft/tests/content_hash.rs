//! Equal replicas have equal hashes, whatever keeps them; others have not.

use borough_proto::replicas::ContentHash;

use super::*;
use crate::raft::ContentHashError;
use crate::state;
use crate::store::Batch;

const ENGINES: [Option<EngineKind>; 3] = [None, Some(EngineKind::Sled), Some(EngineKind::Fjall)];

fn put(id: &str, json: &str) -> wire::Command {
    let put = wire::Put { document: json.to_owned().into(), ..Default::default() };
    let action = Some(wire::op::Action::Put(put));
    let op = wire::Op { collection: 1, id: id.to_owned(), action, ..Default::default() };
    let unit = wire::Unit { ops: vec![op], ..Default::default() };
    wire::Command { stamp_ms: 1_000, units: vec![unit], ..Default::default() }
}

fn entries() -> Vec<Entry> {
    (1..=20)
        .map(|index| normal(3, index, &put(&format!("user-{}", index % 7), &format!("{{\"n\":{index}}}"))))
        .collect()
}

fn hash(state: &ReplicaState) -> ContentHash {
    state.content_hash(|| true).unwrap()
}

fn write(state: &ReplicaState, key: &[u8], value: Option<&[u8]>) {
    let change = (Bytes::copy_from_slice(key), value.map(Bytes::copy_from_slice));
    state.space().space.apply(Batch { changes: vec![change] }).unwrap();
}

#[test]
fn the_same_log_gives_the_same_hash_on_every_engine_in_whatever_batches() {
    let mut hashes = Vec::new();
    for kind in ENGINES {
        for size in [1, 6, 20] {
            let dir = tempfile::tempdir().unwrap();
            let (engine, wal) = (engine(kind, &dir.path().join("engine")), open_wal(&dir.path().join("log")));
            let state = open_replica(1, &engine, &wal);
            runtime().block_on(async {
                for batch in entries().chunks(size) {
                    apply(&state, batch).await;
                }
            });
            hashes.push(hash(&state));
            wal.close();
        }
    }
    let first = hashes.first().unwrap();
    assert_eq!((first.applied_index, first.applied_term), (20, 3));
    assert!(first.records >= 7 && first.bytes > 0, "{first:?}");
    assert!(hashes.iter().all(|hash| hash == first), "{hashes:?}");
}

#[test]
fn one_changed_byte_is_found_and_put_back_it_is_not() {
    for kind in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let (engine, wal) = (engine(kind, &dir.path().join("engine")), open_wal(&dir.path().join("log")));
        let state = open_replica(1, &engine, &wal);
        runtime().block_on(apply(&state, &entries()));
        let before = hash(&state);
        let key = state::document_key(1, "user-3", None);
        let stored = state.space().space.get(&key).unwrap().unwrap();
        for at in [0, stored.len() / 2, stored.len() - 1] {
            let mut changed = stored.to_vec();
            changed[at] ^= 1;
            write(&state, &key, Some(&changed));
            let after = hash(&state);
            assert_ne!(after.hash, before.hash, "{kind:?}, byte {at}");
            assert_eq!(ContentHash { hash: before.hash.clone(), ..after }, before);
        }
        write(&state, &key, Some(&stored));
        assert_eq!(hash(&state), before);
        wal.close();
    }
}

#[test]
fn a_byte_that_passes_from_key_to_value_is_found_and_what_is_rafts_own_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, wal) = (engine(None, dir.path()), open_wal(&dir.path().join("log")));
    let state = open_replica(1, &engine, &wal);
    let empty = hash(&state);
    write(&state, b"r/anything", Some(b"of this replica"));
    assert_eq!(hash(&state), empty);
    write(&state, b"key", Some(b"value"));
    let one = hash(&state);
    write(&state, b"key", None);
    write(&state, b"keyv", Some(b"alue"));
    let other = hash(&state);
    assert_eq!(one.bytes, other.bytes);
    assert_ne!(one.hash, other.hash);
    wal.close();
}

#[test]
fn the_hash_is_of_one_moment_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, wal) = (engine(None, dir.path()), open_wal(&dir.path().join("log")));
    let state = open_replica(1, &engine, &wal);
    for number in 0..4_000_u32 {
        write(&state, &number.to_be_bytes(), Some(&[7; 1000]));
    }
    let before = hash(&state);
    let written = std::cell::Cell::new(0_u32);
    let meanwhile = state.content_hash(|| {
        // Ahead of where the scan is, by far.
        let number = 3_999 - written.get();
        write(&state, &number.to_be_bytes(), Some(b"new"));
        written.set(written.get() + 1);
        true
    });
    assert!(written.get() > 2, "it was one chunk");
    assert_eq!(meanwhile.unwrap(), before);
    assert_ne!(hash(&state).hash, before.hash);
    wal.close();
}

#[test]
fn what_is_no_longer_wanted_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, wal) = (engine(None, dir.path()), open_wal(&dir.path().join("log")));
    let state = open_replica(1, &engine, &wal);
    write(&state, b"key", Some(b"value"));
    assert!(matches!(state.content_hash(|| false), Err(ContentHashError::Cancelled)));
    wal.close();
}
