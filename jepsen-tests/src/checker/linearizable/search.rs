//! Looks for an order of one key's calls that explains them.
//!
//! The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993): repeatedly let one of the
//! calls take effect that began before the first end of those that have not yet, and go back where none can. As in
//! Lowe ("Testing for linearizability", 2017), a configuration — the set of calls that took effect and the value — is
//! not entered twice. What makes it fast on registers:
//!
//! - What only looks takes effect as soon as it can: that never hinders another.
//! - A value that is written once cannot be left while somebody must see it yet.
//! - A write of unknown outcome whose value was seen must have taken effect by then; one that nobody can
//!   notice is left out; like ones are taken in the order in which they began.

use std::collections::{HashMap, HashSet};

use super::Bounds;
use super::model::{ABSENT, Id, Op, Step};
use crate::register::{self, Read, Write};

/// A value that somebody wrote and nobody looked for.
const OTHER: Id = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Linearizable,
    NotLinearizable,
    /// The bounds were reached first.
    Exhausted,
}

/// Decides one key, absent at first.
pub fn decide(ops: &[Op], bounds: Bounds) -> Outcome {
    if let Some(decided) = by_zones(ops) {
        return decided;
    }
    search(ops, bounds)
}

/// Only reads, and writes of unlike values, take no search.
fn by_zones(ops: &[Op]) -> Option<Outcome> {
    let mut values = HashSet::new();
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    for op in ops {
        // From 1 on, so that the absence at the beginning lies before everything.
        let (start, end) = (op.start.saturating_add(1), op.end.map(|end| end.saturating_add(1)));
        match op.step {
            Step::Write(id) if id != ABSENT && values.insert(id) => {
                writes.push(Write { value: id.into(), start, end, refused: false });
            }
            Step::Read(id) => {
                let value = (id != ABSENT).then_some(id.into());
                reads.extend(end.map(|end| Read { value, start, end }));
            }
            Step::Write(_) | Step::Swap { .. } | Step::Unlike(_) => return None,
        }
    }
    let breach = register::check(&writes, &reads).is_err();
    Some(if breach { Outcome::NotLinearizable } else { Outcome::Linearizable })
}

/// One key's operations made ready.
struct Problem {
    /// Those that must take effect, by their start. `end` is their deadline.
    must: Vec<Op>,
    /// Those that may: like steps together, by their start.
    may: Vec<(Step, Vec<u64>)>,
    /// Those that may and swap from a value that is produced once, by that value, with the first start of the like.
    /// Which of them took effect need not be remembered: the value is gone then.
    may_once: HashMap<Id, Vec<(Id, u64)>>,
    /// How many of `must` observe each value that is produced once; absent for others.
    observers: HashMap<Id, u32>,
    /// Values on which a condition was refused.
    refused: HashSet<Id>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Use {
    producers: u32,
    /// Operations that must see the value.
    must_see: u32,
    /// Optional swaps from it.
    may_see: u32,
    /// Refused conditions on it.
    unlike: u32,
    /// The first end of those that must see it.
    deadline: u64,
}

fn uses(ops: &[Op]) -> HashMap<Id, Use> {
    let mut uses: HashMap<Id, Use> = HashMap::new();
    // The absence at the beginning.
    uses.entry(ABSENT).or_default().producers += 1;
    for op in ops {
        if let Some(id) = op.step.produces() {
            uses.entry(id).or_default().producers += 1;
        }
        if let Step::Unlike(id) = op.step {
            uses.entry(id).or_default().unlike += 1;
        }
        if let Some(id) = op.step.observes() {
            let of_id = uses.entry(id).or_default();
            match op.end {
                Some(end) => {
                    of_id.deadline = if of_id.must_see == 0 { end } else { end.min(of_id.deadline) };
                    of_id.must_see += 1;
                }
                None => of_id.may_see += 1,
            }
        }
    }
    uses
}

/// Gives deadlines to writes that were seen and drops those that nobody can notice. `None`: a value was seen that
/// nobody wrote.
fn prepare(ops: &[Op]) -> Option<Problem> {
    let mut ops = ops.to_vec();
    let conditions = ops.iter().any(|op| matches!(op.step, Step::Unlike(_)));
    let uses = loop {
        let uses = uses(&ops);
        let of = |id: Id| uses.get(&id).copied().unwrap_or_default();
        let mut changed = false;
        ops.retain_mut(|op| {
            let Some(id) = op.step.produces() else { return true };
            let of_id = of(id);
            if op.end.is_none() && of_id.must_see == 0 && of_id.may_see == 0 && !conditions {
                changed = true;
                return false;
            }
            let bound =
                (id != ABSENT && of_id.producers == 1 && of_id.must_see > 0).then_some(of_id.deadline);
            if let Some(bound) = bound.filter(|&bound| op.end.is_none_or(|end| bound < end)) {
                op.end = Some(bound);
                changed = true;
            }
            true
        });
        if !changed {
            break uses;
        }
    };
    let seen = |of_id: &Use| of_id.must_see > 0 || of_id.may_see > 0 || of_id.unlike > 0;
    if uses.values().any(|of_id| of_id.must_see > 0 && of_id.producers == 0) {
        return None;
    }
    for op in &mut ops {
        if let Step::Write(id) | Step::Swap { new: id, .. } = &mut op.step
            && *id != ABSENT
            && !uses.get(id).is_some_and(seen)
        {
            *id = OTHER;
        }
    }
    let once = uses.iter().filter(|(_, of_id)| of_id.producers == 1);
    let observers: HashMap<Id, u32> = once.map(|(&id, of_id)| (id, of_id.must_see)).collect();
    let refused = uses.iter().filter(|(_, of_id)| of_id.unlike > 0).map(|(&id, _)| id).collect();
    let (mut must, may): (Vec<Op>, Vec<Op>) = ops.into_iter().partition(|op| op.end.is_some());
    must.sort_by_key(|op| op.start);
    let mut may_once: HashMap<Id, Vec<(Id, u64)>> = HashMap::new();
    let mut groups = Vec::new();
    for (step, starts) in alike(&may) {
        match (step, starts.first()) {
            (Step::Swap { old, new }, Some(&start)) if observers.contains_key(&old) => {
                may_once.entry(old).or_default().push((new, start));
            }
            _ => groups.push((step, starts)),
        }
    }
    Some(Problem { must, may: groups, may_once, observers, refused })
}

fn alike(may: &[Op]) -> Vec<(Step, Vec<u64>)> {
    let mut places: HashMap<Step, usize> = HashMap::new();
    let mut groups: Vec<(Step, Vec<u64>)> = Vec::new();
    for op in may {
        let at = *places.entry(op.step).or_insert(groups.len());
        if at == groups.len() {
            groups.push((op.step, Vec::new()));
        }
        if let Some((_, starts)) = groups.get_mut(at) {
            starts.push(op.start);
        }
    }
    for (_, starts) in &mut groups {
        starts.sort_unstable();
    }
    groups
}

/// Which operations took effect, and the value then.
#[derive(Debug, Clone, Default)]
struct Configuration {
    state: Id,
    /// How many of those that must see `state` have.
    seen: u32,
    /// All of `must` before this times 64 took effect.
    word: usize,
    /// Bits from there on.
    done: Vec<u64>,
    done_count: usize,
    /// How many of each group of `may`.
    used: Vec<u32>,
}

impl Configuration {
    fn is_done(&self, at: usize) -> bool {
        let word = at / 64;
        word < self.word || self.done.get(word - self.word).is_some_and(|bits| bits & (1 << (at % 64)) != 0)
    }

    fn set_done(&mut self, at: usize) {
        let word = (at / 64).saturating_sub(self.word);
        if self.done.len() <= word {
            self.done.resize(word + 1, 0);
        }
        if let Some(bits) = self.done.get_mut(word) {
            *bits |= 1 << (at % 64);
        }
        let full = self.done.iter().take_while(|&&bits| bits == u64::MAX).count();
        self.done.drain(..full);
        self.word += full;
        self.done_count += 1;
    }

    /// What tells it from others: `seen` and `done_count` follow from the rest.
    fn fingerprint(&self) -> Box<[u64]> {
        let mut key = Vec::with_capacity(2 + self.done.len() + self.used.len());
        key.extend([u64::from(self.state), self.word as u64]);
        key.extend(self.used.iter().map(|&used| u64::from(used)));
        key.extend(&self.done);
        key.into()
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.done.len() * 8 + self.used.len() * 4
    }
}

/// Decides one key by search.
pub fn search(ops: &[Op], bounds: Bounds) -> Outcome {
    let Some(problem) = prepare(ops) else { return Outcome::NotLinearizable };
    let first = Configuration { used: vec![0; problem.may.len()], ..Configuration::default() };
    let mut stack = vec![first];
    let mut entered: HashSet<Box<[u64]>> = HashSet::new();
    let (mut visited, mut bytes) = (0_usize, 0_usize);
    while let Some(mut configuration) = stack.pop() {
        bytes = bytes.saturating_sub(configuration.bytes());
        let candidates = problem.settle(&mut configuration);
        if configuration.done_count == problem.must.len() {
            return Outcome::Linearizable;
        }
        let fingerprint = configuration.fingerprint();
        let remembered = size_of_val(&*fingerprint) + 24;
        if !entered.insert(fingerprint) {
            continue;
        }
        visited += 1;
        bytes += remembered;
        let before = stack.len();
        problem.follow(&configuration, &candidates, &mut stack);
        bytes += stack.iter().skip(before).map(Configuration::bytes).sum::<usize>();
        if visited >= bounds.configurations_max || bytes >= bounds.memory_max_bytes {
            return Outcome::Exhausted;
        }
    }
    Outcome::NotLinearizable
}

/// Operations that may take effect next.
struct Candidates {
    /// Places in `must`.
    must: Vec<usize>,
    /// No other may begin later than this: the first end of those that have not taken effect.
    until: u64,
}

impl Problem {
    fn candidates(&self, configuration: &Configuration) -> Candidates {
        let mut until = u64::MAX;
        let mut must = Vec::new();
        let from = configuration.word * 64;
        for (at, op) in self.must.iter().enumerate().skip(from) {
            if op.start > until {
                break;
            }
            if !configuration.is_done(at) {
                until = op.end.unwrap_or(u64::MAX).min(until);
                must.push(at);
            }
        }
        must.retain(|&at| self.must.get(at).is_some_and(|op| op.start <= until));
        Candidates { must, until }
    }

    /// Lets take effect what cannot hinder anything, until there is no more of it.
    fn settle(&self, configuration: &mut Configuration) -> Candidates {
        loop {
            let candidates = self.candidates(configuration);
            let before = configuration.done_count;
            for &at in &candidates.must {
                let Some(op) = self.must.get(at) else { continue };
                match op.step {
                    Step::Read(id) if id == configuration.state => configuration.seen += 1,
                    Step::Unlike(id) if id != configuration.state => {}
                    // An unnoticed value in place of one that nobody will ask for again.
                    Step::Write(OTHER)
                        if self.is_spent(configuration) && !self.is_needed_later(configuration, op) =>
                    {
                        (configuration.state, configuration.seen) = (OTHER, 0);
                    }
                    Step::Read(_) | Step::Unlike(_) | Step::Write(_) | Step::Swap { .. } => continue,
                }
                configuration.set_done(at);
            }
            if configuration.done_count == before {
                return candidates;
            }
        }
    }

    /// Nobody will ask for the value again.
    fn is_spent(&self, configuration: &Configuration) -> bool {
        let state = configuration.state;
        let seen_by_all = self.observers.get(&state).is_some_and(|&all| all == configuration.seen);
        state == OTHER || (seen_by_all && !self.may_once.contains_key(&state))
    }

    /// A refused condition may need this write of an unnoticed value to come after one that made the condition hold.
    fn is_needed_later(&self, configuration: &Configuration, write: &Op) -> bool {
        let until = write.end.unwrap_or(u64::MAX);
        let refused = |id: Id| self.refused.contains(&id);
        let makes_hold = |step: Step| step.produces().is_some_and(refused);
        let from = configuration.word * 64;
        let concurrent = self.must.iter().enumerate().skip(from).take_while(|(_, op)| op.start <= until);
        let mut left = concurrent.filter(|(at, _)| !configuration.is_done(*at));
        let optional = self.may.iter().zip(&configuration.used).any(|((step, starts), &used)| {
            makes_hold(*step) && starts.get(used as usize).is_some_and(|&start| start <= until)
        });
        let mut swaps = self.may_once.values().flatten();
        optional
            || swaps.any(|&(id, start)| refused(id) && start <= until)
            || left.any(|(_, op)| makes_hold(op.step))
    }

    /// Nobody must see the value any more, or it may come back.
    fn may_leave(&self, configuration: &Configuration, seen: u32) -> bool {
        self.observers.get(&configuration.state).is_none_or(|&all| all == configuration.seen + seen)
    }

    /// The value after a step that changes it; `must` steps count among those that see the value before.
    fn after(&self, configuration: &Configuration, step: Step, must: bool) -> Option<Id> {
        match step {
            Step::Write(id) => self.may_leave(configuration, 0).then_some(id),
            Step::Swap { old, new } => {
                (old == configuration.state && self.may_leave(configuration, u32::from(must))).then_some(new)
            }
            Step::Read(_) | Step::Unlike(_) => None,
        }
    }

    /// Pushes what can come next, the most urgent last, to be taken first.
    fn follow(&self, from: &Configuration, candidates: &Candidates, stack: &mut Vec<Configuration>) {
        for &(state, start) in self.may_once.get(&from.state).into_iter().flatten() {
            if start <= candidates.until && self.may_leave(from, 0) {
                stack.push(Configuration { state, seen: 0, ..from.clone() });
            }
        }
        for (group, (step, starts)) in self.may.iter().enumerate() {
            let used = from.used.get(group).copied().unwrap_or_default();
            let open = starts.get(used as usize).is_some_and(|&start| start <= candidates.until);
            let Some(state) = self.after(from, *step, false).filter(|_| open) else { continue };
            let mut next = Configuration { state, seen: 0, ..from.clone() };
            if let Some(used) = next.used.get_mut(group) {
                *used += 1;
            }
            stack.push(next);
        }
        let mut urgent: Vec<(u64, usize, Id)> = Vec::new();
        for &at in &candidates.must {
            let Some(op) = self.must.get(at) else { continue };
            let state = self.after(from, op.step, true);
            urgent.extend(state.map(|state| (op.end.unwrap_or(u64::MAX), at, state)));
        }
        urgent.sort_unstable_by(|one, other| other.cmp(one));
        for (_, at, state) in urgent {
            let mut next = Configuration { state, seen: 0, ..from.clone() };
            next.set_done(at);
            stack.push(next);
        }
    }
}
