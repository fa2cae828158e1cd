//! Where a document lives: `xxh3_64` of its id, for ever.
//!
//! Changing this function would move every document of every cluster, so it is fixed by test vectors.

use xxhash_rust::xxh3::xxh3_64;

/// The place of `id` in the 64-bit hash space (XXH3, seed 0, over the id's UTF-8 bytes).
pub fn hash_id(id: &str) -> u64 {
    xxh3_64(id.as_bytes())
}

/// Cuts the hash space into `count` ranges of equal size (within one), both ends inclusive, in order.
///
/// Ranges rather than modulo, so that a shard can be split later without moving the others.
pub fn ranges(count: u32) -> Vec<(u64, u64)> {
    let count = u128::from(count.max(1));
    let bound = |index: u128| (index << 64) / count;
    (0..count)
        .map(|index| {
            // Both fit: bound(count) is 2^64, and 1 is taken off before the cast.
            #[expect(clippy::cast_possible_truncation, reason = "values lie below 2^64")]
            let range = (bound(index) as u64, (bound(index + 1) - 1) as u64);
            range
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the reference implementation of XXH3 (64 bits, seed 0).
    #[test]
    fn the_hash_is_what_it_always_was() {
        let vectors: &[(&str, u64)] = &[
            ("", 0x2d06_8005_38d3_94c2),
            ("a", 0xe6c6_32b6_1e96_4e1f),
            ("1", 0x65cd_2502_8f98_f158),
            ("user-42", 0x50fe_4b21_cf7b_09cd),
            ("ä€𝄞", 0xd5c9_b022_be72_b04f),
            (&"x".repeat(256), 0xd1d0_5738_849b_aec9),
        ];
        for (id, hash) in vectors {
            assert_eq!(hash_id(id), *hash, "{id}");
        }
    }

    #[test]
    fn ranges_cover_the_space_without_gaps() {
        for count in [1, 2, 3, 7, 32, 1000] {
            let ranges = ranges(count);
            assert_eq!(ranges.len(), count as usize);
            assert_eq!(ranges[0].0, 0);
            assert_eq!(ranges.last().unwrap().1, u64::MAX);
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].1 + 1, pair[1].0);
            }
        }
        assert_eq!(ranges(32)[7], (0x3800_0000_0000_0000, 0x3fff_ffff_ffff_ffff));
    }
}
