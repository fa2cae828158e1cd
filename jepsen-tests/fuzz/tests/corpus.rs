//! Replays the corpus: every input that the engine found worth keeping, and every one that found a fault once.

use std::fs;
use std::panic::catch_unwind;

use borough_fuzz::{Target, rest, seeds};

fn files(target: Target) -> Vec<(String, Vec<u8>)> {
    let dir = target.corpus();
    let read = || {
        let mut files = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            files.push((path.display().to_string(), fs::read(&path)?));
        }
        files.sort();
        std::io::Result::Ok(files)
    };
    read().unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
}

fn replay(target: Target) {
    let files = files(target);
    assert!(files.len() >= 10, "only {} inputs", files.len());
    let failed =
        |(name, bytes): &(String, Vec<u8>)| catch_unwind(|| target.run(bytes)).err().map(|_| name.clone());
    let failed: Vec<_> = files.iter().filter_map(failed).collect();
    assert!(
        failed.is_empty(),
        "of {} inputs, these break a promise (what each broke is above): {failed:#?}",
        files.len()
    );
}

#[test]
fn log_recovery() {
    replay(Target::Wal);
}

#[test]
fn wire_decoding() {
    replay(Target::Wire);
}

#[test]
fn rest_input() {
    replay(Target::Rest);
}

#[test]
fn page_tokens() {
    replay(Target::Tokens);
}

/// A corpus of which everything is refused at the door would hold everything against nothing.
#[test]
fn requests_of_the_corpus_get_through() {
    let statuses: Vec<u16> = files(Target::Rest).iter().flat_map(|(_, bytes)| rest::answers(bytes)).collect();
    for wanted in [200, 201, 204, 304, 400, 404, 405, 409, 412, 415, 422, 428] {
        assert!(statuses.contains(&wanted), "nothing is answered {wanted}");
    }
}

/// A sender counts its writes per shard: what one shard has answered is no other's answer (I9).
#[test]
fn writes_of_two_shards_are_told_apart() {
    let seed = seeds::of(Target::Rest).into_iter().find(|(name, _)| *name == "shards");
    assert_eq!(seed.map(|(_, bytes)| rest::answers(&bytes)), Some(vec![201, 201, 200]));
}

/// The seeds are what their targets take for whole: none is an accident of a format that has changed.
#[test]
fn seeds_are_in_the_corpus() {
    for target in Target::ALL {
        for (name, bytes) in seeds::of(target) {
            let path = target.corpus().join(format!("seed-{name}"));
            let kept = fs::read(&path).unwrap_or_default();
            assert!(kept == bytes, "{} is not what seeds.rs makes: write the seeds anew", path.display());
        }
    }
}

/// `cargo test -p borough-fuzz --test corpus -- --ignored write_the_seeds`
#[test]
#[ignore = "writes into the repository: for when the seeds, or what they are made of, were changed on purpose"]
fn write_the_seeds() {
    for target in Target::ALL {
        fs::create_dir_all(target.corpus()).unwrap();
        for (name, bytes) in seeds::of(target) {
            fs::write(target.corpus().join(format!("seed-{name}")), bytes).unwrap();
        }
    }
}
