//! Defects that are built in on purpose, to show that the chaos harness finds them.
//!
//! Only with the feature `defects`, which no build has that is not told so; else there are none. The environment variable
//! `JEPSEN_DEFECT` names the one that a node has. Each breaks one rule on which a promise stands, and nothing else.

/// A rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// Replicas answer sessions before they have what the session has seen.
    ForgetSession,
    /// Replicas answer reads that may be stale however stale they are.
    ForgetStaleness,
}

#[cfg(feature = "defects")]
mod chosen {
    use std::sync::LazyLock;

    use super::Defect;

    const ALL: [(&str, Defect); 2] =
        [("forget-session", Defect::ForgetSession), ("forget-staleness", Defect::ForgetStaleness)];

    static CHOSEN: LazyLock<Option<Defect>> = LazyLock::new(|| {
        let name = std::env::var("JEPSEN_DEFECT").ok()?;
        let found = ALL.iter().find(|(known, _)| *known == name);
        if found.is_none() {
            tracing::error!(%name, "JEPSEN_DEFECT names no defect: there is none");
        }
        found.map(|(_, defect)| *defect)
    });

    pub fn has(defect: Defect) -> bool {
        *CHOSEN == Some(defect)
    }
}

#[cfg(not(feature = "defects"))]
mod chosen {
    use super::Defect;

    pub const fn has(_defect: Defect) -> bool {
        false
    }
}

/// Whether this process has the defect.
pub use chosen::has;
