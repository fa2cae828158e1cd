//! Defects that are built in on purpose, to show that the chaos harness finds them.
//!
//! Only with the feature `defects`, which no build has that is not told so; else there are none. The environment variable
//! `JEPSEN_DEFECT` names the one that a node has. Each breaks one rule on which a promise stands, and nothing else.

/// A rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// Writes are acknowledged before the log has reached the disk (I1).
    AnswerBeforeSync,
    /// New files of the log are not made durable in their directory (I3).
    SkipDirectorySync,
    /// A leader answers reads without asking a quorum whether it still is one (I7).
    ReadWithoutQuorum,
    /// What a log entry says is done twice (I5).
    ApplyTwice,
    /// The cache is not told of what changes (I7).
    StaleCache,
    /// A snapshot lacks what is known of requests that were answered: a replica that was made from one has forgotten them.
    ForgetRequests,
    /// Replicas answer sessions before they have what the session has seen.
    ForgetSession,
    /// Replicas answer reads that may be stale however stale they are.
    ForgetStaleness,
    /// Requests that name a newer epoch than the node's map has are answered all the same (I6).
    IgnoreEpoch,
    /// Any other map replaces the one that the node has, also an older one (I6).
    OlderMaps,
}

#[cfg(feature = "defects")]
mod chosen {
    use std::sync::LazyLock;

    use super::Defect;

    const ALL: [(&str, Defect); 10] = [
        ("answer-before-sync", Defect::AnswerBeforeSync),
        ("skip-directory-sync", Defect::SkipDirectorySync),
        ("read-without-quorum", Defect::ReadWithoutQuorum),
        ("apply-twice", Defect::ApplyTwice),
        ("stale-cache", Defect::StaleCache),
        ("forget-requests", Defect::ForgetRequests),
        ("forget-session", Defect::ForgetSession),
        ("forget-staleness", Defect::ForgetStaleness),
        ("ignore-epoch", Defect::IgnoreEpoch),
        ("older-maps", Defect::OlderMaps),
    ];

    static CHOSEN: LazyLock<Option<Defect>> = LazyLock::new(|| {
        let name = std::env::var("JEPSEN_DEFECT").ok()?;
        let found = ALL.iter().find(|(known, _)| *known == name);
        match found {
            // The harness looks for it: a binary that cannot break the rule would show nothing by keeping it.
            Some(_) => tracing::warn!(%name, "a rule is broken on purpose"),
            None => tracing::error!(%name, "JEPSEN_DEFECT names no defect: there is none"),
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
