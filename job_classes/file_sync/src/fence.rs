//! Keeps an attempt that was given up from changing anything.
//!
//! A worker may stop for minutes, in the middle of a system call even, and go on after its batch was given to another one. What it does then must
//! have no effect: it must not write over what has been written since, nor remove what is new. So every effect needs something that can be taken away
//! from outside.
//!
//! **Local file systems.** An attempt has one directory, `.nkcluster-<run>/<batch>.<attempt>/` below the root of each tree that it changes. It is
//! made once, at the claim, and never again. Every effect is a rename out of it or into it, *by path*:
//!
//! ```text
//!   write     <dir>/file-7       ──rename──►  tree/name
//!   mkdir     <dir>/directory-8  ──rename──►  tree/directory
//!   remove    tree/name          ──rename──►  <dir>/gone-9-<what it must be>, a look, unlink
//!   move      <dir>/same-10 (a second link)  ──rename──►  tree/other, and then as remove
//! ```
//!
//! [`revoke`] renames the directory, empties it and removes it; from then on each of these renames fails. By path, since a rename through a
//! descriptor of the directory would succeed even after the directory itself was renamed. A claim that was not made yet finds a file where its
//! directory should be and fails as well, whichever of both comes first. Only on another file system that is mounted below the root nothing can be
//! renamed to; there a look at the directory comes just before the effect.
//!
//! **Object stores.** Every effect carries what the plan saw ([`Planned`](crate::Planned)) as its condition, and the store decides: `If-None-Match`,
//! `If-Match`.
//!
//! Where neither works, a look comes just before the effect, and [`Fence::strength`] says so: whoever revokes then waits as long as an operation may
//! take.

mod directory;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::attempt::{Attempt, RunId};
use crate::operation::Operation;
use crate::remote::local::blocking;
use crate::remote::local::open::RootIdentity;
use crate::remote::local::staging::StagingDirectory;
use crate::remote::{Access, Remote, RemoteError, Remotes};
use crate::storage::{ErrorKind, StorageError};

/// How well a [`Fence`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceStrength {
    /// Only a look just before each effect. Whoever revokes waits as long as an operation may take before the batch is offered again.
    Advisory,
    /// The storage decides on each write by what the plan saw; before each remove there is only a look. As good as [`Conditional`](Self::Conditional)
    /// for a batch that removes nothing.
    ConditionalWrites,
    /// The storage decides on each effect by what the plan saw.
    Conditional,
    /// Nothing of a revoked attempt takes effect.
    Staged,
}

/// What an attempt needs for its effects.
#[derive(Debug)]
pub struct Fence {
    attempt: Option<Attempt>,
    /// By the text of the remote, as it stands in the operations.
    staging: BTreeMap<String, Arc<StagingDirectory>>,
    strength: FenceStrength,
    is_void: AtomicBool,
}

/// Why an attempt cannot be claimed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// It was revoked before, or the run is over: its operations must not be carried out.
    #[error("the attempt {0} was revoked, or its run is over")]
    Revoked(Attempt),
    /// A remote cannot be opened.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Fence {
    /// For work inside one process, where no other attempt can be.
    pub fn unfenced() -> Self {
        Self { attempt: None, staging: BTreeMap::new(), strength: FenceStrength::Advisory, is_void: AtomicBool::new(false) }
    }

    /// Makes what an attempt needs on each of the remotes that its operations [change](changed_remotes). It is called once, at the claim of the
    /// batch, and never again for the same attempt: another process that goes on with it is another attempt.
    ///
    /// # Errors
    /// If the attempt was revoked already, the run is over or not [prepared](prepare), or a remote fails. What was made stays until the attempt is
    /// revoked, or the run ends.
    pub async fn claim(attempt: Attempt, remotes: &Remotes, changed: impl IntoIterator<Item = &str>) -> Result<Self, ClaimError> {
        let mut fence = Self { attempt: Some(attempt), strength: FenceStrength::Staged, ..Self::unfenced() };
        // By what the directories are, as two texts may name one.
        let mut claimed: Vec<(RootIdentity, Arc<StagingDirectory>)> = Vec::new();
        for text in changed {
            let remote = remotes.open(text)?;
            fence.strength = fence.strength.min(strength(&remote).await?);
            let Access::Local(tree) = remote.access() else { continue };
            let tree = tree.clone();
            let (root, identity) = blocking(move || tree.open().and_then(|root| root.identity().map(|identity| (root, identity)))).await?;
            let before = claimed.iter().find(|(known, _)| *known == identity).map(|(_, staging)| staging.clone());
            let staging = match before {
                Some(staging) => staging,
                None => {
                    let path = directory::path_of(attempt);
                    let made = blocking(move || directory::claim(&root, &path).map(|()| path)).await;
                    let path = made.map_err(|error| match error.kind {
                        ErrorKind::Revoked => ClaimError::Revoked(attempt),
                        _ => ClaimError::Storage(error),
                    })?;
                    let staging = Arc::new(StagingDirectory::new(path));
                    claimed.push((identity, staging.clone()));
                    staging
                }
            };
            fence.staging.insert(text.to_owned(), staging);
        }
        Ok(fence)
    }

    /// The attempt; none outside of a queue.
    pub fn attempt(&self) -> Option<Attempt> {
        self.attempt
    }

    /// How well it holds, on the weakest of its remotes.
    pub fn strength(&self) -> FenceStrength {
        self.strength
    }

    /// Says that the attempt was lost, as its worker has learnt. No further effect is begun.
    pub fn void(&self) {
        self.is_void.store(true, Ordering::Relaxed);
    }

    /// Whether it was lost.
    pub fn is_void(&self) -> bool {
        self.is_void.load(Ordering::Relaxed)
    }

    /// Removes what the claim has made, after the last operation. The result of the batch may be written before or after.
    ///
    /// # Errors
    /// If a storage fails; the directories are then left to the end of the run.
    pub async fn release(&self, remotes: &Remotes) -> Result<(), StorageError> {
        let Some(attempt) = self.attempt else { return Ok(()) };
        for text in self.staging.keys() {
            let remote = remotes.open(text).map_err(|error| StorageError::new(ErrorKind::Failed, error.to_string()))?;
            revoke(&remote, attempt).await?;
        }
        Ok(())
    }

    pub(crate) fn staging(&self, text: &str) -> Option<&Arc<StagingDirectory>> {
        self.staging.get(text)
    }
}

/// The remotes that operations change, each once: the destinations, and the sources of moves.
pub fn changed_remotes<'a>(operations: impl IntoIterator<Item = &'a Operation>) -> Vec<&'a str> {
    let mut texts: Vec<&str> = Vec::new();
    let mut add = |text: &'a str| {
        if !texts.contains(&text) {
            texts.push(text);
        }
    };
    for operation in operations {
        match operation {
            Operation::CopyFile { dst_fs, .. } => add(dst_fs),
            Operation::MoveFile { src_fs, dst_fs, .. } => {
                add(dst_fs);
                add(src_fs);
            }
            Operation::DeleteFile { fs, .. } => add(fs),
        }
    }
    texts
}

/// How well a fence holds on a remote.
///
/// # Errors
/// If the storage fails while it is asked what it honours.
pub async fn strength(remote: &Remote) -> Result<FenceStrength, StorageError> {
    match remote.access() {
        Access::Local(_) => Ok(FenceStrength::Staged),
        Access::Object(access) => {
            let abilities = access.tree.probe().await?;
            Ok(match (abilities.conditional_writes, abilities.conditional_deletes) {
                (true, true) => FenceStrength::Conditional,
                (true, false) => FenceStrength::ConditionalWrites,
                (false, _) => FenceStrength::Advisory,
            })
        }
    }
}

/// Makes a remote ready for the attempts of a run, which the controller does once, before it offers the first batch. Done again, it is no error.
///
/// # Errors
/// If the storage fails.
pub async fn prepare(remote: &Remote, run: RunId) -> Result<FenceStrength, StorageError> {
    match remote.access() {
        Access::Local(tree) => {
            let tree = tree.clone();
            blocking(move || directory::prepare(&tree.open_or_make()?, run)).await?;
        }
        Access::Object(_) => {}
    }
    strength(remote).await
}

/// Takes an attempt's means away: when it returns, nothing of it takes effect any more, and the batch may be offered again. Unless the strength is
/// [`FenceStrength::Advisory`]: then wait. Done again, or by two at once, it is no error.
///
/// # Errors
/// If the storage fails; the attempt may then go on, so the batch must not be offered.
pub async fn revoke(remote: &Remote, attempt: Attempt) -> Result<FenceStrength, StorageError> {
    match remote.access() {
        Access::Local(tree) => {
            let tree = tree.clone();
            blocking(move || match tree.open() {
                // There is no tree in which anything could be claimed.
                Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
                opened => directory::revoke(&opened?, attempt),
            })
            .await?;
        }
        Access::Object(_) => {}
    }
    strength(remote).await
}

/// Ends a run: revokes every attempt that is left, and then removes the run's directory, so that no attempt of it can be claimed any more. It answers
/// with the paths of files that were kept there, as they are neither what an attempt was to remove nor could be put back.
///
/// # Errors
/// If the storage fails.
pub async fn retire(remote: &Remote, run: RunId) -> Result<Vec<String>, StorageError> {
    match remote.access() {
        Access::Local(tree) => {
            let tree = tree.clone();
            blocking(move || match tree.open() {
                Err(error) if error.kind == ErrorKind::NotFound => Ok(Vec::new()),
                opened => directory::retire(&opened?, run),
            })
            .await
        }
        Access::Object(_) => Ok(Vec::new()),
    }
}
