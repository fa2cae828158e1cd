//! `borough bench`: a load on the cluster, or on what it is compared with, and what became of it.
//!
//! The load itself is `borough_benches`; here are the collection, the looks and the exit code.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use borough_benches::load::{Load, Progress};
use borough_benches::report::Report;
use borough_benches::service::Service;
use borough_client::{Client, Error};
use borough_proto::http_api::CollectionOptions;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::cli::BenchArgs;
use crate::documents::client;
use crate::exit::{Failure, print};

/// A collection that was just created is known to every router after this.
const CREATED_MAX: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(50);
const DRAW_EVERY: Duration = Duration::from_millis(250);

/// Runs a load and prints its report.
///
/// # Errors
/// Usage, when the options make no sense together; else when the load could not begin, or a request was not answered as it should.
pub async fn run(args: BenchArgs) -> Result<(), Failure> {
    let service = service(&args)?;
    let load = Load::new(service, args.load.clone()).map_err(|fault| Failure::Usage(format!("{fault:#}")))?;
    if args.requests.is_none() {
        prepare(&args).await?;
    }
    let report = watched(&load, &args).await?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report).context("print the report")?))?;
    } else {
        print(&report.to_string())?;
    }
    match report.failed() {
        0 => Ok(()),
        failed => {
            let all = HumanCount(report.all.requests + failed);
            Err(anyhow!("{} of {all} requests failed", HumanCount(failed)).into())
        }
    }
}

/// What the load is put on.
fn service(args: &BenchArgs) -> Result<Service, Failure> {
    let usage = |flag: &str, fault: String| Failure::Usage(format!("{flag}: {fault}"));
    let service = match &args.requests {
        None => Service::borough(&args.router, &args.collection).map_err(|fault| usage("--router", fault))?,
        Some(path) => {
            let text = read(path)?;
            Service::described(&args.router, &text).map_err(|fault| usage("--router or --requests", fault))?
        }
    };
    // A variable that is set to nothing is how a shell leaves one out.
    match args.token.as_ref().filter(|token| !token.reveal().is_empty()) {
        Some(token) => service.with_token(token.reveal()).map_err(|fault| usage("--token", fault)),
        None => Ok(service),
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Makes the collection where it is missing, and waits until every router knows it.
async fn prepare(args: &BenchArgs) -> Result<()> {
    let clients = args.targets().map(|target| client(&target)).collect::<Result<Vec<_>>>()?;
    let name = &args.collection;
    let first = clients.first().context("no router")?;
    match first.admin().collection(name).await {
        Ok(Some(found)) if found.sort_key => {
            bail!("{name} has a sort key: name a collection without one with --collection")
        }
        Ok(Some(_)) => {}
        Ok(None) => {
            first.admin().put_collection(name, &CollectionOptions::default()).await?;
        }
        // Then it must be there.
        Err(Error::Forbidden(_)) if knows(first, name).await => {}
        Err(Error::Forbidden(_)) => {
            bail!("no such collection: {name}, and the token lacks the right `admin`, which creates one")
        }
        Err(error) => return Err(error).context("ask the router for the collection"),
    }
    let patience = Instant::now() + CREATED_MAX;
    for client in &clients {
        while !knows(client, name).await {
            if Instant::now() > patience {
                bail!("a router does not know the collection {name} {CREATED_MAX:?} after it was made");
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
    Ok(())
}

/// Any other failure is the load's to tell.
async fn knows(client: &Client, collection: &str) -> bool {
    let page = client.raw(collection).list().page_size(1).page().await;
    !matches!(page, Err(Error::CollectionNotFound(_)))
}

/// Runs the load, with progress on a terminal.
async fn watched(load: &Load, args: &BenchArgs) -> Result<Report> {
    if args.load.preload() {
        let bar = bar("{bar:30} {human_pos}/{human_len} documents written {eta}", args.load.keys);
        let draw = |progress: &Progress| bar.set_position(progress.answered());
        let written = watch(load.preload(), || draw(load.progress())).await;
        bar.finish_and_clear();
        written?;
    }
    let millis = (args.load.warm_up + args.load.seconds) * 1000.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a day at most, from 0")]
    let bar = bar("{bar:30} {msg} {eta}", millis as u64);
    let (start, before) = (Instant::now(), load.progress().answered());
    let draw = || {
        let (elapsed, progress) = (start.elapsed(), load.progress());
        bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        bar.set_message(line(progress.answered() - before, progress.failed(), elapsed));
    };
    let report = watch(load.measure(), draw).await;
    bar.finish_and_clear();
    report
}

/// What is shown of a load under way.
fn line(answered: u64, failed: u64, elapsed: Duration) -> String {
    let per_second = answered as f64 / elapsed.as_secs_f64().max(0.001);
    let failed = if failed > 0 { format!(", {} failed", HumanCount(failed)) } else { String::new() };
    format!("{} requests, {per_second:.0}/s{failed}", HumanCount(answered))
}

/// `work`, and `draw` now and then meanwhile.
async fn watch<T>(work: impl Future<Output = T>, draw: impl Fn()) -> T {
    let mut tick = tokio::time::interval(DRAW_EVERY);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = tick.tick() => draw(),
        }
    }
}

/// Shown on a terminal only.
fn bar(template: &str, length: u64) -> ProgressBar {
    // The templates are our own; a fault in one only changes the looks.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(line: &str) -> BenchArgs {
        let words = ["borough", "bench"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Bench(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_cannot_be_loaded_is_wrong_usage_that_names_the_flag() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("requests.json");
        std::fs::write(&file, r#"{"get":{"method":"GET","path":"/{kee}"}}"#).unwrap();
        let requests = format!("--router http://a:1 --requests {}", file.display());
        for (line, named) in [
            ("--router localhost:8080", "--router: \"localhost:8080\""),
            ("--router http://a:1,https://b:1", "--router: \"https://b:1\""),
            (&requests, "requests: get: path: {kee}"),
        ] {
            let failure = service(&args(line)).unwrap_err();
            assert!(failure.code() == 2 && failure.to_string().contains(named), "{line}: {failure}");
        }
        let missing = service(&args("--requests /nonexistent/requests.json")).unwrap_err();
        assert!(missing.code() == 1 && missing.to_string().contains("/nonexistent/"), "{missing}");
    }

    #[test]
    fn routers_share_a_token() {
        let args = args("--router http://a:1,http://b:1 --token s3cret");
        let targets: Vec<_> = args.targets().map(|target| target.router).collect();
        assert_eq!(targets, ["http://a:1", "http://b:1"]);
        let service = service(&args).unwrap();
        assert!(!format!("{args:?} {service:?}").contains("s3cret"));
    }

    #[test]
    fn failures_are_shown_while_a_load_runs() {
        assert_eq!(line(5_000, 0, Duration::from_secs(2)), "5,000 requests, 2500/s");
        assert_eq!(line(0, 3, Duration::ZERO), "0 requests, 0/s, 3 failed");
    }
}
