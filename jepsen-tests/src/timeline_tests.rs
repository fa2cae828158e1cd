//! The picture shows what happened, is well formed, and does not grow without end.

use serde_json::{Value, json};

use super::*;

fn record(time_ns: u64, process: u64, kind: Kind, f: &str, value: Value) -> Record {
    let (f, key) = (f.to_owned(), "k".to_owned());
    Record { index: 0, time_ns, process, kind, f, key, value, error: None }
}

fn numbered(mut records: Vec<Record>) -> Vec<Record> {
    records.sort_by_key(|record| record.time_ns);
    for (index, record) in records.iter_mut().enumerate() {
        record.index = index as u64;
    }
    records
}

fn html(records: &[Record]) -> String {
    let mut bytes = Vec::new();
    write_html("a <run> & its faults", records, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn dots(html: &str) -> usize {
    html.matches("h0").count()
}

fn run(count: u64) -> Vec<Record> {
    let mut records = Vec::new();
    for n in 0..count {
        let start = n * 1_000_000;
        let latency = if n == 777 { 9_000_000_000 } else { 200_000 + (n * 7_919) % 900_000 };
        let kind = if n % 50 == 0 { Kind::Fail } else { Kind::Ok };
        records.push(record(start, n, Kind::Invoke, "write", json!(n)));
        records.push(record(start + latency, n, kind, "write", json!(n)));
    }
    let end = count * 1_000_000;
    records.push(record(end / 4, NEMESIS, Kind::Info, "kill-leader", json!({"phase": "start", "node": 2})));
    records.push(record(end / 3, NEMESIS, Kind::Info, "partition", json!({"phase": "start"})));
    records.push(record(end / 2, NEMESIS, Kind::Info, "kill-leader", json!({"phase": "end"})));
    records.push(record(end - 1, count, Kind::Invoke, "read", Value::Null));
    numbered(records)
}

#[test]
fn every_call_and_fault_is_shown() {
    let html = html(&run(2_000));
    assert_eq!(dots(&html), 2_001);
    assert!(html.contains("1960 ok") && html.contains("40 fail") && html.contains("1 info"), "{html}");
    assert_eq!(html.matches("class=\"fault\"").count(), 2);
    assert!(html.contains(">kill-leader</text>") && html.contains(">partition</text>"));
    assert!(html.contains("<h1>a &lt;run&gt; &amp; its faults</h1>"));
    assert!(html.contains("&quot;node&quot;:2") && !html.contains("NaN") && !html.contains("inf\""));
}

#[test]
fn many_calls_are_thinned_and_the_slowest_kept() {
    let (some, many) = (html(&run(15_000)), html(&run(150_000)));
    assert_eq!(dots(&some), 15_001);
    assert!(dots(&many) <= sample::POINTS_MAX + 10 && dots(&many) > 10_000, "{}", dots(&many));
    assert!(many.len() < 1_000_000, "{}", many.len());
    let points: Vec<Point> = (0..50_000)
        .map(|n| Point { time_ns: n, latency_ns: if n == 31_337 { 1_000 } else { 5 }, kind: Kind::Ok })
        .collect();
    let kept = sample::kept(&points, |time| time as usize / 100);
    assert!(kept.iter().any(|point| point.latency_ns == 1_000));
}

#[test]
fn names_of_faults_overlap_as_little_as_there_is_room() {
    let records: Vec<Record> = (0..1_000)
        .map(|n| {
            record(
                n * 1_000,
                NEMESIS,
                Kind::Info,
                "pause",
                json!({"phase": if n % 2 == 0 { "start" } else { "end" }}),
            )
        })
        .collect();
    let records = numbered(records);
    let faults = faults::faults(&records.iter().collect::<Vec<_>>(), 1_000_000);
    assert_eq!(faults.len(), 400);
    assert!(faults.iter().all(|fault| fault.lane < 8 && fault.end_ns - fault.start_ns == 1_000));
    let apart: Vec<&Fault> = faults.iter().filter(|fault| fault.lane == 0).collect();
    assert!(apart.windows(2).all(|pair| pair[1].start_ns - pair[0].start_ns > 40_000));
}

#[test]
fn a_run_without_calls_is_drawn_and_one_without_sense_refused() {
    assert_eq!(dots(&html(&[])), 0);
    let records = [record(1, 1, Kind::Ok, "read", Value::Null)];
    let refused = write_html("", &records, Vec::new()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn ticks_are_few_and_round() {
    for seconds in [1, 7, 30, 60, 600, 3_600] {
        let end = seconds * 1_000_000_000;
        let ticks = end / step(end);
        assert!((5..14).contains(&ticks), "{seconds} s: {ticks}");
    }
    assert_eq!([4, 6, 8, 9, 10].map(duration), ["10 µs", "1 ms", "100 ms", "1 s", "10 s"]);
}
