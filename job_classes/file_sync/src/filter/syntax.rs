//! Regular expressions of Go, said in the syntax of the crate `regex`.
//!
//! The two mean the same by nearly everything. They differ within classes, where ours knows sets of sets, in `\d`, `\w`, `\s` and `\b`, which are ASCII in Go, in braces
//! that are no repetition, and in what they refuse. Characters that need care are written as `\x{…}`.

use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::Chars;

/// Largest count of a repetition; Go's.
const REPEAT_MAX: u32 = 1000;

type Result<T> = std::result::Result<T, &'static str>;

/// Translates one expression.
pub(super) fn from_go(expression: &str) -> Result<String> {
    Translation { rest: expression.chars().peekable(), out: String::with_capacity(expression.len() + 16) }.all()
}

struct Translation<'a> {
    rest: Peekable<Chars<'a>>,
    out: String,
}

/// One piece of a class: a character or an escape that stands for several.
enum Piece {
    Char(char),
    Set(String),
}

impl Translation<'_> {
    fn all(mut self) -> Result<String> {
        let mut after_repetition = false;
        while let Some(c) = self.rest.next() {
            let was_repetition = std::mem::take(&mut after_repetition);
            match c {
                '\\' => self.escape()?,
                '[' => self.class()?,
                '*' | '+' | '?' => {
                    self.out.push(c);
                    after_repetition = true;
                }
                '{' => match self.repetition()? {
                    true => after_repetition = true,
                    false => self.literal('{'),
                },
                '}' => self.literal('}'),
                '(' => self.group()?,
                _ => self.out.push(c),
            }
            if after_repetition {
                if was_repetition {
                    return Err("invalid nested repetition operator");
                }
                if self.rest.next_if_eq(&'?').is_some() {
                    self.out.push('?');
                }
            }
        }
        Ok(self.out)
    }

    fn literal(&mut self, c: char) {
        let _ = write!(self.out, "\\x{{{:X}}}", u32::from(c));
    }

    /// What follows an opening parenthesis, up to which groups of both are alike.
    fn group(&mut self) -> Result<()> {
        self.out.push('(');
        if self.rest.next_if_eq(&'?').is_none() {
            return Ok(());
        }
        self.out.push('?');
        while let Some(flag) = self.rest.next_if(|c| c.is_ascii_alphabetic() || *c == '-') {
            if flag == 'P' && self.rest.peek() == Some(&'<') {
                break;
            }
            if !"imsU-".contains(flag) {
                return Err("invalid or unsupported Perl syntax");
            }
            self.out.push(flag);
        }
        Ok(())
    }

    /// Tries to read `n}`, `n,}` or `n,m}`; whether it was one. Otherwise nothing is taken, and the brace is a character like any other.
    fn repetition(&mut self) -> Result<bool> {
        let mut ahead = self.rest.clone();
        let Some(least) = digits(&mut ahead) else { return Ok(false) };
        let mut most = Some(least);
        let has_comma = ahead.next_if_eq(&',').is_some();
        if has_comma {
            most = digits(&mut ahead);
        }
        if ahead.next() != Some('}') {
            return Ok(false);
        }
        if least > REPEAT_MAX || most.is_some_and(|most| most > REPEAT_MAX || most < least) {
            return Err("invalid repeat count");
        }
        self.rest = ahead;
        let most = most.map(|most| most.to_string()).unwrap_or_default();
        let _ = if has_comma { write!(self.out, "{{{least},{most}}}") } else { write!(self.out, "{{{least}}}") };
        Ok(true)
    }

    /// An escape outside of classes; the backslash is taken.
    fn escape(&mut self) -> Result<()> {
        match self.rest.peek() {
            Some('A' | 'z' | 'B') => self.out.extend(['\\', self.rest.next().unwrap_or('A')]),
            Some('b') => {
                self.rest.next();
                self.out.push_str(r"(?-u:\b)");
            }
            Some('Q') => {
                self.rest.next();
                self.quoted();
            }
            _ => match self.escaped()? {
                Piece::Char(c) => self.literal(c),
                Piece::Set(set) => self.out.push_str(&set),
            },
        }
        Ok(())
    }

    /// `\Q…\E`, of which `\Q` is taken.
    fn quoted(&mut self) {
        while let Some(c) = self.rest.next() {
            if c == '\\' && self.rest.next_if_eq(&'E').is_some() {
                return;
            }
            self.literal(c);
        }
    }

    /// An escape that stands for characters; the backslash is taken.
    fn escaped(&mut self) -> Result<Piece> {
        let c = self.rest.next().ok_or("trailing backslash at end of expression")?;
        let set = |text: &str| Ok(Piece::Set(text.to_owned()));
        Ok(Piece::Char(match c {
            'd' => return set("[0-9]"),
            'D' => return set("[^0-9]"),
            'w' => return set("[0-9A-Za-z_]"),
            'W' => return set("[^0-9A-Za-z_]"),
            's' => return set(r"[\t\n\x0C\r ]"),
            'S' => return set(r"[^\t\n\x0C\r ]"),
            'p' | 'P' => return self.property(c),
            'a' => '\x07',
            'f' => '\x0C',
            't' => '\t',
            'n' => '\n',
            'r' => '\r',
            'v' => '\x0B',
            'x' => self.hexadecimal()?,
            '0' => self.octal(0),
            '1'..='7' if matches!(self.rest.peek(), Some('0'..='7')) => self.octal(u32::from(c) - u32::from('0')),
            _ if c.is_ascii() && !c.is_ascii_alphanumeric() => c,
            _ => return Err("invalid escape sequence"),
        }))
    }

    fn property(&mut self, letter: char) -> Result<Piece> {
        let mut text = String::from_iter(['\\', letter]);
        let first = self.rest.next().ok_or("invalid character class range")?;
        text.push(first);
        while first == '{' && !text.ends_with('}') {
            text.push(self.rest.next().ok_or("invalid character class range")?);
        }
        Ok(Piece::Set(text))
    }

    fn hexadecimal(&mut self) -> Result<char> {
        let mut number = 0u32;
        let mut count = 0;
        let in_braces = self.rest.next_if_eq(&'{').is_some();
        while in_braces || count < 2 {
            let c = self.rest.next().ok_or("invalid escape sequence")?;
            if in_braces && c == '}' {
                break;
            }
            number = number * 16 + c.to_digit(16).ok_or("invalid escape sequence")?;
            count += 1;
            if count > 8 || number > u32::from(char::MAX) {
                return Err("invalid escape sequence");
            }
        }
        char::from_u32(number).filter(|_| count > 0).ok_or("invalid escape sequence")
    }

    fn octal(&mut self, first: u32) -> char {
        let mut number = first;
        for _ in 0..2 {
            let Some(digit) = self.rest.next_if(|c| ('0'..='7').contains(c)) else { break };
            number = number * 8 + u32::from(digit) - u32::from('0');
        }
        char::from_u32(number).unwrap_or('\0')
    }

    /// A class, of which `[` is taken.
    fn class(&mut self) -> Result<()> {
        self.out.push('[');
        if self.rest.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        let mut is_first = true;
        loop {
            let c = *self.rest.peek().ok_or("missing closing ]")?;
            if c == ']' && !is_first {
                self.rest.next();
                self.out.push(']');
                return Ok(());
            }
            is_first = false;
            if c == '[' && self.named_class()? {
                continue;
            }
            let low = match self.class_piece()? {
                Piece::Set(set) => {
                    self.out.push_str(&set);
                    continue;
                }
                Piece::Char(low) => low,
            };
            self.literal(low);
            let mut ahead = self.rest.clone();
            if ahead.next() == Some('-') && ahead.peek().is_some_and(|next| *next != ']') {
                self.rest = ahead;
                match self.class_piece()? {
                    Piece::Char(high) if high >= low => {
                        self.out.push('-');
                        self.literal(high);
                    }
                    _ => return Err("invalid character class range"),
                }
            }
        }
    }

    fn class_piece(&mut self) -> Result<Piece> {
        match self.rest.next().ok_or("missing closing ]")? {
            '\\' => self.escaped(),
            c => Ok(Piece::Char(c)),
        }
    }

    /// `[:alpha:]` within a class; whether it was one.
    fn named_class(&mut self) -> Result<bool> {
        let mut ahead = self.rest.clone();
        ahead.next();
        if ahead.next() != Some(':') {
            return Ok(false);
        }
        let text: String = ahead.collect();
        let Some((name, _)) = text.split_once(":]") else { return Ok(false) };
        const NAMES: [&str; 14] =
            ["alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word", "xdigit"];
        if !NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
            return Err("invalid character class range");
        }
        let _ = write!(self.out, "[:{name}:]");
        for _ in 0..name.len() + 4 {
            self.rest.next();
        }
        Ok(true)
    }
}

/// A number without a leading zero of a longer one, as Go reads counts.
fn digits(ahead: &mut Peekable<Chars<'_>>) -> Option<u32> {
    let mut text = String::new();
    while let Some(digit) = ahead.next_if(char::is_ascii_digit) {
        text.push(digit);
    }
    match text.as_bytes() {
        [] | [b'0', _, ..] => None,
        // Too large for any count, and refused as one.
        _ => Some(text.parse().unwrap_or(u32::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    fn matches(expression: &str, text: &str) -> bool {
        let ours = from_go(expression).unwrap_or_else(|why| panic!("{expression}: {why}"));
        Regex::new(&format!("^(?:{ours})$")).unwrap_or_else(|why| panic!("{expression}: {why}")).is_match(text)
    }

    #[test]
    fn what_go_means_is_what_matches() {
        let cases = [
            (r"\d+", "12", "١٢"),
            (r"\w", "a", "ä"),
            (r"[\w-]+", "a-b", "ä"),
            (r"[\D]", "x", "1"),
            (r"[a&&b]+", "&a", "c"),
            (r"[[a]", "[", "]"),
            (r"[]a]+", "]a", "b"),
            (r"[^]a]", "b", "]"),
            (r"[a-c~]+", "b~", "d"),
            (r"[a-]+", "a-", "b"),
            (r"x{", "x{", "x"),
            (r"x{,2}", "x{,2}", "xx"),
            (r"x{2}", "xx", "x"),
            (r"x{1,}", "xxx", ""),
            (r"x{01}", "x{01}", "x"),
            (r"\Qa.b\E+", "a.b", "axb"),
            (r"\x41\x{42}\103", "ABC", "abc"),
            (r"\.\_\-", "._-", "x_-"),
            (r"(?i:AB)", "ab", "ac"),
            (r"(?P<n>a)|b", "b", "c"),
            (r"a*?b", "aab", "a"),
            (r"[[:alpha:]]", "q", "ü"),
            (r"\pL", "ü", "1"),
            (r"\bfoo\b", "foo", "fooo"),
        ];
        for (expression, yes, no) in cases {
            assert!(matches(expression, yes), "{expression} on {yes}");
            assert!(!matches(expression, no), "{expression} on {no}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for expression in
            [r"a**", "a*{2}", "a+*", r"\q", r"\8", r"[a--b]", "[z-a]", "[a", "x{1001}", "x{3,2}", "(?x)a", r"a\", r"[[:foo:]]", r"\ü"]
        {
            let is_fine = from_go(expression).is_ok_and(|ours| Regex::new(&ours).is_ok());
            assert!(!is_fine, "{expression}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in any::<String>(), symbols in r"[\[\](){}\\*+?|^$.,:dwQEx0-9a-c-]{0,30}") {
            let _ = (from_go(&text), from_go(&symbols));
        }
    }
}
