//! Whether a leader still hears a quorum of its group (check quorum).
//!
//! A leader that can send but not hear keeps its followers from electing another one, and can acknowledge nothing itself.
//! So it falls silent when nobody has answered it for an election timeout: then the others elect, if they can. The idea
//! is of section 6.2 of Ongaro's dissertation on Raft, where such a leader steps down.

/// Silences as long as that, in times until a leader counts as deaf, end with one heartbeat: where all were cut off from
/// each other and nobody else was elected meanwhile, it is heard and answered again.
const SILENCES: u32 = 4;

/// What a leader has heard, counted in its own heartbeats: a process that was stopped itself has not sent any.
#[derive(Debug)]
pub struct Hearing<Time> {
    /// When the last messages were sent that a quorum has acknowledged.
    acknowledged: Option<Time>,
    unanswered: u32,
}

impl<Time> Default for Hearing<Time> {
    fn default() -> Self {
        Self { acknowledged: None, unanswered: 0 }
    }
}

impl<Time: PartialEq> Hearing<Time> {
    /// This replica does not lead, or is alone.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// A heartbeat is due. `acknowledged` is when the last messages were sent that a quorum has acknowledged, `limit` how
    /// many heartbeats may stay without an answer. Tells whether to keep silent until the next one.
    pub fn is_deaf(&mut self, acknowledged: Option<Time>, limit: u32) -> bool {
        if acknowledged != self.acknowledged {
            *self = Self { acknowledged, unanswered: 0 };
            return false;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        let limit = limit.max(1);
        self.unanswered > limit && !self.unanswered.is_multiple_of(limit.saturating_mul(SILENCES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_answered_is_never_silent() {
        let mut hearing = Hearing::default();
        for beat in 0..100 {
            // Each answer takes up to three heartbeats.
            assert!(!hearing.is_deaf(Some(beat / 3), 4), "at {beat}");
        }
    }

    #[test]
    fn who_is_not_answered_falls_silent_and_asks_now_and_then() {
        for acknowledged in [None, Some(7)] {
            let mut hearing = Hearing::default();
            let silent: Vec<bool> = (0..40).map(|_| hearing.is_deaf(acknowledged, 4)).collect();
            let begins = silent.iter().position(|silent| *silent).unwrap();
            assert!((4..=5).contains(&begins), "{silent:?}");
            let sent: Vec<usize> = (begins..40).filter(|beat| !silent[*beat]).collect();
            assert!(sent.len() >= 2 && sent.windows(2).all(|two| two[1] - two[0] == 16), "{sent:?}");
            // Answered again, also by what was asked in between.
            assert!(!hearing.is_deaf(Some(8), 4));
            assert!(!hearing.is_deaf(Some(8), 4));
        }
    }

    #[test]
    fn a_leader_begins_anew() {
        let mut hearing = Hearing::<u64>::default();
        let silent = (0..10).filter(|_| hearing.is_deaf(None, 4)).count();
        assert!(silent > 0);
        hearing.reset();
        assert!(!hearing.is_deaf(None, 4));
    }
}
