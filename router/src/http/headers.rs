//! Request headers: preconditions, freshness, deadline, idempotency key, content type.

use std::time::Duration;

use borough_proto::document::parse_etag;
use borough_proto::error::ProblemType;
use borough_proto::http_api::headers as names;
use borough_proto::limits::{DEADLINE_MAX, IDEMPOTENCY_KEY_BYTES_MAX};
use borough_proto::session::Session;
use borough_proto::wire::Precondition;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName};

use super::refusal::Refusal;

fn bad(name: &str, detail: impl std::fmt::Display) -> Refusal {
    Refusal::new(ProblemType::BadHeader, format!("{name}: {detail}")).field(name)
}

/// All values of a list header as one, or `None` when there is none.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Refusal> {
    let mut joined: Option<String> = None;
    for value in headers.get_all(name) {
        let text = value.to_str().map_err(|_| bad(name.as_str(), "not visible ASCII"))?;
        match &mut joined {
            None => joined = Some(text.to_owned()),
            Some(all) => {
                all.push(',');
                all.push_str(text);
            }
        }
    }
    Ok(joined)
}

/// A header that occurs at most once.
fn single<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(bad(name, "appears twice"));
    }
    value.to_str().map(Some).map_err(|_| bad(name, "not visible ASCII"))
}

/// `If-Match` or `If-None-Match` (RFC 9110 §8.8.3, §13.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tags {
    /// `*`
    Any,
    List(Vec<Tag>),
}

/// One entity tag. A tag that this server never made has no version and matches nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    pub weak: bool,
    pub version: Option<u64>,
}

impl Tags {
    /// Reads a list of entity tags; `None` when it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches([' ', '\t']);
        if text == "*" {
            return Some(Self::Any);
        }
        let mut tags = Vec::new();
        let mut rest = text;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            if rest.is_empty() {
                break;
            }
            let (weak, opaque) = rest.strip_prefix("W/").map_or((false, rest), |strong| (true, strong));
            let inner = opaque.strip_prefix('"')?;
            let (inside, after) = inner.split_once('"')?;
            if !inside.bytes().all(|byte| byte == 0x21 || (0x23..=0x7e).contains(&byte)) {
                return None;
            }
            let tag = opaque.get(..inside.len() + 2)?;
            tags.push(Tag { weak, version: parse_etag(tag) });
            rest = after.trim_start_matches([' ', '\t']);
            if !rest.is_empty() && !rest.starts_with(',') {
                return None;
            }
        }
        if tags.is_empty() { None } else { Some(Self::List(tags)) }
    }

    fn header(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>, Refusal> {
        let Some(text) = joined(headers, name)? else { return Ok(None) };
        let tags = Self::parse(&text);
        tags.map(Some).ok_or_else(|| bad(name.as_str(), "neither `*` nor a list of quoted entity tags"))
    }

    /// Versions for `If-Match`: compared strongly, so weak tags match nothing. Never empty: 0 is no document's version.
    fn strong(tags: &[Tag]) -> Vec<u64> {
        let mut versions: Vec<u64> =
            tags.iter().filter(|tag| !tag.weak).filter_map(|tag| tag.version).collect();
        if versions.is_empty() {
            versions.push(0);
        }
        versions
    }

    /// Versions for `If-None-Match`: compared weakly.
    fn weak(tags: &[Tag]) -> Vec<u64> {
        tags.iter().filter_map(|tag| tag.version).collect()
    }

    /// What a batch's `ifMatch` asks for: `*` or entity tags.
    pub fn if_match(self) -> Precondition {
        match self {
            Self::Any => Precondition { if_present: true, ..Precondition::default() },
            Self::List(tags) => Precondition { if_match: Self::strong(&tags), ..Precondition::default() },
        }
    }
}

/// The conditions of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    pub if_match: Option<Tags>,
    pub if_none_match: Option<Tags>,
}

impl Conditions {
    /// # Errors
    /// 400 when one is malformed.
    pub fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        Ok(Self {
            if_match: Tags::header(headers, &IF_MATCH)?,
            if_none_match: Tags::header(headers, &IF_NONE_MATCH)?,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }

    /// As the shard checks them before a write.
    pub fn precondition(self) -> Option<Precondition> {
        if self.is_empty() {
            return None;
        }
        let mut precondition = self.if_match.map(Tags::if_match).unwrap_or_default();
        match self.if_none_match {
            Some(Tags::Any) => precondition.if_absent = true,
            Some(Tags::List(tags)) => precondition.if_none_match = Tags::weak(&tags),
            None => {}
        }
        Some(precondition)
    }

    /// `If-Match` of a read: whether it fails for the document of that version.
    pub fn read_fails(&self, version: Option<u64>) -> bool {
        match (&self.if_match, version) {
            (None, _) | (Some(Tags::Any), Some(_)) => false,
            (Some(_), None) => true,
            (Some(Tags::List(tags)), Some(version)) => !Tags::strong(tags).contains(&version),
        }
    }

    /// `If-None-Match` of a read: whether the caller has that version already.
    pub fn not_modified(&self, version: u64) -> bool {
        match &self.if_none_match {
            None => false,
            Some(Tags::Any) => true,
            Some(Tags::List(tags)) => Tags::weak(tags).contains(&version),
        }
    }
}

/// How old a read may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheControl {
    /// `max-stale=SECONDS`, in milliseconds.
    pub max_stale_ms: Option<u32>,
    /// `no-cache`: linearizable, whatever else is said.
    pub no_cache: bool,
}

impl CacheControl {
    /// # Errors
    /// 400 for a `max-stale` of something else than seconds; directives that mean nothing here are ignored (RFC 9111 §5.2.3).
    pub fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        match joined(headers, &CACHE_CONTROL)? {
            Some(text) => Self::parse(&text)
                .ok_or_else(|| bad("cache-control", "max-stale takes whole seconds: max-stale=5")),
            None => Ok(Self::default()),
        }
    }

    /// `None` when `max-stale` has something else than seconds.
    pub fn parse(text: &str) -> Option<Self> {
        let mut control = Self::default();
        for directive in text.split(',') {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            let name = name.trim();
            if name.eq_ignore_ascii_case("no-cache") {
                control.no_cache = true;
            } else if name.eq_ignore_ascii_case("max-stale") {
                let digits = value.trim().trim_matches('"');
                if !directive.contains('=') {
                    // Without a number: however stale it is (RFC 9111 §5.2.1.2).
                    control.max_stale_ms = Some(u32::MAX);
                    continue;
                }
                if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                    return None;
                }
                let seconds = digits.parse::<u32>().unwrap_or(u32::MAX);
                control.max_stale_ms = Some(seconds.saturating_mul(1000));
            }
        }
        Some(control)
    }
}

/// `Borough-Session`: what the caller has seen.
///
/// # Errors
/// 400 for a token that no router made.
pub fn session(headers: &HeaderMap) -> Result<Option<Session>, Refusal> {
    let Some(token) = single(headers, names::SESSION)? else { return Ok(None) };
    Session::decode(token).map(Some).map_err(|error| bad(names::SESSION, error))
}

/// `Borough-Timeout-Ms`, or `default`.
///
/// # Errors
/// 400 naming the limit.
pub fn timeout(headers: &HeaderMap, default: Duration) -> Result<Duration, Refusal> {
    let Some(text) = single(headers, names::TIMEOUT)? else { return Ok(default) };
    let limit = DEADLINE_MAX.as_millis();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let millis =
        text.parse::<u64>().ok().filter(|&millis| digits && millis > 0 && u128::from(millis) <= limit);
    millis.map(Duration::from_millis).ok_or_else(|| {
        let refusal =
            bad(names::TIMEOUT, format!("{text:?} is not a number of milliseconds from 1 to {limit}"));
        refusal.limit(usize::try_from(limit).unwrap_or(usize::MAX))
    })
}

/// `Idempotency-Key`.
///
/// # Errors
/// 400 naming the limit.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(key) = single(headers, names::IDEMPOTENCY_KEY)? else { return Ok(None) };
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        let detail = format!("has {} bytes; it has 1 to {IDEMPOTENCY_KEY_BYTES_MAX}", key.len());
        return Err(bad(names::IDEMPOTENCY_KEY, detail).limit(IDEMPOTENCY_KEY_BYTES_MAX));
    }
    Ok(Some(key))
}

/// Checks that the body is what the call takes. A request that does not say is believed.
///
/// # Errors
/// 415 naming what is accepted.
pub fn content_type(headers: &HeaderMap, accepted: &[&str]) -> Result<(), Refusal> {
    if let Some(coding) = headers.get(CONTENT_ENCODING).filter(|coding| *coding != "identity") {
        let detail =
            format!("the body is encoded as {coding:?}; it is taken as it is, without a content coding");
        return Err(Refusal::new(ProblemType::UnsupportedMediaType, detail).field("content-encoding"));
    }
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let Some(value) = values.next() else { return Ok(()) };
    if values.next().is_some() {
        let detail = "the body has one type; there is more than one Content-Type";
        return Err(Refusal::new(ProblemType::UnsupportedMediaType, detail).field("content-type"));
    }
    let text = value.to_str().unwrap_or_default();
    let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
    let known = accepted.iter().any(|accepted| essence.trim().eq_ignore_ascii_case(accepted));
    let charset = parameters.split(';').filter_map(|parameter| parameter.split_once('='));
    let mut charset = charset.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    let utf8 = charset.all(|(_, value)| value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8"));
    if known && utf8 {
        return Ok(());
    }
    let detail = format!("the body is {text:?}; this call takes {} in UTF-8", accepted.join(" or "));
    Err(Refusal::new(ProblemType::UnsupportedMediaType, detail).field("content-type"))
}

/// Whether a caller's `X-Request-Id` can be echoed: 1 to 128 visible characters.
pub fn valid_request_id(value: &http::HeaderValue) -> bool {
    (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn entity_tags_are_read() {
        let strong = |version| Tag { weak: false, version };
        assert_eq!(Tags::parse(" * "), Some(Tags::Any));
        assert_eq!(Tags::parse("\"1f\""), Some(Tags::List(vec![strong(Some(0x1f))])));
        let list = vec![strong(Some(1)), Tag { weak: true, version: Some(2) }, strong(None)];
        assert_eq!(Tags::parse("\"1\", W/\"2\" ,, \"a,b\""), Some(Tags::List(list)));
        for text in ["", "1", "\"1", "\"1\" \"2\"", "W/1", "*,\"1\"", "\"a b\"", ","] {
            assert_eq!(Tags::parse(text), None, "{text}");
        }
    }

    #[test]
    fn if_match_is_strong_and_if_none_match_weak() {
        let read = |pairs: &[_]| Conditions::read(&headers(pairs)).unwrap();
        let weak = read(&[("if-match", "W/\"5\"")]);
        assert!(weak.read_fails(Some(5)));
        assert_eq!(weak.precondition().unwrap().if_match, [0], "matches no document");
        let listed = read(&[("if-match", "\"5\""), ("if-match", "\"6\"")]);
        assert!(!listed.read_fails(Some(6)) && listed.read_fails(Some(7)) && listed.read_fails(None));
        assert!(read(&[("if-none-match", "W/\"5\"")]).not_modified(5));
        assert!(read(&[("if-none-match", "*")]).precondition().unwrap().if_absent);
        assert_eq!(read(&[("if-none-match", "\"9\"")]).precondition().unwrap().if_none_match, [9]);
        assert!(read(&[("if-match", "*")]).precondition().unwrap().if_present);
        assert_eq!(read(&[]).precondition(), None);
    }

    #[test]
    fn staleness_is_read() {
        let parse = |text| CacheControl::parse(text).map(|control| control.max_stale_ms);
        assert_eq!(parse("max-stale=5"), Some(Some(5000)));
        assert_eq!(parse("no-transform, Max-Stale = \"7\""), Some(Some(7000)));
        assert_eq!(parse("max-stale=99999999999"), Some(Some(u32::MAX)));
        assert_eq!(parse("max-age=0"), Some(None));
        assert_eq!(parse("no-transform, max-stale"), Some(Some(u32::MAX)));
        for text in ["max-stale=", "max-stale=-1", "max-stale=1.5"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn deadlines_are_bounded() {
        let read = |text| timeout(&headers(&[("borough-timeout-ms", text)]), Duration::from_secs(9));
        assert_eq!(read("250").unwrap(), Duration::from_millis(250));
        assert_eq!(timeout(&HeaderMap::new(), Duration::from_secs(9)).unwrap(), Duration::from_secs(9));
        for text in ["0", "-1", "60001", "1s", "", "+5"] {
            assert_eq!(read(text).unwrap_err().status(), 400, "{text}");
        }
    }

    #[test]
    fn content_types() {
        let check = |text| content_type(&headers(&[("content-type", text)]), &["application/json"]);
        assert!(check("application/json").is_ok());
        assert!(check("Application/JSON; charset=\"UTF-8\"").is_ok());
        assert!(content_type(&HeaderMap::new(), &["application/json"]).is_ok());
        let two = headers(&[("content-type", "application/json"), ("content-type", "text/plain")]);
        assert_eq!(content_type(&two, &["application/json"]).unwrap_err().status(), 415);
        let coded = |coding| content_type(&headers(&[("content-encoding", coding)]), &["application/json"]);
        assert!(coded("identity").is_ok());
        assert_eq!(coded("gzip").unwrap_err().status(), 415);
        for text in ["text/plain", "application/json; charset=latin1", "", "application/jsonx"] {
            assert_eq!(check(text).unwrap_err().status(), 415, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_made_is_read_back(versions in proptest::collection::vec(any::<u64>(), 1..6)) {
            let text = versions.iter().map(|&v| borough_proto::document::etag(v)).collect::<Vec<_>>().join(", ");
            let tags = versions.iter().map(|&v| Tag { weak: false, version: Some(v) }).collect();
            prop_assert_eq!(Tags::parse(&text), Some(Tags::List(tags)));
        }

        #[test]
        fn nothing_panics(text in "[ -~]{0,40}", any in "\\PC{0,40}") {
            let _ = Tags::parse(&text);
            let _ = Tags::parse(&any);
            let _ = CacheControl::parse(&any);
        }
    }
}
