//! `queue` without a storage: the runs that control nodes direct, and what can be said to one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Subcommand;
use nkcluster::ErrorCode;
use nkcluster::cluster::{Cluster, PlacedInfo};
use nkcluster::job::PlacedCalls as _;
use nkcluster::types::NodeId;
use nkcluster_file_sync::{FailedFile, Rate, RunId, RunMessage, RunReply, RunState, RunView, StatsReport, SyncRun};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::run::ending;
use super::{harmless, harmless_line};
use crate::exit;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Form, or_dash};

/// How long one run may take to say how it is, where many are asked.
const LOOK_TIMEOUT: Duration = Duration::from_millis(1500);
/// Runs that are asked at the same time.
const LOOKS_MAX: usize = 64;
/// Comes behind the ids of all runs.
const BEHIND_ALL: &str = "~";

/// What can be said to a run, or asked of it.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RunAction {
    /// Show everything known of one run, the files that failed included.
    Show {
        /// The run.
        run: RunId,
    },
    /// Let a run rest: files that were begun are finished, nothing else begins.
    Pause {
        /// The run.
        run: RunId,
    },
    /// Let a run that rests go on.
    Resume {
        /// The run.
        run: RunId,
    },
    /// End a run soon; what was copied stays.
    Cancel {
        /// The run.
        run: RunId,
    },
    /// Change the limit of bandwidth of a run, also for whoever takes it over.
    Bwlimit {
        /// The run.
        run: RunId,
        /// Bytes per second of each of its workers, such as 10M; `off` is no limit.
        rate: Rate,
    },
}

/// What is asked about the runs of a cluster.
pub(crate) enum RunsAsked {
    /// All of them, or those behind one.
    List(Option<RunId>),
    /// One of them.
    One(RunAction),
}

/// `queue` without a storage.
pub(crate) async fn run(cluster: &Cluster, asked: RunsAsked, timeout: Duration, form: Form) -> Outcome {
    match asked {
        RunsAsked::List(after) => list(cluster, after, timeout, form).await,
        RunsAsked::One(action) => act(cluster, action, timeout, form).await,
    }
}

/// A run with what could be learnt of it.
struct Listed {
    run: String,
    /// The control node that has it.
    node: NodeId,
    view: Result<Box<RunView>, String>,
}

async fn list(cluster: &Cluster, after: Option<RunId>, timeout: Duration, form: Form) -> Outcome {
    let found = cluster.placed_keys::<SyncRun>(after.as_ref().map(RunId::as_str), timeout).await?;
    let last = found.actors.last().map(|info| info.key.clone());
    let mut runs = look_at_all(cluster, found.actors, &found.silent).await;
    // The latest last, where the eye is; those that nobody knows more of come first.
    runs.sort_by_cached_key(|run| (run.begun_ms(), run.run.clone()));
    form.print(&runs.iter().map(|run| run.document(false)).collect::<Vec<_>>(), || table(&runs))?;
    for node in &found.silent {
        warn(
            form,
            json!({ "code": ErrorCode::NotConnected.to_string(), "node": node }),
            &format!("control node {node} did not answer; runs may be missing"),
        );
    }
    if let Some(last) = last.filter(|_| found.has_more) {
        warn(form, json!({ "code": "more", "after": last }), &format!("there are more runs: nkcluster queue --after {last}"));
    }
    Ok(())
}

fn warn(form: Form, mut document: Value, message: &str) {
    document["message"] = message.into();
    output::to_stderr(&match form.is_json() {
        true => json!({ "warning": document }).to_string(),
        false => format!("warning[{}]: {message}", document["code"].as_str().unwrap_or_default()),
    });
}

/// Asks every run how it is; a control node that does not answer is asked no more.
async fn look_at_all(cluster: &Cluster, found: Vec<PlacedInfo>, silent: &[NodeId]) -> Vec<Listed> {
    let (places, silent) = (Arc::new(Semaphore::new(LOOKS_MAX)), Arc::new(Mutex::new(silent.iter().cloned().collect::<BTreeSet<_>>())));
    let mut looks = JoinSet::new();
    for info in found {
        let (cluster, places, silent) = (cluster.clone(), Arc::clone(&places), Arc::clone(&silent));
        looks.spawn(async move {
            let _place = places.acquire().await;
            look(&cluster, info, &silent).await
        });
    }
    let mut runs = Vec::new();
    while let Some(looked) = looks.join_next().await {
        runs.extend(looked.ok().flatten());
    }
    runs
}

/// None if nobody knows of the run: it was only asked for.
async fn look(cluster: &Cluster, info: PlacedInfo, silent: &Mutex<BTreeSet<NodeId>>) -> Option<Listed> {
    let PlacedInfo { key: run, node, problem, .. } = info;
    if let Some(problem) = problem {
        return Some(Listed { run, node, view: Err(problem.message().to_owned()) });
    }
    let lock = || silent.lock().unwrap_or_else(PoisonError::into_inner);
    let unanswered = format!("control node {node}, which has it, does not answer");
    if lock().contains(&node) {
        return Some(Listed { run, node, view: Err(unanswered) });
    }
    if !info.is_alive {
        // A message would start it, which is not for whoever only looks: it may live where nobody sees it now.
        return Some(Listed { view: Err(format!("control node {node} has not gone on with it yet")), run, node });
    }
    let view = match cluster.placed::<SyncRun>(&run, &RunMessage::Look { failures: false }, LOOK_TIMEOUT).await {
        Ok(RunReply::Seen(view)) => Ok(view),
        Ok(RunReply::Unknown | RunReply::Known(_)) => return None,
        Err(error) if *error.code() == ErrorCode::Timeout => match lock().contains(&node) || is_silent(cluster, &node).await {
            true => {
                lock().insert(node.clone());
                Err(unanswered)
            }
            // It may wait for another one.
            false => Err(format!("it did not answer in time, though control node {node}, which has it, does")),
        },
        Err(error) => Err(error.message().to_owned()),
    };
    Some(Listed { run, node, view })
}

/// Whether a control node does not answer even a question that is about none of its runs.
async fn is_silent(cluster: &Cluster, node: &NodeId) -> bool {
    // Whoever is asked waits for the others as long as for one run.
    let found = cluster.placed_keys::<SyncRun>(Some(BEHIND_ALL), 2 * LOOK_TIMEOUT).await;
    found.map_or(true, |found| found.silent.contains(node))
}

/// Says it to the run, and tells how it is afterwards.
async fn act(cluster: &Cluster, action: RunAction, timeout: Duration, form: Form) -> Outcome {
    let (run, message, with_failures) = match action {
        RunAction::Show { run } => (run, None, true),
        RunAction::Pause { run } => (run, Some(RunMessage::Pause), false),
        RunAction::Resume { run } => (run, Some(RunMessage::Resume), false),
        RunAction::Cancel { run } => (run, Some(RunMessage::Cancel), false),
        RunAction::Bwlimit { run, rate } => (run, Some(RunMessage::SetBandwidth(rate.to_string())), false),
    };
    let unknown = || {
        let what = format!("no control node knows the run {run}; `nkcluster queue` lists those that are known");
        Failure::new("not_found", what).with_exit(exit::MISSING)
    };
    if let Some(message) = message
        && let RunReply::Unknown = cluster.placed::<SyncRun>(run.as_str(), &message, timeout).await?
    {
        return Err(unknown());
    }
    let look = RunMessage::Look { failures: with_failures };
    let RunReply::Seen(view) = cluster.placed::<SyncRun>(run.as_str(), &look, timeout).await? else { return Err(unknown()) };
    let listed = Listed { run: run.to_string(), node: view.node.clone(), view: Ok(view) };
    form.print(&listed.document(with_failures), || listed.details())
}

impl Listed {
    fn view(&self) -> Option<&RunView> {
        self.view.as_deref().ok()
    }

    fn begun_ms(&self) -> Option<u64> {
        self.view().and_then(|view| Some(view.facts.as_ref()?.begun_ms))
    }

    /// The control node that directs it, as far as is known.
    fn node(&self) -> &NodeId {
        self.view().map_or(&self.node, |view| &view.node)
    }

    /// Where it stands: what nobody knows more of goes on as soon as it can.
    fn state(&self) -> RunState {
        self.view().map_or(RunState::Waiting, |view| view.state)
    }

    /// What it waits for.
    fn why(&self) -> Option<&str> {
        match &self.view {
            Ok(view) => view.waits_for.as_deref(),
            Err(why) => Some(why),
        }
    }

    /// How the command that follows it ends, or has ended.
    fn exit(&self) -> Option<u8> {
        self.view()?.end.map(|end| ending(end).map_or(exit::DONE, |(_, exit)| exit))
    }

    fn document(&self, with_failures: bool) -> Value {
        let (facts, view) = (self.view().and_then(|view| view.facts.as_ref()), self.view());
        let number = |field: fn(&StatsReport) -> u64| view.map(|view| field(&view.stats));
        let mut document = json!({
            "run": self.run,
            "kind": facts.map(|facts| facts.kind),
            "source": facts.map(|facts| &facts.source),
            "destination": facts.map(|facts| &facts.destination),
            "on": facts.map(|facts| &facts.selector),
            "node": self.node(),
            "state": self.state(),
            "why": self.why(),
            "exit": self.exit(),
            "files": number(|stats| stats.transfers),
            "total_files": number(|stats| stats.total_transfers),
            "bytes": number(|stats| stats.bytes),
            "total_bytes": number(|stats| stats.total_bytes),
            "deletes": number(|stats| stats.deletes),
            "errors": number(|stats| stats.errors),
            "workers": view.map(|view| view.workers),
            "bwlimit": view.and_then(|view| view.bandwidth),
            "begun": self.begun_ms().map(output::clock),
        });
        if let Some(view) = view.filter(|_| with_failures) {
            document["end"] = json!(view.end);
            document["stats"] = json!(view.stats);
            document["end_errors"] = json!(view.errors);
            document["failed"] = json!(view.failures);
            document["more_failed"] = json!(view.more_failures);
        }
        document
    }

    /// The state for people.
    fn state_text(&self) -> String {
        match self.exit() {
            Some(exit) => format!("{} ({exit})", self.state()),
            None => self.state().to_string(),
        }
    }

    fn details(&self) -> String {
        let mut lines: Vec<(&str, String)> = vec![("run", self.run.clone())];
        let Some(view) = self.view() else { return self.run.clone() };
        if let Some(facts) = &view.facts {
            lines.push(("kind", kind(facts.kind)));
            if !facts.source.is_empty() {
                lines.push(("from", harmless(&facts.source)));
            }
            lines.extend([
                ("to", harmless(&facts.destination)),
                ("on", harmless(&facts.selector)),
                ("begun", output::clock(facts.begun_ms)),
            ]);
        }
        let stats = &view.stats;
        let of = |done: String, total: String| if done == total { done } else { format!("{done} of {total}") };
        lines.extend([
            ("node", view.node.to_string()),
            ("state", self.state_text()),
            ("files", of(stats.transfers.to_string(), stats.total_transfers.to_string())),
            ("bytes", of(output::bytes(stats.bytes), output::bytes(stats.total_bytes))),
            ("deletes", stats.deletes.to_string()),
            ("errors", stats.errors.to_string()),
            ("workers", view.workers.to_string()),
            ("bwlimit", view.bandwidth.map_or_else(|| "off".to_owned(), |limit| format!("{}/s for each worker", output::bytes(limit)))),
        ]);
        lines.extend(view.waits_for.iter().map(|why| ("waits", harmless_line(why))));
        lines.extend(view.errors.iter().map(|error| ("error", harmless_line(error))));
        let failed = |FailedFile { path, error }: &FailedFile| match path.is_empty() {
            true => harmless_line(error),
            false => format!("{}: {}", harmless(path), harmless_line(error)),
        };
        lines.extend(view.failures.iter().map(|file| ("failed", failed(file))));
        if view.more_failures > 0 {
            lines.push(("failed", format!("{} more, before these", view.more_failures)));
        }
        lines.iter().map(|(name, value)| format!("{name:<8} {value}")).collect::<Vec<_>>().join("\n")
    }
}

fn kind(kind: nkcluster_file_sync::Task) -> String {
    serde_json::to_value(kind).ok().and_then(|kind| kind.as_str().map(str::to_owned)).unwrap_or_default()
}

fn table(runs: &[Listed]) -> String {
    if runs.is_empty() {
        return "no runs".to_owned();
    }
    let mut table = output::table(["run", "kind", "from", "to", "node", "state", "files", "bytes", "errors", "workers", "begun"]);
    for run in runs {
        let (view, facts) = (run.view(), run.view().and_then(|view| view.facts.as_ref()));
        table.add_row([
            run.run.clone(),
            or_dash(facts.map(|facts| kind(facts.kind))),
            or_dash(facts.map(|facts| harmless(&facts.source)).filter(|source| !source.is_empty())),
            or_dash(facts.map(|facts| harmless(&facts.destination))),
            run.node().to_string(),
            run.state_text(),
            or_dash(view.map(|view| view.stats.transfers)),
            or_dash(view.map(|view| output::bytes(view.stats.bytes))),
            or_dash(view.map(|view| view.stats.errors)),
            or_dash(view.map(|view| view.workers)),
            or_dash(run.begun_ms().map(output::clock)),
        ]);
    }
    let waiting = runs.iter().filter_map(|run| Some(format!("{} waits: {}", run.run, harmless_line(run.why()?)))).collect::<Vec<_>>();
    match waiting.is_empty() {
        true => output::text_of(&table),
        false => format!("{}\n\n{}", output::text_of(&table), waiting.join("\n")),
    }
}
