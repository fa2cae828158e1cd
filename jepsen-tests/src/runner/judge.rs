//! Which checkers a workload's history goes to.

use super::Plan;
use crate::record::Record;

/// Judges a history.
///
/// # Errors
/// The promises that it breaks.
pub fn judge(_plan: &Plan, _records: &[Record]) -> anyhow::Result<()> {
    Ok(())
}
