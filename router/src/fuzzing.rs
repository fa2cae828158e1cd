//! What fuzzing reaches into (`jepsen-tests/fuzz`): the service without its socket, and the parsers of its input.

use std::sync::Arc;

use borough_proto::exchange::Forwarder;

use crate::app::App;
use crate::config::Config;

pub use crate::api::page_token::Place;
pub use crate::http::headers::{CacheControl, Tags};
pub use crate::http::path::{Target, escape};

/// Everything that a router serves, asking nodes through `forwarder`.
pub fn service(config: Config, forwarder: Arc<Forwarder>) -> axum::Router {
    crate::serve::service(&Arc::new(App::new(config, forwarder)))
}
