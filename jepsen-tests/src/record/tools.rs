//! Histories as Jepsen's own checkers take them: only the callers' calls, in the functions that their models know.
//!
//! `history.edn` has everything that happened: probes of the harness, all keys in one file, functions that no model of
//! Knossos has. Elle and Knossos refuse what they do not know, and Elle takes lists of one name for one list.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Kind, NEMESIS, Record};

/// What a register holds when there is no document. Knossos takes a read of `nil` for one whose answer is not known.
pub const ABSENT: &str = "absent";

/// For `elle.list-append`: the transactions, with `[partition key]` for a list's name.
pub fn for_elle(records: &[Record]) -> Vec<Record> {
    let transactions = records.iter().filter(|record| record.process != NEMESIS && record.f == "txn");
    numbered(transactions.map(|record| {
        let value = match &record.value {
            Value::Array(steps) => steps.iter().map(|step| named(step, &record.key)).collect(),
            other => other.clone(),
        };
        Record { value, ..record.clone() }
    }))
}

/// `["r", KEY, …]` as `["r", [PARTITION, KEY], …]`
fn named(step: &Value, partition: &str) -> Value {
    let Value::Array(parts) = step else { return step.clone() };
    let mut parts = parts.clone();
    if let Some(key) = parts.get_mut(1) {
        *key = json!([partition, key]);
    }
    Value::Array(parts)
}

/// For Knossos, by key: reads, writes and compare-and-sets of a `cas-register` that holds [`ABSENT`] at first. A create
/// is a compare-and-set from that, a delete a write of it.
pub fn for_knossos(records: &[Record]) -> BTreeMap<String, Vec<Record>> {
    let mut by_key: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in records.iter().filter(|record| record.process != NEMESIS) {
        let (f, value) = match record.f.as_str() {
            "read" if record.kind == Kind::Ok && record.value.is_null() => ("read", json!(ABSENT)),
            "read" => ("read", record.value.clone()),
            "write" => ("write", record.value.clone()),
            "cas" => ("cas", record.value.clone()),
            "create" => ("cas", json!([ABSENT, record.value])),
            "delete" => ("write", json!(ABSENT)),
            _ => continue,
        };
        let record = Record { f: f.to_owned(), value, ..record.clone() };
        by_key.entry(record.key.clone()).or_default().push(record);
    }
    by_key.into_iter().map(|(key, records)| (key, numbered(records.into_iter()))).collect()
}

fn numbered(records: impl Iterator<Item = Record>) -> Vec<Record> {
    records.zip(0..).map(|(record, index)| Record { index, ..record }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn record(index: u64, process: u64, kind: Kind, f: &str, key: &str, value: Value) -> Record {
        let (f, key) = (f.to_owned(), key.to_owned());
        Record { index, time_ns: index * 10, process, kind, f, key, value, error: None }
    }

    #[test]
    fn lists_of_two_partitions_have_two_names_and_probes_are_left_out() {
        let records = [
            record(0, 1, Kind::Invoke, "txn", "ann", json!([["append", "k0", 1], ["r", "k1", null]])),
            record(1, 2, Kind::Invoke, "fence", "7", json!({"epoch": 3})),
            record(2, NEMESIS, Kind::Info, "kill-leader", "", json!({"phase": "start"})),
            record(3, 1, Kind::Ok, "txn", "ann", json!([["append", "k0", 1], ["r", "k1", [5]]])),
            record(4, 3, Kind::Invoke, "txn", "bob", json!([["r", "k0", null]])),
            record(5, 3, Kind::Info, "txn", "bob", json!([["r", "k0", null]])),
        ];
        let told = for_elle(&records);
        let names: BTreeSet<String> = told
            .iter()
            .flat_map(|record| record.value.as_array().unwrap())
            .map(|step| step[1].to_string())
            .collect();
        let expected = [r#"["ann","k0"]"#, r#"["ann","k1"]"#, r#"["bob","k0"]"#];
        assert_eq!(names, expected.map(str::to_owned).into());
        assert_eq!(told[1].value, json!([["append", ["ann", "k0"], 1], ["r", ["ann", "k1"], [5]]]));
        let indices: Vec<u64> = told.iter().map(|record| record.index).collect();
        assert_eq!(indices, [0, 1, 2, 3]);
        let mut edn = Vec::new();
        super::super::write_edn(&told, &mut edn).unwrap();
        let edn = String::from_utf8(edn).unwrap();
        assert!(edn.contains(r#":value [[:append ["ann" "k0"] 1] [:r ["ann" "k1"] [5]]]"#), "{edn}");
    }

    #[test]
    fn a_register_has_a_history_of_its_own_in_three_functions() {
        let records = [
            record(0, 1, Kind::Invoke, "create", "a", json!(1)),
            record(1, 2, Kind::Invoke, "read", "b", Value::Null),
            record(2, 1, Kind::Ok, "create", "a", json!(1)),
            record(3, 2, Kind::Ok, "read", "b", Value::Null),
            record(4, 1, Kind::Invoke, "cas", "a", json!([1, 2])),
            record(5, 3, Kind::Invoke, "map", "", json!({})),
            record(6, 1, Kind::Fail, "cas", "a", json!([1, 2])),
            record(7, 1, Kind::Invoke, "delete", "a", Value::Null),
            record(8, 1, Kind::Info, "delete", "a", Value::Null),
        ];
        let told = for_knossos(&records);
        assert_eq!(told.keys().collect::<Vec<_>>(), ["a", "b"]);
        let steps = |key: &str| -> Vec<(u64, String, Value)> {
            told[key].iter().map(|record| (record.index, record.f.clone(), record.value.clone())).collect()
        };
        let step = |index, f: &str, value| (index, f.to_owned(), value);
        assert_eq!(
            steps("a"),
            [
                step(0, "cas", json!(["absent", 1])),
                step(1, "cas", json!(["absent", 1])),
                step(2, "cas", json!([1, 2])),
                step(3, "cas", json!([1, 2])),
                step(4, "write", json!("absent")),
                step(5, "write", json!("absent")),
            ]
        );
        assert_eq!(steps("b"), [step(0, "read", Value::Null), step(1, "read", json!("absent"))]);
    }
}
