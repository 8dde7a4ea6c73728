//! The tour: everything that the cluster promises, done once through the public command.
//!
//! Each step runs `nkcluster` as a process, as a script would, and compares what it prints with what must be. A step that fails fails the tour; none can be
//! skipped. The only things done otherwise are those that no command does: signals to our own children, and a large file in the file root of a worker.

mod controls;
mod copy;
mod failures;
mod files;
mod load;
mod tree;
mod values;

use std::time::Duration;

use nkcluster::types::NodeId;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use super::cluster::{DevCluster, POLL};
use super::field;
use super::public::Public;
use crate::failure::{Failure, Outcome};
use crate::output::Form;

/// Longest wait for something that must come about.
const WAIT: Duration = Duration::from_secs(60);
/// The tour loses one of them; the others must still be several.
pub(super) const CONTROLS_MIN: u16 = 3;

/// What the steps share.
struct Tour<'a> {
    cluster: &'a mut DevCluster,
    public: &'a Public,
    /// Files of the tour.
    work: TempDir,
    /// Takes the files, and is drained.
    worker: NodeId,
    /// Is killed.
    victim: NodeId,
    /// Is frozen.
    frozen: NodeId,
}

/// Does every step.
pub(super) async fn run(cluster: &mut DevCluster, public: &Public, form: Form) -> Outcome {
    let workers = cluster.workers();
    let at = |index: usize| workers.get(workers.len().wrapping_sub(1 + index % workers.len().max(1))).cloned();
    let (Some(worker), Some(victim), Some(frozen)) = (at(0), at(1), at(2)) else {
        return Err(Failure::usage("invalid_usage", "the tour needs a worker: leave --workers 0 out"));
    };
    let work = tempfile::Builder::new().prefix("nkcluster-tour-").tempdir();
    let work = work.map_err(|error| Failure::io("cannot make a temporary directory", &error))?;
    let mut tour = Tour { cluster, public, work, worker, victim, frozen };
    let mut report = Report { form, steps: Vec::new() };
    let result = tour.steps(&mut report).await;
    if form.is_json() {
        form.document(&json!({ "ok": result.is_ok(), "steps": report.steps }))?;
    }
    result?;
    match form {
        Form::People => form.line(format!("all {} steps are done", report.steps.len())),
        Form::Json => Ok(()),
    }
}

impl Tour<'_> {
    async fn steps(&mut self, report: &mut Report) -> Outcome {
        report.step("all nodes are ready, with the labels of the quick start", self.nodes()).await?;
        report.step("labels are set, selected by, unset", self.labels()).await?;
        report.step("data is put, got, deleted", self.data()).await?;
        report.step("a function is called", self.function()).await?;
        report.step("a request is answered, and others refused by name", self.request()).await?;
        report.step("round trips are measured", self.ping()).await?;
        let files = report.step("a tree of real files is sent to a worker", self.send()).await?;
        report.step("a task hashes the tree where it is, event by event", self.hash(&files)).await?;
        report.step("files are fetched back, byte for byte", self.fetch(&files)).await?;
        report.step("a worker is drained while a task runs, and comes back", self.drain()).await?;
        report.step("a worker is killed, told as such, and comes back as a new incarnation", self.kill()).await?;
        report.step("a worker freezes, is told as such, and goes on", self.freeze()).await?;
        report.step("the control nodes share one ring", self.ring()).await?;
        report.step("every control node takes every request", self.any_control()).await?;
        let lost = report.step("a control node is killed, the ring heals, and its worker's task goes on", self.lose()).await?;
        report.step("it comes back under the same name and gets its part of the ring again", self.regain(&lost)).await?;
        report.step("a control node is stopped under load and no request is lost", self.leave(&lost.node)).await?;
        report.step("a tree is copied by all workers, one of which is killed at work", self.copy()).await
    }

    /// Waits until the cluster shows a status of a node.
    async fn wait_status(&self, node: &NodeId, status: &str) -> Outcome<Value> {
        let deadline = Instant::now() + WAIT;
        loop {
            let nodes = self.public.nodes().await?;
            let seen = nodes.into_iter().find(|seen| field(seen, "id") == node.as_str()).unwrap_or_default();
            if field(&seen, "status") == status {
                return Ok(seen);
            }
            if Instant::now() >= deadline {
                let now = field(&seen, "status");
                return Err(unexpected(format!("{node} should become {status} within {} s, but is {now:?}", WAIT.as_secs())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until a selector finds exactly these nodes.
    async fn wait_selected(&self, selector: &str, expected: &[&str]) -> Outcome {
        let deadline = Instant::now() + WAIT;
        loop {
            let nodes = self.public.selected(Some(selector)).await?;
            let ids: Vec<_> = nodes.iter().map(|node| field(node, "id")).collect();
            if ids == expected {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(unexpected(format!("`{selector}` should select {expected:?}, but selects {ids:?}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What was expected, and what was seen.
fn unexpected(message: impl Into<String>) -> Failure {
    Failure::new("unexpected", message)
}

/// Compares, naming what it is about.
fn expect(what: &str, seen: &Value, expected: &Value) -> Outcome {
    match seen == expected {
        true => Ok(()),
        false => Err(unexpected(format!("{what} should be {expected}, but is {seen}"))),
    }
}

/// Tells each step.
struct Report {
    form: Form,
    steps: Vec<Value>,
}

impl Report {
    async fn step<T>(&mut self, name: &str, step: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        let start = Instant::now();
        let result = step.await;
        let seconds = start.elapsed().as_secs_f64();
        let (number, word) = (self.steps.len() + 1, if result.is_ok() { "ok" } else { "FAILED" });
        self.steps.push(json!({ "name": name, "ok": result.is_ok(), "seconds": seconds }));
        if self.form == Form::People {
            self.form.line(format!("step {number:>2} {name} … {word} ({seconds:.1} s)"))?;
        }
        result.map_err(|failure| failure.context(format_args!("step {number}, {name}")))
    }
}
