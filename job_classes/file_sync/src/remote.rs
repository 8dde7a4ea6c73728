//! Remotes: places for files, in rclone's syntax, opened.
//!
//! ```text
//!   text ──RemoteSpec::parse──► spec ──RemoteConfig──► type and settings ──TYPES──► Storage
//! ```

mod config;
pub(crate) mod local;
pub(crate) mod object;
mod spec;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

pub use self::config::{ConfigError, RemoteConfig};
pub use self::local::staging::{STAGING_PREFIX, is_staging_name};
pub use self::spec::{Place, RemoteSpec, SPEC_BYTES_MAX, SpecError, without_secrets};

use self::local::{LinkView, LocalTree};
use self::object::{Account, ObjectTree};
use crate::attempt::RunId;
use crate::path::EntryPath;
use crate::queue::{LocalStore, ObjectStore, SharedStore, StoreError, is_under_way};
use crate::storage::{Abilities, Storage, StorageError};

/// Remotes that [`Remotes`] holds open; the one that was used longest ago is closed for a further one.
const OPEN_REMOTES_MAX: usize = 64;

/// Opens a remote of one type.
type Opener = fn(&Request<'_>) -> Result<Opened, RemoteError>;

/// All types of storages. A further one is a module that implements [`Storage`] and a line here.
const TYPES: &[(&str, Opener)] = &[("local", open_local), ("s3", object::s3::open)];

/// What an opener is asked for.
struct Request<'a> {
    settings: &'a BTreeMap<String, String>,
    path: &'a str,
    /// The remote as people may see it.
    shown: &'a str,
}

/// What an opener answers.
struct Opened {
    storage: Arc<dyn Storage>,
    access: Access,
    /// The path as it is on every node.
    path: String,
}

/// Ways to a storage that are shorter than [`Storage`].
#[derive(Clone)]
pub(crate) enum Access {
    /// A local tree, many files of which can be handled in one piece of blocking work.
    Local(Arc<LocalTree>),
    /// A store of objects.
    Object(ObjectAccess),
}

/// A store of objects, as far as it can be used beyond the root of one remote.
#[derive(Clone)]
pub(crate) struct ObjectAccess {
    pub(crate) tree: Arc<ObjectTree>,
    /// The whole container, in which both ends of a copy can be named.
    pub(crate) whole: Arc<ObjectTree>,
    pub(crate) prefix: EntryPath,
    pub(crate) account: Arc<Account>,
}

/// A remote, opened: a storage, its root, and how another node finds it.
///
/// Nothing is asked of the storage by opening, so a remote that is unreachable, or refuses, says so only when it is used.
#[derive(Clone)]
pub struct Remote {
    spec: RemoteSpec,
    storage: Arc<dyn Storage>,
    access: Access,
}

/// Why a remote cannot be opened. It repeats no secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// The text is no remote.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The configuration has no remote of that name.
    #[error("there is no remote {0:?} in the configuration, nor in the environment")]
    Unknown(String),
    /// The configuration of a remote has no `type`.
    #[error("the remote {0:?} has no `type`")]
    NoType(String),
    /// There is no storage of that type.
    #[error("{remote}: there is no storage of the type {kind:?}; there are: {known}")]
    UnknownType {
        /// The remote.
        remote: String,
        /// Its type.
        kind: String,
        /// The types that exist.
        known: String,
    },
    /// A setting is missing or wrong.
    #[error("{remote}: {why}")]
    Setting {
        /// The remote.
        remote: String,
        /// What is wrong.
        why: String,
    },
}

impl Remote {
    /// Opens what a text in rclone's syntax says.
    ///
    /// # Errors
    /// If the text, the configuration or a setting is wrong.
    pub fn open(text: &str, config: &RemoteConfig) -> Result<Self, RemoteError> {
        let mut spec = RemoteSpec::parse(text)?;
        let shown = spec.to_string();
        let (kind, settings) = match &spec.place {
            Place::Local => ("local".to_owned(), spec.settings.clone()),
            Place::Typed(kind) => (kind.clone(), spec.settings.clone()),
            Place::Named(name) => {
                let mut settings = config.settings(name).ok_or_else(|| RemoteError::Unknown(name.clone()))?;
                let kind = settings.remove("type").ok_or_else(|| RemoteError::NoType(name.clone()))?;
                settings.extend(spec.settings.clone());
                (kind, settings)
            }
        };
        let Some((_, open)) = TYPES.iter().find(|(name, _)| *name == kind) else {
            let known = TYPES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            return Err(RemoteError::UnknownType { remote: shown, kind, known });
        };
        let opened = open(&Request { settings: &settings, path: &spec.path, shown: &shown })?;
        spec.path = opened.path;
        Ok(Self { spec, storage: opened.storage, access: opened.access })
    }

    /// The storage, with the remote's path as its root.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The text by which another node opens the same: local paths are absolute, settings of the connection string are in it, **secrets included**. It
    /// belongs into operations, never into a log; for people there is the `Display`. A named remote must be configured on each node.
    pub fn portable(&self) -> String {
        self.spec.to_text()
    }

    /// The local directory, if it is one.
    pub fn local_path(&self) -> Option<PathBuf> {
        match &self.access {
            Access::Local(tree) => Some(tree.path().to_path_buf()),
            Access::Object(_) => None,
        }
    }

    /// What it can do. An object store is asked, by a few conditional writes of one key, what it honours of conditions; once for each opened remote.
    ///
    /// # Errors
    /// If the storage fails, or does not let us write.
    pub async fn probe_conditions(&self) -> Result<&Abilities, StorageError> {
        match &self.access {
            Access::Local(_) => Ok(self.storage.abilities()),
            Access::Object(access) => access.tree.probe().await,
        }
    }

    /// Opens a queue there, and tries what the storage honours.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn open_queue(&self) -> Result<SharedStore, StoreError> {
        Ok(match &self.access {
            Access::Local(tree) => Arc::new(LocalStore::open(tree.path()).await?),
            Access::Object(access) => Arc::new(ObjectStore::open_below(access.tree.operator().clone(), access.prefix.as_str()).await?),
        })
    }

    /// Opens a queue for a run that must be under way there; none if it is not. Where it is not, nothing is written: the path may show anything.
    ///
    /// # Errors
    /// If it cannot be read, or, with the run, not be written.
    pub async fn open_queue_of(&self, run: RunId) -> Result<Option<SharedStore>, StoreError> {
        let read: SharedStore = match &self.access {
            Access::Local(tree) => Arc::new(LocalStore::for_reading(tree.path())),
            Access::Object(access) => Arc::new(ObjectStore::for_reading_below(access.tree.operator().clone(), access.prefix.as_str())),
        };
        match is_under_way(&read, run).await? {
            true => self.open_queue().await.map(Some),
            false => Ok(None),
        }
    }

    pub(crate) fn access(&self) -> &Access {
        &self.access
    }
}

/// For people: no secrets.
impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.spec, f)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.spec, f)
    }
}

/// Opened remotes by their text, since every operation of a batch names its remotes anew.
#[derive(Debug)]
pub struct Remotes {
    config: RemoteConfig,
    open: Mutex<VecDeque<(String, Arc<Remote>)>>,
}

impl Remotes {
    /// None opened yet.
    pub fn new(config: RemoteConfig) -> Self {
        Self { config, open: Mutex::default() }
    }

    /// The remote of a text, opened now or before.
    ///
    /// # Errors
    /// As of [`Remote::open`].
    pub fn open(&self, text: &str) -> Result<Arc<Remote>, RemoteError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|(name, _)| name == text) {
            // The front is the one used last.
            if at > 0
                && let Some(found) = open.remove(at)
            {
                open.push_front(found);
            }
            return Ok(open[0].1.clone());
        }
        let remote = Arc::new(Remote::open(text, &self.config)?);
        open.truncate(OPEN_REMOTES_MAX - 1);
        open.push_front((text.to_owned(), remote.clone()));
        Ok(remote)
    }
}

fn open_local(request: &Request<'_>) -> Result<Opened, RemoteError> {
    let wrong = |why: String| RemoteError::Setting { remote: request.shown.to_owned(), why };
    let links = match request.settings.get("copy_links").map(String::as_str) {
        Some("true") => LinkView::Followed,
        None | Some("false") => LinkView::Told,
        Some(_) => return Err(wrong("`copy_links` is `true` or `false`".to_owned())),
    };
    let path = if request.path.is_empty() { "." } else { request.path };
    let path = std::path::absolute(path).map_err(|error| wrong(format!("no absolute path: {error}")))?;
    let text = path.to_str().ok_or_else(|| wrong("its path is no UTF-8".to_owned()))?.to_owned();
    let tree = LocalTree::new(path, links);
    Ok(Opened { storage: Arc::new(tree.clone()), access: Access::Local(Arc::new(tree)), path: text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_remote_is_found_by_another_node() {
        let remote = Remote::open("some/dir", &RemoteConfig::default()).expect("opened");
        assert!(remote.portable().starts_with('/'));
        let again = Remote::open(&remote.portable(), &RemoteConfig::default()).expect("opened");
        assert_eq!(again.local_path(), remote.local_path());
        let odd = Remote::open(":local,copy_links:x", &RemoteConfig::default()).expect("opened");
        assert!(odd.portable().starts_with(":local,copy_links=true:/"));
    }

    #[test]
    fn what_is_not_configured_is_an_error_that_says_so() {
        let config = RemoteConfig::from_toml("[a]\nx = \"y\"\n[b]\ntype = \"tape\"\n[c]\ntype = \"local\"").expect("config");
        let error = |text: &str| Remote::open(text, &config).expect_err("wrong").to_string();
        assert!(error("nowhere:x").contains("nowhere"));
        assert!(error("a:x").contains("no `type`"));
        assert!(error("b:x").contains("tape") && error("b:x").contains("local"));
        assert!(Remote::open("c:/x", &config).is_ok());
    }

    #[test]
    fn a_remote_is_opened_once_and_their_number_is_bounded() {
        let remotes = Remotes::new(RemoteConfig::default());
        let first = remotes.open("/first").expect("opened");
        assert!(Arc::ptr_eq(&first, &remotes.open("/first").expect("opened")));
        for number in 0..OPEN_REMOTES_MAX {
            remotes.open(&format!("/{number}")).expect("opened");
        }
        assert_eq!(remotes.open.lock().expect("no panic").len(), OPEN_REMOTES_MAX);
        assert!(!Arc::ptr_eq(&first, &remotes.open("/first").expect("opened")));
    }
}
