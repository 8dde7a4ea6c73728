//! What control nodes say of a worker, for tests with several of them.

use serde_json::Value;

use crate::support::Cli;

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
}
