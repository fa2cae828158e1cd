//! The multiplexer against a real tonic server on a port of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::exchange::DataProtocol;
use crate::exchange::channel::{ChannelSettings, data_client};
use crate::wire;

/// What the server does with a call, by its shard.
const ECHO: u32 = 0;
const SILENT: u32 = 1;
const BREAK: u32 = 2;

#[derive(Clone, Default)]
struct Echo {
    messages: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    received: Arc<Notify>,
    tasks: TaskTracker,
}

#[tonic::async_trait]
impl wire::data_server::Data for Echo {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<wire::DataReplies, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::DataRequests>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut stream = request.into_inner();
        let (sender, receiver) = mpsc::channel(4);
        let this = self.clone();
        self.tasks.spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                this.messages.fetch_add(1, Ordering::SeqCst);
                this.requests.fetch_add(message.requests.len(), Ordering::SeqCst);
                let broken = message.requests.iter().any(|request| request.shard == BREAK);
                let echoed = message.requests.iter().filter(|request| request.shard == ECHO);
                // Backwards: answers come in any order.
                let replies: Vec<_> = echoed
                    .rev()
                    .map(|r| wire::DataReply { call: r.call, index: r.epoch, ..Default::default() })
                    .collect();
                this.received.notify_waiters();
                if broken {
                    break;
                }
                if !replies.is_empty() && sender.send(Ok(wire::DataReplies { replies })).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct Server {
    echo: Echo,
    addr: String,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (echo, stop, tasks) = (Echo::default(), CancellationToken::new(), TaskTracker::new());
        let server = tonic::transport::Server::builder()
            .add_service(wire::data_server::DataServer::new(echo.clone()))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        tasks.spawn(server);
        Self { echo, addr, stop, tasks }
    }

    fn mux(&self, limits: Limits) -> Arc<Mux<DataProtocol>> {
        let channel = ChannelSettings::default().lazy(&self.addr).unwrap();
        let (mux, run) = Mux::new(limits, async move |requests| {
            data_client(channel).exchange(requests).await.map(Response::into_inner)
        });
        self.tasks.spawn(run);
        Arc::new(mux)
    }
}

fn request(shard: u32, epoch: u64) -> wire::DataRequest {
    wire::DataRequest { shard, epoch, ..Default::default() }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

#[tokio::test]
async fn every_call_gets_its_own_answer_and_messages_are_shared() {
    let server = Server::start().await;
    let mux = server.mux(Limits::default());
    let calls = (0..5000_u64).map(|n| mux.call(request(ECHO, n), soon()));
    for (n, reply) in join_all(calls).await.into_iter().enumerate() {
        assert_eq!(reply.unwrap().index, n as u64);
    }
    assert_eq!(mux.in_flight(), 0);
    let messages = server.echo.messages.load(Ordering::SeqCst);
    assert!(messages < 500, "{messages} messages for 5000 calls");
}

/// What has ended, by name.
async fn all(mut answers: Answers<DataProtocol>) -> Vec<(usize, Result<wire::DataReply, CallError>)> {
    let mut ended = Vec::new();
    while let Some(one) = std::future::poll_fn(|cx| answers.poll_next(cx)).await {
        ended.push(one);
    }
    ended.sort_by_key(|(name, _)| *name);
    ended
}

#[tokio::test]
async fn calls_made_together_get_their_own_answers_from_one_message() {
    let server = Server::start().await;
    let mux = server.mux(Limits::default());
    let ended = all(mux.call_many((0..400).map(|n| (n, request(ECHO, n as u64))).collect())).await;
    assert_eq!(ended.len(), 400);
    for (name, reply) in ended {
        assert_eq!(reply.unwrap().index, name as u64);
    }
    assert_eq!((mux.in_flight(), server.echo.messages.load(Ordering::SeqCst)), (0, 1));
    assert!(all(mux.call_many(Vec::new())).await.is_empty());
}

#[tokio::test]
async fn calls_made_together_end_each_in_its_own_way() {
    let server = Server::start().await;
    let mux = server.mux(Limits { in_flight_max: 3, ..Limits::default() });
    let calls = |kinds: &[u32]| kinds.iter().map(|&kind| request(kind, 0)).enumerate().collect();
    let mut answers = mux.call_many(calls(&[ECHO, SILENT, ECHO, ECHO]));
    let mut ended = Vec::new();
    while ended.len() < 3 {
        ended.extend(std::future::poll_fn(|cx| answers.poll_next(cx)).await);
    }
    ended.sort_by_key(|(name, _)| *name);
    let ended: Vec<_> = ended.into_iter().map(|(name, reply)| (name, reply.map(|_| ()))).collect();
    assert_eq!(ended, [(0, Ok(())), (2, Ok(())), (3, Err(CallError::Full))]);
    assert_eq!(mux.in_flight(), 1);
    answers.give_up();
    let left = all(answers).await;
    assert_eq!(left[0].1.as_ref().unwrap_err(), &CallError::TimedOut { sent: true });
    assert_eq!((left.len(), mux.in_flight()), (1, 0));

    drop(mux.call_many(calls(&[SILENT, SILENT])));
    assert_eq!(mux.in_flight(), 0);
    for (_, lost) in all(mux.call_many(calls(&[SILENT, BREAK]))).await {
        assert_eq!(lost.unwrap_err(), CallError::Lost);
    }
    assert_eq!(all(mux.call_many(calls(&[ECHO]))).await[0].1.as_ref().unwrap_err(), &CallError::NotSent);
}

#[tokio::test]
async fn a_broken_stream_loses_what_was_sent_and_refuses_the_rest() {
    let server = Server::start().await;
    let mux = server.mux(Limits::default());
    mux.call(request(ECHO, 0), soon()).await.unwrap();
    let lost = join_all([SILENT, BREAK].map(|kind| mux.call(request(kind, 0), soon()))).await;
    for result in lost {
        assert_eq!(result.unwrap_err(), CallError::Lost);
    }
    assert_eq!(mux.call(request(ECHO, 0), soon()).await.unwrap_err(), CallError::NotSent);
    assert!(!mux.is_open());
}

#[tokio::test]
async fn a_refused_connection_sends_nothing() {
    // Bound, so that nobody else gets the port, and not listening.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap().to_string();
    let channel = ChannelSettings::default().lazy(&addr).unwrap();
    let (mux, run) = Mux::<DataProtocol>::new(Limits::default(), async move |requests| {
        data_client(channel).exchange(requests).await.map(Response::into_inner)
    });
    let (ended, result) = tokio::join!(run, mux.call(request(ECHO, 0), soon()));
    assert!(matches!(ended, Ended::NotOpened(_)), "{ended}");
    assert_eq!(result.unwrap_err(), CallError::NotSent);
}

#[tokio::test]
async fn a_deadline_frees_the_place_and_tells_whether_the_call_left() {
    let server = Server::start().await;
    let mux = server.mux(Limits::default());
    // The stream is open: the next call leaves at once.
    mux.call(request(ECHO, 0), soon()).await.unwrap();
    let short = Instant::now() + Duration::from_secs(1);
    assert_eq!(mux.call(request(SILENT, 0), short).await.unwrap_err(), CallError::TimedOut { sent: true });
    assert_eq!(mux.in_flight(), 0);
    mux.call(request(ECHO, 0), soon()).await.unwrap();

    let (stuck, run) = Mux::<DataProtocol>::new(Limits::default(), |requests| async move {
        let _requests = requests;
        std::future::pending::<Result<futures::stream::Pending<_>, Status>>().await
    });
    server.tasks.spawn(run);
    let result = stuck.call(request(ECHO, 0), Instant::now() + Duration::from_millis(5)).await;
    assert_eq!(result.unwrap_err(), CallError::TimedOut { sent: false });
}

#[tokio::test]
async fn a_full_multiplexer_refuses_and_a_dropped_call_makes_room() {
    let server = Server::start().await;
    let mux = server.mux(Limits { in_flight_max: 2, ..Limits::default() });
    let mut held: Vec<_> = (0..2).map(|_| Box::pin(mux.call(request(SILENT, 0), soon()))).collect();
    for call in &mut held {
        assert!(futures::poll!(call).is_pending());
    }
    assert_eq!(mux.call(request(ECHO, 0), soon()).await.unwrap_err(), CallError::Full);
    held.pop();
    mux.call(request(ECHO, 0), soon()).await.unwrap();
}

#[tokio::test]
async fn a_call_given_up_before_it_left_is_never_sent() {
    let server = Server::start().await;
    let mux = server.mux(Limits::default());
    {
        let mut given_up = Box::pin(mux.call(request(SILENT, 0), soon()));
        assert!(futures::poll!(&mut given_up).is_pending());
    }
    mux.call(request(ECHO, 0), soon()).await.unwrap();
    assert_eq!(server.echo.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_stalled_stream_is_given_up() {
    let server = Server::start().await;
    let mux = server.mux(Limits { stall: Duration::from_millis(40), ..Limits::default() });
    assert_eq!(mux.call(request(SILENT, 0), soon()).await.unwrap_err(), CallError::Lost);
}

#[tokio::test]
async fn a_stream_that_answers_in_part_and_then_stalls_is_given_up() {
    let server = Server::start().await;
    let mux = server.mux(Limits { stall: Duration::from_secs(2), ..Limits::default() });
    let kinds = [SILENT, ECHO];
    let answers = mux.call_many(kinds.map(|kind| request(kind, 0)).into_iter().enumerate().collect());
    let ended = tokio::time::timeout(Duration::from_secs(60), all(answers)).await.unwrap();
    assert_eq!(ended[0].1.as_ref().unwrap_err(), &CallError::Lost);
    assert!(ended[1].1.is_ok());
}

#[tokio::test]
async fn only_a_stream_on_which_something_is_awaited_is_silent() {
    let server = Server::start().await;
    let mux = server.mux(Limits::default());
    let silent = || mux.shared.state.lock().silent_since.is_some();
    mux.call(request(ECHO, 0), soon()).await.unwrap();
    assert!(!silent());
    let mut held = Box::pin(mux.call(request(SILENT, 0), soon()));
    assert!(futures::poll!(&mut held).is_pending());
    mux.call(request(ECHO, 0), soon()).await.unwrap();
    assert!(silent(), "one is still out");
    // Whoever gave it up learnt nothing about the other side.
    drop(held);
    assert!(silent());
    mux.call(request(ECHO, 0), soon()).await.unwrap();
    assert!(!silent());
}

#[tokio::test]
async fn closing_answers_what_is_in_flight() {
    let server = Server::start().await;
    let mux = server.mux(Limits::default());
    let call = mux.call(request(ECHO, 7), soon());
    let mut call = Box::pin(call);
    assert!(futures::poll!(&mut call).is_pending());
    mux.close();
    assert_eq!(mux.call(request(ECHO, 0), soon()).await.unwrap_err(), CallError::NotSent);
    assert_eq!(call.await.unwrap().index, 7);
    // The driver ends too, so the server can finish its stream and stop.
    server.stop.cancel();
    server.tasks.close();
    server.tasks.wait().await;
}

#[tokio::test]
async fn closing_waits_for_calls_made_together_however_they_end() {
    for end in ["answered", "given up", "dropped"] {
        let server = Server::start().await;
        let mux = server.mux(Limits::default());
        mux.call(request(ECHO, 0), soon()).await.unwrap();
        let kind = if end == "answered" { ECHO } else { SILENT };
        let mut answers = mux.call_many(vec![(0, request(kind, 0)), (1, request(kind, 0))]);
        mux.close();
        match end {
            "answered" => assert!(all(answers).await.iter().all(|(_, reply)| reply.is_ok())),
            "given up" => answers.give_up(),
            _ => drop(answers),
        }
        // The driver ends, or this would wait for ever.
        server.stop.cancel();
        server.tasks.close();
        tokio::time::timeout(Duration::from_secs(60), server.tasks.wait()).await.expect(end);
    }
}

#[test]
fn messages_are_bounded_in_calls_and_bytes() {
    let limits = Limits { batch_frames_max: 3, batch_bytes_max: 10, ..Limits::default() };
    let mut state = State::<DataProtocol> {
        calls: Slab::default(),
        queue: VecDeque::new(),
        queued_bytes: 0,
        sender: None,
        driver: None,
        out: 0,
        silent_since: None,
        phase: Phase::Open,
    };
    for bytes in [1, 1, 1, 1, 9, 50, 1] {
        let call = state.calls.insert();
        state.queue.push_back(Queued { call, bytes, request: request(ECHO, 0) });
        state.queued_bytes += bytes;
    }
    let mut sizes = Vec::new();
    while !state.queue.is_empty() {
        sizes.push(state.take_batch(&limits).len());
    }
    assert_eq!(sizes, [3, 2, 1, 1]);
    assert_eq!(state.queued_bytes, 0);
}
