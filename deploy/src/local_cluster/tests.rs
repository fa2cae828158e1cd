use borough_proto::http_api::{NodeStatus, ShardStatus};

use super::*;

fn status(nodes: usize, voters: &[usize]) -> ClusterStatus {
    let node = |id| NodeStatus { id, state: "up".to_owned(), ..NodeStatus::default() };
    let shard = |voters: &usize| ShardStatus {
        leader: (*voters > 0).then_some(1),
        replicas: (1..=*voters as u64).collect(),
        ..ShardStatus::default()
    };
    ClusterStatus {
        replication_factor: 3,
        nodes: (1..=nodes as u64).map(node).collect(),
        shards: voters.iter().map(shard).collect(),
        ..ClusterStatus::default()
    }
}

#[test]
fn ready_is_as_many_voters_as_nodes_and_factor_allow() {
    assert_eq!(unready(&status(1, &[1, 1]), 1), None);
    assert_eq!(unready(&status(3, &[3, 3]), 3), None);
    assert_eq!(unready(&status(5, &[3, 3]), 5), None);
    assert!(unready(&status(3, &[3, 2]), 3).unwrap().contains("1 of 2 shards"));
    assert!(unready(&status(2, &[3]), 3).unwrap().contains("2 of 3 nodes"));
    assert!(unready(&status(3, &[]), 3).is_some());
    let mut leaderless = status(3, &[3]);
    leaderless.shards[0].leader = None;
    assert!(unready(&leaderless, 3).is_some());
}

#[test]
fn a_later_start_has_the_same_ports_and_engine_and_all_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options { engine: Some("fjall".to_owned()), ..Options::new("borough", dir.path()) };
    let mut first = Layout::load(dir.path()).unwrap();
    first.complete(&mut options).unwrap();
    first.add_node().unwrap();
    first.save(dir.path()).unwrap();
    let mut second = Layout::load(dir.path()).unwrap();
    assert_eq!(second, first);
    second.complete(&mut Options::new("borough", dir.path())).unwrap();
    assert_eq!(second, first);
    assert_eq!(second.nodes.len(), 4);
    let mut ports: Vec<_> = first.nodes.iter().flat_map(|ports| [ports.grpc, ports.admin]).collect();
    ports.push(first.router_port);
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 9, "all different");
}

#[test]
fn a_node_added_by_hand_beside_the_others_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    for number in 1..=4 {
        let node = layout::node_dir(dir.path(), number);
        std::fs::create_dir(&node).unwrap();
        std::fs::write(node.join("identity.json"), format!(r#"{{"clusterId":"c","node":{number}}}"#))
            .unwrap();
    }
    let mut layout = Layout::default();
    layout.complete(&mut Options::new("borough", dir.path())).unwrap();
    assert_eq!(layout.nodes.len(), 4);
}

#[tokio::test]
async fn a_node_that_ends_at_once_is_reported_with_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("borough");
    std::fs::write(&script, "#!/bin/sh\necho \"cannot $1\" >&2\nexit 74\n").unwrap();
    let mut permissions = std::fs::metadata(&script).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&script, permissions).unwrap();
    let error = LocalCluster::start(Options::new(&script, dir.path().join("data"))).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("74") && text.contains("cannot node"), "{text}");
}
