//! One run: a cluster, its load, its faults, its history, and the verdict; everything is kept in one directory.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::RngExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::checker::{self, epoch};
use crate::cluster::{Cluster, Options, Preload};
use crate::nemesis::{Director, Nemesis, schedule};
use crate::prober::Prober;
use crate::record::{Call, Kind, Record, Recorder, calls, tools, write_edn};
use crate::replicas;
use crate::workload::{Site, Workload};

mod judge;
mod matrix;
mod plan;
mod report;

pub use matrix::run_all;
pub use plan::{Engine, Plan};
pub use report::{Report, Verdict, table};

/// Transactions, for Elle.
const ELLE: &str = "elle.edn";
/// A directory with a file for each register, for Knossos.
const KNOSSOS: &str = "knossos";

/// For calls under way to end: longer than any caller waits.
const CALLS_LIMIT: Duration = Duration::from_secs(60);

/// Why a run is no pass.
enum Failure {
    /// The product broke a promise.
    Violation(anyhow::Error),
    /// The harness could not do what it should.
    Harness(anyhow::Error),
}

/// What a run has shown so far.
#[derive(Debug, Default)]
struct Seen {
    records: Vec<Record>,
    faults: usize,
    /// Faults that could not be made, and why.
    missed: Vec<String>,
    /// What the checkers said.
    judged: Vec<String>,
}

/// Carries a plan out. What it found is in the report; everything else in the report's directory.
pub async fn run(plan: &Plan) -> Report {
    if let Err(error) = plan.named() {
        return Report::new(plan, Verdict::Broken(format!("{error:#}")), &[], 0, Vec::new(), None);
    }
    if let Some(reason) = plan.skipped() {
        return Report::new(plan, Verdict::Skipped(reason), &[], 0, Vec::new(), None);
    }
    let dir = plan.dir();
    let mut seen = Seen::default();
    let ran = Box::pin(run_in(plan, &dir, &mut seen)).await;
    let verdict = match ran {
        Ok(()) => Verdict::Passed,
        Err(Failure::Violation(error)) => Verdict::Violation(format!("{error:#}")),
        Err(Failure::Harness(error)) => Verdict::Broken(format!("{error:#}")),
    };
    let report = Report::new(plan, verdict, &seen.records, seen.faults, seen.missed, Some(dir.clone()));
    if let Err(error) = report::write(&report, &dir, &seen.records, &seen.judged) {
        eprintln!("write the report into {}: {error:#}", dir.display());
    }
    if report.verdict == Verdict::Passed && std::env::var_os("JEPSEN_KEEP").is_none() {
        remove_data(&dir);
    }
    report
}

/// Data directories are of use only to those who look for a cause.
fn remove_data(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let data = entries.flatten().filter(|entry| entry.path().is_dir() && entry.file_name() != KNOSSOS);
    for entry in data {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

async fn run_in(plan: &Plan, dir: &Path, seen: &mut Seen) -> Result<(), Failure> {
    let harness = Failure::Harness;
    std::fs::create_dir_all(dir)
        .with_context(|| format!("make {}", dir.display()))
        .and_then(|()| report::write_command(plan, dir))
        .map_err(harness)?;
    let mut cluster =
        Cluster::start(options(plan, dir)).await.context("start the cluster").map_err(harness)?;
    let recorder =
        Recorder::create(&dir.join("history.jsonl")).context("create the history").map_err(harness)?;
    let site =
        Site::prepare(plan.workload, &cluster, plan.through, recorder.clone(), plan.callers, plan.seed);
    let site = site.await.context("prepare the workload").map_err(harness)?;
    let director = Director::new(recorder.clone(), plan.other_binary());
    let lived = live(plan, &mut cluster, &site, &director).await;
    is_broken_on_purpose(plan, dir).map_err(harness)?;
    seen.faults = director.injected();
    seen.missed = director.failures();
    let equal = match lived {
        Ok(()) => compare(&mut cluster, &director).await.map(Some),
        Err(_) => Ok(None),
    };
    let crashed = crashed(&mut cluster);
    let finished = recorder.finish().context("write the history").map_err(harness);
    seen.records = finished?;
    write_history(plan.workload, &seen.records, dir).map_err(harness)?;
    crashed.map_err(Failure::Violation)?;
    lived?;
    judge_equality(equal, plan, seen)?;
    // Dropped only here: a verdict on what was answered does not need it, its logs do.
    drop(cluster);
    let calls = calls(&seen.records).context("pair the calls of the history").map_err(harness)?;
    let (calls, probes) = epoch::split(calls);
    let judged = [
        judge::judge(plan.workload, &calls, judge::tolerance(&plan.nemeses)),
        epoch::check(&probes, epoch::membership_changed(&seen.records)),
    ];
    seen.judged.extend(judged.iter().map(ToString::to_string));
    let any = |wanted: fn(&checker::Verdict) -> bool| judged.iter().find(|report| wanted(&report.verdict));
    if let Some(told) = any(|verdict| matches!(verdict, checker::Verdict::Invalid(_))) {
        return Err(Failure::Violation(anyhow::anyhow!("{told}")));
    }
    if let Some(told) = any(|verdict| matches!(verdict, checker::Verdict::Unknown(_))) {
        return Err(Failure::Harness(anyhow::anyhow!("{told}")));
    }
    let faults = site.faults();
    if !faults.is_empty() {
        return Err(Failure::Violation(anyhow::anyhow!("answers break the contract: {}", faults.join("; "))));
    }
    enough(plan, &calls, &director).map_err(harness)
}

/// Compares the replicas. It reads all there is, so damage that was done to a node may be found, and end it, only now.
async fn compare(cluster: &mut Cluster, director: &Director) -> anyhow::Result<checker::Report> {
    for _ in 0..cluster.nodes.len() {
        match replicas::compare(cluster).await {
            Err(_) if director.revive(cluster).await? => {}
            compared => return compared,
        }
    }
    replicas::compare(cluster).await
}

/// What the comparison of replicas at rest means for the run.
fn judge_equality(
    equal: anyhow::Result<Option<checker::Report>>,
    plan: &Plan,
    seen: &mut Seen,
) -> Result<(), Failure> {
    let Some(equal) = equal.context("compare replicas").map_err(Failure::Violation)? else { return Ok(()) };
    seen.judged.push(equal.to_string());
    let told = anyhow::anyhow!("{equal}");
    match equal.verdict {
        checker::Verdict::Valid => Ok(()),
        checker::Verdict::Invalid(_) => Err(Failure::Violation(told)),
        // One node has nothing to compare with.
        checker::Verdict::Unknown(_) if plan.nodes == 1 => Ok(()),
        checker::Verdict::Unknown(_) => Err(Failure::Harness(told)),
    }
}

/// Log that a shard keeps in runs in which nodes come and go, in bytes: the least that a node can be told.
const PURGE_AFTER_BYTES: u64 = 64 << 10;

fn options(plan: &Plan, dir: &Path) -> Options {
    let mut env = Vec::new();
    if let Some(engine) = plan.engine {
        env.push(("BOROUGH_ENGINE".to_owned(), engine.name().to_owned()));
    }
    env.extend(plan.defect.iter().map(|defect| ("JEPSEN_DEFECT".to_owned(), defect.clone())));
    if plan.nemeses.iter().any(|nemesis| nemesis.changes_members()) {
        env.push(("BOROUGH_PLACEMENT__SETTLE".to_owned(), "1s".to_owned()));
        // What a run writes is little: newcomers would be sent the log alone, never a snapshot.
        env.push(("BOROUGH_LOG__PURGE_AFTER_BYTES".to_owned(), PURGE_AFTER_BYTES.to_string()));
    }
    if plan.nemeses.contains(&Nemesis::BitFlip) {
        // A node that refuses its damaged directory is replaced within the run.
        env.push(("BOROUGH_RAFT__DOWN_AFTER".to_owned(), "8s".to_owned()));
    }
    let journal = plan.nemeses.iter().any(|nemesis| nemesis.needs_journal() || *nemesis == Nemesis::Mix);
    Options {
        nodes: plan.nodes,
        shards: plan.shards,
        replicas: if plan.nodes >= 5 { 5 } else { 3 },
        env,
        routers: plan.routers,
        links: plan.nemeses.iter().any(|nemesis| nemesis.needs_links()),
        preload: plan.preload().map(|library| Preload { library: library.to_owned(), journal }),
        callers: plan.nemeses.iter().any(|nemesis| nemesis.needs_callers()).then_some(plan.seed),
        dir: Some(dir.to_owned()),
        ..Options::default()
    }
}

/// Load and faults, then healing, then the last reads.
async fn live(
    plan: &Plan,
    cluster: &mut Cluster,
    site: &Arc<Site>,
    director: &Director,
) -> Result<(), Failure> {
    let prober = Prober::start(cluster, site.recorder.clone()).await.context("start to ask for epochs");
    let prober = prober.map_err(Failure::Harness)?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    for number in 0..plan.callers {
        tasks.spawn(call(Arc::clone(site), number, plan.pause(), stop.clone()));
    }
    tasks.close();
    let events = schedule(&plan.nemeses, plan.seed, plan.length, plan.means());
    let directed = director.run(cluster, &events, plan.length).await;
    // Callers go on while it heals: what comes back must come back under load.
    let healed = match directed {
        Ok(()) => director.heal(cluster).await.context("heal"),
        Err(error) => Err(error),
    };
    stop.cancel();
    prober.stop().await;
    let ended = tokio::time::timeout(CALLS_LIMIT, tasks.wait()).await.context("callers do not end");
    ended.map_err(Failure::Harness)?;
    healed.map_err(Failure::Violation)?;
    site.caller(plan.callers).last_reads().await.map_err(Failure::Violation)
}

async fn call(site: Arc<Site>, number: u64, pause: Duration, stop: CancellationToken) {
    let mut caller = site.caller(number);
    while !stop.is_cancelled() {
        caller.step().await;
        let pause = pause.mul_f64(caller.rng.random_range(0.5..1.5));
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether a node ended that nobody had killed.
fn crashed(cluster: &mut Cluster) -> anyhow::Result<()> {
    for node in cluster.nodes.iter_mut().filter(|node| node.running()) {
        let name = node.name().to_owned();
        if let Some(status) = node.process()?.ended()? {
            let told = node.process()?.log_tail(20);
            ensure!(!node.excused_by()?.is_empty(), "{name} ended by itself, {status}: {told}");
        }
    }
    Ok(())
}

/// The history in EDN, and what of it Elle and Knossos take.
fn write_history(workload: Workload, records: &[Record], dir: &Path) -> anyhow::Result<()> {
    write_file(records, &dir.join("history.edn"))?;
    match workload {
        Workload::Append => write_file(&tools::for_elle(records), &dir.join(ELLE))?,
        Workload::Register => {
            let dir = dir.join(KNOSSOS);
            std::fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
            for (key, records) in tools::for_knossos(records) {
                write_file(&records, &dir.join(format!("{key}.edn")))?;
            }
        }
        Workload::Ttl
        | Workload::Set
        | Workload::Counter
        | Workload::Idempotent
        | Workload::Session
        | Workload::Stale
        | Workload::Scan => {}
    }
    Ok(())
}

fn write_file(records: &[Record], path: &Path) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    write_edn(records, BufWriter::new(file)).with_context(|| format!("write {}", path.display()))
}

/// A history in which nothing happened breaks no promise, and shows nothing.
fn enough(plan: &Plan, calls: &[Call], director: &Director) -> anyhow::Result<()> {
    let (ok, least) = (checker::counts(calls).ok as u64, plan.length.as_secs() * 3);
    ensure!(ok >= least, "only {ok} calls succeeded, of at least {least}");
    let read = |call: &Call| call.f == plan.workload.read_function() && call.end == Kind::Ok;
    ensure!(calls.iter().any(read), "no read succeeded");
    took_effect(&plan.nemeses, director.injected(), |nemesis| director.injected_by(nemesis))
        .with_context(|| format!("faults that failed: {}", director.failures().join("; ")))
}

/// Every nemesis that was named made a fault; `all` are those of all, `of` those of one.
fn took_effect(nemeses: &[Nemesis], all: usize, of: impl Fn(Nemesis) -> usize) -> anyhow::Result<()> {
    let quiet = nemeses.iter().all(|nemesis| *nemesis == Nemesis::None);
    ensure!(quiet || all > 0, "no fault took effect");
    // `mix` makes those of others.
    let named = nemeses.iter().filter(|nemesis| !matches!(nemesis, Nemesis::None | Nemesis::Mix));
    for nemesis in named {
        ensure!(of(*nemesis) > 0, "no fault of {} took effect", nemesis.name());
    }
    Ok(())
}

/// Whether a node has the defect that it was given.
fn is_broken_on_purpose(plan: &Plan, dir: &Path) -> anyhow::Result<()> {
    let Some(defect) = &plan.defect else { return Ok(()) };
    let told = std::fs::read_to_string(dir.join("node-1.err")).context("read the log of node-1")?;
    ensure!(
        told.contains("a rule is broken on purpose"),
        "the binary has no defect {defect:?}: is it built with the feature `defects`, and is there one of that name?"
    );
    Ok(())
}

/// Judges the history in a file; gives what the checker says, and an exit code.
///
/// # Errors
/// When the file is no history.
pub fn check_file(workload: Workload, path: &Path) -> anyhow::Result<(String, u8)> {
    let records = crate::record::read(path).with_context(|| format!("read {}", path.display()))?;
    let calls = calls(&records).context("pair the calls of the history")?;
    let (calls, probes) = epoch::split(calls);
    let mut judged = vec![judge::judge(workload, &calls, judge::tolerance(&judge::nemeses_of(&records)))];
    let changed = epoch::membership_changed(&records);
    // Earlier histories have none.
    if changed || !probes.is_empty() {
        judged.push(epoch::check(&probes, changed));
    }
    let code = |report: &checker::Report| match report.verdict {
        checker::Verdict::Valid => 0,
        checker::Verdict::Invalid(_) => 1,
        checker::Verdict::Unknown(_) => 2,
    };
    // A violation goes before what could not be decided.
    let codes: Vec<u8> = judged.iter().map(code).collect();
    let code = codes.iter().copied().find(|code| *code == 1).or(codes.iter().copied().max()).unwrap_or(2);
    let told: Vec<String> = judged.iter().map(ToString::to_string).collect();
    Ok((told.join("\n"), code))
}

/// Where runs are kept unless told.
fn default_artefacts() -> PathBuf {
    PathBuf::from("target/jepsen")
}

/// For tests and the command line: the workloads and nemeses that there are.
pub fn list() -> String {
    let mut lines = vec!["workloads:".to_owned()];
    lines.extend(
        Workload::ALL.iter().map(|workload| format!("  {:<20} {}", workload.name(), workload.about())),
    );
    lines.push("nemeses:".to_owned());
    lines.extend(Nemesis::ALL.iter().map(|nemesis| format!("  {:<20} {}", nemesis.name(), nemesis.about())));
    lines.join("\n")
}

#[cfg(test)]
mod tests;
