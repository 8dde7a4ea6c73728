//! QUIC (RFC 9000) over UDP: TLS 1.3, links that survive a change of address, and bulk data that delays nothing.
//!
//! ```text
//!   link stream  ── one bidirectional stream, opened by the dialler: handshake, pings, calls, events
//!   side streams ── one unidirectional stream for each direction of a byte stream that has something to send
//! ```
//!
//! - Streams of QUIC are independent: a lost packet of one holds up that one only. So the bytes of a transfer wait for their own losses, and a ping never does.
//!   Each direction opens its side stream by itself, when it has the first byte: with bidirectional ones the two ends would have to agree on who opens.
//! - To the layers above the link stream is a stream of bytes like any other ([`stream`]); side streams ([`side`]) exist once the peer is trusted. Before that
//!   the peer has one stream and [`UNTRUSTED_BYTES`] of our memory.
//! - The certificates, their options and the channel binding are those of tls. No resumption and no early data, so nothing can be replayed.
//! - A listener answers by Retry while many peers have not shown that they are at their address ([`listen`]).
//! - QUIC neither pings nor gives up by itself: that is what links do. A closed connection says so to its peer at once, also on behalf of a process that was
//!   killed and runs again (stateless reset).

mod dial;
mod listen;
mod side;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use quinn::{Connection, ConnectionError, TransportConfig, TransportErrorCode, VarInt};
use rustls::AlertDescription;
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{Error, ErrorCode, Result};
use crate::transport::{CertificateCheck, WireFacts, tcp, tls};
use crate::types::Transport;

pub(super) use dial::Dialler;
pub use dial::QuicSockets;
pub(super) use listen::{Acceptor, Arrived};
pub use side::SideStreams;
pub(super) use stream::Stream;

/// Bytes that a peer may have sent and we not read, before it is trusted.
const UNTRUSTED_BYTES: u32 = 64 * 1024;
/// The same once it is trusted: what a path of a gigabit and 100 ms holds.
const TRUSTED_BYTES: u32 = 16 * 1024 * 1024;
/// The same of one stream.
const STREAM_BYTES: u32 = 8 * 1024 * 1024;
/// Side streams of the peer at once: one for each byte stream that either side may open, and some that are just ending.
const SIDE_STREAMS_MAX: u32 = 2048 + 256;
/// What we ask the kernel to keep for a socket; it may give less.
const SOCKET_BYTES: usize = 4 * 1024 * 1024;

/// Behaviour of a connection; `link_streams` is what the peer may open of them.
fn transport(link_streams: u8) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from(link_streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(UNTRUSTED_BYTES))
        .stream_receive_window(VarInt::from_u32(STREAM_BYTES))
        .send_window(stream::WINDOW_BYTES_MIN)
        .datagram_receive_buffer_size(None)
        // Links have their own pings, and their own end of patience.
        .max_idle_timeout(None)
        .keep_alive_interval(None);
    Arc::new(config)
}

fn bind(addr: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        // `all` and `all6` are two listeners that may share a port.
        socket.set_only_v6(true)?;
    }
    // Less is only slower.
    let _ = socket.set_recv_buffer_size(SOCKET_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// What is known about a connection whose TLS handshake is done; `local` is the address of our socket.
fn facts(connection: &Connection, local: SocketAddr, certificate: CertificateCheck) -> Result<WireFacts> {
    let peer = connection.remote_address();
    // A socket on all addresses has that of its route to the peer.
    let own = connection.local_ip().or_else(|| routed(local.ip(), peer).ok()).unwrap_or(local.ip());
    let local = SocketAddr::new(own, local.port());
    let mut binding = [0; 32];
    let exported = connection.export_keying_material(&mut binding, tls::EXPORTER_LABEL, &[]);
    exported.map_err(|_| Error::new(ErrorCode::TlsError, "no channel binding"))?;
    Ok(WireFacts {
        transport: Transport::Quic,
        remote: tcp::shown(Transport::Quic, peer),
        local: tcp::shown(Transport::Quic, local),
        peer_addr: Some(SocketAddr::new(peer.ip().to_canonical(), peer.port())),
        binding: Some(binding),
        certificate,
    })
}

/// Sends nothing.
fn routed(from: IpAddr, to: SocketAddr) -> io::Result<IpAddr> {
    let socket = std::net::UdpSocket::bind((from, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

/// Why there is no connection; `otherwise` where TLS is not to blame.
fn connection_error(error: &ConnectionError, otherwise: ErrorCode) -> Error {
    match error {
        ConnectionError::TransportError(fault) if is_tls(fault.code) => Error::new(ErrorCode::TlsError, &fault.reason),
        ConnectionError::ConnectionClosed(close) if is_tls(close.error_code) => {
            // The low byte is the alert.
            let alert = AlertDescription::from(u64::from(close.error_code).to_be_bytes()[7]);
            Error::new(ErrorCode::TlsError, rustls::Error::AlertReceived(alert).to_string())
        }
        ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
            Error::new(otherwise, "the peer takes no connections at the moment")
        }
        ConnectionError::ApplicationClosed(_) => Error::new(otherwise, "the peer closed the connection"),
        ConnectionError::Reset => Error::new(otherwise, "the peer does not know the connection any more"),
        ConnectionError::VersionMismatch => Error::new(otherwise, "the peer speaks another version of QUIC"),
        other => Error::new(otherwise, other.to_string()),
    }
}

/// Alerts of TLS are errors of QUIC with this byte in front (RFC 9001 §4.8).
fn is_tls(code: TransportErrorCode) -> bool {
    u64::from(code) >> 8 == 1
}

/// The same for whoever reads or writes; the [`Error`] is inside.
fn io_error(error: &ConnectionError) -> io::Error {
    let told = connection_error(error, ErrorCode::ConnectionFailed);
    let kind = match (error, told.code()) {
        (_, ErrorCode::TlsError) => io::ErrorKind::InvalidData,
        (ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) | ConnectionError::Reset, _) => {
            io::ErrorKind::ConnectionReset
        }
        (ConnectionError::TimedOut, _) => io::ErrorKind::TimedOut,
        (ConnectionError::LocallyClosed, _) => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, told)
}
