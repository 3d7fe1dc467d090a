//! The shape of the configuration file: which tables and keys there are, and of which type.
//!
//! Every value keeps its place, so that `validate` can name the line of whatever is wrong. `cli`
//! fills in the same shape from arguments. What values mean is not decided here.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::de::{Deserializer, Visitor};
use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::Spanned;

use super::error::{ConfigError, Origin, Site};

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it was written.
    pub site: Site,
}

impl<T> At<T> {
    /// A value that came from a flag.
    pub fn flag(flag: &'static str, value: T) -> Self {
        At {
            value,
            site: Site::Flag(flag),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        let site = Site::Span(spanned.span());
        Ok(At {
            value: spanned.into_inner(),
            site,
        })
    }
}

/// A value that may be written as a number or as text: `443` or `"8000-8100"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(i64),
    /// Text.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => write!(f, "{number}"),
            Value::Text(text) => write!(f, "{text}"),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a string")
            }
            fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
                Ok(Value::Number(number))
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Value, E> {
                let number = i64::try_from(number).map_err(|_| E::custom("number too large"))?;
                Ok(Value::Number(number))
            }
            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(NumberOrText)
    }
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// `[[source]]`.
    #[serde(default)]
    pub source: Vec<At<SourceTable>>,
    /// `[[rule]]`.
    #[serde(default)]
    pub rule: Vec<At<RuleTable>>,
    /// `[[target]]`.
    #[serde(default)]
    pub target: Vec<At<TargetTable>>,
    /// `[breaker]`.
    pub breaker: Option<At<BreakerTable>>,
    /// `[control]`.
    pub control: Option<At<ControlTable>>,
    /// What happens to packets that no rule takes.
    pub default_action: Option<At<String>>,
}

/// `[[source]]`; see [`super::settings::Source`] for the meaning of the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The keys are the documentation of settings::Source, in the same order.
pub struct SourceTable {
    pub kind: Option<At<String>>,
    pub interface: Option<At<String>>,
    pub namespace: Option<At<String>>,
    pub cpus: Option<At<Vec<At<i64>>>>,
    pub workers: Option<At<i64>>,
    pub attach: Option<At<String>>,
    pub ring_size: Option<At<Value>>,
    pub mode: Option<At<String>>,
    pub zero_copy: Option<At<String>>,
    pub busy_poll: Option<At<bool>>,
    pub frames: Option<At<i64>>,
    pub allow_link_reset: Option<At<bool>>,
    pub allow_credential_endpoints: Option<At<bool>>,
}

/// `[[rule]]`; see [`crate::mirror::rules::Rule`] for the meaning of the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // As above.
pub struct RuleTable {
    pub action: Option<At<String>>,
    pub direction: Option<At<String>>,
    pub protocol: Option<At<Value>>,
    pub ports: Option<At<Vec<At<Value>>>>,
    pub source_ports: Option<At<Vec<At<Value>>>>,
    pub destination_ports: Option<At<Vec<At<Value>>>>,
    pub networks: Option<At<Vec<At<String>>>>,
    pub source: Option<At<Vec<At<String>>>>,
    pub destination: Option<At<Vec<At<String>>>>,
    pub mark: Option<At<Value>>,
    pub snaplen: Option<At<Value>>,
    pub sample: Option<At<String>>,
    pub cutoff: Option<At<Value>>,
}

/// `[[target]]`; see [`super::settings::Target`] for the meaning of the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // As above.
pub struct TargetTable {
    pub url: Option<At<String>>,
    pub transmit: Option<At<String>>,
    pub gso: Option<At<String>>,
    pub source: Option<At<String>>,
    pub dev: Option<At<String>>,
    pub ports: Option<At<Value>>,
    pub distribution: Option<At<String>>,
    pub oversize: Option<At<String>>,
    pub mtu: Option<At<Value>>,
    pub limit: Option<At<Value>>,
    pub limit_packets: Option<At<Value>>,
    pub dscp: Option<At<Value>>,
    pub priority: Option<At<Value>>,
    pub ttl: Option<At<Value>>,
    pub health: Option<At<String>>,
}

/// `[breaker]`; see [`super::settings::Breaker`] for the meaning of the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // As above.
pub struct BreakerTable {
    pub budget: Option<At<Value>>,
    pub budget_packets: Option<At<Value>>,
    pub load: Option<At<Value>>,
    pub allowances: Option<At<bool>>,
}

/// `[control]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlTable {
    /// Path of the socket that `xtee status` asks.
    pub socket: Option<At<String>>,
}

/// Keys of the design that this version does not have: (table, key). The table is empty for the
/// top level.
const NOT_BUILT: [(&str, &str); 1] = [("", "metrics")];

/// Parses the text of a file; `path` only names it in errors.
///
/// # Errors
/// Not TOML, an unknown key, a key that is not built yet, a value of the wrong type.
pub fn parse(path: &Path, text: &str) -> Result<Document, ConfigError> {
    let origin = Origin::File { path, text };
    let tree = DeTable::parse(text).map_err(|error| describe(origin, None, &error))?;
    refuse_not_built(origin, tree.get_ref())?;
    toml::from_str(text).map_err(|error| describe(origin, Some(tree.get_ref()), &error))
}

fn refuse_not_built(origin: Origin<'_>, tree: &DeTable<'_>) -> Result<(), ConfigError> {
    for (table, key) in NOT_BUILT {
        let found = match tree.get(table).map(Spanned::get_ref) {
            _ if table.is_empty() => key_span(tree, key),
            Some(DeValue::Table(inner)) => key_span(inner, key),
            Some(DeValue::Array(list)) => list.iter().find_map(|entry| match entry.get_ref() {
                DeValue::Table(inner) => key_span(inner, key),
                _ => None,
            }),
            _ => None,
        };
        if let Some(span) = found {
            let (path, name) = if table.is_empty() {
                (key.to_owned(), format!("`[{key}]`"))
            } else {
                (format!("{table}.{key}"), format!("`{key}`"))
            };
            let wrong = format!("{name} is not built yet in this version");
            return Err(origin.error(&Site::Span(span), &path, wrong, ""));
        }
    }
    Ok(())
}

fn key_span(table: &DeTable<'_>, wanted: &str) -> Option<Range<usize>> {
    let (key, _) = table.get_key_value(wanted)?;
    Some(key.span())
}

/// Turns an error of the TOML parser into ours. It says "…, expected …", and that is what is allowed.
fn describe(
    origin: Origin<'_>,
    tree: Option<&DeTable<'_>>,
    error: &toml::de::Error,
) -> ConfigError {
    let span = error.span().unwrap_or(0..0);
    let key = tree.and_then(|tree| key_at(tree, span.start));
    let message = error.message().trim();
    let (wrong, allowed) = message.split_once(", expected ").unwrap_or((message, ""));
    let wrong = match wrong.strip_prefix("unknown field") {
        Some(field) => format!("unknown key{field}"),
        None => wrong.replace('\n', " "),
    };
    let allowed = allowed.strip_prefix("one of ").unwrap_or(allowed);
    origin.error(
        &Site::Span(span),
        key.as_deref().unwrap_or_default(),
        wrong,
        allowed.replace('\n', " "),
    )
}

/// The path of the key (`rule.ports`) that stands at a byte of the file, or whose value does.
fn key_at(table: &DeTable<'_>, offset: usize) -> Option<String> {
    let hit = |span: Range<usize>| span.contains(&offset);
    for (key, value) in table {
        let deeper = match value.get_ref() {
            DeValue::Table(inner) => key_at(inner, offset),
            DeValue::Array(list) => list.iter().find_map(|entry| match entry.get_ref() {
                DeValue::Table(inner) => key_at(inner, offset),
                _ => None,
            }),
            _ => None,
        };
        if let Some(deeper) = deeper {
            return Some(format!("{}.{deeper}", key.get_ref()));
        }
        if hit(key.span()) || hit(value.span()) {
            return Some(key.get_ref().to_string());
        }
    }
    None
}
