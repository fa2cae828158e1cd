//! What a node refuses to propose: commands that arrive from outside and break the contract.
//!
//! Whatever passes here can still fail when it is applied (preconditions, merges); it cannot be malformed.

use borough_proto::document::{flags, inspect};
use borough_proto::limits;
use borough_proto::wire::{self, op::Action};

/// Most units in one command.
pub const UNITS_MAX: usize = 1024;
/// Most operations in one unit.
pub const OPS_MAX: usize = limits::BATCH_ITEMS_MAX;

/// Checks a command that was received, before the leader stamps and proposes it. Sweeps are the leader's own and
/// do not come here.
///
/// # Errors
/// A sentence that names what is wrong.
pub fn validate(command: &wire::Command) -> Result<(), String> {
    if command.sweep.is_some() {
        return Err("only a shard's leader sweeps".to_owned());
    }
    if command.units.is_empty() || command.units.len() > UNITS_MAX {
        return Err(format!("a command has 1 to {UNITS_MAX} units, not {}", command.units.len()));
    }
    if let Some(session) = &command.session
        && session.acknowledged >= session.sequence
    {
        return Err(format!(
            "sequence {} of the session is acknowledged already, up to {}",
            session.sequence, session.acknowledged
        ));
    }
    let mut payload_bytes = 0_usize;
    for (number, unit) in command.units.iter().enumerate() {
        validate_unit(unit).map_err(|reason| format!("unit {number}: {reason}"))?;
        payload_bytes += unit.ops.iter().map(payload).sum::<usize>();
    }
    at_most("documents of a command together", payload_bytes, limits::BATCH_BYTES_MAX)
}

fn payload(op: &wire::Op) -> usize {
    match &op.action {
        Some(Action::Put(put)) => put.document.len(),
        Some(Action::Merge(merge)) => merge.patch.len(),
        Some(Action::Delete(_) | Action::Check(_)) | None => 0,
    }
}

fn validate_unit(unit: &wire::Unit) -> Result<(), String> {
    if unit.ops.is_empty() || unit.ops.len() > OPS_MAX {
        return Err(format!("a unit has 1 to {OPS_MAX} operations, not {}", unit.ops.len()));
    }
    if let Some(idempotency) = &unit.idempotency {
        not_empty("idempotency key", &idempotency.key)?;
        at_most("idempotency key", idempotency.key.len(), limits::IDEMPOTENCY_KEY_BYTES_MAX)?;
        let note_bytes = idempotency.note.as_ref().map_or(0, |note| note.len());
        at_most("note of the idempotency key", note_bytes, limits::IDEMPOTENCY_NOTE_BYTES_MAX)?;
    }
    unit.ops.iter().enumerate().try_for_each(|(number, op)| {
        validate_op(op).map_err(|reason| format!("operation {number}: {reason}"))
    })
}

fn validate_op(op: &wire::Op) -> Result<(), String> {
    not_empty("id", &op.id)?;
    at_most("id", op.id.len(), limits::ID_BYTES_MAX)?;
    if let Some(sort) = &op.sort {
        not_empty("sort key", sort)?;
        at_most("sort key", sort.len(), limits::SORT_BYTES_MAX)?;
    }
    if let Some(precondition) = &op.precondition {
        let versions = precondition.if_match.len() + precondition.if_none_match.len();
        if versions > limits::BATCH_ITEMS_MAX {
            return Err(format!(
                "a precondition names at most {} versions, not {versions}",
                limits::BATCH_ITEMS_MAX
            ));
        }
    }
    if let Some(ttl_ms) = op.ttl_ms {
        let most = limits::TTL_MAX.as_millis();
        if ttl_ms == 0 || u128::from(ttl_ms) > most {
            return Err(format!("a time to live has 1 to {most} ms, not {ttl_ms}"));
        }
    }
    match &op.action {
        Some(Action::Put(put)) => {
            let inspected = inspect(&put.document).map_err(|error| error.to_string())?;
            let expected =
                flags(&inspected, &op.id, op.sort.as_deref()).map_err(|error| error.to_string())?;
            if put.flags != expected {
                return Err(format!("the document's flags are {}, not {expected}", put.flags));
            }
            Ok(())
        }
        // Whether it can be applied depends on the document: that is an outcome, not a fault.
        Some(Action::Merge(merge)) => at_most("patch", merge.patch.len(), limits::DOCUMENT_BYTES_MAX),
        Some(Action::Delete(_) | Action::Check(_)) => Ok(()),
        None => Err("no action that this build knows".to_owned()),
    }
}

fn not_empty(what: &str, text: &str) -> Result<(), String> {
    if text.is_empty() { Err(format!("the {what} is empty")) } else { Ok(()) }
}

fn at_most(what: &str, bytes: usize, most: usize) -> Result<(), String> {
    if bytes > most { Err(format!("{what}: {bytes} bytes; the limit is {most}")) } else { Ok(()) }
}
