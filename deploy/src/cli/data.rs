//! Options of the commands that read and write documents and collections.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Target;

#[derive(Debug, Subcommand)]
pub enum CollectionCommand {
    /// Create a collection; an existing one is left as it is when the options agree
    Create(CreateArgs),
    /// All collections
    #[command(after_help = "Example:\n  borough collection list")]
    List {
        #[command(flatten)]
        target: Target,
    },
    /// One collection
    #[command(after_help = "Example:\n  borough collection get posts")]
    Get {
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a collection with all its documents
    #[command(after_help = "Example:\n  borough collection delete posts")]
    Delete {
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough collection create sessions --default-ttl 3600s")]
pub struct CreateArgs {
    pub name: String,
    /// Items are keyed by id and sort, and lie sorted in the partition of their id
    #[arg(long)]
    pub sort_key: bool,
    /// Time to live of documents written without one, in seconds
    #[arg(long, value_name = "TTL", value_parser = ttl)]
    pub default_ttl: Option<String>,
    /// Refuse writes that say nothing about what they expect to find
    #[arg(long)]
    pub require_preconditions: bool,
    #[command(flatten)]
    pub target: Target,
}

/// Which document.
#[derive(Debug, Clone, Args)]
pub struct Key {
    pub collection: String,
    #[arg(allow_hyphen_values = true)]
    pub id: String,
    /// The item, in a sorted collection
    #[arg(long, allow_hyphen_values = true)]
    pub sort: Option<String>,
}

/// What a write may expect and say.
#[derive(Debug, Clone, Args)]
pub struct WriteArgs {
    /// Only when the document is at this version
    #[arg(long, value_name = "ETAG", value_parser = etag)]
    pub if_match: Option<String>,
    /// A repeat with the same key and document gets the first outcome and changes nothing
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough get posts 1 --sort 2")]
pub struct GetArgs {
    #[command(flatten)]
    pub key: Key,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough put users 1 '{\"name\":\"Ada\"}'")]
pub struct PutArgs {
    #[command(flatten)]
    pub key: Key,
    /// JSON, or `-` for stdin, or `@FILE`
    pub document: String,
    #[command(flatten)]
    pub write: WriteArgs,
    /// Only when there is no such document
    #[arg(long, conflicts_with = "if_match")]
    pub if_absent: bool,
    /// Time to live, in seconds
    #[arg(long, value_parser = ttl)]
    pub ttl: Option<String>,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough patch users 1 '{\"name\":null,\"age\":36}'")]
pub struct PatchArgs {
    #[command(flatten)]
    pub key: Key,
    /// A merge patch (RFC 7396), or `-` for stdin, or `@FILE`
    pub merge: String,
    #[command(flatten)]
    pub write: WriteArgs,
    /// Time to live, in seconds
    #[arg(long, value_parser = ttl)]
    pub ttl: Option<String>,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough delete users 1")]
pub struct DeleteArgs {
    #[command(flatten)]
    pub key: Key,
    #[command(flatten)]
    pub write: WriteArgs,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough list posts --partition 1 --reverse --limit 10")]
pub struct ListArgs {
    pub collection: String,
    /// Only the items of this id, in order (sorted collections)
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub partition: Option<String>,
    /// From this sort key on
    #[arg(long, value_name = "SORT", requires = "partition", allow_hyphen_values = true)]
    pub start: Option<String>,
    /// Up to this sort key, exclusive
    #[arg(long, value_name = "SORT", requires = "partition", allow_hyphen_values = true)]
    pub end: Option<String>,
    /// Last first
    #[arg(long, requires = "partition")]
    pub reverse: bool,
    /// At most so many documents; all without it
    #[arg(long)]
    pub limit: Option<u64>,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  borough import posts posts.ndjson --id userId --sort id")]
pub struct ImportArgs {
    pub collection: String,
    /// One JSON object a line; `-` for stdin (not resumable)
    pub file: PathBuf,
    /// Field with the id, a string or an integer
    #[arg(long, default_value = "id", value_name = "FIELD")]
    pub id: String,
    /// Field with the sort key, a string or an integer
    #[arg(long, value_name = "FIELD")]
    pub sort: Option<String>,
    /// Documents in a request
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub batch: u16,
    /// Requests at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Create the collection when it does not exist, with a sort key when --sort is given; the default
    #[arg(long, overrides_with = "no_create")]
    pub create: bool,
    /// Fail when the collection does not exist, rather than create it
    #[arg(long)]
    pub no_create: bool,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  borough export posts > posts.ndjson")]
pub struct ExportArgs {
    pub collection: String,
    /// Only the items of this id (sorted collections)
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub partition: Option<String>,
    /// Field that holds the id, as for import; found by itself when not given
    #[arg(long, value_name = "FIELD")]
    pub id: Option<String>,
    /// Field that holds the sort key, likewise
    #[arg(long, value_name = "FIELD")]
    pub sort: Option<String>,
    #[command(flatten)]
    pub target: Target,
}

fn ttl(text: &str) -> Result<String, String> {
    borough_proto::http_api::parse_ttl(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Quotes are part of an entity tag, and shells take them off: both forms are understood.
fn etag(text: &str) -> Result<String, String> {
    let quoted = if text.starts_with('"') { text.to_owned() } else { format!("\"{text}\"") };
    match borough_proto::document::parse_etag(&quoted) {
        Some(_) => Ok(quoted),
        None => Err("not an entity tag, such as \"1a2b\"".to_owned()),
    }
}
