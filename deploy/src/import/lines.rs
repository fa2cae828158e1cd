//! Reads NDJSON into windows: finds each document's key, sets aside what cannot be imported, and
//! says how far in the file a window reaches. It knows no network.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, BufRead};
use std::time::{Duration, Instant};

use borough_client::Json;
use borough_proto::document::{self, KeyField};
use borough_proto::limits;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

/// Longer lines are passed over without being held in memory.
const LINE_BYTES_MAX: usize = limits::DOCUMENT_BYTES_MAX + (64 << 10);
/// Bytes of documents in a window.
const WINDOW_BYTES_MAX: usize = 16 << 20;

/// Where the keys are and how large windows get.
#[derive(Debug, Clone)]
pub struct Rule {
    pub id: String,
    /// Set for sorted collections.
    pub sort: Option<String>,
    /// Documents of a window at most.
    pub window: usize,
    /// Documents that are enough for one where lines come slowly: once it is `patience` old.
    pub enough: usize,
    pub patience: Duration,
}

/// A place in the file: `offset` bytes and `line` lines lie before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    pub offset: u64,
    pub line: u64,
}

/// Names a document within its collection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub id: String,
    pub sort: Option<String>,
}

/// One document to write, exactly as in the file.
#[derive(Debug)]
pub struct Document {
    /// From 1.
    pub line: u64,
    pub key: Key,
    pub json: Json,
}

/// A line that cannot be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// From 1.
    pub line: u64,
    pub why: String,
}

/// Some consecutive lines; no key appears twice.
#[derive(Debug, Default)]
pub struct Window {
    pub documents: Vec<Document>,
    pub bad: Vec<Bad>,
    /// Where the window ends.
    pub end: Position,
}

/// Reads `input`, which starts at `start` of the file, to its end, or until nobody takes windows any more.
///
/// # Errors
/// Of `input`.
pub fn read(
    mut input: impl BufRead,
    start: Position,
    rule: &Rule,
    windows: &mpsc::Sender<Window>,
) -> io::Result<()> {
    let mut filling = Filling::new(start);
    let mut position = start;
    let mut line = Vec::new();
    while let Some(read) = read_line(&mut input, &mut line)? {
        let number = position.line + 1;
        let end = Position { offset: position.offset + read.bytes, line: number };
        let text = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
        let parsed = if read.too_long {
            Some(Err(format!("the line has {} bytes; the limit is {LINE_BYTES_MAX}", read.bytes)))
        } else if text.iter().all(u8::is_ascii_whitespace) {
            None
        } else {
            Some(parse(text, rule))
        };
        if let Some(Ok((key, json))) = &parsed
            && !filling.has_room(key, json.get().len(), rule)
            && windows.blocking_send(filling.take(position)).is_err()
        {
            return Ok(());
        }
        match parsed {
            Some(Ok((key, json))) => filling.add(Document { line: number, key, json }),
            Some(Err(why)) => filling.window.bad.push(Bad { line: number, why }),
            None => {}
        }
        position = end;
        // So that bad or empty lines alone do not pile up.
        if filling.window.bad.len() >= 1000 && windows.blocking_send(filling.take(position)).is_err() {
            return Ok(());
        }
    }
    // Refused only when nobody listens any more.
    let _gone = windows.blocking_send(filling.take(position));
    Ok(())
}

/// The window in the making.
struct Filling {
    window: Window,
    keys: HashSet<Key>,
    bytes: usize,
    since: Instant,
}

impl Filling {
    fn new(start: Position) -> Self {
        Self {
            window: Window { end: start, ..Window::default() },
            keys: HashSet::new(),
            bytes: 0,
            since: Instant::now(),
        }
    }

    /// A key that comes again must wait for its first document to be written, so that the last one stands.
    fn has_room(&self, key: &Key, bytes: usize, rule: &Rule) -> bool {
        let count = self.window.documents.len();
        count == 0
            || (count < rule.window
                && self.bytes + bytes <= WINDOW_BYTES_MAX
                && !self.keys.contains(key)
                && (count < rule.enough || self.since.elapsed() < rule.patience))
    }

    fn add(&mut self, document: Document) {
        if self.window.documents.is_empty() {
            self.since = Instant::now();
        }
        self.bytes += document.json.get().len();
        self.keys.insert(document.key.clone());
        self.window.documents.push(document);
    }

    fn take(&mut self, end: Position) -> Window {
        self.keys.clear();
        self.bytes = 0;
        let mut window = std::mem::take(&mut self.window);
        window.end = end;
        window
    }
}

struct LineRead {
    /// With the line end.
    bytes: u64,
    too_long: bool,
}

/// The next line without its end; `None` at the end of the input.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<LineRead>> {
    line.clear();
    let mut read = LineRead { bytes: 0, too_long: false };
    loop {
        let chunk = match input.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            return Ok((read.bytes > 0).then_some(read));
        }
        let end = chunk.iter().position(|&byte| byte == b'\n');
        let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
        if line.len() + part.len() > LINE_BYTES_MAX {
            read.too_long = true;
            line.clear();
        }
        if !read.too_long {
            line.extend_from_slice(part);
        }
        let used = part.len() + usize::from(end.is_some());
        read.bytes += used as u64;
        input.consume(used);
        if end.is_some() {
            return Ok(Some(read));
        }
    }
}

/// The key and the document of a line, or why it has none.
fn parse(line: &[u8], rule: &Rule) -> Result<(Key, Json), String> {
    let inspected = document::inspect(line.trim_ascii()).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(line).map_err(|error| error.to_string())?;
    let mut wanted = Fields { id: &rule.id, sort: rule.sort.as_deref(), found: Found::default() };
    if rule.id == "id" && rule.sort.is_none() {
        wanted.found.id = Some(match &inspected.id {
            KeyField::Text(text) => Ok(text.to_string()),
            KeyField::Other(what) => Err((*what).to_owned()),
            KeyField::Absent => return Err("no field `id`".to_owned()),
        });
    } else {
        let mut json = serde_json::Deserializer::from_str(text);
        json.deserialize_map(&mut wanted).map_err(|error| format!("malformed JSON: {error}"))?;
    }
    let Found { id, sort } = wanted.found;
    let id = key_text(&rule.id, id, limits::ID_BYTES_MAX)?;
    let sort = rule.sort.as_ref().map(|field| key_text(field, sort, limits::SORT_BYTES_MAX)).transpose()?;
    document::flags(&inspected, &id, sort.as_deref()).map_err(|error| error.to_string())?;
    let json = serde_json::from_str(text).map_err(|error| format!("malformed JSON: {error}"))?;
    Ok((Key { id, sort }, json))
}

fn key_text(field: &str, found: Option<Result<String, String>>, bytes_max: usize) -> Result<String, String> {
    let text = match found {
        None => return Err(format!("no field `{field}`")),
        Some(Err(what)) => return Err(format!("field `{field}` must be a string or an integer, not {what}")),
        Some(Ok(text)) => text,
    };
    if text.is_empty() || text.len() > bytes_max {
        return Err(format!("field `{field}` has {} bytes; 1 to {bytes_max} make a key", text.len()));
    }
    Ok(text)
}

#[derive(Default)]
struct Found {
    id: Option<Result<String, String>>,
    sort: Option<Result<String, String>>,
}

/// Picks the key fields out of an object and skips the rest.
struct Fields<'a> {
    id: &'a str,
    sort: Option<&'a str>,
    found: Found,
}

impl<'de> Visitor<'de> for &mut Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((is_id, is_sort)) = map.next_key_seed(Name { id: self.id, sort: self.sort })? {
            if !is_id && !is_sort {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let text = scalar(map.next_value::<&RawValue>()?.get());
            if is_id {
                self.found.id = Some(text.clone());
            }
            if is_sort {
                self.found.sort = Some(text);
            }
        }
        Ok(())
    }
}

/// A string's text or an integer's decimal form; else what it is.
fn scalar(json: &str) -> Result<String, String> {
    if json.starts_with('"') {
        return serde_json::from_str(json).map_err(|error| error.to_string());
    }
    let integer = json.parse::<i64>().map(|number| number.to_string());
    integer
        .or_else(|_| json.parse::<u64>().map(|number| number.to_string()))
        .map_err(|_| json.chars().take(40).collect())
}

/// Whether a field's name is that of the id, of the sort key.
struct Name<'a> {
    id: &'a str,
    sort: Option<&'a str>,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = (bool, bool);
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = (bool, bool);
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }
    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok((name == self.id, self.sort == Some(name)))
    }
}
