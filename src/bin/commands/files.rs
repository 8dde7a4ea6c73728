//! Files to and from the file root of a worker.
//!
//! A transfer that is cut goes on where it stopped, as often as needed, until nothing has moved for `--timeout`. Its id is derived from what is moved, so
//! that the same command, run again later, goes on too.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nkcluster::ErrorCode;
use nkcluster::transfer::{FileCalls, Progress, RelPath, TransferId, Transferred};
use nkcluster::types::NodeId;
use serde_json::json;
use tokio::time::Instant;

use super::Session;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Form};

/// Pause before a cut transfer goes on.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Most files of one `send --recursive`, whose list is kept in memory.
const FILES_MAX: usize = 1_000_000;

/// Which way a file goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Send,
    Fetch,
}

/// One file on its way.
#[derive(Clone, Debug)]
struct Job {
    way: Way,
    node: NodeId,
    local: PathBuf,
    remote: RelPath,
}

pub(super) async fn send(session: &Session, node: &NodeId, local: &Path, remote: &str, recursive: bool) -> Outcome {
    if recursive {
        return send_tree(session, node, local, remote).await;
    }
    let remote = match remote.ends_with('/') {
        true => format!("{remote}{}", name_of(local)?),
        false => remote.to_owned(),
    };
    let job = Job { way: Way::Send, node: node.clone(), local: local.to_owned(), remote: RelPath::parse(&remote)? };
    let bar = bar(session.form, &job.remote);
    let sent = job.run(session, |progress| show(&bar, progress)).await?;
    bar.finish_and_clear();
    print(session, &job, &sent)
}

pub(super) async fn fetch(session: &Session, node: &NodeId, remote: &str, local: &Path) -> Outcome {
    let remote = RelPath::parse(remote)?;
    let local = if local.is_dir() { local.join(remote.name()) } else { local.to_owned() };
    let job = Job { way: Way::Fetch, node: node.clone(), local, remote };
    let bar = bar(session.form, &job.remote);
    let fetched = job.run(session, |progress| show(&bar, progress)).await?;
    bar.finish_and_clear();
    print(session, &job, &fetched)
}

fn print(session: &Session, job: &Job, file: &Transferred) -> Outcome {
    session.form.print(file, || {
        let target = match job.way {
            Way::Send => format!("{} of {}", job.remote, job.node),
            Way::Fetch => job.local.display().to_string(),
        };
        let resumed = match file.resumed_from {
            0 => String::new(),
            from => format!(", resumed at {}", output::bytes(from)),
        };
        format!("{target}: {}, xxh3 {}{resumed}", output::bytes(file.bytes), file.xxh3)
    })
}

/// Sends every regular file below a directory, some at once. The first failure ends it; run again, it sends what is missing.
async fn send_tree(session: &Session, node: &NodeId, local: &Path, remote: &str) -> Outcome {
    let root = local.to_owned();
    let files = tokio::task::spawn_blocking(move || files_below(&root)).await;
    let files = files.map_err(|error| Failure::new("internal", format!("the directory was not read: {error}")))??;
    let base = RelPath::parse(remote.trim_end_matches('/'))?;
    let total: u64 = files.iter().map(|file| file.bytes).sum();
    let bar = bar(session.form, &base);
    bar.set_length(total);
    let mut jobs = Vec::with_capacity(files.len());
    for file in &files {
        let remote = RelPath::parse(&format!("{base}/{}", file.path))?;
        jobs.push(Job { way: Way::Send, node: node.clone(), local: local.join(&file.path), remote });
    }
    let queue = Mutex::new(jobs.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let send_some = || async {
        let (mut files, mut bytes) = (0_u64, 0_u64);
        while let Some(job) = next() {
            let sent = job.run(session, |_| ()).await.map_err(|failure| failure.context(&job.remote))?;
            bar.inc(sent.bytes);
            files += 1;
            bytes += sent.bytes;
        }
        Ok::<_, Failure>((files, bytes))
    };
    // Four hide the round trips of small files; more would only share the same link.
    let sums = tokio::try_join!(send_some(), send_some(), send_some(), send_some())?;
    let (count, bytes) = [sums.0, sums.1, sums.2, sums.3].into_iter().fold((0, 0), |sum, some| (sum.0 + some.0, sum.1 + some.1));
    bar.finish_and_clear();
    session.form.print(&json!({ "files": count, "bytes": bytes }), || format!("{base} of {node}: {count} files, {}", output::bytes(bytes)))
}

/// A regular file, with its path below the directory.
struct FoundFile {
    path: String,
    bytes: u64,
}

fn files_below(root: &Path) -> Outcome<Vec<FoundFile>> {
    let unreadable = |path: &Path, error: &std::io::Error| Failure::new(ErrorCode::InvalidFile, format!("{}: {error}", path.display()));
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = std::fs::read_dir(&directory).map_err(|error| unreadable(&directory, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(&directory, &error))?;
            let path = entry.path();
            // Links are not followed: they may lead out, or in a circle.
            let metadata = entry.metadata().map_err(|error| unreadable(&path, &error))?;
            if metadata.is_dir() {
                directories.push(path);
            } else if metadata.is_file() {
                let below = path.strip_prefix(root).unwrap_or(&path);
                let text = below.to_str();
                let text = text.ok_or_else(|| Failure::new(ErrorCode::InvalidPath, format!("{}: is not UTF-8", path.display())))?;
                found.push(FoundFile { path: text.to_owned(), bytes: metadata.len() });
                if found.len() > FILES_MAX {
                    return Err(Failure::new(ErrorCode::NotAllowed, format!("{}: more than {FILES_MAX} files", root.display())));
                }
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn name_of(path: &Path) -> Outcome<&str> {
    let wrong = || Failure::new(ErrorCode::InvalidPath, format!("{}: has no name that a worker can use", path.display()));
    path.file_name().and_then(|name| name.to_str()).ok_or_else(wrong)
}

impl Job {
    /// Moves the file, through as many cuts as it takes.
    async fn run(&self, session: &Session, progress: impl Fn(Progress) + Sync + Send) -> Outcome<Transferred> {
        let id = self.id();
        let silence = Silence::starts_now(session.timeout);
        loop {
            let error = match self.attempt(session, id, &silence, &progress).await {
                Ok(file) => return Ok(file),
                Err(error) => error,
            };
            // A worker that was away from the start is told at once, as by every other command.
            let never_began = *error.code() == ErrorCode::NotConnected && !silence.was_broken();
            if never_began || !goes_on_after(error.code()) {
                return Err(error.into());
            }
            if silence.left() < RETRY_PAUSE {
                let timeout = humantime::format_duration(session.timeout);
                return Err(Failure::from(error).context(format_args!("nothing has moved for {timeout}; run it again, it goes on")));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn attempt(
        &self,
        session: &Session,
        id: TransferId,
        silence: &Silence,
        progress: &(impl Fn(Progress) + Sync),
    ) -> nkcluster::Result<Transferred> {
        let before = Mutex::new(None);
        let moved = |now: Progress| {
            // The first report says where this attempt begins; only what moves after it is progress.
            let before = before.lock().unwrap_or_else(PoisonError::into_inner).replace(now.offset);
            if before.is_some_and(|before| now.offset > before) {
                silence.ends();
            }
            progress(now);
        };
        let (cluster, left) = (&session.cluster, silence.left());
        match self.way {
            Way::Send => cluster.send_file(&self.node, &self.local, &self.remote, id, left, moved).await,
            Way::Fetch => cluster.fetch_file(&self.node, &self.remote, &self.local, id, left, moved).await,
        }
    }

    /// The same for the same file between the same places, so that a later command finds the temporary of this one.
    fn id(&self) -> TransferId {
        let local = std::path::absolute(&self.local).unwrap_or_else(|_| self.local.clone());
        let way = match self.way {
            Way::Send => "send",
            Way::Fetch => "fetch",
        };
        let local = local.as_os_str().as_encoded_bytes();
        TransferId::derived([way.as_bytes(), self.node.as_str().as_bytes(), local, self.remote.as_str().as_bytes()])
    }
}

/// Whether a transfer that failed like this may succeed when it goes on.
fn goes_on_after(code: &ErrorCode) -> bool {
    use ErrorCode::*;
    matches!(code, Busy | ConnectionFailed | NoConnections | NotConnected | OutcomeUnknown | ShuttingDown | WorkerFailed)
}

/// How long nothing has moved.
struct Silence {
    since: Mutex<Instant>,
    broken: AtomicBool,
    most: Duration,
}

impl Silence {
    fn starts_now(most: Duration) -> Self {
        Self { since: Mutex::new(Instant::now()), broken: AtomicBool::new(false), most }
    }

    fn ends(&self) {
        self.broken.store(true, Ordering::Relaxed);
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether anything has moved at all.
    fn was_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn left(&self) -> Duration {
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        (since + self.most).saturating_duration_since(Instant::now())
    }
}

fn bar(form: Form, name: &RelPath) -> ProgressBar {
    if form.is_json() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{msg} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style).with_message(name.to_string())
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.total);
    bar.set_position(progress.offset);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(remote: &str) -> Job {
        let remote = RelPath::parse(remote).expect("a path");
        Job { way: Way::Send, node: NodeId::new("w1").expect("a name"), local: "a".into(), remote }
    }

    #[test]
    fn the_same_transfer_has_the_same_id() {
        assert_eq!(job("x").id(), job("x").id());
        assert_ne!(job("x").id(), job("y").id());
        assert_ne!(job("x").id(), Job { way: Way::Fetch, ..job("x") }.id());
    }

    #[test]
    fn only_regular_files_of_a_tree_are_sent() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("sub")).expect("made");
        std::fs::write(dir.path().join("sub/b"), b"22").expect("written");
        std::fs::write(dir.path().join("a"), b"1").expect("written");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).expect("linked");
        let found = files_below(dir.path()).expect("read");
        let found: Vec<_> = found.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
        assert_eq!(found, [("a", 1), ("sub/b", 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_ends_silence() {
        let silence = Silence::starts_now(Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(silence.left(), Duration::from_secs(1));
        assert!(!silence.was_broken());
        silence.ends();
        assert!(silence.was_broken());
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(silence.left(), Duration::from_secs(1));
    }
}
