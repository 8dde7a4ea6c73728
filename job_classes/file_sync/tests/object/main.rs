//! Object stores: a real S3 server in this process, one that ignores conditions, and rclone's where it is installed.

mod faults;
mod runs;
mod server;
mod storage;
mod transfers;

use std::sync::Arc;

use nkcluster_file_sync::{Cancel, Done, Engine, EngineOptions, Fence, Operation, OperationError, RemoteConfig, Remotes, Stats};

/// An engine and what it counts.
struct Bench {
    engine: Engine,
    stats: Arc<Stats>,
    cancel: Cancel,
    local: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self::with(EngineOptions::default())
    }

    fn with(options: EngineOptions) -> Self {
        let engine = Engine::new(options, Arc::new(Remotes::new(RemoteConfig::default())));
        Self { engine, stats: Arc::new(Stats::new()), cancel: Cancel::new(), local: tempfile::tempdir().expect("a directory") }
    }

    fn root(&self, name: &str) -> String {
        self.local.path().join(name).to_str().expect("text").to_owned()
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.local.path().join(path);
        std::fs::create_dir_all(path.parent().expect("below")).expect("made");
        std::fs::write(path, content).expect("written");
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        std::fs::read(self.local.path().join(path)).ok()
    }

    async fn execute(&self, operation: &Operation) -> Result<Done, OperationError> {
        self.execute_fenced(operation, &Arc::new(Fence::unfenced())).await
    }

    async fn execute_fenced(&self, operation: &Operation, fence: &Arc<Fence>) -> Result<Done, OperationError> {
        self.engine.execute(operation, fence, &self.stats, &self.cancel).await
    }
}

fn copy(from: &str, to: &str, path: &str) -> Operation {
    Operation::CopyFile { src_fs: from.into(), src_remote: path.into(), dst_fs: to.into(), dst_remote: path.into(), planned: None }
}

/// Content in which no part is like another.
fn content(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(next).collect()
}
