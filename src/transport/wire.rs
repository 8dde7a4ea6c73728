//! An open byte stream and what is known about it.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::transport::memory::MemoryStream;
use crate::transport::quic::{self, SideStreams};
use crate::transport::split::split;
use crate::transport::tls;
use crate::types::Transport;

/// What reads from a [`Wire`] after [`Wire::into_split`].
pub type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
/// What writes to a [`Wire`] after [`Wire::into_split`].
pub type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// Any byte stream that can carry a link.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// Whether TLS has shown who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateCheck {
    /// No TLS, or any certificate was good enough.
    Unchecked,
    /// The certificate is signed by one that we trust (and names the host, if that was asked for).
    Verified,
}

/// What is known about a wire.
#[derive(Clone, Debug)]
pub struct WireFacts {
    /// How the bytes travel.
    pub transport: Transport,
    /// The other end, as shown to people: `tcp:127.0.0.1:15004`; behind a proxy the name that was dialled, behind a balancer the real peer if it tells.
    pub remote: String,
    /// Our end, in the same form.
    pub local: String,
    /// Address of the other end, if it has one that we know.
    pub peer_addr: Option<SocketAddr>,
    /// Exporter of the TLS connection (RFC 9266), the same at both ends of it and nowhere else.
    pub binding: Option<[u8; 32]>,
    /// Whether the certificate of the other end was verified.
    pub certificate: CertificateCheck,
}

/// An open byte stream with its facts. Reads and writes like any tokio stream.
pub struct Wire {
    io: Io,
    facts: WireFacts,
}

enum Io {
    Tcp(TcpStream),
    Tls(Box<tls::Stream>),
    Memory(MemoryStream),
    Quic(Box<quic::Stream>),
    Other(Box<dyn Stream>),
}

impl Wire {
    /// A wire over a stream of another kind, such as one that a test made or that another program handed over.
    pub fn new(stream: impl Stream, facts: WireFacts) -> Self {
        Self { io: Io::Other(Box::new(stream)), facts }
    }

    pub(super) fn tcp(stream: TcpStream, facts: WireFacts) -> Self {
        Self { io: Io::Tcp(stream), facts }
    }

    pub(super) fn tls(stream: Box<tls::Stream>, facts: WireFacts) -> Self {
        Self { io: Io::Tls(stream), facts }
    }

    pub(super) fn memory(stream: MemoryStream, facts: WireFacts) -> Self {
        Self { io: Io::Memory(stream), facts }
    }

    pub(super) fn quic(stream: quic::Stream, facts: WireFacts) -> Self {
        Self { io: Io::Quic(Box::new(stream)), facts }
    }

    /// Streams beside this one, where the transport has any. To be asked for once the peer is trusted: from then on it may open some too.
    pub fn side_streams(&self) -> Option<SideStreams> {
        match &self.io {
            Io::Quic(stream) => Some(stream.side_streams()),
            Io::Tcp(_) | Io::Tls(_) | Io::Memory(_) | Io::Other(_) => None,
        }
    }

    /// What is known about it.
    pub fn facts(&self) -> &WireFacts {
        &self.facts
    }

    /// Whether each byte costs much more than its way through the system, as those of TLS do; not known of streams that somebody else made.
    pub fn is_enciphering(&self) -> bool {
        matches!(self.io, Io::Tls(_))
    }

    /// Reader and writer for separate tasks; those of TLS and WebSocket never hold up each other's threads. To be asked for once the peer is trusted: from then on more of what
    /// it sends may be read than was asked for.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self.io {
            Io::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (Box::new(read), Box::new(write))
            }
            Io::Tls(mut stream) => {
                stream.get_mut().0.begin();
                let (read, write) = split(*stream);
                (Box::new(read), Box::new(write))
            }
            Io::Memory(stream) => {
                let (read, write) = stream.into_split();
                (Box::new(read), Box::new(write))
            }
            Io::Quic(stream) => {
                let (read, write) = stream.into_split();
                (Box::new(read), Box::new(write))
            }
            Io::Other(stream) => {
                let (read, write) = split(stream);
                (Box::new(read), Box::new(write))
            }
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("remote", &self.facts.remote).finish_non_exhaustive()
    }
}

macro_rules! each {
    ($wire:expr, $io:ident => $call:expr) => {
        match &mut $wire.get_mut().io {
            Io::Tcp($io) => $call,
            Io::Tls($io) => $call,
            Io::Memory($io) => $call,
            Io::Quic($io) => $call,
            Io::Other($io) => $call,
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tcp(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
            Io::Memory(io) => io.is_write_vectored(),
            Io::Quic(io) => io.is_write_vectored(),
            Io::Other(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
