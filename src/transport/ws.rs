//! WebSocket (RFC 6455) over TCP (`ws`) and over TLS (`wss`), for what lets only HTTP through.
//!
//! ```text
//!   link: frames as bytes ─► Stream: one write is one binary message ─► tungstenite: masks, fragments, close ─► tcp or tls
//! ```
//!
//! - A connection begins with the HTTP upgrade ([`upgrade`]): path and sub-protocol must be right, and a web page (`Origin`) must be one of those that the
//!   configuration names, since a browser would let any page connect to our port.
//! - To the layers above it is a stream of bytes like any other ([`stream`]). The bytes of all binary messages, one after the other, are the link; where a
//!   message ends means nothing. A writer sends what it has at that moment as one message, which is one frame of the link, or several small ones that leave
//!   together, and never more than [`MESSAGE_BYTES_MAX`]; intermediaries may cut it into fragments as they like.
//! - Pings are answered. Text messages, larger messages and anything else that breaks RFC 6455 end the connection, with the close code that says why.
//! - There is no half close: shutting down is the close handshake, and the peer writes no more when it has read it.

mod stream;
#[cfg(test)]
mod tests;
mod upgrade;

use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

pub(super) use stream::Stream;
pub(super) use upgrade::{Request, Rules, accept, connect};

/// Most bytes of a message: the largest frame of a link, length included.
pub(super) const MESSAGE_BYTES_MAX: usize = crate::proto::frame::BYTES_MAX + 4;

/// Bytes read at once; each connection keeps a buffer of this size.
const READ_BYTES: usize = 16 * 1024;
/// What may wait for the socket beside one message: its header, and pongs.
const SPARE_BYTES: usize = 4 * 1024;

/// Every buffer of a connection has a bound: one message in each direction, also before the peer is trusted.
fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(MESSAGE_BYTES_MAX + SPARE_BYTES)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}
