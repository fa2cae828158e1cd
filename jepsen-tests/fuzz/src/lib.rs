//! Borough fed with bytes that nobody meant. Each target is a function of bytes that panics when a promise does not hold.
//!
//! `cargo test` replays `corpus/` through them as they are; `.ci/fuzz` runs them instrumented under libFuzzer, which
//! looks for bytes that reach new code. See "Fuzzing" in `jepsen-tests/README.md`.

pub mod input;
pub mod rest;
pub mod seeds;
pub mod tokens;
pub mod wal;
pub mod wire;

use std::path::PathBuf;

/// What is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Wal,
    Wire,
    Rest,
    Tokens,
}

impl Target {
    pub const ALL: [Self; 4] = [Self::Wal, Self::Wire, Self::Rest, Self::Tokens];

    pub fn name(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Wire => "wire",
            Self::Rest => "rest",
            Self::Tokens => "tokens",
        }
    }

    /// Feeds it.
    ///
    /// # Panics
    /// When a promise does not hold.
    pub fn run(self, bytes: &[u8]) {
        match self {
            Self::Wal => wal::run(bytes),
            Self::Wire => wire::run(bytes),
            Self::Rest => rest::run(bytes),
            Self::Tokens => tokens::run(bytes),
        }
    }

    /// Its inputs in the repository.
    pub fn corpus(self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name())
    }
}
