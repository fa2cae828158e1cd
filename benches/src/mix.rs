//! What kinds of requests a load is made of, and in which proportion.

use std::fmt;
use std::str::FromStr;

use rand::{Rng, RngExt};

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Get,
    Put,
    Patch,
    Delete,
    /// Several documents with one request.
    BatchGet,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Get, Self::Put, Self::Patch, Self::Delete, Self::BatchGet];

    /// As in `--mix` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::BatchGet => "batchGet",
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("{name:?} is none of {known}")
        })
    }
}

/// Weights of the kinds, `get=95,put=5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix {
    parts: Vec<(Kind, u32)>,
    total: u32,
}

impl Mix {
    /// Only requests of one kind.
    pub fn only(kind: Kind) -> Self {
        Self { parts: vec![(kind, 1)], total: 1 }
    }

    /// Whether requests of `kind` occur.
    pub fn has(&self, kind: Kind) -> bool {
        self.parts.iter().any(|(part, _)| *part == kind)
    }

    /// The kind of the next request.
    pub fn sample(&self, rng: &mut impl Rng) -> Kind {
        let mut drawn = rng.random_range(0..self.total);
        for (kind, weight) in &self.parts {
            match drawn.checked_sub(*weight) {
                Some(rest) => drawn = rest,
                None => return *kind,
            }
        }
        // Unreachable: the weights add up to the total.
        self.parts.first().map_or(Kind::Get, |(kind, _)| *kind)
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts: Vec<(Kind, u32)> = Vec::new();
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').ok_or(format!("{part:?} is not kind=weight"))?;
            let kind: Kind = name.trim().parse()?;
            let weight: u32 =
                weight.trim().parse().map_err(|_| format!("{weight:?} is not a whole number"))?;
            if parts.iter().any(|(known, _)| *known == kind) {
                return Err(format!("{name:?} is given twice"));
            }
            parts.push((kind, weight));
        }
        parts.retain(|(_, weight)| *weight > 0);
        let total = parts.iter().try_fold(0_u32, |sum, (_, weight)| sum.checked_add(*weight));
        match total {
            Some(0) => Err("all weights are 0".to_owned()),
            Some(total) => Ok(Self { parts, total }),
            None => Err("the weights are too large".to_owned()),
        }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (kind, weight)) in self.parts.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{}={weight}", kind.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn weights_are_parsed_shown_and_kept() {
        let mix: Mix = "get=90, put=9,delete=0,patch=1".parse().unwrap();
        assert_eq!(mix.to_string(), "get=90,put=9,patch=1");
        assert!(mix.has(Kind::Patch) && !mix.has(Kind::Delete));
        let mut rng = StdRng::seed_from_u64(3);
        let mut seen = [0_u32; 5];
        for _ in 0..100_000 {
            seen[mix.sample(&mut rng) as usize] += 1;
        }
        assert!((89_000..91_000).contains(&seen[0]), "{seen:?}");
        assert!((8_500..9_500).contains(&seen[1]), "{seen:?}");
        assert!((800..1_200).contains(&seen[2]), "{seen:?}");
        assert_eq!(seen[3..], [0, 0]);
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "not kind=weight"),
            ("get", "not kind=weight"),
            ("get=1,read=1", "none of get"),
            ("get=-1", "whole number"),
            ("get=1,get=2", "twice"),
            ("get=0", "all weights are 0"),
            ("get=4294967295,put=1", "too large"),
        ] {
            let error = text.parse::<Mix>().unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
