//! The sockets of a process, as the kernel tells them.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::support::Daemon;

/// Where a daemon listens for TCP over IPv4, and the number of its listening sockets of IPv6.
pub(crate) fn listening(daemon: &Daemon) -> (Vec<SocketAddrV4>, usize) {
    let of_ipv4 = sockets(daemon, "tcp").iter().filter(|row| row.state == LISTENS).map(|row| address(&row.local)).collect();
    (of_ipv4, sockets(daemon, "tcp6").iter().filter(|row| row.state == LISTENS).count())
}

/// Its own ends of its connections of TCP over IPv4.
pub(crate) fn connected(daemon: &Daemon) -> Vec<SocketAddrV4> {
    sockets(daemon, "tcp").iter().filter(|row| row.state == IS_CONNECTED).map(|row| address(&row.local)).collect()
}

const LISTENS: &str = "0A";
const IS_CONNECTED: &str = "01";

/// A line of `/proc/net/tcp`.
struct Row {
    local: String,
    state: String,
}

/// Those of one process.
fn sockets(daemon: &Daemon, table: &str) -> Vec<Row> {
    let pid = daemon.pid().as_raw_nonzero();
    let mut own = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten() {
        if let Ok(target) = fs::read_link(entry.path()) {
            own.extend(target.to_string_lossy().strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned));
        }
    }
    let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
    let rows = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = rows.filter(|row| own.contains(row[9]));
    ours.map(|row| Row { local: row[1].to_owned(), state: row[3].to_owned() }).collect()
}

/// An address, as the kernel writes it in hexadecimal digits.
fn address(text: &str) -> SocketAddrV4 {
    let (host, port) = text.split_once(':').expect("address and port");
    let host = u32::from_str_radix(host, 16).expect("hexadecimal digits");
    SocketAddrV4::new(Ipv4Addr::from(host.to_ne_bytes()), u16::from_str_radix(port, 16).expect("hexadecimal digits"))
}
