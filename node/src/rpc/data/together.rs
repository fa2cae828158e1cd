//! Linearizable reads that came in one message, answered without a future or a timer for each.
//!
//! What they have in common is done once: the map is looked up, each group is asked once whether it leads (I4: all of them
//! arrived before it was asked), and one timer waits for the nearest deadline. As soon as a group has its answer its
//! reads are served from the cache or the engine, whatever other groups do. A read that has to wait for anything else is
//! handed back, to be answered as if it had come alone.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use borough_proto::{ClusterMap, wire};
use tokio::sync::{SemaphorePermit, oneshot};
use tokio::time::{Instant, Sleep};
use wire::data_reply::Result as Answer;
use wire::data_request::Op;

use super::{Answered, READY_MAX, Served, admitted, deadline, knows, late, read_failed, read_time};
use crate::node::Node;
use crate::shard::Shard;

/// The reads of a message that wait for their groups.
pub(super) struct Together<'a> {
    node: &'a Node,
    map: Arc<ClusterMap>,
    arrived: Instant,
    groups: Vec<Asked<'a>>,
    /// Set for the nearest deadline, once there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

/// A group that was asked whether it leads, and what is read of it.
struct Asked<'a> {
    id: u32,
    shard: Shard,
    epoch: u64,
    leads: oneshot::Receiver<bool>,
    /// What came of it.
    confirmed: Option<bool>,
    reads: Vec<Waiting<'a>>,
}

struct Waiting<'a> {
    request: wire::DataRequest,
    deadline: Instant,
    /// Its place among the requests in flight (I8).
    permit: SemaphorePermit<'a>,
}

impl<'a> Together<'a> {
    /// For the reads of a message that arrived then.
    pub(super) fn new(node: &'a Node, arrived: Instant) -> Self {
        Self { node, map: node.map.get(), arrived, groups: Vec::new(), timer: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Takes a request, or gives it back if it is no linearizable read or would be refused.
    pub(super) fn take(&mut self, request: wire::DataRequest) -> Option<wire::DataRequest> {
        let Some(Op::Read(read)) = &request.op else { return Some(request) };
        let stale_will_do =
            read.freshness.is_some_and(|asked| asked.max_stale_ms.is_some() || asked.min_index.is_some());
        if stale_will_do || !read.keys.iter().all(|key| knows(&self.map, key.collection)) {
            return Some(request);
        }
        let Ok((shard, epoch)) = admitted(self.node, &self.map, &request) else { return Some(request) };
        let Ok(permit) = self.node.requests.try_acquire() else { return Some(request) };
        let asked = match self.groups.iter().position(|asked| asked.id == request.shard) {
            Some(index) => self.groups.get_mut(index),
            None => shard.group.ask_whether_it_leads().map(|leads| {
                let id = request.shard;
                let asked = Asked { id, shard, epoch, leads, confirmed: None, reads: Vec::new() };
                self.groups.push_mut(asked)
            }),
        };
        let Some(asked) = asked else { return Some(request) };
        let deadline = deadline(&request, self.arrived);
        asked.reads.push(Waiting { request, deadline, permit });
        None
    }

    /// Adds to `ready` what can be answered now, about [`READY_MAX`] at most, and to `left` what has to wait for more than its
    /// group. Wakes the task when there may be more.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        ready: &mut Vec<Answered<'a>>,
        left: &mut Vec<wire::DataRequest>,
    ) {
        let mut index = 0;
        while ready.len() < READY_MAX
            && let Some(asked) = self.groups.get_mut(index)
        {
            if asked.confirmed.is_none()
                && let Poll::Ready(leads) = Pin::new(&mut asked.leads).poll(cx)
            {
                asked.confirmed = Some(leads.unwrap_or(false));
            }
            match asked.confirmed {
                Some(true) => asked.serve(self.node, self.arrived, ready, left),
                Some(false) => left.extend(asked.reads.drain(..).map(|waiting| waiting.request)),
                None => {
                    index += 1;
                    continue;
                }
            }
            if asked.reads.is_empty() {
                self.groups.swap_remove(index);
            }
        }
        if ready.is_empty() {
            self.expire(cx, ready);
        }
    }

    /// Answers the reads whose time is up.
    fn expire(&mut self, cx: &mut Context<'_>, ready: &mut Vec<Answered<'a>>) {
        let waiting = self.groups.iter().flat_map(|asked| &asked.reads);
        let Some(nearest) = waiting.map(|waiting| waiting.deadline).min() else { return };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(nearest)));
        if timer.deadline() != nearest {
            timer.as_mut().reset(nearest);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return;
        }
        for asked in &mut self.groups {
            let epoch = asked.epoch;
            for waiting in asked.reads.extract_if(.., |waiting| waiting.deadline <= nearest) {
                // A read changes nothing, whatever happened to it.
                let fault = late().with_outcome(wire::Outcome::NotApplied);
                let served = Served { epoch, ..Served::fault(fault) };
                ready.push((served.into_reply(self.node, waiting.request.call), Some(waiting.permit)));
            }
        }
        self.groups.retain(|asked| !asked.reads.is_empty());
        self.timer = None;
    }
}

impl<'a> Asked<'a> {
    /// Reads after the group has said that it leads.
    fn serve(
        &mut self,
        node: &Node,
        arrived: Instant,
        ready: &mut Vec<Answered<'a>>,
        left: &mut Vec<wire::DataRequest>,
    ) {
        let now = read_time(&self.shard);
        while ready.len() < READY_MAX
            && let Some(Waiting { request, permit, .. }) = self.reads.pop()
        {
            let Some(Op::Read(read)) = &request.op else { continue };
            let served = match self.shard.read_now(&read.keys, now) {
                Ok(Some((items, index))) => {
                    node.groups.answered(false, arrived.elapsed());
                    Served { answer: Answer::Read(wire::ReadReply { items }), epoch: self.epoch, index }
                }
                Ok(None) => {
                    left.push(request);
                    continue;
                }
                Err(error) => Served { epoch: self.epoch, ..Served::fault(read_failed(error.into())) },
            };
            ready.push((served.into_reply(node, request.call), Some(permit)));
        }
    }
}
