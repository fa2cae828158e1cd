//! Connections between callers and routers, which break in the middle of a call.
//!
//! A proxy stands in front of each router. It takes a caller's request whole, and then may let only a part of it through,
//! or all of it and no answer, or a part of the answer, before it breaks both connections. Where it breaks is drawn from the
//! run's seed. Whatever the caller then believes, it cannot know whether its call was carried out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::proxy::listener;

const CHUNK_BYTES: usize = 16 << 10;
/// Longer requests pass as they come.
const REQUEST_BYTES_MAX: usize = 16 << 20;

/// Where a call breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The router gets a part of the request.
    InRequest,
    /// The router gets it all; nobody waits for the answer.
    AfterRequest,
    /// The router has answered; the caller hears nothing.
    BeforeAnswer,
    /// The caller hears a part.
    InAnswer,
}

const CUTS: [Cut; 4] = [Cut::InRequest, Cut::AfterRequest, Cut::BeforeAnswer, Cut::InAnswer];

/// How a connection ended.
enum End {
    /// By itself.
    Closed,
    /// Both sides see a reset, or a close where `gently`.
    Broken { gently: bool },
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    /// Share of calls that are cut, by fault.
    shares: Mutex<BTreeMap<usize, f64>>,
    connections: AtomicU64,
    cuts: AtomicU64,
}

/// The proxies in front of all routers; they end when this is dropped.
#[derive(Debug)]
pub struct Callers {
    shared: Arc<Shared>,
    bases: Vec<String>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Callers {
    /// Nothing is cut until [`Callers::set`].
    pub fn new(seed: u64) -> Self {
        let shared = Shared {
            seed,
            shares: Mutex::default(),
            connections: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
        };
        Self {
            shared: Arc::new(shared),
            bases: Vec::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Puts a proxy in front of the router at `base`, such as `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn attach(&mut self, base: &str) -> anyhow::Result<()> {
        let listener = listener()?;
        self.bases.push(format!("http://{}", listener.local_addr()?));
        let target = base.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let (shared, tasks, stop) = (Arc::clone(&self.shared), self.tasks.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                // What cannot be accepted was given up by its caller.
                let Ok((client, _)) = accepted else { continue };
                let carried = carry(client, target.clone(), Arc::clone(&shared));
                tasks.spawn(stop.clone().run_until_cancelled_owned(carried));
            }
        });
        Ok(())
    }

    /// Where callers reach the routers, in the order in which they were attached.
    pub fn bases(&self) -> &[String] {
        &self.bases
    }

    /// Calls that were cut so far.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }

    /// From now on this share of calls is cut, as long as the fault lasts.
    pub fn set(&self, fault: usize, share: f64) {
        self.shared
            .shares
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(fault, share.clamp(0.0, 1.0));
    }

    /// Ends a fault.
    pub fn clear(&self, fault: usize) {
        self.shared.shares.lock().unwrap_or_else(PoisonError::into_inner).remove(&fault);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.shared.shares.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
    }
}

impl Shared {
    /// Whether the next call is cut, and where.
    fn draw(&self, rng: &mut StdRng) -> Option<Cut> {
        let shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let share = shares.values().copied().fold(0.0, f64::max);
        drop(shares);
        // Drawn in any case, so that what is drawn next does not depend on when faults come.
        let (cut, at) = (rng.random_bool(share), rng.random_range(0..CUTS.len()));
        CUTS.get(at).copied().filter(|_| cut)
    }
}

/// A caller's connection, until it ends.
async fn carry(mut client: TcpStream, target: String, shared: Arc<Shared>) {
    let number = shared.connections.fetch_add(1, Ordering::Relaxed);
    let mut rng = StdRng::seed_from_u64(shared.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let Ok(mut server) = TcpStream::connect(target).await else {
        let _ = client.set_zero_linger();
        return;
    };
    // Both fail only when the connection is gone already.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let end = relay(&mut client, &mut server, &mut rng, &shared).await;
    if !matches!(end, Ok(End::Closed | End::Broken { gently: true })) {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Requests and answers in turn, as HTTP/1.1 has them.
async fn relay(
    client: &mut TcpStream,
    server: &mut TcpStream,
    rng: &mut StdRng,
    shared: &Shared,
) -> std::io::Result<End> {
    loop {
        let Some(begun) = answers(client, server).await? else { return Ok(End::Closed) };
        let request = match whole(begun, client).await? {
            Ok(request) => request,
            Err(other) => {
                // Of a form that is not looked into: everything passes from here on.
                server.write_all(&other).await?;
                copy_bidirectional(client, server).await?;
                return Ok(End::Closed);
            }
        };
        let Some(cut) = shared.draw(rng) else {
            server.write_all(&request).await?;
            continue;
        };
        shared.cuts.fetch_add(1, Ordering::Relaxed);
        return carry_cut(cut, &request, client, server, rng).await;
    }
}

/// A call that is cut there.
async fn carry_cut(
    cut: Cut,
    request: &[u8],
    client: &mut TcpStream,
    server: &mut TcpStream,
    rng: &mut StdRng,
) -> std::io::Result<End> {
    if cut == Cut::InRequest {
        let part = rng.random_range(0..request.len().max(1));
        server.write_all(request.get(..part).unwrap_or_default()).await?;
        return Ok(End::Broken { gently: rng.random_bool(0.5) });
    }
    server.write_all(request).await?;
    if cut == Cut::AfterRequest {
        // A reset could overtake what was sent.
        return Ok(End::Broken { gently: true });
    }
    let mut answer = vec![0; CHUNK_BYTES];
    let count = server.read(&mut answer).await?;
    if cut == Cut::InAnswer {
        let part = rng.random_range(0..count.max(1));
        client.write_all(answer.get(..part).unwrap_or_default()).await?;
    }
    Ok(End::Broken { gently: rng.random_bool(0.5) })
}

/// Passes answers on until the next request begins; `None` when the connection has ended.
async fn answers(client: &mut TcpStream, server: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let (mut request, mut answer) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    loop {
        tokio::select! {
            read = client.read(&mut request) => {
                let count = read?;
                if count == 0 {
                    // It may still read: it gets what is on its way.
                    server.shutdown().await?;
                    tokio::io::copy(server, client).await?;
                    return Ok(None);
                }
                request.truncate(count);
                return Ok(Some(request));
            }
            read = server.read(&mut answer) => {
                let count = read?;
                if count == 0 {
                    client.shutdown().await?;
                    return Ok(None);
                }
                client.write_all(answer.get(..count).unwrap_or_default()).await?;
            }
        }
    }
}

/// The rest of a request; inside, what has come so far of one whose end cannot be told.
async fn whole(begun: Vec<u8>, client: &mut TcpStream) -> std::io::Result<Result<Vec<u8>, Vec<u8>>> {
    let mut request = begun;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match length(&request) {
            Length::Known(length) if request.len() == length => return Ok(Ok(request)),
            Length::Known(length) if request.len() < length && length <= REQUEST_BYTES_MAX => {}
            Length::Open if request.len() <= REQUEST_BYTES_MAX => {}
            Length::Known(_) | Length::Open | Length::Untold => return Ok(Err(request)),
        }
        match client.read(&mut chunk).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => request.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
    }
}

/// How long a request is, as far as its begin tells.
#[derive(Debug, PartialEq, Eq)]
enum Length {
    /// In bytes, head and body.
    Known(usize),
    /// Its head is not whole.
    Open,
    /// It says so in another way than by `Content-Length`.
    Untold,
}

fn length(request: &[u8]) -> Length {
    const END: &[u8] = b"\r\n\r\n";
    let Some(head) = request.windows(END.len()).position(|window| window == END) else { return Length::Open };
    let text = String::from_utf8_lossy(request.get(..head).unwrap_or_default()).to_ascii_lowercase();
    let field = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(field, _)| *field == name).map(|(_, value)| value.trim().to_owned())
    };
    if field("transfer-encoding").is_some() || field("expect").is_some() || field("upgrade").is_some() {
        return Length::Untold;
    }
    match field("content-length").map(|value| value.parse::<usize>()) {
        None => Length::Known(head + END.len()),
        Some(Ok(body)) => Length::Known((head + END.len()).saturating_add(body)),
        Some(Err(_)) => Length::Untold,
    }
}

#[cfg(test)]
#[path = "callers_tests.rs"]
mod tests;
