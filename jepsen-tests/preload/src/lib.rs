//! Disk and clock faults for one process, by standing between it and the C library (`LD_PRELOAD`).
//!
//! Only files below one directory are touched (`JEPSEN_PRELOAD_ROOT`), and only as the control page says, which the harness
//! maps to a file and writes at any time (`layout.rs`). Looking at it costs a load from memory.
//!
//! - A **full disk** refuses what makes a file longer or fills a hole, and says that no space is free.
//! - **Fsyncs** take longer, or fail; what a failed one should have made durable counts as clean from then on, as on Linux.
//! - A **journal** outside of the directory keeps what a loss of power would undo: old bytes, names and sizes. The harness
//!   undoes it when it has killed the process. It is written with plain writes: a killed process leaves its page cache.
//! - **Clocks** jump and drift. The monotonic clock never goes back. Waits until a moment are translated; those for a length
//!   of time are not scaled, they are a tenth off at most.
//!
//! Not seen: what is written through a shared mapping, and system calls made without the C library (the `rustix` crate's).
#![cfg(target_os = "linux")]

mod clock;
mod content;
mod files;
mod journal;
#[path = "layout.rs"]
mod layout;
mod names;
mod real;
mod space;
mod state;
mod sync;
