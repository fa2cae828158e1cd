//! Histories in EDN, the notation of Jepsen's own tools: one map a line, `{:index 0, :time 1, :process 2, …}`.
//!
//! Function names and the `append` and `r` of transactions are keywords, as Elle and Knossos expect; everything else is
//! what JSON has. The reader takes what the writer writes, and any other order, spacing and comments.

use std::io;

use serde_json::{Map, Number, Value};

use super::{Kind, NEMESIS, Record};

/// Nested deeper than any value of a history: a bound for the reader's recursion.
const DEPTH_MAX: usize = 64;

/// Writes one map a line.
///
/// # Errors
/// Those of `to`.
pub fn write_edn(records: &[Record], mut to: impl io::Write) -> io::Result<()> {
    let mut line = String::new();
    for record in records {
        line.clear();
        write_record(record, &mut line);
        line.push('\n');
        to.write_all(line.as_bytes())?;
    }
    to.flush()
}

fn write_record(record: &Record, to: &mut String) {
    to.push_str("{:index ");
    to.push_str(&record.index.to_string());
    to.push_str(", :time ");
    to.push_str(&record.time_ns.to_string());
    to.push_str(", :process ");
    if record.process == NEMESIS {
        to.push_str(":nemesis");
    } else {
        to.push_str(&record.process.to_string());
    }
    to.push_str(", :type ");
    to.push_str(match record.kind {
        Kind::Invoke => ":invoke",
        Kind::Ok => ":ok",
        Kind::Fail => ":fail",
        Kind::Info => ":info",
    });
    to.push_str(", :f ");
    write_name(&record.f, to);
    to.push_str(", :key ");
    write_string(&record.key, to);
    to.push_str(", :value ");
    match &record.value {
        Value::Array(steps) if record.f == "txn" => write_steps(steps, to),
        value => write_value(value, to),
    }
    if let Some(error) = &record.error {
        to.push_str(", :error ");
        write_string(error, to);
    }
    to.push('}');
}

/// `[[:append "x" 1] [:r "x" nil]]`
fn write_steps(steps: &[Value], to: &mut String) {
    write_list(steps, to, |step, to| match step {
        Value::Array(parts) => {
            let mut first = true;
            write_list(parts, to, |part, to| match part {
                Value::String(name) if std::mem::take(&mut first) => write_name(name, to),
                part => {
                    first = false;
                    write_value(part, to);
                }
            });
        }
        other => write_value(other, to),
    });
}

fn write_list(values: &[Value], to: &mut String, mut write: impl FnMut(&Value, &mut String)) {
    to.push('[');
    for (at, value) in values.iter().enumerate() {
        if at > 0 {
            to.push(' ');
        }
        write(value, to);
    }
    to.push(']');
}

/// A keyword where the name can be one, else a string.
fn write_name(name: &str, to: &mut String) {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.+*!?".contains(c);
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(inner) {
        to.push(':');
        to.push_str(name);
    } else {
        write_string(name, to);
    }
}

fn write_value(value: &Value, to: &mut String) {
    match value {
        Value::Null => to.push_str("nil"),
        Value::Bool(true) => to.push_str("true"),
        Value::Bool(false) => to.push_str("false"),
        Value::Number(number) => {
            to.push_str(&number.to_string());
            // Integers of EDN have 64 bits with a sign unless they say that they are larger.
            if number.is_u64() && !number.is_i64() {
                to.push('N');
            }
        }
        Value::String(text) => write_string(text, to),
        Value::Array(values) => write_list(values, to, write_value),
        Value::Object(map) => {
            to.push('{');
            for (at, (name, value)) in map.iter().enumerate() {
                if at > 0 {
                    to.push_str(", ");
                }
                write_string(name, to);
                to.push(' ');
                write_value(value, to);
            }
            to.push('}');
        }
    }
}

fn write_string(text: &str, to: &mut String) {
    to.push('"');
    for c in text.chars() {
        match c {
            '"' => to.push_str("\\\""),
            '\\' => to.push_str("\\\\"),
            '\n' => to.push_str("\\n"),
            '\r' => to.push_str("\\r"),
            '\t' => to.push_str("\\t"),
            c if c.is_control() => to.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => to.push(c),
        }
    }
    to.push('"');
}

/// Why a text is no history in EDN. Offsets are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EdnError {
    #[error("parse EDN at {at}: expected {expected}")]
    Expected { at: usize, expected: &'static str },
    #[error("map {number} of the history has no valid :{field}")]
    Field { number: usize, field: &'static str },
}

/// Reads the maps of a history. Keywords become strings, sets and tagged values are refused.
///
/// # Errors
/// The first place that is no EDN, or the first map that is no record.
pub fn read_edn(text: &str) -> Result<Vec<Record>, EdnError> {
    let mut reader = Reader { text, at: 0 };
    let mut records = Vec::new();
    loop {
        reader.skip_space();
        if reader.rest().is_empty() {
            return Ok(records);
        }
        let value = reader.value(0)?;
        records.push(record(records.len(), &value)?);
    }
}

fn record(number: usize, map: &Value) -> Result<Record, EdnError> {
    let missing = |field| EdnError::Field { number, field };
    let integer = |field| map.get(field).and_then(Value::as_u64).ok_or(missing(field));
    let text = |field| map.get(field).and_then(Value::as_str).map(str::to_owned);
    let process = match map.get("process") {
        Some(Value::String(name)) if name == "nemesis" => NEMESIS,
        _ => integer("process")?,
    };
    let kind = match map.get("type").and_then(Value::as_str) {
        Some("invoke") => Kind::Invoke,
        Some("ok") => Kind::Ok,
        Some("fail") => Kind::Fail,
        Some("info") => Kind::Info,
        _ => return Err(missing("type")),
    };
    Ok(Record {
        index: integer("index")?,
        time_ns: integer("time")?,
        process,
        kind,
        f: text("f").ok_or(missing("f"))?,
        key: text("key").ok_or(missing("key"))?,
        value: map.get("value").cloned().ok_or(missing("value"))?,
        error: text("error"),
    })
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn fail<T>(&self, expected: &'static str) -> Result<T, EdnError> {
        Err(EdnError::Expected { at: self.at, expected })
    }

    /// Commas are white space in EDN.
    fn skip_space(&mut self) {
        loop {
            let trimmed = self.rest().trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            self.at = self.text.len() - trimmed.len();
            if !trimmed.starts_with(';') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn take(&mut self, symbol: char) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(symbol);
        if found {
            self.at += symbol.len_utf8();
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, EdnError> {
        if depth > DEPTH_MAX {
            return self.fail("a value less deeply nested");
        }
        if self.take('"') {
            return Ok(Value::String(self.string()?));
        }
        if self.take(':') {
            return Ok(Value::String(self.token().to_owned()));
        }
        if self.take('{') {
            return self.map(depth);
        }
        if self.take('[') {
            return self.list(depth, ']');
        }
        if self.take('(') {
            return self.list(depth, ')');
        }
        self.atom()
    }

    fn map(&mut self, depth: usize) -> Result<Value, EdnError> {
        let mut map = Map::new();
        while !self.take('}') {
            let Value::String(name) = self.value(depth + 1)? else { return self.fail("a name before this") };
            map.insert(name, self.value(depth + 1)?);
        }
        Ok(Value::Object(map))
    }

    fn list(&mut self, depth: usize, close: char) -> Result<Value, EdnError> {
        let mut values = Vec::new();
        while !self.take(close) {
            values.push(self.value(depth + 1)?);
        }
        Ok(Value::Array(values))
    }

    fn token(&mut self) -> &'a str {
        let rest = self.rest();
        let ends = |c: char| c.is_whitespace() || ",\"{}[]();".contains(c);
        let token = rest.get(..rest.find(ends).unwrap_or(rest.len())).unwrap_or_default();
        self.at += token.len();
        token
    }

    fn atom(&mut self) -> Result<Value, EdnError> {
        let begin = self.at;
        let number = match self.token() {
            "nil" => return Ok(Value::Null),
            "true" => return Ok(Value::Bool(true)),
            "false" => return Ok(Value::Bool(false)),
            token => token.strip_suffix('N').unwrap_or(token).parse::<Number>().ok(),
        };
        number
            .map(Value::Number)
            .ok_or(EdnError::Expected { at: begin, expected: "nil, a boolean or a number" })
    }

    fn string(&mut self) -> Result<String, EdnError> {
        let mut out = String::new();
        loop {
            let Some(c) = self.rest().chars().next() else { return self.fail("the end of a string") };
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(out),
                '\\' => out.push(self.escape()?),
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, EdnError> {
        let Some(c) = self.rest().chars().next() else { return self.fail("an escaped character") };
        self.at += c.len_utf8();
        match c {
            '"' | '\\' => Ok(c),
            'n' => Ok('\n'),
            'r' => Ok('\r'),
            't' => Ok('\t'),
            'u' => {
                let digits = self.rest().get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                let Some(c) = digits.and_then(char::from_u32) else { return self.fail("four hex digits") };
                self.at += 4;
                Ok(c)
            }
            _ => self.fail("a known escape"),
        }
    }
}
