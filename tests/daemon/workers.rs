//! What control nodes say of a worker, for tests with several of them.

use std::fs::{self, File};

use serde_json::Value;

use crate::support::{Cli, Daemon};

impl Cli {
    /// The control nodes whose proxies of a worker act; none while it cannot be asked.
    pub(crate) fn acting(&self, worker: &str) -> Vec<String> {
        let ran = self.script(&["info", worker]);
        let info: Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
        let proxies = info["proxies"].as_array().cloned().unwrap_or_default();
        let acting = proxies.iter().filter(|proxy| proxy["active"] == true);
        acting.map(|proxy| proxy["owner"].as_str().expect("a name").to_owned()).collect()
    }

    /// How often a task of the class `files` runs; none while it cannot be asked.
    pub(crate) fn runs(&self, worker: &str, task: &str) -> Option<usize> {
        let ran = self.script(&["task", "list", worker, "files"]);
        let tasks: Value = serde_json::from_str(&ran.stdout).ok()?;
        Some(tasks.as_array()?.iter().filter(|running| running["id"] == task).count())
    }

    /// Starts a task that takes longer than any test on a worker; returns its id. It rests, as it would keep a processor busy.
    pub(crate) fn start_long_task(&self, worker: &Daemon) -> String {
        let id = worker.id();
        let root = worker.dir().join("files");
        fs::create_dir_all(&root).expect("made");
        // Without content on the disk.
        File::create(root.join("slow")).and_then(|file| file.set_len(1 << 40)).expect("made");
        let started = self.json(&["task", "start", id, "files", "{\"hash\":{\"path\":\"slow\"}}"]);
        let task = started["task_id"].as_str().expect("an id");
        self.json(&["task", "command", id, "files", task, "\"pause\""]);
        task.to_owned()
    }
}
