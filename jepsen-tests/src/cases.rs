//! Many named cases on one cluster: each is run, all failures are told together.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::FutureExt as _;

/// Longest run of one case.
const CASE_LIMIT: Duration = Duration::from_secs(240);

/// Compares two values and leaves the case with both when they differ.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr $(,)?) => {
        $crate::check_eq!($left, $right, "{}", stringify!($left))
    };
    ($left:expr, $right:expr, $($context:tt)+) => {{
        // A match keeps temporaries alive.
        match (&$left, &$right) {
            (left, right) => {
                if *left != *right {
                    anyhow::bail!("{}: got {left:?}, expected {right:?} (line {})", format!($($context)+), line!());
                }
            }
        }
    }};
}

/// Runs cases one after another.
#[derive(Debug, Default)]
pub struct Cases {
    only: Option<String>,
    ran: usize,
    failures: Vec<String>,
}

impl Cases {
    pub fn new() -> Self {
        Self { only: std::env::var("JEPSEN_CASE").ok(), ..Self::default() }
    }

    /// Runs `case` unless `JEPSEN_CASE` leaves it out; a panic in it is a failure too.
    pub async fn run(&mut self, name: &str, case: impl Future<Output = anyhow::Result<()>>) {
        if self.only.as_deref().is_some_and(|only| !name.contains(only)) {
            return;
        }
        self.ran += 1;
        let start = Instant::now();
        // Boxed: cases are large futures.
        let case = AssertUnwindSafe(Box::pin(case)).catch_unwind();
        let failure = match tokio::time::timeout(CASE_LIMIT, case).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(format!("{error:#}")),
            Ok(Err(panic)) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                Some(format!("panicked: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
            }
            Err(_) => Some(format!("not done after {CASE_LIMIT:?}")),
        };
        let took = start.elapsed();
        match failure {
            None => println!("ok      {name} ({took:.1?})"),
            Some(reason) => {
                println!("FAILED  {name} ({took:.1?}): {reason}");
                self.failures.push(format!("{name}: {reason}"));
            }
        }
    }

    /// Whether a case has failed so far.
    pub fn failed(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Fails the test when a case failed.
    ///
    /// # Errors
    /// All failures, one a line.
    pub fn finish(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.ran > 0 || self.only.is_some(), "no case ran");
        let (count, ran) = (self.failures.len(), self.ran);
        anyhow::ensure!(count == 0, "{count} of {ran} cases failed:\n{}", self.failures.join("\n"));
        Ok(())
    }
}
