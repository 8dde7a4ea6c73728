//! Frames of the handshake on the wire: `u32` length, `u8` kind, `u16` channel (always 0), body.
//!
//! Exactly one frame is read at a time, so that nothing of what follows the handshake is taken from the stream.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::error::{Error, ErrorCode};
use crate::proto::auth::{AuthError, AuthFrame, FRAME_BYTES_MAX, Refusal};
use crate::transport::Wire;

/// Bytes of kind and channel, which the length counts.
const COUNTED_HEADER_BYTES: usize = 3;
/// Most bytes that a refused peer may still send before we close.
const LINGER_BYTES: u64 = 64 * 1024;
/// Most time for a refused peer to read why.
const LINGER: Duration = Duration::from_secs(1);

/// Why there is no frame.
#[derive(Debug)]
pub(super) enum ReadFault {
    /// What came is no frame of a handshake.
    Auth(AuthError),
    /// Nothing came any more.
    Io(Error),
}

impl From<io::Error> for ReadFault {
    fn from(error: io::Error) -> Self {
        ReadFault::Io(stream_error(&error))
    }
}

pub(super) async fn read_frame(wire: &mut Wire) -> Result<AuthFrame, ReadFault> {
    let mut length = [0; 4];
    wire.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length);
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if bytes > FRAME_BYTES_MAX {
        return Err(ReadFault::Auth(AuthError::TooLarge { bytes: length.into() }));
    }
    let Some(body_bytes) = bytes.checked_sub(COUNTED_HEADER_BYTES) else {
        return Err(ReadFault::Auth(AuthError::Malformed("a frame without kind and channel")));
    };
    let mut header = [0; COUNTED_HEADER_BYTES];
    wire.read_exact(&mut header).await?;
    let [kind, channel @ ..] = header;
    if u16::from_be_bytes(channel) != 0 {
        // A channel exists only on trusted links, so this is a frame that needs trust.
        return Err(ReadFault::Auth(AuthError::UnexpectedFrame { kind: kind.max(FIRST_TRUSTED_KIND) }));
    }
    let mut body = vec![0; body_bytes];
    wire.read_exact(&mut body).await?;
    Ok(AuthFrame { kind, body })
}

/// Any kind from here on is none of the handshake.
const FIRST_TRUSTED_KIND: u8 = 16;

pub(super) async fn write_frame(wire: &mut Wire, frame: &AuthFrame) -> Result<(), Error> {
    let length = u32::try_from(COUNTED_HEADER_BYTES + frame.body.len()).map_err(|_| Error::new(ErrorCode::Internal, "a frame of 4 GiB"))?;
    let mut bytes = Vec::with_capacity(4 + COUNTED_HEADER_BYTES + frame.body.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[frame.kind, 0, 0]);
    bytes.extend_from_slice(&frame.body);
    let write = async {
        wire.write_all(&bytes).await?;
        wire.flush().await
    };
    write.await.map_err(|error| stream_error(&error))
}

/// Tells the peer why it is not let in, and closes. Waits a moment for its end: closing a socket with unread bytes would take the refusal away again.
pub(super) async fn refuse(wire: &mut Wire, refusal: &Refusal) {
    let tell = async {
        write_frame(wire, &refusal.to_frame()).await.ok()?;
        wire.shutdown().await.ok()?;
        tokio::io::copy(&mut wire.take(LINGER_BYTES), &mut tokio::io::sink()).await.ok()
    };
    // Whether the peer heard it is its own affair.
    let _ = timeout(LINGER, tell).await;
}

/// The error of a stream that broke during the handshake; TLS also reports refused certificates this way, and a transport may say it
/// in our own words.
fn stream_error(error: &io::Error) -> Error {
    if let Some(told) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return told.clone();
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::new(ErrorCode::ConnectionFailed, "the peer closed the connection during the handshake"),
        io::ErrorKind::InvalidData => Error::new(ErrorCode::TlsError, error.to_string()),
        _ => Error::new(ErrorCode::ConnectionFailed, format!("the connection broke during the handshake: {error}")),
    }
}
