//! The name of a file below a root, right once it exists.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, ErrorCode, Result};

/// Longest path in bytes; an error message that quotes one still fits a control message.
pub const PATH_BYTES_MAX: usize = 1024;

/// Longest component in bytes, as on every Linux file system.
const COMPONENT_BYTES_MAX: usize = 255;

/// Start of the names of unfinished transfers, which nobody else may use.
pub const RESERVED_PREFIX: &str = ".nkcluster-partial-";

/// A path relative to a [`FileRoot`](super::FileRoot) that names a file, such as `logs/today.txt`.
///
/// Components are separated by `/`. The value holds neither `..` nor a root, an empty component, a `.`
/// or a NUL; `./a//b` is read as `a/b`. It is at most [`PATH_BYTES_MAX`] bytes long. Whether the path leads
/// out through a symbolic link is for the kernel to say, when it is opened.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Box<str>);

impl RelPath {
    /// Reads a path; refused ones are `invalid_path`, and the message says why.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            let shown: String = text.chars().take(200).collect();
            Err(Error::new(ErrorCode::InvalidPath, format!("the path {shown:?} {why}")))
        };
        if text.is_empty() {
            return refuse("is empty");
        }
        if text.len() > PATH_BYTES_MAX {
            return refuse("is longer than 1024 bytes");
        }
        if text.contains('\0') {
            return refuse("has a NUL byte");
        }
        if text.starts_with('/') {
            return refuse("is absolute; name a file below the file root");
        }
        if text.ends_with('/') || text == "." || text.ends_with("/.") {
            return refuse("names a directory, not a file");
        }
        let mut clean = String::with_capacity(text.len());
        for component in text.split('/') {
            match component {
                "" | "." => continue,
                ".." => return refuse("has a `..`; name a file below the file root"),
                long if long.len() > COMPONENT_BYTES_MAX => {
                    return refuse("has a component longer than 255 bytes");
                }
                ours if ours.starts_with(RESERVED_PREFIX) => {
                    return refuse("has a name that is reserved for unfinished transfers");
                }
                _ => {}
            }
            if !clean.is_empty() {
                clean.push('/');
            }
            clean.push_str(component);
        }
        Ok(Self(clean.into()))
    }

    /// The path as text, in its clean form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path for the file system; it is relative.
    pub fn as_path(&self) -> &Path {
        Path::new(&*self.0)
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// Everything before the last component; `None` if there is only one.
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }
}

impl FromStr for RelPath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_that_are_not_below_the_root_are_refused() {
        for text in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/..",
            "a/../b",
            "a/",
            "a//",
            ".",
            "./",
            "a/.",
            "a\0b",
            ".nkcluster-partial-1",
            "a/.nkcluster-partial-1",
        ] {
            let error = RelPath::parse(text).expect_err(text);
            assert_eq!(error.code(), &ErrorCode::InvalidPath, "{text:?}");
        }
        assert!(RelPath::parse(&"a/".repeat(600)).is_err());
        assert!(RelPath::parse(&"a".repeat(256)).is_err());
    }

    #[test]
    fn harmless_spellings_are_cleaned() {
        for (text, clean) in [("a", "a"), ("./a//b", "a/b"), ("a/./b", "a/b"), ("...", "...")] {
            assert_eq!(RelPath::parse(text).expect(text).as_str(), clean);
        }
        let path = RelPath::parse("a/b/c").expect("valid");
        assert_eq!((path.parent(), path.name()), (Some("a/b"), "c"));
        let path = RelPath::parse("c").expect("valid");
        assert_eq!((path.parent(), path.name()), (None, "c"));
    }

    proptest! {
        #[test]
        fn what_parses_has_only_normal_components_and_parses_to_itself(text in "[ab./\\\\é\0-]{0,24}") {
            if let Ok(path) = RelPath::parse(&text) {
                prop_assert!(path.as_path().components().all(|c| matches!(c, Component::Normal(_))));
                prop_assert!(path.as_path().components().count() > 0);
                prop_assert_eq!(RelPath::parse(path.as_str()).expect("clean"), path);
            }
        }
    }
}
