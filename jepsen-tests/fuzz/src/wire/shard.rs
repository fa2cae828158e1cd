//! Commands of a shard as its log may hold them, whoever put them there: every replica applies them alike (I5), whether
//! one by one or many at once, the counters stay exact, and what `validate` lets through is understood.

use std::ops::Bound;
use std::sync::Arc;

use borough_node::state::{self, Applied, Header};
use borough_node::store::{Engine as _, MemoryEngine, Space, SpaceId, StoreError};
use borough_proto::ReplicaId;
use borough_proto::wire::{self, OpStatus};
use bytes::Bytes;

/// The first byte of documents' keys, see `node/src/state/mod.rs`.
const DOCUMENT: &[u8] = b"d";
const BEHIND_DOCUMENTS: &[u8] = b"e";

type Pairs = Vec<(Bytes, Bytes)>;

/// An empty space of its own.
pub fn space() -> Arc<dyn Space> {
    let id = SpaceId { replica: ReplicaId(1), generation: 1 };
    good(MemoryEngine::new().open_space(id))
}

/// Memory does not fail, and everything in it was written by the state machine.
fn good<T>(result: Result<T, StoreError>) -> T {
    result.unwrap_or_else(|error| panic!("the state machine and its own bytes: {error}"))
}

fn contents(space: &dyn Space) -> Pairs {
    space.scan((Bound::Unbounded, Bound::Unbounded), false).map(good).collect()
}

/// Applies commands in one batch; the index of the first is `index`.
pub fn apply(
    space: &dyn Space,
    header: Header,
    index: u64,
    commands: &[wire::Command],
) -> (Header, Vec<wire::CommandReply>) {
    let mut apply = state::begin(space, header);
    let replies = (index..).zip(commands).map(|(index, command)| good(apply.apply(index, command))).collect();
    let Applied { batch, header, .. } = apply.finish();
    good(space.apply(batch));
    (header, replies)
}

pub fn run(commands: &[wire::Command]) {
    if commands.is_empty() {
        return;
    }
    let (single, grouped) = (space(), space());
    let (mut header, mut replies) = (Header::default(), Vec::new());
    for (index, command) in (1..).zip(commands) {
        let valid = state::validate(command);
        let (after, mut reply) = apply(&*single, header, index, std::slice::from_ref(command));
        assert!(after.time_ms >= header.time_ms, "time ran backwards");
        if valid.is_ok() {
            reply.iter().for_each(understood);
        }
        header = after;
        replies.append(&mut reply);
    }
    let (together, answered) = apply(&*grouped, Header::default(), 1, commands);
    assert_eq!((together, &answered), (header, &replies), "it matters how entries are grouped");
    let held = contents(&*single);
    assert_eq!(contents(&*grouped), held, "it matters how entries are grouped");
    assert_eq!(good(state::load_header(&*single)), header);
    counted(&held, &header);
    shown(&*single, &header);
}

/// What a node would have proposed is not answered as if the build did not know it.
fn understood(reply: &wire::CommandReply) {
    for op in reply.units.iter().filter(|unit| !unit.replayed).flat_map(|unit| &unit.ops) {
        assert_ne!(op.status(), OpStatus::Unspecified, "valid, and not understood");
    }
}

fn counted(held: &Pairs, header: &Header) {
    let documents = held.iter().filter(|(key, _)| key.starts_with(DOCUMENT)).count();
    assert_eq!(header.documents, documents as u64, "the counters are exact");
}

/// Every document can be listed and read.
fn shown(space: &dyn Space, header: &Header) {
    let range = (
        Bound::Included(Bytes::from_static(DOCUMENT)),
        Bound::Excluded(Bytes::from_static(BEHIND_DOCUMENTS)),
    );
    let visible: Vec<_> = space
        .scan(range, false)
        .map(good)
        .map(|(key, record)| good(state::decode_document(&key, &record)))
        .collect();
    for collection in good(state::collections_held(space)) {
        for reverse in [false, true] {
            let scan = wire::Scan { collection, reverse, limit: 1000, ..Default::default() };
            let (page, _) = good(state::scan(space, &scan, header.time_ms));
            for document in page {
                let key =
                    wire::DocumentKey { collection, id: document.id.clone(), sort: document.sort.clone() };
                assert_eq!(good(state::read(space, &key, header.time_ms)), Some(document.clone()));
                assert!(visible.contains(&document), "listed, and not held");
            }
        }
    }
}
