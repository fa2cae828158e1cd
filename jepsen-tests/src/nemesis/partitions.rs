//! Which ways of which links a partition concerns.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::Nemesis;
use crate::cluster::Cluster;
use crate::proxy::{End, Rule, Rules, Way};

const HOLD: Rule = Rule { hold: true, delay: Duration::ZERO, reset: 0.0 };

/// The rules of a fault of this kind, and what it is for the history.
pub fn rules(nemesis: Nemesis, cluster: &Cluster, rng: &mut StdRng) -> anyhow::Result<(Rules, Value)> {
    let nodes: Vec<End> =
        cluster.nodes.iter().filter(|node| !node.retired).filter_map(|node| node.end).collect();
    ensure!(nodes.len() >= nemesis.nodes_min(), "{} nodes are too few", nodes.len());
    let routers: Vec<End> = (1..=cluster.routers().count())
        .filter_map(|number| Some(End::Router(u8::try_from(number).ok()?)))
        .collect();
    let one = *nodes.get(rng.random_range(0..nodes.len())).context("no node")?;
    let others: Vec<End> = nodes.iter().copied().filter(|node| *node != one).collect();
    Ok(match nemesis {
        Nemesis::PartitionMajority => {
            // A cut-off node that routers still reach, or that alone they reach, must not answer as if it led.
            let (mut near, mut far) = (vec![one], others);
            let told = match rng.random_range(0..3) {
                0 => "see both sides",
                1 => {
                    far.extend(&routers);
                    "with the others"
                }
                _ => {
                    let with_it = rng.random_range(0..routers.len().max(1));
                    for (at, router) in routers.iter().enumerate() {
                        if at == with_it { near.push(*router) } else { far.push(*router) }
                    }
                    "one with it"
                }
            };
            let pairs = near.iter().flat_map(|&a| far.iter().map(move |&b| (a, b)));
            let ways = pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect();
            let near: Vec<String> = near.iter().map(ToString::to_string).collect();
            (with(HOLD, ways), json!({"cut": near, "routers": told}))
        }
        Nemesis::PartitionOneWay => {
            let deaf = rng.random_bool(0.5);
            let ways = others.iter().map(|&end| if deaf { (end, one) } else { (one, end) }).collect();
            let what = if deaf { "does not hear" } else { "is not heard" };
            (with(HOLD, ways), json!({"node": one.to_string(), "what": what}))
        }
        Nemesis::PartitionRing => (with(HOLD, ring(&nodes)), json!("ring")),
        Nemesis::PartitionBridge => {
            let middle = others.len() / 2;
            let (left, right) = others.split_at(middle);
            let pairs = left.iter().flat_map(|&a| right.iter().map(move |&b| (a, b)));
            let ways = pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect();
            (with(HOLD, ways), json!({"bridge": one.to_string()}))
        }
        Nemesis::LinkDelay => {
            let delay = Duration::from_millis(rng.random_range(50..600));
            let rule = Rule { delay, ..Rule::default() };
            let ways = all(&nodes, &routers).into_iter().filter(|_| rng.random_bool(0.5)).collect::<Vec<_>>();
            let met = json!({"delayMs": delay.as_millis() as u64, "ways": ways.len()});
            (with(rule, ways), met)
        }
        Nemesis::LinkLoss => {
            let reset = rng.random_range(0.005..0.08);
            let rule = Rule { reset, ..Rule::default() };
            (with(rule, all(&nodes, &routers)), json!({"resetProbability": reset}))
        }
        _ => bail!("{} concerns no links", nemesis.name()),
    })
}

fn with(rule: Rule, ways: Vec<Way>) -> Rules {
    ways.into_iter().map(|way| (way, rule)).collect()
}

/// All ways between nodes, and between routers and nodes.
fn all(nodes: &[End], routers: &[End]) -> Vec<Way> {
    let pairs = nodes.iter().flat_map(|&a| nodes.iter().chain(routers).map(move |&b| (a, b)));
    let distinct = pairs.filter(|(a, b)| a != b);
    let mut ways: Vec<Way> = distinct.flat_map(|(a, b)| [(a, b), (b, a)]).collect();
    ways.sort_unstable();
    ways.dedup();
    ways
}

/// All ways between nodes that are no neighbours on a ring: with five, everybody still sees a majority, another one each.
fn ring(nodes: &[End]) -> Vec<Way> {
    let count = nodes.len();
    let mut ways = Vec::new();
    for (a, &from) in nodes.iter().enumerate() {
        for (b, &to) in nodes.iter().enumerate() {
            let apart = a.abs_diff(b).min(count - a.abs_diff(b));
            if apart > 1 {
                ways.push((from, to));
            }
        }
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_ring_of_five_each_node_hears_two_others() {
        let nodes: Vec<End> = (1..=5).map(End::Node).collect();
        let held = ring(&nodes);
        assert_eq!(held.len(), 10);
        for &node in &nodes {
            assert_eq!(held.iter().filter(|(_, to)| *to == node).count(), 2, "{node}");
        }
        assert!(!held.contains(&(End::Node(1), End::Node(5))));
    }
}
