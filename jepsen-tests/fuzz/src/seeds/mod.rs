//! The first inputs of each target, made of what nodes, routers and callers really write. The ignored test of
//! `tests/corpus.rs` puts them into the corpus; the engine finds the rest.

mod requests;
mod tokens;
mod wal;
mod wire;

use crate::Target;

/// A file's name and contents.
pub type Seed = (&'static str, Vec<u8>);

/// The seeds of a target. Names are distinct.
pub fn of(target: Target) -> Vec<Seed> {
    match target {
        Target::Wal => wal::seeds(),
        Target::Wire => wire::seeds(),
        Target::Rest => requests::seeds(),
        Target::Tokens => tokens::seeds(),
    }
}
