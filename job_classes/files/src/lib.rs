//! Job class `files`: work on the files below a worker's file root.
//!
//! Nothing outside of the root can be named or reached, and links are never followed by what walks. Everything is bounded: a listing has pages, a walk holds
//! a bounded number of names whatever the size of a directory, and reading and hashing run on the blocking pool, a step at a time.
//!
//! | verb | JSON | answer |
//! |---|---|---|
//! | request | `{"stat":{"path":"a/b"}}` | `{"size","mtime_ms","kind"}` |
//! | request | `{"list":{"path":"a","after":"x","limit":100}}` | `{"entries":[{"name","kind","size","mtime_ms"}],"next":NAME or null}` |
//! | task | `{"hash":{"path":"a"}}` | first `{"path"}`, then events, see [`Event`] |
//! | command | `"progress"`, `"pause"`, `"resume"`, `"cancel"` | `{"files","bytes","paused"}` |
//!
//! Paths are relative to the file root; `.` or an empty path is the root itself. A name that is not UTF-8 is shown with replacement characters, and its bytes
//! stand beside it in hexadecimal as `raw`, which is absent otherwise: so such a name is neither skipped nor mistaken for another.
//!
//! The value is registered on workers and, for those who want its events handled, on control nodes:
//!
//! ```
//! let classes = nkcluster::job::Classes::new().with_tasks(nkcluster_files::Files::default());
//! # let _ = classes;
//! ```

mod api;
mod hash;
mod look;
mod page;
mod walk;

use std::path::Path;
use std::sync::Arc;

use nkcluster::job::{CommandContext, JobClass, RequestContext, Started, TaskClass, TaskContext};
use nkcluster::transfer::{FileRoot, RelPath};
use nkcluster::types::NodeStatus;
use nkcluster::{Error, ErrorCode, Result};
use tokio::sync::Semaphore;

pub use crate::api::{Accepted, Command, Entry, Event, Kind, LIST_MAX, Listing, Progress, Reply, Request, Spec, Stat};
pub use crate::hash::HashTask;

/// Hash tasks of one worker at once. More are refused as `busy`: they would only wait for the same disk.
pub const TASKS_MAX: usize = 64;

/// The class. One value serves a whole process.
#[derive(Clone, Debug)]
pub struct Files {
    tasks: Arc<Semaphore>,
    /// Steps on the blocking pool, so that 64 tasks leave threads to everybody else.
    steps: Arc<Semaphore>,
}

impl Default for Files {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { tasks: Arc::new(Semaphore::new(TASKS_MAX)), steps: Arc::new(Semaphore::new(processors)) }
    }
}

impl JobClass for Files {
    const NAME: &'static str = "files";
    type Request = Request;
    type Reply = Reply;

    async fn request(&self, ctx: RequestContext, request: Request) -> Result<Reply> {
        let root = ctx.file_root().to_owned();
        blocking(move || {
            let root = FileRoot::open(root)?;
            match request {
                Request::Stat { path } => look::stat(&root, &path).map(Reply::Stat),
                Request::List { path, after, limit } => look::list(&root, &path, after.as_deref(), limit).map(Reply::List),
            }
        })
        .await
    }
}

impl TaskClass for Files {
    type Spec = Spec;
    type Accepted = Accepted;
    type Command = Command;
    type Answer = Progress;
    type Event = Event;
    type Task = HashTask;

    async fn task(&self, ctx: TaskContext<Self>, spec: Spec) -> Result<Started<Self>> {
        let Spec::Hash { path } = spec;
        let Ok(place) = Arc::clone(&self.tasks).try_acquire_owned() else {
            return Err(Error::new(
                ErrorCode::Busy,
                format!("{TASKS_MAX} hash tasks run on this worker already, the most it takes; try again"),
            ));
        };
        let root = ctx.file_root().to_owned();
        let (path, walk) = blocking(move || open_walk(&root, &path)).await?;
        let (task, job) = HashTask::new(walk, Arc::clone(&self.steps));
        let run = async move {
            let _place = place;
            job.run(ctx).await
        };
        Ok(Started::future(task, run).with_reply(Accepted { path }))
    }

    async fn command(&self, _: CommandContext<Self>, task: &HashTask, command: Command) -> Result<Progress> {
        Ok(task.command(command))
    }

    async fn status(&self, task: &HashTask, status: NodeStatus) {
        if status == NodeStatus::Stopping {
            task.command(Command::Cancel);
        }
    }
}

fn open_walk(root: &Path, path: &str) -> Result<(String, walk::Walk)> {
    let root = FileRoot::open(root)?;
    let path = below(path)?;
    let walk = match &path {
        Some(file) if root.metadata(path.as_ref())?.is_file() => walk::Walk::of_file(root.open_file(file)?, file.name()),
        _ => walk::Walk::of_directory(root.open_dir(path.as_ref())?),
    };
    Ok((path.map_or_else(|| ".".to_owned(), |path| path.to_string()), walk))
}

/// A path that may name a directory, and so end with `/`; none is the root itself.
fn below(text: &str) -> Result<Option<RelPath>> {
    if text.starts_with('/') {
        return RelPath::parse(text).map(Some);
    }
    let mut rest = text;
    while let Some(shorter) = rest.strip_suffix('/').or_else(|| rest.strip_suffix("/.")) {
        rest = shorter;
    }
    if rest.is_empty() || rest == "." { Ok(None) } else { RelPath::parse(rest).map(Some) }
}

/// Runs file I/O where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| match error.is_panic() {
        true => Error::new(ErrorCode::HandlerPanicked, "the class `files` panicked while it read files; the worker goes on"),
        false => Error::new(ErrorCode::ShuttingDown, "the worker is stopping"),
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_may_be_written_in_every_harmless_way() {
        for root in ["", ".", "./", "./."] {
            assert_eq!(below(root).expect(root), None, "{root:?}");
        }
        for text in ["a/b", "a/b/", "./a//b/.", "a/b//"] {
            assert_eq!(below(text).expect(text).expect("not the root").as_str(), "a/b", "{text:?}");
        }
        for text in ["/", "/a", "//", "..", "a/..", "../", "a/../b/", "./.."] {
            assert_eq!(below(text).expect_err(text).code(), &ErrorCode::InvalidPath, "{text:?}");
        }
    }
}
