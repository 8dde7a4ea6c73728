//! Steps about workers that drain, die and freeze.

use std::fs::File;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Tour, WAIT, expect, unexpected};
use crate::exit;
use crate::failure::{Failure, Outcome};

/// Id of the task that runs while its worker drains.
const TASK: &str = "tour-long";
/// A file without content on the disk that takes long to hash: at 10 GB/s more than a minute.
const LONG_BYTES: u64 = 1 << 40;
/// "At once": less than the silence after which a link is given up, many times less than the timeout of the call.
const AT_ONCE: Duration = Duration::from_secs(5);

impl Tour<'_> {
    pub(super) async fn drain(&mut self) -> Outcome {
        let worker = self.worker.clone();
        let root = self.cluster.dir().join(worker.as_str()).join("files").join("long");
        let made = std::fs::create_dir_all(&root).and_then(|()| File::create(root.join("file"))?.set_len(LONG_BYTES));
        made.map_err(|error| Failure::io("cannot make a large file", &error))?;
        let mut events = self.public.events(&["--node", worker.as_str()]).await?;
        let spec = json!({ "hash": { "path": "long" } }).to_string();
        self.public.json(&["task", "start", worker.as_str(), "files", &spec, "--id", TASK]).await?;
        let told = self.public.json(&["task", "command", worker.as_str(), "files", TASK, "\"progress\""]).await?;
        expect("the progress of the task", &told["reply"], &json!({ "files": 0, "bytes": 0, "paused": false }))?;
        let tasks = self.public.json(&["task", "list", worker.as_str(), "files"]).await?;
        expect("the task that runs", &tasks[0]["id"], &json!(TASK))?;
        let status = self.public.json(&["status", worker.as_str(), "stopped"]).await?;
        // The task may have ended before the answer was made; the events below tell both.
        if !matches!(status["status"].as_str(), Some("stopping" | "stopped")) {
            return Err(unexpected(format!("a worker that drains should be stopping, but is {status}")));
        }
        self.public.refused(&["task", "start", worker.as_str(), "files", &spec], exit::FAILED, "node_not_ready").await?;
        // The task hears of it and ends by itself.
        let statuses = self.statuses_until(&mut events, "stopped").await?;
        expect("the statuses while it drains", &json!(statuses), &json!(["stopping", "stopped"]))?;
        self.wait_status(&worker, "stopped").await?;
        self.public.json(&["status", worker.as_str(), "ready"]).await?;
        self.wait_status(&worker, "ready").await?;
        std::fs::remove_dir_all(&root).map_err(|error| Failure::io("cannot remove the large file", &error))
    }

    /// The statuses that a worker told, up to one; the end of the task must be told before it.
    async fn statuses_until(&self, events: &mut crate::dev::public::Following, last: &str) -> Outcome<Vec<Value>> {
        let mut statuses = Vec::new();
        let mut has_ended = false;
        loop {
            let record = events.next(format_args!("the status {last}"), WAIT).await?;
            let event = &record["event"]["nkcluster"];
            has_ended |= event["task_stopped"]["id"] == TASK;
            // Every class with events is told; the worker itself is followed under `core`.
            if record["class"] == "core"
                && let Some(status) = event["node_status"].as_str()
            {
                statuses.push(json!(status));
                if status == last {
                    break;
                }
            }
        }
        // Events of two classes are not ordered among each other.
        while !has_ended {
            let record = events.next("the end of the task", WAIT).await?;
            has_ended |= record["event"]["nkcluster"]["task_stopped"]["id"] == TASK;
        }
        Ok(statuses)
    }

    pub(super) async fn kill(&mut self) -> Outcome {
        let victim = self.victim.clone();
        let before = self.incarnation(victim.as_str()).await?;
        self.cluster.kill_node(&victim).await?;
        self.wait_status(&victim, "not_connected").await?;
        let asked = Instant::now();
        self.public.refused(&["request", victim.as_str(), "core", "\"ping\""], exit::FAILED, "not_connected").await?;
        if asked.elapsed() > AT_ONCE {
            return Err(unexpected(format!(
                "a request to a dead worker should fail at once, but took {:.1} s",
                asked.elapsed().as_secs_f64()
            )));
        }
        self.cluster.start_again(&victim).await?;
        self.wait_status(&victim, "ready").await?;
        let after = self.incarnation(victim.as_str()).await?;
        match before == after {
            true => Err(unexpected(format!("{victim} should have a new incarnation, but has still {before}"))),
            false => Ok(()),
        }
    }

    async fn incarnation(&self, node: &str) -> Outcome<Value> {
        let info = self.public.json(&["info", node]).await?;
        match info["incarnation"].is_string() {
            true => Ok(info["incarnation"].clone()),
            false => Err(unexpected(format!("`info {node}` should show an incarnation, but shows {}", info["incarnation"]))),
        }
    }

    pub(super) async fn freeze(&mut self) -> Outcome {
        let frozen = self.frozen.clone();
        let before = self.incarnation(frozen.as_str()).await?;
        self.cluster.signal(&frozen, Signal::STOP)?;
        let seen = self.wait_status(&frozen, "not_connected").await;
        // In every case: a frozen child could not be stopped.
        self.cluster.signal(&frozen, Signal::CONT)?;
        seen?;
        self.wait_status(&frozen, "ready").await?;
        let after = self.incarnation(frozen.as_str()).await?;
        expect("the incarnation of a worker that went on", &after, &before)?;
        self.public.json(&["request", frozen.as_str(), "core", "\"status\""]).await.map(|_| ())
    }
}
