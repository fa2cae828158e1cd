//! Reads, of one shard and of several at once.

use std::pin::pin;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::{Answer, ForwardError, Forwarder, anyone};
use crate::exchange::mux::CallError;
use crate::exchange::tries::Tries;
use crate::id::{NodeId, ShardId};
use crate::wire::{self, data_reply, data_request};

/// How a read ended.
type Ended = Result<Answer<wire::ReadReply>, ForwardError>;
/// What a node said, or why it said nothing.
type Said = Result<wire::DataReply, CallError>;

/// A read's first attempt.
struct Asked<'a> {
    tries: Tries<'a>,
    node: NodeId,
    keys: usize,
    freshness: Option<wire::Freshness>,
}

impl Forwarder {
    /// Reads documents of one shard.
    ///
    /// # Errors
    /// [`ForwardError`], outcome always `NotApplied`.
    pub async fn read(&self, shard: ShardId, read: wire::Read, deadline: Instant) -> Ended {
        let mut tries = Tries::new(self, shard, anyone(read.freshness.as_ref()), deadline);
        let reply = tries.send(|| data_request::Op::Read(read.clone())).await?;
        answer(&mut tries, read.keys.len(), reply)
    }

    /// Reads documents of several shards, as fresh as is said of each; `keys` gives those that are asked for in a place of
    /// `shards`, and gives them anew when they have to be sent again. What one node can answer travels together and
    /// is waited for together. A read that meets a fault goes on by itself. The results are in the order of `shards`.
    pub async fn read_many(
        &self,
        shards: &[(ShardId, Option<wire::Freshness>)],
        keys: impl Fn(usize) -> Vec<wire::DocumentKey> + Send + Sync,
        deadline: Instant,
    ) -> Vec<Ended> {
        let read = |place: usize, freshness| wire::Read { keys: keys(place), freshness };
        let read = &read;
        let mut ended: Vec<Option<Ended>> = shards.iter().map(|_| None).collect();
        let mut asked: Vec<Option<Asked<'_>>> = shards.iter().map(|_| None).collect();
        let mut requests = Vec::with_capacity(shards.len());
        let mut others: FuturesUnordered<BoxFuture<'_, (usize, Ended)>> = FuturesUnordered::new();
        let mut until = deadline;
        let places = shards.iter().zip(&mut ended).zip(&mut asked).enumerate();
        for (place, ((&(shard, freshness), ended), asked)) in places {
            let first = read(place, freshness);
            let keys = first.keys.len();
            let mut tries = Tries::new(self, shard, anyone(freshness.as_ref()), deadline);
            let also = |node| requests.iter().filter(|(asked, _, _)| *asked == node).count();
            match tries.attempt(|| data_request::Op::Read(first), also) {
                Ok(Some(attempt)) => {
                    until = until.min(attempt.until);
                    requests.push((attempt.node, place, attempt.request));
                    *asked = Some(Asked { tries, node: attempt.node, keys, freshness });
                }
                Ok(None) => others.push(Box::pin(async move {
                    (place, go_on(tries, keys, || read(place, freshness), None).await)
                })),
                Err(error) => *ended = Some(Err(error)),
            }
        }
        let mut calls = self.pool.call_many(requests);
        let mut late = pin!(sleep_until(until));
        loop {
            let (place, result) = tokio::select! {
                biased;
                Some((place, said)) = calls.next(late.as_mut()) => {
                    let Some(first) = asked.get_mut(place).and_then(Option::take) else { continue };
                    let Asked { mut tries, node, keys, freshness } = first;
                    match said {
                        Ok(reply) if !matches!(reply.result, Some(data_reply::Result::Fault(_))) => (place, answer(&mut tries, keys, reply)),
                        said => {
                            others.push(Box::pin(async move {
                                let read = || read(place, freshness);
                                (place, go_on(tries, keys, read, Some((node, said))).await)
                            }));
                            continue;
                        }
                    }
                }
                Some(other) = others.next(), if !others.is_empty() => other,
                else => break,
            };
            if let Some(ended) = ended.get_mut(place) {
                *ended = Some(result);
            }
        }
        let ended: Vec<Ended> = ended.into_iter().flatten().collect();
        assert_eq!(ended.len(), shards.len(), "a read has no end");
        ended
    }
}

/// All further attempts of a read, after what its first one met, if there was one.
async fn go_on(
    mut tries: Tries<'_>,
    keys: usize,
    read: impl Fn() -> wire::Read,
    met: Option<(NodeId, Said)>,
) -> Ended {
    let settled = match met {
        Some((node, said)) => tries.settle(node, said).await?,
        None => None,
    };
    let reply = match settled {
        Some(reply) => reply,
        None => tries.send(|| data_request::Op::Read(read())).await?,
    };
    answer(&mut tries, keys, reply)
}

/// Items are told apart by position: what has not one for each key is no answer.
fn answer(tries: &mut Tries<'_>, keys: usize, reply: wire::DataReply) -> Ended {
    match reply.result {
        Some(data_reply::Result::Read(body)) if body.items.len() == keys => {
            Ok(tries.answer(body, reply.node, reply.epoch, reply.index))
        }
        Some(_) | None => Err(tries.misanswered()),
    }
}
