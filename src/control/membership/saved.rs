//! What membership keeps over a restart: `members.json` in the state directory.
//!
//! It is written as a whole beside the old one and renamed, so that there is always one of them; a file that cannot be read is told and begun anew, since a
//! node that does not start helps nobody: it finds the others by its configuration. What cannot be written, as the disk is full, is tried again.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::machine::Saved;

/// Its name in the state directory.
const NAME: &str = "members.json";
/// Largest file that is read.
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Pause before a list that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Reads what an earlier life of this node has written.
pub(super) fn read(state_dir: &Path) -> Saved {
    let path = state_dir.join(NAME);
    let read = fs::metadata(&path).and_then(|facts| match facts.len() {
        0..=BYTES_MAX => fs::read(&path),
        bytes => Err(io::Error::other(format!("it has {bytes} bytes"))),
    });
    match read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other)) {
        Ok(saved) => saved,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Saved::default(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the list of members cannot be read; it is begun anew");
            Saved::default()
        }
    }
}

fn write(path: &Path, saved: &Saved) -> io::Result<()> {
    let new = path.with_extension("json.new");
    write_to(&new, saved).and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // On a full disk every byte counts; it may not be there.
        let _ = fs::remove_file(&new);
    })
}

fn write_to(path: &Path, saved: &Saved) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(saved).map_err(io::Error::other)?;
    let mut file = fs::File::create(path)?;
    io::Write::write_all(&mut file, &bytes)?;
    file.sync_all()
}

/// Writes the newest list, one after the other.
pub(super) struct Writer {
    newest: watch::Sender<Option<Saved>>,
    task: JoinHandle<()>,
}

impl Writer {
    pub(super) fn new(state_dir: &Path) -> Self {
        let (newest, changed) = watch::channel(None::<Saved>);
        let task = tokio::spawn(write_all(state_dir.join(NAME), changed));
        Self { newest, task }
    }

    pub(super) fn write(&self, saved: Saved) {
        self.newest.send_replace(Some(saved));
    }

    /// Waits until the last list is written.
    pub(super) async fn finish(self) {
        drop(self.newest);
        // It ends with its channel; one that panicked has written what it could.
        let _ = self.task.await;
    }
}

async fn write_all(path: PathBuf, mut lists: watch::Receiver<Option<Saved>>) {
    let mut has_failed = false;
    loop {
        let next = match has_failed {
            true => tokio::time::timeout(AGAIN, lists.changed()).await.unwrap_or(Ok(())),
            false => lists.changed().await,
        };
        if next.is_err() {
            return;
        }
        let Some(saved) = lists.borrow_and_update().clone() else { continue };
        let to = path.clone();
        let Ok(written) = tokio::task::spawn_blocking(move || write(&to, &saved)).await else { continue };
        let had_failed = std::mem::replace(&mut has_failed, written.is_err());
        let path = path.display();
        match written {
            Ok(()) if had_failed => tracing::info!(%path, "the list of members is written again"),
            // Once: the disk may be full for days.
            Err(error) if !had_failed => {
                tracing::warn!(%path, %error, "the list of members cannot be written; after a restart the node knows its configuration only");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    #[tokio::test]
    async fn the_last_list_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let writer = Writer::new(dir.path());
        for generation in 1..=3 {
            let members = [(NodeId::new("c2").expect("valid"), vec!["nkcluster://c2;transport=memory".parse().expect("valid")])];
            writer.write(Saved { generation, joined: true, members: members.into(), forgotten: Vec::new() });
        }
        writer.finish().await;
        let saved = read(dir.path());
        assert_eq!((saved.generation, saved.joined, saved.members.len()), (3, true, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_could_not_be_written_is_tried_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let state_dir = dir.path().join("later");
        let writer = Writer::new(&state_dir);
        writer.write(Saved { generation: 7, ..Saved::default() });
        // The virtual clock goes on while nothing else can be done.
        tokio::time::sleep(AGAIN * 2).await;
        assert_eq!(read(&state_dir), Saved::default());
        fs::create_dir(&state_dir).expect("made");
        while read(&state_dir).generation != 7 {
            tokio::time::sleep(AGAIN).await;
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(NAME), b"{ nonsense").expect("writes");
        assert_eq!(read(dir.path()), Saved::default());
    }
}
