//! Query strings: known parameters only, each at most once.

use borough_proto::error::ProblemType;
use borough_proto::http_api::parse_ttl;
use borough_proto::limits::{PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, SORT_BYTES_MAX};

use super::path::unescape;
use super::refusal::Refusal;

/// A parameter of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Param {
    Ttl,
    View,
    Keys,
    PageSize,
    PageToken,
    Start,
    End,
    Reverse,
    ValidateOnly,
}

impl Param {
    fn name(self) -> &'static str {
        match self {
            Self::Ttl => "ttl",
            Self::View => "view",
            Self::PageSize => "pageSize",
            Self::Keys => "keys",
            Self::PageToken => "pageToken",
            Self::Start => "start",
            Self::End => "end",
            Self::Reverse => "reverse",
            Self::ValidateOnly => "validateOnly",
        }
    }
}

/// What a query asks for. Defaults where it says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Time to live, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// Documents exactly as they were imported, without `id` and `sort` added.
    pub stored: bool,
    /// Items of a listing are `{"id", "sort", "document"}`.
    pub keys: bool,
    pub page_size: u32,
    pub page_token: Option<String>,
    /// Sort keys, from `start` inclusive to `end` exclusive.
    pub start: Option<String>,
    pub end: Option<String>,
    pub reverse: bool,
    /// Say what would be done, and do nothing.
    pub validate_only: bool,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            ttl_ms: None,
            stored: false,
            keys: false,
            page_size: PAGE_SIZE_DEFAULT,
            page_token: None,
            start: None,
            end: None,
            reverse: false,
            validate_only: false,
        }
    }
}

fn bad(name: &str, detail: String) -> Refusal {
    Refusal::new(ProblemType::BadParameter, detail).field(name)
}

impl Query {
    /// Reads the part of a URI after `?`, of which only `allowed` may occur.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn parse(raw: Option<&str>, allowed: &[Param]) -> Result<Self, Refusal> {
        let mut query = Self::default();
        let mut seen: Vec<Param> = Vec::new();
        for pair in raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = text(name, "?")?;
            let Some(&param) = allowed.iter().find(|param| param.name() == name) else {
                let names: Vec<_> = allowed.iter().map(|param| param.name()).collect();
                let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                return Err(bad(&name, format!("unknown parameter {name:?}; this call knows {known}")));
            };
            if seen.contains(&param) {
                return Err(bad(&name, format!("parameter {name:?} appears twice")));
            }
            seen.push(param);
            let value = text(value, &name)?;
            query.set(param, value)?;
        }
        Ok(query)
    }

    fn set(&mut self, param: Param, value: String) -> Result<(), Refusal> {
        match param {
            Param::Ttl => {
                let parsed = parse_ttl(&value);
                self.ttl_ms = Some(parsed.map_err(|error| Refusal::from(error).field("ttl"))?);
            }
            Param::View => {
                if value != "stored" {
                    return Err(bad("view", format!("view is \"stored\" or absent, not {value:?}")));
                }
                self.stored = true;
            }
            Param::PageSize => self.page_size = page_size(&value)?,
            Param::PageToken => self.page_token = Some(value).filter(|token| !token.is_empty()),
            Param::Start => self.start = Some(bound("start", value)?),
            Param::End => self.end = Some(bound("end", value)?),
            Param::Keys => self.keys = boolean("keys", &value)?,
            Param::Reverse => self.reverse = boolean("reverse", &value)?,
            Param::ValidateOnly => self.validate_only = boolean("validateOnly", &value)?,
        }
        Ok(())
    }
}

fn boolean(name: &str, value: &str) -> Result<bool, Refusal> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(bad(name, format!("{name} is true or false, not {value:?}"))),
    }
}

fn page_size(value: &str) -> Result<u32, Refusal> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let size = value.parse().ok().filter(|size| digits && (1..=PAGE_SIZE_MAX).contains(size));
    size.ok_or_else(|| {
        bad("pageSize", format!("pageSize is a number from 1 to {PAGE_SIZE_MAX}, not {value:?}"))
            .limit(PAGE_SIZE_MAX as usize)
    })
}

fn bound(name: &'static str, value: String) -> Result<String, Refusal> {
    if value.len() > SORT_BYTES_MAX {
        return Err(bad(name, format!("{name} has {} bytes; the limit is {SORT_BYTES_MAX}", value.len()))
            .limit(SORT_BYTES_MAX));
    }
    Ok(value)
}

/// Decodes `application/x-www-form-urlencoded` text.
fn text(raw: &str, name: &str) -> Result<String, Refusal> {
    let spaced = raw.replace('+', " ");
    let bytes = unescape(spaced.as_bytes());
    let bytes = bytes.ok_or_else(|| bad(name, format!("{name}: a `%` needs two hex digits after it")))?;
    String::from_utf8(bytes).map_err(|_| bad(name, format!("{name}: not UTF-8 once percent-decoded")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: &[Param] = &[
        Param::Ttl,
        Param::View,
        Param::PageSize,
        Param::PageToken,
        Param::Start,
        Param::End,
        Param::Reverse,
    ];

    #[test]
    fn known_parameters_are_read() {
        let query =
            Query::parse(Some("pageSize=5&start=a%20b&end=c+d&reverse=true&ttl=1.5s&view=stored"), ALL)
                .unwrap();
        let expected = Query {
            ttl_ms: Some(1500),
            stored: true,
            keys: false,
            page_size: 5,
            page_token: None,
            start: Some("a b".to_owned()),
            end: Some("c d".to_owned()),
            reverse: true,
            validate_only: false,
        };
        assert_eq!(query, expected);
        assert_eq!(Query::parse(None, &[]).unwrap(), Query::default());
    }

    #[test]
    fn everything_else_is_refused_and_named() {
        for (raw, field) in [
            ("x=1", "x"),
            ("pagesize=1", "pagesize"),
            ("pageSize=0", "pageSize"),
            ("pageSize=1001", "pageSize"),
            ("pageSize=+5", "pageSize"),
            ("pageSize=-1", "pageSize"),
            ("pageSize=1&pageSize=2", "pageSize"),
            ("ttl=5", "ttl"),
            ("ttl=%zz", "ttl"),
            ("reverse=1", "reverse"),
            ("view=all", "view"),
        ] {
            let refusal = Query::parse(Some(raw), ALL).unwrap_err();
            assert_eq!(refusal.status(), 400, "{raw}");
            assert_eq!(refusal.into_problem().field.as_deref(), Some(field), "{raw}");
        }
        assert!(Query::parse(Some("ttl=5s"), &[Param::View]).is_err());
    }

    proptest! {
        #[test]
        fn no_query_panics(raw in "\\PC{0,60}") {
            let _ = Query::parse(Some(&raw), ALL);
        }
    }
}
