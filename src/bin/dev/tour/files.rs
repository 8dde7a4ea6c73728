//! Steps about files: send, hash where they are, fetch back.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::tree::{self, Files, LARGE};
use super::{Tour, expect, unexpected};
use crate::exit;
use crate::failure::{Failure, Outcome};

/// Where the tree is below the worker's file root.
const REMOTE: &str = "tour";
/// Id of the task that hashes it.
const TASK: &str = "tour-hash";
/// Longest pause between two events of a task that works.
const EVENT_WAIT: Duration = Duration::from_secs(60);
/// Every so many-th file is fetched back.
const FETCH_EVERY: usize = 40;

impl Tour<'_> {
    fn tree(&self) -> PathBuf {
        self.work.path().join("tree")
    }

    pub(super) async fn send(&mut self) -> Outcome<Files> {
        let root = self.tree();
        let grown = tokio::task::spawn_blocking(move || tree::grow(&root)).await;
        let grown = grown.map_err(|error| Failure::new("internal", error.to_string()))?;
        let files = grown.map_err(|error| Failure::io("cannot write the tree", &error))?;
        let worker = self.worker.as_str();
        // The largest by itself, which prints its checksum; then all.
        let large = self.tree().join(LARGE).display().to_string();
        let sent = self.public.json(&["send", worker, &large, &format!("{REMOTE}/{LARGE}")]).await?;
        let expected = json!({ "bytes": files[LARGE].bytes, "xxh3": files[LARGE].xxh3, "resumed_from": 0 });
        expect("what `send` says of the largest file", &sent, &expected)?;
        let sent = self.public.json(&["send", "--recursive", worker, &self.tree().display().to_string(), REMOTE]).await?;
        let bytes: u64 = files.values().map(|file| file.bytes).sum();
        expect("what `send --recursive` says", &sent, &json!({ "files": files.len(), "bytes": bytes }))?;
        let outside = ["send", worker, &large, "../outside"];
        self.public.refused(&outside, exit::FAILED, "invalid_path").await?;
        Ok(files)
    }

    pub(super) async fn hash(&mut self, files: &Files) -> Outcome {
        let worker = self.worker.as_str();
        let mut events = self.public.events(&["--class", "files", "--node", worker]).await?;
        let spec = json!({ "hash": { "path": REMOTE } }).to_string();
        let started = self.public.json(&["task", "start", worker, "files", &spec, "--id", TASK]).await?;
        expect("the started task", &started, &json!({ "task_id": TASK, "reply": { "path": REMOTE } }))?;
        let first = events.next("the start of the task", EVENT_WAIT).await?;
        expect("the first event", &first["event"], &json!({ "nkcluster": { "task_started": TASK } }))?;
        let mut seq = first["seq"].as_u64().unwrap_or_default();
        let mut left = files.clone();
        let mut summary = Value::Null;
        loop {
            let record = events.next(format_args!("{} more files and the end of the task", left.len()), EVENT_WAIT).await?;
            seq += 1;
            expect("the number of the next event", &record["seq"], &json!(seq))?;
            let event = &record["event"];
            if let Some(hashed) = event.get("hashed") {
                let known = hashed["path"].as_str().and_then(|path| left.remove(path));
                let known = known.ok_or_else(|| unexpected(format!("{event} should be of a file that was sent and not told before")))?;
                expect("the size and hash in an event", &json!([hashed["bytes"], hashed["xxh3"]]), &json!([known.bytes, known.xxh3]))?;
            } else if let Some(told) = event.get("summary") {
                summary = told.clone();
            } else if event.get("progress").is_none() {
                expect("the last event", event, &json!({ "nkcluster": { "task_stopped": { "id": TASK, "reason": "normal" } } }))?;
                break;
            }
        }
        let bytes: u64 = files.values().map(|file| file.bytes).sum();
        expect("the summary of the task", &summary, &json!({ "task": TASK, "files": files.len(), "bytes": bytes, "errors": 0 }))?;
        match left.keys().next() {
            None => Ok(()),
            Some(name) => Err(unexpected(format!("every file should be hashed, but {} are not, such as {name}", left.len()))),
        }
    }

    pub(super) async fn fetch(&mut self, files: &Files) -> Outcome {
        let worker = self.worker.as_str();
        let some = files.keys().step_by(FETCH_EVERY).map(String::as_str);
        for (number, name) in some.chain([LARGE, "odd/empty"]).enumerate() {
            let local = self.work.path().join(format!("fetched-{number}"));
            let fetched = self.public.json(&["fetch", worker, &format!("{REMOTE}/{name}"), &local.display().to_string()]).await?;
            expect("the checksum that `fetch` says", &fetched["xxh3"], &json!(files[name].xxh3))?;
            let read =
                |path: PathBuf| std::fs::read(&path).map_err(|error| Failure::io(format_args!("cannot read {}", path.display()), &error));
            if read(local)? != read(self.tree().join(name))? {
                return Err(unexpected(format!("{name} should come back as it was sent, but differs")));
            }
        }
        let nothing = self.work.path().join("nothing").display().to_string();
        self.public.refused(&["fetch", worker, "no/such/file", &nothing], exit::FAILED, "invalid_file").await
    }
}
