//! Links between processes, which can be held, slowed and broken without any privilege.
//!
//! Each node advertises the address of a proxy of its own, and every process makes its connections from an address of its
//! own out of 127.0.0.0/8 (`outbound-address`), so the proxy knows both ends of a connection. A rule concerns one
//! direction of one link: what is held is delivered when the rule goes, as TCP would after a partition. A dead process
//! shows itself to its peers as long as the link back passes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const CHUNK_BYTES: usize = 16 << 10;
/// Chunks on their way in one direction of a connection, at most.
const CHUNKS_MAX: usize = 256;

/// Who is at one end of a link, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    Node(u8),
    Router(u8),
    /// Everybody else: no rule concerns them.
    Outside,
}

impl End {
    /// The address that its connections come from.
    pub fn outbound(self) -> Option<Ipv4Addr> {
        match self {
            Self::Node(number) => Some(Ipv4Addr::new(127, 0, 1, number)),
            Self::Router(number) => Some(Ipv4Addr::new(127, 0, 2, number)),
            Self::Outside => None,
        }
    }

    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => match v4.octets() {
                [127, 0, 1, number] => Self::Node(number),
                [127, 0, 2, number] => Self::Router(number),
                _ => Self::Outside,
            },
            IpAddr::V6(_) => Self::Outside,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(number) => write!(f, "node-{number}"),
            Self::Router(number) => write!(f, "router-{number}"),
            Self::Outside => write!(f, "outside"),
        }
    }
}

/// What happens to bytes from one end to another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rule {
    /// Nothing passes until the rule goes.
    pub hold: bool,
    pub delay: Duration,
    /// Probability that a chunk breaks its connection in place of being delivered.
    pub reset: f64,
}

/// One direction of a link.
pub type Way = (End, End);

/// Rules of one fault.
pub type Rules = Vec<(Way, Rule)>;

#[derive(Debug)]
struct Shared {
    /// By fault, so that faults may overlap.
    rules: Mutex<BTreeMap<usize, Rules>>,
    changed: watch::Sender<()>,
}

/// All proxies of a cluster; they end when this is dropped.
#[derive(Debug)]
pub struct Links {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Default for Links {
    fn default() -> Self {
        let shared = Shared { rules: Mutex::default(), changed: watch::Sender::new(()) };
        Self { shared: Arc::new(shared), tasks: TaskTracker::new(), stop: CancellationToken::new() }
    }
}

impl Links {
    /// Puts a proxy in front of `target`, the address on which `end` listens, and gives the proxy's address.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn attach(&self, end: End, target: &str) -> anyhow::Result<String> {
        let listener = listener()?;
        let address = listener.local_addr().context("address of a proxy")?.to_string();
        let (shared, target) = (Arc::clone(&self.shared), target.to_owned());
        let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                // What cannot be accepted was given up by its caller.
                let Ok((client, peer)) = accepted else { continue };
                let way = (End::of(peer.ip()), end);
                let carried = carry(client, target.clone(), way, Arc::clone(&shared));
                tasks.spawn(stop.clone().run_until_cancelled_owned(carried));
            }
        });
        Ok(address)
    }

    /// Adds the rules of a fault; those of other faults stay.
    pub fn set(&self, fault: usize, rules: Rules) {
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).insert(fault, rules);
        self.shared.changed.send_replace(());
    }

    /// Takes the rules of a fault away.
    pub fn clear(&self, fault: usize) {
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).remove(&fault);
        self.shared.changed.send_replace(());
    }

    /// Takes all rules away.
    pub fn heal(&self) {
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.shared.changed.send_replace(());
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
    }
}

impl Shared {
    /// The sum of what all faults want.
    fn rule(&self, way: Way) -> Rule {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let of_way = rules.values().flatten().filter(|(of, _)| *of == way);
        of_way.fold(Rule::default(), |sum, (_, rule)| Rule {
            hold: sum.hold || rule.hold,
            delay: sum.delay.max(rule.delay),
            reset: sum.reset.max(rule.reset),
        })
    }

    /// Waits until nothing holds this way.
    async fn pass(&self, way: Way) -> Rule {
        let mut changed = self.changed.subscribe();
        loop {
            let rule = self.rule(way);
            if !rule.hold {
                return rule;
            }
            // The sender lives as long as this.
            let _ = changed.changed().await;
        }
    }
}

/// On a port of the system's choice.
///
/// # Errors
/// When none can be bound.
pub(crate) fn listener() -> anyhow::Result<TcpListener> {
    let bound = std::net::TcpListener::bind("127.0.0.1:0").context("bind a proxy")?;
    bound.set_nonblocking(true).context("bind a proxy")?;
    TcpListener::from_std(bound).context("bind a proxy")
}

/// A connection, until it ends.
async fn carry(mut client: TcpStream, target: String, way: Way, shared: Arc<Shared>) {
    let back = (way.1, way.0);
    // A handshake needs both ways.
    shared.pass(way).await;
    shared.pass(back).await;
    let Ok(mut server) = TcpStream::connect(target).await else {
        // The news of it travel the other way, which may have been held meanwhile.
        shared.pass(back).await;
        let _ = client.set_zero_linger();
        return;
    };
    // Both fail only when the connection is gone already.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_reads, client_writes) = client.split();
    let (server_reads, server_writes) = server.split();
    let forth = pump(client_reads, server_writes, way, &shared);
    let carried = tokio::try_join!(forth, pump(server_reads, client_writes, back, &shared));
    if carried.is_err() {
        // Broken, not closed: neither end may take what it has for all there was.
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// A chunk and when it came; an empty one is the end.
type Chunk = (Instant, std::io::Result<Vec<u8>>);

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    shared: &Shared,
) -> std::io::Result<()> {
    let (sender, mut chunks) = mpsc::channel::<Chunk>(CHUNKS_MAX);
    let read = async move {
        loop {
            let mut bytes = vec![0; CHUNK_BYTES];
            let chunk = from.read(&mut bytes).await.map(|count| {
                bytes.truncate(count);
                bytes
            });
            let last = chunk.as_ref().is_ok_and(Vec::is_empty) || chunk.is_err();
            if sender.send((Instant::now(), chunk)).await.is_err() || last {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((came, chunk)) = chunks.recv().await {
            let rule = shared.pass(way).await;
            tokio::time::sleep_until((came + rule.delay).into()).await;
            // It may have been held meanwhile.
            shared.pass(way).await;
            let chunk = chunk?;
            if rule.reset > 0.0 && rand::random_bool(rule.reset.min(1.0)) {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            if chunk.is_empty() {
                return to.shutdown().await;
            }
            if let Err(error) = to.write_all(&chunk).await {
                // The news of it travel the other way.
                shared.pass((way.1, way.0)).await;
                return Err(error);
            }
        }
        Ok(())
    };
    tokio::try_join!(read, write).map(|_| ())
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
