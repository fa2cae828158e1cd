//! The engine's side: libFuzzer calls the target that `BOROUGH_FUZZ_TARGET` names. Built and run by `.ci/fuzz`.

#![no_main]

use std::sync::LazyLock;

use borough_fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let wanted = std::env::var("BOROUGH_FUZZ_TARGET").unwrap_or_default();
    let known = Target::ALL.into_iter().find(|target| target.name() == wanted);
    known.unwrap_or_else(|| {
        panic!("BOROUGH_FUZZ_TARGET is {wanted:?}, not one of {:?}", Target::ALL.map(Target::name))
    })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    TARGET.run(bytes);
});
