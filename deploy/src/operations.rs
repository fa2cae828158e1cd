//! `borough cluster rebalance|pause|resume|cancel|drain|undrain|remove`: where replicas are, and the work that moves them.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use borough_client::{Admin, Error};
use borough_proto::http_api::{ClusterStatus, MoveStatus, OperationStatus, PlannedShare, RebalancePlan};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::cli::{DrainArgs, NodeArg, OperationArgs, RebalanceArgs, Target};
use crate::cluster::new_table;
use crate::documents::client;
use crate::exit::{print, say};

/// Between two looks at an operation.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// For a call that changes an operation: it may have to wait for another leader of the catalog. Each can be made again.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Without an answer for this long, watching ends; the operation goes on.
const SILENCE_MAX: Duration = Duration::from_secs(60);

fn admin(target: &Target) -> Result<Admin> {
    Ok(client(target)?.admin().deadline(CALL_LIMIT))
}

/// Shows the plan, asks, starts and watches.
///
/// # Errors
/// When the cluster refuses, or the operation does not end well.
pub async fn rebalance(args: RebalanceArgs) -> Result<()> {
    let admin = admin(&args.target)?;
    let plan = admin.rebalance_plan().await?;
    if plan.moves.is_empty() && plan.transfers == 0 {
        let (operations, status) = (admin.operations().await?, admin.status().await?);
        return print(&nothing(&plan, &operations, &status));
    }
    if args.plan {
        return print(&show(&plan));
    }
    if !args.yes {
        print(&show(&plan))?;
        if !agreed()? {
            bail!("nothing was done");
        }
    }
    let started = admin.rebalance().await?;
    if started.state == "paused" {
        bail!("operation {0} is paused: `borough cluster resume {0}` goes on with it", started.id);
    }
    watch(&admin, started).await
}

/// Asks on the terminal; where there is none, `--yes` has to say it.
fn agreed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody can be asked here: --yes starts the rebalance, --plan only shows it");
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "move these replicas? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Pauses an operation.
///
/// # Errors
/// When there is none of that id, or it has ended.
pub async fn pause(args: OperationArgs) -> Result<()> {
    told(&admin(&args.target)?.pause(&args.operation).await?)
}

/// Goes on with a paused operation.
///
/// # Errors
/// When there is none of that id, or it has ended.
pub async fn resume(args: OperationArgs) -> Result<()> {
    told(&admin(&args.target)?.resume(&args.operation).await?)
}

/// Cancels an operation.
///
/// # Errors
/// When there is none of that id, or it has ended.
pub async fn cancel(args: OperationArgs) -> Result<()> {
    told(&admin(&args.target)?.cancel(&args.operation).await?)
}

/// Moves everything off a node.
///
/// # Errors
/// When that could not end, or, with `--wait`, has not.
pub async fn drain(args: DrainArgs) -> Result<()> {
    let admin = admin(&args.target)?;
    let started = admin.drain(args.node).await?;
    if args.wait { watch(&admin, started).await } else { told(&started) }
}

/// Makes a draining node a member again.
///
/// # Errors
/// When there is no such node.
pub async fn undrain(args: NodeArg) -> Result<()> {
    let node = args.node;
    match admin(&args.target)?.undrain(node).await? {
        Some(cancelled) => told(&cancelled),
        None => print(&format!("node {node} is a member\n")),
    }
}

/// Takes a node out of the cluster, empty as it must be.
///
/// # Errors
/// When its replicas could not be moved off it, or, with `--wait`, have not been.
pub async fn remove(args: DrainArgs) -> Result<()> {
    let admin = admin(&args.target)?;
    let node = args.node;
    match admin.remove(node).await? {
        None => print(&format!("node {node} is removed\n")),
        Some(drain) if args.wait => {
            watch(&admin, drain).await?;
            print(&format!("node {node} is removed\n"))
        }
        Some(drain) => told(&drain),
    }
}

/// One line about an operation.
fn told(operation: &OperationStatus) -> Result<()> {
    let waits = operation.waits.as_ref().map(|why| format!(", waits: {why}")).unwrap_or_default();
    print(&format!(
        "operation {} ({}) {}: {} of {} moves, {} of {}{waits}\n",
        operation.id,
        operation.kind,
        operation.state,
        operation.moves_done,
        operation.moves_total,
        HumanBytes(operation.bytes_done),
        HumanBytes(operation.bytes_total),
    ))
}

/// Follows an operation to its end, with a bar on a terminal and a line for each change elsewhere.
async fn watch(admin: &Admin, mut operation: OperationStatus) -> Result<()> {
    let id = operation.id.clone();
    let target = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let template = "{bar:30} {pos}/{len} moves {msg} {elapsed}";
    let bar = target.with_style(ProgressStyle::with_template(template)?);
    let began = Instant::now();
    let mut answered = Instant::now();
    let mut line = String::new();
    while matches!(operation.state.as_str(), "running" | "paused") {
        let seconds = began.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate to look at")]
        let rate = (operation.bytes_done as f64 / seconds) as u64;
        let waits = operation.waits.as_ref().map(|why| format!(" waits: {why}")).unwrap_or_default();
        bar.set_length(operation.moves_total);
        bar.set_position(operation.moves_done);
        let (done, total) = (HumanBytes(operation.bytes_done), HumanBytes(operation.bytes_total));
        bar.set_message(format!("{done} of {total}, {}/s{waits}", HumanBytes(rate)));
        let now = format!("{} of {} moves{waits}", operation.moves_done, operation.moves_total);
        if bar.is_hidden() && now != line {
            say(&format!("operation {id}: {now}"));
            line = now;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        match admin.operation(&id).await {
            Ok(found) => {
                operation = found;
                answered = Instant::now();
            }
            Err(error @ Error::NotFound(_)) => return Err(error.into()),
            // A router or the meta leader is away; what is under way goes on without.
            Err(error) if answered.elapsed() > SILENCE_MAX => return Err(error.into()),
            Err(_) => {}
        }
    }
    bar.finish_and_clear();
    told(&operation)?;
    if operation.state == "done" { Ok(()) } else { bail!("operation {id} was {}", operation.state) }
}

/// Why a plan has nothing to do: what is under way counts as done in it, and what has no place to go is not in it.
fn nothing(plan: &RebalancePlan, operations: &[OperationStatus], status: &ClusterStatus) -> String {
    let open = operations.iter().filter(|operation| matches!(operation.state.as_str(), "running" | "paused"));
    let open: Vec<_> = open
        .map(|operation| {
            format!(
                "  operation {} ({}, {}): {} of {} moves\n",
                operation.id, operation.kind, operation.state, operation.moves_done, operation.moves_total
            )
        })
        .collect();
    let lacking = status.shards.iter().filter(|shard| shard.state == "underReplicated").count();
    let mut text = if !open.is_empty() {
        format!("nothing to move besides what is under way:\n{}", open.concat())
    } else if lacking > 0 {
        format!(
            "{lacking} of {} shards lack replicas that no node can take: nothing to move\n",
            status.shards.len()
        )
    } else {
        "replicas and leaders are even: there is nothing to move\n".to_owned()
    };
    text.push_str(&too_few(plan));
    text
}

/// The shards that lack replicas for want of nodes, if there are any.
fn too_few(plan: &RebalancePlan) -> String {
    if plan.short.is_empty() {
        return String::new();
    }
    let short: Vec<_> = plan.short.iter().map(u32::to_string).collect();
    format!("too few nodes for all replicas of shards {}\n", short.join(" "))
}

/// The plan for people.
fn show(plan: &RebalancePlan) -> String {
    let mut text = format!(
        "{} moves, {} to copy, {} leaders change nodes\n",
        plan.moves.len(),
        HumanBytes(plan.bytes),
        plan.transfers
    );
    if !plan.moves.is_empty() {
        let mut moves = new_table(&["shard", "from", "to", "bytes"], 3..4);
        for step in &plan.moves {
            moves.add_row(move_row(step));
        }
        text.push_str(&format!("{moves}\n"));
    }
    let mut nodes = new_table(&["node", "replicas", "leaders", "bytes"], 1..4);
    for node in &plan.nodes {
        let change = |of: fn(&PlannedShare) -> String| {
            let (before, after) = (of(&node.before), of(&node.after));
            if before == after { before } else { format!("{before} → {after}") }
        };
        nodes.add_row(vec![
            node.id.to_string(),
            change(|share| share.replicas.to_string()),
            change(|share| share.leaders.to_string()),
            change(|share| HumanBytes(share.bytes).to_string()),
        ]);
    }
    text.push_str(&format!("{nodes}\n"));
    text.push_str(&too_few(plan));
    text
}

fn move_row(step: &MoveStatus) -> Vec<String> {
    let node = |id: Option<u64>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let shard = step.shard.map_or_else(|| "meta".to_owned(), |shard| shard.to_string());
    vec![shard, node(step.from), node(step.to), HumanBytes(step.bytes).to_string()]
}

#[cfg(test)]
mod tests {
    use borough_proto::http_api::{PlannedNode, ShardStatus};

    use super::*;

    #[test]
    fn the_plan_tells_moves_bytes_and_shares() {
        let share = |replicas| PlannedShare { replicas, leaders: 1, bytes: replicas * 1024 };
        let plan = RebalancePlan {
            moves: vec![
                MoveStatus { shard: Some(7), from: Some(1), to: Some(4), bytes: 2048, ..Default::default() },
                MoveStatus { shard: None, from: None, to: Some(4), ..Default::default() },
            ],
            transfers: 3,
            bytes: 2048,
            nodes: vec![PlannedNode { id: 4, before: share(0), after: share(2) }],
            short: vec![9],
        };
        let text = show(&plan);
        for part in ["2 moves, 2.00 KiB to copy, 3 leaders", "7", "meta", "0 → 2", "shards 9"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_plan_without_moves_tells_why() {
        let even = (RebalancePlan::default(), ClusterStatus::default());
        assert!(nothing(&even.0, &[], &even.1).contains("are even"));
        let operation = |state: &str| OperationStatus {
            id: "10".to_owned(),
            kind: "rebalance".to_owned(),
            state: state.to_owned(),
            moves_done: 1,
            moves_total: 17,
            ..Default::default()
        };
        let paused = nothing(&even.0, &[operation("paused"), operation("done")], &even.1);
        assert!(!paused.contains("even") && paused.matches("operation 10").count() == 1, "{paused}");
        assert!(paused.contains("(rebalance, paused): 1 of 17 moves"), "{paused}");
        let shard = |state: &str| ShardStatus { state: state.to_owned(), ..Default::default() };
        let status =
            ClusterStatus { shards: vec![shard("underReplicated"), shard("healthy")], ..Default::default() };
        let plan = RebalancePlan { short: vec![3], ..Default::default() };
        let lacking = nothing(&plan, &[], &status);
        assert!(lacking.contains("1 of 2 shards lack") && lacking.contains("shards 3"), "{lacking}");
    }
}
