//! Damaged files give an error or the right data, never a panic or older data (I10).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Fixture, Kind, batch, content, id, noise, open, put};
use crate::config::EngineKind;
use crate::store::StoreError;

/// A space with small and large values, flushed, partly recovered before, and its content.
fn filled(fixture: &mut Fixture) -> BTreeMap<Bytes, Bytes> {
    for round in 0..3 {
        let space = fixture.space();
        for step in 0..40 {
            let changes = (0..10).map(|n| {
                let length = if n == 0 { 20_000 } else { 100 };
                put(format!("{:03}", (step * 17 + n * 5 + round * 3) % 300), noise(step + n, length))
            });
            space.apply(batch(changes)).unwrap();
        }
        space.flush().unwrap();
        drop(space);
        fixture.reopen();
    }
    let space = fixture.space();
    space.apply(batch([put("last", "change")])).unwrap();
    space.flush().unwrap();
    content(&*space).unwrap()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { assert!(fs::copy(&path, &target).is_ok()) }
    }
}

fn read(kind: EngineKind, dir: &Path) -> Result<BTreeMap<Bytes, Bytes>, StoreError> {
    let space = open(kind, dir)?.open_space(id(1, 0))?;
    let found = content(&*space)?;
    for (key, value) in &found {
        assert_eq!(space.get(key)?.as_ref(), Some(value));
    }
    Ok(found)
}

fn flipped_bytes(kind: EngineKind, flips: u64) {
    let mut fixture = Fixture::new(Kind::Disk(kind));
    let expected = filled(&mut fixture);
    fixture.engine = None;
    let (mut refused, mut whole) = (0, 0);
    for seed in 0..flips {
        let target = tempfile::tempdir().unwrap();
        copy(fixture.dir.path(), target.path());
        let files = files(target.path());
        let random = noise(seed, 16);
        let number = |at: usize| usize::from_le_bytes(random[at..at + 8].try_into().unwrap());
        // Half of the flips in the largest file, where the data lies.
        let largest = files.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
        let file = if seed % 2 == 0 { largest } else { &files[number(0) % files.len()] };
        let mut data = fs::read(file).unwrap();
        if data.is_empty() {
            continue;
        }
        // Files are zero behind their data: most flips there would prove nothing.
        let used = data.iter().rposition(|byte| *byte != 0).map_or(data.len(), |last| last + 1);
        let at = number(8) % used;
        data[at] ^= 1 << (seed % 8);
        fs::write(file, data).unwrap();
        match read(kind, target.path()) {
            Ok(found) => {
                assert!(found == expected, "seed {seed}: {} at {at} changed what is read", file.display());
                whole += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0 && whole > 0, "{refused} refused, {whole} whole: the test hits one kind only");
}

#[test]
fn flipped_byte_in_sled_is_refused_or_harmless() {
    flipped_bytes(EngineKind::Sled, 60);
}

#[test]
fn a_checkpoint_of_sled_whose_size_alone_reached_the_disk_is_none() {
    let mut fixture = Fixture::new(Kind::Disk(EngineKind::Sled));
    let expected = filled(&mut fixture);
    fixture.engine = None;
    let checkpoint = fixture.dir.path().join(id(1, 0).to_string()).join("checkpoint");
    let bytes = fs::read(&checkpoint).unwrap();
    assert!(bytes.len() == 12 && bytes.iter().any(|byte| *byte != 0), "{bytes:?}");
    fs::write(&checkpoint, [0; 12]).unwrap();
    fixture.open();
    assert_eq!(content(&*fixture.space()).unwrap(), expected);
    fixture.engine = None;
    fs::write(&checkpoint, &bytes[..11]).unwrap();
    fixture.open();
    let refused = fixture.engine().open_space(id(1, 0)).unwrap_err();
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
}

#[test]
fn lost_tail_of_sled_behind_its_checkpoint_is_refused() {
    let mut fixture = Fixture::new(Kind::Disk(EngineKind::Sled));
    let expected = filled(&mut fixture);
    fixture.engine = None;
    let space_dir = fixture.dir.path().join(id(1, 0).to_string());
    let older = tempfile::tempdir().unwrap();
    copy(&space_dir, older.path());
    fixture.open();
    let space = fixture.space();
    assert_eq!(content(&*space).unwrap(), expected);
    space.apply(batch([put("newer", "value")])).unwrap();
    space.flush().unwrap();
    drop(space);
    fixture.engine = None;
    for name in ["db", "conf"] {
        fs::copy(older.path().join(name), space_dir.join(name)).unwrap();
    }
    for path in files(&space_dir).iter().filter(|path| path.to_string_lossy().contains("snap.")) {
        fs::remove_file(path).unwrap();
    }
    fixture.open();
    let refused = fixture.engine().open_space(id(1, 0)).unwrap_err();
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
    fixture.engine().drop_space(id(1, 0)).unwrap();
    assert!(content(&*fixture.space()).unwrap().is_empty(), "a quarantined space makes room for a new one");
}
