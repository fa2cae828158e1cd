//! Sessions: what a caller has seen, so that its reads see at least that, whichever replica answers.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(any(test, feature = "direct"))]
use borough_proto::ShardId;
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

    /// Takes in an answer's token; one of a newer build is left alone.
    pub fn absorb(&self, token: &str) {
        let Ok(answered) = Seen::decode(token) else { return };
        self.held().get_or_insert_default().merge(&answered);
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
        let session = SessionState::default();
        session.absorb(&token(&[(1, 5)]));
        session.absorb(&token(&[(2, 7), (300, 1)]));
        session.absorb(&token(&[(1, 4)]));
        session.absorb("not a token");
        assert_eq!(session.token(), Some(token(&[(1, 5), (2, 7), (300, 1)])));
    }

    #[test]
    fn a_token_for_everything_stays_one() {
        let everything: Vec<_> = (0..=300).map(|shard| (shard, 1)).collect();
        let session = SessionState::default();
        session.absorb(&token(&[(1, 5)]));
        session.absorb(&token(&everything));
        session.absorb(&token(&[(2, 7)]));
        assert_eq!(session.seen().unwrap().min_index(ShardId(9)), None);
    }
}
