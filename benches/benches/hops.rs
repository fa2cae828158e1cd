//! The limits that a router and a node cannot pass when each request is a call of its own: a fixed answer of 300 bytes behind
//! axum alone, and behind axum and a unary gRPC call to another process.
//!
//! `cargo bench -p borough-benches --bench hops`: each process with one thread, on the same processors as the load.

#[path = "cluster/usage.rs"]
mod usage;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use borough_benches::load::Load;
use borough_benches::options::Options;
use borough_benches::service::Service;
use borough_proto::wire;
use borough_proto::wire::cluster_client::ClusterClient;
use borough_proto::wire::cluster_server::{Cluster, ClusterServer};
use clap::{Parser, Subcommand};
use tokio::net::TcpListener;
use tonic::codegen::tokio_stream::Stream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ANSWER_BYTES: usize = 300;

/// Measures fixed answers over one hop and over two.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    /// For each of them in each round, in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

/// What one of the processes does; they print where they listen.
#[derive(Debug, Clone, Subcommand)]
enum Role {
    /// Answers HTTP by itself.
    Alone,
    /// Answers HTTP with what the other one says.
    Front { back: SocketAddr },
    /// Answers gRPC.
    Back,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let done = runtime.context("start the runtime").and_then(|runtime| {
        runtime.block_on(Box::pin(async {
            match cli.role.clone() {
                Some(role) => serve(role).await,
                None => compare(&cli).await,
            }
        }))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hops: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn compare(cli: &Cli) -> Result<()> {
    let (alone, alone_at) = start(&["alone".to_owned()])?;
    let (back, back_at) = start(&["back".to_owned()])?;
    let (front, front_at) = start(&["front".to_owned(), back_at.to_string()])?;
    let ways = [
        ("axum", alone_at, vec![alone.0.id()]),
        ("axum, then unary gRPC", front_at, vec![front.0.id(), back.0.id()]),
    ];
    for round in 1..=cli.rounds {
        for (name, address, servers) in &ways {
            let service = Service::described(
                &[format!("http://{address}")],
                r#"{"get": {"method": "GET", "path": "/{key}"}}"#,
            );
            let options = Options {
                seconds: cli.seconds,
                warm_up: 0.0,
                connections: cli.connections,
                preloaded: true,
                ..Options::default()
            };
            let spent = || servers.iter().map(|&pid| usage::cpu_seconds(pid)).sum::<Result<f64>>();
            let load = Load::new(service.map_err(|fault| anyhow!(fault))?, options)?;
            let before = spent()?;
            let report = load.measure().await?;
            ensure!(report.failed() == 0, "requests failed:\n{report}");
            println!(
                "{name} {round}: {:.0} requests/s, p99 {:.2} ms, {:.1} µs of processor time in all servers",
                report.all.per_second,
                report.all.p99_us as f64 / 1e3,
                (spent()? - before) * 1e6 / report.all.requests.max(1) as f64,
            );
        }
    }
    Ok(())
}

/// A process that ends with this one.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("hops: end process {}: {error}", self.0.id());
        }
    }
}

fn start(role: &[String]) -> Result<(Ending, SocketAddr)> {
    let own = std::env::current_exe().context("find this benchmark's own path")?;
    let mut child =
        Ending(Command::new(own).args(role).stdout(Stdio::piped()).spawn().context("start a process")?);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().context("its output")?).read_line(&mut line)?;
    Ok((child, line.trim().parse().with_context(|| format!("{role:?} said {line:?}"))?))
}

async fn serve(role: Role) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("listen")?;
    let told = || anyhow::Ok(println!("{}", listener.local_addr()?));
    match role {
        Role::Alone => {
            told()?;
            let app = Router::new().route("/{key}", get(|| async { "x".repeat(ANSWER_BYTES) }));
            axum::serve(listener, app).await.context("serve")
        }
        Role::Front { back } => {
            let client = ClusterClient::connect(format!("http://{back}")).await.context("connect")?;
            told()?;
            let app = Router::new().route("/{key}", get(forward)).with_state(client);
            axum::serve(listener, app).await.context("serve")
        }
        Role::Back => {
            told()?;
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            Server::builder()
                .add_service(ClusterServer::new(Fixed))
                .serve_with_incoming(incoming)
                .await
                .context("serve")
        }
    }
}

async fn forward(State(mut client): State<ClusterClient<Channel>>) -> Result<String, String> {
    let reply = client.status(wire::StatusRequest { forwarded: false }).await;
    reply.map(|reply| reply.into_inner().json).map_err(|status| status.to_string())
}

/// Says the same to everybody.
struct Fixed;

type Answer<T> = Result<Response<T>, Status>;

fn not_here<T>() -> Answer<T> {
    Err(Status::unimplemented("not here"))
}

#[tonic::async_trait]
impl Cluster for Fixed {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::MapUpdate, Status>> + Send>>;

    async fn status(&self, _: Request<wire::StatusRequest>) -> Answer<wire::StatusReply> {
        Ok(Response::new(wire::StatusReply { json: "x".repeat(ANSWER_BYTES), ..Default::default() }))
    }

    async fn init(&self, _: Request<wire::InitRequest>) -> Answer<wire::InitReply> {
        not_here()
    }

    async fn join(&self, _: Request<wire::JoinRequest>) -> Answer<wire::JoinReply> {
        not_here()
    }

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Answer<Self::WatchStream> {
        not_here()
    }

    async fn put_collection(
        &self,
        _: Request<wire::PutCollectionRequest>,
    ) -> Answer<wire::PutCollectionReply> {
        not_here()
    }

    async fn delete_collection(
        &self,
        _: Request<wire::DeleteCollectionRequest>,
    ) -> Answer<wire::DeleteCollectionReply> {
        not_here()
    }

    async fn report(&self, _: Request<wire::NodeReport>) -> Answer<wire::ReportReply> {
        not_here()
    }

    async fn propose(&self, _: Request<wire::CatalogCommand>) -> Answer<wire::ProposeReply> {
        not_here()
    }

    async fn reconfigure(&self, _: Request<wire::ReconfigureRequest>) -> Answer<wire::ReconfigureReply> {
        not_here()
    }

    async fn operate(&self, _: Request<wire::OperateRequest>) -> Answer<wire::OperateReply> {
        not_here()
    }
}
