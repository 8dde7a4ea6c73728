//! The name of a file or directory below the root of a remote.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Longest path in bytes; that of Linux.
pub const PATH_BYTES_MAX: usize = 4096;
/// Bytes of a path that an error repeats.
const SHOWN_BYTES_MAX: usize = 200;

/// A path relative to the root of a remote, such as `logs/today.txt`; the empty path is the root itself.
///
/// Components are separated by `/` and are never empty, `.` or `..`, so no path leads out of its root; whether a link does is for the storage to say. It is text:
/// bytes of a local name that are no UTF-8 stand in it as rclone writes them, `‛` and two hexadecimal digits each, and return on the way back. The order is that
/// of its bytes.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct EntryPath(Box<str>);

/// Why a text is no path below a root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It begins with `/`.
    #[error("the path {0:?} is absolute; paths are relative to the root of their remote")]
    Absolute(String),
    /// It has a component `..`.
    #[error("the path {0:?} leads out of its root by `..`")]
    LeadsOut(String),
    /// It has an empty component or `.`.
    #[error("the path {0:?} has an empty component or `.`")]
    EmptyComponent(String),
    /// It holds a NUL.
    #[error("the path {0:?} has a NUL byte")]
    Nul(String),
    /// It has more than [`PATH_BYTES_MAX`] bytes.
    #[error("a path of {0} bytes is longer than {PATH_BYTES_MAX}")]
    TooLong(usize),
}

impl EntryPath {
    /// The root itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Reads a path from outside.
    ///
    /// # Errors
    /// Whatever would lead out of the root, or name the same thing twice.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let shown = || text[..text.floor_char_boundary(SHOWN_BYTES_MAX)].to_owned();
        if text.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong(text.len()));
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute(shown()));
        }
        if text.contains('\0') {
            return Err(PathError::Nul(shown()));
        }
        for component in text.split('/').take_while(|_| !text.is_empty()) {
            match component {
                "" | "." => return Err(PathError::EmptyComponent(shown())),
                ".." => return Err(PathError::LeadsOut(shown())),
                _ => {}
            }
        }
        Ok(Self(text.into()))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// The directory above it; none for the root.
    pub fn parent(&self) -> Option<Self> {
        match self.0.rsplit_once('/') {
            Some((parent, _)) => Some(Self(parent.into())),
            None if self.is_root() => None,
            None => Some(Self::root()),
        }
    }

    /// A path below this one.
    ///
    /// # Errors
    /// As of [`EntryPath::parse`]; also if `below` is empty or the whole becomes too long.
    pub fn join(&self, below: &str) -> Result<Self, PathError> {
        match self.is_root() {
            _ if below.is_empty() => Err(PathError::EmptyComponent(self.0.to_string())),
            true => Self::parse(below),
            false => Self::parse(&format!("{self}/{below}")),
        }
    }

    /// What is below `directory`, if this is; the empty text if it is the directory itself.
    pub fn below<'a>(&'a self, directory: &EntryPath) -> Option<&'a str> {
        if directory.is_root() {
            return Some(&self.0);
        }
        let rest = self.0.strip_prefix(&*directory.0)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }
}

impl FromStr for EntryPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::parse(text)
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl<'de> Deserialize<'de> for EntryPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EntryPath {
        EntryPath::parse(text).expect("a path")
    }

    #[test]
    fn what_leads_out_or_is_ambiguous_is_refused() {
        for text in ["/a", "..", "a/../b", "a//b", "a/", "./a", "a/.", "a\0b"] {
            assert!(EntryPath::parse(text).is_err(), "{text:?}");
        }
        assert!(EntryPath::parse(&"a".repeat(PATH_BYTES_MAX + 1)).is_err());
        assert!(serde_json::from_str::<EntryPath>("\"../a\"").is_err());
    }

    #[test]
    fn parents_names_and_joins_belong_together() {
        assert_eq!(path("a/b/c").parent(), Some(path("a/b")));
        assert_eq!(path("a").parent(), Some(EntryPath::root()));
        assert_eq!(EntryPath::root().parent(), None);
        assert_eq!((path("a/b").name(), EntryPath::root().name()), ("b", ""));
        assert_eq!(path("a").join("b/c"), Ok(path("a/b/c")));
        assert_eq!(EntryPath::root().join("a"), Ok(path("a")));
        assert!(path("a").join("").is_err() && path("a").join("../b").is_err() && path("a").join("/b").is_err());
        assert_eq!(path("a/b").below(&path("a")), Some("b"));
        assert_eq!(path("ab").below(&path("a")), None);
        assert_eq!(path("a").below(&path("a")), Some(""));
        assert_eq!(path("a").below(&EntryPath::root()), Some("a"));
    }
}
