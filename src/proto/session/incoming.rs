//! What a session hands to the shell.

use bytes::Bytes;

use super::streams::StreamKey;
use crate::error::Error;
use crate::proto::frame::Frame;
use crate::proto::head::{CallHead, EventHead, Outcome, Ping, Pong};
use crate::proto::message::Message;

/// What a peer's frame means for the shell.
#[derive(Debug, PartialEq)]
pub enum Incoming<T> {
    /// A call; the answer goes to [`Session::reply`](super::Session::reply).
    Call {
        /// Where it came in.
        channel: u16,
        /// Names the call in its reply.
        call: u32,
        /// What it asks for.
        head: CallHead,
        /// Bytes of the class.
        payload: Bytes,
        /// The stream that came with it.
        stream: Option<StreamKey>,
    },
    /// The answer to a call of ours.
    Reply {
        /// What the shell gave with the call.
        token: T,
        /// How it ended.
        outcome: Outcome,
    },
    /// The caller no longer waits.
    Cancelled {
        /// Channel of the call.
        channel: u16,
        /// The call.
        call: u32,
    },
    /// An entry of the peer's journal.
    Event {
        /// Where it came in.
        channel: u16,
        /// Its header.
        head: EventHead,
        /// Bytes of the class.
        payload: Bytes,
    },
    /// A ping to be answered with [`Session::pong`](super::Session::pong).
    Ping {
        /// Where it came in.
        channel: u16,
        /// Its body.
        ping: Ping,
    },
    /// The answer to a ping.
    Pong {
        /// Where it came in.
        channel: u16,
        /// Its body.
        pong: Pong,
    },
    /// A control message.
    Message {
        /// Where it came in.
        channel: u16,
        /// Its body.
        message: Message,
    },
    /// A frame on a channel that was opened for somebody else, as it came.
    Relayed(Frame),
    /// The peer opened a channel.
    ChannelOpened(u16),
    /// The peer closed a channel; its calls were answered, its streams reset.
    ChannelClosed {
        /// Which.
        channel: u16,
        /// Why.
        reason: Error,
    },
    /// A stream has bytes, its end or its error to read.
    Readable(StreamKey),
    /// A stream may send again.
    Writable(StreamKey),
    /// The peer ends the link because of a fault of ours.
    PeerFault(u16),
}
