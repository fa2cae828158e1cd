//! Batches that are too long for one of sled's: staged, applied in parts, and after a crash applied again.
//!
//! A batch of sled's is atomic, but nothing can be waited for inside it, see [`settle`]. So a long one is first put
//! down beside the values, in parts; then a record that says it is whole; then its operations take effect, in parts;
//! then record and copy go. sled's log keeps the order of writes, so whoever finds the record finds the whole copy,
//! and applying that from its beginning gives the same however far it had come. Without the record nothing has
//! taken effect (I4).

use sled::{Batch, Tree};

use super::{CHUNK_BYTES, Fault, STAGED, STAGED_WHOLE};
use crate::store::value;

/// One key's change, as it lies in the tree. `None` removes.
pub(super) type Op = (Vec<u8>, Option<Vec<u8>>);

/// Longest batch that is given to sled as one, by [`weight`].
pub(super) const BATCH_WEIGHT_MAX: usize = 128 << 10;
/// What may be written, by [`weight`], until sled has to have written its log.
const SETTLE_EVERY: usize = 64 << 10;
/// What an operation costs in the log besides its key and value, about.
const OP_WEIGHT: usize = 64;

/// Waits until sled has written its log as far as it goes (which is not an fsync).
///
/// sled writes buffers in a pool of some seven threads that all databases share, in order of arrival. When a file
/// shrinks, that is a task there, too; whoever then needs a new segment at its end waits for that task and holds
/// the segments' lock, which each finished write needs. So with enough finished writes of this database ahead of
/// the task, all threads wait for that lock and the task for a thread, and nothing is ever written again. Two new
/// segments come between the task and the wait. With what was written in between made to arrive at the file first, the
/// task, which was there earlier, has begun. It also lets segments go free in time: without, files grew tenfold.
pub(super) fn settle(tree: &Tree) -> sled::Result<()> {
    tree.flush().map(drop)
}

/// Counts what was written since sled's log was last waited for.
#[derive(Debug, Default)]
pub(super) struct Unsettled(usize);

impl Unsettled {
    /// Takes operations as one batch.
    pub(super) fn write(&mut self, tree: &Tree, ops: Vec<Op>) -> sled::Result<()> {
        self.0 += weight(&ops);
        let mut ops = ops.into_iter();
        match (ops.next(), ops.len()) {
            (None, _) => {}
            // A single change is atomic without sled's lock over all databases.
            (Some((key, Some(value))), 0) => drop(tree.insert(key, value)?),
            (Some((key, None)), 0) => drop(tree.remove(key)?),
            (Some(first), _) => {
                let mut batch = Batch::default();
                for (key, value) in std::iter::once(first).chain(ops) {
                    match value {
                        Some(value) => batch.insert(key, value),
                        None => batch.remove(key),
                    }
                }
                tree.apply_batch(batch)?;
            }
        }
        if self.0 >= SETTLE_EVERY {
            settle(tree)?;
            self.0 = 0;
        }
        Ok(())
    }

    /// Takes operations in their order, in as many batches as it needs.
    pub(super) fn write_in_parts(
        &mut self,
        tree: &Tree,
        ops: impl IntoIterator<Item = Op>,
    ) -> sled::Result<()> {
        let (mut part, mut heavy) = (Vec::new(), 0);
        for op in ops {
            heavy += weight(std::slice::from_ref(&op));
            part.push(op);
            if heavy >= SETTLE_EVERY {
                self.write(tree, std::mem::take(&mut part))?;
                heavy = 0;
            }
        }
        self.write(tree, part)
    }
}

/// About the bytes that `ops` take in sled's log.
pub(super) fn weight(ops: &[Op]) -> usize {
    ops.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len) + OP_WEIGHT).sum()
}

/// Puts `ops` down, and that they are whole.
pub(super) fn stage(tree: &Tree, unsettled: &mut Unsettled, ops: &[Op]) -> sled::Result<()> {
    let copy = encode(ops);
    let pieces = copy.chunks(CHUNK_BYTES).zip(0_u32..).map(|(piece, number)| {
        let key = piece_key(number);
        let piece = value::encode(value::WHOLE, &key, piece);
        (key, Some(piece))
    });
    unsettled.write_in_parts(tree, pieces)?;
    let mut whole = (copy.len() as u64).to_le_bytes().to_vec();
    whole.extend_from_slice(&crc32fast::hash(&copy).to_le_bytes());
    let key = vec![STAGED_WHOLE];
    let whole = value::encode(value::WHOLE, &key, &whole);
    unsettled.write(tree, vec![(key, Some(whole))])
}

/// Removes what [`stage`] put down, the record first.
pub(super) fn forget(tree: &Tree, unsettled: &mut Unsettled) -> Result<(), Fault> {
    unsettled.write(tree, vec![(vec![STAGED_WHOLE], None)])?;
    let pieces = tree.scan_prefix([STAGED]).keys().collect::<sled::Result<Vec<_>>>()?;
    // What is removed counts as if it were written: pages that hold it are rewritten.
    for some in pieces.chunks(SETTLE_EVERY / CHUNK_BYTES) {
        unsettled.write(tree, some.iter().map(|key| (key.to_vec(), None)).collect())?;
        settle(tree)?;
    }
    Ok(())
}

/// Ends what a crash interrupted: applies what was staged whole, forgets what was not.
pub(super) fn finish(tree: &Tree) -> Result<(), Fault> {
    let mut unsettled = Unsettled::default();
    let Some(stored) = tree.get([STAGED_WHOLE])? else {
        return match tree.scan_prefix([STAGED]).next().transpose()? {
            Some(_) => forget(tree, &mut unsettled),
            None => Ok(()),
        };
    };
    let damaged = || "a staged batch is not whole".to_owned();
    let (bytes, crc) =
        value::decode_whole(&[STAGED_WHOLE], &stored)?.split_first_chunk().ok_or_else(damaged)?;
    let mut copy = Vec::new();
    for (piece, number) in tree.scan_prefix([STAGED]).zip(0_u32..) {
        let (key, piece) = piece?;
        if copy.len() as u64 >= u64::from_le_bytes(*bytes) {
            // Left behind by an earlier, longer one.
            break;
        }
        if *key != piece_key(number) {
            return Err(damaged().into());
        }
        copy.extend_from_slice(value::decode_whole(&key, &piece)?);
    }
    if copy.len() as u64 != u64::from_le_bytes(*bytes) || crc32fast::hash(&copy).to_le_bytes() != crc {
        return Err(damaged().into());
    }
    unsettled.write_in_parts(tree, decode(&copy).ok_or_else(damaged)?)?;
    forget(tree, &mut unsettled)
}

fn piece_key(number: u32) -> Vec<u8> {
    let mut key = vec![STAGED];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// For each operation: length of the key `u32 LE`, key, 0 or 1 for a value, its length, value.
fn encode(ops: &[Op]) -> Vec<u8> {
    fn put(copy: &mut Vec<u8>, part: &[u8]) {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        copy.extend_from_slice(&length.to_le_bytes());
        copy.extend_from_slice(part);
    }
    let mut copy = Vec::with_capacity(weight(ops));
    for (key, value) in ops {
        put(&mut copy, key);
        copy.push(u8::from(value.is_some()));
        if let Some(value) = value {
            put(&mut copy, value);
        }
    }
    copy
}

fn decode(mut copy: &[u8]) -> Option<Vec<Op>> {
    fn take(copy: &mut &[u8]) -> Option<Vec<u8>> {
        let (length, rest) = copy.split_first_chunk()?;
        let (part, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        *copy = rest;
        Some(part.to_vec())
    }
    let mut ops = Vec::new();
    while !copy.is_empty() {
        let key = take(&mut copy)?;
        let (kind, rest) = copy.split_first()?;
        copy = rest;
        let value = match kind {
            0 => None,
            _ => Some(take(&mut copy)?),
        };
        ops.push((key, value));
    }
    Some(ops)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &std::path::Path) -> sled::Db {
        sled::Config::new().path(dir).flush_every_ms(None).open().unwrap()
    }

    fn ops() -> Vec<Op> {
        let put = |n: u8| (vec![0, n], Some(vec![n; 5_000]));
        (0..100)
            .map(put)
            .chain([(vec![0, 200], None), (vec![0, 3], None), (vec![0, 4], Some(vec![]))])
            .collect()
    }

    fn content(tree: &Tree) -> Vec<(sled::IVec, sled::IVec)> {
        tree.iter().collect::<sled::Result<_>>().unwrap()
    }

    #[test]
    fn operations_read_back() {
        assert_eq!(decode(&encode(&ops())).unwrap(), ops());
        let copy = encode(&ops());
        assert_eq!(decode(&copy[..copy.len() - 1]), None);
    }

    #[test]
    fn wherever_it_is_interrupted_all_of_a_long_batch_takes_effect_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(dir.path());
        let ops = ops();
        let before: Vec<Op> =
            vec![(vec![0, 3], Some(b"old".to_vec())), (vec![0, 200], Some(b"old".to_vec()))];
        // Staged in part, staged, applied in part, applied.
        for (staged, applied) in [(0.5, 0), (1.0, 0), (1.0, 1), (1.0, 50), (1.0, ops.len())] {
            db.clear().unwrap();
            let mut unsettled = Unsettled::default();
            unsettled.write(&db, before.clone()).unwrap();
            let old = content(&db);
            unsettled.write_in_parts(&db, ops.clone()).unwrap();
            let new = content(&db);
            db.clear().unwrap();
            unsettled.write(&db, before.clone()).unwrap();

            stage(&db, &mut unsettled, &ops).unwrap();
            unsettled.write_in_parts(&db, ops[..applied].iter().cloned()).unwrap();
            if staged < 1.0 {
                db.remove([STAGED_WHOLE]).unwrap();
                db.remove(piece_key(20)).unwrap();
            }
            assert_ne!(content(&db), old);
            finish(&db).unwrap();
            assert!(
                content(&db) == if staged < 1.0 { old } else { new },
                "staged {staged}, applied {applied}"
            );
        }
    }

    #[test]
    fn a_staged_batch_that_is_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(dir.path());
        stage(&db, &mut Unsettled::default(), &ops()).unwrap();
        db.remove(piece_key(7)).unwrap();
        assert!(matches!(finish(&db), Err(Fault::Damaged(_))));
    }
}
