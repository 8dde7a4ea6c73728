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
use crate::proto::message::Message;

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
            Message::Describe(describe) => {
                let id = &self.link.peer().id;
                let proxy = self.proxy.get_or_init(|| self.shared.directory.find_or_insert(id, || Proxy::start(&self.shared, id.clone())));
                proxy.cast(Msg::LinkUp { key: self.key, link: self.link.clone(), describe: Box::new(describe) });
            }
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
