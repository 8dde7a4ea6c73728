//! What is wrong in a configuration, where, and what was expected.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorCode};

/// Who said a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody: it is the default.
    Default,
    /// A file.
    File(PathBuf),
    /// A variable of the environment.
    Environment,
    /// A flag of the command line.
    Flag,
}

impl Origin {
    /// Higher ranks win.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Origin::Default => 0,
            Origin::File(_) => 1,
            Origin::Environment => 2,
            Origin::Flag => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("configuration"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment => f.write_str("environment"),
            Origin::Flag => f.write_str("command line"),
        }
    }
}

/// A configuration that no node can run with. The node does not start; the operator corrects the named place.
///
/// Values of secret keys, and of URLs, which may hold secrets, are never repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    origin: Origin,
    key: Option<String>,
    value: Option<String>,
    problem: Problem,
}

/// A reason, before it is known where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) code: ErrorCode,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::InvalidConfig, message: message.into() }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self { code: error.code().clone(), message: error.message().to_owned() }
    }
}

impl ConfigError {
    pub(super) fn new(origin: Origin, key: Option<&str>, problem: Problem) -> Self {
        Self { origin, key: key.map(str::to_owned), value: None, problem }
    }

    pub(super) fn with_value(mut self, value: String) -> Self {
        self.value = Some(value);
        self
    }

    /// Who said it.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The file, if it stands in one.
    pub fn file(&self) -> Option<&Path> {
        match &self.origin {
            Origin::File(path) => Some(path),
            _ => None,
        }
    }

    /// The key, unless the whole source cannot be read.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The value as it was said, unless it may hold a secret.
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// What was expected, or what is wrong.
    pub fn reason(&self) -> &str {
        &self.problem.message
    }

    /// `invalid_config`, or more exactly `invalid_uri`, `invalid_scheme`, `invalid_transport`, `invalid_tokens`, `invalid_name`, `syntax_error`.
    pub fn code(&self) -> &ErrorCode {
        &self.problem.code
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        match (&self.origin, &self.key) {
            (Origin::Environment, Some(key)) => write!(f, "{}", env_name(key))?,
            (_, Some(key)) => f.write_str(key)?,
            (_, None) => return f.write_str(&self.problem.message),
        }
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, ": {}", self.problem.message)
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Error::new(error.problem.code.clone(), error.to_string())
    }
}

/// The variable of a key.
pub(super) fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.to_ascii_uppercase())
}

pub(super) const ENV_PREFIX: &str = "NKCLUSTER_";
