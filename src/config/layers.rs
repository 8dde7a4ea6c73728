//! Sources of values, and which of them wins.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Config;
use super::error::{ConfigError, ENV_PREFIX, Origin, Problem, env_name};
use super::keys::{KEYS, Key};
use super::raw::Raw;
use super::secret_file::MODE_OTHERS;
use super::values::Role;

/// What the sources say, until a [`Config`] is built from it. The order of the calls does not matter: a flag beats the environment, which beats the file.
///
/// ```
/// use nkcluster::config::Layers;
///
/// let config = Layers::new()
///     .env([("NKCLUSTER_PING_TIME", "2000"), ("PATH", "/bin")])?
///     .flag("role", "worker")?
///     .flag("node_id", "dev4")?
///     .build()?;
/// assert_eq!(config.ping_time.as_secs(), 2);
/// # Ok::<(), nkcluster::config::ConfigError>(())
/// ```
#[derive(Default)]
pub struct Layers {
    /// By what the keys decide.
    said: BTreeMap<&'static str, Said>,
    notes: Vec<String>,
}

/// The value that wins so far.
struct Said {
    key: &'static Key,
    raw: Raw,
    origin: Origin,
}

impl Layers {
    /// Nothing said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the values of a TOML file. Relative paths in it start at the working directory.
    pub fn file(self, path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let failed = |error| {
            let problem = Problem::new(format!("cannot read the file: {error}"));
            ConfigError::new(Origin::File(path.to_owned()), None, problem)
        };
        let text = fs::read_to_string(path).map_err(failed)?;
        self.take(path, &text, is_open(path))
    }

    /// Takes the values of a TOML text as if it were the content of the file `name`, which is only told in errors: for programs that keep it elsewhere.
    pub fn text(self, name: impl AsRef<Path>, text: &str) -> Result<Self, ConfigError> {
        self.take(name.as_ref(), text, false)
    }

    fn take(mut self, path: &Path, text: &str, is_open: bool) -> Result<Self, ConfigError> {
        let origin = Origin::File(path.to_owned());
        // Its `Display` would repeat the line, which may hold a password; its message does not.
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let reason = format!("line {line}: {}", error.message().replace('\n', ", "));
            ConfigError::new(origin.clone(), None, Problem::new(reason))
        })?;
        for (name, value) in table {
            let key = Key::find(&name).ok_or_else(|| unknown(origin.clone(), &name))?;
            let is_inline_secret = key.is_hidden && !matches!(key.name, "cluster_addr" | "listen");
            let raw = Raw::Toml(value);
            if is_inline_secret && !raw.is_empty_text() && is_open {
                let path = path.display();
                self.notes.push(format!("{path}: holds `{name}` and every user may read or change it"));
            }
            self.say(key, raw, origin.clone())?;
        }
        Ok(self)
    }

    /// Takes the variables `NKCLUSTER_<KEY>`; give it `std::env::vars_os()`.
    ///
    /// Others with this prefix belong to other programs (Kubernetes sets `NKCLUSTER_PORT` for a service of that name) and are left alone; one that looks like a slip is noted.
    pub fn env<K, V>(mut self, variables: impl IntoIterator<Item = (K, V)>) -> Result<Self, ConfigError>
    where
        K: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        for (name, value) in variables {
            let name = name.as_ref().to_str().and_then(|name| name.strip_prefix(ENV_PREFIX));
            let Some(name) = name.map(str::to_ascii_lowercase) else {
                continue;
            };
            let Some(key) = Key::find(&name) else {
                if let Some(near) = nearest(&name, 2) {
                    let (said, meant) = (env_name(&name), env_name(near));
                    self.notes.push(format!("environment: {said} is ignored, did you mean {meant}?"));
                }
                continue;
            };
            let origin = Origin::Environment;
            let Some(value) = value.as_ref().to_str() else {
                return Err(ConfigError::new(origin, Some(key.name), Problem::new("expected UTF-8 text")));
            };
            self.say(key, Raw::Text(value.to_owned()), origin)?;
        }
        Ok(self)
    }

    /// Takes the value of a flag; `-` in the key is read as `_`.
    pub fn flag(mut self, key: &str, value: impl Into<String>) -> Result<Self, ConfigError> {
        let name = key.replace('-', "_");
        let key = Key::find(&name).ok_or_else(|| unknown(Origin::Flag, &name))?;
        self.say(key, Raw::Text(value.into()), Origin::Flag)?;
        Ok(self)
    }

    /// Builds the configuration and [checks](Config::check) it.
    pub fn build(self) -> Result<Config, ConfigError> {
        let mut config = match self.role()? {
            Role::Control => Config::control(),
            Role::Worker => Config::worker(),
        };
        config.notes = self.notes;
        for key in KEYS {
            let Some(said) = self.said.get(key.slot) else {
                continue;
            };
            if said.key.name == key.name {
                said.apply_to(&mut config)?;
            }
        }
        config.check()?;
        Ok(config)
    }

    fn role(&self) -> Result<Role, ConfigError> {
        let Some(said) = self.said.get("role") else {
            let problem = Problem::new("nobody said it: use --control or --worker, or the key in the file");
            return Err(ConfigError::new(Origin::Default, Some("role"), problem));
        };
        let mut config = Config::worker();
        said.apply_to(&mut config)?;
        Ok(config.role)
    }

    /// Keeps the value if its source outranks the one that spoke before.
    fn say(&mut self, key: &'static Key, raw: Raw, origin: Origin) -> Result<(), ConfigError> {
        if key.is_optional && raw.is_empty_text() {
            return Ok(());
        }
        if let Some(before) = self.said.get(key.slot) {
            if before.origin.rank() > origin.rank() {
                return Ok(());
            }
            if before.origin.rank() == origin.rank() && before.key.name != key.name {
                let problem = Problem::new(format!("`{}` says the same already; keep one of them", before.key.name));
                return Err(ConfigError::new(origin, Some(key.name), problem));
            }
        }
        self.said.insert(key.slot, Said { key, raw, origin });
        Ok(())
    }
}

impl Said {
    fn apply_to(&self, config: &mut Config) -> Result<(), ConfigError> {
        (self.key.set)(config, &self.raw).map_err(|problem| {
            let error = ConfigError::new(self.origin.clone(), Some(self.key.name), problem);
            match self.key.is_hidden {
                true => error,
                false => error.with_value(self.raw.to_string()),
            }
        })
    }
}

/// Whether every user may read or change the file.
fn is_open(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & MODE_OTHERS != 0)
}

fn unknown(origin: Origin, name: &str) -> ConfigError {
    const GUESS_DISTANCE: usize = 4;
    let problem = match nearest(name, GUESS_DISTANCE) {
        Some(near) => format!("there is no such key, did you mean `{near}`?"),
        None => "there is no such key".to_owned(),
    };
    ConfigError::new(origin, Some(name), Problem::new(problem))
}

/// The key that is the fewest edits away, at most so many and fewer than half of the name.
fn nearest(name: &str, edits_max: usize) -> Option<&'static str> {
    const NAME_BYTES_MAX: usize = 64;
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let names = KEYS.iter().map(|key| key.name);
    let near = names.map(|key| (distance(name, key), key)).min()?;
    (near.0 <= edits_max && near.0 * 2 < name.len()).then_some(near.1)
}

/// Insertions, deletions and replacements between two texts (Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
