//! The forwarder against scripted nodes.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::error::Outcome;
use crate::exchange::scripted::{Act, Cluster};
use crate::wire::{Fault, FaultCode, data_reply, data_request};

const SHARD: ShardId = ShardId(0);
/// Reads that turn to a dead node first: far more than the probes that it may cost.
const READS: usize = 300;

fn written() -> Act {
    let units = vec![wire::UnitReply::default()];
    Act::Answer(data_reply::Result::Write(wire::CommandReply { units, stale_duplicate: false }))
}

fn read_reply() -> Act {
    Act::Answer(data_reply::Result::Read(wire::ReadReply { items: vec![wire::ReadItem::default()] }))
}

fn read() -> wire::Read {
    wire::Read { keys: vec![wire::DocumentKey::default()], freshness: None }
}

fn fault(fault: Fault) -> Act {
    Act::Answer(data_reply::Result::Fault(fault))
}

fn within(millis: u64) -> Instant {
    Instant::now() + Duration::from_millis(millis)
}

fn units() -> Vec<wire::Unit> {
    vec![wire::Unit::default()]
}

fn session(request: &wire::DataRequest) -> wire::Session {
    match &request.op {
        Some(data_request::Op::Write(write)) => write.command.as_ref().unwrap().session.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_hint_is_followed_and_remembered() {
    let leader = |node, _: &wire::DataRequest| {
        if node == 2 { written() } else { fault(Fault::not_leader(Some(NodeId(2)))) }
    };
    let cluster = Cluster::start(3, leader).await;
    for _ in 0..5 {
        let answer = cluster.forwarder.write(SHARD, units(), within(60_000)).await.unwrap();
        assert_eq!((answer.node, answer.index), (NodeId(2), 77));
    }
    let seen = cluster.seen.lock();
    assert!(seen.len() <= 6, "at most the first request was sent twice: {}", seen.len());
    // A write is told the caller's deadline, not that of the attempt.
    assert!(seen.iter().all(|(_, request)| request.epoch == 4 && request.timeout_ms > 30_000));
}

#[tokio::test]
async fn a_lost_write_is_resent_under_the_same_session_and_sequence() {
    let mut sent = 0;
    let cluster = Cluster::start(2, move |_, _| {
        sent += 1;
        if sent == 1 { Act::Break } else { written() }
    })
    .await;
    let answer = cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap();
    assert_eq!(answer.attempts, 2);
    cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap();
    let seen = cluster.seen.lock();
    let sessions: Vec<_> = seen.iter().map(|(_, request)| session(request)).collect();
    assert_eq!(sessions[0].id, sessions[1].id);
    assert_eq!(sessions.iter().map(|s| s.sequence).collect::<Vec<_>>(), [1, 1, 2]);
    assert_eq!(sessions.iter().map(|s| s.acknowledged).collect::<Vec<_>>(), [0, 0, 1]);
    assert_ne!(seen[0].0, seen[1].0, "the other node is asked");
}

#[tokio::test]
async fn a_write_that_was_lost_and_never_answered_is_unknown() {
    let cluster = Cluster::start(2, |_, _| Act::Break).await;
    let error = cluster.forwarder.write(SHARD, units(), within(2000)).await.unwrap_err();
    assert_eq!((error.outcome, error.why), (Outcome::Unknown, Why::DeadlineExceeded));
}

#[tokio::test]
async fn a_write_that_no_node_took_is_not_applied() {
    let cluster = Cluster::start(3, |_, _| fault(Fault::not_leader(None))).await;
    let mut error = cluster.forwarder.write(SHARD, units(), within(2000)).await.unwrap_err();
    for _ in 0..10 {
        // A request that was on its way when the time was up may have been taken: that is rightly unknown.
        if error.why == Why::DeadlineExceeded {
            error = cluster.forwarder.write(SHARD, units(), within(2000)).await.unwrap_err();
        }
    }
    assert_eq!((error.outcome, error.why), (Outcome::NotApplied, Why::Unavailable));
    assert!(error.retry_after.is_some());
    let asked: HashSet<u64> = cluster.seen.lock().iter().map(|(node, _)| *node).collect();
    assert_eq!(asked.len(), 3, "every replica was asked");
}

#[tokio::test]
async fn a_refusal_after_a_lost_attempt_is_still_unknown() {
    let mut sent = 0;
    let cluster = Cluster::start(2, move |_, _| {
        sent += 1;
        if sent == 1 { Act::Break } else { fault(Fault::new(FaultCode::DiskFull, "full")) }
    })
    .await;
    let error = cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap_err();
    assert_eq!((error.outcome, error.why), (Outcome::Unknown, Why::DiskFull));
    let cluster = Cluster::start(1, |_, _| fault(Fault::new(FaultCode::DiskFull, "full"))).await;
    let error = cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap_err();
    assert_eq!((error.outcome, error.why), (Outcome::NotApplied, Why::DiskFull));
}

#[tokio::test]
async fn an_unknown_outcome_is_resolved_by_resending() {
    let mut sent = 0;
    let cluster = Cluster::start(1, move |_, _| {
        sent += 1;
        if sent == 1 { fault(Fault::new(FaultCode::OutcomeUnknown, "lost leadership")) } else { written() }
    })
    .await;
    cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap();
    let seen = cluster.seen.lock();
    assert_eq!(session(&seen[0].1).sequence, session(&seen[1].1).sequence);
}

#[tokio::test]
async fn a_forgotten_sequence_is_unknown() {
    let stale = || wire::CommandReply { units: Vec::new(), stale_duplicate: true };
    let cluster = Cluster::start(1, move |_, _| Act::Answer(data_reply::Result::Write(stale()))).await;
    let error = cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap_err();
    assert_eq!((error.outcome, error.why), (Outcome::Unknown, Why::Forgotten));
}

#[tokio::test]
async fn a_silent_node_is_left_for_another() {
    let attempt = Duration::from_millis(200);
    let script = |node, _: &wire::DataRequest| if node == 1 { Act::Silence } else { read_reply() };
    let cluster = Cluster::with_attempt(attempt, 3, script).await;
    let asked = || cluster.seen.lock().iter().any(|(node, _)| *node == 1);
    // On a slow machine the first attempts may be over before the request has left.
    for _ in 0..50 {
        cluster.forwarder.watch().topology().set_leader(SHARD, NodeId(1));
        let answer = cluster.forwarder.read(SHARD, read(), within(30_000)).await.unwrap();
        assert!(answer.attempts >= 2, "{answer:?}");
        assert_ne!(answer.node, NodeId(1));
        if asked() {
            return;
        }
    }
    panic!("node 1 was never asked");
}

#[tokio::test]
async fn a_busy_node_is_not_asked_for_ever() {
    let cluster = Cluster::start(1, |_, _| fault(Fault::new(FaultCode::Busy, "queue is full"))).await;
    let error = cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap_err();
    assert_eq!((error.outcome, error.why), (Outcome::NotApplied, Why::Overloaded));
    assert!(cluster.seen.lock().len() <= 3);
}

#[tokio::test]
async fn a_stale_replica_hands_over_to_the_leader() {
    let cluster = Cluster::start(3, |node, _| {
        if node == 3 { read_reply() } else { fault(Fault::new(FaultCode::NotFresh, "behind")) }
    })
    .await;
    cluster.forwarder.watch().topology().set_leader(SHARD, NodeId(3));
    let freshness = Some(wire::Freshness { max_stale_ms: None, min_index: Some(9) });
    for _ in 0..10 {
        let read = wire::Read { freshness, ..read() };
        let answer = cluster.forwarder.read(SHARD, read, within(5000)).await.unwrap();
        assert_eq!(answer.node, NodeId(3));
        assert!(answer.attempts <= 2);
    }
}

#[tokio::test]
async fn a_wrong_epoch_waits_for_the_new_map() {
    let cluster = Cluster::start(1, |_, request| {
        if request.epoch >= 5 { read_reply() } else { fault(Fault::new(FaultCode::WrongEpoch, "older")) }
    })
    .await;
    let mut newer = cluster.map.borrow().clone();
    newer.epoch = 2;
    newer.shards[0].epoch = 5;
    let reading = cluster.forwarder.read(SHARD, read(), within(5000));
    let (answer, ()) = tokio::join!(reading, async {
        while cluster.seen.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        cluster.map.send_replace(newer);
    });
    assert!(answer.unwrap().attempts >= 2);
}

/// The address of a node that hangs up on everybody, and how many have tried it.
async fn dead_node(cluster: &Cluster) -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let connects = Arc::new(AtomicUsize::new(0));
    let (counter, stop) = (Arc::clone(&connects), cluster.stop.clone());
    cluster.tasks.spawn(async move {
        while let Some(Ok(_)) = stop.run_until_cancelled(listener.accept()).await {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    (addr, connects)
}

#[tokio::test]
async fn dead_nodes_cost_no_time_once_known() {
    let cluster = Cluster::start(1, |_, _| read_reply()).await;
    let (addr, connects) = dead_node(&cluster).await;
    let mut map = cluster.map.borrow().clone();
    map.nodes.push(wire::NodeInfo {
        id: 2,
        addr,
        state: wire::NodeState::Member.into(),
        ..Default::default()
    });
    map.epoch = 2;
    map.shards[0].replicas.push(wire::ReplicaInfo { id: 20, node: 2, role: wire::ReplicaRole::Voter.into() });
    cluster.map.send_replace(map);
    assert!(cluster.forwarder.watch().reached(2, within(5000)).await);
    let begun = Instant::now();
    for _ in 0..READS {
        cluster.forwarder.watch().topology().set_leader(SHARD, NodeId(2));
        let answer = cluster.forwarder.read(SHARD, read(), within(5000)).await.unwrap();
        assert_eq!(answer.node, NodeId(1));
        assert_eq!(answer.attempts, 2, "the dead one was turned to first");
    }
    let (connects, took) = (connects.load(Ordering::SeqCst), begun.elapsed());
    assert!(connects > 0, "the dead node was never tried");
    // Probes double their pauses, with jitter from 25 ms up to half a second at least: seven in the first 1.5 seconds,
    // then two a second.
    let probes_max = 7 + usize::try_from(took.as_millis() / 500).unwrap();
    // The transport may connect again within a probe when it is hung up on.
    assert!(connects <= 3 * probes_max, "{connects} connects for {READS} reads in {took:?}");
    assert_eq!(cluster.forwarder.pool().connected(), 1);
}

#[tokio::test]
async fn a_node_that_leaves_the_map_is_let_go() {
    let cluster = Cluster::start(1, |_, _| read_reply()).await;
    cluster.forwarder.read(SHARD, read(), within(5000)).await.unwrap();
    assert_eq!(cluster.forwarder.pool().connected(), 1);
    let tasks = cluster.tasks.len();
    let mut map = cluster.map.borrow().clone();
    map.epoch = 2;
    map.nodes[0].state = wire::NodeState::Removed.into();
    cluster.map.send_replace(map);
    assert!(cluster.forwarder.watch().reached(2, within(5000)).await);
    assert_eq!(cluster.forwarder.pool().connected(), 0);
    while cluster.tasks.len() >= tasks {
        tokio::task::yield_now().await;
    }
    let error = cluster.forwarder.read(SHARD, read(), within(100)).await.unwrap_err();
    assert_eq!(error.why, Why::Unavailable);
}

#[tokio::test]
async fn the_forwarders_tasks_end_with_their_token() {
    let cluster = Cluster::start(2, |_, _| read_reply()).await;
    cluster.forwarder.read(SHARD, read(), within(5000)).await.unwrap();
    cluster.stop.cancel();
    cluster.tasks.close();
    tokio::time::timeout(Duration::from_secs(10), cluster.tasks.wait()).await.unwrap();
}

#[tokio::test]
async fn a_claim_without_an_answer_leaves_nothing_applied() {
    let key = || wire::Idempotency { key: "k".to_owned(), ..Default::default() };
    for code in [FaultCode::DeadlineExceeded, FaultCode::Internal] {
        let cluster =
            Cluster::start(1, move |_, _: &wire::DataRequest| fault(Fault::new(code, "late"))).await;
        let written = cluster.forwarder.write(SHARD, units(), within(2000)).await.unwrap_err();
        assert_eq!(written.outcome, Outcome::Unknown, "{code:?}");
        let claimed = cluster.forwarder.claim(SHARD, 1, key(), within(2000)).await.unwrap_err();
        assert_eq!(claimed.outcome, Outcome::NotApplied, "{code:?}");
        assert!(matches!(claimed.why, Why::Unavailable | Why::Internal), "{claimed:?}");
    }
}

#[tokio::test]
async fn a_note_that_a_node_does_not_keep_is_missed() {
    let cluster = Cluster::start(1, |_, _: &wire::DataRequest| written()).await;
    let key = |note: Option<&'static str>| wire::Idempotency {
        key: "k".to_owned(),
        note: note.map(|note| note.as_bytes().into()),
        ..Default::default()
    };
    assert!(cluster.forwarder.claim(SHARD, 1, key(None), within(2000)).await.is_ok());
    let missed = cluster.forwarder.claim(SHARD, 1, key(Some("n")), within(2000)).await.unwrap_err();
    assert_eq!((missed.why, missed.outcome), (Why::Unavailable, Outcome::NotApplied));
}

/// Five shards where there was one, with its replicas.
async fn five_shards(cluster: &Cluster) -> Vec<(ShardId, Option<wire::Freshness>)> {
    let mut map = cluster.map.borrow().clone();
    map.epoch += 1;
    let replicas = map.shards[0].replicas.clone();
    map.shards = (0..5)
        .zip(crate::key::ranges(5))
        .map(|(id, (first, last))| wire::ShardInfo { id, first, last, epoch: 4, replicas: replicas.clone() })
        .collect();
    let epoch = map.epoch;
    cluster.map.send_replace(map);
    assert!(cluster.forwarder.watch().reached(epoch, within(5000)).await);
    (0..5).map(|id| (ShardId(id), None)).collect()
}

fn keys(_: usize) -> Vec<wire::DocumentKey> {
    read().keys
}

/// Turns the first requests for all shards to `node`.
fn led_by(cluster: &Cluster, node: u64) {
    (0..5).for_each(|id| cluster.forwarder.watch().topology().set_leader(ShardId(id), NodeId(node)));
}

#[tokio::test]
async fn reads_of_several_shards_are_answered_in_their_order_whatever_each_meets() {
    let cluster = Cluster::start(3, |node, request| match request.shard {
        1 if node != 3 => fault(Fault::not_leader(Some(NodeId(3)))),
        2 => fault(Fault::new(FaultCode::Internal, "broken")),
        // Too few items are no answer.
        3 => Act::Answer(data_reply::Result::Read(wire::ReadReply::default())),
        _ => read_reply(),
    })
    .await;
    let shards = five_shards(&cluster).await;
    led_by(&cluster, 1);
    let answers = cluster.forwarder.read_many(&shards, keys, within(5000)).await;
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false, false, true]);
    for (answer, (asked, _)) in answers.iter().zip(&shards) {
        match answer {
            Ok(answer) => assert_eq!(answer.shard, *asked),
            Err(error) => assert_eq!((error.shard, error.why), (*asked, Why::Internal), "{error}"),
        }
    }
    assert_eq!(answers[1].as_ref().unwrap().node, NodeId(3));
}

#[tokio::test]
async fn a_connection_that_breaks_takes_the_reads_on_it_to_others() {
    let cluster = Cluster::start(3, |node, _| if node == 1 { Act::Break } else { read_reply() }).await;
    let shards = five_shards(&cluster).await;
    led_by(&cluster, 1);
    let answers = cluster.forwarder.read_many(&shards, keys, within(5000)).await;
    for answer in answers {
        let answer = answer.unwrap();
        assert!(answer.node != NodeId(1) && answer.attempts >= 2, "{answer:?}");
    }
    assert!(cluster.seen.lock().iter().any(|(node, _)| *node == 1));
}

#[tokio::test]
async fn a_silent_shard_spoils_no_other() {
    let attempt = Duration::from_millis(400);
    let cluster =
        Cluster::with_attempt(
            attempt,
            3,
            |_, request| {
                if request.shard == 2 { Act::Silence } else { read_reply() }
            },
        )
        .await;
    let shards = five_shards(&cluster).await;
    // On several streams, of which one is silent.
    (0..5).zip([1, 2, 3, 1, 2]).for_each(|(id, node)| {
        cluster.forwarder.watch().topology().set_leader(ShardId(id), NodeId(node));
    });
    let answers = cluster.forwarder.read_many(&shards, keys, within(3000)).await;
    let ok: Vec<bool> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(ok, [true, true, false, true, true]);
    let error = answers[2].as_ref().unwrap_err();
    assert_eq!((error.why, error.outcome), (Why::Unavailable, Outcome::NotApplied));
    assert!(error.attempts > 1, "{error:?}");
    // The deadline comes before the attempt is over.
    let answers = cluster.forwarder.read_many(&shards[2..3], keys, within(100)).await;
    assert_eq!(answers[0].as_ref().unwrap_err().why, Why::Unavailable);
    for node in [1, 2, 3] {
        assert_eq!(cluster.forwarder.pool().in_flight(NodeId(node)), Some(0));
    }
}

#[tokio::test]
async fn reads_of_several_shards_are_given_up_together() {
    let cluster = Cluster::start(1, |_, _| Act::Silence).await;
    let shards = five_shards(&cluster).await;
    {
        let mut reading = Box::pin(cluster.forwarder.read_many(&shards, keys, within(60_000)));
        assert!(futures::poll!(&mut reading).is_pending());
        assert_eq!(cluster.forwarder.pool().in_flight(NodeId(1)), Some(5));
    }
    assert_eq!(cluster.forwarder.pool().in_flight(NodeId(1)), Some(0));
    let late = cluster.forwarder.read_many(&shards, keys, Instant::now()).await;
    assert!(late.iter().all(|answer| answer.as_ref().is_err_and(|error| error.why == Why::Unavailable)));
    assert!(cluster.forwarder.read_many(&[], keys, within(1000)).await.is_empty());
}

#[tokio::test]
async fn reads_of_several_shards_pass_nodes_that_cannot_be_reached_and_shards_without_replicas() {
    let cluster = Cluster::start(1, |_, _| read_reply()).await;
    let (addr, _) = dead_node(&cluster).await;
    let mut shards = five_shards(&cluster).await;
    let mut map = cluster.map.borrow().clone();
    map.epoch += 1;
    map.nodes.push(wire::NodeInfo {
        id: 2,
        addr,
        state: wire::NodeState::Member.into(),
        ..Default::default()
    });
    for shard in &mut map.shards {
        let replica = wire::ReplicaInfo { id: 20, node: 2, role: wire::ReplicaRole::Voter.into() };
        shard.replicas.push(replica);
    }
    map.shards[3].replicas.clear();
    let epoch = map.epoch;
    cluster.map.send_replace(map);
    assert!(cluster.forwarder.watch().reached(epoch, within(5000)).await);
    // The first time its connect fails, then its breaker is open. The same shard twice is two reads.
    shards.push((ShardId(0), None));
    for _ in 0..2 {
        led_by(&cluster, 2);
        let answers = cluster.forwarder.read_many(&shards, keys, within(2000)).await;
        assert_eq!(
            answers.iter().map(Result::is_ok).collect::<Vec<_>>(),
            [true, true, true, false, true, true]
        );
        assert_eq!(answers[3].as_ref().unwrap_err().why, Why::Unavailable);
    }
}

/// Which nodes answer `parts` reads that any replica may answer, and all of that freshness.
#[tokio::test]
async fn reads_that_anyone_may_answer_are_spread_and_stay_as_fresh_as_they_were() {
    let cluster = Cluster::start(3, |node, request| {
        let Some(data_request::Op::Read(read)) = &request.op else { panic!("{request:?}") };
        assert_eq!(read.freshness.unwrap().min_index, Some(u64::from(request.shard)));
        if node == 3 { fault(Fault::new(FaultCode::NotFresh, "behind")) } else { read_reply() }
    })
    .await;
    let shards = five_shards(&cluster).await;
    led_by(&cluster, 1);
    let fresh =
        |shard: ShardId| wire::Freshness { min_index: Some(u64::from(shard.get())), max_stale_ms: None };
    let shards: Vec<_> = shards.iter().cycle().take(60).map(|(id, _)| (*id, Some(fresh(*id)))).collect();
    for node in 1..=3 {
        // Only streams that are open take part.
        while cluster.forwarder.pool().in_flight(NodeId(node)) != Some(0) {
            tokio::task::yield_now().await;
        }
    }
    let answers = cluster.forwarder.read_many(&shards, keys, within(5000)).await;
    assert!(answers.iter().all(Result::is_ok));
    let seen = cluster.seen.lock();
    let asked = |node: u64| seen.iter().filter(|(asked, _)| *asked == node).count();
    // What was refused by the third went on to the first.
    let (second, third) = (asked(2), asked(3));
    assert!((15..=25).contains(&second) && (15..=25).contains(&third), "{second} and {third} of 60");
    assert_eq!(seen.len(), 60 + third);
}
