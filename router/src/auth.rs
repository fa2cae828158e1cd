//! Who may do what: bearer tokens (RFC 6750), their rights, and the collections they are confined to.
//!
//! Off unless the configuration names a token. Only digests are kept, so neither the configuration nor this process's
//! memory gives a token away, and a look-up compares digests: how long it takes tells nothing about the tokens.
//! What is decided here is decided from the request's head, before its body is read and before it is counted against a limit.

use std::collections::{HashMap, HashSet};

use borough_proto::error::ProblemType;
use borough_proto::http_api::valid_bearer_token;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method};
use sha2::{Digest as _, Sha256};

use crate::config::{AuthConfig, TokenConfig};
use crate::http::path::Target;
use crate::http::refusal::Refusal;

/// SHA-256 of a token.
type Digest = [u8; 32];

/// One of the things a token may be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    Read,
    Write,
    Admin,
}

impl Right {
    pub const ALL: &[Self] = &[Self::Read, Self::Write, Self::Admin];

    /// As the configuration and challenges name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|right| right.name() == text)
    }
}

/// What is known of a token besides its digest.
#[derive(Debug)]
pub struct Token {
    /// Position in the configuration.
    number: usize,
    name: String,
    rights: Vec<Right>,
    /// `None`: all.
    collections: Option<HashSet<String>>,
}

/// Who sent a request.
#[derive(Debug, Clone, Copy)]
pub enum Caller<'a> {
    /// Auth is off: anyone may do anything.
    Anyone,
    Known(&'a Token),
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No bearer token.
    Missing,
    /// What was sent cannot be a token, or is two.
    Malformed,
    /// Nobody's token.
    Unknown,
    /// The token lacks the right.
    Right,
    /// The token is confined to other collections.
    Collection,
}

impl Reason {
    pub const ALL: &[Self] = &[Self::Missing, Self::Malformed, Self::Unknown, Self::Right, Self::Collection];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Right => "right",
            Self::Collection => "collection",
        }
    }
}

/// A refusal, before it is told.
#[derive(Debug, PartialEq, Eq)]
pub struct Denied {
    pub reason: Reason,
    detail: String,
    /// The right that was needed, if the caller is known.
    needed: Option<Right>,
}

impl From<Denied> for Refusal {
    /// 401 or 403 with the challenge of RFC 6750 §3.
    fn from(denied: Denied) -> Self {
        let challenge = match (denied.reason, denied.needed) {
            (Reason::Missing, _) => r#"Bearer realm="borough""#,
            (Reason::Malformed | Reason::Unknown, _) | (Reason::Right | Reason::Collection, None) => {
                r#"Bearer realm="borough", error="invalid_token""#
            }
            (_, Some(Right::Read)) => r#"Bearer realm="borough", error="insufficient_scope", scope="read""#,
            (_, Some(Right::Write)) => r#"Bearer realm="borough", error="insufficient_scope", scope="write""#,
            (_, Some(Right::Admin)) => r#"Bearer realm="borough", error="insufficient_scope", scope="admin""#,
        };
        let kind = match denied.reason {
            Reason::Missing | Reason::Malformed | Reason::Unknown => ProblemType::Unauthorized,
            Reason::Right | Reason::Collection => ProblemType::Forbidden,
        };
        let refusal = Self::new(kind, denied.detail);
        refusal.header(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }
}

/// The tokens that are good.
pub struct Auth {
    /// `None`: auth is off.
    tokens: Option<HashMap<Digest, Token>>,
}

impl Auth {
    /// Auth is on as soon as the configuration names a token, also one that cannot be used: then nobody has it.
    pub fn new(config: &AuthConfig) -> Self {
        if config.tokens.is_empty() {
            return Self { tokens: None };
        }
        let known = config.tokens.iter().enumerate();
        Self { tokens: Some(known.filter_map(|(number, token)| Token::new(number, token)).collect()) }
    }

    pub fn is_on(&self) -> bool {
        self.tokens.is_some()
    }

    /// Who sent a request with these headers.
    ///
    /// # Errors
    /// 401.
    pub fn identify(&self, headers: &HeaderMap) -> Result<Caller<'_>, Denied> {
        let Some(tokens) = &self.tokens else { return Ok(Caller::Anyone) };
        let denied = |reason, detail: &str| Denied { reason, detail: detail.to_owned(), needed: None };
        let token = bearer(headers).map_err(|reason| match reason {
            Reason::Missing => denied(reason, "this needs a token: Authorization: Bearer TOKEN"),
            _ => denied(reason, "the authorization header is not one bearer token (RFC 6750)"),
        })?;
        let digest: Digest = Sha256::digest(token).into();
        match tokens.get(&digest) {
            Some(token) => Ok(Caller::Known(token)),
            None => Err(denied(Reason::Unknown, "the token is not known here")),
        }
    }
}

impl Token {
    fn new(number: usize, config: &TokenConfig) -> Option<(Digest, Self)> {
        let digest = digest_of_hex(&config.sha256)?;
        let token = Self {
            number,
            name: config.name.clone(),
            rights: config.rights.iter().filter_map(|right| Right::parse(right)).collect(),
            collections: config.collections.as_ref().map(|names| names.iter().cloned().collect()),
        };
        Some((digest, token))
    }
}

impl Caller<'_> {
    /// Which token it is, by its position in the configuration; `None` when auth is off.
    pub fn token(self) -> Option<usize> {
        match self {
            Self::Anyone => None,
            Self::Known(token) => Some(token.number),
        }
    }

    pub fn has(self, right: Right) -> bool {
        match self {
            Self::Anyone => true,
            Self::Known(token) => token.rights.contains(&right),
        }
    }

    /// Whether it may use `right`, on `collection` if the call is about one.
    ///
    /// # Errors
    /// 403. A collection that does not exist is refused like one that does.
    pub fn may(self, right: Right, collection: Option<&str>) -> Result<(), Denied> {
        let Self::Known(token) = self else { return Ok(()) };
        let denied = |reason, detail| Err(Denied { reason, detail, needed: Some(right) });
        if !self.has(right) {
            let detail = format!("token {:?} lacks the right {:?}", token.name, right.name());
            return denied(Reason::Right, detail);
        }
        match (&token.collections, collection) {
            (Some(allowed), Some(name)) if !allowed.contains(name) => {
                let detail = format!("token {:?} is confined to other collections than {name:?}", token.name);
                denied(Reason::Collection, detail)
            }
            (Some(_) | None, _) => Ok(()),
        }
    }
}

/// The bearer token of a request. Credentials of another scheme are none.
fn bearer(headers: &HeaderMap) -> Result<&str, Reason> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Reason::Missing)?;
    if values.next().is_some() {
        return Err(Reason::Malformed);
    }
    let text = value.to_str().map_err(|_| Reason::Malformed)?;
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Reason::Missing);
    }
    let token = token.trim_matches(' ');
    if valid_bearer_token(token) { Ok(token) } else { Err(Reason::Malformed) }
}

/// What a call needs. `None`: the resource tells nothing about anybody's data and is open.
pub fn needed(target: &Target<'_>, method: &Method) -> Option<Right> {
    match target {
        Target::Livez | Target::Readyz | Target::Metrics => None,
        Target::Cluster
        | Target::AdminCollections
        | Target::AdminCollection { .. }
        | Target::Rebalances
        | Target::Operations
        | Target::Operation { .. }
        | Target::OperationControl { .. }
        | Target::NodeChange { .. } => Some(Right::Admin),
        Target::BatchGet { .. } => Some(Right::Read),
        // A transaction of checks alone changes nothing, but is ordered like a write and asks for its right.
        Target::BatchWrite { .. } | Target::Transact { .. } => Some(Right::Write),
        Target::Collection { .. } | Target::Document { .. } | Target::Item { .. } => match *method {
            Method::GET | Method::HEAD => Some(Right::Read),
            _ => Some(Right::Write),
        },
    }
}

/// The one collection that a call's path names.
pub fn collection_of<'a>(target: &'a Target<'_>) -> Option<&'a str> {
    match target {
        Target::Collection { collection }
        | Target::BatchGet { collection }
        | Target::BatchWrite { collection }
        | Target::Document { collection, .. }
        | Target::Item { collection, .. } => Some(collection),
        // A transaction names its collections in the body; tokens with the right to administer are never confined.
        Target::Transact { .. }
        | Target::Cluster
        | Target::AdminCollections
        | Target::AdminCollection { .. }
        | Target::Rebalances
        | Target::Operations
        | Target::Operation { .. }
        | Target::OperationControl { .. }
        | Target::NodeChange { .. }
        | Target::Livez
        | Target::Readyz
        | Target::Metrics => None,
    }
}

/// Reads 64 hex digits.
pub fn digest_of_hex(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != digest.len() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(high? << 4 | low?).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `printf %s abc | sha256sum` prints (the example of FIPS 180-2).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    fn auth(sha256: &str) -> Auth {
        let token = TokenConfig {
            name: "t".to_owned(),
            sha256: sha256.to_owned(),
            rights: vec!["read".to_owned()],
            collections: Some(vec!["users".to_owned()]),
        };
        Auth::new(&AuthConfig { tokens: vec![token] })
    }

    #[test]
    fn a_digest_is_what_sha256sum_prints() {
        assert_eq!(digest_of_hex(ABC), Some(Sha256::digest("abc").into()));
        assert_eq!(digest_of_hex(&ABC.to_uppercase()), Some(Sha256::digest("abc").into()));
        for text in ["", "abc", &ABC[2..], &ABC[1..], &format!("{ABC}00"), &ABC.replace('b', "g")] {
            assert_eq!(digest_of_hex(text), None, "{text}");
        }
        assert_eq!(digest_of_hex(&ABC.replace("ba", "é")), None);
    }

    #[test]
    fn one_header_with_one_bearer_token_is_read() {
        for value in ["Bearer abc", "bearer abc", "BEARER   abc"] {
            assert_eq!(bearer(&headers(&[value.as_bytes()])), Ok("abc"), "{value}");
        }
        let table: &[(&[&[u8]], Reason)] = &[
            (&[], Reason::Missing),
            (&[b"Basic YTpi"], Reason::Missing),
            (&[b"abc"], Reason::Missing),
            (&[b""], Reason::Missing),
            (&[b"Bearerabc"], Reason::Missing),
            (&[b"Bearer"], Reason::Malformed),
            (&[b"Bearer  "], Reason::Malformed),
            (&[b"Bearer a b"], Reason::Malformed),
            (&[b"Bearer \"abc\""], Reason::Malformed),
            (&[b"Bearer abc, Bearer abc"], Reason::Malformed),
            (&[b"Bearer a\xffb"], Reason::Malformed),
            (&[b"Bearer abc", b"Bearer abc"], Reason::Malformed),
            (&[b"Bearer abc", b"Basic YTpi"], Reason::Malformed),
        ];
        for (values, reason) in table {
            assert_eq!(bearer(&headers(values)), Err(*reason), "{values:?}");
        }
    }

    #[test]
    fn a_token_is_known_by_its_digest_alone() {
        let auth = auth(ABC);
        assert_eq!(auth.identify(&headers(&[b"Bearer abc"])).unwrap().token(), Some(0));
        for other in ["abd", "ABC", "abc=", ABC] {
            let denied = auth.identify(&headers(&[format!("Bearer {other}").as_bytes()])).unwrap_err();
            assert_eq!(denied.reason, Reason::Unknown, "{other}");
            assert!(!denied.detail.contains(other), "{}", denied.detail);
        }
    }

    #[test]
    fn a_token_that_cannot_be_used_lets_nobody_in() {
        let auth = auth("nonsense");
        assert!(auth.is_on());
        assert_eq!(auth.identify(&headers(&[])).unwrap_err().reason, Reason::Missing);
        assert_eq!(auth.identify(&headers(&[b"Bearer nonsense"])).unwrap_err().reason, Reason::Unknown);
        let off = Auth::new(&AuthConfig::default());
        assert!(!off.is_on() && matches!(off.identify(&headers(&[])), Ok(Caller::Anyone)));
    }

    #[test]
    fn rights_and_collections_count_together() {
        let auth = auth(ABC);
        let caller = auth.identify(&headers(&[b"Bearer abc"])).unwrap();
        assert_eq!(caller.may(Right::Read, Some("users")), Ok(()));
        assert_eq!(caller.may(Right::Read, Some("posts")).unwrap_err().reason, Reason::Collection);
        assert_eq!(caller.may(Right::Write, Some("users")).unwrap_err().reason, Reason::Right);
        assert_eq!(caller.may(Right::Admin, None).unwrap_err().reason, Reason::Right);
        assert_eq!(Caller::Anyone.may(Right::Admin, Some("posts")), Ok(()));
    }
}
