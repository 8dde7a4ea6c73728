//! A running task: how to reach it, and how to end it.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};

use crate::connection::IncomingCall;
use crate::error::{Error, ErrorCode};
use crate::job::{ErasedClass, RawTaskContext, TaskHandle};
use crate::proto::head::Outcome;
use crate::types::{NodeStatus, Payload};

/// Commands of one task that may wait.
const COMMANDS_MAX: usize = 256;

/// Answers a command, remembering its outcome.
pub(super) type Finish = Box<dyn FnOnce(IncomingCall, Outcome) + Send>;

/// What is told to a running task, one thing after the other.
enum Told {
    Command(Box<IncomingCall>, Finish),
    Status(NodeStatus),
}

/// A task that its class has started.
pub(super) struct Running {
    told: mpsc::UnboundedSender<Told>,
    waiting: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    kill: Option<oneshot::Sender<()>>,
}

impl Running {
    /// Starts the queue of a task; the other ends are for whoever runs it.
    pub(super) fn new(class: Arc<dyn ErasedClass>, ctx: RawTaskContext, handle: TaskHandle) -> (Self, oneshot::Receiver<()>) {
        let (told, queue) = mpsc::unbounded_channel();
        let (kill, killed) = oneshot::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        // Ends with the sender: when the task has ended and the commands that had come were answered.
        let ended = Arc::new(AtomicBool::new(false));
        tokio::spawn(tell(class, ctx, handle, queue, Arc::clone(&waiting), Arc::clone(&ended)));
        (Self { told, waiting, ended, kill: Some(kill) }, killed)
    }

    /// Queues a command; it is answered there.
    ///
    /// # Errors
    /// `busy`, with the command given back.
    pub(super) fn command(&self, call: Box<IncomingCall>, finish: Finish) -> Result<(), (Box<IncomingCall>, Error)> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= COMMANDS_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err((call, Error::new(ErrorCode::Busy, format!("{COMMANDS_MAX} commands wait for this task already; try again"))));
        }
        match self.told.send(Told::Command(call, finish)) {
            Err(mpsc::error::SendError(Told::Command(call, _))) => Err((call, not_found())),
            _ => Ok(()),
        }
    }

    /// Queues a change of status. Bounded by the changes themselves, which need a request each.
    pub(super) fn notify(&self, status: NodeStatus) {
        // A task that has just ended needs no status any more.
        let _ = self.told.send(Told::Status(status));
    }

    /// Ends the task; false if it was killed before.
    pub(super) fn kill(&mut self) -> bool {
        self.kill.take().is_some_and(|kill| kill.send(()).is_ok())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Commands that still wait are told so; the one being answered gets its answer.
        self.ended.store(true, Ordering::Release);
    }
}

fn not_found() -> Error {
    Error::new(ErrorCode::TaskNotFound, "the task has ended")
}

async fn tell(
    class: Arc<dyn ErasedClass>,
    ctx: RawTaskContext,
    handle: TaskHandle,
    mut queue: mpsc::UnboundedReceiver<Told>,
    waiting: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
) {
    while let Some(told) = queue.recv().await {
        match told {
            Told::Command(call, finish) => {
                waiting.fetch_sub(1, Ordering::Relaxed);
                if ended.load(Ordering::Acquire) {
                    finish(*call, Err(not_found()));
                    continue;
                }
                let command = Payload::from_bytes(call.payload.clone());
                let answer = Arc::clone(&class).command(ctx.clone(), call.deadline(), Arc::clone(&handle), command);
                let outcome = CatchPanic::new(answer).await.unwrap_or_else(|panic| Err(panicked(&panic)));
                finish(*call, outcome);
            }
            Told::Status(status) => {
                if let Err(panic) = CatchPanic::new(Arc::clone(&class).status(Arc::clone(&handle), status)).await {
                    tracing::warn!(class = %ctx.class, task = %ctx.id, panic = panic_text(&panic), "the status handler of a class panicked");
                }
            }
        }
    }
}

/// The error that a caller gets for a handler that panicked.
pub(super) fn panicked(panic: &Panic) -> Error {
    let what = format!("the handler of the class panicked: {}; the worker goes on", panic_text(panic));
    Error::new(ErrorCode::HandlerPanicked, what).after_sending()
}

/// What a panic carries.
pub(super) type Panic = Box<dyn Any + Send>;

/// The words of a panic.
pub(super) fn panic_text(panic: &Panic) -> &str {
    let panic: &(dyn Any + Send) = &**panic;
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}

/// A future whose panic is its result. The future is dropped with it, and nothing of it is looked at again.
pub(super) struct CatchPanic<F> {
    future: Pin<Box<F>>,
}

impl<F: Future> CatchPanic<F> {
    pub(super) fn new(future: F) -> Self {
        Self { future: Box::pin(future) }
    }
}

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, Panic>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match std::panic::catch_unwind(AssertUnwindSafe(|| self.future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}
