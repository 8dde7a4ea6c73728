//! Where a run takes place: its remotes opened, and found to be of use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt as _;

use super::narrow::OneFile;
use super::order::Order;
use super::tries::End;
use crate::entry::EntryKind;
use crate::filter::Filter;
use crate::listing::retried;
use crate::options::Options;
use crate::path::EntryPath;
use crate::plan::{Location, Relation, Root, Task, relation};
use crate::remote::local::folding::folds_names;
use crate::remote::{Remote, RemoteSpec, Remotes};
use crate::storage::{ErrorKind, Storage};

/// Looks at what a source is, while the storage is overloaded.
const STAT_TRIES: u32 = 4;

/// The trees of a run.
pub(super) struct Places {
    pub(super) task: Task,
    pub(super) source: Option<Root>,
    pub(super) destination: Root,
    pub(super) backup_fs: Option<String>,
    /// Whether the destination takes names for the same that differ by case.
    pub(super) folds_names: bool,
}

/// Why a run cannot begin.
pub(super) struct Refused {
    pub(super) end: End,
    pub(super) what: String,
}

impl Refused {
    pub(super) fn failed(what: impl Into<String>) -> Self {
        Self { end: End::Failed, what: what.into() }
    }
}

impl Places {
    pub(super) async fn open(
        order: &Order,
        options: &Options,
        filter: &Filter,
        remotes: &Remotes,
        excluded: Option<&str>,
    ) -> Result<Self, Refused> {
        let open = |text: &str| remotes.open(text).map_err(|error| Refused::failed(error.to_string()));
        let excluded = excluded.map(&open).transpose()?;
        let destination = open(&order.destination)?;
        let backup = options.backup_dir.as_deref().map(&open).transpose()?;
        let mut place = Root { fs: destination.portable(), storage: destination.storage().clone(), excluded: Vec::new() };
        place.excluded.extend(within(excluded.as_deref(), &destination));
        place.excluded.extend(within(backup.as_deref(), &destination));
        let source = match order.kind {
            Task::Delete => {
                let (target, file) = Self::source(&order.destination, remotes).await?;
                if let Some(file) = file {
                    place.fs = target.portable();
                    place.storage = OneFile::source(target.storage().clone(), file);
                }
                exists(&*place.storage).await?;
                None
            }
            _ => {
                let text = viewed(&order.source, options)?;
                let (source, file) = Self::source(&text, remotes).await?;
                let (from, to) = (location(&source), location(&destination));
                let kept = backup.as_deref().map(location);
                let mut from_place = Root { fs: source.portable(), storage: source.storage().clone(), excluded: Vec::new() };
                match file {
                    Some(file) => {
                        from_place.storage = OneFile::source(from_place.storage, file.clone());
                        place.storage = OneFile::destination(place.storage, file);
                        if relation(&from, &to) == Relation::Same {
                            return Err(Refused::failed("source and destination are the same file"));
                        }
                        if kept.is_some_and(|kept| relation(&kept, &to) == Relation::Same) && options.suffix.is_none() {
                            return Err(Refused::failed("--backup-dir is where the file already is; give another one, or a --suffix"));
                        }
                    }
                    None => {
                        order.kind.check_overlap(&from, &to, kept.as_ref(), filter).map_err(|error| Refused::failed(error.to_string()))?
                    }
                }
                from_place.excluded.extend(within(excluded.as_deref(), &source));
                let is_empty = exists(&*from_place.storage).await?;
                if is_empty && order.kind == Task::Sync && is_below_bucket(&source) {
                    let what = format!(
                        "there is nothing at {source}, which an object store cannot tell from a name that does not exist; a sync would delete everything"
                    );
                    return Err(Refused { end: End::SourceMissing, what });
                }
                Some(from_place)
            }
        };
        let folds_names = match destination.local_path().filter(|_| !options.dry_run && order.kind != Task::Delete) {
            // A process that ends needs no answer.
            Some(path) => tokio::task::spawn_blocking(move || folds_names(&path)).await.unwrap_or(false),
            None => false,
        };
        Ok(Self { task: order.kind, source, destination: place, backup_fs: backup.map(|backup| backup.portable()), folds_names })
    }

    /// The source, and the name of the one file if it is no directory; then the remote is that of the directory above.
    async fn source(text: &str, remotes: &Remotes) -> Result<(Arc<Remote>, Option<EntryPath>), Refused> {
        let open = |text: &str| remotes.open(text).map_err(|error| Refused::failed(error.to_string()));
        let source = open(text)?;
        let Some((above, file)) = above(&source.portable()) else { return Ok((source, None)) };
        let above = open(&above)?;
        match retried(STAT_TRIES, || above.storage().stat(&file)).await {
            Ok(Some(entry)) if entry.kind == EntryKind::File => Ok((above, Some(file))),
            // Unless something is below it, an object that cannot be looked at would be an empty directory.
            Err(error)
                if !above.storage().abilities().has_directories
                    && !matches!(source.storage().list(&EntryPath::root()).next().await, Some(Ok(_))) =>
            {
                let end = if error.kind.is_temporary() { End::Temporary } else { End::Failed };
                Err(Refused { end, what: error.what })
            }
            // Whatever is wrong with it, its listing will say.
            _ => Ok((source, None)),
        }
    }

    /// The remotes that a run changes.
    pub(super) fn changed(&self) -> Vec<String> {
        let mut changed = vec![self.destination.fs.clone()];
        changed.extend(self.source.as_ref().filter(|_| self.task == Task::Move).map(|source| source.fs.clone()));
        changed.extend(self.backup_fs.clone());
        changed.dedup();
        changed
    }
}

/// Refuses what does not exist before anything is made or tried again; whether there is nothing in it.
async fn exists(storage: &dyn Storage) -> Result<bool, Refused> {
    match storage.list(&EntryPath::root()).next().await {
        Some(Err(error)) if error.kind == ErrorKind::NotFound => Err(Refused { end: End::SourceMissing, what: error.what }),
        // Whatever else is wrong, its listing will say.
        first => Ok(first.is_none()),
    }
}

/// Whether it is a part of a bucket, of which nobody can say that it is there and empty.
fn is_below_bucket(remote: &Remote) -> bool {
    let is_part = RemoteSpec::parse(&remote.portable()).is_ok_and(|spec| spec.path.trim_matches('/').contains('/'));
    is_part && !remote.storage().abilities().has_directories
}

/// The source as the options want links to be seen.
fn viewed(text: &str, options: &Options) -> Result<String, Refused> {
    if !options.copy_links {
        return Ok(text.to_owned());
    }
    let mut spec = RemoteSpec::parse(text).map_err(|error| Refused::failed(error.to_string()))?;
    spec.settings.insert("copy_links".to_owned(), "true".to_owned());
    Ok(spec.to_text())
}

/// The remote of the directory above, and the last component.
fn above(text: &str) -> Option<(String, EntryPath)> {
    let mut spec = RemoteSpec::parse(text).ok()?;
    let path = spec.path.trim_end_matches('/').to_owned();
    let (above, name) = path.rsplit_once('/')?;
    let file = EntryPath::parse(name).ok().filter(|file| !file.is_root())?;
    spec.path = if above.is_empty() { "/".to_owned() } else { above.to_owned() };
    Some((spec.to_text(), file))
}

/// Where `inner` is below `outer`, if it is.
fn within(inner: Option<&Remote>, outer: &Remote) -> Option<EntryPath> {
    match relation(&location(inner?), &location(outer)) {
        Relation::Inside(path) => Some(path),
        _ => None,
    }
}

/// Where a remote is, for comparing it with others.
pub(super) fn location(remote: &Remote) -> Location {
    let root = |path: &str| EntryPath::parse(path.trim_matches('/')).unwrap_or_default();
    match remote.local_path() {
        Some(path) => Location { storage: "disk".to_owned(), root: root(&resolved(&path).to_string_lossy()) },
        None => match RemoteSpec::parse(&remote.portable()) {
            Ok(mut spec) => {
                let path = std::mem::take(&mut spec.path);
                Location { storage: spec.to_text(), root: root(&path) }
            }
            Err(_) => Location { storage: remote.portable(), root: EntryPath::root() },
        },
    }
}

/// The path with links followed, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let mut existing = path.to_owned();
    let mut rest = Vec::new();
    loop {
        if let Ok(found) = existing.canonicalize() {
            return rest.iter().rev().fold(found, |path, name| path.join(name));
        }
        match (existing.file_name().map(ToOwned::to_owned), existing.parent().map(ToOwned::to_owned)) {
            (Some(name), Some(parent)) => {
                rest.push(name);
                existing = parent;
            }
            _ => return path.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_above_keeps_what_else_the_remote_says() {
        assert_eq!(above("/a/b"), Some(("/a".to_owned(), EntryPath::parse("b").expect("a path"))));
        assert_eq!(above("/a"), Some(("/".to_owned(), EntryPath::parse("a").expect("a path"))));
        let (text, file) = above(":s3,endpoint=\"http://x:1\":bucket/dir/file").expect("there is one");
        assert_eq!((text.as_str(), file.as_str()), (":s3,endpoint=\"http://x:1\":bucket/dir", "file"));
        assert_eq!(above("name:bucket"), None);
    }

    #[test]
    fn a_path_that_does_not_exist_yet_is_resolved_as_far_as_it_does() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("real")).expect("made");
        std::os::unix::fs::symlink("real", dir.path().join("link")).expect("made");
        let real = dir.path().join("real").canonicalize().expect("it exists");
        assert_eq!(resolved(&dir.path().join("link/new/deep")), real.join("new/deep"));
    }
}
