//! A queue in a directory that all nodes see.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustix::fs::{CWD, RenameFlags};

use super::{Content, Honours, LISTED_MAX, Listed, QueueStore, StoreError, marker_of};

/// Where files stand until they are whole; below the root, so on the same file system.
const STAGING: &str = "queue/.staging";

/// A queue in a directory.
#[derive(Clone, Debug)]
pub struct LocalStore {
    root: Arc<Path>,
    honours: Honours,
}

impl LocalStore {
    /// Opens a directory and tries what it honours.
    ///
    /// # Errors
    /// If it cannot be made or written.
    pub async fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let mut store = Self::for_reading(root);
        let probed = store.clone();
        store.honours = store.blocking(move |_| probed.probe()).await?;
        Ok(store)
    }

    /// One that is only read, of which nothing is tried; a directory that is not there is not made.
    pub(crate) fn for_reading(root: impl Into<PathBuf>) -> Self {
        let root: PathBuf = root.into();
        Self { root: root.into(), honours: Honours { creates_once: false, renames: false } }
    }

    /// Creates one file twice, and renames one file onto another. A network file system may lack either.
    fn probe(&self) -> Result<Honours, StoreError> {
        let [first, second] = [format!("{STAGING}/probe-{}", unique()), format!("{STAGING}/probe-{}", unique())];
        let created = (|| {
            let is_first = self.create_now(&first, b"1")?;
            let is_second = self.create_now(&first, b"2")?;
            Ok::<_, StoreError>(is_first && !is_second)
        })();
        self.create_staging()?;
        let renamed = (|| {
            self.replace_now(&first, b"1")?;
            self.replace_now(&second, b"2")?;
            let over = self.rename_now(&first, &second)?;
            self.delete_now(&second)?;
            let free = self.rename_now(&first, &second)?;
            let gone = self.rename_now(&first, &second)?;
            Ok::<_, StoreError>(!over && free && !gone)
        })();
        for path in [&first, &second] {
            self.delete_now(path)?;
        }
        Ok(Honours { creates_once: created.unwrap_or(false), renames: renamed.unwrap_or(false) })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn create_staging(&self) -> Result<(), StoreError> {
        let staging = self.path(STAGING);
        fs::create_dir_all(&staging).map_err(|error| failed("make", &staging, &error))
    }

    /// A file with this content and a name that nobody else has.
    fn stage(&self, content: &[u8]) -> Result<PathBuf, StoreError> {
        let path = self.path(&format!("{STAGING}/{}", unique()));
        let write = || {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
            file.write_all(content)?;
            // A name must not outlive its content when the machine fails: an empty batch would be taken for a broken one.
            file.sync_data()
        };
        let written = match write() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create_staging()?;
                write()
            }
            written => written,
        };
        written.map_err(|error| {
            let _ = fs::remove_file(&path);
            failed("write", &path, &error)
        })?;
        Ok(path)
    }

    fn create_now(&self, path: &str, content: &[u8]) -> Result<bool, StoreError> {
        let (staged, path) = (self.stage(content)?, self.path(path));
        let linked = with_directory(&path, || fs::hard_link(&staged, &path));
        let created = match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            // No hard links there: a rename that replaces nothing decides as well.
            Err(_) => match rename_to_free(&staged, &path) {
                Ok(true) => return Ok(true),
                Ok(false) => Ok(false),
                Err(error) => {
                    let _ = fs::remove_file(&staged);
                    return Err(failed("create", &path, &error));
                }
            },
        };
        fs::remove_file(&staged).map_err(|error| failed("remove", &staged, &error))?;
        created
    }

    fn replace_now(&self, path: &str, content: &[u8]) -> Result<(), StoreError> {
        let (staged, path) = (self.stage(content)?, self.path(path));
        with_directory(&path, || fs::rename(&staged, &path)).map_err(|error| {
            let _ = fs::remove_file(&staged);
            failed("write", &path, &error)
        })
    }

    fn rename_now(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        let (from, to) = (self.path(from), self.path(to));
        match rename_to_free(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            renamed => renamed.map_err(|error| failed("rename", &from, &error)),
        }
    }

    fn delete_now(&self, path: &str) -> Result<(), StoreError> {
        let path = self.path(path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("delete", &path, &error)),
            _ => Ok(()),
        }
    }

    fn list_now(&self, directory: &str) -> Result<Vec<Listed>, StoreError> {
        let directory = self.path(directory);
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| failed("list", &directory, &error))?,
        };
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("list", &directory, &error))?;
            // A file that went away meanwhile is not there; a name that is no text is nobody's of ours.
            let (Ok(about), Ok(name)) = (entry.metadata(), entry.file_name().into_string()) else { continue };
            if about.is_file() {
                let marker = marker_of(&(about.ino(), about.size(), about.mtime(), about.mtime_nsec()));
                listed.push(Listed { name, marker });
            }
        }
        listed.sort_unstable();
        listed.truncate(LISTED_MAX);
        Ok(listed)
    }

    fn read_now(&self, path: &str, bytes_max: u64) -> Result<Content, StoreError> {
        let path = self.path(path);
        let read = || {
            let mut content = Vec::new();
            fs::File::open(&path)?.take(bytes_max + 1).read_to_end(&mut content)?;
            Ok(content)
        };
        match read() {
            Ok(content) if content.len() as u64 > bytes_max => Ok(Content::TooLong),
            Ok(content) => Ok(Content::Bytes(content.into())),
            Err(error) if error_is_missing(&error) => Ok(Content::Missing),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// A file system may block for as long as it likes, a runtime may not.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|error| Err(StoreError::new(false, format!("the work on a file was given up: {error}"))))
    }
}

impl QueueStore for LocalStore {
    fn honours(&self) -> Honours {
        self.honours
    }

    fn list<'a>(&'a self, directory: &'a str) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        let directory = directory.to_owned();
        Box::pin(self.blocking(move |store| store.list_now(&directory)))
    }

    fn read<'a>(&'a self, path: &'a str, bytes_max: u64) -> BoxFuture<'a, Result<Content, StoreError>> {
        let path = path.to_owned();
        Box::pin(self.blocking(move |store| store.read_now(&path, bytes_max)))
    }

    fn create<'a>(&'a self, path: &'a str, content: Bytes) -> BoxFuture<'a, Result<bool, StoreError>> {
        let path = path.to_owned();
        Box::pin(self.blocking(move |store| store.create_now(&path, &content)))
    }

    fn replace<'a>(&'a self, path: &'a str, content: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        let path = path.to_owned();
        Box::pin(self.blocking(move |store| store.replace_now(&path, &content)))
    }

    fn rename<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<bool, StoreError>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        Box::pin(self.blocking(move |store| store.rename_now(&from, &to)))
    }

    fn delete<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        let path = path.to_owned();
        Box::pin(self.blocking(move |store| store.delete_now(&path)))
    }
}

/// Renames by path onto a name that must be free; false if it is not.
fn rename_to_free(from: &Path, to: &Path) -> io::Result<bool> {
    let rename = || match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some network file systems have no such flag. A link is as exclusive; what is renamed here has one link only, so its first name goes away after it.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::hard_link(from, to).and_then(|()| fs::remove_file(from)),
        renamed => renamed.map_err(io::Error::from),
    };
    match with_directory(to, rename) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Does something with a path, and again with its directory made, if something was missing.
fn with_directory<T>(path: &Path, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match (work(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            // Somebody else may have made it since: that is no reason to give up.
            if !parent.is_dir() {
                fs::create_dir_all(parent)?;
            }
            work()
        }
        (done, _) => done,
    }
}

fn error_is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn failed(what: &str, path: &Path, error: &io::Error) -> StoreError {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, Unsupported};
    let is_temporary = !matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | Unsupported);
    StoreError::new(is_temporary, format!("cannot {what} {}: {error}", path.display()))
}

fn unique() -> String {
    format!("{:032x}", rand::random::<u128>())
}
