//! The network between the hosts: streams in the manner of TCP, whose chunks arrive when the seed says.
//!
//! A chunk takes a millisecond and some more by chance, and never overtakes one of its own stream. Where a way is
//! blocked, what travels on it waits, as TCP would send it again, until the way is free or an end gives up. The end of a
//! process closes its streams; a host without power says nothing, and once it is back it refuses what belongs to streams
//! that it has forgotten.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::{Context, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

use crate::{system, trace};

mod stream;

pub use stream::{Arrived, SimulatedNetwork};

/// 0 is where the clients are, all others are nodes.
pub type HostId = usize;

/// Nanoseconds in the step in which simulated time goes on.
pub const TICK_NS: u64 = 1_000_000;
/// What a stream holds that its reader has not taken.
const WINDOW_BYTES: usize = 1 << 20;
/// Bytes in one chunk.
const CHUNK_BYTES: usize = 64 << 10;
const PORT: &str = "7070";

static NETWORK: Mutex<Option<Network>> = Mutex::new(None);

/// How long chunks take beyond the first millisecond.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// For most, up to so many milliseconds.
    pub usual_ms: u64,
    /// For some, up to so many.
    pub late_ms: u64,
    /// How many are late, from 0 to 1.
    pub late_share: f64,
}

struct Network {
    rng: StdRng,
    weather: Weather,
    /// The host whose code runs now.
    current: HostId,
    hosts: Vec<Machine>,
    streams: BTreeMap<u64, [End; 2]>,
    next_stream: u64,
    /// By the time of arrival; the second number keeps the order of sending.
    travelling: BTreeMap<(u64, u64), Parcel>,
    sent: u64,
    blocked: BTreeSet<(HostId, HostId)>,
    /// What waits on a blocked way.
    held: Vec<Parcel>,
    wakers: Vec<Waker>,
}

struct Machine {
    has_power: bool,
    /// Streams of an earlier process are forgotten.
    process: u64,
    listening: Option<mpsc::UnboundedSender<Arrived>>,
}

/// One end of a stream.
struct End {
    host: HostId,
    process: u64,
    established: bool,
    arrived: VecDeque<Bytes>,
    /// The other end sends no more.
    ended: bool,
    broken: bool,
    /// Sent from here and not yet read there.
    outstanding: usize,
    /// When the last parcel from here arrives.
    last_ns: u64,
    waiting: Vec<Waker>,
}

#[derive(Clone)]
struct Parcel {
    stream: u64,
    /// The end it goes to.
    to: usize,
    what: What,
}

#[derive(Clone)]
enum What {
    Open,
    Opened,
    Data(Bytes),
    End,
    Break,
}

/// Begins, with `hosts` hosts that have power and no process.
pub fn begin(seed: u64, hosts: usize, weather: Weather) {
    let machine = |_| Machine { has_power: true, process: 0, listening: None };
    *NETWORK.lock() = Some(Network {
        rng: StdRng::seed_from_u64(seed),
        weather,
        current: 0,
        hosts: (0..hosts).map(machine).collect(),
        streams: BTreeMap::new(),
        next_stream: 0,
        travelling: BTreeMap::new(),
        sent: 0,
        blocked: BTreeSet::new(),
        held: Vec::new(),
        wakers: Vec::new(),
    });
}

/// The address of a host.
pub fn address(host: HostId) -> String {
    format!("h{host}:{PORT}")
}

/// The host that has this address.
pub fn host_at(addr: &str) -> Option<HostId> {
    addr.strip_prefix('h')?.strip_suffix(PORT)?.strip_suffix(':')?.parse().ok()
}

/// Runs `work` on the network, then wakes whom it concerns.
fn with<T>(work: impl FnOnce(&mut Network) -> T) -> Option<T> {
    let mut network = NETWORK.lock();
    let network_mut = network.as_mut()?;
    let result = work(network_mut);
    let wakers = std::mem::take(&mut network_mut.wakers);
    // A waker may be a task's last handle, whose streams end with it.
    drop(network);
    wakers.into_iter().for_each(Waker::wake);
    Some(result)
}

/// Says whose code runs from now on.
pub fn run_as(host: HostId) {
    with(|network| network.current = host);
}

/// A process starts on `host` and listens.
pub fn start(host: HostId) -> mpsc::UnboundedReceiver<Arrived> {
    let (sender, receiver) = mpsc::unbounded_channel();
    with(|network| {
        if let Some(machine) = network.hosts.get_mut(host) {
            machine.has_power = true;
            machine.process += 1;
            machine.listening = Some(sender);
        }
    });
    receiver
}

/// The process on `host` is gone: its streams break, unless the power went with it.
pub fn stop(host: HostId, with_power: bool) {
    with(|network| {
        let process = network.hosts.get(host).map(|machine| machine.process);
        if !with_power {
            let ends = network
                .streams
                .iter()
                .flat_map(|(&id, ends)| ends.iter().enumerate().map(move |end| (id, end)));
            let own = ends.filter(|(_, (_, end))| end.host == host && Some(end.process) == process);
            let own: Vec<_> =
                own.map(|(stream, (at, _))| Parcel { stream, to: 1 - at, what: What::Break }).collect();
            own.into_iter().for_each(|parcel| network.send(parcel));
        }
        if let Some(machine) = network.hosts.get_mut(host) {
            machine.has_power = !with_power;
            machine.process += 1;
            machine.listening = None;
        }
    });
}

/// The power of the host whose code runs is gone: nothing that its process still says is heard.
pub fn power_fails_here() {
    if let Some(host) = with(|network| network.current) {
        stop(host, true);
    }
}

/// Nothing comes through from one host to the other.
pub fn block(from: HostId, to: HostId) {
    with(|network| network.blocked.insert((from, to)));
}

/// All ways are free again.
pub fn heal() {
    with(Network::heal);
}

/// From now on chunks take so long.
pub fn set_weather(weather: Weather) {
    with(|network| network.weather = weather);
}

/// Delivers what arrives up to now.
pub fn deliver() {
    while let Some(Some(())) = with(Network::deliver_next) {}
}

impl Network {
    fn send(&mut self, parcel: Parcel) {
        let Some(from) = self.end_mut(parcel.stream, 1 - parcel.to) else { return };
        let (host, process) = (from.host, from.process);
        let lives = |machine: &Machine| machine.has_power && machine.process == process;
        if self.hosts.get(host).is_some_and(lives) {
            self.travel(parcel);
        }
    }

    fn travel(&mut self, parcel: Parcel) {
        let late = self.rng.random_bool(self.weather.late_share);
        let most = if late { self.weather.late_ms } else { self.weather.usual_ms };
        let takes = TICK_NS * (1 + self.rng.random_range(0..=most));
        let Some(from) = self.end_mut(parcel.stream, 1 - parcel.to) else { return };
        let at = (system::now_ns() + takes).max(from.last_ns);
        from.last_ns = at;
        self.sent += 1;
        self.travelling.insert((at, self.sent), parcel);
    }

    /// Sends what was held again, and behind it what has been sent on the same streams since.
    fn heal(&mut self) {
        self.blocked.clear();
        let held = std::mem::take(&mut self.held);
        let ways: BTreeSet<(u64, usize)> = held.iter().map(|parcel| (parcel.stream, parcel.to)).collect();
        let travelling = std::mem::take(&mut self.travelling);
        let (behind, others) =
            travelling.into_iter().partition(|(_, parcel)| ways.contains(&(parcel.stream, parcel.to)));
        self.travelling = others;
        let behind: BTreeMap<(u64, u64), Parcel> = behind;
        for &(stream, to) in &ways {
            if let Some(from) = self.end_mut(stream, 1 - to) {
                from.last_ns = 0;
            }
        }
        for parcel in held.into_iter().chain(behind.into_values()) {
            self.travel(parcel);
        }
    }

    /// `None` when nothing more arrives now.
    fn deliver_next(&mut self) -> Option<()> {
        let next = self.travelling.first_entry()?;
        if next.key().0 > system::now_ns() {
            return None;
        }
        let parcel = next.remove();
        let Some([first, second]) = self.streams.get(&parcel.stream) else { return Some(()) };
        let (from, to) = if parcel.to == 0 { (second.host, first.host) } else { (first.host, second.host) };
        if self.blocked.contains(&(from, to)) {
            self.held.push(parcel);
        } else {
            self.arrive(parcel, from, to);
        }
        Some(())
    }

    fn arrive(&mut self, parcel: Parcel, from: HostId, to: HostId) {
        let (name, bytes) = match &parcel.what {
            What::Open => ("open", None),
            What::Opened => ("opened", None),
            What::Data(data) => ("data", Some(data.clone())),
            What::End => ("end", None),
            What::Break => ("break", None),
        };
        let (length, hash) = bytes.map_or((0, 0), |data| (data.len(), xxh3_64(&data)));
        trace::event(format_args!("h{from} → h{to} #{} {name} {length} {hash:016x}", parcel.stream));
        let Some(machine) = self.hosts.get(to) else { return };
        if !machine.has_power {
            return;
        }
        let process = machine.process;
        let answer = |what| Parcel { stream: parcel.stream, to: 1 - parcel.to, what };
        let Some(end) = self.streams.get_mut(&parcel.stream).and_then(|ends| ends.get_mut(parcel.to)) else {
            return;
        };
        match parcel.what {
            What::Open => {
                end.process = process;
                let listening = machine.listening.as_ref();
                end.established =
                    listening.is_some_and(|listening| listening.send(Arrived(parcel.stream)).is_ok());
                let reply = if end.established { What::Opened } else { What::Break };
                self.send(answer(reply));
            }
            _ if end.process != process => {
                // For a process that is gone: the machine says so, once for each chunk, and to nothing else.
                if !matches!(parcel.what, What::Data(_)) {
                    return;
                }
                end.process = process;
                self.send(answer(What::Break));
                if let Some(end) =
                    self.streams.get_mut(&parcel.stream).and_then(|ends| ends.get_mut(parcel.to))
                {
                    end.process = u64::MAX;
                }
            }
            What::Opened => end.established = true,
            What::Data(data) => end.arrived.push_back(data),
            What::End => end.ended = true,
            What::Break => end.broken = true,
        }
        if let Some(end) = self.streams.get_mut(&parcel.stream).and_then(|ends| ends.get_mut(parcel.to)) {
            self.wakers.append(&mut end.waiting);
        }
    }

    fn end_mut(&mut self, stream: u64, at: usize) -> Option<&mut End> {
        self.streams.get_mut(&stream)?.get_mut(at)
    }
}

impl End {
    fn new(host: HostId, process: u64) -> Self {
        Self {
            host,
            process,
            established: false,
            arrived: VecDeque::new(),
            ended: false,
            broken: false,
            outstanding: 0,
            last_ns: 0,
            waiting: Vec::new(),
        }
    }

    fn wait(&mut self, context: &Context<'_>) {
        if !self.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            self.waiting.push(context.waker().clone());
        }
    }
}
