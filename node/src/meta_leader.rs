//! Finding the meta leader: what only it can do is done here when this node leads, or forwarded to it.

use std::sync::Arc;
use std::time::Duration;

use borough_proto::wire::cluster_client::ClusterClient;
use borough_proto::{NodeId, wire};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::node::Node;
use crate::raft::{Group, ProposeError, Reply, proposal};

/// Between rounds over all members of the meta group.
const PAUSE: Duration = Duration::from_millis(50);
/// One member's time to answer.
const CALL_MAX: Duration = Duration::from_secs(2);
/// For a quorum to say that this node leads: well within `CALL_MAX`, with what is done after it.
const CONFIRM_MAX: Duration = Duration::from_millis(500);

/// Who is asked.
pub enum Target {
    Local,
    Remote(ClusterClient<Channel>),
}

/// What a member of the meta group answered.
pub enum Asked<T> {
    Done(T),
    /// It does not lead; who does, as far as it knows.
    Elsewhere(Option<NodeId>),
}

/// Why the meta leader did not answer.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    #[error("the cluster is not initialised: run `borough cluster init`")]
    NoCluster,
    #[error("the meta group has no leader that could be reached in time")]
    NoLeader,
}

/// Asks members of the meta group until the leader answers or `deadline` passes.
///
/// # Errors
/// [`MetaError`].
pub async fn ask<T, F>(
    node: &Arc<Node>,
    deadline: Instant,
    call: impl Fn(Target) -> F,
) -> Result<T, MetaError>
where
    F: Future<Output = Option<Asked<T>>>,
{
    let mut hint = None;
    loop {
        let map = node.map.get();
        let Some(meta) = map.meta() else { return Err(MetaError::NoCluster) };
        let local = node.meta().and_then(|group| group.leader_node());
        let members = meta.replicas.iter().map(|replica| NodeId(replica.node));
        let candidates: Vec<NodeId> = hint.take().or(local).into_iter().chain(members).collect();
        for candidate in candidates {
            let target = if candidate == node.node_id() {
                Target::Local
            } else {
                let client = node.peers.address(candidate).and_then(|addr| node.peers.cluster_client(&addr));
                match client {
                    Ok(client) => Target::Remote(client),
                    Err(_) => continue,
                }
            };
            let until = deadline.min(Instant::now() + CALL_MAX);
            match tokio::time::timeout_at(until, call(target)).await {
                Ok(Some(Asked::Done(answer))) => return Ok(answer),
                Ok(Some(Asked::Elsewhere(Some(leader)))) if leader != candidate => {
                    hint = Some(leader);
                    break;
                }
                Ok(Some(Asked::Elsewhere(_)) | None) | Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(MetaError::NoLeader);
            }
        }
        if Instant::now() + PAUSE >= deadline {
            return Err(MetaError::NoLeader);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Puts a command into the catalog, wherever its leader is.
///
/// # Errors
/// [`MetaError`]; the command may then still take effect, and all of them may be sent again.
pub async fn propose(
    node: &Arc<Node>,
    command: wire::CatalogCommand,
    deadline: Instant,
) -> Result<wire::CatalogReply, MetaError> {
    ask(node, deadline, |target| {
        let command = command.clone();
        async move {
            let reply = match target {
                Target::Local => propose_local(node, &command).await,
                Target::Remote(mut client) => client.propose(command).await.ok()?.into_inner(),
            };
            Some(match reply.reply {
                Some(done) if !reply.not_leader => Asked::Done(done),
                _ => Asked::Elsewhere((reply.leader_node != 0).then_some(NodeId(reply.leader_node))),
            })
        }
    })
    .await
}

/// This node's replica of the catalog if it leads, once a quorum was asked: a leader that was stopped does not know that another
/// was elected, and learns it so. Where no quorum answers what it knows is better than nothing.
pub async fn leading(node: &Node) -> Option<Arc<Group>> {
    let meta = node.meta().filter(|meta| meta.is_leader())?;
    match tokio::time::timeout(CONFIRM_MAX, meta.read_index()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "no quorum says that this node leads the catalog's group"),
        Err(_) => tracing::debug!("no quorum says in time that this node leads the catalog's group"),
    }
    // One that hears nobody still counts as leading; who was told of another leader does not.
    Some(meta).filter(|meta| meta.is_leader())
}

/// Puts a command into the catalog if this node leads it.
pub async fn propose_local(node: &Arc<Node>, command: &wire::CatalogCommand) -> wire::ProposeReply {
    let elsewhere = |leader: Option<NodeId>| wire::ProposeReply {
        reply: None,
        not_leader: true,
        leader_node: leader.map_or(0, NodeId::get),
    };
    let Some(meta) = node.meta() else { return elsewhere(None) };
    match meta.propose(proposal(command)).await {
        Ok((_, Reply::Catalog(reply))) => wire::ProposeReply { reply: Some(reply), ..Default::default() },
        Ok((_, Reply::None | Reply::Shard(_) | Reply::Undecodable)) | Err(ProposeError::Unknown(_)) => {
            elsewhere(None)
        }
        Err(ProposeError::NotLeader { leader }) => elsewhere(leader),
    }
}
