//! Ports of the development cluster.

use std::net::{Ipv4Addr, TcpListener};

use rand::RngExt as _;

use crate::failure::{Failure, Outcome};

/// Ports that nobody else is likely to want: above the usual services, below the ephemeral ones of Linux.
const FREE_RANGE: std::ops::Range<u16> = 20_000..32_000;
/// Name of the failure when somebody else has a port.
pub(super) const IN_USE: &str = "port_in_use";
/// Tries to find free ports.
const TRIES: u32 = 100;

/// The first of `count` ports in a row: `base`, or any that are free if it is 0.
///
/// Whoever takes one of them between this look and the start of the node is noticed by the node.
pub(super) fn base(base: u16, count: u16) -> Outcome<u16> {
    if base == 0 {
        let mut free = (0..TRIES).map(|_| rand::rng().random_range(FREE_RANGE));
        let free = free.find(|base| first_taken(*base, count).is_none());
        return free.ok_or_else(|| Failure::new(IN_USE, format!("no {count} ports in a row are free")));
    }
    if base.checked_add(count - 1).is_none() {
        return Err(Failure::usage(
            "invalid_usage",
            format!("--base-port {base}: {count} nodes need ports up to {}", u32::from(base) + u32::from(count) - 1),
        ));
    }
    match first_taken(base, count) {
        Some(port) => Err(in_use(port, u32::from(port - base) + 1)),
        None => Ok(base),
    }
}

/// Somebody else listens on the port of a node.
pub(super) fn in_use(port: u16, number: u32) -> Failure {
    Failure::new(IN_USE, format!("port {port} of dev{number} is in use; choose other ports with --base-port"))
}

fn first_taken(base: u16, count: u16) -> Option<u16> {
    (base..=base + (count - 1)).find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let error = base(port, 1).expect_err("it is in use").to_string();
        assert!(error.contains(&format!("port {port} of dev1")) && error.contains("--base-port"), "{error}");
    }

    #[test]
    fn ports_end_at_65535() {
        assert!(base(65_535, 2).is_err());
    }

    #[test]
    fn free_ports_are_found() {
        assert!(FREE_RANGE.contains(&base(0, 5).expect("free ports")));
    }
}
