//! How envelopes of membership travel to a peer.
//!
//! There are two carriers. The **data link** itself carries them as frames of their own, on the memory network and between nodes of one process. Between processes
//! **ractor_cluster** carries them from the router actor of one node to that of the other (`carrier/actors.rs`). Whoever dialled the data link decides, and says so by what it sends first: an
//! envelope on the link, or the request for a session. Until then the listener keeps what it has to say.

pub(crate) mod actors;

use bytes::Bytes;

use crate::connection::Link;
use crate::proto::message::Message;

/// Envelopes that wait until it is clear how they travel: a hello, and a few heartbeats at most.
const WAITING_MAX: usize = 64;

/// A way to one peer.
pub(crate) trait Carrier: Send + Sync {
    /// Sends an envelope; it is lost if the way has ended.
    fn send(&self, envelope: Bytes);
    /// Ends the way. The data link is closed by whoever calls this.
    fn close(&self);
}

/// The data link itself.
pub(crate) struct OverLink(pub(crate) Link);

impl Carrier for OverLink {
    fn send(&self, envelope: Bytes) {
        self.0.channel_zero().message(&Message::Envelope(envelope));
    }

    fn close(&self) {}
}

/// What is known of the way to a peer.
pub(crate) enum Way {
    /// The peer, or ractor, has yet to say how.
    Undecided(Vec<Bytes>),
    Known(Box<dyn Carrier>),
}

impl Way {
    pub(crate) fn send(&mut self, envelope: Bytes) {
        match self {
            Way::Known(carrier) => carrier.send(envelope),
            Way::Undecided(waiting) if waiting.len() < WAITING_MAX => waiting.push(envelope),
            // Whatever is lost is said again with the next hello or digest.
            Way::Undecided(_) => {}
        }
    }

    /// From now on this way, which gets what has waited.
    pub(crate) fn decide(&mut self, carrier: Box<dyn Carrier>) {
        match std::mem::replace(self, Way::Known(carrier)) {
            Way::Undecided(waiting) => waiting.into_iter().for_each(|envelope| self.send(envelope)),
            Way::Known(before) => before.close(),
        }
    }

    pub(crate) fn is_decided(&self) -> bool {
        matches!(self, Way::Known(_))
    }

    pub(crate) fn close(&self) {
        if let Way::Known(carrier) = self {
            carrier.close();
        }
    }
}
