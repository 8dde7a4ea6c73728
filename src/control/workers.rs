//! What a control node does with the frames of one worker's link.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::events::Took;
use super::proxy::state::LinkKey;
use super::proxy::{Msg, Proxy};
use super::shared::Shared;
use crate::connection::{Channel, IncomingCall, Link, LinkHandler};
use crate::error::{Error, ErrorCode};
use crate::proto::head::{EventHead, Rank};
use crate::proto::message::{Describe, Message};

pub(super) fn handler(shared: Arc<Shared>, link: &Link) -> Arc<dyn LinkHandler> {
    let key = shared.add_link(link);
    Arc::new(Handler { shared, key, link: link.clone(), proxy: OnceLock::new() })
}

struct Handler {
    shared: Arc<Shared>,
    key: LinkKey,
    link: Link,
    /// Known from the worker's first frame on.
    proxy: OnceLock<Arc<Proxy>>,
}

impl Handler {
    fn introduced(&self, describe: Describe) {
        let id = &self.link.peer().id;
        let found = || self.shared.directory.find_or_insert(id, || Proxy::start(&self.shared, id.clone()));
        let Some(proxy) = self.proxy.get().cloned().or_else(found) else {
            tracing::error!(worker = %id, "a new worker is turned away: too many are known; forget those that will not return");
            let what = "the control node knows as many workers as it can";
            return self.link.close(Error::new(ErrorCode::Busy, what));
        };
        // Set by the first frame of the worker; the frames of one link come one after the other.
        let _ = self.proxy.set(Arc::clone(&proxy));
        proxy.cast(Msg::LinkUp { key: self.key, link: self.link.clone(), describe: Box::new(describe) });
        if proxy.has_ended() {
            // Forgotten at this very moment: nobody sees this link, so the worker must make another one.
            self.link.close(Error::new(ErrorCode::ShuttingDown, "the proxy of the worker has ended"));
        }
    }

    fn full(&self, channel: &Channel, took: Took) {
        if took == Took::Refused {
            let what = "more events are on their way than were granted";
            channel.link().close(Error::new(ErrorCode::ProtocolError, what));
        }
    }
}

impl LinkHandler for Handler {
    fn call(&self, call: IncomingCall) {
        // The session refuses calls of a worker already; a control node that plays one is told the same.
        call.reply(&Err(Error::new(ErrorCode::NotAllowed, "a worker makes no calls")));
    }

    fn event(&self, channel: &Channel, head: EventHead, payload: Bytes) {
        let Some(proxy) = self.proxy.get() else { return };
        let took = proxy.event(channel, self.link.peer().incarnation, head, payload);
        self.full(channel, took);
    }

    fn message(&self, channel: &Channel, message: Message) {
        match message {
            Message::Describe(describe) => self.introduced(describe),
            Message::Resync(resync) => {
                if let Some(proxy) = self.proxy.get() {
                    let took = proxy.resync(channel, self.link.peer().incarnation, resync);
                    self.full(channel, took);
                }
            }
            other => {
                let Some(proxy) = self.proxy.get() else { return };
                let key = self.key;
                match other {
                    Message::Adopted(answer) => proxy.cast(Msg::Adopted { key, channel: channel.id(), answer }),
                    Message::Fenced(fenced) => proxy.cast(Msg::Fenced { key, fenced }),
                    Message::Update(update) => proxy.cast(Msg::Updated { key, update: Box::new(update) }),
                    _ => {}
                }
            }
        }
    }

    fn channel_opened(&self, _: &Channel) {}

    fn channel_closed(&self, channel: u16, reason: &Error) {
        if let Some(proxy) = self.proxy.get()
            && proxy.is_current(self.key, channel)
        {
            self.link.close(reason.clone());
        }
    }

    fn pinged(&self, _: u16, _: Rank) {}

    fn closed(&self, _: &Error) {
        self.shared.remove_link(self.key);
        if let Some(proxy) = self.proxy.get() {
            proxy.cast(Msg::LinkDown { key: self.key });
        }
    }
}
