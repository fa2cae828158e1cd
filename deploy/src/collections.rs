//! `borough collection create|list|get|delete`.

use anyhow::{Result, bail};
use borough_proto::http_api::CollectionOptions;
use serde::Serialize;

use crate::cli::CollectionCommand;
use crate::documents::client;
use crate::exit::print;

/// Runs one of them; collections are printed as JSON, one a line.
///
/// # Errors
/// When the cluster refuses, or there is no such collection.
pub async fn run(command: CollectionCommand) -> Result<()> {
    match command {
        CollectionCommand::Create(args) => {
            let options = CollectionOptions {
                sort_key: args.sort_key,
                default_ttl: args.default_ttl,
                require_preconditions: args.require_preconditions,
            };
            line(&client(&args.target)?.admin().put_collection(&args.name, &options).await?)
        }
        CollectionCommand::List { target } => {
            for collection in client(&target)?.admin().collections().await? {
                line(&collection)?;
            }
            Ok(())
        }
        CollectionCommand::Get { name, target } => match client(&target)?.admin().collection(&name).await? {
            Some(collection) => line(&collection),
            None => bail!("no such collection: {name}"),
        },
        CollectionCommand::Delete { name, target } => {
            if client(&target)?.admin().delete_collection(&name).await? {
                Ok(())
            } else {
                bail!("no such collection: {name}")
            }
        }
    }
}

fn line<T: Serialize>(value: &T) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}
