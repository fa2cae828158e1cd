//! What is durable according to a journal, and what a loss of power leaves.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use rand::SeedableRng as _;
use tempfile::TempDir;

use super::layout::Record;
use super::records::Records;
use super::*;

/// A directory under a library that was never loaded: the journal is written here.
struct Bench {
    _dir: TempDir,
    shim: Shim,
    records: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        let (faults, data) = (dir.path().join("faults"), dir.path().join("data"));
        let shim = Shim::create(Path::new("none"), &faults, &data, true).unwrap();
        Self { _dir: dir, shim, records: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.shim.root.join(name)
    }

    fn inode(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().ino()
    }

    fn keep(&mut self, record: &Record) {
        self.records.extend(record.encode());
    }

    fn end(&self) -> u64 {
        self.records.len() as u64
    }

    /// Writes `bytes` as a process under the library does.
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) {
        let old = fs::read(self.path(name)).unwrap();
        let (inode, len, size) = (self.inode(name), bytes.len() as u64, old.len() as u64);
        let from = old.len().min(offset as usize);
        let to = old.len().min(offset as usize + bytes.len());
        self.keep(&Record::Write { inode, offset, len, size, old: old[from..to].to_vec() });
        let file = OpenOptions::new().write(true).open(self.path(name)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn sync(&mut self, name: &str) {
        let (inode, upto) = (self.inode(name), self.end());
        self.keep(&Record::Sync { inode, upto });
    }

    fn lose_power(&self, seed: u64) -> Loss {
        fs::write(self.shim.dir.join(JOURNAL), &self.records).unwrap();
        self.shim.lose_power(&mut StdRng::seed_from_u64(seed)).unwrap()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }
}

/// The outcomes over many seeds.
fn outcomes<T: Ord>(one: impl Fn(u64) -> T) -> std::collections::BTreeSet<T> {
    (0..64).map(one).collect()
}

#[test]
fn records_are_read_back_and_a_cut_one_is_left_out() {
    let records = [
        Record::Write { inode: 1, offset: 2, len: 3, size: 4, old: b"old".to_vec() },
        Record::Resize { inode: 1, size: 9, new: 2, old: Vec::new() },
        Record::Sync { inode: 1, upto: 7 },
        Record::SyncFailed { inode: 1, upto: 8 },
        Record::Create { dir: 5, inode: 6, is_dir: true, path: b"a/b".to_vec() },
        Record::Remove { dir: 5, inode: 6, grave: 0, path: b"a/b".to_vec() },
        Record::Rename { dir: 5, grave: 3, from: b"from".to_vec(), to: b"to".to_vec() },
    ];
    let bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
    let read: Vec<Record> = Records::new(&bytes).map(|(_, record)| record).collect();
    assert_eq!(read, records);
    let positions: Vec<u64> = Records::new(&bytes).map(|(position, _)| position).collect();
    assert_eq!(positions[1], records[0].encode().len() as u64);
    assert_eq!(Records::new(&bytes[..bytes.len() - 1]).count(), records.len() - 1);
}

#[test]
fn what_was_synced_stays_and_the_rest_is_torn_by_sectors() {
    let one = |seed| {
        let mut bench = Bench::new();
        fs::write(bench.path("f"), vec![b'o'; 2048]).unwrap();
        bench.write("f", 0, &[b's'; 512]);
        bench.sync("f");
        bench.write("f", 512, &[b'n'; 1024]);
        bench.lose_power(seed);
        let left = bench.read("f");
        assert_eq!(left[..512], [b's'; 512], "synced");
        assert_eq!(left[1536..], [b'o'; 512], "never written");
        for sector in left.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is whole");
        }
        (left[512], left[1024])
    };
    let all = [(b'n', b'n'), (b'n', b'o'), (b'o', b'n'), (b'o', b'o')];
    assert_eq!(outcomes(one), all.into_iter().collect());
}

#[test]
fn what_was_written_while_an_fsync_ran_is_not_part_of_it() {
    let one = |seed| {
        let mut bench = Bench::new();
        fs::write(bench.path("f"), "").unwrap();
        bench.write("f", 0, b"before");
        let upto = bench.end();
        bench.write("f", 6, b" and after");
        let inode = bench.inode("f");
        bench.keep(&Record::Sync { inode, upto });
        bench.lose_power(seed);
        let left = bench.read("f");
        assert!(left.starts_with(b"before"));
        left.len()
    };
    assert_eq!(outcomes(one), [6, 16].into_iter().collect());
}

#[test]
fn what_a_failed_fsync_left_is_gone_whatever_is_synced_later() {
    for seed in 0..10 {
        let mut bench = Bench::new();
        fs::write(bench.path("f"), vec![b'o'; 3 * 4096]).unwrap();
        bench.write("f", 0, &[b'n'; 3 * 4096]);
        let (inode, upto) = (bench.inode("f"), bench.end());
        bench.keep(&Record::SyncFailed { inode, upto });
        bench.write("f", 5000, b"again");
        bench.sync("f");
        bench.lose_power(seed);
        let left = bench.read("f");
        assert_eq!(left[..4096], [b'o'; 4096], "clean, and not on the disk");
        assert_eq!(&left[5000..5005], b"again");
        assert_eq!(left[6000..8192], [b'n'; 2192], "its page was written again");
        assert_eq!(left[8192..], [b'o'; 4096]);
    }
}

#[test]
fn what_a_failed_fsync_left_behind_the_end_is_a_hole_when_more_is_synced() {
    for seed in 0..10 {
        let mut bench = Bench::new();
        fs::write(bench.path("f"), vec![b'o'; 4096]).unwrap();
        bench.write("f", 4096, &[b'n'; 8192]);
        let (inode, upto) = (bench.inode("f"), bench.end());
        bench.keep(&Record::SyncFailed { inode, upto });
        bench.write("f", 12_288, &[b's'; 4096]);
        bench.sync("f");
        bench.lose_power(seed);
        let left = bench.read("f");
        assert_eq!(left[..4096], [b'o'; 4096]);
        assert_eq!(left[4096..12_288], [0; 8192], "clean, and not on the disk");
        assert_eq!(left[12_288..], [b's'; 4096], "synced");

        // Without more, the end is where it was.
        let mut bench = Bench::new();
        fs::write(bench.path("f"), vec![b'o'; 4096]).unwrap();
        bench.write("f", 4096, &[b'n'; 8192]);
        let (inode, upto) = (bench.inode("f"), bench.end());
        bench.keep(&Record::SyncFailed { inode, upto });
        bench.lose_power(seed);
        assert_eq!(bench.read("f"), [b'o'; 4096]);
    }
}

#[test]
fn a_size_goes_back_with_what_was_cut_off() {
    let one = |seed| {
        let mut bench = Bench::new();
        fs::write(bench.path("f"), b"0123456789").unwrap();
        let inode = bench.inode("f");
        bench.keep(&Record::Resize { inode, size: 10, new: 4, old: b"456789".to_vec() });
        File::options().write(true).open(bench.path("f")).unwrap().set_len(4).unwrap();
        bench.lose_power(seed);
        bench.read("f")
    };
    assert_eq!(outcomes(one), [b"0123".to_vec(), b"0123456789".to_vec()].into_iter().collect());
}

#[test]
fn names_are_lost_from_the_end_until_their_directory_is_synced() {
    let one = |seed, sync| {
        let mut bench = Bench::new();
        fs::write(bench.path("state"), "old").unwrap();
        let dir = fs::metadata(&bench.shim.root).unwrap().ino();
        fs::write(bench.path("state.new"), "new").unwrap();
        let inode = bench.inode("state.new");
        bench.keep(&Record::Create { dir, inode, is_dir: false, path: b"state.new".to_vec() });
        fs::rename(bench.path("state"), bench.shim.dir.join(GRAVE).join("7")).unwrap();
        fs::rename(bench.path("state.new"), bench.path("state")).unwrap();
        let (from, to) = (b"state.new".to_vec(), b"state".to_vec());
        bench.keep(&Record::Rename { dir, grave: 7, from, to });
        if sync {
            let upto = bench.end();
            bench.keep(&Record::Sync { inode: dir, upto });
        }
        bench.lose_power(seed);
        (String::from_utf8(bench.read("state")).unwrap(), bench.path("state.new").exists())
    };
    let (old, new) = ("old".to_owned(), "new".to_owned());
    let unsynced = [(old.clone(), false), (old, true), (new.clone(), false)];
    assert_eq!(outcomes(|seed| one(seed, false)), unsynced.into_iter().collect());
    assert_eq!(outcomes(|seed| one(seed, true)), [(new, false)].into_iter().collect());
}

#[test]
fn removed_files_and_directories_come_back() {
    let one = |seed| {
        let mut bench = Bench::new();
        let parent = fs::metadata(&bench.shim.root).unwrap().ino();
        fs::create_dir(bench.path("d")).unwrap();
        fs::write(bench.path("d/f"), "content").unwrap();
        let (dir, inode) = (bench.inode("d"), bench.inode("d/f"));
        fs::rename(bench.path("d/f"), bench.shim.dir.join(GRAVE).join("1")).unwrap();
        bench.keep(&Record::Remove { dir, inode, grave: 1, path: b"d/f".to_vec() });
        fs::remove_dir(bench.path("d")).unwrap();
        bench.keep(&Record::Remove { dir: parent, inode: dir, grave: 0, path: b"d".to_vec() });
        bench.lose_power(seed);
        (bench.path("d").exists(), fs::read(bench.path("d/f")).ok())
    };
    let content = || Some(b"content".to_vec());
    let expected = [(false, None), (true, None), (true, content())];
    assert_eq!(outcomes(one), expected.into_iter().collect());
}

#[test]
fn a_directory_that_came_and_went_leaves_nothing() {
    let one = |seed| {
        let mut bench = Bench::new();
        let dir = fs::metadata(&bench.shim.root).unwrap().ino();
        // Another file has its number by now, so that it gets another one when it is made again.
        let (inode, path) = (bench.inode("."), b"d".to_vec());
        bench.keep(&Record::Create { dir, inode, is_dir: true, path: path.clone() });
        bench.keep(&Record::Remove { dir, inode, grave: 0, path });
        let lost = bench.lose_power(seed).names_lost;
        (lost, bench.path("d").exists())
    };
    assert_eq!(outcomes(one), [(0, false), (1, true), (2, false)].into_iter().collect());
}

#[test]
fn a_journal_with_holes_or_without_records_is_no_loss_of_power() {
    let bench = Bench::new();
    let mut rng = StdRng::seed_from_u64(1);
    fs::write(bench.shim.dir.join(JOURNAL), "").unwrap();
    assert!(bench.shim.lose_power(&mut rng).unwrap_err().to_string().contains("empty"));
    bench.shim.set(Word::JournalErrors, 1).unwrap();
    assert!(bench.shim.lose_power(&mut rng).unwrap_err().to_string().contains("holes"));
}
