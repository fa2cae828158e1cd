//! Lines make calls or are refused; both notations give back what they were given.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use super::*;

fn record(index: u64, process: u64, kind: Kind, f: &str, value: Value) -> Record {
    let (f, key) = (f.to_owned(), "k".to_owned());
    Record { index, time_ns: index * 10, process, kind, f, key, value, error: None }
}

#[test]
fn invocations_are_paired_by_process_and_faults_left_out() {
    let records = [
        record(0, 1, Kind::Invoke, "write", json!(7)),
        record(1, NEMESIS, Kind::Info, "kill", json!({"phase": "start"})),
        record(2, 2, Kind::Invoke, "read", Value::Null),
        record(3, 1, Kind::Info, "write", json!(7)),
        record(4, 2, Kind::Ok, "read", json!(7)),
        record(5, 3, Kind::Invoke, "read", Value::Null),
    ];
    let calls = calls(&records).unwrap();
    let ends: Vec<_> =
        calls.iter().map(|call| (call.process, call.start_ns, call.end_ns, call.end)).collect();
    assert_eq!(ends, [(1, 0, Some(30), Kind::Info), (2, 20, Some(40), Kind::Ok), (3, 50, None, Kind::Info)]);
    assert_eq!((&calls[1].input, &calls[1].output), (&Value::Null, &json!(7)));
}

#[test]
fn in_json_the_one_who_makes_faults_is_a_number_that_fits_and_older_lines_are_read() {
    let fault = record(0, NEMESIS, Kind::Info, "kill", Value::Null);
    let line = serde_json::to_string(&fault).unwrap();
    assert!(line.contains(r#""process":-1,"#), "{line}");
    let back = |line: &str| serde_json::from_str::<Record>(line);
    assert_eq!(back(&line).unwrap(), fault);
    assert_eq!(back(&line.replace("-1", "18446744073709551615")).unwrap(), fault);
    for wrong in ["-2", "1.5", "18446744073709551616"] {
        assert!(back(&line.replace("-1", wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn lines_that_make_no_calls_are_refused() {
    let invoke = |index| record(index, 1, Kind::Invoke, "read", Value::Null);
    let end = |index, kind, f| record(index, 1, kind, f, Value::Null);
    assert_eq!(calls(&[invoke(0), invoke(1)]), Err(PairError::Busy { index: 1, process: 1 }));
    assert_eq!(calls(&[end(0, Kind::Ok, "read")]), Err(PairError::NotBegun { index: 0, process: 1 }));
    let unknown = [invoke(0), end(1, Kind::Info, "read"), invoke(2)];
    assert_eq!(calls(&unknown), Err(PairError::Crashed { index: 2, process: 1 }));
    let another = calls(&[invoke(0), end(1, Kind::Ok, "write")]);
    assert!(matches!(another, Err(PairError::Another { index: 1, .. })));
    assert_eq!(calls(&[invoke(1), end(0, Kind::Ok, "read")]), Err(PairError::Order { index: 0 }));
}

#[test]
fn a_recorder_keeps_what_it_streams_and_nothing_after_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.jsonl");
    let recorder = Recorder::create(&path).unwrap();
    let other = recorder.clone();
    let (one, two) = (recorder.process(), other.process());
    assert_ne!(one, two);
    recorder.invoke(one, "write", "k", json!(1));
    other.invoke(two, "read", "k", Value::Null);
    recorder.end(one, Kind::Fail, "write", "k", json!(1), Some("precondition".to_owned()));
    assert_eq!(read(&path).unwrap().len(), 3, "lines are in the file as they happen");
    let records = recorder.finish().unwrap();
    other.end(two, Kind::Ok, "read", "k", json!(1), None);
    assert_eq!(read(&path).unwrap(), records);
    assert!(records.is_sorted_by_key(|record| (record.index, record.time_ns)));
    assert_eq!(calls(&records).unwrap().len(), 2);
}

#[test]
fn a_last_line_cut_short_is_left_out_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.jsonl");
    let line = serde_json::to_string(&record(0, 1, Kind::Invoke, "read", Value::Null)).unwrap();
    std::fs::write(&path, format!("{line}\n{}", &line[..20])).unwrap();
    assert_eq!(read(&path).unwrap().len(), 1);
    std::fs::write(&path, format!("{}\n{line}\n", &line[..20])).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("line 1"));
    // A last line that is whole and means nothing was not cut.
    let strange = line.replace("invoke", "okay");
    std::fs::write(&path, format!("{line}\n{strange}\n")).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("line 2"));
}

fn edn(records: &[Record]) -> String {
    let mut bytes = Vec::new();
    write_edn(records, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn edn_is_what_jepsen_writes() {
    let mut fail = record(3, 2, Kind::Fail, "cas", json!([1, u64::MAX]));
    fail.error = Some("say \"no\"\n".to_owned());
    let text = edn(&[
        record(0, 2, Kind::Invoke, "write", json!(3)),
        record(1, 2, Kind::Ok, "txn", json!([["append", "x", 1], ["r", "x", null]])),
        record(2, NEMESIS, Kind::Info, "kill node", json!({"phase": "start", "rate": 0.5})),
        fail,
    ]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], r#"{:index 0, :time 0, :process 2, :type :invoke, :f :write, :key "k", :value 3}"#);
    assert!(
        lines[1].ends_with(r#":f :txn, :key "k", :value [[:append "x" 1] [:r "x" nil]]}"#),
        "{}",
        lines[1]
    );
    let fault =
        r#":process :nemesis, :type :info, :f "kill node", :key "k", :value {"phase" "start", "rate" 0.5}}"#;
    assert!(lines[2].ends_with(fault), "{}", lines[2]);
    assert!(
        lines[3].ends_with(r#":value [1 18446744073709551615N], :error "say \"no\"\n"}"#),
        "{}",
        lines[3]
    );
}

#[test]
fn edn_of_others_is_read_and_what_is_none_is_refused() {
    let text =
        "; a comment\n{:type :ok :f :read,\n :process 0 :time 5 :index 1 :value (1 [2]) :key \"k\" :x {}}";
    let records = read_edn(text).unwrap();
    assert_eq!(records[0].value, json!([1, [2]]));
    for bad in ["{", "{:index", "[1", "\"", "{:index 0}", "{1 2}", "#{1}", "{:a \"\\q\"}", "{:a \"\\u12\"}"] {
        assert!(read_edn(bad).is_err(), "{bad}");
    }
    assert!(read_edn(&"[".repeat(100_000)).is_err(), "deep nesting is refused, not followed");
}

/// What has to be escaped, what must not be, and what looks like something else.
const TEXTS: [&str; 9] = [
    "",
    "txn",
    "kill-node",
    "nil",
    ":k",
    "a \"b\" \\",
    "\n\r\t\u{1}\u{7f}",
    "\u{e9}\u{1f600} ;",
    "{}[](),#1N",
];

fn any_value(rng: &mut StdRng, depth: usize) -> Value {
    match rng.random_range(0..if depth > 3 { 6 } else { 8 }) {
        0 => Value::Null,
        1 => Value::from(rng.random::<bool>()),
        2 => Value::from(rng.random::<i64>()),
        3 => Value::from(rng.random::<u64>()),
        // Quarters: the JSON parser is not exact to the last bit.
        4 => Value::from(f64::from(rng.random::<i32>()) / 4.0),
        5 => Value::from(any_text(rng)),
        6 => (0..rng.random_range(0..4)).map(|_| any_value(rng, depth + 1)).collect(),
        _ => {
            let pairs =
                (0..rng.random_range(0..4)).map(|_| (any_text(rng).to_owned(), any_value(rng, depth + 1)));
            Value::Object(pairs.collect())
        }
    }
}

fn any_text(rng: &mut StdRng) -> &'static str {
    TEXTS[rng.random_range(0..TEXTS.len())]
}

fn any_record(rng: &mut StdRng) -> Record {
    Record {
        index: rng.random(),
        time_ns: rng.random(),
        process: if rng.random() { NEMESIS } else { rng.random() },
        kind: [Kind::Invoke, Kind::Ok, Kind::Fail, Kind::Info][rng.random_range(0..4)],
        f: any_text(rng).to_owned(),
        key: any_text(rng).to_owned(),
        value: any_value(rng, 0),
        error: rng.random::<bool>().then(|| any_text(rng).to_owned()),
    }
}

#[test]
fn both_notations_give_back_any_record() {
    for seed in 0..500 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let records: Vec<Record> = (0..4).map(|_| any_record(rng)).collect();
        let text = edn(&records);
        assert_eq!(read_edn(&text).as_ref(), Ok(&records), "seed {seed}: {text}");
        for record in &records {
            let line = serde_json::to_string(record).unwrap();
            assert!(!line.contains('\n'), "seed {seed}");
            assert_eq!(&serde_json::from_str::<Record>(&line).unwrap(), record, "seed {seed}");
        }
    }
}
