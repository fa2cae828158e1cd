//! Borough under faults: real processes, generated load, checked promises.
//!
//! The library is the harness: it starts `borough` processes on the command-line contract, talks
//! HTTP to the router, keeps a history of what was asked and answered, and checks that history.
//! It knows nothing of the inside of a node or router. The tests are in `tests/`.
//!
//! | variable | meaning |
//! |---|---|
//! | `JEPSEN_BIN` | the binary to test; else the one in the target directory, built when it is missing or out of date |
//! | `JEPSEN_PRELOAD` | the library for faults of disk and clocks; else built likewise |
//! | `JEPSEN_OTHER_BIN` | another build of it, for the nemesis `upgrade` |
//! | `BOROUGH_ENGINE` | handed on to the nodes |
//! | `JEPSEN_CASE` | run only the cases whose name contains this |
//! | `JEPSEN_KEEP` | keep the data directories and logs |

pub mod binary;
pub mod callers;
pub mod cases;
pub mod checker;
pub mod cluster;
pub mod failover;
pub mod history;
pub mod http;
pub mod lister;
pub mod load;
pub mod looker;
pub mod nemesis;
pub mod preload;
pub mod prober;
pub mod process;
pub mod proxy;
pub mod record;
pub mod register;
pub mod replicas;
pub mod runner;
pub mod stall;
pub mod timeline;
pub mod wait;
pub mod workload;

/// Prints a line; whoever reads may have gone.
pub fn say(line: impl std::fmt::Display) {
    use std::io::Write as _;
    let _gone = writeln!(std::io::stdout(), "{line}");
}
