//! What runs a task: a future, or a ractor actor under a supervisor of its own.

use std::fmt;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use crate::cluster::BoxFuture;
use crate::error::{Error, ErrorCode, Result};

/// What runs a task until its end.
pub struct TaskRun {
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    Future(BoxFuture<'static, Result<()>>),
    Actor { actor: Owned, ended: oneshot::Receiver<TaskEnd> },
}

/// An actor that ends with the task it runs, also if that is never started because its class failed afterwards.
pub(super) struct Owned(ActorCell);

impl Drop for Owned {
    fn drop(&mut self) {
        // Of an actor that has ended nothing is left to kill.
        self.0.kill();
    }
}

/// How a task ended.
pub(crate) enum TaskEnd {
    Normal,
    Killed,
    Failed(String),
}

impl fmt::Debug for TaskRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskRun").finish_non_exhaustive()
    }
}

impl TaskRun {
    /// A future; an error is the reason of the task's end.
    pub fn future(future: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self { kind: Kind::Future(Box::pin(future)) }
    }

    /// Runs to the end, or until `killed`.
    pub(crate) async fn until_end(self, killed: oneshot::Receiver<()>) -> TaskEnd {
        // A sender that is gone without a word is the end of the executor, not a kill.
        let killed = async {
            if killed.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        match self.kind {
            Kind::Future(future) => tokio::select! {
                ended = future => match ended {
                    Ok(()) => TaskEnd::Normal,
                    Err(error) => TaskEnd::Failed(format!("{}: {}", error.code(), error.message())),
                },
                () = killed => TaskEnd::Killed,
            },
            Kind::Actor { actor, mut ended } => {
                let end = tokio::select! {
                    end = &mut ended => end,
                    () = killed => {
                        actor.0.kill();
                        ended.await
                    }
                };
                end.unwrap_or_else(|_| TaskEnd::Failed("the supervisor of the task has gone".into()))
            }
        }
    }

    /// Starts an actor under a supervisor of its own. The task ends with the actor; stopping the task kills it.
    ///
    /// Its messages are of a type of yours with `impl ractor::Message for …`. One that ractor can serialise, such as `String`, would make the actor known to all control
    /// nodes and is refused.
    ///
    /// # Errors
    /// `class_error` if `pre_start` of the actor failed, or if its messages can be serialised.
    pub async fn actor<A: Actor>(actor: A, arguments: A::Arguments) -> Result<(ActorRef<A::Msg>, Self)> {
        if <A::Msg as ractor::Message>::serializable() {
            let what = "the messages of a task's actor must not be serialisable: give it a type of its own with `impl ractor::Message`";
            return Err(Error::new(ErrorCode::ClassError, what));
        }
        let (told, ended) = oneshot::channel();
        let failed = |error| Error::new(ErrorCode::ClassError, format!("the task's actor did not start: {error}"));
        let (supervisor, _) = Actor::spawn(None, Supervisor, told).await.map_err(failed)?;
        match Actor::spawn_linked(None, actor, arguments, supervisor.get_cell()).await {
            Ok((actor, _)) => {
                let owned = Owned(actor.get_cell());
                Ok((actor, Self { kind: Kind::Actor { actor: owned, ended } }))
            }
            Err(error) => {
                supervisor.stop(None);
                Err(failed(error))
            }
        }
    }
}

/// Tells how its one child ended, and ends with it. Nobody sends it anything.
struct Supervisor;

/// Not `()`, which ractor can serialise: an actor that could be addressed from other nodes would be announced to all of them.
enum Nothing {}

impl ractor::Message for Nothing {}

impl Actor for Supervisor {
    type Msg = Nothing;
    type State = Option<oneshot::Sender<TaskEnd>>;
    type Arguments = oneshot::Sender<TaskEnd>;

    async fn pre_start(&self, _: ActorRef<Nothing>, told: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        Ok(Some(told))
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Nothing>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let end = match event {
            SupervisionEvent::ActorTerminated(_, _, Some(reason)) if reason == "killed" => TaskEnd::Killed,
            SupervisionEvent::ActorTerminated(..) => TaskEnd::Normal,
            SupervisionEvent::ActorFailed(_, error) => TaskEnd::Failed(error.to_string()),
            _ => return Ok(()),
        };
        if let Some(told) = state.take() {
            // The executor may have gone already, at the end of the process.
            let _ = told.send(end);
        }
        myself.stop(None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails;
    struct Fail(bool);
    impl ractor::Message for Fail {}

    impl Actor for Fails {
        type Msg = Fail;
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<Fail>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle(&self, myself: ActorRef<Fail>, Fail(fail): Fail, (): &mut ()) -> Result<(), ActorProcessingErr> {
            if fail {
                return Err("as told".into());
            }
            myself.stop(None);
            Ok(())
        }
    }

    async fn end_of(act: impl FnOnce(&ActorRef<Fail>)) -> TaskEnd {
        let (actor, run) = TaskRun::actor(Fails, ()).await.expect("starts");
        act(&actor);
        match run.kind {
            Kind::Actor { actor: _owned, ended } => ended.await.expect("the supervisor tells the end"),
            Kind::Future(_) => unreachable!("it is an actor"),
        }
    }

    #[tokio::test]
    async fn an_actor_whose_task_is_never_run_ends() {
        let (actor, run) = TaskRun::actor(Fails, ()).await.expect("starts");
        drop(run);
        actor.wait(None).await.expect("it ends");
    }

    struct Exported;

    impl Actor for Exported {
        type Msg = String;
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<String>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_actor_that_all_nodes_would_know_is_refused() {
        let error = TaskRun::actor(Exported, ()).await.expect_err("refused");
        assert_eq!(error.code(), &ErrorCode::ClassError);
    }

    #[tokio::test]
    async fn the_end_of_an_actor_has_its_reason() {
        let failed = end_of(|actor| actor.cast(Fail(true)).expect("alive")).await;
        assert!(matches!(failed, TaskEnd::Failed(reason) if reason.contains("as told")));
        assert!(matches!(end_of(|actor| actor.cast(Fail(false)).expect("alive")).await, TaskEnd::Normal));
        assert!(matches!(end_of(|actor| actor.kill()).await, TaskEnd::Killed));
    }
}
