//! Messages that overtake each other, as they may on a network; a stream of TCP keeps their order.
//!
//! Only with the feature `reordering`, which no build has that is not told so; else nothing waits. A test says so by a file
//! `reorder` in the node's data directory, while the node runs. Each frame that comes in, of Raft and of the data plane, then
//! waits for a time of its own before it is handled, and its answer before it leaves. What its sender has given up meanwhile
//! is handled all the same. Some frames of Raft are handled twice, the second time later.

#[cfg(feature = "reordering")]
mod ordered {
    use std::path::{Path, PathBuf};
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use parking_lot::Mutex;
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};
    use serde::Deserialize;

    /// Between two looks at the file.
    const LOOK_EVERY: Duration = Duration::from_millis(20);
    /// Frames that left their place in the order, for whoever gave the order.
    const OVERTAKEN: &str = "borough_overtaken_messages_total";

    static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

    /// What the file says.
    #[derive(Debug, Clone, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Order {
        seed: u64,
        longest_ms: u64,
        /// Share of Raft's frames.
        twice: f64,
    }

    #[derive(Default)]
    struct State {
        file: Option<PathBuf>,
        looked: Option<Instant>,
        order: Option<(Order, StdRng)>,
    }

    impl State {
        /// The order, if there is one now.
        fn now(&mut self) -> Option<&mut (Order, StdRng)> {
            if self.looked.is_none_or(|looked| looked.elapsed() > LOOK_EVERY) {
                self.looked = Some(Instant::now());
                // Told before there is anything to tell: who gives orders sees that they can be given.
                metrics::counter!(OVERTAKEN).increment(0);
                let told = self.file.as_ref().and_then(|file| std::fs::read(file).ok());
                let told: Option<Order> = told.and_then(|bytes| serde_json::from_slice(&bytes).ok());
                if told.as_ref() != self.order.as_ref().map(|(order, _)| order) {
                    self.order = told.map(|order| {
                        let rng = StdRng::seed_from_u64(order.seed);
                        (order, rng)
                    });
                }
            }
            self.order.as_mut()
        }

        /// For how long the next frame is on its way.
        fn pause(&mut self) -> Option<Duration> {
            let (order, rng) = self.now()?;
            // Most are quick, so that the slow ones are overtaken by many.
            let share = rng.random::<f64>().powi(4);
            Some(Duration::from_millis(order.longest_ms).mul_f64(share))
        }

        fn twice(&mut self) -> bool {
            self.now().is_some_and(|(order, rng)| rng.random_bool(order.twice.clamp(0.0, 1.0)))
        }
    }

    pub fn watch(data_dir: &Path) {
        // Of several nodes in one process the first has it.
        STATE.lock().file.get_or_insert_with(|| data_dir.join("reorder"));
    }

    /// The way of one stream's frames in one direction.
    #[derive(Debug, Default)]
    struct Line {
        came: AtomicU64,
        /// The last to come of those that were let go.
        newest: AtomicU64,
    }

    impl Line {
        /// Lets a frame go; whether one that came later was let go before it.
        fn let_go(&self, number: u64) -> bool {
            self.newest.fetch_max(number, Ordering::Relaxed) > number
        }

        async fn pass(&self) {
            let number = self.came.fetch_add(1, Ordering::Relaxed);
            let pause = STATE.lock().pause();
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            // What threads do to each other is no order of anybody's.
            if self.let_go(number) && pause.is_some() {
                metrics::counter!(OVERTAKEN).increment(1);
            }
        }
    }

    /// A stream that this node serves.
    #[derive(Debug, Default)]
    pub struct Stream {
        inward: Line,
        outward: Line,
    }

    impl Stream {
        /// Whether every frame keeps its place.
        pub fn in_order(&self) -> bool {
            STATE.lock().now().is_none()
        }

        /// Waits until a frame has come.
        pub async fn comes(&self) {
            self.inward.pass().await;
        }

        /// Waits until an answer leaves.
        pub async fn leaves(&self) {
            self.outward.pass().await;
        }
    }

    /// Whether a frame of Raft comes twice.
    pub fn twice() -> bool {
        STATE.lock().twice()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn frames_wait_while_the_file_says_so_and_as_its_seed_decides() {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("reorder");
            let drawn = |text: Option<&str>| -> Vec<Option<Duration>> {
                match text {
                    Some(text) => std::fs::write(&file, text).unwrap(),
                    None => drop(std::fs::remove_file(&file)),
                }
                let mut state = State { file: Some(file.clone()), ..State::default() };
                (0..20).map(|_| state.pause()).collect()
            };
            let order = |seed: u64| format!("{{\"seed\": {seed}, \"longestMs\": 100, \"twice\": 0.5}}");
            let nothing = vec![None; 20];
            assert_eq!(drawn(None), nothing);
            let seven = drawn(Some(&order(7)));
            assert!(seven.iter().all(|pause| pause.is_some_and(|pause| pause <= Duration::from_millis(100))));
            assert_eq!(drawn(Some(&order(7))), seven);
            assert_ne!(drawn(Some(&order(8))), seven);
            // Written by half.
            assert_eq!(drawn(Some("{\"seed\": 7")), nothing);
            assert_eq!(drawn(None), nothing);
        }

        #[test]
        fn a_frame_is_overtaken_by_those_that_came_later_and_went_before() {
            let line = Line::default();
            assert_eq!(
                [0, 2, 1, 4, 3, 5].map(|number| line.let_go(number)),
                [false, false, true, false, true, false]
            );
        }
    }
}

#[cfg(not(feature = "reordering"))]
mod ordered {
    use std::path::Path;

    pub fn watch(_data_dir: &Path) {}

    /// A stream that this node serves.
    #[derive(Debug, Default)]
    pub struct Stream;

    impl Stream {
        pub const fn in_order(&self) -> bool {
            true
        }

        pub async fn comes(&self) {}

        pub async fn leaves(&self) {}
    }

    pub const fn twice() -> bool {
        false
    }
}

/// Looks for the file in this node's data directory.
pub use ordered::watch;

/// What passes here overtakes and is overtaken.
pub use ordered::Stream;

/// Whether a frame of Raft is to be handled twice.
pub use ordered::twice;
