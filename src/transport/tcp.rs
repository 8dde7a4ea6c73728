//! TCP sockets with the options that a link needs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::transport::{CertificateCheck, WireFacts};
use crate::types::Transport;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// Bytes that the kernel takes before it has sent the ones before: an urgent frame waits behind no more than these.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

pub(super) async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    prepare(&stream)?;
    Ok(stream)
}

/// Frames are written whole, so waiting for more bytes only delays them; and what waits in the kernel cannot be overtaken.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
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

pub(super) fn facts(transport: Transport, stream: &TcpStream, remote: String, peer_addr: Option<SocketAddr>) -> WireFacts {
    WireFacts {
        transport,
        remote,
        local: stream.local_addr().map_or_else(|_| transport.to_string(), |addr| shown(transport, addr)),
        peer_addr,
        binding: None,
        certificate: CertificateCheck::Unchecked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ends_keep_little_in_the_kernel_and_wait_for_nothing() {
        let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("listens");
        let addr = listener.local_addr().expect("bound");
        let (dialled, accepted) = tokio::join!(connect(addr), listener.accept());
        let (dialled, (accepted, _)) = (dialled.expect("connects"), accepted.expect("accepts"));
        prepare(&accepted).expect("prepares");
        for stream in [dialled, accepted] {
            assert_eq!(SockRef::from(&stream).tcp_notsent_lowat().expect("reads"), UNSENT_BYTES_MAX);
            assert!(stream.nodelay().expect("reads"));
        }
    }
}
