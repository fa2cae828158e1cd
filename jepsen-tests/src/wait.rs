//! Waiting on a condition, with a deadline; never for a fixed time.

use std::future::Future;
use std::time::{Duration, Instant};

/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(15);

/// Looks at `condition` until it gives a value, and says after `limit` what was waited for and why it was not so.
///
/// # Errors
/// The last reason that `condition` gave, when `limit` has passed.
pub async fn until<T, F, Fut>(limit: Duration, what: &str, mut condition: F) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = anyhow::Result<T>>,
{
    let start = Instant::now();
    loop {
        match tokio::time::timeout(limit, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(reason)) if start.elapsed() >= limit => {
                return Err(reason.context(format!("waited {limit:?} for: {what}")));
            }
            Ok(Err(_)) => {}
            Err(_) => anyhow::bail!("waited {limit:?} for: {what}; no answer at all"),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
