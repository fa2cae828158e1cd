use std::time::Duration;

use borough_node::Config;

use super::*;

fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn flag(key: &str, text: &str) -> Flag {
    Flag { name: format!("--{key}"), key: key.to_owned(), value: FlagValue::Text(text.to_owned()) }
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn faults(sources: &Sources) -> Vec<String> {
    load::<Config>(sources).unwrap_err().faults.iter().map(Fault::to_string).collect()
}

#[test]
fn later_sources_win_key_by_key() {
    let (_dir, path) = file(
        "data-dir = \"/file\"\nzone = \"file\"\n[raft]\nheartbeat = \"111ms\"\nsuspect-after = \"4s\"\n",
    );
    let sources = Sources {
        file: Some(path),
        environment: environment(&[
            ("BOROUGH_ZONE", "env"),
            ("BOROUGH_RAFT__HEARTBEAT", "222ms"),
            ("BOROUGH_CACHE_BYTES", "2097152"),
            ("BOROUGH_JOIN", "a:1, b:2"),
            ("HOME", "/"),
        ]),
        flags: vec![flag("zone", "flag")],
        ..Sources::default()
    };
    let config: Config = load(&sources).unwrap();
    assert_eq!(config.data_dir, Path::new("/file"));
    assert_eq!(config.zone, "flag");
    assert_eq!(config.raft.heartbeat, Duration::from_millis(222));
    assert_eq!(config.raft.suspect_after, Duration::from_secs(4));
    assert_eq!(config.raft.down_after, Config::default().raft.down_after);
    assert_eq!(config.cache_bytes, 2 << 20);
    assert_eq!(config.join, ["a:1", "b:2"]);
}

#[test]
fn all_faults_of_all_sources_are_reported_together() {
    let (_dir, path) = file(
        "zoen = \"a\"\ncache-bytes = \"many\"\n[raft]\nheartbeat = \"1ms\"\nhartbeat = \"1s\"\n[log]\nsegment-bytes = 5\n",
    );
    let sources = Sources {
        file: Some(path.clone()),
        environment: environment(&[
            ("BOROUGH_ENGINE", "rocks"),
            ("BOROUGH_RAFT__DOWN_AFTER", "1s"),
            ("BOROUGH_NOSUCH", "1"),
            ("BOROUGH_OUTBOUND_ADDRESS", "10.0.0.1:7070"),
            ("BOROUGH_LIMITS__REQUESTS_MAX", "-3"),
        ]),
        flags: vec![flag("listen", "nowhere")],
        ..Sources::default()
    };
    let faults = faults(&sources);
    let file = path.display().to_string();
    for (key, origin) in [
        ("zoen", file.as_str()),
        ("cache-bytes", &file),
        ("raft.heartbeat", &file),
        ("raft.hartbeat", &file),
        ("log.segment-bytes", &file),
        ("engine", "BOROUGH_ENGINE"),
        ("raft.down-after", "BOROUGH_RAFT__DOWN_AFTER"),
        ("nosuch", "BOROUGH_NOSUCH"),
        ("outbound-address", "BOROUGH_OUTBOUND_ADDRESS"),
        ("limits.requests-max", "BOROUGH_LIMITS__REQUESTS_MAX"),
        ("listen", "--listen"),
        ("data-dir", "the default"),
    ] {
        let named = |fault: &&String| fault.starts_with(&format!("{key}: ")) && fault.contains(origin);
        assert!(faults.iter().any(|fault| named(&fault)), "{key} from {origin} in {faults:#?}");
    }
    assert_eq!(faults.len(), 12, "{faults:#?}");
}

#[test]
fn variables_of_the_command_line_and_of_other_services_are_no_settings() {
    let mut other = Dict::new();
    other.insert("request-timeout".to_owned(), Value::from("2s"));
    let sources = Sources {
        environment: environment(&[
            ("BOROUGH_ROUTER", "http://127.0.0.1:8080"),
            ("BOROUGH_TOKEN", "t"),
            ("BOROUGH_LOG", "debug"),
            ("BOROUGH_LOG_FORMAT", "json"),
            ("BOROUGH_REQUEST_TIMEOUT", "1s"),
            ("BOROUGH_DATA_DIR", "17"),
        ]),
        others: vec![other],
        ..Sources::default()
    };
    let config: Config = load(&sources).unwrap();
    assert_eq!(config.data_dir, Path::new("17"), "a text stays a text even when it looks like a number");
}

#[test]
fn tokens_are_taken_from_the_file_and_all_their_faults_are_reported() {
    let good =
        format!("[[auth.tokens]]\nname = \"a\"\nsha256 = \"{}\"\nrights = [\"read\"]\n", "a".repeat(64));
    let nodes = "nodes = [\"a:1\"]\n";
    let load_text = |text: &str| {
        let (_dir, path) = file(text);
        load::<borough_router::Config>(&Sources { file: Some(path), ..Sources::default() })
    };
    let config = load_text(&format!("{nodes}{good}")).unwrap();
    assert_eq!((config.auth.tokens.len(), config.auth.tokens[0].name.as_str()), (1, "a"));
    let bad =
        "[[auth.tokens]]\nsha256 = \"token\"\nrights = [\"reed\", \"admin\"]\ncollections = [\"users\"]\n";
    let error = load_text(&format!("{nodes}{good}{bad}{good}[limits]\nrequests-max = 0\n")).unwrap_err();
    for key in [
        "auth.tokens[1].name",
        "auth.tokens[1].sha256",
        "auth.tokens[1].rights[0]",
        "auth.tokens[1].collections",
        "auth.tokens[2].name",
        "auth.tokens[2].sha256",
        "limits.requests-max",
    ] {
        let fault = error.faults.iter().find(|fault| fault.key == key);
        assert!(fault.is_some_and(|fault| fault.origin.ends_with("node.toml")), "{key}: {error}");
    }
    assert_eq!(error.faults.len(), 7, "{error}");
    let secret = format!("{nodes}{good}token = \"s\"\n");
    assert!(load_text(&secret).unwrap_err().to_string().contains("unknown setting"), "{secret}");
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault_like_any_other() {
    let (_dir, broken) = file("a = [");
    for path in [PathBuf::from("/nonexistent/node.toml"), broken] {
        let sources = Sources {
            file: Some(path.clone()),
            environment: environment(&[("BOROUGH_ENGINE", "rocks")]),
            flags: vec![flag("data-dir", "/d")],
            ..Sources::default()
        };
        let faults = faults(&sources);
        assert_eq!(faults.len(), 2, "{faults:#?}");
        assert!(faults.iter().any(|fault| fault.contains(&path.display().to_string())), "{faults:#?}");
    }
}

#[test]
fn a_table_in_place_of_a_value_and_the_reverse_are_faults() {
    let (_dir, path) = file("raft = 1\n[zone]\nname = \"a\"\n");
    let sources = Sources {
        file: Some(path),
        environment: environment(&[("BOROUGH_LISTEN__PORT", "1"), ("BOROUGH_DATA_DIR", "/d")]),
        ..Sources::default()
    };
    let faults = faults(&sources);
    assert_eq!(faults.len(), 3, "{faults:#?}");
}

#[test]
fn the_example_files_show_every_setting_with_its_default() {
    example_shows_the_defaults::<Config>(include_str!("../../config/node.toml"), "data-dir");
    example_shows_the_defaults::<borough_router::Config>(include_str!("../../config/router.toml"), "nodes");
}

/// `set` is the one setting that has no default and is set in the file.
fn example_shows_the_defaults<T: Settings>(text: &str, set: &str) {
    let load_text = |text: &str| {
        let (_dir, path) = file(text);
        let config: T = load(&Sources { file: Some(path), ..Sources::default() }).unwrap();
        let mut dict = Value::serialize(config).unwrap().into_dict().unwrap();
        dict.remove(set);
        dict
    };
    let mut expected = defaults::<T>();
    expected.remove(set);
    assert_eq!(load_text(text), expected);
    let lines: Vec<_> = text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect();
    let shown = lines.join("\n");
    assert_eq!(load_text(&shown), expected);
    let keys = |dict: Dict| -> BTreeSet<String> {
        let mut leaves = Vec::new();
        flatten("", dict, &defaults::<T>(), "", &mut leaves);
        leaves.into_iter().map(|leaf| leaf.key).collect()
    };
    let table: toml::Table = shown.parse().unwrap();
    let shown = Value::serialize(table).unwrap().into_dict().unwrap();
    assert_eq!(keys(shown), keys(defaults::<T>()));
}
