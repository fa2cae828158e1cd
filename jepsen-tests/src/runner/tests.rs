//! Exit codes, what is skipped, and the command that repeats a run.

use serde_json::{Value, json};

use super::*;
use crate::checker::epoch::FENCE;
use crate::record::NEMESIS;

fn plan() -> Plan {
    Plan::new(Workload::Set, vec![Nemesis::KillLeader, Nemesis::Membership], Duration::from_secs(5), 9)
}

fn report(verdict: Verdict) -> Report {
    Report::new(&plan(), verdict, &[], 1, Vec::new(), None)
}

#[test]
fn a_violation_goes_before_a_failure_of_the_harness_and_nothing_run_is_no_pass() {
    let passed = report(Verdict::Passed);
    let skipped = report(Verdict::Skipped("no rights".to_owned()));
    let broken = report(Verdict::Broken("no port".to_owned()));
    let violation = report(Verdict::Violation("lost".to_owned()));
    assert_eq!(Report::exit_code(&[passed.clone(), skipped.clone()]), 0);
    assert_eq!(Report::exit_code(&[passed.clone(), broken.clone()]), 2);
    assert_eq!(Report::exit_code(&[broken.clone(), violation.clone(), passed]), 1);
    assert_eq!(Report::exit_code(&[]), 2);
    let shown = table(&[skipped, broken, violation]);
    for word in ["skipped", "broken", "VIOLATION", "kill-leader,membership"] {
        assert!(shown.contains(word), "{word} in {shown}");
    }
}

#[test]
fn what_takes_more_nodes_is_skipped_when_it_is_given_fewer() {
    let five = Plan::new(Workload::Set, vec![Nemesis::PartitionRing], Duration::from_secs(5), 9);
    assert_eq!(five.nodes, 5);
    assert!(Plan { nodes: 4, ..five }.skipped().is_some());
    assert!(plan().skipped().is_none());
    let cut = Plan::new(Workload::Set, vec![Nemesis::CutCallers], Duration::from_secs(5), 9);
    assert!(cut.skipped().is_none());
    assert!(Plan { through: crate::workload::Through::Direct, ..cut }.skipped().is_some());
}

#[tokio::test]
async fn a_build_that_is_not_there_is_a_wrong_name_and_no_machine_that_lacks_something() {
    let wrong = Plan { other_binary: Some("/nonexistent".into()), ..plan() };
    let report = Box::pin(run(&wrong)).await;
    assert!(matches!(&report.verdict, Verdict::Broken(why) if why.contains("/nonexistent")), "{report}");
    assert_eq!(Report::exit_code(&[report]), 2);
}

#[test]
fn what_a_mix_went_without_is_told() {
    let left_out =
        vec!["partition-ring: it takes at least 5 nodes".to_owned(), "disk-full: no library".to_owned()];
    let passed = Report { left_out, ..report(Verdict::Passed) };
    let told = passed.to_string();
    assert!(told.contains("passed, 2 kinds of fault skipped"), "{told}");
    assert!(told.contains("\n  skipped: partition-ring: it takes at least 5 nodes"), "{told}");
    assert!(table(&[passed]).contains("passed, 2 kinds of fault skipped"));
    assert!(!table(&[report(Verdict::Passed)]).contains("skipped"));
    // As many as all that it is made of takes.
    assert_eq!(Plan::new(Workload::Set, vec![Nemesis::Mix], Duration::from_secs(5), 9).nodes, 5);
}

#[test]
fn the_command_repeats_the_run() {
    let plan = Plan { engine: Some(Engine::Fjall), shards: 3, ..plan() };
    let command = plan.command();
    for part in [
        "--workload set",
        "--nemesis kill-leader,membership",
        "--seconds 5",
        "--seed 9",
        "--shards 3",
        "--engine fjall",
    ] {
        assert!(command.contains(part), "{part} in {command}");
    }
}

/// A history that a set passes, then what `more` takes down.
fn judged_with(more: impl FnOnce(&Recorder)) -> (String, u8) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.jsonl");
    let recorder = Recorder::create(&path).unwrap();
    let process = recorder.process();
    let ok = |f: &str, input: Value, output: Value| {
        recorder.invoke(process, f, "k", input);
        recorder.end(process, Kind::Ok, f, "k", output, None);
    };
    ok("add", json!(1), json!(1));
    ok("read", Value::Null, json!([1]));
    more(&recorder);
    recorder.finish().unwrap();
    check_file(Workload::Set, &path).unwrap()
}

#[test]
fn epochs_are_judged_beside_the_workload_and_moves_that_nobody_probed_show_nothing() {
    let fence = |recorder: &Recorder, named: u64, epoch: u64| {
        let process = recorder.process();
        recorder.invoke(process, FENCE, "shard-0", json!({"stream": 1, "named": named}));
        recorder.end(process, Kind::Ok, FENCE, "shard-0", json!({"node": 1, "epoch": epoch}), None);
    };
    let moved = |recorder: &Recorder| {
        recorder.end(NEMESIS, Kind::Info, "membership", "", json!({"phase": "end", "met": {"gave": 8}}), None)
    };
    assert_eq!(judged_with(|_| {}).1, 0);
    assert_eq!(judged_with(|recorder| fence(recorder, 3, 3)).1, 0);
    let (told, code) = judged_with(|recorder| fence(recorder, 3, 2));
    assert!(code == 1 && told.contains("set: valid") && told.contains("epoch: INVALID"), "{told}");
    assert_eq!(judged_with(moved).1, 2);
    // A violation goes before what shows nothing.
    let both = judged_with(|recorder| {
        moved(recorder);
        fence(recorder, 3, 2);
    });
    assert_eq!(both.1, 1, "{}", both.0);
}

#[test]
fn a_history_with_clocks_that_went_wrong_is_judged_as_its_run_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.jsonl");
    let read = json!({"maxStaleNs": 0});
    let lines = |with_fault: bool| {
        let ms = 1_000_000_u64;
        let mut records = vec![
            (ms, 0, "invoke", "write", json!(1)),
            (2 * ms, 0, "ok", "write", json!(1)),
            (3 * ms, 0, "invoke", "write", json!(2)),
            (4 * ms, 0, "ok", "write", json!(2)),
            // Half a second after it was overwritten.
            (500 * ms, 1, "invoke", "read", read.clone()),
            (501 * ms, 1, "ok", "read", json!(1)),
        ];
        if with_fault {
            records.insert(0, (0, NEMESIS, "info", "clock-drift", json!({"phase": "start"})));
        }
        let line = |(index, (time_ns, process, kind, f, value)): (usize, (u64, u64, &str, &str, Value))| {
            let key = if process == NEMESIS { "" } else { "k" };
            json!({"index": index, "time_ns": time_ns, "process": process, "kind": kind, "f": f, "key": key, "value": value})
                .to_string()
        };
        records.into_iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
    };
    for (with_fault, expected) in [(false, 1), (true, 0)] {
        std::fs::write(&path, lines(with_fault)).unwrap();
        let (told, code) = check_file(Workload::Stale, &path).unwrap();
        assert_eq!(code, expected, "{told}");
    }
}

#[test]
fn of_several_nemeses_each_must_take_effect() {
    let kills = |nemesis| usize::from(nemesis == Nemesis::KillLeader);
    let judged = |nemeses: &[Nemesis], all| took_effect(nemeses, all, kills).map_err(|no| no.to_string());
    assert_eq!(judged(&[Nemesis::KillLeader, Nemesis::None], 1), Ok(()));
    let missing = judged(&[Nemesis::KillLeader, Nemesis::SlowFsync], 1);
    assert_eq!(missing, Err("no fault of slow-fsync took effect".to_owned()));
    assert_eq!(judged(&[Nemesis::Mix], 0), Err("no fault took effect".to_owned()));
    assert_eq!(judged(&[Nemesis::Mix], 1), Ok(()));
    assert_eq!(judged(&[Nemesis::None], 0), Ok(()));
}
