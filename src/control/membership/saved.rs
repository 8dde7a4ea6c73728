//! What membership keeps over a restart: `members.json` in the state directory.
//!
//! It is written as a whole beside the old one and renamed, so that there is always one of them; a file that cannot be read is told and begun anew, since a
//! node that does not start helps nobody: it finds the others by its configuration.

use std::path::{Path, PathBuf};
use std::{fs, io};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::machine::Saved;

/// Its name in the state directory.
const NAME: &str = "members.json";
/// Largest file that is read.
const BYTES_MAX: u64 = 4 * 1024 * 1024;

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
    let bytes = serde_json::to_vec_pretty(saved).map_err(io::Error::other)?;
    let mut file = fs::File::create(&new)?;
    io::Write::write_all(&mut file, &bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Writes the newest list, one after the other.
pub(super) struct Writer {
    newest: watch::Sender<Option<Saved>>,
    task: JoinHandle<()>,
}

impl Writer {
    pub(super) fn new(state_dir: &Path) -> Self {
        let (newest, mut changed) = watch::channel(None::<Saved>);
        let path: PathBuf = state_dir.join(NAME);
        let task = tokio::spawn(async move {
            while changed.changed().await.is_ok() {
                let Some(saved) = changed.borrow_and_update().clone() else { continue };
                let path = path.clone();
                let written = tokio::task::spawn_blocking(move || write(&path, &saved).map_err(|error| (path, error))).await;
                if let Ok(Err((path, error))) = written {
                    tracing::warn!(path = %path.display(), %error, "the list of members cannot be written; after a restart the node knows its configuration only");
                }
            }
        });
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

    #[test]
    fn a_file_that_cannot_be_read_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(NAME), b"{ nonsense").expect("writes");
        assert_eq!(read(dir.path()), Saved::default());
    }
}
