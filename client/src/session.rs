//! Sessions: what a caller has seen, so that its reads see at least that, whichever replica answers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use borough_proto::ShardId;
use borough_proto::limits;
use borough_proto::session::Session as Seen;

/// The token that a session's calls share. Answers may come back in any order, so each is merged
/// into what is held and never replaces it.
#[derive(Debug, Default)]
pub(crate) struct SessionState {
    held: Mutex<Option<Seen>>,
}

impl SessionState {
    pub fn new(seen: Option<Seen>) -> Self {
        Self { held: Mutex::new(seen) }
    }

    fn held(&self) -> MutexGuard<'_, Option<Seen>> {
        // Nothing in here panics halfway, so a poisoned value is whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token to send; `None` before the first answer.
    pub fn token(&self) -> Option<String> {
        self.held().as_ref().map(Seen::encode)
    }

    /// What was seen so far.
    #[cfg(any(test, feature = "direct"))]
    pub fn seen(&self) -> Option<Seen> {
        self.held().clone()
    }

    /// Notes that an answer included `index` of `shard`.
    #[cfg(feature = "direct")]
    pub fn observe(&self, shard: ShardId, index: u64) {
        self.held().get_or_insert_default().observe(shard, index);
    }

    /// Takes in an answer's token; one of a newer build is left alone. `shard` is the answer's, if it named one.
    pub fn absorb(&self, token: &str, shard: Option<ShardId>) {
        let Ok(answered) = Seen::decode(token) else { return };
        let mut held = self.held();
        match held.as_mut() {
            None => *held = Some(answered),
            Some(held) => merge(held, &answered, shard),
        }
    }
}

/// Raises `held` to everything that `answered` names.
fn merge(held: &mut Seen, answered: &Seen, shard: Option<ShardId>) {
    if *held == *answered {
        return;
    }
    if let (Some(shard), Some(index)) = (shard, shard.and_then(|shard| answered.min_index(shard))) {
        let mut alone = Seen::default();
        alone.observe(shard, index);
        let mut raised = held.clone();
        raised.observe(shard, index);
        // A router that adds its answer to the token sent, or one that names its own shard only.
        if raised == *answered || alone == *answered {
            *held = raised;
            return;
        }
    }
    for shard in (0..limits::SHARDS_MAX).map(ShardId) {
        match answered.min_index(shard) {
            None => {
                *held = answered.clone();
                return;
            }
            Some(0) => {}
            Some(index) => held.observe(shard, index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(seen: &[(u32, u64)]) -> String {
        let mut session = Seen::default();
        for (shard, index) in seen {
            session.observe(ShardId(*shard), *index);
        }
        session.encode()
    }

    #[test]
    fn answers_in_any_order_add_up() {
        let hints = [None, Some(ShardId(1)), Some(ShardId(2))];
        for hint in hints {
            let session = SessionState::default();
            session.absorb(&token(&[(1, 5)]), hint);
            session.absorb(&token(&[(2, 7), (300, 1)]), hint);
            session.absorb(&token(&[(1, 4)]), hint);
            session.absorb("not a token", hint);
            assert_eq!(session.token(), Some(token(&[(1, 5), (2, 7), (300, 1)])), "{hint:?}");
        }
    }

    #[test]
    fn a_token_for_everything_stays_one() {
        let everything: Vec<_> = (0..=300).map(|shard| (shard, 1)).collect();
        let session = SessionState::default();
        session.absorb(&token(&[(1, 5)]), None);
        session.absorb(&token(&everything), None);
        session.absorb(&token(&[(2, 7)]), Some(ShardId(2)));
        assert_eq!(session.seen().unwrap().min_index(ShardId(9)), None);
    }
}
