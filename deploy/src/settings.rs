//! Settings of the services: defaults < TOML file < `BOROUGH_*` environment < flags.
//!
//! Every value is tried alone on top of the defaults, so that one run reports all faults: unknown
//! keys, wrong types, ranges and contradictions, each with its key and where it came from.
//! It knows no field by name; the services' own types decide what is right.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::error::Kind;
use figment::value::{Dict, Tag, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(test)]
mod tests;

/// Prefix of the environment variables that are settings; `__` separates the levels.
const ENV_PREFIX: &str = "BOROUGH_";

/// Variables with the prefix that are no settings of a service but options of the command line.
const ENV_RESERVED: &[&str] =
    &["BOROUGH_ROUTER", "BOROUGH_TOKEN", "BOROUGH_CONFIG", "BOROUGH_LOG", "BOROUGH_LOG_FORMAT"];

/// A service's configuration type.
pub trait Settings: Serialize + DeserializeOwned + Default + garde::Validate<Context = ()> {
    /// The command that takes it, for messages.
    const SERVICE: &'static str;

    /// Faults that concern more than one field, each as `key: what is wrong`.
    fn cross_field_faults(&self) -> Vec<String>;
}

impl Settings for borough_node::Config {
    const SERVICE: &'static str = "node";

    fn cross_field_faults(&self) -> Vec<String> {
        Self::cross_field_faults(self)
    }
}

impl Settings for borough_router::Config {
    const SERVICE: &'static str = "router";

    fn cross_field_faults(&self) -> Vec<String> {
        Self::cross_field_faults(self)
    }
}

/// A value given on the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    /// As it was written, for messages: `--listen`.
    pub name: String,
    /// Dotted, as in the file: `raft.heartbeat`.
    pub key: String,
    pub value: FlagValue,
}

/// What a flag carries.
#[derive(Debug, Clone)]
pub enum FlagValue {
    /// Read like an environment variable.
    Text(String),
    List(Vec<String>),
}

/// Everything that settings come from.
#[derive(Debug, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// Name and value of every variable; those without the prefix are passed over.
    pub environment: Vec<(OsString, OsString)>,
    /// Defaults of the other services: a variable that only they know is no fault here.
    pub others: Vec<Dict>,
    pub flags: Vec<Flag>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Dotted; empty when a source as a whole cannot be read.
    pub key: String,
    pub what: String,
    pub origin: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{} (from {})", self.what, self.origin)
    }
}

/// All that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", list(service, faults))]
pub struct ConfigError {
    pub service: &'static str,
    pub faults: Vec<Fault>,
}

fn list(service: &str, faults: &[Fault]) -> String {
    let mut text = match faults.len() {
        1 => format!("borough {service}: the configuration has a fault:"),
        count => format!("borough {service}: the configuration has {count} faults:"),
    };
    for fault in faults {
        text.push_str("\n  ");
        text.push_str(&fault.to_string());
    }
    text
}

/// A value for one key, from one source.
struct Leaf {
    key: String,
    /// Readings of the same text, the likeliest first.
    readings: Vec<Value>,
    origin: String,
}

/// The defaults of a service as a tree, for [`Sources::others`].
pub fn defaults<T: Settings>() -> Dict {
    Value::serialize(T::default()).ok().and_then(Value::into_dict).unwrap_or_default()
}

/// Reads and checks the settings of one service.
///
/// # Errors
/// [`ConfigError`] with every fault of every source.
pub fn load<T: Settings>(sources: &Sources) -> Result<T, ConfigError> {
    let defaults = defaults::<T>();
    let mut faults = Vec::new();
    let mut leaves = Vec::new();
    if let Some(path) = &sources.file {
        read_file(path, &defaults, &mut leaves, &mut faults);
    }
    read_environment(sources, &defaults, &mut leaves, &mut faults);
    leaves.extend(sources.flags.iter().map(|flag| from_flag(flag, &defaults)));

    let mut tree = defaults.clone();
    let mut origins = BTreeMap::new();
    let mut refused = BTreeSet::new();
    for leaf in leaves {
        match fitting::<T>(&defaults, &leaf) {
            Ok(value) => {
                put(&mut tree, &leaf.key, value);
                origins.insert(leaf.key, leaf.origin);
            }
            Err(what) => {
                refused.insert(leaf.key.clone());
                faults.push(Fault { key: leaf.key, what, origin: leaf.origin });
            }
        }
    }
    let settings: T = match Value::Dict(Tag::Default, tree).deserialize() {
        Ok(settings) => settings,
        Err(error) => {
            faults.push(Fault {
                key: error.path.join("."),
                what: error.kind.to_string(),
                origin: "all sources together".to_owned(),
            });
            return Err(ConfigError { service: T::SERVICE, faults });
        }
    };
    for (key, what) in value_faults(&settings) {
        // What was refused has its default in `settings`: judging that would only confuse.
        if !refused.contains(&key) {
            let origin = origin(&origins, &key);
            faults.push(Fault { key, what, origin });
        }
    }
    if faults.is_empty() { Ok(settings) } else { Err(ConfigError { service: T::SERVICE, faults }) }
}

fn value_faults<T: Settings>(settings: &T) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    if let Err(report) = settings.validate() {
        for (path, error) in report.iter() {
            faults.push((path.to_string().replace('_', "-"), error.to_string()));
        }
    }
    for fault in settings.cross_field_faults() {
        let (key, what) = fault.split_once(": ").unwrap_or(("", &fault));
        faults.push((key.to_owned(), what.to_owned()));
    }
    faults
}

/// Where a key's value came from; elements of a list (`join[0]`) come from where the list came from.
fn origin(origins: &BTreeMap<String, String>, key: &str) -> String {
    let key = key.split_once('[').map_or(key, |(list, _)| list);
    let default = || format!("the default; set it with --set {key}=…, {} or in the file", env_name(key));
    origins.get(key).cloned().unwrap_or_else(default)
}

fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.to_uppercase().replace('-', "_").replace('.', "__"))
}

fn read_file(path: &Path, defaults: &Dict, leaves: &mut Vec<Leaf>, faults: &mut Vec<Fault>) {
    let origin = path.display().to_string();
    let mut refuse = |what: String| faults.push(Fault { key: String::new(), what, origin: origin.clone() });
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return refuse(format!("the file cannot be read: {error}")),
    };
    let table = match text.parse::<toml::Table>() {
        Ok(table) => table,
        Err(error) => return refuse(format!("not TOML: {}", error.to_string().trim_end())),
    };
    match Value::serialize(table).ok().and_then(Value::into_dict) {
        Some(dict) => flatten("", dict, defaults, &origin, leaves),
        None => refuse("not a table".to_owned()),
    }
}

/// One leaf for each value, going down only where the defaults have a table too.
fn flatten(prefix: &str, dict: Dict, defaults: &Dict, origin: &str, leaves: &mut Vec<Leaf>) {
    for (name, value) in dict {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match (value, defaults.get(&name)) {
            (Value::Dict(_, inner), Some(Value::Dict(_, known))) => {
                flatten(&key, inner, known, origin, leaves)
            }
            (value, _) => leaves.push(Leaf { key, readings: vec![value], origin: origin.to_owned() }),
        }
    }
}

fn read_environment(sources: &Sources, defaults: &Dict, leaves: &mut Vec<Leaf>, faults: &mut Vec<Fault>) {
    let mut variables: Vec<_> = sources.environment.iter().collect();
    variables.sort();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| !ENV_RESERVED.contains(name)) else { continue };
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
        let key = rest.to_lowercase().replace("__", ".").replace('_', "-");
        if find(defaults, &key).is_none() && sources.others.iter().any(|other| find(other, &key).is_some()) {
            continue;
        }
        let origin = format!("the environment, {name}");
        match value.to_str() {
            Some(text) => leaves.push(Leaf { readings: readings(text, find(defaults, &key)), key, origin }),
            None => faults.push(Fault { key, what: "not UTF-8".to_owned(), origin }),
        }
    }
}

fn from_flag(flag: &Flag, defaults: &Dict) -> Leaf {
    let readings = match &flag.value {
        FlagValue::Text(text) => readings(text, find(defaults, &flag.key)),
        FlagValue::List(items) => vec![Value::from(items.clone())],
    };
    Leaf { key: flag.key.clone(), readings, origin: format!("the flag {}", flag.name) }
}

/// What a text may mean where the default is `default`.
fn readings(text: &str, default: Option<&Value>) -> Vec<Value> {
    let Ok(parsed) = text.parse::<Value>();
    let plain = Value::from(text);
    match default {
        Some(Value::String(..)) => vec![plain],
        Some(Value::Array(..)) if !text.trim_start().starts_with('[') => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            vec![Value::from(items.map(str::to_owned).collect::<Vec<_>>())]
        }
        _ => vec![parsed, plain],
    }
}

/// The first reading that the type takes, tried alone on the defaults.
fn fitting<T: Settings>(defaults: &Dict, leaf: &Leaf) -> Result<Value, String> {
    let mut fault = None;
    for reading in &leaf.readings {
        let mut tree = defaults.clone();
        put(&mut tree, &leaf.key, reading.clone());
        match Value::Dict(Tag::Default, tree).deserialize::<T>() {
            Ok(_) => return Ok(reading.clone()),
            Err(error) => {
                fault.get_or_insert_with(|| describe(&error.kind));
            }
        }
    }
    Err(fault.unwrap_or_else(|| "no value".to_owned()))
}

fn describe(kind: &Kind) -> String {
    match kind {
        Kind::UnknownField(_, known) => format!("unknown setting; known here: {}", known.join(", ")),
        kind => kind.to_string(),
    }
}

fn find<'a>(dict: &'a Dict, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((head, rest)) => find(dict.get(head)?.as_dict()?, rest),
        None => dict.get(key),
    }
}

fn put(dict: &mut Dict, key: &str, value: Value) {
    let Some((head, rest)) = key.split_once('.') else {
        dict.insert(key.to_owned(), value);
        return;
    };
    let slot = dict.entry(head.to_owned()).or_insert_with(|| Value::Dict(Tag::Default, Dict::new()));
    if !matches!(slot, Value::Dict(..)) {
        *slot = Value::Dict(Tag::Default, Dict::new());
    }
    if let Value::Dict(_, inner) = slot {
        put(inner, rest, value);
    }
}
