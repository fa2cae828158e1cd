use tokio::time::advance;

use super::*;

const SUSPECT_AFTER: Duration = Duration::from_secs(3);
const DOWN_AFTER: Duration = Duration::from_secs(60);
const SHARD: ShardId = ShardId(0);
const SECOND: Duration = Duration::from_secs(1);

fn map(nodes: u64) -> wire::ClusterMap {
    let info = |id| wire::NodeInfo { id, state: wire::NodeState::Member.into(), ..Default::default() };
    wire::ClusterMap { nodes: (1..=nodes).map(info).collect(), ..Default::default() }
}

fn leads(node: u64, leader: bool) -> wire::NodeReport {
    let replica = wire::ReplicaReport { shard: SHARD.get(), leader, term: 1, ..Default::default() };
    wire::NodeReport { node, replicas: vec![replica], ..Default::default() }
}

fn report(observed: &mut Observed, nodes: &[u64]) {
    for &node in nodes {
        observed.report(wire::NodeReport { node, ..Default::default() });
    }
}

/// Time passes in which these nodes report, as often as they do.
async fn go_on(observed: &mut Observed, map: &wire::ClusterMap, nodes: &[u64], seconds: u32) {
    for _ in 0..seconds * 2 {
        advance(SECOND / 2).await;
        report(observed, nodes);
        observed.tick(map);
    }
}

fn healths(observed: &Observed) -> [Health; 3] {
    [1, 2, 3].map(|node| observed.health(NodeId(node)))
}

#[tokio::test(start_paused = true)]
async fn who_was_silent_before_a_term_is_so_after_it_began() {
    let (map, mut first) = (map(3), Observed::new(SUSPECT_AFTER, DOWN_AFTER));
    first.lead(1).tick(&map);
    report(&mut first, &[1, 2, 3]);
    go_on(&mut first, &map, &[1, 2], 50).await;
    assert_eq!(healths(&first), [Health::Up, Health::Up, Health::Suspect]);
    let silences = first.silences().to_vec();
    assert_eq!(silences, [wire::Silence { node: 3, ms: 50_000 }]);

    let mut second = Observed::new(SUSPECT_AFTER, DOWN_AFTER);
    advance(100 * SECOND).await;
    second.hear_of(1, NodeId(1), &silences);
    // Node 1 dies then, and the second wins an election.
    advance(2 * SECOND).await;
    second.lead(2).tick(&map);
    assert_eq!(healths(&second), [Health::Up, Health::Up, Health::Suspect]);
    assert!(!second.is_up(NodeId(1)) && !second.is_up(NodeId(2)), "they have not reported yet");
    go_on(&mut second, &map, &[2], 1).await;
    let first = second.silences().first().map(|silence| (silence.node, silence.ms));
    assert_eq!(first, Some((1, 3_000)), "since before the election");
    go_on(&mut second, &map, &[2], 8).await;
    assert_eq!(healths(&second), [Health::Suspect, Health::Up, Health::Down]);
    go_on(&mut second, &map, &[2, 3], 1).await;
    assert_eq!(healths(&second), [Health::Suspect, Health::Up, Health::Up], "it is back");
    // A late answer of an older leader says nothing.
    second.hear_of(1, NodeId(1), &[wire::Silence { node: 2, ms: 90_000 }]);
    assert_eq!(second.health(NodeId(2)), Health::Up);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_just_started_hears_of_silence_from_the_others() {
    let (map, mut other) = (map(3), Observed::new(SUSPECT_AFTER, DOWN_AFTER));
    other.hear_of(1, NodeId(1), &[wire::Silence { node: 3, ms: 50_000 }]);
    assert_eq!(other.told(), [wire::Silence { node: 3, ms: 50_000 }], "and not of the leader");
    advance(4 * SECOND).await;
    let told = [wire::Silence { node: 1, ms: 4_000 }, wire::Silence { node: 3, ms: 54_000 }];
    assert_eq!(other.told(), told);

    let mut started = Observed::new(SUSPECT_AFTER, DOWN_AFTER);
    started.lead(2).tick(&map);
    report(&mut started, &[1]);
    started.report(wire::NodeReport { node: 2, silences: other.told(), ..Default::default() });
    assert_eq!(healths(&started), [Health::Up, Health::Up, Health::Suspect], "the first has reported itself");
    started.tick(&map);
    assert_eq!(started.silences(), [wire::Silence { node: 3, ms: 54_000 }]);
    assert!(!started.knows_all(&map), "it may be back");
    go_on(&mut started, &map, &[1, 2], 6).await;
    assert_eq!(healths(&started), [Health::Up, Health::Up, Health::Down]);
    report(&mut started, &[3]);
    started.report(wire::NodeReport { node: 2, silences: other.told(), ..Default::default() });
    assert_eq!(started.health(NodeId(3)), Health::Up);
    assert_eq!(started.told(), [], "a leader says it with its answers");
}

#[tokio::test(start_paused = true)]
async fn in_a_new_term_who_was_up_is_not_down_before_their_time() {
    let (map, mut observed) = (map(3), Observed::new(SUSPECT_AFTER, DOWN_AFTER));
    observed.lead(1).tick(&map);
    report(&mut observed, &[1, 2, 3]);
    observed.lose(NodeId(3));
    assert_eq!(healths(&observed), [Health::Up, Health::Up, Health::Down]);
    // Another one led for two minutes, and nothing was heard of it.
    advance(2 * DOWN_AFTER).await;
    observed.lead(7).tick(&map);
    assert_eq!(healths(&observed), [Health::Up, Health::Up, Health::Down]);
    report(&mut observed, &[1]);
    observed.lead(7);
    assert!(observed.is_up(NodeId(1)), "the same term forgets nothing");
    assert!(!observed.lead(6).has_heard_all(&map) && observed.is_up(NodeId(1)), "nor does an older one");
    assert!(!observed.knows_all(&map), "the others may report yet");
    go_on(&mut observed, &map, &[1], 3).await;
    assert!(observed.knows_all(&map), "they are silent");
    assert_eq!(healths(&observed), [Health::Up, Health::Suspect, Health::Down]);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_paused_calls_nobody_silent_for_that() {
    let (map, mut observed) = (map(3), Observed::new(SUSPECT_AFTER, DOWN_AFTER));
    observed.lead(1).tick(&map);
    report(&mut observed, &[1, 2, 3]);
    go_on(&mut observed, &map, &[1, 2], 5).await;
    advance(2 * DOWN_AFTER).await;
    observed.tick(&map);
    assert_eq!(healths(&observed), [Health::Up, Health::Up, Health::Down], "but those that were so before");
    assert!(!observed.knows_all(&map));
    report(&mut observed, &[1, 2, 3]);
    assert!(observed.knows_all(&map) && healths(&observed) == [Health::Up; 3]);
}

#[tokio::test(start_paused = true)]
async fn who_joins_has_the_time_of_the_others() {
    let mut observed = Observed::new(SUSPECT_AFTER, DOWN_AFTER);
    observed.lead(1).tick(&map(2));
    go_on(&mut observed, &map(2), &[1, 2], 100).await;
    observed.tick(&map(3));
    assert_eq!(healths(&observed), [Health::Up; 3]);
    assert!(!observed.is_up(NodeId(3)), "but gets nothing yet");
    go_on(&mut observed, &map(3), &[1, 2], 60).await;
    assert_eq!(healths(&observed), [Health::Up, Health::Up, Health::Down]);
}

#[tokio::test(start_paused = true)]
async fn a_shard_is_leaderless_after_an_election_that_nobody_won() {
    let (map, mut observed) = (map(2), Observed::new(SUSPECT_AFTER, DOWN_AFTER));
    observed.lead(1).tick(&map);
    let state = |observed: &Observed| (observed.last_leader(SHARD), observed.is_leaderless(SHARD));
    assert_eq!(state(&observed), (None, false), "nobody was asked");
    observed.report(leads(1, true));
    observed.report(leads(2, false));
    assert_eq!(state(&observed), (Some(NodeId(1)), false));
    // The leadership is handed over, and the old leader reports first.
    observed.report(leads(1, false));
    assert_eq!(observed.leader(SHARD), None);
    assert_eq!(state(&observed), (Some(NodeId(1)), false));
    advance(SECOND).await;
    observed.report(leads(2, true));
    assert_eq!(state(&observed), (Some(NodeId(2)), false));
    // Nobody leads any more; the second node says so from the first second on.
    for second in 1..=5 {
        advance(SECOND).await;
        observed.report(leads(1, false));
        observed.report(leads(2, false));
        let last = if second >= 3 { None } else { Some(NodeId(2)) };
        assert_eq!(state(&observed), (last, second >= 4), "after {second} s");
    }
    // A new leader's reports come late.
    observed.report(leads(1, true));
    observed.report(leads(2, false));
    advance(SECOND).await;
    observed.report(leads(1, false));
    for _ in 0..2 {
        advance(SECOND).await;
        observed.report(leads(2, false));
    }
    assert_eq!(state(&observed), (None, false), "the first node has said so once");
    advance(SECOND / 2).await;
    observed.report(leads(1, true));
    assert_eq!(state(&observed), (Some(NodeId(1)), false));
    observed.lead(2);
    assert_eq!(state(&observed), (None, false), "nobody was asked yet");
    for _ in 0..4 {
        assert_eq!(state(&observed), (None, false));
        advance(SECOND).await;
        observed.report(leads(1, false));
        observed.report(leads(2, false));
    }
    assert_eq!(state(&observed), (None, true));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_hands_over_and_goes_leaves_a_led_shard() {
    let (map, mut observed) = (map(2), Observed::new(SUSPECT_AFTER, DOWN_AFTER));
    observed.lead(1).tick(&map);
    for _ in 0..6 {
        advance(SECOND).await;
        observed.report(leads(1, true));
        observed.report(leads(2, false));
    }
    // Its replica is off the shard before the new leader's next report.
    observed.report(wire::NodeReport { node: 1, ..Default::default() });
    assert_eq!((observed.leader(SHARD), observed.is_leaderless(SHARD)), (None, false));
    // But if that says for long enough that it does not lead, nobody does.
    for second in 1..=3 {
        advance(SECOND).await;
        observed.report(wire::NodeReport { node: 1, ..Default::default() });
        observed.report(leads(2, false));
        assert_eq!(observed.is_leaderless(SHARD), second >= 3, "after {second} s");
    }
}
