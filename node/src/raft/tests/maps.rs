//! How a node that hears nothing more of the catalog's group comes by the map.

use borough_proto::wire::cluster_server::ClusterServer;
use borough_proto::{ClusterMap, NodeId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::growth::{boxed, config, until};
use super::*;
use crate::environment::Environment;
use crate::identity::{DataDir, Identity};
use crate::node::Node;
use crate::rpc::cluster::ClusterService;
use crate::{lifecycle, loops};

/// Tells the others its map, as every node does.
struct Told {
    node: Arc<Node>,
    address: String,
    _dir: tempfile::TempDir,
}

async fn tells(id: u64, join: &[String], tasks: &TaskTracker, stop: &CancellationToken) -> Told {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), EngineKind::Sled, join);
    let node =
        lifecycle::build(config, DataDir::open(dir.path()).unwrap(), Environment::default()).await.unwrap();
    node.identity.set(Identity { cluster_id: "c".to_owned(), node: NodeId(id) }).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder()
        .add_service(ClusterServer::new(ClusterService(Arc::clone(&node))))
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    tasks.spawn(async move { server.await.unwrap() });
    Told { node, address, _dir: dir }
}

/// A map of `epoch` in which the catalog's group is on node 2 alone.
fn map(epoch: u64, addresses: [&str; 3]) -> Arc<ClusterMap> {
    let nodes = (1..).zip(addresses).map(|(id, addr)| wire::NodeInfo {
        id,
        addr: addr.to_owned(),
        ..Default::default()
    });
    let replica = wire::ReplicaInfo { id: 1, node: 2, role: wire::ReplicaRole::Voter.into() };
    let meta = wire::ShardInfo { epoch: 1, replicas: vec![replica], ..Default::default() };
    let map = wire::ClusterMap {
        cluster_id: "c".to_owned(),
        epoch,
        replication_factor: 1,
        nodes: nodes.collect(),
        meta: Some(meta),
        ..Default::default()
    };
    Arc::new(ClusterMap::try_from(map).unwrap())
}

#[test]
fn a_node_that_follows_one_which_hears_nothing_new_asks_others() {
    runtime().block_on(boxed(async {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let current = tells(3, &[], &tasks, &stop).await;
        // Where the map says the catalog's group is; it was taken out of it, and follows nobody here.
        let behind = tells(2, &[], &tasks, &stop).await;
        let node = tells(1, std::slice::from_ref(&current.address), &tasks, &stop).await;
        let addresses = [node.address.as_str(), &behind.address, &current.address];
        for told in [&node, &behind] {
            assert!(told.node.map.offer(map(1, addresses)));
        }
        assert!(current.node.map.offer(map(2, addresses)));
        tasks.spawn(loops::watch_map(Arc::clone(&node.node)));
        until("the newer map comes", async || node.node.map.get().epoch() == 2).await;

        // Who is known to have a newer one is asked at once, wherever the map says the group is.
        assert!(current.node.map.offer(map(3, addresses)));
        until("changes are followed", async || node.node.map.get().epoch() >= 3).await;
        node.node.newer_map.send_replace(Some(NodeId(3)));
        assert!(current.node.map.offer(map(4, addresses)));
        until("changes are followed", async || node.node.map.get().epoch() == 4).await;

        stop.cancel();
        for told in [&node, &behind, &current] {
            told.node.stop.cancel();
        }
        tasks.close();
        tasks.wait().await;
        for told in [&node, &behind, &current] {
            told.node.tasks.close();
            told.node.tasks.wait().await;
            told.node.wal.close();
        }
    }));
}
