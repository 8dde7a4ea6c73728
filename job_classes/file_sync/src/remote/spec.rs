//! How a remote is written: rclone's syntax.
//!
//! ```text
//!   /a/path   a/path            a local directory
//!   name:a/path                 a remote of the configuration
//!   name,key=value:a/path       the same with other settings
//!   :type,key=value:a/path      without any configuration
//! ```
//!
//! A value ends at `,` or `:`; within single or double quotes both are plain, and a quote is written twice. A key alone means `true`.

use std::collections::BTreeMap;
use std::fmt;

/// Longest remote that is read, in bytes.
pub const SPEC_BYTES_MAX: usize = 16 * 1024;
/// Keys whose values are never shown.
const SECRET_KEYS: &[&str] = &["secret", "password", "pass", "token", "key", "credential"];

/// A remote as it is written, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteSpec {
    /// What the path is relative to.
    pub place: Place,
    /// Settings that were written with it.
    pub settings: BTreeMap<String, String>,
    /// What comes behind the last `:`, or the local path.
    pub path: String,
}

/// What the path of a [`RemoteSpec`] is relative to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file system of this machine.
    Local,
    /// A remote of the configuration.
    Named(String),
    /// A type of storage, named outright.
    Typed(String),
}

/// Why a text is no remote. It repeats no values, as these may be secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// It is empty.
    #[error("a remote needs a path or a name")]
    Empty,
    /// It has more than [`SPEC_BYTES_MAX`] bytes.
    #[error("a remote of {0} bytes is longer than {SPEC_BYTES_MAX}")]
    TooLong(usize),
    /// It has a NUL.
    #[error("a remote cannot have a NUL byte")]
    Nul,
    /// The name before `:` has other characters than letters, digits, `_ - . + @` and spaces inside.
    #[error("{0:?} is no name of a remote")]
    Name(String),
    /// A setting has no name, or one with other characters than letters, digits and `_`.
    #[error("{0:?} is no name of a setting")]
    Key(String),
    /// A quote is never closed.
    #[error("the value of {0:?} has a quote that is never closed")]
    OpenQuote(String),
    /// Something stands between a closing quote and the next `,` or `:`.
    #[error("the value of {0:?} goes on behind its closing quote")]
    BehindQuote(String),
    /// The `:` before the path is missing.
    #[error("a connection string ends with `:` and the path; the `:` is missing")]
    NoColon,
}

impl RemoteSpec {
    /// Takes a text apart.
    ///
    /// # Errors
    /// If it is none of the four forms.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        match text {
            "" => return Err(SpecError::Empty),
            _ if text.len() > SPEC_BYTES_MAX => return Err(SpecError::TooLong(text.len())),
            _ if text.contains('\0') => return Err(SpecError::Nul),
            _ => {}
        }
        let (is_typed, rest) = match text.strip_prefix(':') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let end = rest.find([',', ':', '/']);
        let local = || Self { place: Place::Local, settings: BTreeMap::new(), path: text.to_owned() };
        let (name, rest) = match end.map(|end| (end, rest.as_bytes()[end])) {
            None | Some((_, b'/')) if is_typed => return Err(SpecError::NoColon),
            None | Some((_, b'/')) => return Ok(local()),
            // A comma before the first `/` begins settings only if a `:` follows; else it is part of a file's name.
            Some((end, b',')) if !is_typed && !rest[end..].contains(':') => return Ok(local()),
            Some((end, _)) => rest.split_at(end),
        };
        if !is_name(name) {
            return Err(SpecError::Name(name.to_owned()));
        }
        let (settings, path) = read_settings(rest)?;
        let place = match is_typed {
            true if name == "local" => Place::Local,
            true => Place::Typed(name.to_owned()),
            false => Place::Named(name.to_owned()),
        };
        Ok(Self { place, settings, path: path.to_owned() })
    }

    /// The same, found from anywhere on this machine: a local path is absolute.
    ///
    /// # Errors
    /// If there is no current directory.
    pub fn absolute(mut self) -> std::io::Result<Self> {
        if self.place == Place::Local {
            let path = std::path::absolute(if self.path.is_empty() { "." } else { &self.path })?;
            self.path = path.into_os_string().into_string().map_err(|_| std::io::Error::other("the current directory is no UTF-8"))?;
        }
        Ok(self)
    }

    /// The whole, secrets included: what another node can parse. Not for people; see the `Display` for that.
    pub fn to_text(&self) -> String {
        self.render(|_, value| value.to_owned())
    }

    fn render(&self, value_of: impl Fn(&str, &str) -> String) -> String {
        let mut text = match &self.place {
            // A local path that looks like something else is written so that it does not.
            Place::Local if self.settings.is_empty() && self.path.starts_with('/') => return self.path.clone(),
            Place::Local => ":local".to_owned(),
            Place::Named(name) => name.clone(),
            Place::Typed(name) => format!(":{name}"),
        };
        for (key, value) in &self.settings {
            text.push(',');
            text.push_str(key);
            text.push('=');
            text.push_str(&quoted(&value_of(key, value)));
        }
        text.push(':');
        text.push_str(&self.path);
        text
    }
}

/// For people: values that may be secret are left out.
impl fmt::Display for RemoteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(|key, value| if is_secret(key) { "***".to_owned() } else { value.to_owned() }))
    }
}

impl fmt::Debug for RemoteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether the value of a setting is kept out of everything that people read.
pub(super) fn is_secret(key: &str) -> bool {
    SECRET_KEYS.iter().any(|secret| key.contains(secret))
}

/// A text with every remote that may hold secrets shown as people may see it; what is no remote stays as it is.
pub fn without_secrets(text: &str) -> String {
    RemoteSpec::parse(text).map_or_else(|_| "a remote that cannot be read".to_owned(), |spec| spec.to_string())
}

fn is_name(name: &str) -> bool {
    let is_inside = |char: char| char.is_alphanumeric() || "_-.+@ ".contains(char);
    !name.is_empty() && name.chars().all(is_inside) && !name.starts_with(['-', ' ']) && !name.ends_with(' ')
}

/// Reads `,key=value,key="value":path`; the settings and the path.
fn read_settings(mut rest: &str) -> Result<(BTreeMap<String, String>, &str), SpecError> {
    let mut settings = BTreeMap::new();
    loop {
        rest = match rest.as_bytes().first() {
            Some(b':') => return Ok((settings, &rest[1..])),
            Some(b',') => &rest[1..],
            _ => return Err(SpecError::NoColon),
        };
        let end = rest.find(['=', ',', ':']).ok_or(SpecError::NoColon)?;
        let key = &rest[..end];
        if key.is_empty() || !key.chars().all(|char| char.is_ascii_alphanumeric() || char == '_') {
            return Err(SpecError::Key(key.to_owned()));
        }
        rest = &rest[end..];
        let value = match rest.strip_prefix('=') {
            None => "true".to_owned(),
            Some(behind) => {
                let (value, behind) = read_value(key, behind)?;
                rest = behind;
                value
            }
        };
        settings.insert(key.to_owned(), value);
    }
}

fn read_value<'a>(key: &str, text: &'a str) -> Result<(String, &'a str), SpecError> {
    let Some(quote @ ('"' | '\'')) = text.chars().next() else {
        let end = text.find([',', ':']).ok_or(SpecError::NoColon)?;
        return Ok((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut rest = &text[1..];
    loop {
        let end = rest.find(quote).ok_or_else(|| SpecError::OpenQuote(key.to_owned()))?;
        value.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix(quote) {
            Some(behind) => {
                value.push(quote);
                rest = behind;
            }
            None if rest.starts_with([',', ':']) => return Ok((value, rest)),
            None if rest.is_empty() => return Err(SpecError::NoColon),
            None => return Err(SpecError::BehindQuote(key.to_owned())),
        }
    }
}

fn quoted(value: &str) -> String {
    match value.contains([',', ':', '"', '\'']) {
        true => format!("\"{}\"", value.replace('"', "\"\"")),
        false => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> RemoteSpec {
        RemoteSpec::parse(text).expect("a remote")
    }

    #[test]
    fn the_four_forms_are_told_apart() {
        for local in ["/a/b", "a/b", "a", "./a:b", "a/b:c", "a,b", ".", "/a,b=c:d"] {
            let spec = parsed(local);
            assert_eq!((spec.place, spec.path.as_str()), (Place::Local, local));
        }
        assert_eq!(parsed(":local:/x").path, "/x");
        let named = parsed("my remote:bucket/a:b");
        assert_eq!((named.place, named.path.as_str()), (Place::Named("my remote".into()), "bucket/a:b"));
        let typed = parsed(r#":s3,provider=Other,endpoint="http://h:9000/a,""b""",env_auth:bucket/p"#);
        assert_eq!(typed.place, Place::Typed("s3".into()));
        assert_eq!(typed.settings["endpoint"], r#"http://h:9000/a,"b""#);
        assert_eq!((typed.settings["env_auth"].as_str(), typed.path.as_str()), ("true", "bucket/p"));
    }

    #[test]
    fn what_is_none_of_them_is_refused_without_repeating_values() {
        for text in ["", ":s3", ":s3,a=b", ":s3,a=\"b:", "-x:y", ":s3,a=\"b\"c:d", ":s3,=b:d", ":s3/x", "a\0b"] {
            assert!(RemoteSpec::parse(text).is_err(), "{text:?}");
        }
        let error = RemoteSpec::parse(":s3,secret_access_key=\"hush").expect_err("open quote").to_string();
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn people_see_no_secrets() {
        let text = ":s3,access_key_id=visible?,secret_access_key=hush,session_token=hush:bucket";
        let shown = parsed(text).to_string();
        assert!(!shown.contains("hush") && shown.contains("***") && shown.ends_with(":bucket"), "{shown}");
        assert_eq!(parsed(&parsed(text).to_text()), parsed(text));
        assert!(!format!("{:?}", parsed(text)).contains("hush"));
    }

    proptest! {
        #[test]
        fn a_remote_returns_from_its_text(
            name in "[a-z][a-z0-9_.+@-]{0,8}",
            settings in proptest::collection::btree_map("[a-z_]{1,6}", "[ -~é]{0,12}", 0..4),
            path in "[ -~é]{0,20}",
            is_typed: bool,
        ) {
            let place = match is_typed { true if name == "local" => Place::Local, true => Place::Typed(name), false => Place::Named(name) };
            let spec = RemoteSpec { place, settings, path };
            prop_assert_eq!(RemoteSpec::parse(&spec.to_text()), Ok(spec));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = RemoteSpec::parse(&text);
            let _ = without_secrets(&text);
        }
    }
}
