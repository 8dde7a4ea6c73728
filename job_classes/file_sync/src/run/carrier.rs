//! Operations on their way to whoever carries them out, and what comes back.

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::operation::Operation;

/// Operations and outcomes that wait. Then planning waits for work, or work for whoever counts.
const WAITING_MAX: usize = 1024;

/// What became of one operation, or of the carrier itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The file that it is about.
    pub(crate) path: String,
    /// Why it failed, if it did.
    pub(crate) failure: Option<Failed>,
}

/// A failure that was counted already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) error: String,
    /// Another try of the run may succeed.
    pub(crate) is_retryable: bool,
}

/// The side of the run.
pub(crate) struct Carrier {
    operations: mpsc::Sender<Sent>,
    outcomes: mpsc::Receiver<Outcome>,
    is_idle: bool,
    task: Option<JoinHandle<Result<(), String>>>,
}

/// The side of whoever carries out.
pub(crate) struct Sink {
    operations: mpsc::Receiver<Sent>,
    outcomes: mpsc::Sender<Outcome>,
}

/// What goes to the carrier.
#[derive(Debug)]
pub(crate) enum Sent {
    Operation(Operation),
    /// Nothing follows for now: what was collected may begin.
    Flush,
    /// Nothing follows until everything before is done; then this is answered.
    Settle(oneshot::Sender<()>),
}

impl Sink {
    /// What comes next; none at the end.
    pub(crate) async fn next(&mut self) -> Option<Sent> {
        self.operations.recv().await
    }

    /// Of what waits already.
    pub(crate) fn waiting(&self) -> usize {
        self.operations.len()
    }

    /// Tells what became of operations.
    pub(crate) fn teller(&self) -> mpsc::Sender<Outcome> {
        self.outcomes.clone()
    }
}

/// Both sides. `carry` runs until its sink has no more. It tells each operation that failed, and may tell those that were done.
pub(crate) fn carrier<F>(carry: impl FnOnce(Sink) -> F) -> Carrier
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let (operations, taken) = mpsc::channel(WAITING_MAX);
    let (told, outcomes) = mpsc::channel(WAITING_MAX);
    let task = tokio::spawn(carry(Sink { operations: taken, outcomes: told }));
    Carrier { operations, outcomes, is_idle: true, task: Some(task) }
}

impl Carrier {
    /// Sends an operation on its way; outcomes of others are heard meanwhile.
    ///
    /// # Errors
    /// Why the carrier has ended as a whole.
    pub(crate) async fn submit(&mut self, operation: Operation, heard: &mut impl FnMut(Outcome)) -> Result<(), String> {
        self.is_idle = false;
        self.send(Sent::Operation(operation), heard).await
    }

    /// Lets begin what was sent.
    pub(crate) async fn flush(&mut self, heard: &mut impl FnMut(Outcome)) -> Result<(), String> {
        match std::mem::replace(&mut self.is_idle, true) {
            true => Ok(()),
            false => self.send(Sent::Flush, heard).await,
        }
    }

    async fn send(&mut self, sent: Sent, heard: &mut impl FnMut(Outcome)) -> Result<(), String> {
        loop {
            let outcome = tokio::select! {
                biased;
                outcome = self.outcomes.recv() => outcome,
                room = self.operations.reserve() => match room {
                    Ok(room) => {
                        room.send(sent);
                        return Ok(());
                    }
                    Err(_) => None,
                },
            };
            let Some(outcome) = outcome else { return Err(self.ended().await) };
            heard(outcome);
        }
    }

    /// The next outcome; pending while there is none.
    pub(crate) async fn outcome(&mut self) -> Result<Outcome, String> {
        match self.outcomes.recv().await {
            Some(outcome) => Ok(outcome),
            None => Err(self.ended().await),
        }
    }

    /// Asks that everything which was sent be done; the answer comes when it is. Outcomes are to be heard meanwhile, and those that are left afterwards.
    pub(crate) async fn begin_settling(&mut self, heard: &mut impl FnMut(Outcome)) -> Result<oneshot::Receiver<()>, String> {
        let (done, is_done) = oneshot::channel();
        self.send(Sent::Settle(done), heard).await?;
        Ok(is_done)
    }

    /// An outcome that is there already.
    pub(crate) fn left(&mut self) -> Option<Outcome> {
        self.outcomes.try_recv().ok()
    }

    /// Why it has given no answer.
    pub(crate) async fn given_up(&mut self) -> String {
        self.ended().await
    }

    /// No more follows; resolves when the carrier has put everything away.
    pub(crate) async fn finish(mut self, heard: &mut impl FnMut(Outcome)) -> Result<(), String> {
        let (closed, _) = mpsc::channel(1);
        self.operations = closed;
        while let Some(outcome) = self.outcomes.recv().await {
            heard(outcome);
        }
        match self.task.take() {
            Some(task) => joined(task).await,
            None => Ok(()),
        }
    }

    /// Why it has ended before its time.
    async fn ended(&mut self) -> String {
        match self.task.take() {
            Some(task) => joined(task).await.err().unwrap_or_else(|| "the work ended before its time".to_owned()),
            None => "the work ended before its time".to_owned(),
        }
    }
}

async fn joined(task: JoinHandle<Result<(), String>>) -> Result<(), String> {
    match task.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err("the work was given up".to_owned()),
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
