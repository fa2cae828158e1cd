//! Places within JSON, for problems that name what is at fault: `writes[3].put.id`.

use serde_path_to_error::{Path, Segment};

/// Longest place that is named, in bytes: keys are the caller's, so one may be as long as a document (I8).
const PLACE_BYTES_MAX: usize = 256;

/// The place that a path names, or the part of it that is known and fits; `None` for the whole text.
pub fn place(path: &Path) -> Option<String> {
    let mut place = String::new();
    for segment in path {
        let next = match segment {
            Segment::Seq { index } => format!("[{index}]"),
            Segment::Map { key: name } | Segment::Enum { variant: name } => name.clone(),
            Segment::Unknown => break,
        };
        let joined = join(&place, &next);
        if joined.len() > PLACE_BYTES_MAX {
            break;
        }
        place = joined;
    }
    (!place.is_empty()).then_some(place)
}

/// The place `inner` of what lies at `outer`.
pub fn join(outer: &str, inner: &str) -> String {
    let dot = if outer.is_empty() || inner.is_empty() || inner.starts_with('[') { "" } else { "." };
    format!("{outer}{dot}{inner}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_join() {
        assert_eq!(join("", "a"), "a");
        assert_eq!(join("a", "b"), "a.b");
        assert_eq!(join("a", "[1]"), "a[1]");
        assert_eq!(join("a[1]", "b"), "a[1].b");
        assert_eq!(join("a", ""), "a");
    }
}
