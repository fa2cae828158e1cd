//! What the reads of one partition show by themselves: the order of each list, and anomalies that need no graph.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::super::{Findings, describe, shorten};
use super::is_acknowledged;
use crate::record::{Call, Kind};

/// A place in [`Observed::elements`].
pub type ElementId = usize;
/// A place in [`Observed::lists`].
pub type ListId = usize;

/// An append.
pub struct Element<'a> {
    pub value: &'a Value,
    pub list: ListId,
    /// The place of its transaction among the calls.
    pub txn: usize,
    /// The transaction's next append to the same list.
    pub next_of_txn: Option<ElementId>,
}

/// What a transaction saw of a list, without its own appends.
pub struct ListRead {
    pub txn: usize,
    pub list: ListId,
    /// The last element and how many there were.
    pub last: Option<ElementId>,
    pub count: usize,
}

/// One list.
#[derive(Default)]
pub struct List {
    pub name: String,
    /// The longest that was read: the order of its appends.
    pub order: Vec<ElementId>,
    /// Acknowledged appends beyond those: they come after them.
    pub unread: Vec<ElementId>,
    /// The last start of a read.
    last_read: Option<u64>,
}

pub struct Observed<'a> {
    pub calls: Vec<&'a Call>,
    pub elements: Vec<Element<'a>>,
    pub lists: Vec<List>,
    pub reads: Vec<ListRead>,
}

enum Part<'a> {
    Append(&'a Value, &'a Value),
    Read(&'a Value, &'a Value),
}

fn parts<'a>(value: &'a Value) -> Option<Vec<Part<'a>>> {
    let part = |step: &'a Value| match step.as_array()?.as_slice() {
        [Value::String(name), list, value] if name == "append" => Some(Part::Append(list, value)),
        [Value::String(name), list, value] if name == "r" => Some(Part::Read(list, value)),
        _ => None,
    };
    value.as_array()?.iter().map(part).collect()
}

struct Observer<'a, 'f> {
    key: &'a str,
    findings: &'f mut Findings,
    list_ids: HashMap<&'a Value, ListId>,
    element_ids: Vec<HashMap<&'a Value, ElementId>>,
    /// What each list was when read longest, and the call.
    longest: Vec<(Vec<ElementId>, Option<&'a Call>)>,
    seen: HashSet<ElementId>,
    observed: Observed<'a>,
}

/// Reads the calls of one partition.
pub fn observe<'a>(key: &'a str, calls: &[&'a Call], findings: &mut Findings) -> Observed<'a> {
    let (elements, lists, reads) = (Vec::new(), Vec::new(), Vec::new());
    let mut observer = Observer {
        key,
        findings,
        list_ids: HashMap::new(),
        element_ids: Vec::new(),
        longest: Vec::new(),
        seen: HashSet::new(),
        observed: Observed { calls: calls.to_vec(), elements, lists, reads },
    };
    let mut all_parts = Vec::with_capacity(calls.len());
    for (txn, &call) in calls.iter().enumerate() {
        let value = if call.end == Kind::Ok { &call.output } else { &call.input };
        let parts = parts(value).filter(|_| call.f == "txn");
        if parts.is_none() {
            observer.findings.not_understood(call);
        }
        let parts = parts.unwrap_or_default();
        observer.appends(txn, &parts);
        all_parts.push(parts);
    }
    let mut whole = Vec::new();
    for (txn, (&call, parts)) in calls.iter().zip(&all_parts).enumerate() {
        if is_acknowledged(call) {
            observer.reads(txn, call, parts, &mut whole);
        }
    }
    observer.orders(&whole);
    observer.lost();
    observer.observed
}

impl<'a> Observer<'a, '_> {
    fn list(&mut self, name: &'a Value) -> ListId {
        let next = self.observed.lists.len();
        let id = *self.list_ids.entry(name).or_insert(next);
        if id == next {
            let name = name.as_str().map_or_else(|| name.to_string(), str::to_owned);
            self.observed.lists.push(List { name, ..List::default() });
            self.element_ids.push(HashMap::new());
            self.longest.push((Vec::new(), None));
        }
        id
    }

    fn appends(&mut self, txn: usize, parts: &[Part<'a>]) {
        let mut last_of_list: HashMap<ListId, ElementId> = HashMap::new();
        for part in parts {
            let Part::Append(name, value) = *part else { continue };
            let list = self.list(name);
            let id = self.observed.elements.len();
            let before = self.element_ids.get_mut(list).and_then(|ids| ids.insert(value, id));
            if before.is_some() {
                self.findings.unknown(|| format!("{value} was appended twice to {name} by the workload"));
            }
            self.observed.elements.push(Element { value, list, txn, next_of_txn: None });
            let before = last_of_list.insert(list, id);
            if let Some(before) = before.and_then(|before| self.observed.elements.get_mut(before)) {
                before.next_of_txn = Some(id);
            }
        }
    }

    /// Follows a transaction's steps: what it reads must be what it read before and appended since.
    fn reads(
        &mut self,
        txn: usize,
        call: &'a Call,
        parts: &[Part<'a>],
        whole: &mut Vec<(ListRead, Vec<ElementId>)>,
    ) {
        let mut own: BTreeMap<ListId, Vec<ElementId>> = BTreeMap::new();
        let mut before: BTreeMap<ListId, Vec<ElementId>> = BTreeMap::new();
        for part in parts {
            match *part {
                Part::Append(name, value) => {
                    let list = self.list(name);
                    let id = self.element_ids.get(list).and_then(|ids| ids.get(value)).copied();
                    own.entry(list).or_default().extend(id);
                }
                Part::Read(name, read) => {
                    let list = self.list(name);
                    let Some(mut ids) = self.elements(list, call, read) else { continue };
                    let of_list = self.observed.lists.get_mut(list);
                    if let Some(of_list) = of_list {
                        of_list.last_read = of_list.last_read.max(Some(call.start_ns));
                    }
                    let appended = own.get(&list).map(Vec::as_slice).unwrap_or_default();
                    let Some(count) = ids.strip_suffix(appended).map(<[ElementId]>::len) else {
                        let detail = || format!("not what it had appended itself: {}", describe(call));
                        self.findings.add("internal", self.key, detail);
                        continue;
                    };
                    ids.truncate(count);
                    if ids.iter().any(|&id| self.observed.elements.get(id).is_some_and(|own| own.txn == txn))
                    {
                        let detail = || format!("what it appended only later: {}", describe(call));
                        self.findings.add("internal", self.key, detail);
                        continue;
                    }
                    match before.get(&list) {
                        Some(before) if *before != ids => {
                            let detail = || format!("two reads of {name} differ: {}", describe(call));
                            self.findings.add("internal", self.key, detail);
                        }
                        Some(_) => {}
                        None => {
                            before.insert(list, ids.clone());
                            whole.push((ListRead { txn, list, last: ids.last().copied(), count }, ids));
                        }
                    }
                }
            }
        }
    }

    /// The elements that a read lists, if it can be used.
    fn elements(&mut self, list: ListId, call: &'a Call, read: &'a Value) -> Option<Vec<ElementId>> {
        let none = Vec::new();
        let values = match read {
            Value::Array(values) => values,
            Value::Null => &none,
            _ => {
                self.findings.not_understood(call);
                return None;
            }
        };
        let mut ids = Vec::with_capacity(values.len());
        self.seen.clear();
        for value in values {
            let Some(&id) = self.element_ids.get(list).and_then(|ids| ids.get(value)) else {
                self.findings.add("phantom append", self.key, || format!("{value} in {}", describe(call)));
                return None;
            };
            if !self.seen.insert(id) {
                self.findings
                    .add("doubled append", self.key, || format!("{value} twice in {}", describe(call)));
                return None;
            }
            let writer = self.writer(id);
            if let Some(writer) = writer.filter(|writer| writer.end == Kind::Fail) {
                let detail = || format!("{value} of {} in {}", describe(writer), describe(call));
                self.findings.add("G1a: aborted read", self.key, detail);
                return None;
            }
            ids.push(id);
        }
        Some(ids)
    }

    fn writer(&self, id: ElementId) -> Option<&'a Call> {
        let txn = self.observed.elements.get(id)?.txn;
        self.observed.calls.get(txn).copied()
    }

    /// All reads of a list must be beginnings of the longest.
    fn orders(&mut self, whole: &[(ListRead, Vec<ElementId>)]) {
        for (read, ids) in whole {
            let call = self.observed.calls.get(read.txn).copied();
            if let Some(longest) = self.longest.get_mut(read.list)
                && longest.0.len() < ids.len()
            {
                *longest = (ids.clone(), call);
            }
        }
        for (read, ids) in whole {
            let Some((longest, by)) = self.longest.get(read.list) else { continue };
            let call = self.observed.calls.get(read.txn).copied();
            if !longest.starts_with(ids) {
                let texts = [call, *by].map(|call| call.map(describe).unwrap_or_default());
                let [one, other] = texts;
                let name =
                    self.observed.lists.get(read.list).map(|list| list.name.clone()).unwrap_or_default();
                let detail =
                    || format!("list {name}: neither read is a beginning of the other:\n  {one}\n  {other}");
                self.findings.add("incompatible order", self.key, detail);
                continue;
            }
            self.intermediate(read, call);
            let ListRead { txn, list, last, count } = *read;
            self.observed.reads.push(ListRead { txn, list, last, count });
        }
        for (list, (order, _)) in self.observed.lists.iter_mut().zip(self.longest.drain(..)) {
            list.order = order;
        }
    }

    /// A read must not end between two appends of one transaction.
    fn intermediate(&mut self, read: &ListRead, call: Option<&Call>) {
        let last = read.last.and_then(|last| self.observed.elements.get(last));
        let Some(element) = last.filter(|last| last.txn != read.txn && last.next_of_txn.is_some()) else {
            return;
        };
        let writer = self.observed.calls.get(element.txn).copied();
        let texts = [call, writer].map(|call| call.map(describe).unwrap_or_default());
        let [reader, writer] = texts;
        let detail = || format!("{reader} ends with {}, which is not the last of {writer}", element.value);
        self.findings.add("G1b: intermediate read", self.key, detail);
    }

    /// By when each transaction is known to have taken effect, as somebody read what it had appended: then all of it has.
    fn seen_by(&self) -> HashMap<usize, u64> {
        let mut seen: HashMap<usize, u64> = HashMap::new();
        let mut ends: Vec<Vec<u64>> =
            self.observed.lists.iter().map(|list| vec![u64::MAX; list.order.len()]).collect();
        for read in self.observed.reads.iter().filter(|read| read.count > 0) {
            let end = self.observed.calls.get(read.txn).and_then(|call| call.end_ns);
            let of_list = ends.get_mut(read.list).and_then(|ends| ends.get_mut(read.count - 1));
            if let (Some(end), Some(earliest)) = (end, of_list) {
                *earliest = end.min(*earliest);
            }
        }
        for (list, ends) in self.observed.lists.iter().zip(ends) {
            // Who read an element read all before it.
            let mut earliest = u64::MAX;
            for (&id, end) in list.order.iter().zip(ends).rev() {
                earliest = earliest.min(end);
                if let Some(element) = self.observed.elements.get(id) {
                    let known = seen.entry(element.txn).or_insert(u64::MAX);
                    *known = earliest.min(*known);
                }
            }
        }
        seen
    }

    /// Appends that have taken effect must be in what is read afterwards.
    fn lost(&mut self) {
        let orders = self.observed.lists.iter().flat_map(|list| &list.order);
        let read: HashSet<ElementId> = orders.copied().collect();
        let seen = self.seen_by();
        for (id, element) in self.observed.elements.iter().enumerate() {
            let Some(call) = self.observed.calls.get(element.txn) else { continue };
            let acknowledged = call.end_ns.filter(|_| is_acknowledged(call));
            let known = acknowledged.into_iter().chain(seen.get(&element.txn).copied()).min();
            let Some(known) = known.filter(|known| *known < u64::MAX) else { continue };
            let Some(list) = self.observed.lists.get_mut(element.list).filter(|_| !read.contains(&id)) else {
                continue;
            };
            if list.last_read > Some(known) {
                let detail = || {
                    format!(
                        "{} to {} is in no read: {}",
                        shorten(&element.value.to_string()),
                        list.name,
                        describe(call)
                    )
                };
                self.findings.add("lost append", self.key, detail);
            } else {
                list.unread.push(id);
            }
        }
    }
}
