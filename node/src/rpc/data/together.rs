//! Linearizable reads that came in one message, answered without a future or a timer for each.
//!
//! What they have in common is done once: the map is looked up, each group is asked once whether it leads (all of them
//! arrived before it is asked), and one timer waits for the nearest deadline. As soon as a group has its answer its
//! reads are served from the cache or the engine, whatever other groups do: the barrier before hits and misses alike is
//! that answer (I7). A read that has to wait for anything else goes on alone, from where it stands.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use borough_proto::{ClusterMap, wire};
use tokio::sync::{SemaphorePermit, oneshot};
use tokio::time::{Instant, Sleep};
use wire::data_request::Op;

use super::{
    Answered, READY_MAX, Served, admitted, deadline, in_time, knows, read_failed, read_fault, read_late,
    read_time,
};
use crate::defect::{self, Defect};
use crate::node::Node;
use crate::shard::{Clock, Found, ReadNow, Shard};

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
    shard: Shard,
    id: u32,
    epoch: u64,
    leads: oneshot::Receiver<bool>,
    /// What came of it.
    confirmed: Option<bool>,
    reads: Vec<Waiting<'a>>,
}

struct Waiting<'a> {
    call: u64,
    read: wire::Read,
    deadline: Instant,
    /// Its place among the requests in flight (I8).
    permit: SemaphorePermit<'a>,
}

/// A read that goes on alone.
pub(super) struct Left<'a> {
    shard: Shard,
    epoch: u64,
    arrived: Instant,
    waiting: Waiting<'a>,
    next: Next,
}

/// What it has to wait for.
enum Next {
    /// The question whether the group leads had no answer: the group's own messages ask it.
    Barrier,
    /// Another reader's load.
    Read,
    /// What was read, until all later reads see it, too.
    Finish(Found),
}

impl<'a> Together<'a> {
    /// For the reads of a message that has arrived just now.
    pub(super) fn new(node: &'a Node) -> Self {
        Self { node, map: node.map.get(), arrived: Instant::now(), groups: Vec::new(), timer: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Takes a request, or gives it back if it is no linearizable read or would be refused.
    pub(super) fn take(&mut self, request: wire::DataRequest) -> Option<wire::DataRequest> {
        let Some(Op::Read(read)) = &request.op else { return Some(request) };
        let stale_will_do =
            read.freshness.is_some_and(|asked| asked.max_stale_ms.is_some() || asked.min_index.is_some());
        if stale_will_do
            || defect::has(Defect::ReadWithoutQuorum)
            || !read.keys.iter().all(|key| knows(&self.map, key.collection))
        {
            return Some(request);
        }
        let Ok((shard, epoch)) = admitted(self.node, &self.map, &request) else { return Some(request) };
        let Ok(permit) = self.node.requests.try_acquire() else { return Some(request) };
        let asked = match self.groups.iter().position(|asked| asked.id == request.shard) {
            Some(index) => self.groups.get_mut(index),
            None => shard.group.ask_whether_it_leads().map(|leads| {
                let id = request.shard;
                let asked = Asked { shard, id, epoch, leads, confirmed: None, reads: Vec::new() };
                self.groups.push_mut(asked)
            }),
        };
        let Some(asked) = asked else { return Some(request) };
        let deadline = deadline(&request, self.arrived);
        let wire::DataRequest { call, op: Some(Op::Read(read)), .. } = request else { return None };
        asked.reads.push(Waiting { call, read, deadline, permit });
        None
    }

    /// Adds to `ready` what can be answered now and to `left` what has to wait for more than its group, until there are
    /// [`READY_MAX`] of both. Below that the task is woken when there is more.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        ready: &mut Vec<Answered<'a>>,
        left: &mut Vec<Left<'a>>,
    ) {
        let mut index = 0;
        while ready.len() + left.len() < READY_MAX
            && let Some(asked) = self.groups.get_mut(index)
        {
            if asked.confirmed.is_none()
                && let Poll::Ready(leads) = Pin::new(&mut asked.leads).poll(cx)
            {
                asked.confirmed = Some(leads.unwrap_or(false));
            }
            let Some(confirmed) = asked.confirmed else {
                index += 1;
                continue;
            };
            asked.serve(confirmed, self.node, self.arrived, ready, left);
            if asked.reads.is_empty() {
                self.groups.swap_remove(index);
            }
        }
        if ready.is_empty() {
            self.expire(cx, ready);
        }
    }

    /// Answers reads whose time is up, at most [`READY_MAX`].
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
        self.timer = None;
        for asked in &mut self.groups {
            let room = READY_MAX.saturating_sub(ready.len());
            let late = asked.reads.extract_if(.., |waiting| waiting.deadline <= nearest).take(room);
            for waiting in late {
                let served = Served { epoch: asked.epoch, ..Served::fault(read_late()) };
                ready.push((served.into_reply(self.node, waiting.call), Some(waiting.permit)));
            }
        }
        self.groups.retain(|asked| !asked.reads.is_empty());
    }
}

impl<'a> Asked<'a> {
    /// Serves reads after the group has said whether it leads.
    fn serve(
        &mut self,
        leads: bool,
        node: &Node,
        arrived: Instant,
        ready: &mut Vec<Answered<'a>>,
        left: &mut Vec<Left<'a>>,
    ) {
        let now = read_time(&self.shard);
        while ready.len() + left.len() < READY_MAX
            && let Some(waiting) = self.reads.pop()
        {
            let read = leads.then(|| self.shard.read_now(&waiting.read.keys, now));
            let next = match read {
                Some(Ok(ReadNow::Done(items, index))) => {
                    let served = Served::read(node, self.epoch, arrived, items, index);
                    ready.push((served.into_reply(node, waiting.call), Some(waiting.permit)));
                    continue;
                }
                Some(Err(error)) => {
                    let served = Served { epoch: self.epoch, ..Served::fault(read_failed(error.into())) };
                    ready.push((served.into_reply(node, waiting.call), Some(waiting.permit)));
                    continue;
                }
                Some(Ok(ReadNow::Found(found))) => Next::Finish(found),
                Some(Ok(ReadNow::Loading)) => Next::Read,
                None => Next::Barrier,
            };
            left.push(Left { shard: self.shard.clone(), epoch: self.epoch, arrived, waiting, next });
        }
    }
}

impl<'a> Left<'a> {
    pub(super) async fn answer(self, node: &Node) -> Answered<'a> {
        let Self { shard, epoch, arrived, waiting: Waiting { call, read, deadline, permit }, next } = self;
        let reading = async {
            if matches!(next, Next::Barrier) {
                let asking = shard.group.read_index_by_heartbeat();
                in_time(deadline, asking).await?.map_err(read_fault)?;
            }
            let read = async {
                match next {
                    Next::Finish(found) => shard.finish(found, Clock::Leader).await,
                    Next::Barrier | Next::Read => {
                        shard.read(&read.keys, read_time(&shard), Clock::Leader).await
                    }
                }
            };
            in_time(deadline, read).await?.map_err(read_failed)
        };
        let served = match reading.await {
            Ok((items, index)) => Served::read(node, epoch, arrived, items, index),
            Err(fault) => Served { epoch, ..Served::fault(fault) },
        };
        (served.into_reply(node, call), Some(permit))
    }
}
