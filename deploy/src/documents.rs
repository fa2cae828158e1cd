//! `borough get`, `put`, `patch`, `delete`, `list`: documents, one at a time or listed.
//! Results go to stdout as JSON, exactly as the cluster gives them.

use std::io::Read;
use std::ops::Bound;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use borough_client::{Client, ClientBuilder, Json, Listing, Written};
use futures::TryStreamExt;

use crate::cli::{DeleteArgs, GetArgs, Key, ListArgs, PatchArgs, PutArgs, Target};
use crate::exit::print;
use crate::export::one_line;

/// Of one call, its retries included: longer than an election, short for a person.
const DEADLINE: Duration = Duration::from_secs(5);
/// Documents asked for at a time.
const PAGE: u32 = 1000;

/// A client of the router that the command line names.
///
/// # Errors
/// When that is no URL.
pub fn client(target: &Target) -> Result<Client> {
    Ok(builder(target).deadline(DEADLINE).build()?)
}

/// The router that the command line names, and the token.
pub fn builder(target: &Target) -> ClientBuilder {
    let builder = Client::builder().router(&target.router);
    // A variable that is set to nothing is how a shell leaves one out.
    match target.token.as_ref().filter(|token| !token.reveal().is_empty()) {
        Some(token) => builder.bearer_token(token.reveal()),
        None => builder,
    }
}

/// Prints a document.
///
/// # Errors
/// When there is none.
pub async fn get(args: GetArgs) -> Result<()> {
    let client = client(&args.target)?;
    let Key { collection, id, sort } = &args.key;
    let found = match sort {
        None => client.raw(collection).get(id).await?,
        Some(sort) => client.sorted::<Json>(collection).get(id, sort).await?,
    };
    match found {
        Some(document) => print_line(document.value.get()),
        None => bail!("no such document: {}", name(&args.key)),
    }
}

/// Writes a document and prints its receipt.
///
/// # Errors
/// When it is not JSON or the cluster refuses it.
pub async fn put(args: PutArgs) -> Result<()> {
    let client = client(&args.target)?;
    let document = json(&args.document)?;
    let Key { collection, id, sort } = &args.key;
    let mut put = match sort {
        None => client.raw(collection).put(id, &document),
        Some(sort) => client.sorted::<Json>(collection).put(id, sort, &document),
    };
    if let Some(etag) = args.write.if_match {
        put = put.if_match(etag);
    }
    if args.if_absent {
        put = put.if_absent();
    }
    if let Some(ttl) = ttl(args.ttl.as_deref())? {
        put = put.ttl(ttl);
    }
    if let Some(key) = args.write.idempotency_key {
        put = put.idempotency_key(key);
    }
    print_line(&receipt(&put.await?))
}

/// Merges a patch and prints the document that comes of it.
///
/// # Errors
/// When there is no document, or the cluster refuses the patch.
pub async fn patch(args: PatchArgs) -> Result<()> {
    let client = client(&args.target)?;
    let merge = json(&args.merge)?;
    let Key { collection, id, sort } = &args.key;
    let mut patch = match sort {
        None => client.raw(collection).patch(id, &merge),
        Some(sort) => client.sorted::<Json>(collection).patch(id, sort, &merge),
    };
    if let Some(etag) = args.write.if_match {
        patch = patch.if_match(etag);
    }
    if let Some(ttl) = ttl(args.ttl.as_deref())? {
        patch = patch.ttl(ttl);
    }
    if let Some(key) = args.write.idempotency_key {
        patch = patch.idempotency_key(key);
    }
    print_line(patch.await?.value.get())
}

/// Deletes a document.
///
/// # Errors
/// When there is none, or it is at another version.
pub async fn delete(args: DeleteArgs) -> Result<()> {
    let client = client(&args.target)?;
    let Key { collection, id, sort } = &args.key;
    let mut delete = match sort {
        None => client.raw(collection).delete(id),
        Some(sort) => client.sorted::<Json>(collection).delete(id, sort),
    };
    if let Some(etag) = args.write.if_match {
        delete = delete.if_match(etag);
    }
    if let Some(key) = args.write.idempotency_key {
        delete = delete.idempotency_key(key);
    }
    if delete.await? { Ok(()) } else { bail!("no such document: {}", name(&args.key)) }
}

/// Prints documents, one a line.
///
/// # Errors
/// When a page cannot be read.
pub async fn list(args: ListArgs) -> Result<()> {
    let client = client(&args.target)?;
    let limit = args.limit.unwrap_or(u64::MAX);
    let mut listing = listing(&client, &args.collection, args.partition.as_deref());
    if args.start.is_some() || args.end.is_some() {
        let start = args.start.map_or(Bound::Unbounded, Bound::Included);
        let end = args.end.map_or(Bound::Unbounded, Bound::Excluded);
        listing = listing.range((start, end));
    }
    if args.reverse {
        listing = listing.reverse();
    }
    let page = u32::try_from(limit).unwrap_or(PAGE).clamp(1, PAGE);
    let mut listing = listing.page_size(page);
    let mut count = 0;
    while count < limit {
        let Some(document) = listing.try_next().await? else { break };
        print_line(&one_line(document.get()))?;
        count += 1;
    }
    Ok(())
}

/// All documents of a collection, or of a partition of a sorted one.
pub fn listing(client: &Client, collection: &str, partition: Option<&str>) -> Listing<Json> {
    match partition {
        None => client.raw(collection).list(),
        Some(id) => client.sorted::<Json>(collection).partition(id),
    }
}

fn print_line(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}

fn name(key: &Key) -> String {
    match &key.sort {
        None => format!("{}/{}", key.collection, key.id),
        Some(sort) => format!("{}/{}/{sort}", key.collection, key.id),
    }
}

fn receipt(written: &Written) -> String {
    let mut receipt = serde_json::json!({
        "id": written.id,
        "etag": written.etag.as_str(),
        "created": written.created,
    });
    if let (Some(sort), Some(receipt)) = (&written.sort, receipt.as_object_mut()) {
        receipt.insert("sort".to_owned(), sort.as_str().into());
    }
    receipt.to_string()
}

fn ttl(text: Option<&str>) -> Result<Option<Duration>> {
    let millis = text.map(borough_proto::http_api::parse_ttl).transpose().map_err(anyhow::Error::msg)?;
    Ok(millis.map(Duration::from_millis))
}

/// JSON from the argument itself, from `@FILE`, or from stdin (`-`).
fn json(argument: &str) -> Result<Json> {
    let text = if argument == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read stdin")?;
        text
    } else if let Some(path) = argument.strip_prefix('@') {
        std::fs::read_to_string(path).with_context(|| format!("read {path}"))?
    } else {
        argument.to_owned()
    };
    serde_json::from_str(&text).context("the document is not JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_taken_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.json");
        std::fs::write(&path, " { \"n\" : 1.00 } \n").unwrap();
        assert_eq!(json(&format!("@{}", path.display())).unwrap().get(), "{ \"n\" : 1.00 }");
        assert_eq!(
            json("{\"a\": 12345678901234567890123}").unwrap().get(),
            "{\"a\": 12345678901234567890123}"
        );
        assert!(json("{a}").is_err());
    }
}
