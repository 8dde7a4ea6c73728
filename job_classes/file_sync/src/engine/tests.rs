//! The engine on local trees.

mod faults;
mod fenced;
mod local;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::local::Session;
use crate::engine::task::Task;
use crate::engine::{Cancel, Done, Engine, EngineOptions, Failure, OperationError, Work};
use crate::fence::Fence;
use crate::operation::{Operation, Planned, Seen};
use crate::remote::local::tests::on_step;
use crate::remote::{RemoteConfig, Remotes};
use crate::stats::Stats;

/// Two empty trees and an engine.
pub(super) struct Bench {
    pub(super) directory: tempfile::TempDir,
    pub(super) engine: Engine,
    pub(super) stats: Arc<Stats>,
    pub(super) cancel: Cancel,
}

impl Bench {
    pub(super) fn new(options: EngineOptions) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["source", "target"] {
            fs::create_dir(directory.path().join(name)).expect("made");
        }
        let engine = Engine::new(options, Arc::new(Remotes::new(RemoteConfig::default())));
        Self { directory, engine, stats: Arc::new(Stats::new()), cancel: Cancel::new() }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub(super) fn write(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("below the directory")).expect("made");
        fs::write(path, content).expect("written");
    }

    pub(super) fn read(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.path(path)).ok()
    }

    pub(super) fn root(&self, name: &str) -> String {
        self.path(name).to_str().expect("text").to_owned()
    }

    pub(super) fn copy(&self, path: &str, planned: Option<Planned>) -> Operation {
        Operation::CopyFile {
            src_fs: self.root("source"),
            src_remote: path.to_owned(),
            dst_fs: self.root("target"),
            dst_remote: path.to_owned(),
            planned,
        }
    }

    pub(super) fn move_file(&self, path: &str, planned: Option<Planned>) -> Operation {
        Operation::MoveFile {
            src_fs: self.root("source"),
            src_remote: path.to_owned(),
            dst_fs: self.root("target"),
            dst_remote: path.to_owned(),
            planned,
        }
    }

    pub(super) fn delete(&self, path: &str, planned: Option<Planned>) -> Operation {
        Operation::DeleteFile { fs: self.root("target"), remote: path.to_owned(), planned }
    }

    /// What a plan sees of a source whose destination is this.
    pub(super) fn planned(&self, path: &str, destination: Option<Seen>) -> Option<Planned> {
        let stat = rustix::fs::lstat(self.path(path)).expect("there");
        let tag = crate::remote::local::tag::LocalTag::of(&stat).to_string();
        Some(Planned { size: stat.st_size as u64, tag: Some(tag.into()), destination })
    }

    pub(super) async fn execute(&self, operation: &Operation, fence: &Arc<Fence>) -> Result<Done, OperationError> {
        self.engine.execute(operation, fence, &self.stats, &self.cancel).await
    }

    /// One try, in this thread, with a call before each change.
    pub(super) fn carry_out(&self, operation: &Operation, fence: &Arc<Fence>, hook: impl FnMut() + 'static) -> Result<Done, Failure> {
        let work = Work { engine: self.engine.clone(), fence: fence.clone(), stats: self.stats.clone(), cancel: self.cancel.clone() };
        let task = Task::new(operation, self.engine.remotes(), fence).expect("a task");
        on_step(Some(Box::new(hook)));
        let result = Session::new(&work).carry_out(&task);
        on_step(None);
        result.map_err(|failed| failed.error.kind)
    }
}

pub(super) fn unfenced() -> Arc<Fence> {
    Arc::new(Fence::unfenced())
}

/// Paths of everything below a directory, in order.
pub(super) fn tree(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).expect("listed") {
            let entry = entry.expect("listed");
            found.push(entry.path().strip_prefix(directory).expect("below").to_string_lossy().into_owned());
            if entry.file_type().expect("known").is_dir() {
                directories.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
