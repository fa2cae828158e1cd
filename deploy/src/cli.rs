//! The command line: names, options, help. It decides nothing; the modules beside it do.

use clap::{Args, Parser, Subcommand, ValueEnum};

mod bench;
mod data;
mod service;

pub use bench::BenchArgs;
pub use data::{
    CollectionCommand, CreateArgs, DeleteArgs, ExportArgs, GetArgs, ImportArgs, Key, ListArgs, PatchArgs,
    PutArgs, WriteArgs,
};
pub use service::{DevArgs, NodeArgs, RouterArgs};

/// A sharded, Raft-replicated store for user data with its cache inside.
#[derive(Debug, Parser)]
#[command(
    name = "borough",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    after_help = "Example:\n  borough dev",
    after_long_help = "Settings: defaults < TOML file < BOROUGH_* environment < flags.\n\
        Exit codes: 0 done; 1 failed; 2 usage; 74 data directory cannot be used; 78 bad configuration.\n\n\
        Example:\n  borough dev"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub log: LogArgs,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// How logs are written to stderr
    #[arg(long, global = true, env = "BOROUGH_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// What is logged, for example `info,borough_node=debug` [default of services: info,openraft=error]
    #[arg(long, global = true, env = "BOROUGH_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Which router a command talks to.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// The router
    #[arg(long, env = "BOROUGH_ROUTER", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub router: String,
    /// Where the cluster asks for one; best left in the environment, as everybody on this machine sees arguments
    #[arg(long, env = "BOROUGH_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<Secret>,
}

/// Text that no output shows.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Nodes and a router on this machine, as real processes
    Dev(DevArgs),
    /// Run a node
    Node(NodeArgs),
    /// Run a router
    Router(RouterArgs),
    /// Create the cluster, look at it, move its replicas
    #[command(subcommand, after_help = "Example:\n  borough cluster status --watch")]
    Cluster(ClusterCommand),
    /// Create, look at and delete collections
    #[command(subcommand, after_help = "Example:\n  borough collection create posts --sort-key")]
    Collection(CollectionCommand),
    /// Read a document
    Get(GetArgs),
    /// Write a document
    Put(PutArgs),
    /// Merge a patch into a document
    Patch(PatchArgs),
    /// Delete a document
    Delete(DeleteArgs),
    /// List documents, one a line
    List(ListArgs),
    /// Write the documents of an NDJSON file, in parallel and resumable
    #[command(long_about = "Write the documents of an NDJSON file, in parallel and resumable\n\n\
        Documents are stored exactly as they are in the file. A collection that does not exist is created, \
        with a sort key when --sort is given. Progress is kept in FILE.borough-import: the same command goes on \
        where it was interrupted, and the file is removed at the end. Lines that cannot be imported are reported \
        with their number and passed over; the exit code is 1 then.")]
    Import(ImportArgs),
    /// Write all documents of a collection to stdout as NDJSON
    #[command(long_about = "Write all documents of a collection to stdout as NDJSON\n\n\
        What was imported comes out as it was in the file. A document that does not hold its key gets it in front, so that \
        everything can be imported again. In a sorted collection the key is in the fields where all items hold it, else in `id` and \
        `sort`; --id and --sort name others.")]
    Export(ExportArgs),
    /// Put a load on the cluster: requests a second, latencies, failures
    #[command(long_about = "Put a load on the cluster: requests a second, latencies, failures\n\n\
        All documents are written once, then the load runs for --warm-up and --seconds, and only the latter is counted. In a closed loop \
        each connection sends when it has its answer: that finds the most a cluster does. With --rate requests are due at fixed times, \
        and latency counts from when a request was due. The exit code is 1 when a request was not answered as it should. \
        The documents stay: `borough collection delete bench`.")]
    Bench(BenchArgs),
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Create the cluster, once, ever; a second time is refused
    Init(InitArgs),
    /// Nodes, shards and operations
    Status(StatusArgs),
    /// Compare what the replicas of each shard hold
    #[command(long_about = "Compare what the replicas of each shard hold\n\n\
        Every node hashes its replicas, one at a time, and hashes of the same log position are compared. A shard that is being written \
        is asked again until its replicas are met at the same position. The nodes' admin addresses must be reachable from here. \
        The exit code is 1 when replicas differ or some could not be compared.")]
    Check(CheckArgs),
    /// Spread replicas and leaders evenly over the nodes
    Rebalance(RebalanceArgs),
    /// Begin no more moves of an operation; those that have begun are finished
    #[command(after_help = "Example:\n  borough cluster pause 7")]
    Pause(OperationArgs),
    /// Go on with a paused operation
    #[command(after_help = "Example:\n  borough cluster resume 7")]
    Resume(OperationArgs),
    /// End an operation before its time: what is done stays, moves that have begun are taken back
    #[command(after_help = "Example:\n  borough cluster cancel 7")]
    Cancel(OperationArgs),
    /// Move everything off a node; refused at once when that could not end
    #[command(after_help = "Example:\n  borough cluster drain 4 --wait")]
    Drain(DrainArgs),
    /// Make a draining or drained node a member again
    #[command(after_help = "Example:\n  borough cluster undrain 4")]
    Undrain(NodeArg),
    /// Take a node out of the cluster for good; what it holds is moved off it first
    #[command(after_help = "Example:\n  borough cluster remove 4 --wait")]
    Remove(DrainArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough cluster check --wait-seconds 60")]
pub struct CheckArgs {
    #[command(flatten)]
    pub target: Target,
    /// For how long the replicas of a shard are asked again when they stand at different positions
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub wait_seconds: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough cluster rebalance --plan")]
pub struct RebalanceArgs {
    #[command(flatten)]
    pub target: Target,
    /// Only show the moves, the bytes, and what each node holds before and after
    #[arg(long)]
    pub plan: bool,
    /// Do not ask
    #[arg(long, conflicts_with = "plan")]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct OperationArgs {
    /// Its id, as `cluster status` shows it
    pub operation: String,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Debug, Args)]
pub struct NodeArg {
    /// Its id, as `cluster status` shows it
    pub node: u64,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Its id, as `cluster status` shows it
    pub node: u64,
    #[command(flatten)]
    pub target: Target,
    /// Wait until it is done, with a progress bar on a terminal
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough cluster init --node 10.0.0.1:7070 --shards 64")]
pub struct InitArgs {
    /// gRPC address of a node without data
    #[arg(long, value_name = "ADDR")]
    pub node: String,
    /// Into how many shards the hash space is cut
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=i64::from(borough_proto::limits::SHARDS_MAX)))]
    pub shards: u32,
    /// How many replicas a shard gets once there are nodes enough
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=i64::from(borough_proto::limits::REPLICAS_MAX)))]
    pub replicas: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough cluster status --json")]
pub struct StatusArgs {
    #[command(flatten)]
    pub target: Target,
    /// The status document as JSON
    #[arg(long)]
    pub json: bool,
    /// Again every second, until interrupted
    #[arg(long)]
    pub watch: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn each(command: &clap::Command, check: &mut impl FnMut(&clap::Command)) {
        check(command);
        for command in command.get_subcommands() {
            each(command, check);
        }
    }

    #[test]
    fn the_help_of_every_command_ends_with_an_example() {
        let mut command = Cli::command();
        command.build();
        let mut count = 0;
        each(&command, &mut |command| {
            count += 1;
            for help in [command.clone().render_help(), command.clone().render_long_help()] {
                let help = help.to_string();
                let last: Vec<_> = help.trim_end().lines().rev().take(2).collect();
                let name = command.get_name();
                assert!(last[0].trim_start().starts_with("borough "), "{name}: {help}");
                assert_eq!(last[1], "Example:", "{name}: {help}");
            }
        });
        assert_eq!(count, 28, "a command was added or lost");
    }

    #[test]
    fn the_examples_are_accepted_by_the_parser() {
        let mut command = Cli::command();
        command.build();
        each(&command, &mut |command| {
            let help = command.clone().render_help().to_string();
            let example = help.trim_end().lines().last().unwrap().trim().to_owned();
            // As a shell would: quotes off, redirections away.
            let example = example.split(" > ").next().unwrap();
            let mut words = Vec::new();
            for (index, part) in example.split('\'').enumerate() {
                if index % 2 == 1 {
                    words.push(part.to_owned());
                } else {
                    words.extend(part.split_whitespace().map(str::to_owned));
                }
            }
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("{example}: {error}");
            }
        });
    }

    #[test]
    fn a_token_is_not_shown() {
        let cli = Cli::try_parse_from(["borough", "get", "users", "1", "--token", "s3cret"]).unwrap();
        assert!(!format!("{cli:?}").contains("s3cret"));
    }

    #[test]
    fn the_contract_is_spoken() {
        for line in [
            "borough dev --nodes 3 --data-dir D --port 8080 --fresh --restart --engine fjall",
            "borough node --data-dir D --config F --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --advertise a:1 --zone z --join a:1,b:2",
            "borough router --config F --listen 127.0.0.1:0 --nodes a:1,b:2",
            "borough cluster init --node a:1 --shards 32 --replicas 3",
            "borough cluster status --json --watch --router http://r",
            "borough cluster check --wait-seconds 60 --router http://r",
            "borough cluster rebalance --plan",
            "borough cluster rebalance --yes --router http://r",
            "borough cluster pause 1",
            "borough cluster resume 1",
            "borough cluster cancel 1",
            "borough cluster drain 4 --wait",
            "borough cluster undrain 4",
            "borough cluster remove 4 --wait --token t",
            "borough collection create posts --sort-key --default-ttl 60s --require-preconditions",
            "borough collection list",
            "borough collection get posts",
            "borough collection delete posts",
            "borough get users 1",
            "borough get posts 1 --sort 2",
            "borough get users 1 --token t",
            "borough cluster status --token t",
            "borough put users 1 {} --if-absent --ttl 60s --idempotency-key k",
            "borough put users 1 - --if-match \"1\"",
            "borough patch users 1 @file",
            "borough delete users 1 --if-match \"1\"",
            "borough list posts --partition 1 --start a --end b --reverse",
            "borough import users f.ndjson --id id --sort sort --batch 100 --concurrency 8 --create",
            "borough export posts --partition 1",
            "borough bench --seconds 10 --connections 64 --mix get=95,put=5 --value-bytes 300 --keys 10000 --json",
            "borough bench --rate 500 --zipf 0.99 --collection c --router http://r,http://s --token t",
            "borough get users -1",
        ] {
            if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
        }
        for line in [
            "borough",
            "borough nosuch",
            "borough get users",
            "borough put users 1 {} --if-match e1 --if-absent",
            "borough cluster init --node a:1 --shards 0",
            "borough bench --seconds 0",
            "borough bench --collection c --requests f.json",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
