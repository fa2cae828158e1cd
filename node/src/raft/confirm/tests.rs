//! Which answers prove that nobody else was elected, and which do not.

use super::*;

const LEADER: ReplicaId = ReplicaId(1);

fn round(configs: &[&[u64]], own: bool) -> Round {
    let configs: Vec<BTreeSet<_>> =
        configs.iter().map(|voters| voters.iter().copied().map(ReplicaId).collect()).collect();
    let voters: BTreeSet<_> = configs.iter().flatten().copied().collect();
    let others = voters.into_iter().filter(|&voter| voter != LEADER);
    let others = others.map(|voter| (NodeId(voter.get()), voter)).collect();
    let leadership = Leadership { group: GroupId(3), replica: LEADER, term: 7 };
    Round::new(leadership, Electorate { configs, others }, move || own)
}

/// Asks as many as are asked at first; which they are.
fn begin(round: &Round) -> Vec<u64> {
    let count = round.electorate.asked_at_first(LEADER);
    let mut state = round.state.lock();
    (0..count).map_while(|_| round.ask_another(&mut state)).map(|(node, _)| node.get()).collect()
}

fn answer(round: &Round, voter: u64, holds: bool) -> Option<u64> {
    round.answered(ReplicaId(voter), holds).map(|(node, _)| node.get())
}

#[test]
fn one_other_of_three_is_enough_and_the_next_is_asked_only_when_it_fails() {
    let confirmed = round(&[&[1, 2, 3]], true);
    let mut outcome = confirmed.join().unwrap();
    assert_eq!(begin(&confirmed), [2]);
    assert_eq!(answer(&confirmed, 2, true), None);
    assert_eq!(outcome.try_recv(), Ok(true));

    let second = round(&[&[1, 2, 3]], true);
    let mut outcome = second.join().unwrap();
    begin(&second);
    assert_eq!(answer(&second, 2, false), Some(3));
    assert!(outcome.try_recv().is_err(), "nobody has confirmed yet");
    assert_eq!(answer(&second, 3, true), None);
    assert_eq!(outcome.try_recv(), Ok(true));

    let refused = round(&[&[1, 2, 3]], true);
    let mut outcome = refused.join().unwrap();
    begin(&refused);
    assert_eq!(answer(&refused, 2, false), Some(3));
    assert_eq!(answer(&refused, 3, false), None);
    assert_eq!(outcome.try_recv(), Ok(false));
}

#[test]
fn of_five_two_others_are_needed() {
    let confirmed = round(&[&[1, 2, 3, 4, 5]], true);
    let mut outcome = confirmed.join().unwrap();
    assert_eq!(begin(&confirmed), [2, 3]);
    assert_eq!(answer(&confirmed, 3, true), None);
    assert!(outcome.try_recv().is_err());
    assert_eq!(answer(&confirmed, 2, false), Some(4));
    assert_eq!(answer(&confirmed, 4, true), None);
    assert_eq!(outcome.try_recv(), Ok(true));
}

#[test]
fn while_the_voters_change_a_quorum_of_both_sets_is_needed() {
    for (holding, outcome) in
        [(&[2, 3][..], false), (&[4, 5], false), (&[2, 4], true), (&[3, 5], true), (&[2, 3, 4, 5], true)]
    {
        // The old ones are 1, 2, 3, the new ones 1, 4, 5.
        let changing = round(&[&[1, 2, 3], &[1, 4, 5]], true);
        let mut told = changing.join().unwrap();
        assert_eq!(begin(&changing), [2, 3, 4, 5]);
        for voter in 2..=5 {
            assert_eq!(answer(&changing, voter, holding.contains(&voter)), None);
        }
        assert_eq!(told.try_recv(), Ok(outcome), "{holding:?}");
    }
}

#[test]
fn a_leader_that_is_no_voter_needs_a_quorum_of_others() {
    let leaving = round(&[&[2, 3, 4]], true);
    let mut outcome = leaving.join().unwrap();
    assert_eq!(begin(&leaving), [2, 3]);
    assert_eq!(answer(&leaving, 2, true), None);
    assert!(outcome.try_recv().is_err());
    assert_eq!(answer(&leaving, 3, true), None);
    assert_eq!(outcome.try_recv(), Ok(true));
}

#[test]
fn the_leaders_own_vote_counts_too() {
    let deposed = round(&[&[1, 2, 3]], false);
    let mut outcome = deposed.join().unwrap();
    begin(&deposed);
    assert_eq!(answer(&deposed, 2, true), None);
    assert_eq!(outcome.try_recv(), Ok(false));
}

#[test]
fn a_read_that_comes_after_the_question_has_left_needs_another() {
    let left = round(&[&[1, 2, 3]], true);
    let mut before = left.join().unwrap();
    begin(&left);
    assert!(left.leave());
    assert!(left.join().is_none(), "an answer could be older than the read");
    answer(&left, 2, true);
    assert_eq!(before.try_recv(), Ok(true));

    // Nor can one that has ended without leaving be joined: nobody would tell.
    let failed = round(&[&[1, 2]], true);
    let mut before = failed.join().unwrap();
    begin(&failed);
    assert_eq!(answer(&failed, 2, false), None);
    assert_eq!(before.try_recv(), Ok(false));
    assert!(failed.join().is_none());
    assert!(!failed.leave());
}
