//! A WebSocket as a stream of bytes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::{MESSAGE_BYTES_MAX, limits};
use crate::error::{Error, ErrorCode};

/// The bytes of all binary messages, in both directions.
///
/// A write becomes one message, and waits until the one before it has left; so at most one waits here.
pub(in crate::transport) struct Stream<S> {
    socket: WebSocketStream<S>,
    /// What is left of the last message.
    message: Bytes,
    read: Reading,
}

enum Reading {
    Open,
    /// The peer has said that it sends no more.
    Ended,
    /// The peer has broken the rules.
    Failed(Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// Behind the upgrade; `rest` is what came together with its last bytes.
    pub(super) async fn new(stream: S, role: Role, rest: Vec<u8>) -> Self {
        let socket = WebSocketStream::from_partially_read(stream, rest, role, Some(limits())).await;
        Self { socket, message: Bytes::new(), read: Reading::Open }
    }

    /// Gives the peer up, and tells it why as far as that goes without waiting.
    fn fail(&mut self, cx: &mut Context<'_>, code: CloseCode, reason: String) -> io::Error {
        if let Poll::Ready(Ok(())) = Pin::new(&mut self.socket).poll_flush(cx) {
            let close = CloseFrame { code, reason: "".into() };
            // Whether the peer hears it is its own affair.
            let _ = Pin::new(&mut self.socket).start_send(Message::Close(Some(close)));
            let _ = Pin::new(&mut self.socket).poll_flush(cx);
        }
        let error = Error::new(ErrorCode::ProtocolError, reason);
        self.read = Reading::Failed(error.clone());
        io_error(error)
    }

    /// Waits until the message before has left: then the buffer is empty, and the next one fits.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(write_error)
    }

    fn send(&mut self, message: Bytes) -> io::Result<usize> {
        let count = message.len();
        Pin::new(&mut self.socket).start_send(Message::Binary(message)).map_err(write_error)?;
        Ok(count)
    }
}

fn io_error(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}

fn write_error(error: WsError) -> io::Error {
    match error {
        WsError::Io(error) => error,
        WsError::ConnectionClosed | WsError::AlreadyClosed | WsError::Protocol(ProtocolError::SendAfterClosing) => {
            io::ErrorKind::BrokenPipe.into()
        }
        error => io_error(Error::new(ErrorCode::ProtocolError, error.to_string())),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.message.is_empty() {
                let count = this.message.len().min(buf.remaining());
                buf.put_slice(&this.message[..count]);
                this.message.advance(count);
                return Poll::Ready(Ok(()));
            }
            match &this.read {
                Reading::Open => {}
                Reading::Ended => return Poll::Ready(Ok(())),
                Reading::Failed(error) => return Poll::Ready(Err(io_error(error.clone()))),
            }
            match ready!(Pin::new(&mut this.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(message))) => this.message = message,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(this.fail(cx, CloseCode::Unsupported, "the peer sent a text message".to_owned())));
                }
                Some(Ok(Message::Close(_))) => {
                    // The answer is queued; a peer that does not take it in has gone anyway.
                    let _ = Pin::new(&mut this.socket).poll_flush(cx);
                    this.read = Reading::Ended;
                }
                None => this.read = Reading::Ended,
                // As TLS has it: an end without a farewell may have been cut off by somebody else.
                Some(Err(WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                Some(Err(WsError::Io(error))) => return Poll::Ready(Err(error)),
                Some(Err(error @ WsError::Capacity(_))) => {
                    return Poll::Ready(Err(this.fail(cx, CloseCode::Size, error.to_string())));
                }
                Some(Err(error)) => return Poll::Ready(Err(this.fail(cx, CloseCode::Protocol, error.to_string()))),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(this.poll_room(cx))?;
        Poll::Ready(this.send(Bytes::copy_from_slice(&buf[..buf.len().min(MESSAGE_BYTES_MAX)])))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let bytes = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MESSAGE_BYTES_MAX);
        if bytes == 0 {
            return Poll::Ready(Ok(0));
        }
        ready!(this.poll_room(cx))?;
        let mut message = BytesMut::with_capacity(bytes);
        for buf in bufs {
            message.extend_from_slice(&buf[..buf.len().min(bytes - message.len())]);
        }
        Poll::Ready(this.send(message.freeze()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_room(cx)
    }

    /// The close handshake: nothing can be sent afterwards, and the peer stops sending when it has read so far.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(cx).map_err(write_error)
    }
}
