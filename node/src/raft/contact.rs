//! When a replica asks for an election: a leader has been silent for long enough, and nobody else is about to win one.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What a replica has heard of leaders and candidates.
#[derive(Debug)]
pub struct Contact(Mutex<Times>);

#[derive(Debug)]
struct Times {
    /// When a leader's message was last accepted; at first, when the replica was opened.
    heard: Instant,
    /// When this replica last asked for an election, or voted for another.
    elected: Instant,
    /// Votes that are being given or refused.
    voting: u32,
    /// Since when this replica was found leading.
    leading: Option<Instant>,
}

/// A vote that is being given or refused.
#[derive(Debug)]
pub struct Voting<'a>(&'a Contact);

impl Contact {
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Times { heard: now, elected: now, voting: 0, leading: None }))
    }

    /// A leader's message was accepted.
    pub fn heard(&self, now: Instant) {
        self.0.lock().heard = now;
    }

    /// This replica leads.
    pub fn leads(&self, now: Instant) {
        let mut times = self.0.lock();
        times.heard = now;
        times.leading.get_or_insert(now);
    }

    /// This replica does not lead.
    pub fn follows(&self) {
        self.0.lock().leading = None;
    }

    /// How long this replica has led without a break.
    pub fn led_for(&self, now: Instant) -> Option<Duration> {
        self.0.lock().leading.map(|since| now.saturating_duration_since(since))
    }

    /// A candidate asks for this replica's vote, which it takes an fsync to give.
    pub fn asked(&self) -> Voting<'_> {
        self.0.lock().voting += 1;
        Voting(self)
    }

    /// Whether it is time for an election, which then counts as asked for. `lease` after a leader was heard last the first
    /// in rank is due, and each other a `pause` later. Who has just voted, or is about to, gives that candidate time to win:
    /// where votes take longer than the pause, candidates would keep each other from it.
    pub fn is_due(&self, now: Instant, lease: Duration, pause: Duration, rank: u32) -> bool {
        let mut times = self.0.lock();
        let due = times.heard + lease + pause.saturating_mul(rank);
        if times.voting > 0 || now < due || now < times.elected + lease / 2 {
            return false;
        }
        times.elected = now;
        true
    }
}

impl Voting<'_> {
    /// The vote was given.
    pub fn granted(&self, now: Instant) {
        self.0.0.lock().elected = now;
    }
}

impl Drop for Voting<'_> {
    fn drop(&mut self) {
        self.0.0.lock().voting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(1000);
    const PAUSE: Duration = Duration::from_millis(120);

    #[test]
    fn silence_makes_elections_due_by_rank_and_again_later() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let contact = Contact::new(start);
        contact.heard(at(500));
        assert!(!contact.is_due(at(1499), LEASE, PAUSE, 0));
        assert!(!contact.is_due(at(1739), LEASE, PAUSE, 2));
        assert!(contact.is_due(at(1740), LEASE, PAUSE, 2));
        assert!(!contact.is_due(at(2239), LEASE, PAUSE, 2), "it has just asked");
        assert!(contact.is_due(at(2240), LEASE, PAUSE, 2));
        contact.heard(at(2300));
        assert!(!contact.is_due(at(3299), LEASE, PAUSE, 0));
    }

    #[test]
    fn who_votes_for_another_gives_it_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let contact = Contact::new(start);
        let voting = contact.asked();
        assert!(!contact.is_due(at(1500), LEASE, PAUSE, 0), "the vote is on its way to the disk");
        voting.granted(at(1600));
        drop(voting);
        assert!(!contact.is_due(at(2099), LEASE, PAUSE, 0));
        assert!(contact.is_due(at(2100), LEASE, PAUSE, 0), "that candidate has not won");
        // A vote that was refused defers nothing once that is said.
        drop(contact.asked());
        assert!(contact.is_due(at(2600), LEASE, PAUSE, 0));
    }

    #[test]
    fn leading_counts_from_its_beginning() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let contact = Contact::new(start);
        assert_eq!(contact.led_for(at(1)), None);
        contact.leads(at(10));
        contact.leads(at(20));
        assert_eq!(contact.led_for(at(50)), Some(Duration::from_millis(40)));
        assert!(!contact.is_due(at(1019), LEASE, PAUSE, 0), "it hears itself");
        contact.follows();
        assert_eq!(contact.led_for(at(60)), None);
    }
}
