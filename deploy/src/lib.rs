//! The `borough` binary as a library: the command line, settings, and clusters of real processes.
//!
//! [`run`] is all of `main`; [`local_cluster`] is what `borough dev` and the chaos runs share.

pub mod local_cluster;
pub mod process;
pub mod settings;
