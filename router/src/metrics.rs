//! What the router counts, and its Prometheus page.
//!
//! Handles are made once for each (route, status), so a request costs two atomic operations.

use std::sync::OnceLock;
use std::time::Duration;

use http::StatusCode;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::auth::Reason;

/// Upper bounds of the latency histogram, in seconds.
const BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const REQUESTS: &str = "borough_router_requests_total";
const SECONDS: &str = "borough_router_request_duration_seconds";
const DENIED: &str = "borough_router_auth_refusals_total";

macro_rules! routes {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// Groups of calls that are counted together.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Route { $($variant,)* }

        impl Route {
            const ALL: &[Self] = &[$(Self::$variant,)*];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

routes! {
    Get = "get", Put = "put", Post = "post", Patch = "patch", Delete = "delete", List = "list",
    BatchGet = "batch_get", BatchWrite = "batch_write", Transact = "transact", Admin = "admin", Other = "other",
}

struct PerRoute {
    seconds: Histogram,
    /// By status code from 100.
    counters: Vec<OnceLock<Counter>>,
}

/// The router's metrics.
pub struct Metrics {
    routes: Vec<PerRoute>,
    /// By [`Reason`].
    denied: Vec<Counter>,
    pub in_flight: Gauge,
    pub map_epoch: Gauge,
    pub nodes_connected: Gauge,
}

/// The process's recorder: installed by the first router in it, shared by all.
fn handle() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    let install = || {
        let builder =
            PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("seconds".to_owned()), BUCKETS);
        let recorder = builder.ok()?.build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).ok()?;
        Some(handle)
    };
    HANDLE.get_or_init(install).as_ref()
}

impl Default for Metrics {
    fn default() -> Self {
        handle();
        let per_route = |route: &Route| PerRoute {
            seconds: histogram!(SECONDS, "route" => route.name()),
            counters: (100..600).map(|_| OnceLock::new()).collect(),
        };
        Self {
            routes: Route::ALL.iter().map(per_route).collect(),
            denied: Reason::ALL.iter().map(|reason| counter!(DENIED, "reason" => reason.name())).collect(),
            in_flight: gauge!("borough_router_requests_in_flight"),
            map_epoch: gauge!("borough_router_map_epoch"),
            nodes_connected: gauge!("borough_router_nodes_connected"),
        }
    }
}

impl Metrics {
    /// Counts a finished request.
    pub fn request(&self, route: Route, status: StatusCode, took: Duration) {
        let Some(per_route) = self.routes.get(route as usize) else { return };
        per_route.seconds.record(took.as_secs_f64());
        if let Some(slot) = per_route.counters.get(usize::from(status.as_u16()).saturating_sub(100)) {
            let name = || counter!(REQUESTS, "route" => route.name(), "status" => status.as_str().to_owned());
            slot.get_or_init(name).increment(1);
        }
    }

    /// Counts a request whose token was missing, bad, or did not allow it.
    pub fn denied(&self, reason: Reason) {
        if let Some(counter) = self.denied.get(reason as usize) {
            counter.increment(1);
        }
    }

    /// The Prometheus page.
    pub fn render(&self) -> String {
        handle().map(PrometheusHandle::render).unwrap_or_default()
    }

    /// Folds what histograms have gathered; to be called every few seconds, or they grow.
    pub fn upkeep(&self) {
        if let Some(handle) = handle() {
            handle.run_upkeep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_and_status() {
        let metrics = Metrics::default();
        metrics.request(Route::Transact, StatusCode::OK, Duration::from_millis(3));
        metrics.request(Route::Transact, StatusCode::OK, Duration::from_millis(3));
        metrics.upkeep();
        let page = metrics.render();
        assert!(
            page.contains("borough_router_requests_total{route=\"transact\",status=\"200\"} 2"),
            "{page}"
        );
        assert!(
            page.contains(
                "borough_router_request_duration_seconds_bucket{route=\"transact\",le=\"0.005\"} 2"
            ),
            "{page}"
        );
    }
}
