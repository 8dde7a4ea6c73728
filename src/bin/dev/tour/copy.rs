//! The last step: a distributed copy, of whose workers one dies.

use std::path::Path;

use nkcluster::transfer::Checksum;
use nkcluster::types::NodeId;
use serde_json::json;
use tokio::time::Instant;

use super::tree::{self, Files};
use super::{POLL, Tour, WAIT, expect, unexpected};
use crate::failure::{Failure, Outcome};

/// Slow enough that a worker is seen at work, also where it is killed at once.
const RATE: &str = "20M";
/// So few files that each worker has several batches.
const BATCH_FILES: &str = "10";

impl Tour<'_> {
    pub(super) async fn copy(&mut self) -> Outcome {
        let (source, destination) = (self.work.path().join("copy-source"), self.work.path().join("copy-destination"));
        let files = tree::grow(&source).map_err(|error| Failure::io("cannot write the tree", &error))?;
        let workers = self.cluster.workers();
        let selector = workers.iter().map(|id| format!("id={id}")).collect::<Vec<_>>().join(" || ");
        let (from, to) = (source.display().to_string(), destination.display().to_string());
        let copy = ["copy", &from, &to, "--on", &selector, "--cluster-batch-files", BATCH_FILES];
        let public = self.public;
        let slow = [&copy[..], &["--bwlimit", RATE]].concat();
        let (copied, killed) = tokio::join!(public.json(&slow), self.kill_at_work());
        killed?;
        expect("the end of the copy", &copied?["end"], &json!("success"))?;
        compare(&destination, &files)?;
        let again = public.json(&copy).await?;
        expect("the files that are copied a second time", &again["stats"]["transfers"], &json!(0))?;
        expect("the files that are compared", &again["stats"]["checks"], &json!(files.len()))
    }

    /// Kills a worker while it has a part of the copy, and starts it again.
    async fn kill_at_work(&mut self) -> Outcome {
        let victim = self.at_work().await?;
        self.cluster.kill_node(&victim).await?;
        self.wait_status(&victim, "not_connected").await?;
        self.cluster.start_again(&victim).await?;
        self.wait_status(&victim, "ready").await.map(drop)
    }

    /// The first worker that is seen with a batch.
    async fn at_work(&self) -> Outcome<NodeId> {
        let deadline = Instant::now() + WAIT;
        loop {
            for worker in self.cluster.workers() {
                let tasks = self.public.json(&["task", "list", worker.as_str(), "file_sync"]).await?;
                if tasks.as_array().is_some_and(|tasks| !tasks.is_empty()) {
                    return Ok(worker);
                }
            }
            if Instant::now() >= deadline {
                return Err(unexpected("a worker should have a part of the copy, but none has"));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Every file is there, with its content, and nothing else.
fn compare(root: &Path, files: &Files) -> Outcome {
    let mut found = 0;
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let failed = |error| Failure::io(format_args!("cannot read {}", directory.display()), &error);
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            let content = std::fs::read(&path).map_err(failed)?;
            let expected = files.get(&name).ok_or_else(|| unexpected(format!("{name} should not be at the destination")))?;
            expect(&format!("the checksum of {name}"), &json!(Checksum::of(&content).to_string()), &json!(expected.xxh3))?;
            found += 1;
        }
    }
    expect("the number of files at the destination", &json!(found), &json!(files.len()))
}
