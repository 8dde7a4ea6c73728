//! Values as the sources say them: typed in TOML, text in flags and variables. Each reader takes both.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::Value;

use super::error::Problem;
use super::values::ClassList;
use crate::types::{NodeUri, Secret};

/// A value before its key has read it.
#[derive(Clone)]
pub(super) enum Raw {
    Toml(Value),
    Text(String),
}

pub(super) type Read<T> = Result<T, Problem>;

impl Raw {
    /// Longest text, in bytes; lists of URLs have their own limit.
    const TEXT_BYTES_MAX: usize = 4096;

    /// `true` for a text without characters, by which an optional key says nothing.
    pub(super) fn is_empty_text(&self) -> bool {
        self.as_str().is_some_and(str::is_empty)
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Raw::Toml(Value::String(text)) | Raw::Text(text) => Some(text),
            Raw::Toml(_) => None,
        }
    }

    pub(super) fn text(&self) -> Read<&str> {
        let text = self.as_str().ok_or_else(|| Problem::new("expected a text"))?;
        if text.is_empty() {
            return Err(Problem::new("it must not be empty"));
        }
        if text.len() > Self::TEXT_BYTES_MAX || text.chars().any(char::is_control) {
            let max = Self::TEXT_BYTES_MAX;
            return Err(Problem::new(format!("expected one line of at most {max} bytes")));
        }
        Ok(text)
    }

    /// A text that has its own syntax, with the errors of that syntax.
    pub(super) fn parsed<T: FromStr<Err = crate::error::Error>>(&self) -> Read<T> {
        let text = self.as_str().ok_or_else(|| Problem::new("expected a text"))?;
        Ok(text.parse()?)
    }

    /// A text that stands for a value of the standard library.
    pub(super) fn standard<T: FromStr>(&self, expected: &str) -> Read<T> {
        let parsed = self.text()?.parse();
        parsed.map_err(|_| Problem::new(format!("expected {expected}")))
    }

    pub(super) fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Read<T> {
        let found = self.as_str().and_then(|text| choices.iter().find(|(name, _)| *name == text));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
            Problem::new(format!("expected {}", names.join(" or ")))
        })
    }

    pub(super) fn flag(&self) -> Read<bool> {
        match (self, self.as_str()) {
            (Raw::Toml(Value::Boolean(flag)), _) => Ok(*flag),
            (_, Some("true")) => Ok(true),
            (_, Some("false")) => Ok(false),
            _ => Err(Problem::new("expected `true` or `false`")),
        }
    }

    pub(super) fn number<T>(&self, min: T, max: T) -> Read<T>
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display,
    {
        let number = match self {
            Raw::Toml(Value::Integer(number)) => Some(*number),
            Raw::Text(text) => text.parse::<i64>().ok(),
            Raw::Toml(_) => None,
        };
        match number.and_then(|number| T::try_from(number).ok()) {
            Some(number) if number >= min && number <= max => Ok(number),
            _ => Err(Problem::new(format!("expected a number from {min} to {max}"))),
        }
    }

    pub(super) fn millis(&self, min: u64, max: u64) -> Read<Duration> {
        let time = self.number(min, max).map(Duration::from_millis);
        time.map_err(|problem| Problem::new(format!("{} (milliseconds)", problem.message)))
    }

    pub(super) fn secret(&self) -> Read<Secret> {
        self.text().map(Secret::from)
    }

    pub(super) fn path(&self) -> Read<PathBuf> {
        self.text().map(PathBuf::from)
    }

    pub(super) fn uris(&self) -> Read<Vec<NodeUri>> {
        let Raw::Toml(Value::Array(_)) = self else {
            let text = self.as_str().ok_or_else(|| Problem::new("expected URLs"))?;
            return Ok(NodeUri::parse_list(text)?);
        };
        let uris = self.words()?.into_iter().map(|uri| uri.parse().map_err(Problem::from));
        uris.collect()
    }

    pub(super) fn classes(&self) -> Read<ClassList> {
        let words = self.words()?;
        if words == ["*"] {
            return Ok(ClassList::All);
        }
        if words.contains(&"*") {
            return Err(Problem::new("`*` stands alone"));
        }
        let names = words.into_iter().map(|name| name.parse().map_err(Problem::from));
        Ok(ClassList::Only(names.collect::<Read<_>>()?))
    }

    /// A list of texts that have their own syntax.
    pub(super) fn parsed_words<T: FromStr<Err = crate::error::Error>>(&self) -> Read<Vec<T>> {
        let words = self.words()?.into_iter().map(|word| word.parse().map_err(Problem::from));
        words.collect()
    }

    /// An array of texts, or a text with commas.
    pub(super) fn words(&self) -> Read<Vec<&str>> {
        let wrong = || Problem::new("expected a list of texts");
        match self {
            Raw::Toml(Value::Array(items)) => items.iter().map(|item| item.as_str().ok_or_else(wrong)).collect(),
            _ => {
                let words = self.as_str().ok_or_else(wrong)?.split(',').map(str::trim);
                Ok(words.filter(|word| !word.is_empty()).collect())
            }
        }
    }
}

impl fmt::Display for Raw {
    /// As it was said, cut off where it gets long. Not for secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_BYTES: usize = 80;
        let text = match self {
            // JSON writes numbers, texts and lists as TOML does.
            Raw::Toml(value) => serde_json::to_string(value).unwrap_or_default(),
            Raw::Text(text) => format!("{text:?}"),
        };
        let shown = &text[..text.floor_char_boundary(SHOWN_BYTES)];
        f.write_str(shown)?;
        f.write_str(if shown.len() < text.len() { "…" } else { "" })
    }
}
