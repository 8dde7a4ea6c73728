//! Labels of a node.
//!
//! A label is a name with values, a value is `key=value` or a flag `key`. As text: `core;group=group1;master, meta2;labelA=1;labelB=2` (checklist N8.4). Words that hold a
//! separator, a quote or a space stand in double quotes, with `\` before `"` and `\`. As JSON: an array of `{"name": …, "values": {key: value or null}}`. Labels and values keep their
//! order, and names and keys are unique.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text::{self, Scanner};
use crate::error::{Error, ErrorCode, Result};

/// The labels of a node, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Meta {
    labels: Vec<Label>,
}

/// One label with its values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    name: String,
    values: Vec<(String, Option<String>)>,
}

impl Meta {
    /// Most labels of a node, and most values of a label.
    pub const ENTRIES_MAX: usize = 64;

    /// Longest name, key or value, in bytes.
    pub const WORD_BYTES_MAX: usize = 256;

    /// Most bytes of all names, keys and values together, so that the description of a node fits into a frame.
    pub const BYTES_MAX: usize = 16 * 1024;

    /// The labels, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Label> {
        self.labels.iter()
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// `true` without labels.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The label of this name.
    pub fn find(&self, name: &str) -> Option<&Label> {
        self.labels.iter().find(|label| label.name == name)
    }

    /// Replaces the labels of the same names in their place, with all their values, and appends the others.
    ///
    /// `invalid_tokens` if there were too many then; the labels stay as they were.
    pub fn update(&mut self, changes: &Meta) -> Result<()> {
        let mut labels = self.labels.clone();
        for change in &changes.labels {
            match labels.iter_mut().find(|label| label.name == change.name) {
                Some(label) => *label = change.clone(),
                None => labels.push(change.clone()),
            }
        }
        *self = Self::new(labels)?;
        Ok(())
    }

    /// Removes the labels of these names; a name that no label has is no error.
    pub fn remove(&mut self, names: &[&str]) {
        self.labels.retain(|label| !names.contains(&label.name.as_str()));
    }

    fn new(labels: Vec<Label>) -> Result<Self> {
        let mut meta = Self::default();
        let mut bytes = 0;
        let mut names = HashSet::new();
        for label in &labels {
            if !names.insert(label.name.as_str()) {
                return Err(invalid(format_args!("label {:?} twice", label.name)));
            }
            check_label(label)?;
            bytes += label.bytes();
        }
        if labels.len() > Self::ENTRIES_MAX {
            let max = Self::ENTRIES_MAX;
            return Err(invalid(format_args!("more than {max} labels")));
        }
        if bytes > Self::BYTES_MAX {
            let max = Self::BYTES_MAX;
            return Err(invalid(format_args!("{bytes} bytes, allowed are {max}")));
        }
        drop(names);
        meta.labels = labels;
        Ok(meta)
    }
}

impl Label {
    /// Name of the label.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Keys with their values, in order; a flag has none.
    pub fn values(&self) -> impl ExactSizeIterator<Item = (&str, Option<&str>)> {
        self.values.iter().map(|(k, v)| (k.as_str(), v.as_deref()))
    }

    /// The value of a key; `Some(None)` for a flag.
    pub fn value(&self, key: &str) -> Option<Option<&str>> {
        self.values().find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    fn bytes(&self) -> usize {
        let value_bytes = |(k, v): (&str, Option<&str>)| k.len() + v.map_or(0, str::len);
        self.name.len() + self.values().map(value_bytes).sum::<usize>()
    }
}

fn check_label(label: &Label) -> Result<()> {
    let max = Meta::ENTRIES_MAX;
    if label.values.len() > max {
        let name = &label.name;
        return Err(invalid(format_args!("label {name:?} has more than {max} values")));
    }
    check_word("name", &label.name)?;
    let mut keys = HashSet::new();
    for (key, value) in label.values() {
        check_word("key", key)?;
        check_word_text(value.unwrap_or_default())?;
        if !keys.insert(key) {
            let name = &label.name;
            return Err(invalid(format_args!("label {name:?} has key {key:?} twice")));
        }
    }
    Ok(())
}

fn check_word(what: &str, word: &str) -> Result<()> {
    if word.is_empty() {
        return Err(invalid(format_args!("an empty {what}")));
    }
    check_word_text(word)
}

fn check_word_text(word: &str) -> Result<()> {
    let max = Meta::WORD_BYTES_MAX;
    if word.len() > max {
        let word = text::excerpt(word, 32);
        return Err(invalid(format_args!("{word:?}… has more than {max} bytes")));
    }
    if word.chars().any(char::is_control) {
        return Err(invalid(format_args!("{word:?} has a control character")));
    }
    Ok(())
}

fn invalid(reason: impl fmt::Display) -> Error {
    Error::new(ErrorCode::InvalidTokens, format!("labels cannot be read: {reason}"))
}

fn is_bare(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !matches!(c, ',' | ';' | '=' | '"')
}

impl FromStr for Meta {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut scanner = Scanner::new(text);
        let mut labels = Vec::new();
        scanner.skip_spaces();
        if scanner.is_at_end() {
            return Ok(Self::default());
        }
        loop {
            let name = read_word(&mut scanner, "a label")?;
            let mut values = Vec::new();
            while scanner.eat(";") {
                let key = read_word(&mut scanner, "a key")?;
                let value = match scanner.eat("=") {
                    true => Some(read_word(&mut scanner, "a value")?),
                    false => None,
                };
                values.push((key, value));
            }
            labels.push(Label { name, values });
            if scanner.is_at_end() {
                return Self::new(labels);
            }
            if !scanner.eat(",") {
                return Err(expected(&scanner, "`,` or `;`"));
            }
        }
    }
}

/// Reads a word and the spaces around it.
fn read_word(scanner: &mut Scanner<'_>, what: &str) -> Result<String> {
    scanner.skip_spaces();
    let word = scanner.word(is_bare).map_err(invalid)?;
    let word = word.ok_or_else(|| expected(scanner, what))?;
    scanner.skip_spaces();
    Ok(word)
}

fn expected(scanner: &Scanner<'_>, what: &str) -> Error {
    let (at, rest) = (scanner.position(), text::excerpt(scanner.rest(), 32));
    match rest.is_empty() {
        true => invalid(format_args!("{what} expected at the end")),
        false => invalid(format_args!("{what} expected at byte {at}, found {rest:?}")),
    }
}

impl fmt::Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, label) in self.labels.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{label}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        text::write_word(f, &self.name, is_bare)?;
        for (key, value) in self.values() {
            f.write_str(";")?;
            text::write_word(f, key, is_bare)?;
            if let Some(value) = value {
                f.write_str("=")?;
                text::write_word(f, value, is_bare)?;
            }
        }
        Ok(())
    }
}

impl<'a> IntoIterator for &'a Meta {
    type Item = &'a Label;
    type IntoIter = std::slice::Iter<'a, Label>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Serialize for Meta {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut array = serializer.serialize_seq(Some(self.labels.len()))?;
        for Label { name, values } in &self.labels {
            array.serialize_element(&Entry { name: name.clone(), values: Values(values.clone()) })?;
        }
        array.end()
    }
}

impl<'de> Deserialize<'de> for Meta {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Labels;

        impl<'de> Visitor<'de> for Labels {
            type Value = Meta;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of labels")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Meta, A::Error> {
                let mut labels = Vec::new();
                while let Some(Entry { name, values }) = entries.next_element()? {
                    if labels.len() == Meta::ENTRIES_MAX {
                        return Err(de::Error::custom("too many labels"));
                    }
                    labels.push(Label { name, values: values.0 });
                }
                Meta::new(labels).map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_seq(Labels)
    }
}

/// A label as it travels.
#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    #[serde(default)]
    values: Values,
}

#[derive(Default)]
struct Values(Vec<(String, Option<String>)>);

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Values;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Values, A::Error> {
                let mut values = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    if values.len() == Meta::ENTRIES_MAX {
                        return Err(de::Error::custom("too many values"));
                    }
                    values.push(pair);
                }
                Ok(Values(values))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests;
