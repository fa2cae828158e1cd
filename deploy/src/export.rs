//! `borough export`: all documents of a collection as NDJSON that `borough import` can read back.
//!
//! A document that was imported from such a line is given out as that line, byte for byte. One that lacks its key, because
//! it was written under a path, gets it in front. An item of a sorted collection may use `id` and `sort` for something
//! of its own; its key is then looked for in other fields, as `borough import --id FIELD --sort FIELD` took it from there.

use std::borrow::Cow;
use std::io::IsTerminal;

use anyhow::{Context, Result, bail, ensure};
use borough_client::{Json, Keyed};
use futures::{StreamExt, TryStreamExt};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

use crate::cli::ExportArgs;
use crate::documents::{builder, listing};
use crate::exit::{print, say};

/// Documents asked for at a time; as many are looked at to find where the keys are.
const PAGE: u32 = 1000;
/// Bytes printed at once.
const BLOCK_BYTES: usize = 256 << 10;
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);

/// Prints all documents, one a line, in hash order.
///
/// # Errors
/// When a page cannot be read, or a document holds something else where its key should go; what was printed until then is whole lines.
pub async fn run(args: ExportArgs) -> Result<()> {
    let client = builder(&args.target).deadline(DEADLINE).build()?;
    let listing = listing(&client, &args.collection, args.partition.as_deref());
    let mut listing = listing.stored().keyed().page_size(PAGE);
    // Lines on the same terminal would tear the bar apart.
    let visible = std::io::stderr().is_terminal() && !std::io::stdout().is_terminal();
    let bar = if visible { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}")?);
    let first: Vec<Keyed<Json>> = (&mut listing).take(PAGE as usize).try_collect().await?;
    let fields = match Fields::given(&args) {
        Some(fields) => fields,
        None => Fields::find(&first)?,
    };
    let mut documents = futures::stream::iter(first.into_iter().map(Ok)).chain(listing);
    let (mut count, mut bytes) = (0_u64, 0_u64);
    let mut block = String::new();
    while let Some(document) = documents.try_next().await? {
        match fields.line(&document) {
            Ok(line) => block.push_str(&one_line(&line)),
            Err(error) => {
                print(&block)?;
                bar.finish_and_clear();
                return Err(error);
            }
        }
        block.push('\n');
        count += 1;
        if block.len() >= BLOCK_BYTES {
            bytes += block.len() as u64;
            print(&block)?;
            block.clear();
            bar.set_message(format!("{} documents, {}", HumanCount(count), HumanBytes(bytes)));
            bar.tick();
        }
    }
    print(&block)?;
    bar.finish_and_clear();
    if !fields.usual() {
        let sort = fields.sort.map(|sort| format!(" --sort {sort}")).unwrap_or_default();
        say(&format!("to import this again: --id {}{sort}", fields.id));
    }
    Ok(())
}

/// The fields that hold the key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fields {
    id: String,
    /// Of sorted collections.
    sort: Option<String>,
}

impl Fields {
    fn given(args: &ExportArgs) -> Option<Self> {
        (args.id.is_some() || args.sort.is_some()).then(|| Self {
            id: args.id.clone().unwrap_or_else(|| "id".to_owned()),
            sort: Some(args.sort.clone().unwrap_or_else(|| "sort".to_owned())),
        })
    }

    fn usual(&self) -> bool {
        self.id == "id" && self.sort.as_ref().is_none_or(|sort| sort == "sort")
    }

    /// Fields that hold the keys of all `documents`, or `id` and `sort` if nothing else stands there.
    fn find(documents: &[Keyed<Json>]) -> Result<Self> {
        let usual = |sorted: bool| Self { id: "id".to_owned(), sort: sorted.then(|| "sort".to_owned()) };
        let Some(first) = documents.first() else { return Ok(usual(false)) };
        if first.sort.is_none() {
            return Ok(usual(false));
        }
        let bodies = documents.iter().map(|document| Ok((document, members(&document.document)?)));
        let bodies: Vec<(&Keyed<Json>, Map<String, Value>)> = bodies.collect::<Result<_>>()?;
        // Whether all of them hold their id, or sort key, in the field.
        let all = |field: &str, key: fn(&Keyed<Json>) -> Option<&str>| {
            bodies.iter().all(|(document, body)| text(body.get(field)).as_deref() == key(document))
        };
        let names = || bodies.iter().take(1).flat_map(|(_, body)| body.keys());
        let holder = |preferred: &str, other: Option<&str>, key: fn(&Keyed<Json>) -> Option<&str>| {
            let mut names: Vec<&String> = names().collect();
            names.sort_by_key(|name| name.as_str() != preferred);
            names.into_iter().find(|name| other != Some(name.as_str()) && all(name, key)).cloned()
        };
        if let Some(id) = holder("id", None, |document| Some(&document.id))
            && let Some(sort) = holder("sort", Some(&id), |document| document.sort.as_deref())
        {
            return Ok(Self { id, sort: Some(sort) });
        }
        let usual = usual(true);
        for (document, body) in &bodies {
            usual.missing(document, body)?;
        }
        Ok(usual)
    }

    /// The members of the key that the document lacks.
    fn missing(&self, document: &Keyed<Json>, body: &Map<String, Value>) -> Result<Vec<(&str, String)>> {
        let keys = [(Some(&self.id), Some(&document.id)), (self.sort.as_ref(), document.sort.as_ref())];
        let mut missing = Vec::new();
        for (field, key) in keys.into_iter().filter_map(|(field, key)| Some((field?, key?))) {
            match body.get(field) {
                None => missing.push((field.as_str(), key.clone())),
                held => ensure!(
                    text(held).as_ref() == Some(key),
                    "{} holds another value in `{field}`: name fields for its key with --id and --sort",
                    name(document)
                ),
            }
        }
        Ok(missing)
    }

    /// The document with its key.
    fn line<'a>(&self, document: &'a Keyed<Json>) -> Result<Cow<'a, str>> {
        let json = document.document.get();
        let missing = self.missing(document, &members(&document.document)?)?;
        if missing.is_empty() {
            return Ok(json.into());
        }
        let Some((_, rest)) = json.split_once('{') else { bail!("{} is no object", name(document)) };
        let mut line = String::with_capacity(json.len() + 64);
        for (field, key) in missing {
            line.push(if line.is_empty() { '{' } else { ',' });
            line.push_str(&format!("{}:{}", Value::from(field), Value::from(key)));
        }
        if !rest.trim_start().starts_with('}') {
            line.push(',');
        }
        line.push_str(rest);
        Ok(line.into())
    }
}

fn members(document: &Json) -> Result<Map<String, Value>> {
    serde_json::from_str(document.get()).context("read a document")
}

/// A string's text or an integer's decimal form: what can be a key.
fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn name(document: &Keyed<Json>) -> String {
    match &document.sort {
        None => format!("document {:?}", document.id),
        Some(sort) => format!("item {:?}/{sort:?}", document.id),
    }
}

/// A document may have been written with line ends between its tokens (inside strings they are always
/// escaped); a blank there means the same and keeps it on one line.
pub fn one_line(document: &str) -> Cow<'_, str> {
    if document.contains(['\n', '\r']) { document.replace(['\n', '\r'], " ").into() } else { document.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, sort: Option<&str>, document: &str) -> Keyed<Json> {
        let document = serde_json::value::RawValue::from_string(document.to_owned()).unwrap();
        Keyed { id: id.to_owned(), sort: sort.map(str::to_owned), document }
    }

    fn lines(documents: &[Keyed<Json>]) -> Result<Vec<String>> {
        let fields = Fields::find(documents)?;
        documents.iter().map(|document| Ok(fields.line(document)?.into_owned())).collect()
    }

    #[test]
    fn an_exported_document_is_one_line_with_the_same_meaning() {
        assert_eq!(one_line("{\"a\":\"x\\ny\"}"), "{\"a\":\"x\\ny\"}");
        assert_eq!(one_line("{\r\n  \"a\": 1.0\n}"), "{    \"a\": 1.0 }");
    }

    #[test]
    fn documents_have_their_key_and_are_otherwise_as_they_were_sent() {
        let documents =
            [item("a\"b", None, "{}"), item("2", None, r#"{ "n" : 1.0}"#), item("3", None, r#"{"id":3 }"#)];
        let expected = [r#"{"id":"a\"b"}"#, r#"{"id":"2", "n" : 1.0}"#, r#"{"id":3 }"#];
        assert_eq!(lines(&documents).unwrap(), expected);
    }

    #[test]
    fn items_that_were_imported_by_other_fields_are_as_they_were() {
        let sent = [r#"{"userId":1,"id":1,"title":"x"}"#, r#"{"userId":7,"id":61,"title":"y"}"#];
        let documents = [item("1", Some("1"), sent[0]), item("7", Some("61"), sent[1])];
        assert_eq!(lines(&documents).unwrap(), sent);
        let fields = Fields::find(&documents).unwrap();
        assert_eq!(
            (fields.id.as_str(), fields.sort.as_deref(), fields.usual()),
            ("userId", Some("id"), false)
        );
        // One that lacks them gets its key where the others have theirs.
        let other = item("7", Some("2026"), r#"{"title":"z"}"#);
        assert_eq!(fields.line(&other).unwrap(), r#"{"userId":"7","id":"2026","title":"z"}"#);
    }

    #[test]
    fn items_without_keys_get_them_and_foreign_values_are_told() {
        let documents = [item("7", Some("a"), r#"{"title":"x"}"#), item("7", Some("b"), r#"{"sort":"b"}"#)];
        let expected = [r#"{"id":"7","sort":"a","title":"x"}"#, r#"{"id":"7","sort":"b"}"#];
        assert_eq!(lines(&documents).unwrap(), expected);
        let foreign = [item("7", Some("a"), r#"{"id":8}"#)];
        let error = lines(&foreign).unwrap_err().to_string();
        assert!(error.contains("item \"7\"/\"a\" holds another value in `id`"), "{error}");
        let given = Fields { id: "user".to_owned(), sort: Some("at".to_owned()) };
        assert_eq!(given.line(&foreign[0]).unwrap(), r#"{"user":"7","at":"a","id":8}"#);
    }
}
