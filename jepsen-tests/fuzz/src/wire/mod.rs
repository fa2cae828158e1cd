//! What nodes and routers take from each other: no message panics its reader, and what is understood is said again alike.
//!
//! | first byte, modulo 8 | the rest is |
//! |---|---|
//! | 0 – 2 | a byte that names a message, and the message (`messages`) |
//! | 3 | an entry of a Raft log, as the log keeps it (`entries`) |
//! | 4 | a snapshot's chunk |
//! | 5 | commands of a shard, each behind its length (`shard`) |
//! | 6 | commands of the catalog, each behind its length (`catalog`) |
//! | 7 | a cluster map and updates of it, each behind its length (`maps`) |

pub(crate) mod catalog;
mod entries;
mod maps;
mod messages;
pub(crate) mod shard;

use bytes::Bytes;
use prost::Message;

use crate::input::Input;

pub use messages::NAMES;

/// Most messages of one input: more of the same only cost time.
const MESSAGES_MAX: usize = 32;

/// # Panics
/// When a reader breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    match input.byte() % 8 {
        0..=2 => {
            let message = input.byte();
            messages::round_trip(message, input.rest());
        }
        3 => entries::run(input.rest()),
        4 => chunk(input.rest()),
        5 => shard::run(&delimited(input.rest())),
        6 => catalog::run(&delimited(input.rest())),
        _ => maps::run(input.rest()),
    }
}

/// Messages behind their lengths, up to the first that is none.
fn delimited<M: Message + Default>(bytes: &[u8]) -> Vec<M> {
    let mut rest = Bytes::copy_from_slice(bytes);
    let mut found = Vec::new();
    while !rest.is_empty() && found.len() < MESSAGES_MAX {
        let Ok(message) = M::decode_length_delimited(&mut rest) else { break };
        found.push(message);
    }
    found
}

fn chunk(bytes: &[u8]) {
    let data = Bytes::copy_from_slice(bytes);
    if let Some((_, again)) = borough_node::fuzzing::snapshot_chunk(data.clone()) {
        assert_eq!(again, data, "a chunk says the same in one way only");
    }
}
