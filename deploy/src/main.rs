//! The `borough` binary.

use std::process::ExitCode;

/// Measured against glibc's on the engines: faster, and smaller than the other fast one.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    borough::run()
}
