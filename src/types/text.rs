//! Reading values that travel as text, and the quoting which all our small grammars share.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::Deserializer;
use serde::de::{self, Visitor};

use crate::error::Error;

/// Deserializes a string and parses it, without copying it first.
pub(super) fn parse<'de, T, D>(deserializer: D, expected: &'static str) -> Result<T, D::Error>
where
    T: FromStr<Err = Error>,
    D: Deserializer<'de>,
{
    struct Text<T>(&'static str, PhantomData<T>);

    impl<T: FromStr<Err = Error>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Text(expected, PhantomData))
}

/// At most `max` bytes of a text from outside, for messages that repeat it.
pub(super) fn excerpt(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// Writes `text` as it is if every character may stand bare, else in double quotes with `\` before `"` and `\`.
pub(super) fn write_word(f: &mut fmt::Formatter<'_>, text: &str, bare: impl Fn(char) -> bool) -> fmt::Result {
    use fmt::Write;
    if !text.is_empty() && text.chars().all(bare) {
        return f.write_str(text);
    }
    f.write_char('"')?;
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            f.write_char('\\')?;
        }
        f.write_char(c)?;
    }
    f.write_char('"')
}

/// Why a word could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WordError {
    /// A quote was opened and never closed.
    OpenQuote,
    /// There is a control character.
    Control,
}

impl fmt::Display for WordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WordError::OpenQuote => "a quote that is not closed",
            WordError::Control => "a control character",
        })
    }
}

/// A position in a text.
#[derive(Clone, Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// What is not read yet.
    pub(super) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn skip_spaces(&mut self) {
        self.take_while(char::is_whitespace);
    }

    /// Reads `token` if it comes next.
    pub(super) fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    pub(super) fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// Reads a bare word or a quoted one; `None` if neither comes next.
    pub(super) fn word(&mut self, bare: impl Fn(char) -> bool) -> Result<Option<String>, WordError> {
        if !self.eat("\"") {
            let word = self.take_while(bare);
            return Ok((!word.is_empty()).then(|| word.to_owned()));
        }
        let mut word = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(Some(word));
                }
                '\\' => match chars.next() {
                    Some((_, escaped)) if !escaped.is_control() => word.push(escaped),
                    Some(_) => return Err(WordError::Control),
                    None => return Err(WordError::OpenQuote),
                },
                c if c.is_control() => return Err(WordError::Control),
                c => word.push(c),
            }
        }
        Err(WordError::OpenQuote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Quoted<'a>(&'a str);

    impl fmt::Display for Quoted<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_word(f, self.0, char::is_alphanumeric)
        }
    }

    #[test]
    fn word_stands_in_quotes_only_where_it_must() {
        let shown = ["a1", "", "a b", "a\"b\\"].map(|word| Quoted(word).to_string());
        assert_eq!(shown, ["a1", "\"\"", "\"a b\"", "\"a\\\"b\\\\\""]);
    }

    #[test]
    fn word_is_read_up_to_its_end() {
        let mut scanner = Scanner::new("\"a \\\" b\"c;");
        assert_eq!(scanner.word(char::is_alphanumeric), Ok(Some("a \" b".to_owned())));
        assert_eq!(scanner.word(char::is_alphanumeric), Ok(Some("c".to_owned())));
        assert_eq!(scanner.word(char::is_alphanumeric), Ok(None));
        assert_eq!(scanner.rest(), ";");
    }

    #[test]
    fn broken_quotes_are_told() {
        let read = |text| Scanner::new(text).word(char::is_alphanumeric);
        assert_eq!(read("\"a"), Err(WordError::OpenQuote));
        assert_eq!(read("\"a\\"), Err(WordError::OpenQuote));
        assert_eq!(read("\"a\n\""), Err(WordError::Control));
        assert_eq!(read("\"a\\\n\""), Err(WordError::Control));
    }
}
