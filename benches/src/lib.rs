//! Load over HTTP, measured: what `borough bench`, `--bench cluster` and the runs beside peers share.
//!
//! It knows Borough's REST API as one set of requests among others and nothing else of Borough, so that what it
//! measures is what a caller sees, and peers are measured by the same program.

pub mod connection;
pub mod load;
pub mod mix;
pub mod options;
pub mod report;
mod schedule;
pub mod service;
pub mod template;
pub mod zipf;
