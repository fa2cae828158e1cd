//! Load for Borough's REST API, measured: what `borough-load` and `--bench cluster` share.
//!
//! It knows the REST API and nothing else of Borough, so that what it measures is what a caller sees.

pub mod connection;
pub mod load;
pub mod mix;
pub mod report;
pub mod zipf;
