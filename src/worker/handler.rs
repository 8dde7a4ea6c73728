//! What a worker does with the frames of one link.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt as _;
use tokio::time::Instant;

use super::adoption::{AdoptAnswer, AdoptRequest, Standing, Ticket};
use super::shared::{Held, Redirected, Shared, channel_key, is_of_link};
use super::{exclusive, executor};
use crate::connection::{Channel, IncomingCall, Link, LinkHandler};
use crate::error::{Error, ErrorCode};
use crate::proto::auth::Role;
use crate::proto::head::{EventHead, Rank};
use crate::proto::message::{Adopt, Adopted, EventAck, Fenced, Message};
use crate::types::NodeUri;

/// `way` is the address by which this worker has dialled the link, if it has.
pub(super) fn new(shared: Arc<Shared>, link: &Link, way: Option<NodeUri>) -> Arc<dyn LinkHandler> {
    let number = shared.add_link(link);
    Arc::new(Handler { shared, number, way })
}

struct Handler {
    shared: Arc<Shared>,
    number: u64,
    way: Option<NodeUri>,
}

impl Handler {
    fn standing(&self, channel: u16) -> Standing {
        self.shared.lock().adoption.check(channel_key(self.number, channel))
    }

    fn adopt(&self, channel: &Channel, adopt: Adopt) {
        let shared = &self.shared;
        let request = AdoptRequest {
            channel: channel_key(self.number, channel.id()),
            worker_incarnation: adopt.worker_incarnation,
            seen_term: adopt.seen_term,
            owner: adopt.owner.clone(),
            owner_incarnation: adopt.owner_incarnation,
            rank: adopt.rank,
            ticket: adopt.ticket,
        };
        let fresh_ticket = Ticket::from_bytes(rand::rng().random());
        let mut state = shared.lock();
        match state.adoption.adopt(request, fresh_ticket, Instant::now().into_std()) {
            AdoptAnswer::Granted { term, ticket, .. } => {
                tracing::info!(node = %shared.id, owner = %adopt.owner, term, remote = channel.link().remote(), "adopted");
                state.adoption.pinged_every(Duration::from_millis(adopt.ping_ms.into()));
                state.current = Some(channel.clone());
                if state.sent_away.as_ref() != Some(channel.link()) {
                    // Whoever has sent us away has lost us: its word is nothing to the next holder's end.
                    (state.sent_away, state.reconnect_after) = (None, None);
                }
                channel.message(&Message::Adopted(Adopted::Granted { term, ticket }));
                shared.resync(&mut state);
                drop(state);
                shared.held.send_replace(Held::By(adopt.owner));
                shared.publish();
            }
            AdoptAnswer::Refused { term, holder, reason } => {
                drop(state);
                tracing::info!(node = %shared.id, owner = %adopt.owner, term, reason = reason.name(), "refused an adoption");
                channel.message(&Message::Adopted(Adopted::Refused { term, holder, reason: reason.name().to_owned() }));
            }
        }
    }

    fn acknowledged(&self, channel: &Channel, ack: &EventAck) {
        if let Standing::Fenced { term, holder } = self.standing(channel.id()) {
            channel.message(&Message::Fenced(Fenced { term, holder }));
            return;
        }
        let mut state = self.shared.lock();
        if let Err(error) = state.journal.ack(&ack.class, ack.seq) {
            tracing::warn!(node = %self.shared.id, %error, "the holder acknowledged what it was never sent");
        }
        state.journal.followed(&ack.class, ack.followed);
        state.pump();
        drop(state);
        self.shared.has_moved();
    }
}

impl LinkHandler for Handler {
    fn call(&self, call: IncomingCall) {
        let standing = self.shared.lock().adoption.check_call(channel_key(self.number, call.channel().id()));
        match standing {
            Standing::Current if self.shared.refuses_calls() => {
                let what = format!("worker {} is stopping; nothing was done", self.shared.id);
                call.reply(&Err(Error::new(ErrorCode::ShuttingDown, what)));
            }
            Standing::Current => executor::execute(&self.shared, call),
            Standing::Fenced { term, holder } => {
                let holder_name = holder.as_ref().map_or("nobody", |holder| holder.as_str());
                let what = format!("worker {} is held by {holder_name} under term {term}; nothing was done", self.shared.id);
                call.channel().message(&Message::Fenced(Fenced { term, holder: holder.clone() }));
                call.reply(&Err(Error::new(ErrorCode::Fenced, what)));
            }
        }
    }

    fn event(&self, _: &Channel, _: EventHead, _: Bytes) {}

    fn message(&self, channel: &Channel, message: Message) {
        match message {
            Message::Adopt(adopt) => self.adopt(channel, adopt),
            Message::EventAck(ack) => self.acknowledged(channel, &ack),
            // On an older channel it changes nothing; it is said again.
            Message::OutcomeAck(ack) if self.standing(channel.id()) == Standing::Current => {
                self.shared.lock().calls.settle(ack.edge, ack.below, &ack.ranges);
            }
            // Obeyed only on the holder's channel: nobody else may lead a worker away.
            Message::Preferred(preferred) if self.standing(channel.id()) == Standing::Current => {
                self.shared.lock().preferred = preferred.addresses;
            }
            Message::Redirect(redirect) if self.standing(channel.id()) == Standing::Current => {
                self.shared.redirects.send_replace(Redirected { addresses: redirect.addresses, over: self.number });
            }
            Message::ExclusiveDial(asked) if self.standing(channel.id()) == Standing::Current => {
                exclusive::dial(&self.shared, channel, self.way.clone(), asked);
            }
            Message::ExclusiveBind(bind) => {
                let key = channel_key(self.number, channel.id());
                let is_bound = self.shared.lock().adoption.bind(key, bind.term, &bind.ticket);
                // If not, its calls are fenced, which tells more.
                tracing::debug!(node = %self.shared.id, remote = channel.link().remote(), is_bound, "an exclusive connection");
            }
            Message::GoAway(away) if channel.link().peer().role == Role::Control => {
                let (node, reason) = (&self.shared.id, away.reason.message());
                match away.reason.code() {
                    // Nobody can use this worker until somebody changes its configuration.
                    ErrorCode::NodeIdInUse => tracing::error!(%node, reason, "the control node refuses us"),
                    _ => tracing::info!(%node, reason, "the control node sends us away"),
                }
                let mut state = self.shared.lock();
                // Of a link that is not the holder's only this link ends: when the holder goes, it says itself when to come back.
                if state.current.as_ref().is_none_or(|current| current.link() == channel.link()) {
                    state.reconnect_after = away.reconnect_after_ms.map(Duration::from_millis);
                    state.sent_away = Some(channel.link().clone());
                    drop(state);
                    // The agent looks for another one while this link goes on.
                    self.shared.held.send_modify(|_| ());
                }
            }
            _ => {}
        }
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, channel: u16, reason: &Error) {
        let key = channel_key(self.number, channel);
        let mut state = self.shared.lock();
        let was_current = state.adoption.check(key) == Standing::Current;
        state.adoption.channel_closed(key);
        if was_current {
            state.current = None;
            drop(state);
            tracing::info!(node = %self.shared.id, reason = reason.message(), "the holder's channel was closed");
            self.shared.held.send_replace(Held::No);
            self.shared.has_moved();
        }
    }

    fn pinged(&self, channel: u16, rank: Rank) {
        self.shared.lock().adoption.heard(channel_key(self.number, channel), rank, Instant::now().into_std());
    }

    fn closed(&self, reason: &Error) {
        let channels: Vec<u16> = {
            let mut state = self.shared.lock();
            state.links.remove(&self.number);
            state.adoption.unbind(|key| is_of_link(key, self.number));
            state.sent_away.take_if(|link| link.has_ended());
            let current = state.current.as_ref();
            current.filter(|channel| channel.link().has_ended()).map(Channel::id).into_iter().collect()
        };
        for channel in channels {
            if self.standing(channel) == Standing::Current {
                self.channel_closed(channel, reason);
            }
        }
    }
}
