//! The binary as a person or a script meets it: exit codes, messages, children.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::{Command, Output, Stdio};

fn borough(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_borough"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BOROUGH_") {
            command.env_remove(name);
        }
    }
    command.args(args).envs(env.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn bad_configuration_lists_all_faults_and_exits_with_78() {
    let output = borough(
        &["node", "--listen", "nowhere", "--set", "raft.heartbeat=1ms", "--set", "nosuch=1"],
        &[("BOROUGH_ENGINE", "rocks"), ("BOROUGH_ROUTER", "http://127.0.0.1:1")],
    );
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(78), "{text}");
    for part in ["5 faults", "data-dir", "listen", "--listen", "raft.heartbeat", "nosuch", "BOROUGH_ENGINE"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let output = borough(&["router", "--set", "nosuch=1"], &[]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
}

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() {
    assert_eq!(borough(&["nosuch"], &[]).status.code(), Some(2));
    assert_eq!(borough(&["get", "users", "1", "--log", "=="], &[]).status.code(), Some(2));
    let help = borough(&["cluster", "init", "--help"], &[]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).trim_end().ends_with("--shards 64"));
}

#[test]
fn a_router_that_does_not_answer_is_a_failure_with_1() {
    // Port 1 of this machine: nobody listens there.
    let output = borough(&["get", "users", "1", "--router", "http://127.0.0.1:1"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("127.0.0.1:1"), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_service_that_follows_somebody_who_is_not_its_parent_does_not_start() {
    let output = borough(&["node", "--data-dir", "/nonexistent", "--die-with-parent", "1"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("parent"), "{}", stderr(&output));
}
