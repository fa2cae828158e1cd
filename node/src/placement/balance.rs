//! Decides which nodes hold the replicas of every group and which of them lead.
//!
//! A pure function of what the cluster looks like: the same input gives the same plan, whatever the order of its
//! nodes and groups, and a plan for the outcome of a plan is empty.
//!
//! The replicas are planned in two steps. First every group is told how many replicas each zone gets, by filling
//! the zones evenly; where that leaves a choice (three replicas on two zones), the choice evens out the nodes.
//! Then every zone spreads its replicas over its nodes, on its own. That is as even as can be, and close to the fewest
//! moves and bytes; the module `thrift` then finds the very fewest where the cluster is not too large for that. Leaders are
//! spread last, over the replicas that are there after the moves.

mod flow;
#[cfg(test)]
mod tests;
mod thrift;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use borough_proto::{GroupId, NodeId};

use flow::Field;
use thrift::Placed;

/// What the planner knows of the cluster. Ids of nodes and of groups are unique.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Replicas wanted of each group; 0 counts as 1.
    pub replication_factor: usize,
    /// All nodes. A replica on a node that isn't among them counts as one on a leaving node.
    pub nodes: Vec<Node>,
    /// All groups.
    pub groups: Vec<Group>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// What it shares its fate with (rack, data centre). All nodes with an empty name are one zone.
    pub zone: String,
    /// Whether it may hold replicas.
    pub standing: Standing,
}

/// Whether a node may hold replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Holds replicas and may get more.
    Open,
    /// May keep what it has and gets nothing new: silent for the moment.
    Closed,
    /// Every replica must leave it: draining or dead.
    Leaving,
}

/// One group.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// Size of one replica in bytes.
    pub bytes: u64,
    /// Operations per second.
    pub load: f64,
    /// The nodes that hold a replica and vote, in order.
    pub replicas: Vec<NodeId>,
    /// The replica that leads, where there is one.
    pub leader: Option<NodeId>,
}

/// What to change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Changes of replicas, the most urgent first: missing ones, then those on leaving nodes, then the others.
    pub moves: Vec<Move>,
    /// Changes of leaders, by group, for the replicas as of after the moves.
    pub transfers: Vec<Transfer>,
    /// Groups that get fewer replicas than wanted, or must keep one on a leaving node, because no open node can
    /// take one.
    pub short: Vec<GroupId>,
}

/// One replica changes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The group.
    pub group: GroupId,
    /// The node that gives up its replica; none: one more replica.
    pub from: Option<NodeId>,
    /// The node that gets the replica; none: one fewer, of more than the factor.
    pub to: Option<NodeId>,
    /// Bytes to copy; 0 where no node gets a replica.
    pub bytes: u64,
}

/// One group changes its leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// The group.
    pub group: GroupId,
    /// The node that leads now.
    pub from: NodeId,
    /// The node to lead.
    pub to: NodeId,
}

/// Plans where replicas go, and then who leads.
///
/// In order of importance: no two replicas of a group on one node and none given up before there is another;
/// replicas over as many zones as there are; the same number on every open node; the fewest moves; the fewest bytes.
/// The last two are exact where groups times nodes are below a million or so, and a few moves are left to gain; above
/// that zones are filled each for itself and small groups go before large ones. Of the replicas above the factor those on leaving nodes go first, then those on closed
/// ones, even where another choice would save a move: a silent node is the worst one to count on.
pub fn plan(cluster: &Cluster) -> Plan {
    let map = Map::of(cluster);
    let needs = map.needs(cluster);
    let homes = map.homes(&needs);

    let mut plan = Plan::default();
    let mut after = Vec::with_capacity(needs.len());
    let mut moves = Vec::new();
    for (need, homes) in needs.iter().zip(homes) {
        if need.short {
            plan.short.push(need.group.id);
        }
        map.pair(need, &homes, &mut moves);
        let stay = homes.iter().chain(&need.keep).filter_map(|at| map.id(*at));
        let mut now: Vec<NodeId> = stay.chain(need.stuck.iter().copied()).collect();
        now.sort_unstable();
        after.push(now);
    }
    moves.sort_by_key(|(urgency, of)| (*urgency, of.group, of.from, of.to));
    plan.moves = moves.into_iter().map(|(_, of)| of).collect();
    plan.transfers = map.leaders(needs.iter().map(|need| need.group).zip(after));
    plan
}

/// Plans who leads, with the replicas where they are.
///
/// Every open node leads the same number of groups, as far as the places of the replicas allow, with the fewest
/// transfers. A leaving node leads nothing unless the group has no replica on an open node. A closed node keeps
/// what it leads and gets nothing. Groups without a leader are left out.
pub fn spread_leaders(cluster: &Cluster) -> Vec<Transfer> {
    let map = Map::of(cluster);
    map.leaders(sorted(cluster).into_iter().map(|group| (group, unique(group))))
}

/// Fewest moves that any plan reaching the same evenness would need. The sum of
///
/// * the replicas above the replication factor, which are dropped, and
/// * the replicas that open nodes must get: either all those that a group has to get (for one on a leaving node
///   that an open node can take, for a missing one, for one in a zone that holds too many), or all those that the
///   open nodes below their even number lack for it, whichever is more. With nothing to drop the latter is the
///   same as the former plus what open nodes hold above their even number.
///
/// The even number is total / nodes rounded down or up, per zone where zones are named, with the zones' totals
/// that [`plan`] chooses. Without named zones the plan always has the fewest moves there can be, and that is this
/// number, but for two cases at the cost of one more move each: a replica has to find a new place, and the nodes
/// below their even number hold the group already or are needed for others like it; or a replica is to be
/// dropped, and none of the group's is on a node above its even number.
pub fn moves_lower_bound(cluster: &Cluster) -> usize {
    let map = Map::of(cluster);
    let needs = map.needs(cluster);
    let mut totals = vec![0; map.zones.len()];
    let mut counts = vec![0; map.places.len()];
    let mut dropped = 0;
    let mut forced = 0;
    for (need, homes) in needs.iter().zip(map.homes(&needs)) {
        dropped += need.dropped;
        let mut more = need.open_wanted();
        for at in &homes {
            if let Some(total) = totals.get_mut(map.zone_of(*at)) {
                *total += 1;
            }
        }
        for (zone, held) in map.by_zone(&need.open) {
            let most = map.limits(need, zone).1.saturating_sub(map.in_zone(&need.keep, zone));
            more = more.saturating_sub(held.min(most));
        }
        forced += more;
        for at in &need.open {
            if let Some(count) = counts.get_mut(*at) {
                *count += 1;
            }
        }
    }
    let mut lack = 0;
    for (zone, total) in map.zones.iter().zip(totals) {
        let held = zone.open.iter().filter_map(|at| counts.get(*at).copied());
        let mut held: Vec<usize> = held.collect();
        held.sort_unstable_by_key(|count| Reverse(*count));
        let (floor, odd) = (total / held.len().max(1), total % held.len().max(1));
        let even = (0..held.len()).map(|at| floor + usize::from(at < odd));
        lack += held.iter().zip(even).map(|(held, even)| even.saturating_sub(*held)).sum::<usize>();
    }
    dropped + forced.max(lack)
}

/// Why taking the node away cannot succeed, as a sentence; none when it can or when there is no such node.
pub fn cannot_leave(cluster: &Cluster, leaving: NodeId) -> Option<String> {
    let mut without = cluster.clone();
    without.nodes.iter_mut().find(|node| node.id == leaving)?.standing = Standing::Leaving;
    let map = Map::of(&without);
    if map.staying < map.factor {
        let left =
            map.places.iter().filter(|place| place.standing != Standing::Leaving).map(|place| place.id);
        return Some(format!(
            "Without node {} too few nodes are left: {} ({}), for {} replicas of each group.",
            leaving.get(),
            map.staying,
            list(&left.collect::<Vec<_>>()),
            map.factor
        ));
    }
    let needs = map.needs(&without);
    let mut stuck =
        needs.iter().filter(|need| !need.stuck.is_empty() && need.group.replicas.contains(&leaving));
    let first = stuck.next()?;
    let more = match stuck.count() {
        0 => String::new(),
        more => format!(" The same goes for {more} more."),
    };
    let holders: Vec<NodeId> = unique(first.group).into_iter().filter(|&node| node != leaving).collect();
    Some(format!(
        "{} has a replica on node {} and no other node can take it: those that may all hold it already (it is on {}).{more}",
        capitalized(&first.group.id.title()),
        leaving.get(),
        list(&holders)
    ))
}

/// Most nodes that a sentence names.
const LISTED_MAX: usize = 12;

/// The nodes' ids, for people.
pub fn list(nodes: &[NodeId]) -> String {
    let mut ids: Vec<String> = nodes.iter().take(LISTED_MAX).map(|node| node.get().to_string()).collect();
    if let more @ 1.. = nodes.len().saturating_sub(LISTED_MAX) {
        ids.push(format!("{more} more"));
    }
    if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn sorted(cluster: &Cluster) -> Vec<&Group> {
    let mut groups: Vec<&Group> = cluster.groups.iter().collect();
    groups.sort_by_key(|group| group.id);
    groups
}

/// The nodes that hold a replica, by id, each once.
fn unique(group: &Group) -> Vec<NodeId> {
    let mut nodes = group.replicas.clone();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// A node, by its place in the order of ids.
struct Place {
    id: NodeId,
    standing: Standing,
    zone: usize,
    /// Place among the open nodes of the zone.
    seat: usize,
}

struct Zone {
    /// Open nodes.
    open: Vec<usize>,
}

struct Map {
    factor: usize,
    places: Vec<Place>,
    /// Zones with a node that stays.
    zones: Vec<Zone>,
    /// Nodes that aren't leaving.
    staying: usize,
    /// Open nodes.
    open: usize,
    /// For each number of replicas how many a zone must hold at most, where closed nodes hold none of them.
    levels: Vec<usize>,
}

/// What one group has and wants.
struct Need<'a> {
    group: &'a Group,
    /// Replicas on open nodes.
    open: Vec<usize>,
    /// Replicas on closed nodes, but for those dropped because there are too many.
    closed: Vec<usize>,
    /// Those of the closed ones that stay.
    keep: Vec<usize>,
    /// Replicas that leave their nodes, whatever becomes of those on open ones.
    leave: Vec<NodeId>,
    /// Replicas that must stay on leaving nodes.
    stuck: Vec<NodeId>,
    /// Replicas above the factor.
    dropped: usize,
    /// Replicas on open and closed nodes in the end.
    wanted: usize,
    /// A zone holds at most that many.
    level: usize,
    short: bool,
}

impl Need<'_> {
    fn open_wanted(&self) -> usize {
        self.wanted.saturating_sub(self.keep.len())
    }
}

impl Map {
    fn of(cluster: &Cluster) -> Map {
        let mut nodes: Vec<&Node> = cluster.nodes.iter().collect();
        nodes.sort_by_key(|node| node.id);
        nodes.dedup_by_key(|node| node.id);
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for node in nodes.iter().filter(|node| node.standing != Standing::Leaving) {
            names.insert(&node.zone, 0);
        }
        for (at, zone) in names.values_mut().enumerate() {
            *zone = at;
        }
        let mut zones: Vec<Zone> = names.iter().map(|_| Zone { open: Vec::new() }).collect();
        let mut places = Vec::with_capacity(nodes.len());
        for (at, node) in nodes.iter().enumerate() {
            let zone = names.get(node.zone.as_str()).copied().unwrap_or(usize::MAX);
            let mut seat = 0;
            if node.standing == Standing::Open
                && let Some(zone) = zones.get_mut(zone)
            {
                seat = zone.open.len();
                zone.open.push(at);
            }
            places.push(Place { id: node.id, standing: node.standing, zone, seat });
        }
        let factor = cluster.replication_factor.max(1);
        let staying = places.iter().filter(|place| place.standing != Standing::Leaving).count();
        let open = zones.iter().map(|zone| zone.open.len()).sum();
        let mut map = Map { factor, places, zones, staying, open, levels: Vec::new() };
        map.levels = (0..=factor.min(open)).map(|wanted| map.level(wanted, &[])).collect();
        map
    }

    fn id(&self, at: usize) -> Option<NodeId> {
        self.places.get(at).map(|place| place.id)
    }

    fn find(&self, id: NodeId) -> Option<usize> {
        self.places.binary_search_by_key(&id, |place| place.id).ok()
    }

    fn zone_of(&self, at: usize) -> usize {
        self.places.get(at).map_or(usize::MAX, |place| place.zone)
    }

    fn in_zone(&self, nodes: &[usize], zone: usize) -> usize {
        nodes.iter().filter(|at| self.zone_of(**at) == zone).count()
    }

    /// How many of the nodes are in each zone that has one.
    fn by_zone(&self, nodes: &[usize]) -> Vec<(usize, usize)> {
        let mut zones: Vec<(usize, usize)> = Vec::with_capacity(nodes.len());
        for at in nodes {
            let zone = self.zone_of(*at);
            match zones.iter_mut().find(|(of, _)| *of == zone) {
                Some((_, count)) => *count += 1,
                None => zones.push((zone, 1)),
            }
        }
        zones
    }

    /// Replicas the zone can hold of a group that is on these closed nodes.
    fn room(&self, zone: usize, closed: &[usize]) -> usize {
        self.zones.get(zone).map_or(0, |zone| zone.open.len()) + self.in_zone(closed, zone)
    }

    /// The lowest limit for every zone with which that many replicas find a place.
    fn level(&self, wanted: usize, closed: &[usize]) -> usize {
        if self.zones.len() < 2 {
            return wanted;
        }
        let places = |level: usize| -> usize {
            (0..self.zones.len()).map(|zone| self.room(zone, closed).min(level)).sum()
        };
        (0..wanted).find(|level| places(*level) >= wanted).unwrap_or(wanted)
    }

    /// Fewest and most replicas of the group in the zone.
    fn limits(&self, need: &Need, zone: usize) -> (usize, usize) {
        let room = self.room(zone, &need.closed);
        (room.min(need.level.saturating_sub(1)), room.min(need.level))
    }

    fn needs<'a>(&self, cluster: &'a Cluster) -> Vec<Need<'a>> {
        sorted(cluster).into_iter().map(|group| self.need(group)).collect()
    }

    fn need<'a>(&self, group: &'a Group) -> Need<'a> {
        let (mut open, mut closed, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        let replicas = unique(group);
        for id in &replicas {
            let at = self.find(*id);
            match at.and_then(|at| Some((at, self.places.get(at)?.standing))) {
                Some((at, Standing::Open)) => open.push(at),
                Some((at, Standing::Closed)) => closed.push(at),
                _ => gone.push(*id),
            }
        }
        let present = replicas.len();
        let aim =
            if present > self.factor { self.factor } else { present.max(self.factor.min(self.staying)) };
        let wanted = aim.min(self.open + closed.len());
        // Those stuck: the leader first, it is alive.
        gone.sort_by_key(|id| (Some(*id) != group.leader, *id));
        let leave = gone.split_off(present.min(self.factor).saturating_sub(wanted).min(gone.len()));
        let mut need = Need {
            group,
            open,
            closed,
            keep: Vec::new(),
            leave,
            stuck: gone,
            dropped: present.saturating_sub(self.factor),
            wanted,
            level: 0,
            short: wanted < aim,
        };
        while !need.closed.is_empty() && need.open.len() + need.closed.len() > wanted {
            self.leave_closed(&mut need, false);
        }
        need.keep.clone_from(&need.closed);
        need.level = match self.levels.get(wanted) {
            Some(level) if need.closed.is_empty() => *level,
            _ => self.level(wanted, &need.closed),
        };
        if self.zones.len() > 1 && !need.keep.is_empty() {
            self.thin_closed(&mut need);
        }
        need
    }

    /// One replica on a closed node leaves it, from the zone that holds most of the group.
    fn leave_closed(&self, need: &mut Need, above_fewest: bool) -> bool {
        let list = if above_fewest { &need.keep } else { &need.closed };
        let worst = list
            .iter()
            .copied()
            .filter(|at| {
                let zone = self.zone_of(*at);
                !above_fewest || self.in_zone(&need.keep, zone) > self.limits(need, zone).0
            })
            .max_by_key(|at| {
                let zone = self.zone_of(*at);
                let held = self.in_zone(&need.open, zone) + self.in_zone(list, zone);
                (held, self.id(*at) != need.group.leader, *at)
            });
        let Some(worst) = worst else { return false };
        let list = if above_fewest { &mut need.keep } else { &mut need.closed };
        list.retain(|at| *at != worst);
        need.leave.extend(self.id(worst));
        true
    }

    /// Where a zone holds too many, replicas on closed nodes leave first.
    fn thin_closed(&self, need: &mut Need) {
        for (zone, held) in self.by_zone(&need.closed) {
            let all = held + self.in_zone(&need.open, zone);
            for _ in 0..all.saturating_sub(self.limits(need, zone).1).min(held) {
                let last = need.keep.iter().rposition(|at| self.zone_of(*at) == zone);
                if let Some(last) = last {
                    let at = need.keep.remove(last);
                    need.leave.extend(self.id(at));
                }
            }
        }
        // More zones hold the higher number than can in the end.
        while self.fewest(need) > need.wanted && self.leave_closed(need, true) {}
    }

    /// Sum of the fewest replicas of all zones, given those on closed nodes that stay.
    fn fewest(&self, need: &Need) -> usize {
        if need.level <= 1 {
            return need.keep.len();
        }
        (0..self.zones.len()).map(|zone| self.limits(need, zone).0.max(self.in_zone(&need.keep, zone))).sum()
    }

    /// How many replicas on open nodes each group gets in each zone, as (zone, replicas).
    fn over_zones(&self, needs: &[Need]) -> Vec<Vec<(usize, usize)>> {
        if self.zones.len() < 2 {
            return needs.iter().map(|need| vec![(0, need.open_wanted())]).collect();
        }
        let mut counts = vec![0; self.places.len()];
        for at in needs.iter().flat_map(|need| &need.open) {
            if let Some(count) = counts.get_mut(*at) {
                *count += 1;
            }
        }
        // Groups on full nodes are the better ones to take from a zone, then small ones.
        let mut order: Vec<(Reverse<usize>, u64, usize)> = needs
            .iter()
            .enumerate()
            .map(|(at, need)| {
                let fullest = need.open.iter().filter_map(|node| counts.get(*node)).max();
                (Reverse(fullest.copied().unwrap_or(0)), need.group.bytes, at)
            })
            .collect();
        order.sort_unstable();

        let bins: Vec<usize> = (0..self.zones.len()).filter(|zone| self.room(*zone, &[]) > 0).collect();
        let mut base = vec![0; bins.len()];
        let mut seats: Vec<Vec<(usize, usize)>> = vec![Vec::new(); needs.len()];
        let mut choices = Vec::new();
        for (_, _, at) in order {
            let Some(need) = needs.get(at) else { continue };
            let spare = need.wanted.saturating_sub(self.fewest(need));
            let mut choice = Choice { need: at, spare, held: Vec::new(), barred: Vec::new() };
            for (bin, zone) in bins.iter().enumerate() {
                // Below the first level there is nothing that every zone must hold.
                let held = self.in_zone(&need.open, *zone);
                if need.level == 1 && held == 0 && need.keep.is_empty() {
                    continue;
                }
                let kept = self.in_zone(&need.keep, *zone);
                let (low, high) = self.limits(need, *zone);
                let low = low.max(kept);
                if low > kept {
                    if let Some(base) = base.get_mut(bin) {
                        *base += low - kept;
                    }
                    if let Some(seats) = seats.get_mut(at) {
                        seats.push((*zone, low - kept));
                    }
                }
                if high <= low {
                    choice.barred.push(bin);
                } else if held + kept > low {
                    choice.held.push(bin);
                }
            }
            if need.level > 0 && (choice.spare > 0 || !choice.held.is_empty()) {
                choices.push(choice);
            }
        }
        let spans = bins.iter().map(|zone| self.room(*zone, &[]));
        let mut field = Field::new(spans.zip(base), true, false);
        for choice in &choices {
            let item = field.item(choice.spare, 0.0);
            choice.barred.iter().for_each(|bin| field.bar(item, *bin));
            choice.held.iter().for_each(|bin| field.start(item, *bin));
        }
        field.level();
        field.settle();
        for (item, choice) in choices.iter().enumerate() {
            let Some(seats) = seats.get_mut(choice.need) else { continue };
            for zone in field.bins_of(item).filter_map(|bin| bins.get(bin)) {
                match seats.iter_mut().find(|(of, _)| of == zone) {
                    Some((_, count)) => *count += 1,
                    None => seats.push((*zone, 1)),
                }
            }
        }
        seats
    }

    /// Open nodes for each group, spread over those of each zone.
    fn over_nodes(&self, needs: &[Need], seats: &[Vec<(usize, usize)>]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..needs.len()).collect();
        order.sort_by_key(|at| needs.get(*at).map(|need| (need.group.bytes, need.group.id)));
        let mut zones: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.zones.len()];
        for at in order {
            let (Some(need), Some(seats)) = (needs.get(at), seats.get(at)) else { continue };
            for (zone, wanted) in seats {
                if let Some(zone) = zones.get_mut(*zone) {
                    zone.push((at, *wanted));
                }
            }
            for (zone, _) in self.by_zone(&need.open) {
                if seats.iter().all(|(of, _)| *of != zone)
                    && let Some(zone) = zones.get_mut(zone)
                {
                    zone.push((at, 0));
                }
            }
        }
        let mut homes: Vec<Vec<usize>> = vec![Vec::new(); needs.len()];
        for (at, (zone, groups)) in self.zones.iter().zip(zones).enumerate() {
            let mut field = Field::new(zone.open.iter().map(|_| (1, 0)), true, false);
            for (group, wanted) in &groups {
                let item = field.item(*wanted, 0.0);
                for node in needs.get(*group).map_or(&[][..], |need| &need.open) {
                    if let Some(place) = self.places.get(*node).filter(|place| place.zone == at) {
                        field.start(item, place.seat);
                    }
                }
            }
            field.level_all();
            field.settle();
            for (item, (group, _)) in groups.iter().enumerate() {
                if let Some(homes) = homes.get_mut(*group) {
                    homes.extend(field.bins_of(item).filter_map(|bin| zone.open.get(bin)));
                }
            }
        }
        homes
    }

    /// The open nodes that hold each group in the end.
    fn homes(&self, needs: &[Need]) -> Vec<Vec<usize>> {
        let homes = self.over_nodes(needs, &self.over_zones(needs));
        self.cheapest(needs, homes)
    }

    /// The same number of homes for each group, chosen so that no other choice costs less.
    fn cheapest(&self, needs: &[Need], homes: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
        // Nodes that take replicas, numbered in the order of their places, and their zones, numbered as they come.
        let open: Vec<usize> = self.zones.iter().flat_map(|zone| &zone.open).copied().collect();
        let zones: Vec<usize> = (0..self.zones.len()).filter(|zone| self.room(*zone, &[]) > 0).collect();
        let number = |at: &usize| open.iter().position(|node| node == at);
        let number_zone = |at: &usize| zones.binary_search(&self.zone_of(*at)).ok();
        let zone_of: Vec<usize> = open.iter().filter_map(number_zone).collect();
        let placed = needs.iter().zip(&homes).map(|(need, homes)| Placed {
            size: need.group.bytes,
            start: need.open.iter().filter_map(number).collect(),
            here: homes.iter().filter_map(number).collect(),
            kept: need.keep.iter().filter_map(number_zone).collect(),
        });
        let mut placed: Vec<Placed> = placed.collect();
        thrift::cheapen(&mut placed, &zone_of);
        let node = |number: usize| open.get(number).copied();
        placed.into_iter().map(|group| group.here.into_iter().filter_map(node).collect()).collect()
    }

    /// The moves of one group, with their urgency: who leaves and who gets one, of the same zone if possible.
    fn pair(&self, need: &Need, homes: &[usize], moves: &mut Vec<(u8, Move)>) {
        let moved = need.open.iter().filter(|at| !homes.contains(at)).filter_map(|at| self.id(*at));
        let mut from: Vec<NodeId> = need.leave.iter().copied().chain(moved).collect();
        let mut to: Vec<usize> = homes.iter().copied().filter(|at| !need.open.contains(at)).collect();
        to.sort_unstable();
        let mut push = |urgency: u8, from: Option<NodeId>, to: Option<usize>| {
            let to = to.and_then(|at| self.id(at));
            let bytes = if to.is_some() { need.group.bytes } else { 0 };
            moves.push((urgency, Move { group: need.group.id, from, to, bytes }));
        };
        // Those that leave come first: where more nodes leave than get one, they are moved before others are.
        let drop = from.split_off(to.len().min(from.len()));
        let urgency = |from: &NodeId| match self.find(*from).and_then(|at| self.places.get(at)) {
            Some(place) if place.standing != Standing::Leaving => 2,
            _ => 1,
        };
        from.retain(|id| {
            let zone = self.find(*id).map(|at| self.zone_of(at));
            let Some(at) = to.iter().position(|at| Some(self.zone_of(*at)) == zone) else { return true };
            push(urgency(id), Some(*id), Some(to.remove(at)));
            false
        });
        let mut to = to.into_iter();
        for id in from {
            push(urgency(&id), Some(id), to.next());
        }
        to.for_each(|at| push(0, None, Some(at)));
        drop.into_iter().for_each(|id| push(urgency(&id), Some(id), None));
    }

    /// Spreads the leaders over the open nodes among these replicas.
    fn leaders<'a>(&self, groups: impl Iterator<Item = (&'a Group, Vec<NodeId>)>) -> Vec<Transfer> {
        let open: Vec<NodeId> =
            self.places.iter().filter(|p| p.standing == Standing::Open).map(|p| p.id).collect();
        let mut transfers = Vec::new();
        let mut led = Vec::new();
        for (group, replicas) in groups {
            let Some(leader) = group.leader else { continue };
            let stays = replicas.contains(&leader);
            if !stays && !group.replicas.contains(&leader) {
                continue;
            }
            let standing = self.find(leader).and_then(|at| self.places.get(at)).map(|place| place.standing);
            if stays && standing == Some(Standing::Closed) {
                continue;
            }
            let can: Vec<usize> = replicas.iter().filter_map(|id| open.binary_search(id).ok()).collect();
            if !can.is_empty() {
                let load = if group.load.is_finite() { group.load.max(0.0) } else { 0.0 };
                led.push((group.id, leader, can, load));
            } else if let Some(to) = replicas.first().filter(|_| !stays) {
                transfers.push(Transfer { group: group.id, from: leader, to: *to });
            }
        }
        led.sort_by(|one, two| two.3.total_cmp(&one.3).then(one.0.cmp(&two.0)));
        let mut field = Field::new(open.iter().map(|_| (1, 0)), false, true);
        for (_, leader, can, load) in &led {
            let item = field.item(1, *load);
            can.iter().for_each(|bin| field.allow(item, *bin));
            let leads = open.binary_search(leader).ok().filter(|bin| can.contains(bin));
            leads.into_iter().for_each(|bin| field.start(item, bin));
        }
        field.level();
        field.settle();
        for (item, (group, leader, _, _)) in led.iter().enumerate() {
            let to = field.bins_of(item).next().and_then(|bin| open.get(bin));
            if let Some(to) = to.filter(|to| *to != leader) {
                transfers.push(Transfer { group: *group, from: *leader, to: *to });
            }
        }
        transfers.sort_by_key(|of| of.group);
        transfers
    }
}

/// A group that may have one more than the fewest replicas in some zones.
struct Choice {
    need: usize,
    /// In how many.
    spare: usize,
    held: Vec<usize>,
    barred: Vec<usize>,
}
