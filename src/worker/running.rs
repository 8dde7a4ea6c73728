//! A running task: how to reach it, and how to end it.

use std::any::Any;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// Nothing is ever sent: it is dropped when the task has ended.
    _alive: oneshot::Sender<Infallible>,
    kill: Option<oneshot::Sender<()>>,
}

impl Running {
    /// Starts the queue of a task; the other ends are for whoever runs it.
    pub(super) fn new(class: Arc<dyn ErasedClass>, ctx: RawTaskContext, handle: TaskHandle) -> (Self, oneshot::Receiver<()>) {
        let (told, queue) = mpsc::unbounded_channel();
        let (kill, killed) = oneshot::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let (alive, ended) = oneshot::channel();
        let queue = Queue { told: queue, waiting: Arc::clone(&waiting), ended: Some(ended) };
        // Ends with the sender: when the task has ended and the commands that had come were answered.
        tokio::spawn(tell(class, ctx, handle, queue));
        (Self { told, waiting, _alive: alive, kill: Some(kill) }, killed)
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

fn not_found() -> Error {
    Error::new(ErrorCode::TaskNotFound, "the task has ended")
}

/// The reading end of what is told to a task.
struct Queue {
    told: mpsc::UnboundedReceiver<Told>,
    waiting: Arc<AtomicUsize>,
    /// Ends with the task; none when it has ended.
    ended: Option<oneshot::Receiver<Infallible>>,
}

impl Queue {
    /// The next thing to tell; none when the task has ended. Commands that wait then are answered so.
    async fn next(&mut self) -> Option<Told> {
        let told = self.told.recv().await?;
        if let Told::Command(..) = told {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        if self.ended.as_mut().is_some_and(|ended| ended.try_recv() == Err(oneshot::error::TryRecvError::Empty)) {
            return Some(told);
        }
        told.refuse();
        self.refuse_all();
        None
    }

    /// Lets a handler do its work. If the task ends meanwhile, those behind it need not wait for it.
    async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        if let Some(mut ended) = self.ended.take() {
            tokio::select! {
                biased;
                done = &mut work => {
                    self.ended = Some(ended);
                    return done;
                }
                _ = &mut ended => {}
            }
        }
        self.refuse_all();
        work.await
    }

    fn refuse_all(&mut self) {
        while let Ok(told) = self.told.try_recv() {
            told.refuse();
        }
    }
}

impl Told {
    fn refuse(self) {
        if let Told::Command(call, finish) = self {
            finish(*call, Err(not_found()));
        }
    }
}

async fn tell(class: Arc<dyn ErasedClass>, ctx: RawTaskContext, handle: TaskHandle, mut queue: Queue) {
    while let Some(told) = queue.next().await {
        match told {
            Told::Command(call, finish) => {
                let command = Payload::from_bytes(call.payload.clone());
                let answer = Arc::clone(&class).command(ctx.clone(), call.deadline(), Arc::clone(&handle), command);
                let outcome = queue.beside(CatchPanic::new(answer)).await.unwrap_or_else(|panic| Err(panicked(&panic)));
                finish(*call, outcome);
            }
            Told::Status(status) => {
                let work = CatchPanic::new(Arc::clone(&class).status(Arc::clone(&handle), status));
                if let Err(panic) = queue.beside(work).await {
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
