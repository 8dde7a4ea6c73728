//! TCP sockets with the options that a link needs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::transport::{CertificateCheck, WireFacts};
use crate::types::Transport;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

pub(super) async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    prepare(&stream)?;
    Ok(stream)
}

/// Frames are written whole, so waiting for more bytes only delays them.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)
}

pub(super) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        // `all` and `all6` are two listeners that may share a port.
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// The address to tell others, where the socket listens on all: the one of the route to the world, else loopback. Sends nothing.
pub(super) fn reachable(addr: SocketAddr) -> SocketAddr {
    if !addr.ip().is_unspecified() {
        return addr;
    }
    // Addresses of documentation (RFC 5737, RFC 3849): never used, but routed like any other.
    let (any, world, loopback): (IpAddr, IpAddr, IpAddr) = if addr.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::LOCALHOST.into())
    } else {
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), Ipv6Addr::LOCALHOST.into())
    };
    let route = || -> io::Result<IpAddr> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((world, 9))?;
        Ok(socket.local_addr()?.ip())
    };
    SocketAddr::new(route().unwrap_or(loopback), addr.port())
}

/// The identity of a connection (checklist N3.16).
pub(super) fn shown(transport: Transport, addr: SocketAddr) -> String {
    format!("{transport}:{}", SocketAddr::new(addr.ip().to_canonical(), addr.port()))
}

pub(super) fn facts(transport: Transport, stream: &TcpStream, peer_addr: SocketAddr) -> WireFacts {
    WireFacts {
        transport,
        remote: shown(transport, peer_addr),
        local: stream.local_addr().map_or_else(|_| transport.to_string(), |addr| shown(transport, addr)),
        peer_addr: Some(peer_addr),
        binding: None,
        certificate: CertificateCheck::Unchecked,
    }
}
