//! Makes sure that a collection which this router has not heard of does not exist: another router may have made it just now.
//!
//! The map is pushed and lags a little, so before a 404 the meta leader is asked how new the catalog is, and the map is
//! waited for. Requests share these looks, and looks keep a distance, so unknown names cannot be used to hammer the cluster.

use std::time::Duration;

use borough_proto::error::ProblemType;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::api::call::Call;
use crate::http::refusal::Refusal;

/// Between the starts of two looks of this router.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A look that takes longer is given up.
const LOOK_MAX: Duration = Duration::from_secs(3);
/// How long the news may take by themselves before another node is watched.
const PUSH_MAX: Duration = Duration::from_millis(250);

/// The looks of one router.
#[derive(Debug, Default)]
pub struct Catalog {
    looks: Mutex<Looks>,
}

#[derive(Debug, Default)]
struct Looks {
    /// When the last look began.
    began: Option<Instant>,
    /// When the last look that succeeded began.
    good: Option<Instant>,
}

/// The one field of the status document that is needed here.
#[derive(serde::Deserialize)]
struct Status {
    epoch: u64,
}

impl Catalog {
    /// Waits until the map holds everything that was in the catalog when `call` arrived.
    ///
    /// # Errors
    /// 503 when that cannot be found out within the deadline.
    pub async fn catch_up(&self, call: &Call<'_>) -> Result<(), Refusal> {
        let Ok(mut looks) = tokio::time::timeout_at(call.deadline, self.looks.lock()).await else {
            return Err(unconfirmed("too many ask at once"));
        };
        if looks.good.is_some_and(|began| began >= call.arrived) {
            return Ok(());
        }
        if let Some(began) = looks.began {
            tokio::time::sleep_until((began + LOOK_EVERY).min(call.deadline)).await;
        }
        let began = Instant::now();
        looks.began = Some(began);
        self.look(call, call.deadline.min(began + LOOK_MAX)).await?;
        looks.good = Some(began);
        Ok(())
    }

    async fn look(&self, call: &Call<'_>, deadline: Instant) -> Result<(), Refusal> {
        let reply = call.app.cluster.status(deadline).await?;
        let Ok(Status { epoch }) = serde_json::from_str(&reply.json) else {
            return Err(unconfirmed("the status document has no epoch"));
        };
        let watch = call.app.forwarder.watch();
        if watch.reached(epoch, deadline.min(Instant::now() + PUSH_MAX)).await {
            return Ok(());
        }
        // The node that is watched may be cut off itself.
        watch.refresh();
        if watch.reached(epoch, deadline).await {
            return Ok(());
        }
        Err(unconfirmed("this router's cluster map is behind"))
    }
}

fn unconfirmed(why: &str) -> Refusal {
    let detail = format!("whether the collection exists could not be found out in time: {why}");
    Refusal::new(ProblemType::Unavailable, detail).retry_after(Duration::from_secs(1))
}
