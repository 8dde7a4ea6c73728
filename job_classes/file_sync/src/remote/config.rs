//! Remotes that have a name.

use std::collections::BTreeMap;
use std::path::Path;

/// Where the environment configures remotes, as for rclone: `RCLONE_CONFIG_<NAME>_<KEY>`.
const ENV_PREFIX: &str = "RCLONE_CONFIG_";
/// Largest configuration that is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// The settings of named remotes: a TOML file with a table for each, and the environment over it.
///
/// ```toml
/// [archive]
/// type = "s3"
/// provider = "Other"
/// endpoint = "https://objects.example"
/// access_key_id = "…"
/// secret_access_key = "…"
/// ```
#[derive(Clone, Default)]
pub struct RemoteConfig {
    remotes: BTreeMap<String, BTreeMap<String, String>>,
    environment: BTreeMap<String, String>,
}

/// Why a configuration cannot be used. It repeats no values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {why}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// It is no TOML.
    #[error("the configuration of remotes is no TOML: {0}")]
    Toml(String),
    /// A remote is no table of texts, numbers and truth values.
    #[error("the remote {0:?} must be a table of texts, numbers and truth values")]
    Remote(String),
}

impl RemoteConfig {
    /// Reads the file, if it is there, and takes the environment into account.
    ///
    /// # Errors
    /// If the file is there and cannot be read or used.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |why: String| ConfigError::Unreadable { path: path.display().to_string(), why };
        let text = match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(unreadable(error.to_string())),
            Ok(found) if found.len() > CONFIG_BYTES_MAX => return Err(unreadable(format!("larger than {CONFIG_BYTES_MAX} bytes"))),
            Ok(_) => std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?,
        };
        Ok(Self::from_toml(&text)?.with_environment(std::env::vars_os().filter_map(|(key, value)| {
            let key = key.into_string().ok().filter(|key| key.starts_with(ENV_PREFIX))?;
            Some((key, value.into_string().ok()?))
        })))
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// As of [`RemoteConfig::load`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        // The message of the parser repeats the line, which may hold a secret; its place is enough.
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            ConfigError::Toml(format!("line {line}"))
        })?;
        let mut remotes = BTreeMap::new();
        for (name, value) in table {
            let refused = || ConfigError::Remote(name.clone());
            let mut settings = BTreeMap::new();
            for (key, value) in value.as_table().ok_or_else(refused)? {
                let text = match value {
                    toml::Value::String(text) => text.clone(),
                    toml::Value::Integer(number) => number.to_string(),
                    toml::Value::Boolean(truth) => truth.to_string(),
                    _ => return Err(refused()),
                };
                settings.insert(key.clone(), text);
            }
            remotes.insert(name.clone(), settings);
        }
        Ok(Self { remotes, environment: BTreeMap::new() })
    }

    /// Takes variables `RCLONE_CONFIG_<NAME>_<KEY>` into account; they win over the file.
    pub fn with_environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment.extend(variables.into_iter().filter(|(key, _)| key.starts_with(ENV_PREFIX)));
        self
    }

    /// The settings of a remote; none if there is no remote of that name.
    pub fn settings(&self, name: &str) -> Option<BTreeMap<String, String>> {
        let prefix = format!("{ENV_PREFIX}{}_", name.to_uppercase().replace(['-', ' '], "_"));
        let from_environment = self.environment.iter().filter_map(|(key, value)| {
            let key = key.strip_prefix(&prefix)?;
            Some((key.to_lowercase(), value.clone()))
        });
        let mut settings = self.remotes.get(name).cloned().unwrap_or_default();
        settings.extend(from_environment);
        (!settings.is_empty()).then_some(settings)
    }

    /// Names of the remotes of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.remotes.keys().map(String::as_str)
    }
}

impl std::fmt::Debug for RemoteConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteConfig").field("remotes", &self.remotes.keys()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = RemoteConfig::from_toml("[a-b]\ntype = \"s3\"\nregion = \"x\"\nenv_auth = true\n").expect("config");
        let variable = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let config = config.with_environment([
            variable("RCLONE_CONFIG_A_B_REGION", "y"),
            variable("RCLONE_CONFIG_NEW_TYPE", "local"),
            variable("PATH", "/bin"),
        ]);
        let settings = config.settings("a-b").expect("there");
        assert_eq!((settings["region"].as_str(), settings["env_auth"].as_str()), ("y", "true"));
        assert_eq!(config.settings("new").expect("there")["type"], "local");
        assert_eq!(config.settings("other"), None);
    }

    #[test]
    fn a_broken_file_is_an_error_that_tells_no_secret() {
        let error = RemoteConfig::from_toml("[a]\nkey = \"hush\nx").expect_err("broken");
        assert!(!error.to_string().contains("hush") && error.to_string().contains("line "), "{error}");
        assert!(RemoteConfig::from_toml("a = 3").is_err() && RemoteConfig::from_toml("[a]\nb = [1]").is_err());
    }
}
