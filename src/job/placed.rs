//! Actors that the ring places: one for each key, on the control node that owns it.
//!
//! The three-layer pattern of the original (checklist N1.26) needs state that is neither on every control node nor on a worker: it lives where its key lives,
//! spreads with the ring, and moves when the ring changes.
//!
//! ```text
//!            first call                      the ring changes                     a split heals
//!   start ──────────────► handle, handle … ──────────────────► hand_over ~~► resume   │ two live ones of one key:
//!                              │ after each: record                                   ▼ the one that moves in
//!                              └──────────────► kept by the next two nodes   join(what the other handed over)
//! ```
//!
//! - A **planned** move loses nothing: messages that came before it are handled before `hand_over`, later ones go to the new place.
//! - A **crash** loses what was not recorded. The newest [`record`](PlacedActor::record) that reached another node is what the next one resumes with.
//! - While the control nodes are split, each side may have one. What must happen only once belongs to a worker, which arbitrates by its term, or behind
//!   conditional storage; the two are [joined](PlacedActor::join) when the split heals.
//! - A message is handled at most once, and messages of one key one after the other.
//! - A [durable](PlacedActor::DURABLE) kind needs no caller: its records are in state directories too, and whoever owns a key goes on with what it has a record of.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::class::decode;
use crate::cluster::{BoxFuture, Cluster, PlacedCall, PlacedKey, PlacedKeys, PlacedSearch};
use crate::error::{Error, ErrorCode, Result};
use crate::ring::KeyHash;
use crate::types::{ClassName, NodeId, Payload};

/// A kind of actor of which the ring places one for each key.
pub trait PlacedActor: Send + Sync + Sized + 'static {
    /// Its name in the cluster, as that of a job class.
    const NAME: &'static str;
    /// What can be said to it.
    type Message: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What it answers.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// What it is, in bytes: moves with it, and is kept of it.
    type Record: Serialize + DeserializeOwned + Send + 'static;
    /// Whether its actors work by themselves, and must go on when their node has gone:
    ///
    /// - their records are also in the state directories of the nodes that have them, and outlive a restart of all of them;
    /// - whoever owns a key that it has a record of starts its actor, without a message;
    /// - a message that changes the record is answered when the record is kept;
    /// - once an actor [is over](PlacedActor::is_over), its record is removed everywhere.
    const DURABLE: bool = false;

    /// Where a key lives. Kinds that give the same hash to their keys live together.
    fn placement(key: &str) -> KeyHash {
        KeyHash::of(key)
    }

    /// Makes the first one of a key. With `None` nobody knows of an earlier one; otherwise it goes on from what that one handed over or had recorded.
    ///
    /// # Errors
    /// The messages that wait for it get the error; the next one tries again.
    fn start(ctx: PlacedContext, record: Option<Self::Record>) -> impl Future<Output = Result<Self>> + Send;

    /// Handles a message.
    ///
    /// # Errors
    /// Whatever its caller should see.
    fn handle(&mut self, message: Self::Message) -> impl Future<Output = Result<Self::Reply>> + Send;

    /// What the next one goes on from. This one has handled its last message.
    fn hand_over(self) -> impl Future<Output = Self::Record> + Send;

    /// Takes in what another one of the same key had, which lived elsewhere at the same time.
    fn join(&mut self, other: Self::Record) -> impl Future<Output = ()> + Send;

    /// What outlives a crash of this node, asked after messages were handled and when [`PlacedContext`] was told that it has changed; `None`: nothing.
    fn record(&self) -> Option<Self::Record> {
        None
    }

    /// Whether it may end, asked after messages were handled: nothing is kept of it on this node, and the next message starts it from its last record elsewhere, or
    /// from nothing. An actor that never says so lives as long as its node, which hosts a bounded number.
    fn is_over(&self) -> bool {
        false
    }
}

/// What an actor knows of its place.
#[derive(Clone, Debug)]
pub struct PlacedContext {
    /// Its key.
    pub key: Arc<str>,
    /// The control node that hosts it.
    pub node: NodeId,
    /// The cluster.
    pub cluster: Cluster,
    pub(crate) kind: ClassName,
    pub(crate) granted: bool,
    pub(crate) recording: Recording,
}

impl PlacedContext {
    /// Says that the record has changed, or that the actor is over, though no message was handled: it is asked soon.
    pub fn record_changed(&self) {
        self.recording.asked.send_modify(|asked| *asked += 1);
    }

    /// The same, and waits until the record is kept by those that could be reached.
    ///
    /// # Errors
    /// `moved` if the actor has ended here meanwhile.
    pub async fn recorded(&self) -> Result<()> {
        let mut number = 0;
        self.recording.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        let kept = self.recording.kept.clone().wait_for(|kept| kept.asked >= number).await.is_ok();
        kept.then_some(()).ok_or_else(|| Error::new(ErrorCode::Moved, format!("{}/{} has ended here", self.kind, self.key)))
    }

    /// Refuses what touches the machine, unless its configuration lets this kind, and leaves a line for the audit either way.
    ///
    /// # Errors
    /// `not_allowed` unless the control node's configuration names the kind in `grants`.
    pub fn require_grant(&self, what: &str) -> Result<()> {
        let Self { key, node, kind, granted, .. } = self;
        tracing::info!(target: "nkcluster::audit", %node, class = %kind, by = %key, what, granted, "grant");
        match granted {
            true => Ok(()),
            false => {
                let message = format!("control node {node} does not let {kind} {what}; add \"{kind}\" to `grants` in its configuration");
                Err(Error::new(ErrorCode::NotAllowed, message))
            }
        }
    }
}

/// How an actor asks for a record of itself, and hears that it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Recording {
    asked: Arc<watch::Sender<u64>>,
    kept: watch::Receiver<Kept>,
}

/// How far records are kept: the version of the newest one, and the number of the last wish that it fulfils.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) version: u64,
    pub(crate) asked: u64,
}

impl Recording {
    /// One for an actor, with the two ends of whoever asks it.
    pub(crate) fn new() -> (Self, watch::Receiver<u64>, watch::Sender<Kept>) {
        let (asked, wishes) = watch::channel(0);
        let (keeping, kept) = watch::channel(Kept::default());
        (Self { asked: Arc::new(asked), kept }, wishes, keeping)
    }
}

/// Calls to placed actors, as an extension of [`Cluster`].
pub trait PlacedCalls {
    /// Sends a message to the one actor of a key, wherever it lives, and waits for its answer.
    ///
    /// # Errors
    /// Those of the actor; `timeout`; `not_connected` while its control node cannot be reached; `unknown_class` where that node does not know the kind.
    /// [`crate::Error::may_have_run`] says whether the message may have been handled.
    fn placed<A: PlacedActor>(&self, key: &str, message: &A::Message, timeout: Duration) -> impl Future<Output = Result<A::Reply>> + Send;

    /// The keys of a kind behind one, or from the first: those that live, and, of a durable kind, those that are to go on from a record. All control nodes are asked at
    /// once, none for longer than two seconds; who did not answer is told.
    ///
    /// # Errors
    /// Those of the way to the control node.
    fn placed_keys<A: PlacedActor>(&self, after: Option<&str>, timeout: Duration) -> impl Future<Output = Result<PlacedKeys>> + Send;
}

impl PlacedCalls for Cluster {
    async fn placed<A: PlacedActor>(&self, key: &str, message: &A::Message, timeout: Duration) -> Result<A::Reply> {
        let key = PlacedKey { kind: super::registry::name_of(A::NAME), key: key.to_owned() };
        let call = PlacedCall { hash: A::placement(&key.key).bits(), key, message: Payload::encode(message)?.into_bytes().into() };
        self.call_placed(call, timeout).await?.decode()
    }

    async fn placed_keys<A: PlacedActor>(&self, after: Option<&str>, timeout: Duration) -> Result<PlacedKeys> {
        let search = PlacedSearch { kind: super::registry::name_of(A::NAME), after: after.map(str::to_owned) };
        self.search_placed(search, timeout).await
    }
}

/// An actor without its types.
pub(crate) trait ErasedActor: Send {
    fn handle(&mut self, message: Payload) -> BoxFuture<'_, Result<Bytes>>;
    fn join(&mut self, other: Payload) -> BoxFuture<'_, Result<()>>;
    fn record(&self) -> Result<Option<Payload>>;
    fn is_over(&self) -> bool;
    fn hand_over(self: Box<Self>) -> BoxFuture<'static, Result<Payload>>;
}

/// A kind of actors without its types.
#[derive(Clone)]
pub(crate) struct PlacedKind {
    pub(crate) make: ActorMaker,
    pub(crate) is_durable: bool,
}

/// Makes actors of one kind.
pub(crate) type ActorMaker = Arc<dyn Fn(PlacedContext, Option<Payload>) -> BoxFuture<'static, Result<Box<dyn ErasedActor>>> + Send + Sync>;

struct Typed<A>(A);

impl<A: PlacedActor> ErasedActor for Typed<A> {
    fn handle(&mut self, message: Payload) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(async move {
            let message = decode(&message, A::NAME, ErrorCode::UnknownRequest)?;
            Ok(Payload::encode(&self.0.handle(message).await?)?.into_bytes())
        })
    }

    fn join(&mut self, other: Payload) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let other = other.decode()?;
            self.0.join(other).await;
            Ok(())
        })
    }

    fn record(&self) -> Result<Option<Payload>> {
        self.0.record().map(|record| Payload::encode(&record)).transpose()
    }

    fn is_over(&self) -> bool {
        self.0.is_over()
    }

    fn hand_over(self: Box<Self>) -> BoxFuture<'static, Result<Payload>> {
        Box::pin(async move { Payload::encode(&self.0.hand_over().await) })
    }
}

/// A kind whose actors `start` makes.
pub(super) fn kind<A, S, R>(start: S) -> PlacedKind
where
    A: PlacedActor,
    S: Fn(PlacedContext, Option<A::Record>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<A>> + Send + 'static,
{
    let start = Arc::new(start);
    let make: ActorMaker = Arc::new(move |ctx, record| {
        let start = Arc::clone(&start);
        Box::pin(async move {
            let record = record.map(|record| record.decode()).transpose()?;
            let actor: Box<dyn ErasedActor> = Box::new(Typed(start(ctx, record).await?));
            Ok(actor)
        })
    });
    PlacedKind { make, is_durable: A::DURABLE }
}
