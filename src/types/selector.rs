//! A question about a node: `core && group=group1 && dc!=eu && status=ready && !master`.
//!
//! ```text
//! or    = and  { "||" and }
//! and   = not  { "&&" not }
//! not   = "!" not | "(" or ")" | term
//! term  = word [ ("=" | "!=") word ]           word: bare, or in double quotes with \ before " and \
//! ```
//!
//! A bare word holds if it is the name of a label, or a flag inside any label. `key=value` holds if any label has that value, and `key!=value` if none has. The keys `id`,
//! `status`, `owner` and `class` are fields of the node itself, whatever its labels say.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text::{self, Scanner};
use super::{ClassName, Meta, NodeId, NodeStatus};
use crate::error::{Error, ErrorCode, Result};

/// A parsed selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Expr);

/// What a selector looks at.
#[derive(Clone, Copy, Debug)]
pub struct SelectorInput<'a> {
    /// Field `id`.
    pub id: &'a NodeId,
    /// Field `status`.
    pub status: NodeStatus,
    /// Labels.
    pub meta: &'a Meta,
    /// Field `owner`: the control node that has the proxy.
    pub owner: Option<&'a NodeId>,
    /// Field `class`: holds if any of them has the name.
    pub classes: &'a [ClassName],
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expr {
    /// Two or more, all of which must hold.
    And(Vec<Expr>),
    /// Two or more, one of which must hold.
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Word(String),
    Field(Field, String),
    Value(String, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Id,
    Status,
    Owner,
    Class,
}

impl Field {
    const ALL: [Field; 4] = [Field::Id, Field::Status, Field::Owner, Field::Class];

    fn name(self) -> &'static str {
        match self {
            Field::Id => "id",
            Field::Status => "status",
            Field::Owner => "owner",
            Field::Class => "class",
        }
    }
}

impl Selector {
    /// Longest selector, in bytes, as written and as printed.
    pub const BYTES_MAX: usize = 4096;

    /// Deepest nesting of parentheses and negations.
    pub const DEPTH_MAX: usize = 32;

    /// Whether the node is meant.
    pub fn matches(&self, input: &SelectorInput<'_>) -> bool {
        self.0.matches(input)
    }
}

impl Expr {
    fn matches(&self, input: &SelectorInput<'_>) -> bool {
        match self {
            Expr::And(all) => all.iter().all(|expr| expr.matches(input)),
            Expr::Or(any) => any.iter().any(|expr| expr.matches(input)),
            Expr::Not(expr) => !expr.matches(input),
            Expr::Word(word) => input.meta.iter().any(|label| label.name() == word || label.value(word) == Some(None)),
            Expr::Value(key, value) => input.meta.iter().any(|label| label.value(key) == Some(Some(value))),
            Expr::Field(field, value) => match field {
                Field::Id => input.id.as_str() == value,
                Field::Status => input.status.name() == value,
                Field::Owner => input.owner.is_some_and(|owner| owner.as_str() == value),
                Field::Class => input.classes.iter().any(|class| class.as_str() == value),
            },
        }
    }
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parser = Parser { scanner: Scanner::new(text), depth: 0 };
        if text.len() > Self::BYTES_MAX {
            return Err(parser.too_long());
        }
        let selector = Self(parser.or()?);
        if !parser.scanner.is_at_end() {
            return Err(parser.expected("`&&` or `||`"));
        }
        // Printing adds spaces; what we print must be readable for our peers.
        if selector.to_string().len() > Self::BYTES_MAX {
            return Err(parser.too_long());
        }
        Ok(selector)
    }
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    depth: usize,
}

impl Parser<'_> {
    fn or(&mut self) -> Result<Expr> {
        let mut any = vec![self.and()?];
        while self.scanner.eat("||") {
            any.push(self.and()?);
        }
        Ok(one_or(any, Expr::Or))
    }

    fn and(&mut self) -> Result<Expr> {
        let mut all = vec![self.not()?];
        while self.scanner.eat("&&") {
            all.push(self.not()?);
        }
        Ok(one_or(all, Expr::And))
    }

    fn not(&mut self) -> Result<Expr> {
        self.scanner.skip_spaces();
        let expr = if self.scanner.eat("!") {
            self.nested(|parser| Ok(Expr::Not(Box::new(parser.not()?))))?
        } else if self.scanner.eat("(") {
            let expr = self.nested(Self::or)?;
            if !self.scanner.eat(")") {
                return Err(self.expected("`)`"));
            }
            expr
        } else {
            self.term()?
        };
        self.scanner.skip_spaces();
        Ok(expr)
    }

    fn nested(&mut self, parse: impl FnOnce(&mut Self) -> Result<Expr>) -> Result<Expr> {
        if self.depth == Selector::DEPTH_MAX {
            return Err(self.invalid(format_args!("deeper than {} levels", self.depth)));
        }
        self.depth += 1;
        let expr = parse(self)?;
        self.depth -= 1;
        Ok(expr)
    }

    fn term(&mut self) -> Result<Expr> {
        let key = self.word("a label, a key, `!` or `(`")?;
        self.scanner.skip_spaces();
        let negated = self.scanner.eat("!=");
        if !negated && !self.scanner.eat("=") {
            return Ok(Expr::Word(key));
        }
        self.scanner.skip_spaces();
        let value = self.word("a value")?;
        let expr = match Field::ALL.into_iter().find(|field| field.name() == key) {
            Some(Field::Status) if value.parse::<NodeStatus>().is_err() => {
                let names = NodeStatus::ALL.map(NodeStatus::name).join(", ");
                return Err(self.invalid(format_args!("status is one of {names}")));
            }
            Some(field) => Expr::Field(field, value),
            None => Expr::Value(key, value),
        };
        Ok(match negated {
            true => Expr::Not(Box::new(expr)),
            false => expr,
        })
    }

    fn word(&mut self, what: &str) -> Result<String> {
        match self.scanner.word(is_bare) {
            Ok(Some(word)) => Ok(word),
            Ok(None) => Err(self.expected(what)),
            Err(reason) => Err(self.invalid(reason)),
        }
    }

    fn expected(&self, what: &str) -> Error {
        match self.scanner.peek() {
            Some(found) => self.invalid(format_args!("{what} expected, found {found:?}")),
            None => self.invalid(format_args!("{what} expected at the end")),
        }
    }

    fn too_long(&self) -> Error {
        self.invalid(format_args!("longer than {} bytes", Selector::BYTES_MAX))
    }

    fn invalid(&self, reason: impl fmt::Display) -> Error {
        let at = self.scanner.position();
        Error::new(ErrorCode::InvalidSelector, format!("selector, byte {at}: {reason}"))
    }
}

fn one_or(mut exprs: Vec<Expr>, many: impl FnOnce(Vec<Expr>) -> Expr) -> Expr {
    match exprs.len() {
        1 => exprs.remove(0),
        _ => many(exprs),
    }
}

fn is_bare(c: char) -> bool {
    let is_own = matches!(c, '(' | ')' | '&' | '|' | '!' | '=' | '"');
    !c.is_whitespace() && !c.is_control() && !is_own
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let term = |f: &mut fmt::Formatter<'_>, key: &str, sign: &str, value: &str| {
            text::write_word(f, key, is_bare)?;
            f.write_str(sign)?;
            text::write_word(f, value, is_bare)
        };
        match self {
            Expr::And(all) => write_joined(f, all, " && ", |expr| matches!(expr, Expr::And(_) | Expr::Or(_))),
            Expr::Or(any) => write_joined(f, any, " || ", |expr| matches!(expr, Expr::Or(_))),
            Expr::Not(expr) => match &**expr {
                Expr::Field(field, value) => term(f, field.name(), "!=", value),
                Expr::Value(key, value) => term(f, key, "!=", value),
                Expr::And(_) | Expr::Or(_) => write!(f, "!({expr})"),
                Expr::Not(_) | Expr::Word(_) => write!(f, "!{expr}"),
            },
            Expr::Word(word) => text::write_word(f, word, is_bare),
            Expr::Field(field, value) => term(f, field.name(), "=", value),
            Expr::Value(key, value) => term(f, key, "=", value),
        }
    }
}

fn write_joined(f: &mut fmt::Formatter<'_>, exprs: &[Expr], operator: &str, in_parentheses: impl Fn(&Expr) -> bool) -> fmt::Result {
    for (i, expr) in exprs.iter().enumerate() {
        if i > 0 {
            f.write_str(operator)?;
        }
        match in_parentheses(expr) {
            true => write!(f, "({expr})")?,
            false => write!(f, "{expr}")?,
        }
    }
    Ok(())
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::parse(deserializer, "a selector")
    }
}

#[cfg(test)]
mod tests;
