//! Requests as templates: text with places for keys and values, so that one generator drives any HTTP service.
//!
//! | place | becomes |
//! |---|---|
//! | `{key}`, `{key64}` | the key, plain and in base64 |
//! | `{keys}` | the keys of a batch as JSON strings with commas between |
//! | `{value}`, `{value64}` | a JSON document of the size asked for, plain and in base64 |
//! | `{random}` | a random number |
//!
//! All other braces are text, so JSON needs no escapes.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;

/// What is put into the places of a template.
#[derive(Debug, Clone, Copy)]
pub struct Fill<'a> {
    /// Numbers of the keys: one, or as many as a batch has.
    pub keys: &'a [u64],
    /// Size of the value, in bytes.
    pub value_bytes: usize,
    pub random: u32,
}

impl Fill<'_> {
    fn key(&self) -> u64 {
        self.keys.first().copied().unwrap_or_default()
    }
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Plain(String),
    Key,
    Key64,
    Keys,
    Value,
    Value64,
    Random,
}

const PLACES: [(&str, Part); 6] = [
    ("{key}", Part::Key),
    ("{key64}", Part::Key64),
    ("{keys}", Part::Keys),
    ("{value}", Part::Value),
    ("{value64}", Part::Value64),
    ("{random}", Part::Random),
];

/// Text with places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    parts: Vec<Part>,
}

impl Text {
    /// Finds the places in `text`.
    ///
    /// # Errors
    /// When something looks like a place and is none: a misspelt one would be sent as it is.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(brace) = rest.find('{') {
            let (before, from) = rest.split_at(brace);
            plain.push_str(before);
            if let Some((name, place)) = PLACES.iter().find(|(name, _)| from.starts_with(name)) {
                if !plain.is_empty() {
                    parts.push(Part::Plain(std::mem::take(&mut plain)));
                }
                parts.push(place.clone());
                rest = from.strip_prefix(name).unwrap_or_default();
                continue;
            }
            if let Some(name) = place_like(from) {
                let known: Vec<_> = PLACES.iter().map(|(name, _)| *name).collect();
                return Err(format!("{{{name}}} is none of {}", known.join(", ")));
            }
            plain.push('{');
            rest = from.strip_prefix('{').unwrap_or_default();
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Plain(plain));
        }
        Ok(Self { parts })
    }

    /// The text with its places filled.
    pub fn fill(&self, fill: &Fill<'_>) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Plain(plain) => text.push_str(plain),
                Part::Key => text.push_str(&name(fill.key())),
                Part::Key64 => STANDARD.encode_string(name(fill.key()), &mut text),
                Part::Keys => {
                    let quoted: Vec<_> = fill.keys.iter().map(|&key| format!("\"{}\"", name(key))).collect();
                    text.push_str(&quoted.join(","));
                }
                Part::Value => write_document(&mut text, fill.key(), fill.value_bytes),
                Part::Value64 => {
                    let mut document = String::new();
                    write_document(&mut document, fill.key(), fill.value_bytes);
                    STANDARD.encode_string(document, &mut text);
                }
                Part::Random => text.push_str(&fill.random.to_string()),
            }
        }
        text
    }
}

/// `word` of `{word}…`; JSON has quotes or spaces there.
fn place_like(text: &str) -> Option<&str> {
    let (word, _) = text.strip_prefix('{')?.split_once('}')?;
    let plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
    plain.then_some(word)
}

fn name(key: u64) -> String {
    format!("load-{key}")
}

/// A document of `bytes` bytes, or of the few that it needs at least.
fn write_document(text: &mut String, key: u64, bytes: usize) {
    const END: &str = "\"}";
    let start = text.len();
    text.push_str(&format!(r#"{{"n":{key},"text":""#));
    // Varied, so that compression anywhere on the way does not flatter.
    let mut state = key;
    while text.len() - start + END.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push(char::from(b'a' + u8::try_from((state >> 33) % 26).unwrap_or(0)));
    }
    text.push_str(END);
}

/// A request as files describe it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Sent as it is when it is a string, else as JSON; nothing when it is missing.
    #[serde(default)]
    pub body: serde_json::Value,
    /// Text that a good answer holds, once for each key asked for.
    #[serde(default)]
    pub expect: Option<String>,
}

/// A request of one kind, its places open.
#[derive(Debug, Clone)]
pub struct Template {
    method: Method,
    path: Text,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Text,
    expect: Option<String>,
}

impl Template {
    /// Checks a description.
    ///
    /// # Errors
    /// When a part of it is nothing that HTTP can send, or has unknown places.
    pub fn new(description: &Description) -> Result<Self, String> {
        let Description { method, path, headers, body, expect } = description;
        let of = |what: &str, fault: &dyn std::fmt::Display| format!("{what}: {fault}");
        if !path.starts_with('/') {
            return Err(of("path", &format!("{path:?} does not begin with /")));
        }
        let header = |(name, value): (&String, &String)| {
            let parsed = (HeaderName::try_from(name), HeaderValue::try_from(value));
            match parsed {
                (Ok(name), Ok(value)) => Ok((name, value)),
                (Err(fault), _) => Err(of("headers", &fault)),
                (_, Err(fault)) => Err(of("headers", &fault)),
            }
        };
        let body = match body {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => text.clone(),
            json => json.to_string(),
        };
        Ok(Self {
            method: method.parse().map_err(|fault| of("method", &fault))?,
            path: Text::parse(path).map_err(|fault| of("path", &fault))?,
            headers: headers.iter().map(header).collect::<Result<_, _>>()?,
            body: Text::parse(&body).map_err(|fault| of("body", &fault))?,
            expect: expect.clone().filter(|text| !text.is_empty()),
        })
    }

    /// A request without its `Host`.
    ///
    /// # Errors
    /// When the filled path is no path.
    pub fn request(&self, fill: &Fill<'_>) -> Result<http::Request<Bytes>, http::Error> {
        let mut request = http::Request::builder().method(self.method.clone()).uri(self.path.fill(fill));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(self.body.fill(fill).into())
    }

    /// What a good answer holds once for each key.
    pub fn expect(&self) -> Option<&str> {
        self.expect.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Fill<'_> = Fill { keys: &[7], value_bytes: 40, random: 5 };

    fn filled(text: &str) -> String {
        Text::parse(text).unwrap().fill(&ONE)
    }

    #[test]
    fn places_are_filled_and_other_braces_are_kept() {
        assert_eq!(filled("/v1/users/{key}?n={random}"), "/v1/users/load-7?n=5");
        assert_eq!(filled(r#"{"n":{random},"o":{}}"#), r#"{"n":5,"o":{}}"#);
        assert_eq!(filled("{key64}"), "bG9hZC03");
        assert_eq!(STANDARD.decode(filled("{value64}")).unwrap(), filled("{value}").as_bytes());
        let keys = Text::parse(r#"{"ids":[{keys}]}"#).unwrap();
        assert_eq!(keys.fill(&Fill { keys: &[1, 2], ..ONE }), r#"{"ids":["load-1","load-2"]}"#);
        assert_eq!(filled("{ key}{"), "{ key}{");
        assert_eq!(filled(""), "");
    }

    #[test]
    fn misspelt_places_are_refused() {
        for text in ["{kee}", "/a/{KEY}", r#"{"k":{value65}}"#] {
            assert!(Text::parse(text).unwrap_err().contains("is none of {key}, "), "{text}");
        }
    }

    #[test]
    fn documents_are_json_objects_of_the_size_asked_for() {
        for value_bytes in [100, 300, 5000] {
            let document = Text::parse("{value}").unwrap().fill(&Fill { value_bytes, ..ONE });
            assert_eq!(document.len(), value_bytes);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&document).unwrap()["n"], 7);
        }
    }

    #[test]
    fn descriptions_are_checked_part_by_part() {
        let parse = |json: &str| -> Result<Template, String> {
            Template::new(&serde_json::from_str::<Description>(json).map_err(|fault| fault.to_string())?)
        };
        let json = r#"{"method":"POST","path":"/kv","headers":{"Content-Type":"a/b"},"body":{"key":"{key64}","o":{}}}"#;
        let request = parse(json).unwrap().request(&ONE).unwrap();
        assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/kv"));
        assert_eq!(request.headers()["content-type"], "a/b");
        assert_eq!(request.body(), r#"{"key":"bG9hZC03","o":{}}"#);
        for (json, part) in [
            (r#"{"method":"G T","path":"/"}"#, "method"),
            (r#"{"method":"GET","path":"kv"}"#, "path"),
            (r#"{"method":"GET","path":"/{k}"}"#, "path"),
            (r#"{"method":"GET","path":"/","headers":{"a b":"c"}}"#, "headers"),
            (r#"{"method":"GET","path":"/","headers":{"a":"\n"}}"#, "headers"),
            (r#"{"method":"GET","path":"/","body":"{x}"}"#, "body"),
            (r#"{"method":"GET","path":"/","bodi":"x"}"#, "unknown field"),
        ] {
            let error = parse(json).unwrap_err();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
}
