//! Items that each need a number of distinct bins, and bins that should carry the same: which item goes where.
//!
//! Used three times with different meanings: replicas over zones, replicas over the nodes of one zone, and
//! leaders over nodes. It is a transport problem with a cost of one for every bin an item did not start in.
//! [`Field::settle`] solves it exactly, by shortest augmenting paths with prices, so that the number of new bins
//! is the smallest one for the loads asked for.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

/// What an item has to do with one bin.
#[derive(Debug, Clone, Copy)]
struct Entry {
    bin: usize,
    /// The item was in the bin before planning.
    start: bool,
    /// The item is in the bin now.
    here: bool,
    /// The item may never be in the bin.
    barred: bool,
    /// The bin's list names the item already.
    listed: bool,
}

#[derive(Debug, Clone)]
struct Item {
    demand: usize,
    here: usize,
    weight: f64,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Default)]
struct Bin {
    count: usize,
    /// Sum of the weights of the items in the bin.
    load: f64,
    /// Nodes behind the bin: what it carries is spread evenly over these.
    span: usize,
    /// Items that are or once were in the bin, in the order they were put in.
    on: Vec<usize>,
    /// The bin ends with `floor + slot` items, `slot` at most `room`.
    floor: usize,
    room: usize,
    slot: usize,
    pool: usize,
}

impl Bin {
    /// How high the fullest node behind the bin stands.
    fn top(&self) -> usize {
        self.count.div_ceil(self.span.max(1))
    }

    /// How high one more item would stand.
    fn next(&self) -> usize {
        (self.count + 1).div_ceil(self.span.max(1))
    }

    fn over(&self) -> bool {
        self.count > self.floor + self.slot
    }

    fn lack(&self) -> usize {
        (self.floor + self.slot).saturating_sub(self.count)
    }
}

/// Bins that share a number of slots: `want` of all their slots are used at the end.
#[derive(Debug, Clone, Default)]
struct Pool {
    want: usize,
    used: usize,
    members: Vec<usize>,
}

/// The items and the bins.
#[derive(Debug, Clone)]
pub(super) struct Field {
    items: Vec<Item>,
    bins: Vec<Bin>,
    pools: Vec<Pool>,
    /// Items may go to every bin that isn't barred, else only to those named.
    anywhere: bool,
    /// The weights decide between equal choices.
    weighted: bool,
}

impl Field {
    /// Bins as (nodes behind the bin, what it carries that no item stands for).
    pub(super) fn new(bins: impl Iterator<Item = (usize, usize)>, anywhere: bool, weighted: bool) -> Self {
        let bins = bins.map(|(span, count)| Bin { span, count, ..Bin::default() }).collect();
        Field { items: Vec::new(), bins, pools: Vec::new(), anywhere, weighted }
    }

    /// Adds an item that needs `demand` bins. Where bins give, they give the items added first.
    pub(super) fn item(&mut self, demand: usize, weight: f64) -> usize {
        self.items.push(Item { demand, here: 0, weight, entries: Vec::new() });
        self.items.len() - 1
    }

    /// The item is in the bin.
    pub(super) fn start(&mut self, item: usize, bin: usize) {
        self.put(item, bin, true);
        if let Some(entry) = self.entry_mut(item, bin) {
            entry.start = true;
        }
    }

    /// The item may go to the bin.
    pub(super) fn allow(&mut self, item: usize, bin: usize) {
        self.name(item, bin, false);
    }

    /// The item must not go to the bin.
    pub(super) fn bar(&mut self, item: usize, bin: usize) {
        self.name(item, bin, true);
    }

    /// The bins the item is in.
    pub(super) fn bins_of(&self, item: usize) -> impl Iterator<Item = usize> + '_ {
        self.items.get(item).into_iter().flat_map(|item| &item.entries).filter(|e| e.here).map(|e| e.bin)
    }

    fn name(&mut self, item: usize, bin: usize, barred: bool) {
        if let Some(item) = self.items.get_mut(item) {
            item.entries.push(Entry { bin, start: false, here: false, barred, listed: false });
        }
    }

    fn entry(&self, item: usize, bin: usize) -> Option<&Entry> {
        self.items.get(item)?.entries.iter().find(|e| e.bin == bin)
    }

    fn entry_mut(&mut self, item: usize, bin: usize) -> Option<&mut Entry> {
        self.items.get_mut(item)?.entries.iter_mut().find(|e| e.bin == bin)
    }

    fn is_here(&self, item: usize, bin: usize) -> bool {
        self.entry(item, bin).is_some_and(|e| e.here)
    }

    /// Puts the item into the bin or takes it out.
    fn put(&mut self, item: usize, bin: usize, here: bool) {
        if self.entry(item, bin).is_none() {
            self.name(item, bin, false);
        }
        let Some(entry) = self.entry_mut(item, bin) else { return };
        if entry.here == here {
            return;
        }
        entry.here = here;
        let list = here && !entry.listed;
        entry.listed |= list;
        let Some(of) = self.items.get_mut(item) else { return };
        let Some(to) = self.bins.get_mut(bin) else { return };
        if here {
            of.here += 1;
            to.count += 1;
            to.load += of.weight;
        } else {
            of.here = of.here.saturating_sub(1);
            to.count = to.count.saturating_sub(1);
            to.load -= of.weight;
        }
        if list {
            to.on.push(item);
        }
    }

    /// Asks for the same number of items in every bin, give or take one. Right when every item may go to every
    /// bin.
    pub(super) fn level_all(&mut self) {
        let total: usize = self.items.iter().map(|item| item.demand).sum();
        let bins = self.bins.len().max(1);
        let mut pool = Pool { want: total % bins, ..Pool::default() };
        for (at, bin) in self.bins.iter_mut().enumerate() {
            (bin.floor, bin.room, bin.pool) = (total / bins, 1, 0);
            pool.members.push(at);
        }
        self.pools = vec![pool];
    }

    /// Asks for the most even loads that the items allow: no chain of shifts can lower a high bin or raise a low
    /// one. Bins that hinder each other form a pool, within which it is open who carries the odd ones.
    pub(super) fn level(&mut self) {
        let mut trial = self.clone();
        trial.meet_demands();
        let mut settled = vec![false; trial.bins.len()];
        self.pools.clear();
        let mut last = 0;
        loop {
            let highest = trial
                .bins
                .iter()
                .zip(&settled)
                .enumerate()
                .filter(|(_, (_, settled))| !**settled)
                .max_by_key(|(at, (bin, _))| (bin.top(), Reverse(*at)));
            let Some((from, (bin, _))) = highest else { return };
            let top = bin.top().max(1);
            match trial.relief(from, &settled) {
                Ok(path) => {
                    for (item, from, to) in path {
                        trial.put(item, from, false);
                        trial.put(item, to, true);
                    }
                }
                Err(closed) => {
                    // Bins of one height are one pool, also those that don't reach each other: a bin of this height
                    // may give one to a bin one lower in a pool found before, at no change in evenness.
                    let mut pool = match self.pools.pop() {
                        Some(pool) if last == top => pool,
                        before => {
                            self.pools.extend(before);
                            Pool::default()
                        }
                    };
                    last = top;
                    for at in closed {
                        let Some(count) = trial.bins.get(at).map(|bin| bin.count) else { continue };
                        if let Some(settled) = settled.get_mut(at) {
                            *settled = true;
                        }
                        if let Some(bin) = self.bins.get_mut(at) {
                            (bin.floor, bin.room, bin.pool) =
                                ((top - 1) * bin.span, bin.span, self.pools.len());
                            pool.want += count.saturating_sub(bin.floor);
                            pool.members.push(at);
                        }
                    }
                    self.pools.push(pool);
                }
            }
        }
    }

    /// Gives every item its number of bins, the lowest ones first.
    fn meet_demands(&mut self) {
        let mut by_next: BTreeSet<(usize, usize)> = BTreeSet::new();
        if self.anywhere {
            by_next.extend(self.bins.iter().enumerate().map(|(at, bin)| (bin.next(), at)));
        }
        for at in 0..self.items.len() {
            while let Some(item) = self.items.get(at)
                && item.here != item.demand
            {
                let more = item.here < item.demand;
                let bin = if !more {
                    let here = item.entries.iter().filter(|e| e.here).map(|e| e.bin);
                    here.max_by_key(|bin| (self.bins.get(*bin).map(Bin::top), *bin))
                } else if self.anywhere {
                    let bad = |bin: usize| self.entry(at, bin).is_some_and(|e| e.here || e.barred);
                    by_next.iter().map(|(_, bin)| *bin).find(|bin| !bad(*bin))
                } else {
                    let free = item.entries.iter().filter(|e| !e.here && !e.barred).map(|e| e.bin);
                    free.min_by_key(|bin| (self.bins.get(*bin).map(Bin::next), *bin))
                };
                let Some(bin) = bin else { break };
                let next = |field: &Field| field.bins.get(bin).map_or(0, Bin::next);
                by_next.remove(&(next(self), bin));
                self.put(at, bin, more);
                if self.anywhere {
                    by_next.insert((next(self), bin));
                }
            }
        }
    }

    /// The shortest chain of shifts (item, from, to) that takes one item from the bin and ends at a bin where it
    /// stands lower; or the bins that can be reached, none of which is lower.
    fn relief(&self, start: usize, settled: &[bool]) -> Result<Vec<(usize, usize, usize)>, Vec<usize>> {
        let top = self.bins.get(start).map_or(0, Bin::top);
        let mut seen = settled.to_vec();
        let mut parent: Vec<Option<(usize, usize)>> = vec![None; self.bins.len()];
        let mut reached = vec![start];
        if let Some(seen) = seen.get_mut(start) {
            *seen = true;
        }
        let mut unseen: Vec<usize> = (0..seen.len()).filter(|b| seen.get(*b) == Some(&false)).collect();
        let mut left = unseen.len();
        let mut layer = 0..1;
        while !layer.is_empty() {
            let end = reached.len();
            'layer: for at in layer {
                let Some(from) = reached.get(at).copied() else { break };
                for &item in self.bins.get(from).map_or(&[][..], |bin| &bin.on) {
                    if left == 0 {
                        break 'layer;
                    }
                    if !self.is_here(item, from) {
                        continue;
                    }
                    let mut visit = |bin: usize, reached: &mut Vec<usize>| {
                        let Some(seen) = seen.get_mut(bin) else { return };
                        if *seen {
                            return;
                        }
                        *seen = true;
                        left -= 1;
                        reached.push(bin);
                        if let Some(parent) = parent.get_mut(bin) {
                            *parent = Some((item, from));
                        }
                    };
                    let entries = self.items.get(item).map_or(&[][..], |item| &item.entries);
                    for entry in entries.iter().filter(|e| !e.here && !e.barred) {
                        visit(entry.bin, &mut reached);
                    }
                    if self.anywhere {
                        unseen.retain(|bin| {
                            let named = entries.iter().any(|e| e.bin == *bin);
                            if !named {
                                visit(*bin, &mut reached);
                            }
                            named
                        });
                    }
                }
            }
            let lowest = reached
                .iter()
                .skip(end)
                .filter_map(|bin| Some((self.bins.get(*bin)?.next(), *bin)))
                .filter(|(next, _)| *next < top)
                .min();
            if let Some((_, mut to)) = lowest {
                let mut path = Vec::new();
                while let Some((item, from)) = parent.get(to).copied().flatten() {
                    path.push((item, from, to));
                    to = from;
                }
                return Ok(path);
            }
            layer = end..reached.len();
        }
        Err(reached)
    }

    /// Brings every item to its demand and every bin to its load, with the fewest new bins.
    pub(super) fn settle(&mut self) {
        for bin in &mut self.bins {
            bin.slot = bin.count.saturating_sub(bin.floor).min(bin.room);
            if let Some(pool) = self.pools.get_mut(bin.pool) {
                pool.used += bin.slot;
            }
        }
        self.drop_direct();
        let mut walk = Walk::new(self);
        // A price says how many new bins it takes at least to get there. None is further than all bins in a row.
        for round in 0..self.bins.len() * 2 + 4 {
            let mut done = true;
            for at in 0..walk.vertices.len() {
                let Some(vertex) = walk.vertices.get(at).copied() else { continue };
                while self.has_excess(vertex) {
                    if !self.augment(&mut walk, at, vertex) {
                        done = false;
                        break;
                    }
                }
            }
            if done {
                return;
            }
            walk.raise();
            if round == 0 {
                self.settle_direct();
            }
        }
    }

    /// More flows in than may: an item with too few bins, a bin with too many items, a pool with too many slots.
    fn has_excess(&self, vertex: Vertex) -> bool {
        match vertex {
            Vertex::Item(at) => self.items.get(at).is_some_and(|item| item.here < item.demand),
            Vertex::Bin(at) => self.bins.get(at).is_some_and(Bin::over),
            Vertex::Pool(at) => self.pools.get(at).is_some_and(|pool| pool.used > pool.want),
        }
    }

    fn has_lack(&self, vertex: Vertex) -> bool {
        match vertex {
            Vertex::Item(at) => self.items.get(at).is_some_and(|item| item.here > item.demand),
            Vertex::Bin(at) => self.bins.get(at).is_some_and(|bin| bin.lack() > 0),
            Vertex::Pool(at) => self.pools.get(at).is_some_and(|pool| pool.used < pool.want),
        }
    }

    /// One step from the vertex to a place that lacks something, over edges that the prices call shortest.
    fn augment(&mut self, walk: &mut Walk, source: usize, vertex: Vertex) -> bool {
        if !walk.begin(source) {
            return false;
        }
        let mut next = Some(vertex);
        let mut end = None;
        'search: while let Some(from) = next {
            let at = walk.index(from);
            let price = walk.price(at);
            match from {
                Vertex::Item(item) => {
                    let entries = self.items.get(item).map_or(&[][..], |item| &item.entries);
                    for entry in entries.iter().filter(|e| !e.here && !e.barred) {
                        let to = Vertex::Bin(entry.bin);
                        if walk.visit(at, to, price + u32::from(!entry.start)) && self.has_lack(to) {
                            end = Some(to);
                            break 'search;
                        }
                    }
                    if self.anywhere {
                        let mut unseen = walk.take_unseen(price + 1);
                        unseen.retain(|bin| {
                            if end.is_some() || entries.iter().any(|e| e.bin == *bin) {
                                return true;
                            }
                            let to = Vertex::Bin(*bin);
                            if walk.visit(at, to, price + 1) && self.has_lack(to) {
                                end = Some(to);
                            }
                            false
                        });
                        walk.give_unseen(price + 1, unseen);
                        if end.is_some() {
                            break 'search;
                        }
                    }
                }
                Vertex::Bin(bin_at) => {
                    let Some(bin) = self.bins.get(bin_at) else { break };
                    if bin.slot < bin.room {
                        let to = Vertex::Pool(bin.pool);
                        if walk.visit(at, to, price) && self.has_lack(to) {
                            end = Some(to);
                            break 'search;
                        }
                    }
                    for &item in &bin.on {
                        let Some(entry) = self.entry(item, bin_at).filter(|e| e.here) else { continue };
                        let to = Vertex::Item(item);
                        let Some(price) = price.checked_sub(u32::from(!entry.start)) else { continue };
                        if walk.visit(at, to, price) && self.has_lack(to) {
                            end = Some(to);
                            break 'search;
                        }
                    }
                }
                Vertex::Pool(pool) => {
                    for &bin in self.pools.get(pool).map_or(&[][..], |pool| &pool.members) {
                        if self.bins.get(bin).is_some_and(|bin| bin.slot > 0) {
                            let to = Vertex::Bin(bin);
                            if walk.visit(at, to, price) && self.has_lack(to) {
                                end = Some(to);
                                break 'search;
                            }
                        }
                    }
                }
            }
            next = walk.next();
        }
        let Some(mut to) = end else {
            walk.bury();
            return false;
        };
        while let Some(from) = walk.parent(to) {
            self.push(from, to);
            to = from;
        }
        true
    }

    fn push(&mut self, from: Vertex, to: Vertex) {
        match (from, to) {
            (Vertex::Item(item), Vertex::Bin(bin)) => self.put(item, bin, true),
            (Vertex::Bin(bin), Vertex::Item(item)) => self.put(item, bin, false),
            (Vertex::Bin(bin), Vertex::Pool(_)) => self.use_slot(bin, true),
            (Vertex::Pool(_), Vertex::Bin(bin)) => self.use_slot(bin, false),
            _ => {}
        }
    }

    fn use_slot(&mut self, bin: usize, more: bool) {
        let Some(bin) = self.bins.get_mut(bin) else { return };
        let Some(pool) = self.pools.get_mut(bin.pool) else { return };
        if more {
            bin.slot += 1;
            pool.used += 1;
        } else {
            bin.slot = bin.slot.saturating_sub(1);
            pool.used = pool.used.saturating_sub(1);
        }
    }

    /// All that can be done with one new bin each and no detour, small items first. What is left over is for the
    /// search.
    fn settle_direct(&mut self) {
        let mut takers = Takers::default();
        if self.anywhere {
            for bin in 0..self.bins.len() {
                takers.update(self, bin);
            }
        }
        for item in 0..self.items.len() {
            while self.has_excess(Vertex::Item(item)) {
                let Some(bin) = takers.pick(self, item) else { break };
                self.take(&mut takers, item, bin);
            }
        }
        let load: f64 = self.bins.iter().map(|bin| bin.load).sum();
        let mean = load / self.bins.len().max(1) as f64;
        let mut offers: Vec<Vec<usize>> = vec![Vec::new(); self.bins.len()];
        for (at, offers) in offers.iter_mut().enumerate() {
            let Some(bin) = self.bins.get(at) else { continue };
            let free = self.pools.get(bin.pool).is_some_and(|pool| pool.used > pool.want);
            let gives = bin.over() || (free && bin.slot > 0);
            if !gives {
                continue;
            }
            offers.extend(bin.on.iter().filter(|i| self.entry(**i, at).is_some_and(|e| e.here && e.start)));
            // The last one is offered first: the first added, but where weights decide and the bin is light.
            if !self.weighted || bin.load > mean {
                offers.reverse();
            }
            while self.has_excess(Vertex::Bin(at)) {
                let Some(item) = offers.pop() else { break };
                if let Some(to) = takers.pick(self, item) {
                    self.put(item, at, false);
                    self.take(&mut takers, item, to);
                }
            }
        }
        // Who of a pool gives: the one with the smallest item to give, or the one with the most load.
        let mut queue = BinaryHeap::new();
        let offer = |field: &Field, offers: &mut Vec<Vec<usize>>, at: usize| {
            let item = offers.get_mut(at)?.pop()?;
            let load = field.bins.get(at).map_or(0, |bin| bin.load.max(0.0).to_bits());
            Some(Reverse((if field.weighted { u64::MAX - load } else { 0 }, item, at)))
        };
        for at in 0..self.bins.len() {
            queue.extend(offer(self, &mut offers, at));
        }
        while let Some(Reverse((_, item, at))) = queue.pop() {
            let Some(bin) = self.bins.get(at) else { continue };
            if bin.over() || bin.slot == 0 || !self.has_excess(Vertex::Pool(bin.pool)) {
                continue;
            }
            if let Some(to) = takers.pick(self, item) {
                self.put(item, at, false);
                self.use_slot(at, false);
                self.take(&mut takers, item, to);
            }
            queue.extend(offer(self, &mut offers, at));
        }
    }

    /// Takes items that are in too many bins out of those that carry too much. It costs no new bin, so it comes
    /// before all else.
    fn drop_direct(&mut self) {
        for at in 0..self.items.len() {
            while let Some(item) = self.items.get(at)
                && item.here > item.demand
            {
                let excess = |bin: usize| {
                    let bin = self.bins.get(bin)?;
                    let free =
                        self.pools.get(bin.pool).is_some_and(|pool| pool.used > pool.want) && bin.slot > 0;
                    (bin.over() || free).then(|| (bin.count.saturating_sub(bin.floor), bin.count))
                };
                let here = item.entries.iter().filter(|e| e.here);
                let Some((_, bin)) = here.filter_map(|e| Some((excess(e.bin)?, e.bin))).max() else { break };
                self.put(at, bin, false);
                if self.bins.get(bin).is_some_and(|bin| bin.count < bin.floor + bin.slot) {
                    self.use_slot(bin, false);
                }
            }
        }
    }

    fn can_take(&self, bin: usize) -> bool {
        let Some(bin) = self.bins.get(bin) else { return false };
        bin.lack() > 0
            || (!bin.over()
                && bin.slot < bin.room
                && self.pools.get(bin.pool).is_some_and(|pool| pool.used < pool.want))
    }

    fn take(&mut self, takers: &mut Takers, item: usize, bin: usize) {
        takers.forget(self, bin);
        self.put(item, bin, true);
        if self.has_excess(Vertex::Bin(bin)) {
            self.use_slot(bin, true);
        }
        if self.anywhere {
            takers.update(self, bin);
        }
    }
}

/// Bins that still take items, the one that lacks most first. Equal ones are in an order that differs from level
/// to level, so that the items of one bin are spread over many others and not always over the same two.
#[derive(Default)]
struct Takers {
    bins: BTreeSet<TakerKey>,
}

type TakerKey = (Reverse<usize>, u64, usize);

impl Takers {
    fn key(field: &Field, bin: usize) -> TakerKey {
        let lack = field.bins.get(bin).map_or(0, Bin::lack);
        (Reverse(lack), scatter(bin, lack), bin)
    }

    fn update(&mut self, field: &Field, bin: usize) {
        if field.can_take(bin) {
            self.bins.insert(Self::key(field, bin));
        }
    }

    fn forget(&mut self, field: &Field, bin: usize) {
        self.bins.remove(&Self::key(field, bin));
    }

    fn pick(&mut self, field: &Field, item: usize) -> Option<usize> {
        let entries = field.items.get(item).map_or(&[][..], |item| &item.entries);
        if !field.anywhere {
            let free = entries.iter().filter(|e| !e.here && !e.barred && !e.start && field.can_take(e.bin));
            return free
                .map(|e| {
                    let load = field.bins.get(e.bin).map_or(0, |bin| bin.load.max(0.0).to_bits());
                    (Self::key(field, e.bin).0, load, e.bin)
                })
                .min()
                .map(|(_, _, bin)| bin);
        }
        let mut stale = Vec::new();
        let mut found = None;
        for key in &self.bins {
            if !field.can_take(key.2) {
                stale.push(*key);
            } else if entries.iter().all(|e| e.bin != key.2 || !(e.here || e.barred || e.start)) {
                found = Some(key.2);
                break;
            }
        }
        for key in stale {
            self.bins.remove(&key);
        }
        found
    }
}

/// A number that looks random and depends on both.
fn scatter(bin: usize, level: usize) -> u64 {
    let mut mixed =
        (bin as u64).wrapping_mul(0xd6e8_feb8_6659_fd93) ^ (level as u64).wrapping_mul(0xa5a3_5625_e6f1_1d4b);
    for _ in 0..2 {
        mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
    mixed ^ (mixed >> 32)
}

#[derive(Debug, Clone, Copy)]
enum Vertex {
    Item(usize),
    Bin(usize),
    Pool(usize),
}

/// The state of the search: prices stay, marks are of one search, the dead of one round.
struct Walk {
    vertices: Vec<Vertex>,
    items: usize,
    bins: usize,
    prices: Vec<u32>,
    marks: Vec<u32>,
    mark: u32,
    parents: Vec<Option<usize>>,
    dead: Vec<bool>,
    queue: VecDeque<usize>,
    seen: Vec<usize>,
    /// Bins by price that this search has not seen; built when first asked for.
    unseen: Option<Vec<Vec<usize>>>,
}

impl Walk {
    fn new(field: &Field) -> Self {
        let vertices: Vec<Vertex> = (0..field.items.len())
            .map(Vertex::Item)
            .chain((0..field.bins.len()).map(Vertex::Bin))
            .chain((0..field.pools.len()).map(Vertex::Pool))
            .collect();
        let len = vertices.len();
        Walk {
            vertices,
            items: field.items.len(),
            bins: field.bins.len(),
            prices: vec![0; len],
            marks: vec![0; len],
            mark: 0,
            parents: vec![None; len],
            dead: vec![false; len],
            queue: VecDeque::new(),
            seen: Vec::new(),
            unseen: None,
        }
    }

    fn index(&self, vertex: Vertex) -> usize {
        match vertex {
            Vertex::Item(at) => at,
            Vertex::Bin(at) => self.items + at,
            Vertex::Pool(at) => self.items + self.bins + at,
        }
    }

    fn price(&self, at: usize) -> u32 {
        self.prices.get(at).copied().unwrap_or(0)
    }

    fn is_dead(&self, at: usize) -> bool {
        self.dead.get(at).copied().unwrap_or(true)
    }

    /// Starts a search; false where one from there has failed in this round.
    fn begin(&mut self, source: usize) -> bool {
        if self.is_dead(source) {
            return false;
        }
        self.mark += 1;
        self.queue.clear();
        self.seen.clear();
        self.unseen = None;
        self.see(source, None);
        true
    }

    fn see(&mut self, at: usize, from: Option<usize>) {
        if let Some(mark) = self.marks.get_mut(at) {
            *mark = self.mark;
        }
        if let Some(parent) = self.parents.get_mut(at) {
            *parent = from;
        }
        self.seen.push(at);
    }

    /// Takes the edge if it is a shortest one (the far end has that price) to a vertex not seen yet.
    fn visit(&mut self, from: usize, to: Vertex, price: u32) -> bool {
        let at = self.index(to);
        if self.price(at) != price || self.marks.get(at) == Some(&self.mark) || self.is_dead(at) {
            return false;
        }
        self.see(at, Some(from));
        self.queue.push_back(at);
        true
    }

    fn next(&mut self) -> Option<Vertex> {
        let at = self.queue.pop_front()?;
        self.vertices.get(at).copied()
    }

    fn parent(&self, of: Vertex) -> Option<Vertex> {
        let at = self.parents.get(self.index(of)).copied().flatten()?;
        self.vertices.get(at).copied()
    }

    fn take_unseen(&mut self, price: u32) -> Vec<usize> {
        let (items, bins) = (self.items, self.bins);
        let (prices, dead) = (&self.prices, &self.dead);
        let unseen = self.unseen.get_or_insert_with(|| {
            let mut by_price: Vec<Vec<usize>> = Vec::new();
            for bin in 0..bins {
                if dead.get(items + bin) == Some(&false) {
                    let price = prices.get(items + bin).map_or(0, |price| *price as usize);
                    if by_price.len() <= price {
                        by_price.resize_with(price + 1, Vec::new);
                    }
                    if let Some(list) = by_price.get_mut(price) {
                        list.push(bin);
                    }
                }
            }
            by_price
        });
        unseen.get_mut(price as usize).map(std::mem::take).unwrap_or_default()
    }

    fn give_unseen(&mut self, price: u32, list: Vec<usize>) {
        if let Some(slot) = self.unseen.as_mut().and_then(|unseen| unseen.get_mut(price as usize)) {
            *slot = list;
        }
    }

    /// The search has failed: nothing it saw leads anywhere before the prices change.
    fn bury(&mut self) {
        for at in self.seen.drain(..) {
            if let Some(dead) = self.dead.get_mut(at) {
                *dead = true;
            }
        }
    }

    /// Every search has failed: all they did not reach is one new bin further away.
    fn raise(&mut self) {
        for (price, dead) in self.prices.iter_mut().zip(&mut self.dead) {
            if !*dead {
                *price += 1;
            }
            *dead = false;
        }
    }
}
