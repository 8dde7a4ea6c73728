//! Carries out calls, each in a task of its own.
//!
//! A call is looked up by its identity first: what was done is answered again, what is being done is waited for, and only what was never seen is carried out.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::calls::{Arrived, Asked};
use super::running::{CatchPanic, Running, panic_text, panicked};
use super::shared::Shared;
use crate::cluster::CORE_CLASS;
use crate::connection::{IncomingCall, unix_time_ms};
use crate::error::{Error, ErrorCode, Result};
use crate::job::{ErasedClass, LocalNode, RawStarted, RawTaskContext, RequestContext, TaskEnd, TaskRun};
use crate::proto::entry::EndReason;
use crate::proto::head::{Outcome, Verb};
use crate::types::{ClassName, Payload, TaskId};

/// Takes in a call that came on the current channel.
pub(super) fn execute(shared: &Arc<Shared>, call: IncomingCall) {
    let asked = Asked::new(&call.head, call.deadline().into_std());
    let received = call.received.into_std();
    let arrived = shared.lock().calls.arrive(asked, call, received);
    match arrived {
        Arrived::Execute(call) => start(shared, call),
        Arrived::Waits => {}
        Arrived::Answer(call, outcome) => call.reply(&outcome),
    }
}

fn start(shared: &Arc<Shared>, call: IncomingCall) {
    let prepared = prepare(shared, &call);
    let (class, name, permit) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            abandon(shared, call, error);
            return;
        }
    };
    match call.head.verb {
        Verb::Request => {
            tokio::spawn(request(Arc::clone(shared), class, name, call, permit));
        }
        Verb::Task => start_task(shared, class, name, call, permit),
        Verb::Command => command(shared, &name, call),
        Verb::Cluster | Verb::Peer => {
            let error = Error::new(ErrorCode::NotAllowed, "a worker answers no operations of the cluster; ask a control node");
            finish(shared, call, Err(error));
        }
    }
}

type Prepared = (Arc<dyn ErasedClass>, ClassName, OwnedSemaphorePermit);

fn prepare(shared: &Arc<Shared>, call: &IncomingCall) -> Result<Prepared> {
    let name = call.head.class.clone().ok_or_else(|| Error::new(ErrorCode::UnknownClass, "the call names no class"))?;
    let class = shared.classes.class(&name).filter(|_| shared.enables(&name)).ok_or_else(|| {
        let enabled: Vec<String> = shared.enabled_classes().iter().map(ToString::to_string).collect();
        let what =
            format!("worker {} has no class {name} or does not enable it (key `classes`); it runs: {}", shared.id, enabled.join(", "));
        Error::new(ErrorCode::UnknownClass, what)
    })?;
    let places = if name.as_str() == CORE_CLASS { &shared.core_calls } else { &shared.calls };
    let permit = Arc::clone(places).try_acquire_owned().map_err(|_| {
        let what = format!("worker {} carries out {} calls already, the most it may; try again", shared.id, shared.config.max_calls);
        Error::new(ErrorCode::Busy, what)
    })?;
    Ok((class, name, permit))
}

async fn request(shared: Arc<Shared>, class: Arc<dyn ErasedClass>, name: ClassName, mut call: IncomingCall, permit: OwnedSemaphorePermit) {
    let ctx = RequestContext {
        node: Arc::clone(&shared) as Arc<dyn LocalNode>,
        class: name,
        identity: call.head.identity,
        deadline: call.deadline(),
        stream: call.stream.take(),
        cancellation: call.cancellation(),
    };
    let payload = Payload::from_bytes(call.payload.clone());
    let outcome = CatchPanic::new(class.request(ctx, payload)).await.unwrap_or_else(|panic| Err(panicked(&panic)));
    drop(permit);
    finish(&shared, call, outcome);
}

/// Remembers an outcome and tells everybody who waits for it.
fn finish(shared: &Shared, call: IncomingCall, outcome: Outcome) {
    let waiters = shared.lock().calls.finish(call.head.identity, &outcome, Instant::now().into_std());
    answer(call, waiters, &outcome);
}

/// As if it had never come: a retry may find room or a class. One that came meanwhile is refused as well.
fn abandon(shared: &Shared, call: IncomingCall, error: Error) {
    let waiters = shared.lock().calls.abandon(call.head.identity);
    answer(call, waiters, &Err(error));
}

fn answer(call: IncomingCall, waiters: Vec<IncomingCall>, outcome: &Outcome) {
    for call in std::iter::once(call).chain(waiters) {
        call.reply(outcome);
    }
}

fn command(shared: &Arc<Shared>, class: &ClassName, call: IncomingCall) {
    let Some(task) = call.head.task.clone() else {
        finish(shared, call, Err(Error::new(ErrorCode::TaskNotFound, "the command names no task")));
        return;
    };
    let key = (class.clone(), task);
    let state = shared.lock();
    let Some(running) = state.running.get(&key) else {
        drop(state);
        let what = format!("class {class} of worker {} has no task {}; see `task list`", shared.id, key.1);
        finish(shared, call, Err(Error::new(ErrorCode::TaskNotFound, what)));
        return;
    };
    let remembering = Arc::clone(shared);
    let queued = running.command(Box::new(call), Box::new(move |call, outcome| finish(&remembering, call, outcome)));
    drop(state);
    if let Err((call, error)) = queued {
        abandon(shared, *call, error);
    }
}

fn start_task(shared: &Arc<Shared>, class: Arc<dyn ErasedClass>, name: ClassName, call: IncomingCall, permit: OwnedSemaphorePermit) {
    let Some(id) = call.head.task.clone() else {
        finish(shared, call, Err(Error::new(ErrorCode::UnknownTask, "the call names no id for the task")));
        return;
    };
    let (kill, killed) = oneshot::channel();
    let taken = {
        let mut state = shared.lock();
        let taken = state.tasks.start(&name, &id, unix_time_ms());
        if taken.is_ok() {
            state.starting.insert((name.clone(), id.clone()), kill);
        }
        taken
    };
    if let Err(error) = taken {
        finish(shared, call, Err(error));
        return;
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let Some((run, killed)) = begin_task(&shared, class, &name, &id, call, permit, killed).await else { return };
        run_task(&shared, name, id, run, killed).await;
    });
}

/// Lets the class start a task, and answers its caller. None if there is nothing to run.
async fn begin_task(
    shared: &Arc<Shared>,
    class: Arc<dyn ErasedClass>,
    name: &ClassName,
    id: &TaskId,
    call: IncomingCall,
    permit: OwnedSemaphorePermit,
    killed: oneshot::Receiver<()>,
) -> Option<(TaskRun, oneshot::Receiver<()>)> {
    let ctx = RawTaskContext { node: Arc::clone(shared) as Arc<dyn LocalNode>, class: name.clone(), id: id.clone() };
    let spec = Payload::from_bytes(call.payload.clone());
    let started = tokio::select! {
        biased;
        started = CatchPanic::new(Arc::clone(&class).task(ctx.clone(), spec)) => started.unwrap_or_else(|panic| Err(panicked(&panic))),
        // The sender stays in the table until the task has started, so this is never the end of the worker.
        _ = killed => Err(Error::class("killed", format!("task {id} of class {name} was stopped before its class had started it")).after_sending()),
    };
    drop(permit);
    let mut state = shared.lock();
    // Stopped at the very moment at which it was started: then it ends at once.
    let is_stopped = state.starting.remove(&(name.clone(), id.clone())).is_none();
    match started {
        Ok(RawStarted { handle, reply, run }) => {
            let (mut running, killed) = Running::new(class, ctx, handle);
            if is_stopped {
                running.kill();
            }
            state.running.insert((name.clone(), id.clone()), running);
            let actions = state.tasks.started(name, id);
            shared.perform(&mut state, actions);
            drop(state);
            tracing::debug!(class = %name, task = %id, "task started");
            finish(shared, call, Ok(reply));
            Some((run, killed))
        }
        Err(error) => {
            let actions = state.tasks.ended(name, id, EndReason::error(error.message()));
            shared.perform(&mut state, actions);
            drop(state);
            finish(shared, call, Err(error));
            None
        }
    }
}

/// Runs a task to its end, in the tokio task in which it was started.
async fn run_task(shared: &Arc<Shared>, name: ClassName, id: TaskId, run: TaskRun, killed: oneshot::Receiver<()>) {
    let reason = match CatchPanic::new(run.until_end(killed)).await {
        Ok(TaskEnd::Normal) => EndReason::Normal,
        Ok(TaskEnd::Killed) => EndReason::Killed,
        Ok(TaskEnd::Failed(text)) => EndReason::error(text),
        Err(panic) => EndReason::panicked(panic_text(&panic)),
    };
    tracing::debug!(class = %name, task = %id, %reason, "task ended");
    let mut state = shared.lock();
    state.running.remove(&(name.clone(), id.clone()));
    let actions = state.tasks.ended(&name, &id, reason);
    shared.perform(&mut state, actions);
}
