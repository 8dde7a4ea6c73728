//! The task around the machine: links, dials, the clock and the disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::carrier::actors::{Actors, Token};
use super::carrier::{OverLink, Way};
use super::dials::DialNumber;
use super::envelope::{Envelope, RowState};
use super::machine::{Action, Machine, SessionKey, Setup};
use super::saved::Writer;
use crate::connection::establish::{Expect, Order, dial_and_establish};
use crate::connection::{ByteStream, IncomingCall, Link, LinkParts};
use crate::control::messages::PeerRequest;
use crate::control::peers;
use crate::control::shared::Shared;
use crate::control::view::View;
use crate::error::{Error, ErrorCode};
use crate::proto::auth::Role;
use crate::proto::session::Side;
use crate::types::{NodeId, NodeUri, UriOptions};

/// Longest time of one attempt to dial a control node.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Envelopes of one link that may wait for the keeper. An honest peer sends a few a second, and more only while many join at once.
const TURNS_MAX: usize = 1024;

/// What is asked, and how it is answered once everything that follows is under way.
type Question = Box<dyn FnOnce(&mut Machine, std::time::Instant) -> (Vec<Action>, Box<dyn FnOnce() + Send>) + Send>;

/// What the keeper is told.
pub(super) enum Event {
    Linked {
        key: SessionKey,
        link: Link,
        dial: Option<DialNumber>,
    },
    Unlinked(SessionKey),
    Envelope {
        key: SessionKey,
        bytes: Bytes,
        by_link: bool,
        _turn: OwnedSemaphorePermit,
    },
    /// The session that carried the envelopes of a link is gone.
    CarrierEnded(SessionKey),
    /// A peer that dialled wants a session for the envelopes of a link.
    SessionWanted {
        key: SessionKey,
        token: Token,
        call: Box<IncomingCall>,
    },
    /// The peer that we dialled has one ready for us, or none.
    SessionGranted {
        key: SessionKey,
        token: Token,
        stream: Option<ByteStream>,
    },
    /// How the envelopes of a link travel.
    Decided {
        key: SessionKey,
        carrier: Box<dyn super::carrier::Carrier>,
    },
    DialFailed(DialNumber, Error),
    /// A dial led to this node, to whose life there is a link.
    FoundAgain(DialNumber, NodeId),
    /// Somebody asks the machine.
    Ask(Question),
    Stop,
}

/// The handle of membership. Cheap to clone; what it tells reaches the keeper in order.
#[derive(Clone)]
pub(crate) struct Membership {
    events: mpsc::UnboundedSender<Event>,
}

/// What the handler of a link holds: a place for each envelope that waits.
pub(crate) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TURNS_MAX)))
    }
}

impl Membership {
    /// A handle, and what its keeper will read.
    pub(super) fn channel() -> (Self, mpsc::UnboundedReceiver<Event>) {
        // Bounded by what is sent: one event for each link and dial, and the turns of each link.
        let (events, receiver) = mpsc::unbounded_channel();
        (Self { events }, receiver)
    }

    /// A keeper that has ended has nothing to do any more.
    pub(super) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    pub(crate) fn linked(&self, key: SessionKey, link: &Link, dial: Option<DialNumber>) {
        self.tell(Event::Linked { key, link: link.clone(), dial });
    }

    pub(crate) fn unlinked(&self, key: SessionKey) {
        self.tell(Event::Unlinked(key));
    }

    /// An envelope came; false if more wait than an honest peer would send.
    pub(crate) fn envelope(&self, key: SessionKey, bytes: Bytes, turns: &Turns) -> bool {
        self.came(key, bytes, turns, true)
    }

    /// The same, by way of an actor.
    pub(super) fn routed(&self, key: SessionKey, bytes: Bytes, turns: &Turns) -> bool {
        self.came(key, bytes, turns, false)
    }

    fn came(&self, key: SessionKey, bytes: Bytes, turns: &Turns, by_link: bool) -> bool {
        match Arc::clone(&turns.0).try_acquire_owned() {
            Ok(turn) => {
                self.tell(Event::Envelope { key, bytes, by_link, _turn: turn });
                true
            }
            Err(_) => false,
        }
    }

    /// A peer that dialled wants a session for the envelopes of a link.
    pub(crate) fn session_wanted(&self, key: SessionKey, token: Token, call: IncomingCall) {
        self.tell(Event::SessionWanted { key, token, call: Box::new(call) });
    }

    /// Asks the machine; none if the keeper has ended.
    pub(super) async fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Machine, std::time::Instant) -> (R, Vec<Action>) + Send + 'static,
    ) -> Option<R> {
        let (answer, answered) = oneshot::channel();
        self.tell(Event::Ask(Box::new(move |machine, now| {
            let (result, actions) = question(machine, now);
            // Whoever asked may not wait any more.
            (actions, Box::new(move || drop(answer.send(result))))
        })));
        answered.await.ok()
    }

    /// Says to all peers what this node is from now on.
    pub(crate) async fn become_state(&self, state: RowState) {
        self.ask(move |machine, now| ((), machine.become_state(state, now))).await;
    }

    /// Ends the keeper, and every dial.
    pub(crate) fn stop(&self) {
        self.tell(Event::Stop);
    }
}

/// The task.
pub(super) struct Keeper {
    shared: Weak<Shared>,
    handle: Membership,
    events: mpsc::UnboundedReceiver<Event>,
    machine: Machine,
    links: BTreeMap<SessionKey, (Link, Way)>,
    dials: JoinSet<()>,
    writer: Writer,
    actors: Option<Actors>,
    /// The options by which the configuration reaches control nodes, for addresses that others tell.
    way_in: Option<UriOptions>,
    is_encrypted: bool,
    leaving: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn spawn(
        shared: &Arc<Shared>,
        handle: Membership,
        events: mpsc::UnboundedReceiver<Event>,
        setup: Setup,
        actors: Option<Actors>,
    ) {
        let first = setup.seeds.first();
        let keeper = Self {
            way_in: first.map(|seed| seed.options().clone()),
            is_encrypted: first.is_some_and(|seed| seed.effective_transport().is_encrypted()),
            shared: Arc::downgrade(shared),
            handle,
            events,
            machine: Machine::new(setup, Instant::now().into_std()),
            links: BTreeMap::new(),
            dials: JoinSet::new(),
            writer: Writer::new(&shared.config.state_dir),
            actors,
            leaving: None,
        };
        tokio::spawn(keeper.run());
    }

    async fn run(mut self) {
        let first = self.machine.handle_timeout(Instant::now().into_std());
        self.perform(first);
        loop {
            let deadline = Instant::from_std(self.machine.next_deadline());
            let event = tokio::select! {
                event = self.events.recv() => event,
                () = tokio::time::sleep_until(deadline) => {
                    let actions = self.machine.handle_timeout(Instant::now().into_std());
                    self.perform(actions);
                    continue;
                }
            };
            while self.dials.try_join_next().is_some() {}
            match event {
                None | Some(Event::Stop) => break,
                Some(Event::Ask(question)) => {
                    let (actions, answer) = question(&mut self.machine, Instant::now().into_std());
                    self.perform(actions);
                    answer();
                }
                Some(event) => {
                    let actions = self.apply(event);
                    self.perform(actions);
                }
            }
            if self.shared.strong_count() == 0 {
                break;
            }
        }
        for (_, way) in self.links.values() {
            way.close();
        }
        self.leaving.take().inspect(JoinHandle::abort);
        self.writer.finish().await;
    }

    fn apply(&mut self, event: Event) -> Vec<Action> {
        let now = Instant::now().into_std();
        match event {
            Event::Linked { key, link, dial } => {
                let peer = (link.peer().id.clone(), link.peer().incarnation);
                let way = self.first_way(key, &link, dial.is_some());
                self.links.insert(key, (link, way));
                self.machine.linked(key, peer, dial, now)
            }
            Event::Unlinked(key) => {
                if let Some((_, way)) = self.links.remove(&key) {
                    way.close();
                }
                self.machine.unlinked(key, now)
            }
            Event::Envelope { key, bytes, by_link, _turn } => {
                let Some((link, way)) = self.links.get_mut(&key) else { return Vec::new() };
                if by_link && !way.is_decided() {
                    // The peer dialled, and this is how it speaks.
                    way.decide(Box::new(OverLink(link.clone())));
                }
                match Envelope::decode(&bytes) {
                    Ok(envelope) => self.machine.envelope(key, envelope, now),
                    Err(error) => {
                        tracing::warn!(peer = %link.peer().id, %error, "a control node sent what cannot be read");
                        Vec::new()
                    }
                }
            }
            Event::Decided { key, carrier } => {
                match self.links.get_mut(&key) {
                    Some((link, way)) => {
                        tracing::info!(peer = %link.peer().id, "membership travels between actors");
                        way.decide(carrier);
                    }
                    None => carrier.close(),
                }
                Vec::new()
            }
            Event::CarrierEnded(key) => {
                // Without it the link is of no use to membership; its end is told like any other.
                if let Some((link, _)) = self.links.get(&key) {
                    link.close(Error::new(ErrorCode::ConnectionFailed, "the session of the actors ended"));
                }
                Vec::new()
            }
            Event::SessionWanted { key, token, call } => {
                self.grant(key, token, *call);
                Vec::new()
            }
            Event::SessionGranted { key, token, stream } => {
                self.granted(key, token, stream);
                Vec::new()
            }
            Event::DialFailed(number, error) => {
                tracing::debug!(%error, "a control node cannot be reached");
                self.machine.dial_failed(number, now)
            }
            Event::FoundAgain(number, id) => self.machine.found_again(number, &id, now),
            // Seen by the loop.
            Event::Ask(_) | Event::Stop => Vec::new(),
        }
    }

    /// How the envelopes of a new link travel, as far as it is known.
    fn first_way(&self, key: SessionKey, link: &Link, we_dialled: bool) -> Way {
        if !we_dialled {
            return Way::Undecided(Vec::new());
        }
        if self.actors.is_none() {
            return Way::Known(Box::new(OverLink(link.clone())));
        }
        let (handle, link, token) = (self.handle.clone(), link.clone(), rand::random());
        tokio::spawn(async move {
            let granted = peers::ask_with_stream(&link, &PeerRequest::Session { token }, DIAL_TIMEOUT).await;
            let stream =
                granted.inspect_err(|error| tracing::debug!(peer = %link.peer().id, %error, "membership travels on the data link")).ok();
            handle.tell(Event::SessionGranted { key, token, stream });
        });
        Way::Undecided(Vec::new())
    }

    /// A peer that dialled asks for a session. One that gets none goes on with the link itself.
    fn grant(&mut self, key: SessionKey, token: Token, mut call: IncomingCall) {
        let known = self.links.get(&key).is_some_and(|(_, way)| !way.is_decided());
        match (&self.actors, call.stream.take()) {
            (Some(actors), Some(stream)) if known => {
                call.reply(&peers::done());
                actors.open(key, token, stream, true);
            }
            _ => call.reply(&Err(Error::new(ErrorCode::NotAllowed, "membership travels on the data link here"))),
        }
    }

    fn granted(&mut self, key: SessionKey, token: Token, stream: Option<ByteStream>) {
        let Some((link, way)) = self.links.get_mut(&key) else { return };
        match (&self.actors, stream) {
            (Some(actors), Some(stream)) => actors.open(key, token, stream, false),
            _ => way.decide(Box::new(OverLink(link.clone()))),
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let Some(shared) = self.shared.upgrade() else { return };
        for action in actions {
            match action {
                Action::Send { session, envelope } => {
                    if let Some((_, way)) = self.links.get_mut(&session) {
                        way.send(envelope.encode());
                    }
                }
                Action::Close { session, reason } => {
                    if let Some((link, way)) = self.links.remove(&session) {
                        tracing::debug!(peer = %link.peer().id, code = %reason.code(), reason = reason.message(), "session with a control node ends");
                        way.close();
                        link.close(reason);
                    }
                }
                Action::Dial { number, id, addresses } => self.dial(&shared, number, id, addresses),
                Action::Publish(view) => publish(&shared, *view),
                Action::Persist(saved) => self.writer.write(*saved),
                Action::Alarm(error) => tracing::error!(node = %shared.id, code = %error.code(), "{error}"),
            }
        }
        self.leave_when_drained(&shared);
    }

    fn dial(&mut self, shared: &Arc<Shared>, number: DialNumber, id: Option<NodeId>, addresses: Vec<NodeUri>) {
        let addresses = if id.is_some() { self.on_our_way(addresses) } else { addresses };
        let (shared, handle) = (Arc::clone(shared), self.handle.clone());
        self.dials.spawn(async move {
            // A link may have come while an address did not answer. A second one would take its place, and what is under way on it would be cut.
            let (declines, linked) = peers::decline_linked(&shared);
            let expect = Expect { role: Role::Control, id, declines: Some(declines) };
            let dialled = dial_and_establish(&addresses, &shared.party, &expect, Order::AsGiven, &shared.dial);
            let error = match tokio::time::timeout(DIAL_TIMEOUT, dialled).await {
                Ok(Ok(established)) => {
                    peers::start(&shared, LinkParts { established, side: Side::Dialler }, Some(number));
                    return;
                }
                Ok(Err(error)) => error.into(),
                Err(_) => Error::new(ErrorCode::Timeout, format!("no answer within {DIAL_TIMEOUT:?}")),
            };
            handle.tell(match linked.get() {
                Some(link) => Event::FoundAgain(number, link.peer().id.clone()),
                None => Event::DialFailed(number, error),
            });
        });
    }

    /// Addresses that others tell are reached as the configuration reaches its own: with the same password and certificates, and never without encryption if
    /// these have it.
    fn on_our_way(&self, told: Vec<NodeUri>) -> Vec<NodeUri> {
        let Some(options) = &self.way_in else { return told };
        let safe = told.into_iter().filter(|uri| !self.is_encrypted || uri.effective_transport().is_encrypted());
        safe.map(|uri| {
            let ws_proto = uri.options().ws_proto.clone();
            uri.with_options(UriOptions { ws_proto, ..options.clone() })
        })
        .collect()
    }

    /// A node that was told to leave has left when nobody depends on it any more, or when it has waited long enough.
    fn leave_when_drained(&mut self, shared: &Arc<Shared>) {
        if self.machine.own_state() != RowState::Leaving || self.leaving.is_some() || shared.will_stop() {
            return;
        }
        let (shared, handle) = (Arc::downgrade(shared), self.handle.clone());
        self.leaving = Some(tokio::spawn(async move {
            let Some(patience) = shared.upgrade().map(|shared| shared.config.drain_timeout) else { return };
            let deadline = Instant::now() + patience;
            while shared.upgrade().is_some_and(|shared| shared.directory.all().iter().any(|proxy| proxy.current().is_some()))
                && Instant::now() < deadline
            {
                tokio::time::sleep(DRAIN_PAUSE).await;
            }
            // One that stops is expected back.
            if shared.upgrade().is_some_and(|shared| !shared.will_stop()) {
                handle.become_state(RowState::Left).await;
            }
        }));
    }
}

/// Pause between two looks at the proxies of a node that leaves.
const DRAIN_PAUSE: Duration = Duration::from_millis(50);

fn publish(shared: &Shared, view: View) {
    #[cfg(test)]
    if shared.is_pinned.load(std::sync::atomic::Ordering::SeqCst) {
        return;
    }
    let names: Vec<&str> = view.live.keys().map(NodeId::as_str).collect();
    tracing::info!(node = %shared.id, live = ?names, epoch = format_args!("{:016x}", view.epoch()), frozen = view.frozen, "control nodes");
    shared.view.send_replace(Arc::new(view));
}
