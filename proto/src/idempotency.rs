//! Which uses of an `Idempotency-Key` are the same use.
//!
//! A key's record lies in the shard of what it was used for, under a position. Where the path names the target, the
//! position stands for the target: the same key on another one is another use, in whatever shard that lies. Where the body
//! does, the key is first *claimed* for the whole request in the shard of the key itself; the records of what
//! is then written lie with the documents, under their places in the request.

use crate::key::hash_id;
use crate::limits::BATCH_ITEMS_MAX;
use crate::wire;

/// The position of a claim.
pub const CLAIM: u32 = u32::MAX;

/// The position of what a path names by `parts`. Two targets share one once in four thousand million, and then the second
/// use is refused as another request: nothing is applied that should not be.
pub fn position_of(parts: &[&str]) -> u32 {
    // Each part with its length before it, so that none runs into the next.
    let name: String = parts.iter().map(|part| format!("{}:{part}", part.len())).collect();
    let first = u32::try_from(BATCH_ITEMS_MAX).unwrap_or(CLAIM - 1);
    let places = u64::from(CLAIM - first);
    first + u32::try_from(hash_id(&name) % places).unwrap_or(0)
}

/// What claims a key: it looks at a document whose id is the key, so that it lies in the key's shard, and changes nothing.
pub fn claim(collection: u32, key: wire::Idempotency) -> wire::Unit {
    let op = wire::Op {
        collection,
        id: key.key.clone(),
        action: Some(wire::op::Action::Check(wire::Check {})),
        ..Default::default()
    };
    wire::Unit { ops: vec![op], idempotency: Some(wire::Idempotency { position: CLAIM, ..key }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{ID_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX};

    #[test]
    fn targets_have_positions_of_their_own() {
        let mut seen = std::collections::HashSet::new();
        for number in 0..1000 {
            let position = position_of(&["users", &number.to_string()]);
            assert!((100..CLAIM).contains(&position), "{position}");
            assert!(seen.insert(position), "{number}");
        }
        assert_ne!(position_of(&["users", "a", "b"]), position_of(&["users", "ab", ""]));
        assert_ne!(position_of(&["users", "a"]), position_of(&["users", "a", ""]));
        // In the log for a day: changing it would apply retries again.
        assert_eq!(position_of(&["users", "a"]), position_of(&["users", "a"]));
    }

    #[test]
    fn any_key_can_be_the_id_of_what_its_claim_looks_at() {
        const { assert!(IDEMPOTENCY_KEY_BYTES_MAX <= ID_BYTES_MAX) };
        let key = wire::Idempotency { key: "k".to_owned(), fingerprint: 7, ..Default::default() };
        let unit = claim(3, key);
        assert_eq!((unit.ops[0].collection, unit.ops[0].id.as_str()), (3, "k"));
        assert_eq!(unit.idempotency.map(|key| (key.position, key.fingerprint)), Some((CLAIM, 7)));
    }
}
