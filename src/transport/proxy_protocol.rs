//! The PROXY protocol, version 2: the address of the real peer, told by a balancer in front of us.
//!
//! Only connections from `trusted_proxies` begin with such a header, and they always do; nobody else is asked, and nothing is guessed. The header is read
//! before admission, so that bounds and logs are about the real peer. Version 1, which is text, is not accepted.
//!
//! The format is that of <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>, section 2.2:
//!
//! ```text
//!   12 bytes signature │ u8 version 2, command │ u8 family, kind │ u16 length │ addresses and ports, then TLVs that are skipped
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::types::IpRange;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Most bytes behind the fixed part.
const REST_BYTES_MAX: usize = 4 * 1024;
/// Most time for a header. It comes with the first packet; this leaves room for one that was lost.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);
/// Most connections whose header has not come yet; while there are so many, nobody is accepted.
const PENDING_MAX: usize = 1024;

/// What is wrong with a header.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderFault {
    #[error("it does not begin with the header of the PROXY protocol, version 2")]
    NoHeader,
    #[error("a version other than 2, or an unknown command")]
    Version,
    #[error("an unknown family of addresses, or one that is not TCP")]
    Family,
    #[error("a length of {0} bytes")]
    Length(usize),
}

/// Reads the header at the beginning of a connection: the address of the real peer, or none where the proxy speaks for itself (a health check) or
/// does not know. Not a byte more is taken.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let invalid = |fault: HeaderFault| io::Error::new(io::ErrorKind::InvalidData, fault);
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).await?;
    let length = rest_bytes(&fixed).map_err(invalid)?;
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    address(&fixed, &rest).map_err(invalid)
}

fn rest_bytes(fixed: &[u8; 16]) -> Result<usize, HeaderFault> {
    if fixed[..12] != SIGNATURE {
        return Err(HeaderFault::NoHeader);
    }
    match usize::from(u16::from_be_bytes([fixed[14], fixed[15]])) {
        length if length <= REST_BYTES_MAX => Ok(length),
        length => Err(HeaderFault::Length(length)),
    }
}

fn address(fixed: &[u8; 16], rest: &[u8]) -> Result<Option<SocketAddr>, HeaderFault> {
    match fixed[12] {
        // LOCAL: whatever it says about addresses is to be ignored.
        0x20 => return Ok(None),
        // PROXY.
        0x21 => {}
        _ => return Err(HeaderFault::Version),
    }
    let short = || HeaderFault::Length(rest.len());
    match fixed[13] {
        // Not known, or a unix socket.
        0x00 | 0x31 => Ok(None),
        // TCP over IPv4: source, destination, source port, destination port.
        0x11 => {
            let [a, b, c, d, _, _, _, _, port @ ..] = rest.first_chunk::<10>().filter(|_| rest.len() >= 12).ok_or_else(short)?;
            Ok(Some(SocketAddr::from((Ipv4Addr::new(*a, *b, *c, *d), u16::from_be_bytes(*port)))))
        }
        // TCP over IPv6, in the same order.
        0x21 => {
            let addresses = rest.first_chunk::<36>().ok_or_else(short)?;
            let source = addresses.first_chunk::<16>().ok_or_else(short)?;
            let port = u16::from_be_bytes([addresses[32], addresses[33]]);
            let ip: IpAddr = Ipv6Addr::from(*source).into();
            Ok(Some(SocketAddr::new(ip, port)))
        }
        _ => Err(HeaderFault::Family),
    }
}

/// Accepts connections, some of which come through proxies.
#[derive(Debug)]
pub(super) struct Behind {
    trusted: Vec<IpRange>,
    /// Connections of proxies, whose header is still being read. Only who accepts holds the lock.
    pending: Mutex<JoinSet<Option<(TcpStream, SocketAddr)>>>,
}

impl Behind {
    pub(super) fn new(trusted: Vec<IpRange>) -> Self {
        Self { trusted, pending: Mutex::default() }
    }

    /// The next connection, with the address of its real peer. Dropping the future loses nothing.
    pub(super) async fn accept(&self, listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
        let mut pending = self.pending.lock().await;
        loop {
            tokio::select! {
                Some(read) = pending.join_next() => {
                    if let Ok(Some(accepted)) = read {
                        return Ok(accepted);
                    }
                }
                accepted = listener.accept(), if pending.len() < PENDING_MAX => {
                    let (stream, addr) = accepted?;
                    if !self.trusted.iter().any(|range| range.contains(addr.ip())) {
                        return Ok((stream, addr));
                    }
                    pending.spawn(identify(stream, addr));
                }
            }
        }
    }
}

async fn identify(mut stream: TcpStream, proxy: SocketAddr) -> Option<(TcpStream, SocketAddr)> {
    match timeout(HEADER_TIMEOUT, read(&mut stream)).await {
        Ok(Ok(peer)) => return Some((stream, peer.unwrap_or(proxy))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => tracing::debug!(%proxy, "a trusted proxy closed its connection"),
        Ok(Err(error)) => tracing::warn!(%proxy, %error, "protocol_error: a connection of a trusted proxy was refused"),
        Err(_) => tracing::warn!(%proxy, "protocol_error: a connection of a trusted proxy was refused: no PROXY header in time"),
    }
    None
}

#[cfg(test)]
mod tests;
